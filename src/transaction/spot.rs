//! A file of the host that steps write, replace or remove, by way of its directory, which is held open.

use std::path::{Path, PathBuf};

use camino::{Utf8Path, Utf8PathBuf};

use super::files::exists_std;
use super::host::Host;
use crate::deployment::Paths;
use crate::error::{Context as _, Error, Kind, Result};
use crate::hostfiles::{Owner, follow_merged};
use crate::safefs::{self, Parent};

/// Where a file is or will be, for one step.
pub(super) struct Spot<'a> {
    host: &'a Host<'a>,
    target: Utf8PathBuf,
    id: &'a str,
    parent: Option<Parent>,
}

impl<'a> Spot<'a> {
    /// The place of `target` for the transaction `id`.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if the way to it leads over a link that somebody else could have put there.
    pub(super) fn open(
        host: &'a Host<'a>,
        paths: &Paths,
        target: &Utf8Path,
        id: &'a str,
    ) -> Result<Self> {
        let config = host.config();
        // Where root alone writes, and a user in what is theirs, links are an administrator's choice.
        let own = [paths.unit(), paths.tmpfiles(), config.checkouts.join("x")];
        let is_own = own
            .iter()
            .filter_map(|path| path.parent())
            .any(|directory| target.starts_with(directory));
        let target = follow_merged(target);
        let parent = Parent::open(target.as_std_path(), is_own || !config.is_system)?;
        Ok(Self {
            host,
            target,
            id,
            parent,
        })
    }

    /// The file and what lies beside it; nothing if there is no such directory.
    fn names(&self) -> Option<Names> {
        let parent = self.parent.as_ref()?;
        Some(Names {
            at: parent.path(),
            staged: parent.beside(self.id, "new"),
            aside: parent.beside(self.id, "old"),
            kept: parent.beside(self.id, "kept"),
        })
    }

    /// Let `write` write the new version beside the file.
    pub(super) fn stage(&self, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let Some(names) = self.names() else {
            return Err(Error::new(
                Kind::NotFound,
                format!("the directory of {} is not there", self.target),
            ));
        };
        self.told(safefs::remove_tree(&names.staged).and_then(|()| write(&names.staged)))?;
        self.host.label(&names.staged, &self.target)
    }

    /// Move the new version into place; what was there waits aside.
    pub(super) fn place(&self, replaces: bool) -> Result<()> {
        let Some(names) = self.names().filter(|names| exists_std(&names.staged)) else {
            return Ok(());
        };
        if replaces && !exists_std(&names.aside) {
            self.told(safefs::link_or_copy(&names.at, &names.aside))?;
        }
        if replaces {
            self.told(safefs::rename(&names.staged, &names.at))
        } else {
            // What appeared there since the plan was made is somebody's.
            safefs::rename_new(&names.staged, &names.at).map_err(|error| match error.kind() {
                Kind::Exists => Error::new(
                    Kind::Exists,
                    format!("The file {} already exists.", self.target),
                ),
                _ => error.within(&self.target),
            })
        }
    }

    /// Undo [`Spot::place`].
    pub(super) fn unplace(&self, replaces: bool) -> Result<()> {
        let Some(names) = self.names() else {
            return Ok(());
        };
        let staged = exists_std(&names.staged);
        self.told(if replaces && staged {
            // Not replaced yet; renaming two names of one file would leave both.
            safefs::remove_if_exists(&names.aside)
        } else if replaces {
            move_if_there(&names.aside, &names.at)
        } else if staged {
            Ok(())
        } else {
            safefs::remove_if_exists(&names.at)
        })
    }

    /// Move the file aside.
    pub(super) fn set_aside(&self) -> Result<()> {
        self.names().map_or(Ok(()), |names| {
            self.told(move_if_there(&names.at, &names.aside))
        })
    }

    /// Undo [`Spot::set_aside`].
    pub(super) fn put_back(&self) -> Result<()> {
        self.names().map_or(Ok(()), |names| {
            self.told(move_if_there(&names.aside, &names.at))
        })
    }

    /// Drop the new version.
    pub(super) fn drop_staged(&self) -> Result<()> {
        self.names().map_or(Ok(()), |names| {
            self.told(safefs::remove_if_exists(&names.staged))
        })
    }

    /// Drop the version that gave way.
    pub(super) fn drop_aside(&self) -> Result<()> {
        self.names().map_or(Ok(()), |names| {
            self.told(safefs::remove_if_exists(&names.aside))
        })
    }

    /// Keep the file out of the way of a package manager. What waits already was set aside by one who was
    /// killed.
    pub(super) fn keep(&self) -> Result<()> {
        match self.names().filter(|names| !exists_std(&names.kept)) {
            Some(names) => self.told(move_if_there(&names.at, &names.kept)),
            None => Ok(()),
        }
    }

    /// Undo [`Spot::keep`]. What the package has in its place may be of another kind.
    pub(super) fn release(&self) -> Result<()> {
        let Some(names) = self.names().filter(|names| exists_std(&names.kept)) else {
            return Ok(());
        };
        if safefs::rename(&names.kept, &names.at).is_ok() {
            return Ok(());
        }
        // A directory goes only if nothing is in it.
        let _ = std::fs::remove_file(&names.at).or_else(|_| std::fs::remove_dir(&names.at));
        self.told(safefs::rename(&names.kept, &names.at))
    }

    /// Make it a directory with this mode, owner and group; one that is there stays as it is.
    pub(super) fn make_directory(&self, (mode, uid, gid): Owner) -> Result<()> {
        let Some(names) = self.names() else {
            return Err(Error::new(
                Kind::NotFound,
                format!("the directory of {} is not there", self.target),
            ));
        };
        let failed = || format!("cannot create {}", self.target);
        match std::fs::create_dir(&names.at) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) => return Err(error).context(failed),
        }
        give(&names.at, (mode, uid, gid)).context(failed)?;
        self.host.label(&names.at, &self.target)
    }

    /// Give it, a directory, another mode and owner. What is there no more is left.
    pub(super) fn change_directory(&self, owner: Owner) -> Result<()> {
        let Some(names) = self.names().filter(|names| names.at.is_dir()) else {
            return Ok(());
        };
        give(&names.at, owner).context(|| format!("cannot change {}", self.target))
    }

    /// Remove it, a directory, unless somebody uses it.
    pub(super) fn remove_empty(&self) {
        if let Some(names) = self.names()
            && let Err(error) = std::fs::remove_dir(names.at)
        {
            tracing::debug!(target = %self.target, %error, "left");
        }
    }

    /// With the paths that people know, in place of those by way of the open directory.
    fn told(&self, result: Result<()>) -> Result<()> {
        result.map_err(|error| {
            let way = self
                .names()
                .and_then(|names| Some(names.at.parent()?.to_owned()));
            let (Some(way), Some(directory)) = (way, self.target.parent()) else {
                return error.within(&self.target);
            };
            let text = error
                .to_string()
                .replace(&*way.to_string_lossy(), directory.as_str());
            Error::new(error.kind(), text).within(&self.target)
        })
    }
}

fn give(directory: &Path, (mode, uid, gid): Owner) -> std::io::Result<()> {
    let directory = safefs::open_dir(directory)?;
    std::os::unix::fs::fchown(&directory, Some(uid), Some(gid))?;
    directory.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))
}

struct Names {
    at: PathBuf,
    staged: PathBuf,
    aside: PathBuf,
    kept: PathBuf,
}

fn move_if_there(from: &Path, to: &Path) -> Result<()> {
    if exists_std(from) {
        safefs::rename(from, to)?;
    }
    Ok(())
}

/// Where a link was put in the way meanwhile, what is behind it is left alone, and a service must not stay
/// down for it.
pub(super) fn passed_over(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() == Kind::Invalid => {
            tracing::warn!(%error, "left as it is");
            Ok(())
        }
        result => result,
    }
}
