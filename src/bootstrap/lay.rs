//! Laying layers into a directory.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use camino::Utf8PathBuf;

use super::ids::Ids;
use super::owners::record;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::interrupt::Interrupt;
use crate::safefs::{Device, Meta, Unpack, finish_file};
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

/// What layers are laid into.
pub trait Target {
    /// A directory; one that is there stays, with what is in it.
    fn dir(&mut self, path: &[u8], meta: &Meta) -> Result<()>;
    /// A regular file, in place of whatever is there.
    fn file(&mut self, path: &[u8], meta: Meta, content: Content<'_>) -> Result<()>;
    /// A symbolic link, in place of whatever is there.
    fn symlink(&mut self, path: &[u8], target: &[u8], meta: &Meta) -> Result<()>;
    /// A device or a fifo, in place of whatever is there.
    ///
    /// # Errors
    /// [`Kind::Permission`] for a device that this process may not make.
    fn device(&mut self, path: &[u8], device: Device, meta: &Meta) -> Result<()>;
    /// A further name of a file.
    fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<()>;
    /// Take away what layers below have at `path`.
    fn white_out(&mut self, path: &[u8]) -> Result<()>;
    /// Take away all that layers below have in the directory at `path`.
    fn make_opaque(&mut self, path: &[u8]) -> Result<()>;
    /// The layer is through.
    fn end_layer(&mut self) -> Result<()>;
    /// All layers are through.
    fn finish(self) -> Result<()>;
}

/// Where the content of a file is.
pub enum Content<'c> {
    /// In this file, which nobody changes.
    Stored(Utf8PathBuf),
    /// In what comes next.
    Stream(&'c mut dyn Read),
}

/// Lays layers, the base first.
pub struct Lay<'a, T> {
    target: T,
    ids: &'a Ids,
    interrupt: &'a Interrupt,
    /// Whether whiteouts are files like others.
    is_literal: bool,
    /// Whether files that cannot have their owners say who those are.
    records_owners: bool,
    /// Entries that could not be made: devices, for those who may not.
    left_out: u64,
}

impl<'a> Lay<'a, Tree> {
    /// Lay into `directory`, which nobody else writes to; `is_new`: the base comes first. Only those who may give files away give them owners.
    pub fn into(
        directory: &Path,
        ids: &'a Ids,
        gives_owners: bool,
        is_new: bool,
        interrupt: &'a Interrupt,
    ) -> Result<Self> {
        let tree = Tree {
            unpack: Unpack::new(directory, gives_owners, is_new)?,
            gives_owners,
            copiers: None,
        };
        Ok(Self::onto(tree, ids, interrupt))
    }
}

impl<'a, T: Target> Lay<'a, T> {
    /// Lay onto this.
    pub fn onto(target: T, ids: &'a Ids, interrupt: &'a Interrupt) -> Self {
        Self {
            target,
            ids,
            interrupt,
            is_literal: false,
            records_owners: false,
            left_out: 0,
        }
    }

    /// The same for a layer that is to be seen as such: a whiteout is an empty file.
    #[must_use]
    pub fn literally(mut self) -> Self {
        self.is_literal = true;
        self
    }

    /// The same where files have an attribute that says whose they would be.
    #[must_use]
    pub fn recording_owners(mut self) -> Self {
        self.records_owners = true;
        self
    }

    /// What they are laid into.
    pub fn target(&mut self) -> &mut T {
        &mut self.target
    }

    /// Lay a stored layer. `progress` hears of bytes.
    pub fn stored(
        &mut self,
        store: &Store,
        layer: &mut LayerStream,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        while let Some(entry) = layer.next_entry()? {
            let object = layer.object();
            if let EntryKind::File { size } = entry.kind {
                progress(size);
            }
            match object {
                Some(object) => {
                    self.entry(&entry, Content::Stored(store.object_path(&object)))?;
                }
                None => self.entry(&entry, Content::Stream(&mut layer.content()))?,
            }
        }
        self.target.end_layer()
    }

    /// Lay an archive that is read as it comes; how many entries it has.
    pub fn archive<R: Read>(
        &mut self,
        archive: &mut TarStream<R>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<u64> {
        let mut entries = 0;
        while let Some(entry) = archive.next_entry()? {
            if let EntryKind::File { size } = entry.kind {
                progress(size);
            }
            let mut content = archive.content();
            self.entry(&entry, Content::Stream(&mut content))?;
            entries += 1;
        }
        self.target.end_layer()?;
        Ok(entries)
    }

    /// All layers are laid: how many entries could not be made.
    pub fn finish(self) -> Result<u64> {
        self.target.finish()?;
        Ok(self.left_out)
    }

    fn entry(&mut self, entry: &Entry, content: Content<'_>) -> Result<()> {
        self.interrupt.check()?;
        let path = entry.path.as_slice();
        let trimmed = path.strip_suffix(b"/").unwrap_or(path);
        let (above, name) = match trimmed.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&trimmed[..at], &trimmed[at + 1..]),
            None => (&b""[..], trimmed),
        };
        if !self.is_literal
            && let Some(done) = self.whiteout(above, name)
        {
            return done;
        }
        let meta = self.meta(entry)?;
        match &entry.kind {
            EntryKind::Directory => self.target.dir(path, &meta),
            EntryKind::Symlink(target) => self.target.symlink(path, target, &meta),
            EntryKind::HardLink(target) => self.target.hard_link(path, target),
            EntryKind::File { .. } => self.target.file(path, meta, content),
            EntryKind::Special(None) => {
                self.leave_out(path, "it is of an unknown kind");
                Ok(())
            }
            EntryKind::Special(Some(device)) => match self.target.device(path, *device, &meta) {
                Err(error) if error.kind() == Kind::Permission => {
                    self.leave_out(path, "only root may make devices");
                    Ok(())
                }
                made => made,
            },
        }
    }

    /// Take away what a whiteout hides; nothing if it is none.
    fn whiteout(&mut self, above: &[u8], name: &[u8]) -> Option<Result<()>> {
        if name == OPAQUE {
            return Some(self.target.make_opaque(above));
        }
        if name.starts_with(OF_AUFS) {
            return Some(Ok(()));
        }
        let hidden = name.strip_prefix(WHITEOUT)?;
        if matches!(hidden, b"" | b"." | b"..") {
            let error = Error::new(Kind::Invalid, "a whiteout of nothing");
            return Some(Err(error));
        }
        Some(self.target.white_out(&[above, hidden].join(&b'/')))
    }

    fn leave_out(&mut self, path: &[u8], why: &str) {
        tracing::debug!(path = %show(path), why, "left out");
        self.left_out += 1;
    }

    fn meta(&self, entry: &Entry) -> Result<Meta> {
        let kept = entry.xattrs.iter().filter(|(name, _)| is_kept_xattr(name));
        let named = |error: Error| error.within(show(&entry.path));
        let mut meta = Meta {
            mode: entry.mode,
            uid: self.ids.user(entry.uid).map_err(named)?,
            gid: self.ids.group(entry.gid).map_err(named)?,
            mtime: entry.mtime,
            xattrs: kept.cloned().collect(),
        };
        // The kernel lets no others have such attributes.
        if self.records_owners
            && matches!(entry.kind, EntryKind::File { .. } | EntryKind::Directory)
        {
            meta.xattrs.extend(record(meta.uid, meta.gid));
        }
        Ok(meta)
    }
}

/// A directory, whose files are filled by threads.
pub struct Tree {
    unpack: Unpack,
    gives_owners: bool,
    /// Those of the layer at hand.
    copiers: Option<Copiers>,
}

impl Target for Tree {
    fn dir(&mut self, path: &[u8], meta: &Meta) -> Result<()> {
        self.unpack.dir(path, meta)
    }

    fn file(&mut self, path: &[u8], meta: Meta, content: Content<'_>) -> Result<()> {
        let mut file = self.unpack.file(path)?;
        let failed = || format!("cannot unpack \"{}\"", show(path));
        match content {
            Content::Stored(from) => {
                let from = File::open(&from).context(|| format!("cannot open {from}"))?;
                let to = file;
                let copiers = match &self.copiers {
                    Some(copiers) => copiers,
                    None => self.copiers.insert(Copiers::start(self.gives_owners)?),
                };
                copiers.copy(Job { from, to, meta })
            }
            Content::Stream(mut from) => {
                io::copy(&mut from, &mut file).context(failed)?;
                finish_file(&file, &meta, self.gives_owners).context(failed)
            }
        }
    }

    fn symlink(&mut self, path: &[u8], target: &[u8], meta: &Meta) -> Result<()> {
        self.unpack.symlink(path, target, meta)
    }

    fn device(&mut self, path: &[u8], device: Device, meta: &Meta) -> Result<()> {
        self.unpack.device(path, device, meta)
    }

    fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<()> {
        self.unpack.hard_link(path, target)
    }

    fn white_out(&mut self, path: &[u8]) -> Result<()> {
        self.unpack.white_out(path)
    }

    fn make_opaque(&mut self, path: &[u8]) -> Result<()> {
        self.unpack.make_opaque(path)
    }

    fn end_layer(&mut self) -> Result<()> {
        self.copiers.take().map_or(Ok(()), Copiers::finish)?;
        self.unpack.end_layer()
    }

    fn finish(self) -> Result<()> {
        self.unpack.finish()
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
