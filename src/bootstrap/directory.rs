//! A root filesystem as a directory: made beside its place, and renamed when it is whole.

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{FlockOperation, RenameFlags};
use rustix::io::Errno;

use super::mounted;
use crate::config::Config;
use crate::error::{Context as _, Kind, Result};
use crate::runtime::userns;
use crate::{fail, safefs};

/// What staged directories are like: nobody else enters them.
const PRIVATE: u32 = 0o700;

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
        // What killed ones left. Others may write there: what is not private to us is not ours.
        let prefix = format!(".{name}.atomic-rs-");
        for entry in parent.read_dir_utf8().into_iter().flatten().flatten() {
            if entry.file_name().starts_with(&prefix)
                && is_private(entry.path())
                && let Some(_held) = hold(entry.path())
            {
                mounted::unmount_abandoned(entry.path())?;
                userns::remove_tree(entry.path())?;
            }
        }
        let failed = || format!("cannot create a directory in {parent}");
        loop {
            let made = tempfile::Builder::new()
                .prefix(&prefix)
                .permissions(std::fs::Permissions::from_mode(PRIVATE))
                .tempdir_in(parent);
            let made = made.context(failed)?;
            let Some(path) = Utf8Path::from_path(made.path()).map(Utf8Path::to_owned) else {
                fail!(Kind::Invalid, "{parent} is not UTF-8");
            };
            // Whoever sweeps may have been between us and the lock.
            let Some(held) = hold(&path).filter(|_| path.exists()) else {
                continue;
            };
            let _ = made.keep();
            return Ok(Self {
                path,
                destination,
                _held: held,
            });
        }
    }

    /// Where it is meanwhile: a directory that only its owner can enter.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// Put `inner`, which is below it, at its place; what is there goes only if it may.
    ///
    /// # Errors
    /// [`Kind::Exists`] if something came there meanwhile. Nothing is changed then.
    pub fn place(self, inner: &Utf8Path, force: bool) -> Result<()> {
        safefs::sync_file_system(inner.as_std_path())?;
        let destination = self.destination.clone();
        let failed = || format!("cannot create {destination}");
        let (from, to) = (inner.as_std_path(), destination.as_std_path());
        let above = destination.parent().unwrap_or(&destination);
        // Whoever may not write to a directory may not move it either.
        let mode = std::fs::metadata(from)
            .context(failed)?
            .permissions()
            .mode()
            & 0o7777;
        let set_mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).context(failed)
        };
        if mode & PRIVATE != PRIVATE {
            set_mode(from, mode | PRIVATE)?;
        }
        // In place of nothing, or of an empty directory.
        let placed = match rustix::fs::rename(from, to) {
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) if force => {
                // The old one is here then, and goes with this.
                rename_with(from, to, RenameFlags::EXCHANGE)
            }
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => fail!(
                Kind::Exists,
                "{} is not empty any more: it stays as it is",
                self.destination
            ),
            done => done,
        };
        if placed.is_err() && aside(from).exists() {
            // What was there could not even be put back: it must not go with this.
            std::mem::forget(self);
            return placed.context(failed);
        }
        placed.context(failed)?;
        if mode & PRIVATE != PRIVATE {
            set_mode(to, mode)?;
        }
        safefs::fsync_dir(above.as_std_path())
    }
}

/// Where what is replaced goes, if it cannot be exchanged.
fn aside(from: &Path) -> PathBuf {
    from.with_extension("replaced")
}

fn rename_with(from: &Path, to: &Path, how: RenameFlags) -> rustix::io::Result<()> {
    let here = rustix::fs::CWD;
    match rustix::fs::renameat_with(here, from, here, to, how) {
        // A file system that does not know how: one after the other, and back again if that fails.
        Err(Errno::INVAL | Errno::NOSYS) => {
            let aside = aside(from);
            rustix::fs::rename(to, &aside)?;
            rustix::fs::rename(from, to).inspect_err(|_| {
                if let Err(error) = rustix::fs::rename(&aside, to) {
                    tracing::error!(%error, "what was there is in {}", aside.display());
                }
            })
        }
        done => done,
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Err(error) = userns::remove_tree(&self.path) {
            tracing::warn!(%error, "left behind");
        }
    }
}

/// What is in the way is refused, unless it may go.
///
/// # Errors
/// [`Kind::Exists`] if there is something.
pub fn check(config: &Config, destination: &Utf8Path, force: bool) -> Result<()> {
    let destination = &camino::absolute_utf8(destination).context(|| destination.to_string())?;
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
    let real = destination.canonicalize_utf8();
    let real = real.context(|| destination.to_string())?;
    let here = std::env::current_dir().ok();
    let here = here.and_then(|path| Utf8PathBuf::from_path_buf(path).ok());
    let needed = [
        Some(&config.checkouts),
        config.repository.as_ref(),
        here.as_ref(),
    ];
    for needed in needed.into_iter().flatten() {
        let needed = needed.canonicalize_utf8().unwrap_or(needed.clone());
        if needed.starts_with(&real) {
            fail!(
                Kind::Refused,
                "{destination} cannot be replaced: {needed} is in it, which is being used"
            );
        }
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
    let device = |path: &Path| std::fs::symlink_metadata(path).map(|meta| meta.dev()).ok();
    let above = path.parent().and_then(device);
    above
        .zip(device(path))
        .is_some_and(|(above, own)| above != own)
}

/// Whether a directory is ours, and nobody else may enter it.
fn is_private(path: &Utf8Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let found = std::fs::symlink_metadata(path);
    found.is_ok_and(|found| {
        let own = rustix::process::geteuid().as_raw();
        found.is_dir() && found.uid() == own && found.mode() & 0o7777 == PRIVATE
    })
}

/// Hold a staged directory, unless somebody does.
fn hold(path: &Utf8Path) -> Option<File> {
    let directory = safefs::open_dir(path.as_std_path()).ok()?;
    let held = rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive);
    held.is_ok().then_some(directory)
}
