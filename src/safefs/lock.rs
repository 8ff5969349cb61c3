//! Lock files. Locks belong to the open file, so they end with the process, however it ends.
//!
//! Order, for whoever takes several: the container's, then the store's, then libostree's own.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Context as _, Error, Kind, Result};

/// Who else may hold the lock meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Others that share it.
    Shared,
    /// Nobody.
    Exclusive,
}

/// A held lock; dropping it releases it.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Take the lock of a file that exists, alone and without waiting; nothing if another process
    /// holds it, or if there is no such file yet.
    pub fn try_take(path: &Path) -> Result<Option<Self>> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).context(|| format!("cannot open the lock {}", path.display()));
            }
        };
        Ok(file.try_lock().is_ok().then_some(Self { _file: file }))
    }

    /// Take the lock, waiting for as long as another process holds it. After a second of waiting
    /// stderr is told that, and for `what`.
    pub fn take(path: &Path, mode: Mode, what: &str) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .context(|| format!("cannot open the lock {}", path.display()))?;
        let start = Instant::now();
        let mut told = false;
        loop {
            let tried = match mode {
                Mode::Shared => file.try_lock_shared(),
                Mode::Exclusive => file.try_lock(),
            };
            match tried {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => {
                    return Err(Error::new(
                        Kind::Failed,
                        format!("cannot lock {}: {error}", path.display()),
                    ));
                }
            }
            if !told && start.elapsed() > Duration::from_secs(1) {
                told = true;
                say!("waiting for another command that holds {what}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exclusive_lock_waits_for_shared_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Lock::take(&path, Mode::Shared, "it").unwrap();
        let second = Lock::take(&path, Mode::Shared, "it").unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let waiter = std::thread::spawn({
            let path = path.clone();
            move || {
                let _lock = Lock::take(&path, Mode::Exclusive, "it").unwrap();
                sender.send(()).unwrap();
            }
        });
        drop(first);
        assert!(receiver.recv_timeout(Duration::from_millis(100)).is_err());
        drop(second);
        receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        waiter.join().unwrap();
    }
}
