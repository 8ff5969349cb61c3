//! Hashing and writing.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex};

use camino::Utf8Path;
use ostree::Repo;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::super::objects::Checksum;
use super::form::{Form, Manner};
use super::lane::{Content, Task};
use super::space::Space;
use super::{failed, lock};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::image::digest::hex;

/// So much is written before the disk begins.
const FLUSH_BYTES: u64 = 32 * 1024 * 1024;
/// Files whose checksum is not known yet begin with this.
pub(super) const UNNAMED: &str = "unnamed-";

/// What all threads know.
pub(super) struct Shared {
    pub objects: File,
    pub staging: File,
    manner: Manner,
    /// What is written or was already there.
    claimed: Mutex<HashSet<Checksum>>,
    space: Space,
    pub is_given_up: AtomicBool,
    /// Bytes written since the last flush was asked for.
    unflushed: AtomicU64,
    flushes: Mutex<Option<SyncSender<()>>>,
    flushed: Mutex<rustix::io::Result<()>>,
}

/// One thread that writes.
pub(super) struct Worker {
    shared: Arc<Shared>,
    number: usize,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, number: usize) -> Self {
        Self { shared, number }
    }

    /// Do one task after another until there are no more.
    pub(super) fn work(&self, queue: &Mutex<Receiver<Task>>) {
        loop {
            let Ok(mut task) = lock(queue).recv() else {
                return;
            };
            task.outcome = Some(if self.shared.is_given_up.load(Ordering::Relaxed) {
                Err(Error::new(Kind::Failed, "given up"))
            } else {
                self.write(&task.content)
            });
        }
    }

    fn write(&self, content: &Content) -> Result<Vec<(usize, Checksum)>> {
        match content {
            Content::Batch(batch) => batch
                .files()
                .map(|(number, form, bytes)| Ok((number, self.write_whole(form, bytes)?)))
                .collect(),
            Content::Pieces {
                number,
                form,
                size,
                pieces,
            } => Ok(vec![(*number, self.write_pieces(form, pieces, *size)?)]),
        }
    }

    fn write_whole(&self, form: &Form, bytes: &[u8]) -> Result<Checksum> {
        let sum = Sha256::new().chain_update(&form.header);
        let checksum: Checksum = sum.chain_update(bytes).finalize().into();
        if !self.shared.claim(checksum, FILE)? {
            return Ok(checksum);
        }
        let mut file = self.create(&path(&checksum, FILE), form, bytes.len() as u64)?;
        file.write_all(bytes).context(failed)?;
        form.give(&file).context(failed)?;
        Ok(checksum)
    }

    fn write_pieces(&self, form: &Form, pieces: &Receiver<Vec<u8>>, size: u64) -> Result<Checksum> {
        // What it will be called is known at the end.
        let name = format!("{UNNAMED}{}", self.number);
        let mut file = self.create(&name, form, size)?;
        let mut sum = Sha256::new().chain_update(&form.header);
        let mut left = size;
        for piece in pieces {
            sum.update(&piece);
            file.write_all(&piece).context(failed)?;
            left = left.saturating_sub(piece.len() as u64);
        }
        if left > 0 {
            fail!(Kind::Invalid, "the content is cut off");
        }
        form.give(&file).context(failed)?;
        let checksum = sum.finalize().into();
        let staging = &self.shared.staging;
        if self.shared.claim(checksum, FILE)? {
            let to = path(&checksum, FILE);
            self.shared
                .in_part(&to, || rustix::fs::renameat(staging, &name, staging, &to))
        } else {
            rustix::fs::unlinkat(staging, &name, AtFlags::empty())
        }
        .context(failed)?;
        Ok(checksum)
    }

    fn create(&self, name: &str, form: &Form, bytes: u64) -> Result<File> {
        let shared = &self.shared;
        shared.take_room(bytes)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = shared.in_part(name, || {
            rustix::fs::openat(&shared.staging, name, flags, form.first_mode())
        });
        file.map(File::from).context(failed)
    }
}

impl Shared {
    pub(super) fn new(
        repo: &Repo,
        path: &Utf8Path,
        staging: &File,
        is_system: bool,
        flushes: SyncSender<()>,
    ) -> Result<Self> {
        let objects = path.join("objects");
        Ok(Self {
            objects: File::open(&objects).context(|| format!("cannot open {objects}"))?,
            staging: staging.try_clone().context(failed)?,
            manner: Manner {
                is_system,
                umask: umask(),
            },
            claimed: Mutex::default(),
            space: Space::new(repo, path)?,
            is_given_up: AtomicBool::new(false),
            unflushed: AtomicU64::new(0),
            flushes: Mutex::new(Some(flushes)),
            flushed: Mutex::new(Ok(())),
        })
    }

    /// How files are written.
    pub(super) fn manner(&self) -> Manner {
        self.manner
    }

    /// Count what is going to be written.
    pub(super) fn take_room(&self, bytes: u64) -> Result<()> {
        self.space.take(bytes)?;
        self.flush_after(bytes);
        Ok(())
    }

    /// Flush whenever it is asked for.
    pub(super) fn flush(&self, queue: &Receiver<()>) {
        for () in queue {
            let done = rustix::fs::syncfs(&self.objects);
            let mut flushed = lock(&self.flushed);
            *flushed = flushed.and(done);
        }
    }

    /// Make all that was written durable. What failed to be written is said only once for an open file, and
    /// so a flush may have heard of it.
    pub(super) fn sync(&self) -> rustix::io::Result<()> {
        let flushed = *lock(&self.flushed);
        rustix::fs::syncfs(&self.objects).and(flushed)
    }

    /// No flush will be asked for any more.
    pub(super) fn end_flushing(&self) {
        *lock(&self.flushes) = None;
    }

    /// Let the disk begin when there is something to write: the sync at the end has the less to wait for.
    fn flush_after(&self, bytes: u64) {
        if self.unflushed.fetch_add(bytes, Ordering::Relaxed) + bytes >= FLUSH_BYTES {
            self.unflushed.store(0, Ordering::Relaxed);
            if let Some(flushes) = &*lock(&self.flushes) {
                // One that waits already is enough.
                let _ = flushes.try_send(());
            }
        }
    }

    /// True for the first who asks about what is not in the repository yet.
    pub(super) fn claim(&self, checksum: Checksum, kind: &str) -> Result<bool> {
        if !lock(&self.claimed).insert(checksum) {
            return Ok(false);
        }
        match rustix::fs::statat(
            &self.objects,
            path(&checksum, kind),
            AtFlags::SYMLINK_NOFOLLOW,
        ) {
            Ok(_) => Ok(false),
            Err(Errno::NOENT) => Ok(true),
            Err(error) => Err(error).context(failed),
        }
    }

    /// Do something below a part of the staging directory, which is made if it is missing.
    pub(super) fn in_part<T>(
        &self,
        path: &str,
        what: impl Fn() -> rustix::io::Result<T>,
    ) -> rustix::io::Result<T> {
        match (what(), path.split_once('/')) {
            (Err(Errno::NOENT), Some((part, _))) => {
                match rustix::fs::mkdirat(&self.staging, part, Mode::from(0o777)) {
                    Ok(()) | Err(Errno::EXIST) => what(),
                    Err(error) => Err(error),
                }
            }
            (done, _) => done,
        }
    }

    /// Move the objects of a part to where they belong. One that is there by now stays: deployments may
    /// have been linked from it.
    pub(super) fn place(&self, part: &str) -> rustix::io::Result<()> {
        if rename_new((&self.staging, part), (&self.objects, part)).is_ok() {
            return Ok(());
        }
        let open = |above: &File| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat(above, part, flags, Mode::empty()).map(File::from)
        };
        match rustix::fs::mkdirat(&self.objects, part, Mode::from(0o777)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        let (from, to) = (open(&self.staging)?, open(&self.objects)?);
        for name in names(&from)? {
            match rename_new((&from, &name), (&to, &name)) {
                // Not every file system knows the flag.
                Err(Errno::INVAL) => rustix::fs::linkat(&from, &name, &to, &name, AtFlags::empty()),
                done => done,
            }
            .or_else(|error| match error {
                Errno::EXIST => Ok(()),
                error => Err(error),
            })?;
        }
        Ok(())
    }
}

fn rename_new(from: (&File, &str), to: (&File, &str)) -> rustix::io::Result<()> {
    rustix::fs::renameat_with(from.0, from.1, to.0, to.1, RenameFlags::NOREPLACE)
}

/// What this process does not give new files of their modes. To ask the kernel is to set it.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = status.lines();
    let text = lines.find_map(|line| line.strip_prefix("Umask:"));
    let mask = text.and_then(|text| u32::from_str_radix(text.trim(), 8).ok());
    // Nothing is as good as known then.
    mask.unwrap_or(0o7777)
}

/// The names in a directory.
pub(super) fn names(directory: &File) -> rustix::io::Result<Vec<String>> {
    let mut out = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !matches!(name.as_str(), "." | "..") {
            out.push(name);
        }
    }
    Ok(out)
}

/// What files and links end in, as objects.
pub const FILE: &str = ".file";

/// Where an object is below `objects`; its name ends in its `kind`.
pub fn path(checksum: &Checksum, kind: &str) -> String {
    let mut text = hex(checksum);
    text.insert(2, '/');
    text + kind
}
