//! Contents of files on their way into the repository, hashed and written by several threads.
//!
//! libostree's own way costs a dozen system calls for each file. This one knows a small file's checksum
//! before it writes, so that what is there already is not written at all. What it writes is what
//! libostree would have written, which its `fsck` and a test confirm.
//!
//! # On disk
//! Objects wait in a directory `tmp/atomic-rs-…` of the repository, which is locked by `flock` and laid out like
//! `objects`, until all of them are durable; then they are renamed to where they belong, a directory at
//! a time where there is none of that name. What a kill leaves is swept by whoever writes next.

mod form;
mod lane;
mod space;
mod staged;
mod work;

use std::fs::File;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use camino::{Utf8Path, Utf8PathBuf};
use ostree::Repo;
use rustix::fs::FlockOperation;

use crate::error::{Context as _, Error, Kind, Result};
use crate::{fail, fault, safefs};

pub use form::{FileMeta, OSTREE_META, reset_times, set_xattrs};
pub use lane::Lane;
use lane::Task;
pub use staged::Staged;
pub(super) use work::{FILE, path as object_path};
use work::{Shared, UNNAMED, Worker, names};

/// More threads than this only wait for the disk.
const MAX_THREADS: usize = 8;
const PREFIX: &str = "atomic-rs-";

/// The threads that write, and the objects they have written, which wait for [`Writers::place`].
pub struct Writers {
    shared: Arc<Shared>,
    tasks: Option<Sender<Task>>,
    threads: Vec<JoinHandle<()>>,
    flusher: Option<JoinHandle<()>>,
    staging: Utf8PathBuf,
    _lock: File,
}

impl Writers {
    /// Start as many threads as there are processors.
    pub fn start(repo: &Repo, path: &Utf8Path, is_system: bool) -> Result<Self> {
        let tmp = path.join("tmp");
        sweep(&tmp);
        let (staging, lock) = make_staging(&tmp)?;
        let (flushes, flush_queue) = sync_channel(1);
        let shared = Shared::new(repo, path, &lock, is_system, flushes)?;
        let (tasks, queue) = channel();
        let mut out = Self {
            shared: Arc::new(shared),
            tasks: Some(tasks),
            threads: Vec::new(),
            flusher: None,
            staging,
            _lock: lock,
        };
        let shared = out.shared.clone();
        out.flusher = Some(spawn("flush", move || shared.flush(&flush_queue))?);
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..threads() {
            let worker = Worker::new(out.shared.clone(), number);
            let queue = queue.clone();
            let name = format!("write-{number}");
            out.threads.push(spawn(&name, move || worker.work(&queue))?);
        }
        Ok(out)
    }

    /// A way in for the files of one layer, of which `budget` bytes may wait.
    pub fn lane(&self, budget: usize) -> Result<Lane> {
        let Some(tasks) = self.tasks.clone() else {
            fail!(Kind::Failed, "the writers have ended");
        };
        Ok(Lane::new(tasks, self.shared.manner(), budget))
    }

    /// A way in for directories and links.
    pub fn staged(&self, repo: &Repo) -> Staged {
        Staged {
            repo: repo.clone(),
            shared: self.shared.clone(),
        }
    }

    /// Make all that was written durable, by others to the same file system as well, and move it to where it
    /// belongs. Its new names are durable after the next sync of the file system.
    pub fn place(mut self) -> Result<()> {
        self.tasks = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                fail!(Kind::Failed, "a thread that writes to the repository died");
            }
        }
        tracing::debug!("files are written");
        self.end_flushing();
        self.shared.sync().context(failed)?;
        tracing::debug!("files are durable");
        let mut parts = names(&self.shared.staging).context(failed)?;
        parts.retain(|name| !name.starts_with(UNNAMED));
        for part in parts {
            fault::point("place some objects")?;
            self.shared.place(&part).context(failed)?;
        }
        Ok(())
    }

    fn end_flushing(&mut self) {
        self.shared.end_flushing();
        if let Some(flusher) = self.flusher.take() {
            // It only ever waits for the disk.
            let _ = flusher.join();
        }
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.shared.is_given_up.store(true, Ordering::Relaxed);
        self.tasks = None;
        self.end_flushing();
        for thread in self.threads.drain(..) {
            // It was said before if it died.
            let _ = thread.join();
        }
        if let Err(error) = safefs::remove_tree(self.staging.as_std_path()) {
            tracing::warn!(%error, "left behind");
        }
    }
}

/// How many threads are of use.
pub fn threads() -> usize {
    std::thread::available_parallelism()
        .map_or(2, usize::from)
        .clamp(2, MAX_THREADS)
}

fn failed() -> String {
    "cannot write to the repository".into()
}

fn make_staging(tmp: &Utf8Path) -> Result<(Utf8PathBuf, File)> {
    let failed = || format!("cannot create a directory in {tmp}");
    loop {
        let made = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(tmp)
            .context(failed)?;
        // Whoever sweeps may have been between us and the lock.
        let lock = match File::open(made.path()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            opened => opened.context(failed)?,
        };
        let locked = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive);
        if locked.is_ok() && made.path().exists() {
            let path = Utf8PathBuf::from_path_buf(made.keep());
            return Ok((path.map_err(|_| Error::new(Kind::Failed, failed()))?, lock));
        }
    }
}

/// Remove what killed ones have left.
pub fn sweep(tmp: &Utf8Path) {
    let entries = tmp.read_dir_utf8().into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().starts_with(PREFIX)) {
        let Ok(directory) = File::open(entry.path()) else {
            continue;
        };
        if rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok()
            && let Err(error) = safefs::remove_tree(entry.path().as_std_path())
        {
            tracing::warn!(%error, "not swept");
        }
    }
}

fn spawn(name: &str, what: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name(name.into());
    let thread = thread.spawn(what);
    thread.context(|| "cannot start a thread".into())
}

/// What a thread that panicked held is still in order: every change of it is one step.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn wait<'a, T>(changed: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::objects::{DirTree, write_dirtree};
    use super::work::path as path_of;
    use super::*;
    use crate::store::objects::{NO_CANCEL, checksum};
    use glib::prelude::*;

    #[test]
    fn objects_are_those_that_libostree_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(dir.path()).unwrap();
        for (is_system, mode) in [
            (rustix::process::geteuid().is_root(), ostree::RepoMode::Bare),
            (false, ostree::RepoMode::BareUser),
        ] {
            if mode == ostree::RepoMode::Bare && !is_system {
                continue;
            }
            let metas = [(0, 0, 0o644), (1000, 7, 0o4755), (0, 0, 0o400)]
                .into_iter()
                .map(|(uid, gid, mode)| FileMeta {
                    uid,
                    gid,
                    mode: 0o100_000 | mode,
                    xattrs: Vec::new(),
                });
            let attribute = (b"user.a\0".to_vec(), b"value".to_vec());
            let with_attribute = FileMeta {
                uid: 3,
                gid: 4,
                mode: 0o100_755,
                xattrs: vec![attribute],
            };
            let big = vec![b'x'; 3_000_000];
            // Two of these fill a batch, so that rooms go round; the first batch begins with an empty file.
            let half = vec![b'y'; 250_000];
            let contents: [&[u8]; 4] = [b"", b"content", &half, &big];
            let ways: Vec<Vec<(String, rustix::fs::Stat)>> = ["ours", "theirs"]
                .into_iter()
                .map(|way| {
                    let path = path.join(format!("{way}-{is_system}"));
                    std::fs::create_dir(&path).unwrap();
                    let repo = crate::store::repository(&path).unwrap();
                    repo.create(mode, NO_CANCEL).unwrap();
                    let mut sums = Vec::new();
                    let writers = Writers::start(&repo, &path, is_system).unwrap();
                    let mut lane = writers.lane(100).unwrap();
                    for meta in metas.clone().chain([with_attribute.clone()]) {
                        for mut content in contents {
                            if way == "ours" {
                                let size = content.len() as u64;
                                lane.write(meta.clone(), size, &mut content).unwrap();
                            } else {
                                let xattrs = meta.xattrs.to_variant();
                                let (uid, gid) = (meta.uid, meta.gid);
                                let written = repo.write_regfile_inline(
                                    None,
                                    uid,
                                    gid,
                                    meta.mode,
                                    Some(&xattrs),
                                    content,
                                    NO_CANCEL,
                                );
                                sums.push(checksum(&written.unwrap()).unwrap());
                            }
                        }
                    }
                    sums.extend(lane.finish().unwrap());
                    let mut objects: Vec<String> =
                        sums.iter().map(|sum| path_of(sum, FILE)).collect();
                    let staged = writers.staged(&repo);
                    for (uid, xattrs) in
                        [(0, vec![]), (7, vec![]), (0, with_attribute.xattrs.clone())]
                    {
                        // No attribute of this kind is for links where they are links.
                        let xattrs = if is_system { Vec::new() } else { xattrs };
                        let variant = xattrs.to_variant();
                        let meta = FileMeta {
                            uid,
                            gid: 9,
                            mode: 0o120_777,
                            xattrs,
                        };
                        objects.push(path_of(
                            &if way == "ours" {
                                staged.write_symlink(&meta, "../to").unwrap()
                            } else {
                                let written = repo.write_symlink(
                                    None,
                                    uid,
                                    9,
                                    Some(&variant),
                                    "../to",
                                    NO_CANCEL,
                                );
                                checksum(&written.unwrap()).unwrap()
                            },
                            FILE,
                        ));
                    }
                    let mut tree = DirTree::default();
                    tree.files.insert("name".into(), sums[0]);
                    let sum = if way == "ours" {
                        let sum = staged.write_tree(&tree).unwrap();
                        assert_eq!(staged.read_tree(&sum).unwrap(), tree);
                        sum
                    } else {
                        write_dirtree(&repo, &tree).unwrap()
                    };
                    objects.push(path_of(&sum, ".dirtree"));
                    writers.place().unwrap();
                    assert_eq!(staged.read_tree(&sum).unwrap(), tree);
                    assert_eq!(
                        path.join("tmp")
                            .read_dir_utf8()
                            .unwrap()
                            .filter(|entry| {
                                entry.as_ref().unwrap().file_name().starts_with(PREFIX)
                            })
                            .count(),
                        0
                    );
                    let below = path.join("objects");
                    objects
                        .into_iter()
                        .map(|object| {
                            let at = below.join(&object);
                            let mut found = rustix::fs::lstat(at.as_std_path()).unwrap();
                            if found.st_mode & 0o170_000 == 0o120_000 || object.ends_with("tree") {
                                (found.st_mtime, found.st_mtime_nsec) = (0, 0);
                            }
                            // These are never the same.
                            (found.st_ino, found.st_ctime, found.st_ctime_nsec) = (0, 0, 0);
                            (found.st_atime, found.st_atime_nsec) = (0, 0);
                            (object, found)
                        })
                        .collect()
                })
                .collect();
            assert_eq!(format!("{:?}", ways[0]), format!("{:?}", ways[1]));
        }
    }
}
