//! Reading below a directory that an untrusted party filled.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::files::{FileStat, Files, Node, Walked};
use crate::error::{Context as _, Kind, Result};
use crate::fail;

/// A directory that stands for `/`: absolute links and `..` below it stay inside, because the
/// kernel resolves every path with `RESOLVE_IN_ROOT` (Linux 5.6 and newer).
#[derive(Debug)]
pub struct Root {
    directory: File,
    path: PathBuf,
}

impl Root {
    /// Open `path`, a trusted path, as a root.
    pub fn open(path: &Path) -> Result<Self> {
        let directory = rustix::fs::open(
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .context(|| format!("cannot open the directory {}", path.display()))?;
        Ok(Self {
            directory: directory.into(),
            path: path.to_owned(),
        })
    }

    pub(super) fn resolve(
        &self,
        path: &str,
        flags: OFlags,
        how: ResolveFlags,
    ) -> Result<Option<File>> {
        // A concurrent rename makes the kernel answer EAGAIN; a few tries settle it.
        for _ in 0..16 {
            match rustix::fs::openat2(
                &self.directory,
                path,
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | how,
            ) {
                Ok(fd) => return Ok(Some(fd.into())),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => {
                    return Err(error)
                        .context(|| format!("cannot open {path} in {}", self.path.display()));
                }
            }
        }
        fail!(
            Kind::Failed,
            "cannot open {path} in {}: it keeps changing",
            self.path.display()
        )
    }
}

impl Files for Root {
    fn stat(&self, path: &str) -> Result<Option<FileStat>> {
        let Some(file) = self.resolve(nonempty(path), OFlags::PATH, ResolveFlags::empty())? else {
            return Ok(None);
        };
        let stat = rustix::fs::fstat(&file)
            .context(|| format!("cannot stat {path} in {}", self.path.display()))?;
        Ok(Some(FileStat {
            is_dir: FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
        }))
    }

    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        // NONBLOCK: a fifo in an image must not hang us.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let Some(file) = self.resolve(nonempty(path), flags, ResolveFlags::empty())? else {
            return Ok(None);
        };
        let meta = file.metadata().context(|| format!("cannot stat {path}"))?;
        if !meta.is_file() {
            fail!(Kind::Invalid, "{path} in the image is not a regular file");
        }
        let mut content = Vec::new();
        file.take(limit + 1)
            .read_to_end(&mut content)
            .context(|| format!("cannot read {path} in {}", self.path.display()))?;
        if content.len() as u64 > limit {
            fail!(
                Kind::Invalid,
                "{path} in the image is larger than {limit} bytes"
            );
        }
        Ok(Some(content))
    }

    fn walk(&self, path: &str) -> Result<Vec<Walked>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut out = Vec::new();
        if let Some(top) = self.resolve(nonempty(path), flags, ResolveFlags::NO_SYMLINKS)? {
            walk_below(&top, "", &mut out)
                .map_err(|error| error.within(format_args!("{path} in {}", self.path.display())))?;
        }
        Ok(out)
    }

    fn is_plain_dir(&self, path: &str) -> Result<bool> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        Ok(self
            .resolve(nonempty(path), flags, ResolveFlags::NO_SYMLINKS)?
            .is_some())
    }
}

fn walk_below(directory: &File, above: &str, out: &mut Vec<Walked>) -> Result<()> {
    let failed = || format!("cannot read /{above}");
    let entries = rustix::fs::Dir::read_from(directory).context(failed)?;
    let mut names: Vec<String> = Vec::new();
    for entry in entries {
        let entry = entry.context(failed)?;
        let name = entry.file_name().to_str().kind(Kind::Invalid, || {
            format!("a name below /{above} is not UTF-8")
        })?;
        if !matches!(name, "." | "..") {
            names.push(name.to_owned());
        }
    }
    names.sort();
    for name in names {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(directory, &name, flags, Mode::empty()).context(failed)?;
        let stat = rustix::fs::fstat(&fd).context(failed)?;
        let path = if above.is_empty() {
            name.clone()
        } else {
            format!("{above}/{name}")
        };
        let node = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Node::Dir,
            FileType::RegularFile => Node::File,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&fd, "", Vec::new()).context(failed)?;
                Node::Link(target.into_string().kind(Kind::Invalid, || {
                    format!("the target of the link /{path} is not UTF-8")
                })?)
            }
            _ => Node::Other,
        };
        let is_dir = node == Node::Dir;
        let has_xattrs = is_dir || node == Node::File;
        out.push(Walked {
            path: path.clone(),
            node,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            xattrs: if has_xattrs {
                xattrs(&fd).context(failed)?
            } else {
                Vec::new()
            },
        });
        if is_dir {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let below = rustix::fs::openat(directory, &name, flags, Mode::empty());
            walk_below(&File::from(below.context(failed)?), &path, out)?;
        }
    }
    Ok(())
}

/// No list of names and no value is longer. Source: `linux/limits.h`.
const XATTR_BYTES: usize = 65536;

/// The extended attributes of the file at `path`, which must not be a link, as far as others may give them
/// to files of theirs.
pub fn xattrs_of(path: &Path) -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(xattrs(&rustix::fs::open(path, flags, Mode::empty())?)?)
}

/// Those of an open file.
fn xattrs(fd: &OwnedFd) -> rustix::io::Result<Vec<(String, Vec<u8>)>> {
    let all = all_xattrs(fd)?.into_iter();
    let named = all.filter_map(|(name, value)| Some((String::from_utf8(name).ok()?, value)));
    Ok(named
        .filter(|(name, _)| name == "security.capability" || name.starts_with("user."))
        .collect())
}

/// All extended attributes of an open file, which may be open for its path alone.
pub fn all_xattrs(fd: &OwnedFd) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    // A descriptor for the path alone has none.
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let mut buffer = vec![0; XATTR_BYTES];
    let names = match rustix::fs::listxattr(&path, buffer.as_mut_slice()) {
        Ok(length) => buffer[..length].to_vec(),
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut out = Vec::new();
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        match rustix::fs::getxattr(&path, name, buffer.as_mut_slice()) {
            Ok(length) => out.push((name.to_vec(), buffer[..length].to_vec())),
            // It was listed, and went; or it is not for us.
            Err(Errno::NODATA | Errno::NOTSUP | Errno::PERM | Errno::ACCESS) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(out)
}

fn nonempty(path: &str) -> &str {
    match path.trim_start_matches('/') {
        "" => ".",
        path => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn attributes_are_walked_with_their_files() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "x").unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        if rustix::fs::setxattr(&file, "user.note", b"said", flags).is_err() {
            return; // Not every file system has them.
        }
        let walked = Root::open(dir.path()).unwrap().walk("").unwrap();
        assert_eq!(
            walked[0].xattrs,
            [("user.note".to_owned(), b"said".to_vec())]
        );
    }

    #[test]
    fn links_stay_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(dir.path().join("secret"), "outside").unwrap();
        std::fs::write(root.join("etc/passwd"), "inside").unwrap();
        symlink("/etc/passwd", root.join("absolute")).unwrap();
        symlink("../../../../etc/passwd", root.join("up")).unwrap();
        symlink("../secret", root.join("out")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            root.join("fifo"),
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let root = Root::open(&root).unwrap();
        for path in [
            "etc/passwd",
            "/etc/passwd",
            "absolute",
            "up",
            "../etc/passwd",
        ] {
            assert_eq!(root.read(path, 100).unwrap().unwrap(), b"inside", "{path}");
        }
        for path in ["out", "loop", "../secret", "none", "etc/passwd/x"] {
            assert_eq!(root.read(path, 100).unwrap(), None, "{path}");
        }
        assert!(root.read("etc/passwd", 3).is_err());
        assert!(root.read("etc", 100).is_err());
        assert!(root.read("fifo", 100).is_err());
        assert!(root.stat("/").unwrap().unwrap().is_dir);
        assert!(root.is_plain_dir("etc").unwrap());
        assert!(!root.is_plain_dir("absolute").unwrap());
    }
}
