//! Laying layers of untrusted parties into a directory: every path is resolved by the kernel with that directory
//! as its root, and nothing outside is ever opened.
//!
//! Nobody else may write to the directory meanwhile.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;

use super::entry_path::{normal, split};
use crate::error::{Context as _, Kind, Result};
use crate::fail;

/// What directories get that an archive only implies.
const IMPLIED_MODE: u32 = 0o755;

/// What an entry is beside its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits, with set-id and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was changed: seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A device or a fifo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// Major and minor number.
    Char(u32, u32),
    /// Major and minor number.
    Block(u32, u32),
    /// A fifo.
    Fifo,
}

/// A directory that layers are laid into, one after the other.
pub struct Unpack {
    root: File,
    /// Whether entries get owners: only root may give them.
    gives_owners: bool,
    /// The directory that was used last.
    last: Option<(Vec<u8>, File)>,
    /// What the layer at hand has brought or confirmed, by inode number.
    brought: HashSet<u64>,
    /// Directories whose times and modes are set at the layer's end.
    directories: HashMap<u64, Final>,
    /// Their modes, where the next layer could not write to them else: they are set at the very end.
    modes: HashMap<u64, (Vec<u8>, Mode)>,
}

/// What a directory has in the end.
struct Final {
    path: Vec<u8>,
    mtime: Timespec,
    mode: Option<Mode>,
}

impl Unpack {
    /// Lay into `path`, a trusted path; whether nothing was laid into it before.
    pub fn new(path: &Path, gives_owners: bool, is_new: bool) -> Result<Self> {
        let failed = || format!("cannot open {}", path.display());
        let root = super::open_dir(path).context(failed)?;
        let inode = rustix::fs::fstat(&root).context(failed)?.st_ino;
        let mut directories = HashMap::new();
        if is_new {
            // An archive need not say what its root is like.
            let own = Final {
                path: Vec::new(),
                mtime: timespec((0, 0)),
                mode: Some(Mode::from(IMPLIED_MODE)),
            };
            directories.insert(inode, own);
        }
        Ok(Self {
            root,
            gives_owners,
            last: None,
            brought: HashSet::new(),
            directories,
            modes: HashMap::new(),
        })
    }

    /// A directory; one that is there stays, with what is in it.
    pub fn dir(&mut self, path: &[u8], meta: &Meta) -> Result<()> {
        let path = normal(path)?;
        let Some((parent, name)) = split(&path) else {
            let root = self.root.try_clone().context(|| failed(&path))?;
            return self.settle_dir(&root, &path, meta);
        };
        let above = self.parent(parent)?;
        match stat(&above, name).context(|| failed(&path))? {
            Some(found) if is_dir(&found) => {}
            found => {
                if found.is_some() {
                    self.remove(&above, name).context(|| failed(&path))?;
                }
                rustix::fs::mkdirat(&above, name, Mode::from(0o700)).context(|| failed(&path))?;
            }
        }
        let directory = open_dir_at(&above, name).context(|| failed(&path))?;
        self.settle_dir(&directory, &path, meta)
    }

    fn settle_dir(&mut self, directory: &File, path: &[u8], meta: &Meta) -> Result<()> {
        let give = || -> rustix::io::Result<u64> {
            if self.gives_owners {
                let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
                rustix::fs::fchown(directory, Some(uid), Some(gid))?;
            }
            // Its owner goes on writing to it.
            rustix::fs::fchmod(directory, Mode::from(meta.mode & 0o7777 | 0o700))?;
            clear_xattrs(directory)?;
            set_xattrs(directory, &meta.xattrs)?;
            Ok(rustix::fs::fstat(directory)?.st_ino)
        };
        let inode = give().context(|| failed(path))?;
        self.brought.insert(inode);
        self.directories.insert(
            inode,
            Final {
                path: path.to_vec(),
                mtime: timespec(meta.mtime),
                mode: Some(Mode::from(meta.mode & 0o7777)),
            },
        );
        Ok(())
    }

    /// A regular file, in place of whatever is there: open to be written, and then for [`finish_file`].
    pub fn file(&mut self, path: &[u8]) -> Result<File> {
        let path = normal(path)?;
        let (above, name) = self.place(&path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let make = || -> rustix::io::Result<(File, u64)> {
            let file = rustix::fs::openat(&above, name, flags, Mode::from(0o600))?;
            let inode = rustix::fs::fstat(&file)?.st_ino;
            Ok((file.into(), inode))
        };
        let (file, inode) = make().context(|| failed(&path))?;
        self.brought.insert(inode);
        Ok(file)
    }

    /// A symbolic link, in place of whatever is there.
    pub fn symlink(&mut self, path: &[u8], target: &[u8], meta: &Meta) -> Result<()> {
        let path = normal(path)?;
        let (above, name) = self.place(&path)?;
        rustix::fs::symlinkat(target, &above, name).context(|| failed(&path))?;
        self.settle(&above, name, &path, meta, None)
    }

    /// A device or a fifo, in place of whatever is there.
    ///
    /// # Errors
    /// [`Kind::Permission`] for a device that this process may not make.
    pub fn device(&mut self, path: &[u8], device: Device, meta: &Meta) -> Result<()> {
        let path = normal(path)?;
        let (above, name) = self.place(&path)?;
        let (kind, number) = match device {
            Device::Char(major, minor) => {
                (FileType::CharacterDevice, rustix::fs::makedev(major, minor))
            }
            Device::Block(major, minor) => {
                (FileType::BlockDevice, rustix::fs::makedev(major, minor))
            }
            Device::Fifo => (FileType::Fifo, 0),
        };
        match rustix::fs::mknodat(&above, name, kind, Mode::from(0o600), number) {
            Err(error @ (Errno::PERM | Errno::ACCESS)) => {
                Err(error).kind(Kind::Permission, || failed(&path))
            }
            done => done.context(|| failed(&path)),
        }?;
        self.settle(&above, name, &path, meta, Some(meta.mode))
    }

    /// A further name of a file.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if `target` is no file in this directory.
    pub fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<()> {
        let (path, target) = (normal(path)?, normal(target)?);
        let missing = || {
            format!(
                "a hard link to \"{}\", which is not there",
                String::from_utf8_lossy(&target)
            )
        };
        let Some((below, last)) = split(&target) else {
            fail!(Kind::Invalid, "{}", missing());
        };
        let Some(from) = self.find_dir(below).context(|| failed(&target))? else {
            fail!(Kind::Invalid, "{}", missing());
        };
        let found = stat(&from, last).context(|| failed(&target))?;
        let Some(found) = found.filter(|found| !is_dir(found)) else {
            fail!(Kind::Invalid, "{}", missing());
        };
        if path == target {
            // It is its own link already.
            return Ok(());
        }
        let (above, name) = self.place(&path)?;
        rustix::fs::linkat(&from, last, &above, name, AtFlags::empty())
            .kind(Kind::Invalid, || failed(&path))?;
        self.brought.insert(found.st_ino);
        Ok(())
    }

    /// Take away what layers below have at `path`.
    pub fn white_out(&mut self, path: &[u8]) -> Result<()> {
        let path = normal(path)?;
        let Some((parent, name)) = split(&path) else {
            fail!(Kind::Invalid, "a whiteout of nothing");
        };
        // Where there is no directory, there is nothing to hide.
        let Some(above) = self.find_dir(parent).context(|| failed(&path))? else {
            return Ok(());
        };
        let Some(found) = stat(&above, name).context(|| failed(&path))? else {
            return Ok(());
        };
        self.note_times(parent, &above)?;
        self.last = None;
        let gone = if is_dir(&found) {
            let directory = open_dir_at(&above, name).context(|| failed(&path))?;
            let is_empty = clear(directory, &self.brought).context(|| failed(&path))?;
            is_empty && !self.brought.contains(&found.st_ino)
        } else {
            !self.brought.contains(&found.st_ino)
        };
        if gone {
            let how = if is_dir(&found) {
                AtFlags::REMOVEDIR
            } else {
                AtFlags::empty()
            };
            rustix::fs::unlinkat(&above, name, how).context(|| failed(&path))?;
        }
        Ok(())
    }

    /// Take away all that layers below have in the directory at `path`.
    pub fn make_opaque(&mut self, path: &[u8]) -> Result<()> {
        let path = normal(path)?;
        if let Some(directory) = self.find_dir(&path).context(|| failed(&path))? {
            self.note_times(&path, &directory)?;
            self.last = None;
            clear(directory, &self.brought).context(|| failed(&path))?;
        }
        Ok(())
    }

    /// The layer is through: directories get the times and modes that they are to have.
    pub fn end_layer(&mut self) -> Result<()> {
        self.last = None;
        self.brought.clear();
        let mut modes = Vec::new();
        // What is deeper first: above it a way may be closed.
        let mut all: Vec<(u64, Final)> =
            std::mem::take(&mut self.directories).into_iter().collect();
        all.sort_by_key(|(_, last)| std::cmp::Reverse(last.path.len()));
        for (inode, last) in all {
            let found = self.open(
                &last.path,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW,
            );
            let Ok(directory) = found else {
                // Something else came in its place.
                continue;
            };
            let mut set = || -> rustix::io::Result<()> {
                if rustix::fs::fstat(&directory)?.st_ino != inode {
                    return Ok(());
                }
                if let Some(mode) = last.mode {
                    if self.gives_owners {
                        rustix::fs::fchmod(&directory, mode)?;
                    } else {
                        // It was made so that its owner can go on.
                        modes.push((inode, (last.path.clone(), mode)));
                    }
                }
                rustix::fs::futimens(&directory, &times(last.mtime))
            };
            set().context(|| failed(&last.path))?;
        }
        self.modes.extend(modes);
        Ok(())
    }

    /// All layers are through.
    pub fn finish(self) -> Result<()> {
        let mut all: Vec<(u64, (Vec<u8>, Mode))> = self
            .modes
            .iter()
            .map(|(inode, last)| (*inode, last.clone()))
            .collect();
        all.sort_by_key(|(_, (path, _))| std::cmp::Reverse(path.len()));
        for (inode, (path, mode)) in all {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            let Ok(directory) = self.open(&path, flags) else {
                continue;
            };
            let set = || -> rustix::io::Result<()> {
                if rustix::fs::fstat(&directory)?.st_ino == inode {
                    rustix::fs::fchmod(&directory, mode)?;
                }
                Ok(())
            };
            set().context(|| failed(&path))?;
        }
        Ok(())
    }

    /// Where a new entry goes: its directory, and its name, which is free then.
    fn place<'p>(&mut self, path: &'p [u8]) -> Result<(File, &'p [u8])> {
        let Some((parent, name)) = split(path) else {
            fail!(Kind::Invalid, "the root of a layer is no directory");
        };
        let above = self.parent(parent)?;
        if stat(&above, name).context(|| failed(path))?.is_some() {
            self.remove(&above, name).context(|| failed(path))?;
        }
        Ok((above, name))
    }

    fn settle(
        &mut self,
        above: &File,
        name: &[u8],
        path: &[u8],
        meta: &Meta,
        mode: Option<u32>,
    ) -> Result<()> {
        let give = || -> rustix::io::Result<u64> {
            if self.gives_owners {
                let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
                let how = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::chownat(above, name, Some(uid), Some(gid), how)?;
            }
            if let Some(mode) = mode {
                // It was made a moment ago, and is no link.
                rustix::fs::chmodat(above, name, Mode::from(mode & 0o7777), AtFlags::empty())?;
            }
            if !meta.xattrs.is_empty() {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let entry = rustix::fs::openat(above, name, flags, Mode::empty())?;
                let itself = format!("/proc/self/fd/{}", entry.as_raw_fd());
                for (key, value) in &meta.xattrs {
                    let set =
                        rustix::fs::setxattr(&itself, key.as_slice(), value, XattrFlags::empty());
                    passable(set)?;
                }
            }
            let how = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::utimensat(above, name, &times(timespec(meta.mtime)), how)?;
            Ok(rustix::fs::statat(above, name, AtFlags::SYMLINK_NOFOLLOW)?.st_ino)
        };
        let inode = give().context(|| failed(path))?;
        self.brought.insert(inode);
        Ok(())
    }

    /// The directory at `path`, made if it is missing.
    fn parent(&mut self, path: &[u8]) -> Result<File> {
        if let Some((last, directory)) = &self.last
            && last == path
        {
            return directory.try_clone().context(|| failed(path));
        }
        let directory = match self.find_dir(path).context(|| failed(path))? {
            Some(directory) => directory,
            None => self.make_parent(path)?,
        };
        self.note_times(path, &directory)?;
        let kept = directory.try_clone().context(|| failed(path))?;
        self.last = Some((path.to_vec(), kept));
        Ok(directory)
    }

    fn make_parent(&mut self, path: &[u8]) -> Result<File> {
        // The first of them that is missing, and then one after another.
        let mut ends: Vec<usize> = (0..path.len()).filter(|at| path[*at] == b'/').collect();
        ends.push(path.len());
        let mut above = self.root.try_clone().context(|| failed(path))?;
        let mut begin = 0;
        for end in ends {
            let (here, name) = (&path[..end], &path[begin..end]);
            begin = end + 1;
            if let Some(found) = self.find_dir(here).context(|| failed(here))? {
                above = found;
                continue;
            }
            self.note_times(&path[..here.len() - name.len()], &above)?;
            if stat(&above, name).context(|| failed(here))?.is_some() {
                // A file, or a link that leads nowhere.
                self.remove(&above, name).context(|| failed(here))?;
            }
            rustix::fs::mkdirat(&above, name, Mode::from(0o700)).context(|| failed(here))?;
            above = open_dir_at(&above, name).context(|| failed(here))?;
            let meta = Meta {
                mode: IMPLIED_MODE,
                uid: 0,
                gid: 0,
                mtime: (0, 0),
                xattrs: Vec::new(),
            };
            self.settle_dir(&above, here, &meta)?;
        }
        Ok(above)
    }

    /// Remember the times of a directory that is going to be changed.
    fn note_times(&mut self, path: &[u8], directory: &File) -> Result<()> {
        let found = rustix::fs::fstat(directory).context(|| failed(path))?;
        self.directories
            .entry(found.st_ino)
            .or_insert_with(|| Final {
                path: path.to_vec(),
                mtime: mtime_of(&found),
                mode: None,
            });
        Ok(())
    }

    fn remove(&mut self, above: &File, name: &[u8]) -> rustix::io::Result<()> {
        self.last = None;
        match rustix::fs::unlinkat(above, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {
                clear(open_dir_at(above, name)?, &HashSet::new())?;
                rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR)
            }
            done => done,
        }
    }

    fn find_dir(&self, path: &[u8]) -> rustix::io::Result<Option<File>> {
        match self.open(path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn open(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<File> {
        let path = if path.is_empty() { b"." } else { path };
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            let opened = rustix::fs::openat2(
                &self.root,
                path,
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                how,
            );
            match opened {
                Err(Errno::AGAIN | Errno::INTR) => {}
                opened => return opened.map(File::from),
            }
        }
    }
}

/// Give a file that was written all that it is beside its content.
pub fn finish_file(file: &File, meta: &Meta, gives_owners: bool) -> rustix::io::Result<()> {
    if gives_owners {
        // Also of root's: a set-group-ID directory has given it its group.
        let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
        rustix::fs::fchown(file, Some(uid), Some(gid))?;
    }
    rustix::fs::fchmod(file, Mode::from(meta.mode & 0o7777))?;
    set_xattrs(file, &meta.xattrs)?;
    rustix::fs::futimens(file, &times(timespec(meta.mtime)))
}

/// What a file system or a user cannot have is no reason to fail.
fn passable(done: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match done {
        Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
        done => done,
    }
}

fn set_xattrs(file: &File, xattrs: &[(Vec<u8>, Vec<u8>)]) -> rustix::io::Result<()> {
    for (name, value) in xattrs {
        passable(rustix::fs::fsetxattr(
            file,
            name.as_slice(),
            value,
            XattrFlags::empty(),
        ))?;
    }
    Ok(())
}

/// A directory that is declared again has what it is declared with and nothing of before.
fn clear_xattrs(directory: &File) -> rustix::io::Result<()> {
    let mut names = vec![0u8; 1024];
    let length = match rustix::fs::flistxattr(directory, &mut names) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(Errno::RANGE) => {
            names.resize(64 * 1024, 0);
            rustix::fs::flistxattr(directory, &mut names)?
        }
        Err(error) => return Err(error),
    };
    for name in names[..length].split(|byte| *byte == 0) {
        // Labels are the host's.
        if !name.is_empty() && !name.starts_with(b"security.selinux") {
            passable(rustix::fs::fremovexattr(directory, name))?;
        }
    }
    Ok(())
}

/// Remove all in a directory that is not to be kept, and say whether nothing is left. Only one directory is open
/// at a time, however deep it goes.
fn clear(directory: File, keep: &HashSet<u64>) -> rustix::io::Result<bool> {
    struct Level {
        name: Vec<u8>,
        entries: Vec<Vec<u8>>,
        is_kept: bool,
    }
    let mut levels = vec![Level {
        name: Vec::new(),
        entries: names_in(&directory)?,
        is_kept: false,
    }];
    let mut here = directory;
    loop {
        let depth = levels.len();
        let Some(level) = levels.last_mut() else {
            return Ok(true);
        };
        if let Some(name) = level.entries.pop() {
            let found = rustix::fs::statat(&here, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)?;
            if is_dir(&found) {
                let below = open_dir_at(&here, &name)?;
                let entries = names_in(&below)?;
                let is_kept = keep.contains(&found.st_ino);
                levels.push(Level {
                    name,
                    entries,
                    is_kept,
                });
                here = below;
            } else if keep.contains(&found.st_ino) {
                level.is_kept = true;
            } else {
                rustix::fs::unlinkat(&here, name.as_slice(), AtFlags::empty())?;
            }
            continue;
        }
        let Some(done) = levels.pop() else {
            return Ok(true);
        };
        if depth == 1 {
            return Ok(!done.is_kept);
        }
        let above: File = rustix::fs::openat(
            &here,
            "..",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?
        .into();
        if done.is_kept {
            if let Some(level) = levels.last_mut() {
                level.is_kept = true;
            }
        } else {
            rustix::fs::unlinkat(&above, done.name.as_slice(), AtFlags::REMOVEDIR)?;
        }
        here = above;
    }
}

/// The names in a directory.
pub fn names_in(directory: &File) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut out = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            out.push(name.to_vec());
        }
    }
    Ok(out)
}

fn stat(above: &impl AsFd, name: &[u8]) -> rustix::io::Result<Option<Stat>> {
    match rustix::fs::statat(above, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_dir(found: &Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::Directory
}

fn open_dir_at(above: &impl AsFd, name: &[u8]) -> rustix::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(above, name, flags, Mode::empty()).map(File::from)
}

fn timespec((seconds, nanoseconds): (i64, u32)) -> Timespec {
    Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.into(),
    }
}

fn mtime_of(found: &Stat) -> Timespec {
    Timespec {
        tv_sec: found.st_mtime,
        tv_nsec: i64::try_from(found.st_mtime_nsec).unwrap_or(0),
    }
}

fn times(mtime: Timespec) -> Timestamps {
    Timestamps {
        last_access: mtime,
        last_modification: mtime,
    }
}

fn failed(path: &[u8]) -> String {
    format!(
        "cannot unpack \"{}\"",
        String::from_utf8_lossy(path).escape_debug()
    )
}
