//! What steps do to files: deployments staged, links pointed, names for what waits beside.

use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::Path;

use camino::Utf8Path;

use super::host::Host;
use super::step::DeployFile;
use crate::deployment::{Paths, Slot};
use crate::error::{Context as _, Result};
use crate::safefs;
use crate::store::Store;

/// Stage a deployment: its root file system and every file beside it.
pub(super) fn deploy(
    host: &Host<'_>,
    staged: &Utf8Path,
    commit: Option<&str>,
    remote: Option<&Utf8Path>,
    files: &[DeployFile],
) -> Result<()> {
    safefs::remove_tree(staged.as_std_path())?;
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(staged)
        .context(|| format!("cannot create {staged}"))?;
    if let Some(commit) = commit {
        Store::open(host.config())?.check_out(commit, staged)?;
    }
    if let Some(remote) = remote {
        symlink(remote, staged.join("rootfs"))
            .context(|| format!("cannot create {staged}/rootfs"))?;
    }
    for file in files {
        let path = staged.join(&file.name);
        safefs::write_new_file(path.as_std_path(), file.content.as_bytes(), file.mode)?;
    }
    Ok(())
}

/// Point the container's symlink to a slot, or remove it.
pub(super) fn point(paths: &Paths, slot: Option<Slot>) -> Result<()> {
    let link = paths.link();
    if let Some(slot) = slot {
        safefs::replace_symlink(link.as_std_path(), paths.slot(slot).as_std_path())
    } else {
        safefs::remove_if_exists(link.as_std_path())?;
        safefs::sweep_beside(link.as_std_path())?;
        match link.parent() {
            Some(parent) => safefs::fsync_dir(parent.as_std_path()),
            None => Ok(()),
        }
    }
}

pub(super) fn exists(path: &Utf8Path) -> bool {
    exists_std(path.as_std_path())
}

/// Also true for a dangling link.
pub(super) fn exists_std(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}

pub(super) fn rename(from: &Utf8Path, to: &Utf8Path) -> Result<()> {
    safefs::rename(from.as_std_path(), to.as_std_path())
}
