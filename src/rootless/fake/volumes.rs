//! Directories of the host in a container that runs under `fakechroot`: links to them, while it runs.
//!
//! # Format
//! `fake-volumes.json` in the container's directory: a list of [`Link`], durable before any is made. They go
//! when nothing runs in the container.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use super::resolve;
use crate::error::{Context as _, Kind, Result};
use crate::rootless::container::Container;
use crate::runtime::mounts::Volume;
use crate::{fail, safefs};

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Link {
    /// Where it is.
    place: Utf8PathBuf,
    /// Where it leads.
    target: Utf8PathBuf,
    /// The mode of the directory that was there, if there was one.
    directory: Option<u32>,
}

fn file(container: &Container) -> Utf8PathBuf {
    container.path.join("fake-volumes.json")
}

fn read(container: &Container) -> Result<Vec<Link>> {
    let path = file(container);
    match std::fs::read(&path) {
        Ok(text) => {
            serde_json::from_slice(&text).kind(Kind::Invalid, || format!("{path} is damaged"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).context(|| format!("cannot read {path}")),
    }
}

/// Make them; the container's turn must be held.
///
/// # Errors
/// [`Kind::Refused`] where the container has files of its own, or another run another volume.
pub fn make(container: &Container, files: &Utf8Path, volumes: &[Volume]) -> Result<()> {
    if container.holders()?.is_empty() {
        sweep(container)?;
    }
    let mut links = read(container)?;
    let mut new = Vec::new();
    for volume in volumes {
        if volume.read_only {
            fail!(
                Kind::Refused,
                "modes F1 to F4 cannot make {} read-only: use mode N or R1",
                volume.destination
            );
        }
        if !volume.source.exists() {
            fail!(Kind::NotFound, "there is no {}", volume.source);
        }
        // What has the same name on both sides is let through as it is.
        if volume.source == volume.destination.as_str() {
            continue;
        }
        let inside = Utf8Path::new(&volume.destination);
        let parent = inside
            .parent()
            .and_then(|parent| resolve(files, parent.as_str()));
        let (Some(parent), Some(name)) = (parent, inside.file_name()) else {
            fail!(Kind::Usage, "{inside} is no place for a volume");
        };
        let place = parent.join(name);
        if let Some(known) = links.iter().chain(&new).find(|link| link.place == place) {
            if known.target != volume.source {
                fail!(
                    Kind::Refused,
                    "another command of this container has {} at {inside}",
                    known.target
                );
            }
            continue;
        }
        let directory = match place.symlink_metadata() {
            Ok(meta) if meta.is_dir() && is_empty(&place)? => Some(meta.mode() & 0o7777),
            Ok(_) => fail!(
                Kind::Refused,
                "modes F1 to F4 cannot have a volume where the container has files of its own: {inside}"
            ),
            Err(_) => None,
        };
        new.push(Link {
            place,
            target: volume.source.clone(),
            directory,
        });
    }
    if new.is_empty() {
        return Ok(());
    }
    links.extend(new.iter().cloned());
    let text = serde_json::to_vec(&links).context(|| "cannot write the list of volumes".into())?;
    safefs::replace_file(file(container).as_std_path(), &text, 0o600)?;
    for link in &new {
        let failed = || format!("cannot make {}", link.place);
        if link.directory.is_some() {
            std::fs::remove_dir(&link.place).context(failed)?;
        } else if let Some(parent) = link.place.parent() {
            std::fs::create_dir_all(parent).context(failed)?;
        }
        std::os::unix::fs::symlink(&link.target, &link.place).context(failed)?;
    }
    Ok(())
}

fn is_empty(path: &Utf8Path) -> Result<bool> {
    let mut entries = path
        .read_dir_utf8()
        .context(|| format!("cannot list {path}"))?;
    Ok(entries.next().is_none())
}

/// Have all be as before; the container's turn must be held, and nothing of it run.
pub fn sweep(container: &Container) -> Result<()> {
    for link in read(container)? {
        let failed = || format!("cannot put back {}", link.place);
        if link
            .place
            .read_link_utf8()
            .is_ok_and(|target| target == link.target)
        {
            std::fs::remove_file(&link.place).context(failed)?;
        }
        if let Some(mode) = link.directory
            && link.place.symlink_metadata().is_err()
        {
            std::fs::create_dir(&link.place).context(failed)?;
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&link.place, mode).context(failed)?;
        }
    }
    safefs::remove_if_exists(file(container).as_std_path())
}
