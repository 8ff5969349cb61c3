//! A root filesystem as a directory: made beside its place, and renamed when it is whole.

use std::fs::File;
use std::path::Path;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::FlockOperation;

use super::disk;
use crate::error::{Context as _, Kind, Result};
use crate::{fail, safefs};

/// A directory on its way to its place.
pub struct Staged {
    path: Utf8PathBuf,
    destination: Utf8PathBuf,
    _held: File,
}

impl Staged {
    /// Get ready to have a directory at `destination`, in place of what is there.
    ///
    /// # Errors
    /// [`Kind::Usage`] for a place where none can be.
    pub fn new(destination: &Utf8Path) -> Result<Self> {
        let destination = camino::absolute_utf8(destination).context(|| destination.to_string())?;
        let (Some(parent), Some(name)) = (destination.parent(), destination.file_name()) else {
            fail!(Kind::Usage, "{destination} cannot be the destination");
        };
        std::fs::create_dir_all(parent).context(|| format!("cannot create {parent}"))?;
        // What killed ones left.
        let prefix = format!(".{name}.atomic-rs-");
        for entry in parent.read_dir_utf8().into_iter().flatten().flatten() {
            if entry.file_name().starts_with(&prefix) && hold(entry.path()).is_some() {
                disk::unmount_abandoned(entry.path())?;
                safefs::remove_tree(entry.path().as_std_path())?;
            }
        }
        let made = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(parent)
            .context(|| format!("cannot create a directory in {parent}"))?;
        let path = Utf8PathBuf::from_path_buf(made.keep());
        let Ok(path) = path else {
            fail!(Kind::Invalid, "{parent} is not UTF-8");
        };
        let Some(held) = hold(&path) else {
            fail!(Kind::Failed, "cannot lock {path}");
        };
        Ok(Self {
            path,
            destination,
            _held: held,
        })
    }

    /// Where it is meanwhile: a directory that only its owner can enter.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// Put `inner`, which is below it, at its place.
    pub fn place(self, inner: &Utf8Path) -> Result<()> {
        safefs::sync_file_system(inner.as_std_path())?;
        let destination = self.destination.as_std_path();
        // Whatever was not in the way before may be by now.
        let aside = self.path.join("replaced");
        match std::fs::symlink_metadata(destination) {
            Ok(_) => safefs::rename(destination, aside.as_std_path())?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context(|| self.destination.to_string()),
        }
        safefs::rename(inner.as_std_path(), destination)?;
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Err(error) = safefs::remove_tree(self.path.as_std_path()) {
            tracing::warn!(%error, "left behind");
        }
    }
}

/// What is in the way is refused, unless it may go.
///
/// # Errors
/// [`Kind::Exists`] if there is something.
pub fn check(destination: &Utf8Path, force: bool) -> Result<()> {
    if destination.file_name().is_none() {
        fail!(Kind::Usage, "{destination} cannot be the destination");
    }
    let found = match std::fs::symlink_metadata(destination) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context(|| destination.to_string()),
    };
    if !found.is_dir() {
        fail!(Kind::Exists, "{destination} is not a directory");
    }
    let mut entries = destination
        .read_dir_utf8()
        .context(|| format!("cannot list {destination}"))?;
    if entries.next().is_some() && !force {
        fail!(
            Kind::Exists,
            "{destination} is not empty: --force replaces it"
        );
    }
    if is_mount_point(destination.as_std_path()) {
        fail!(
            Kind::Exists,
            "{destination} is a mount point, which cannot be replaced at once: name a directory below it"
        );
    }
    Ok(())
}

pub fn is_mount_point(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let device = |path: &Path| std::fs::metadata(path).map(|meta| meta.dev()).ok();
    path.parent()
        .is_some_and(|parent| device(parent) != device(path))
}

/// Hold a staged directory, unless somebody does.
fn hold(path: &Utf8Path) -> Option<File> {
    let directory = safefs::open_dir(path.as_std_path()).ok()?;
    let held = rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive);
    held.is_ok().then_some(directory)
}
