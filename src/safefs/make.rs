//! Making what is missing below a directory that an untrusted party filled.

use std::fs::File;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::Root;
use crate::error::{Context as _, Kind, Result};
use crate::fail;

/// What mount points are made with.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);
const FILE_MODE: Mode = Mode::from_raw_mode(0o644);

impl Root {
    /// What lies at `path`, which must be there: good for looking at and for mounting on.
    pub fn locate(&self, path: &str) -> Result<File> {
        match self.find(path)? {
            Some(found) => Ok(found),
            None => fail!(Kind::NotFound, "{path} is not there"),
        }
    }

    fn find(&self, path: &str) -> Result<Option<File>> {
        let path = path.trim_matches('/');
        let path = if path.is_empty() { "." } else { path };
        self.resolve(path, OFlags::PATH, ResolveFlags::empty())
    }

    /// The directory at `path`, made with all above it if it is missing.
    pub fn make_dir(&self, path: &str) -> Result<File> {
        if let Some(found) = self.find(path)? {
            return Ok(found);
        }
        let (parent, name) = self.parent(path)?;
        match rustix::fs::mkdirat(&parent, name, DIRECTORY_MODE) {
            Ok(()) => {}
            Err(Errno::EXIST) => remove_dead_link(&parent, name).and_then(|()| {
                rustix::fs::mkdirat(&parent, name, DIRECTORY_MODE)
                    .context(|| format!("cannot create {path}"))
            })?,
            Err(error) => return Err(error).context(|| format!("cannot create {path}")),
        }
        self.locate(path)
    }

    /// The file at `path`, made empty with all directories above it if it is missing.
    pub fn make_file(&self, path: &str) -> Result<File> {
        if let Some(found) = self.find(path)? {
            return Ok(found);
        }
        let (parent, name) = self.parent(path)?;
        let create = || {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            rustix::fs::openat(&parent, name, flags, FILE_MODE).map(|_| ())
        };
        match create() {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                remove_dead_link(&parent, name)?;
                create().context(|| format!("cannot create {path}"))?;
            }
            Err(error) => return Err(error).context(|| format!("cannot create {path}")),
        }
        self.locate(path)
    }

    /// A symbolic link at `path`, unless something is there.
    pub fn make_link(&self, path: &str, target: &str) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        match rustix::fs::symlinkat(target, &parent, name) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error).context(|| format!("cannot create {path}")),
        }
    }

    /// The directory above `path`, made if it is missing, and the last name.
    fn parent<'p>(&self, path: &'p str) -> Result<(File, &'p str)> {
        let path = path.trim_matches('/');
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        if matches!(name, "" | "." | "..") {
            fail!(Kind::Invalid, "{path} is no place to create anything");
        }
        Ok((self.make_dir(above)?, name))
    }
}

/// A link that leads nowhere is in the way of what is to be made.
fn remove_dead_link(parent: &File, name: &str) -> Result<()> {
    let failed = || format!("{name} is in the way");
    let found = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).context(failed)?;
    if rustix::fs::FileType::from_raw_mode(found.st_mode) != rustix::fs::FileType::Symlink {
        fail!(Kind::Exists, "{}", failed());
    }
    rustix::fs::unlinkat(parent, name, AtFlags::empty()).context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_stays_below_the_root() {
        let outside = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let link =
            |target: &str, name: &str| std::os::unix::fs::symlink(target, path.join(name)).unwrap();
        link(outside.path().to_str().unwrap(), "out");
        link("../../../../..", "up");
        link("/nowhere/file", "dead");
        std::fs::create_dir(path.join("real")).unwrap();
        link("/real", "link");
        let root = Root::open(path).unwrap();
        root.make_dir("/a/b/c").unwrap();
        root.make_file("/up/tmp/file").unwrap();
        root.make_dir("link/sub").unwrap();
        root.make_file("/dead").unwrap();
        root.make_link("/a/link", "target").unwrap();
        // The link leads below the root: there nothing is, and nothing is made of it outside.
        let _ = root.make_file("/out/file");
        for made in ["a/b/c", "tmp/file", "real/sub", "dead"] {
            assert!(path.join(made).exists(), "{made}");
        }
        assert!(path.join("dead").symlink_metadata().unwrap().is_file());
        assert_eq!(outside.path().read_dir().unwrap().count(), 0);
        assert!(root.locate("/none").is_err());
    }
}
