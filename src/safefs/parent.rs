//! A file's directory, held open: whatever is renamed meanwhile, what is written goes there.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Context as _, Kind, Result};
use crate::fail;

/// The directory of a file that is there, or will be.
#[derive(Debug)]
pub struct Parent {
    directory: File,
    name: OsString,
}

impl Parent {
    /// Open the directory of `path`; nothing if there is none. Unless `links` are allowed, no part of the
    /// way may be a symbolic link: where others can write to a directory, they could put one there at
    /// any time.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if there is a link.
    pub fn open(path: &Path, links: bool) -> Result<Option<Self>> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            fail!(Kind::Invalid, "{} is no file's path", path.display());
        };
        let how = if links {
            ResolveFlags::empty()
        } else {
            ResolveFlags::NO_SYMLINKS
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::openat2(CWD, parent, flags, Mode::empty(), how) {
            Ok(directory) => Ok(Some(Self {
                directory: directory.into(),
                name: name.to_owned(),
            })),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(Errno::LOOP) => fail!(
                Kind::Invalid,
                "a directory on the way to {} has become a link",
                path.display()
            ),
            Err(error) => {
                Err(error).context(|| format!("cannot open the directory {}", parent.display()))
            }
        }
    }

    /// The file, by way of the open directory.
    pub fn path(&self) -> PathBuf {
        self.of(&self.name)
    }

    /// Another name in the directory: `.atomic-rs-ID-NAME-WHAT`, beside the file and with none of the
    /// suffixes by which systemd, udev or sudo pick files up.
    pub fn beside(&self, id: &str, what: &str) -> PathBuf {
        let name = self.name.to_string_lossy();
        self.of(OsStr::new(&format!(".atomic-rs-{id}-{name}-{what}")))
    }

    fn of(&self, name: &OsStr) -> PathBuf {
        let fd = self.directory.as_raw_fd();
        Path::new(&format!("/proc/self/fd/{fd}")).join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_stays_in_the_directory_that_was_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (real, moved) = (dir.path().join("real"), dir.path().join("moved"));
        std::fs::create_dir(&real).unwrap();
        let parent = Parent::open(&real.join("file"), false).unwrap().unwrap();
        // Somebody puts a link in its place.
        std::fs::rename(&real, &moved).unwrap();
        std::os::unix::fs::symlink("/etc", &real).unwrap();
        std::fs::write(parent.path(), "x").unwrap();
        std::fs::rename(parent.path(), parent.beside("1", "old")).unwrap();
        assert!(moved.join(".atomic-rs-1-file-old").exists());
        let error = Parent::open(&real.join("file"), false).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(Parent::open(&real.join("file"), true).unwrap().is_some());
        assert!(
            Parent::open(&dir.path().join("no/file"), false)
                .unwrap()
                .is_none()
        );
    }
}
