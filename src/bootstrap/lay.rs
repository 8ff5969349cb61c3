//! Laying layers into a directory.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::ids::Ids;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::interrupt::Interrupt;
use crate::safefs::{Meta, Unpack, finish_file};
use crate::store::tar::{Entry, EntryKind, TarStream};
use crate::store::{LayerStream, Store, is_kept_xattr};

/// What the name of a whiteout begins with.
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names of AUFS's own begin with this.
const OF_AUFS: &[u8] = b".wh..wh.";
/// Threads that copy, and files that wait for each of them.
const COPIERS: usize = 2;
const WAITING: usize = 32;

/// Lays layers into a directory, the base first.
pub struct Lay<'a> {
    unpack: Unpack,
    ids: &'a Ids,
    gives_owners: bool,
    interrupt: &'a Interrupt,
    /// Entries that could not be made: devices, for those who may not.
    left_out: u64,
}

/// Where the content of a file is.
enum Content<'c> {
    Object(File),
    Stream(&'c mut dyn Read),
}

impl<'a> Lay<'a> {
    /// Lay into `directory`, which nobody else writes to; `is_new`: the base comes first. Only those who may give files away give them owners.
    pub fn into(
        directory: &Path,
        ids: &'a Ids,
        gives_owners: bool,
        is_new: bool,
        interrupt: &'a Interrupt,
    ) -> Result<Self> {
        Ok(Self {
            unpack: Unpack::new(directory, gives_owners, is_new)?,
            ids,
            gives_owners,
            interrupt,
            left_out: 0,
        })
    }

    /// Lay a stored layer. `progress` hears of bytes.
    pub fn stored(
        &mut self,
        store: &Store,
        layer: &mut LayerStream,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let copiers = Copiers::start(self.gives_owners)?;
        while let Some(entry) = layer.next_entry()? {
            let object = layer.object();
            let object = object
                .map(|object| store.open_object(&object))
                .transpose()?;
            if let EntryKind::File { size } = entry.kind {
                progress(size);
            }
            match object {
                Some(object) => self.entry(&entry, Content::Object(object), &copiers)?,
                None => self.entry(&entry, Content::Stream(&mut layer.content()), &copiers)?,
            }
        }
        copiers.finish()?;
        self.unpack.end_layer()
    }

    /// Lay an archive that is read as it comes.
    pub fn archive<R: Read>(
        &mut self,
        archive: &mut TarStream<R>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let copiers = Copiers::start(self.gives_owners)?;
        while let Some(entry) = archive.next_entry()? {
            if let EntryKind::File { size } = entry.kind {
                progress(size);
            }
            let mut content = archive.content();
            self.entry(&entry, Content::Stream(&mut content), &copiers)?;
        }
        copiers.finish()?;
        self.unpack.end_layer()
    }

    /// All layers are laid: how many entries could not be made.
    pub fn finish(self) -> Result<u64> {
        self.unpack.finish()?;
        Ok(self.left_out)
    }

    fn entry(&mut self, entry: &Entry, content: Content<'_>, copiers: &Copiers) -> Result<()> {
        self.interrupt.check()?;
        let path = entry.path.as_slice();
        let trimmed = path.strip_suffix(b"/").unwrap_or(path);
        let (above, name) = match trimmed.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&trimmed[..at], &trimmed[at + 1..]),
            None => (&b""[..], trimmed),
        };
        if name == OPAQUE {
            return self.unpack.make_opaque(above);
        }
        if name.starts_with(OF_AUFS) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                fail!(Kind::Invalid, "a whiteout of nothing");
            }
            return self.unpack.white_out(&[above, hidden].join(&b'/'));
        }
        let meta = self.meta(entry);
        match &entry.kind {
            EntryKind::Directory => self.unpack.dir(path, &meta),
            EntryKind::Symlink(target) => self.unpack.symlink(path, target, &meta),
            EntryKind::HardLink(target) => self.unpack.hard_link(path, target),
            EntryKind::File { .. } => {
                let mut file = self.unpack.file(path)?;
                match content {
                    Content::Object(from) => copiers.copy(Job {
                        from,
                        to: file,
                        meta,
                    }),
                    Content::Stream(mut from) => {
                        let failed = || format!("cannot unpack \"{}\"", show(path));
                        io::copy(&mut from, &mut file).context(failed)?;
                        finish_file(&file, &meta, self.gives_owners).context(failed)
                    }
                }
            }
            EntryKind::Special(None) => {
                self.leave_out(path, "it is of an unknown kind");
                Ok(())
            }
            EntryKind::Special(Some(device)) => match self.unpack.device(path, *device, &meta) {
                Err(error) if error.kind() == Kind::Permission => {
                    self.leave_out(path, "only root may make devices");
                    Ok(())
                }
                made => made,
            },
        }
    }

    fn leave_out(&mut self, path: &[u8], why: &str) {
        tracing::debug!(path = %show(path), why, "left out");
        self.left_out += 1;
    }

    fn meta(&self, entry: &Entry) -> Meta {
        let kept = entry.xattrs.iter().filter(|(name, _)| is_kept_xattr(name));
        Meta {
            mode: entry.mode,
            uid: self.ids.user(entry.uid),
            gid: self.ids.group(entry.gid),
            mtime: entry.mtime,
            xattrs: kept.cloned().collect(),
        }
    }
}

fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).escape_debug().to_string()
}

/// A file to fill.
struct Job {
    from: File,
    to: File,
    meta: Meta,
}

/// Threads that fill files while the archive is read on.
struct Copiers {
    jobs: Option<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
    failed: Arc<Mutex<Option<Error>>>,
}

impl Copiers {
    fn start(gives_owners: bool) -> Result<Self> {
        let (jobs, queue) = sync_channel(COPIERS * WAITING);
        let queue: Arc<Mutex<Receiver<Job>>> = Arc::new(Mutex::new(queue));
        let failed: Arc<Mutex<Option<Error>>> = Arc::default();
        let mut threads = Vec::new();
        for _ in 0..COPIERS {
            let (queue, failed) = (queue.clone(), failed.clone());
            let work = move || {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(job) = next else {
                        return;
                    };
                    if let Err(error) = fill(&job, gives_owners) {
                        let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                        failed.get_or_insert(error);
                    }
                }
            };
            let thread = std::thread::Builder::new().name("copy".into()).spawn(work);
            threads.push(thread.context(|| "cannot start a thread".into())?);
        }
        Ok(Self {
            jobs: Some(jobs),
            threads,
            failed,
        })
    }

    fn copy(&self, job: Job) -> Result<()> {
        self.check()?;
        let died = || Error::new(Kind::Failed, "a thread that copies files died");
        let jobs = self.jobs.as_ref().ok_or_else(died)?;
        jobs.send(job).map_err(|_| died())
    }

    fn check(&self) -> Result<()> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.take().map_or(Ok(()), Err)
    }

    fn finish(mut self) -> Result<()> {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                fail!(Kind::Failed, "a thread that copies files died");
            }
        }
        self.check()
    }
}

impl Drop for Copiers {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // It was said before if it died.
            let _ = thread.join();
        }
    }
}

/// Give a file its content: blocks that are shared where the file system can, a copy elsewhere.
fn fill(job: &Job, gives_owners: bool) -> Result<()> {
    let failed = || "cannot unpack a file".into();
    if rustix::fs::ioctl_ficlone(&job.to, &job.from).is_err() {
        let (mut from, mut to) = (&job.from, &job.to);
        io::copy(&mut from, &mut to).context(failed)?;
    }
    finish_file(&job.to, &job.meta, gives_owners).context(failed)
}
