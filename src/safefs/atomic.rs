//! Replacing files and links so that a reader, and a power cut, see the old or the new one.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::error::{Context as _, Kind, Result};
use crate::{fail, fault};

/// Write a file that must not exist yet, without making it durable: the caller closes a batch of
/// them with one [`sync_file_system`].
pub fn write_new_file(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    fault::point("write a file")?;
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)?;
        // The umask must not decide what others can read.
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(content)
    };
    write().context(|| format!("cannot write {}", path.display()))
}

/// Replace the file at `path` durably: write aside, fsync, rename, fsync the directory.
pub fn replace_file(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let aside = beside(path);
    remove_if_exists(&aside)?;
    write_new_file(&aside, content, mode)?;
    fault::point("sync a file")?;
    File::open(&aside)
        .and_then(|file| file.sync_all())
        .context(|| format!("cannot sync {}", aside.display()))?;
    rename(&aside, path)?;
    fsync_dir(parent(path))
}

/// Keep room for the next [`replace_file`] of `path`, for about as many bytes, if there is any: it writes where this is.
pub fn keep_room(path: &Path, bytes: usize) {
    let aside = beside(path);
    let kept = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&aside)
        .and_then(|mut file| file.write_all(&vec![0; bytes]));
    if let Err(error) = kept {
        tracing::debug!(%error, "no room is kept");
    }
}

/// Make the symlink `path` point to `target`, replacing an old one in one step, durably.
pub fn replace_symlink(path: &Path, target: &Path) -> Result<()> {
    let aside = beside(path);
    remove_if_exists(&aside)?;
    fault::point("make a link")?;
    symlink(target, &aside).context(|| format!("cannot create the link {}", aside.display()))?;
    rename(&aside, path)?;
    fsync_dir(parent(path))
}

/// Rename, with both names in the error.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    fault::point("rename")?;
    std::fs::rename(from, to)
        .context(|| format!("cannot rename {} to {}", from.display(), to.display()))
}

/// Rename to a name that must be free.
///
/// # Errors
/// [`Kind::Exists`] if it is not.
pub fn rename_new(from: &Path, to: &Path) -> Result<()> {
    use rustix::fs::{CWD, RenameFlags};
    fault::point("rename to a free name")?;
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::EXIST) => {
            fail!(Kind::Exists, "The file {} already exists.", to.display())
        }
        // Not every file system can tell.
        Err(rustix::io::Errno::INVAL) => rename(from, to),
        Err(error) => {
            Err(error).context(|| format!("cannot rename {} to {}", from.display(), to.display()))
        }
    }
}

/// Remove a file or link; one that is not there is fine.
pub fn remove_if_exists(path: &Path) -> Result<()> {
    fault::point("remove a file")?;
    match std::fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        // A file system that is read-only says so before it looks.
        Err(_) if matches!(std::fs::symlink_metadata(path), Err(error) if error.kind() == ErrorKind::NotFound) => {
            Ok(())
        }
        Err(error) => Err(error).context(|| format!("cannot remove {}", path.display())),
    }
}

/// Remove a directory (or file) with all below it, following no link; one that is not there is fine.
///
/// # Errors
/// [`Kind::Exists`] if something is mounted below: that is somebody else's.
pub fn remove_tree(path: &Path) -> Result<()> {
    if std::fs::symlink_metadata(path).is_ok_and(|meta| !meta.is_dir()) {
        return remove_if_exists(path);
    }
    if let Some(mount) = mount_below(path) {
        fail!(
            Kind::Exists,
            "{mount} is a mount point and {} is to be removed: unmount it first",
            path.display()
        );
    }
    fault::point("remove a tree")?;
    let mut removed = std::fs::remove_dir_all(path);
    if removed
        .as_ref()
        .is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
        && !rustix::process::geteuid().is_root()
    {
        open_up(path).context(|| format!("cannot remove {}", path.display()))?;
        removed = std::fs::remove_dir_all(path);
    }
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Give ourselves the right to empty the directories of a tree of ours: an image may have ones that
/// are read-only, which stops everybody but root.
fn open_up(path: &Path) -> std::io::Result<()> {
    use std::os::fd::AsRawFd as _;
    // By descriptor: what is looked at is what is changed, whoever renames meanwhile.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty())?;
    let itself = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    let mode = std::fs::metadata(&itself)?.permissions().mode();
    std::fs::set_permissions(&itself, std::fs::Permissions::from_mode(mode | 0o700))?;
    for entry in std::fs::read_dir(&itself)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}

/// A mount point at or below `path`. Source: proc(5), `mountinfo`, field 5.
fn mount_below(path: &Path) -> Option<String> {
    let prefix = path.to_str()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let below = |mount: &&str| {
        mount
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .find(below)
        .map(str::to_owned)
}

/// Give `path` a second name `to`, by a hard link or, where the file system refuses, by a copy.
pub fn link_or_copy(path: &Path, to: &Path) -> Result<()> {
    fault::point("link")?;
    if std::fs::hard_link(path, to).is_ok() {
        return Ok(());
    }
    // Whole or not at all: an interrupted copy must not pass for the original.
    let partial = beside(to);
    std::fs::copy(path, &partial)
        .context(|| format!("cannot copy {} to {}", path.display(), to.display()))?;
    rename(&partial, to)
}

/// Create a directory that only its owner may enter, and its parents with the usual mode. An
/// existing one that others may enter is closed: images' set-uid files lie below.
pub fn make_private_dir(path: &Path) -> Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)
            .context(|| format!("cannot create {}", parent.display()))?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let mode = std::fs::metadata(path)
                .context(|| format!("cannot stat {}", path.display()))?
                .permissions()
                .mode();
            if mode & 0o077 != 0 {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode & 0o700))
                    .context(|| format!("cannot close {} to other users", path.display()))?;
            }
            Ok(())
        }
        Err(error) => Err(error).context(|| format!("cannot create {}", path.display())),
    }
}

/// Make the names in a directory durable.
pub fn fsync_dir(path: &Path) -> Result<()> {
    fault::point("sync a directory")?;
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .context(|| format!("cannot sync the directory {}", path.display()))
}

/// Make everything on the file system of `path` durable: one call for any number of files, where
/// an fsync for each would be fifty times slower.
pub fn sync_file_system(path: &Path) -> Result<()> {
    fault::point("sync a file system")?;
    let file = File::open(path).context(|| format!("cannot open {}", path.display()))?;
    rustix::fs::syncfs(&file)
        .context(|| format!("cannot sync the file system of {}", path.display()))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Remove what a killed [`replace_file`] or [`replace_symlink`] of `path` may have left beside it.
pub fn sweep_beside(path: &Path) -> Result<()> {
    remove_if_exists(&beside(path))
}

/// `DIR/.NAME.new`: hidden, on the same file system, and found by whoever sweeps the directory.
/// The caller holds the lock under which `path` is written, so one name is enough.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    parent(path).join(format!(".{name}.new"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_links_are_replaced_and_leave_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        replace_file(&file, b"1", 0o600).unwrap();
        replace_file(&file, b"2", 0o644).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"2");
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o644);
        let link = dir.path().join("l");
        replace_symlink(&link, Path::new("a")).unwrap();
        replace_symlink(&link, Path::new("b")).unwrap();
        assert_eq!(std::fs::read_link(&link).unwrap(), Path::new("b"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_private_directory_is_closed_to_others_even_when_it_existed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        std::fs::create_dir_all(&path).unwrap();
        make_private_dir(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
