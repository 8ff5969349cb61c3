//! Waiting for other package managers.

use std::fs::File;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::command::{Child, Finished};
use crate::error::{Context as _, Kind, Result};
use crate::fail;

/// How long another user of the packages is waited for.
const PATIENCE: Duration = Duration::from_mins(10);
const POLL: Duration = Duration::from_millis(200);
/// Silence before a wait is mentioned.
const PATIENT_SILENCE: Duration = Duration::from_secs(1);

/// What frontends of dpkg take before they call it. Source: dpkg(1), `DPKG_FRONTEND_LOCKED`.
const FRONTEND_LOCK: &str = "/var/lib/dpkg/lock-frontend";
/// What dpkg itself takes.
const DPKG_LOCK: &str = "/var/lib/dpkg/lock";

/// What dpkg and apt answer while somebody else is at work.
const LOCKED: [&str; 2] = ["locked by another process", "It is held by process"];

/// Nobody else begins to change packages while this lives.
#[derive(Debug)]
pub struct FrontendLock {
    _file: File,
}

impl FrontendLock {
    /// Keep other package managers from beginning anything, and wait for those that have: so the wait is
    /// over before a service is stopped. (rpm has no such lock for those who call it.)
    ///
    /// # Errors
    /// [`Kind::Failed`] if it takes too long.
    pub fn take() -> Result<Self> {
        take(FRONTEND_LOCK).map(|file| Self { _file: file })
    }
}

/// Wait until no dpkg is at work, whoever began it.
pub(super) fn wait_for_dpkg() -> Result<()> {
    take(DPKG_LOCK).map(drop)
}

fn take(path: &str) -> Result<File> {
    let failed = || format!("cannot lock {path}");
    let mut options = File::options();
    let options = options.write(true).create(true).truncate(false);
    let file = options.open(path).context(failed)?;
    let mut patience = Patience::new();
    loop {
        // The kind of lock that dpkg and apt take.
        match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::AGAIN | Errno::ACCESS) if patience.has_more() => patience.wait(),
            Err(Errno::AGAIN | Errno::ACCESS) => fail!(
                Kind::Failed,
                "the package manager is in use, and was for {} minutes",
                PATIENCE.as_secs() / 60
            ),
            Err(error) => return Err(error).context(failed),
        }
    }
}

/// A wait for somebody else, which is said when it takes long.
struct Patience {
    begun: Instant,
    said: bool,
}

impl Patience {
    fn new() -> Self {
        Self {
            begun: Instant::now(),
            said: false,
        }
    }

    fn has_more(&self) -> bool {
        self.begun.elapsed() < PATIENCE
    }

    fn wait(&mut self) {
        if !self.said && self.begun.elapsed() > PATIENT_SILENCE {
            tracing::warn!("waiting for the package manager, which somebody else uses");
            self.said = true;
        }
        std::thread::sleep(POLL);
    }
}

/// dpkg and apt do not wait for whoever is at work.
pub(super) fn patiently(mut child: Child) -> Result<Finished> {
    let mut patience = Patience::new();
    loop {
        let finished = child.try_output()?;
        let locked =
            !finished.status.success() && LOCKED.iter().any(|said| finished.stderr.contains(said));
        if !locked || !patience.has_more() {
            return Ok(finished);
        }
        patience.wait();
    }
}
