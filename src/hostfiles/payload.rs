//! One file on its way to the host, and what is on the disk.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use camino::Utf8Path;
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid, XattrFlags};
use serde::{Deserialize, Serialize};

use super::rules::follow_merged;
use super::wanted::Kind;
use crate::error::{Context as _, Result};
use crate::image::digest::Hashing;
use crate::safefs::Parent;
use crate::selinux::Labels;

/// What a staged host file is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// Where it is below the root file system of the deployment.
    pub source: String,
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Extended attributes: file capabilities and `user.*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub xattrs: Vec<(String, Vec<u8>)>,
    /// It may be a hard link to the deployment's own file.
    pub may_link: bool,
}

impl Payload {
    /// Write it as `at`, which must not exist; `rootfs` is that of the deployment. `labels`: those of
    /// the host and the target, by which it may be a link or not.
    pub fn write(
        &self,
        rootfs: &Utf8Path,
        at: &Path,
        labels: Option<(&Labels, &Utf8Path)>,
    ) -> Result<()> {
        let failed = || format!("cannot write {}", at.display());
        let file = match &self.kind {
            Kind::Dir => {
                std::fs::create_dir(at).context(failed)?;
                crate::safefs::open_dir(at).context(failed)?
            }
            Kind::Link(target) => {
                std::os::unix::fs::symlink(target, at).context(failed)?;
                let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
                return rustix::fs::chownat(
                    CWD,
                    at,
                    Some(uid),
                    Some(gid),
                    AtFlags::SYMLINK_NOFOLLOW,
                )
                .context(failed);
            }
            Kind::Text(text) => {
                let mut file = new_file(at).context(failed)?;
                file.write_all(text.as_bytes()).context(failed)?;
                file
            }
            Kind::File => {
                // The deployment is an image's: its links must not lead out of it.
                let root = rustix::fs::open(rootfs.as_str(), OFlags::PATH, Mode::empty())
                    .context(failed)?;
                let source = rustix::fs::openat2(
                    &root,
                    self.source.as_str(),
                    OFlags::RDONLY | OFlags::CLOEXEC,
                    Mode::empty(),
                    ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS,
                )
                .context(failed)?;
                let mut source = File::from(source);
                if self.may_link && self.link(&source, rootfs, at, labels) {
                    return Ok(());
                }
                let mut file = new_file(at).context(failed)?;
                std::io::copy(&mut source, &mut file).context(failed)?;
                file
            }
        };
        // By the open file: others may write to its directory.
        std::os::unix::fs::fchown(&file, Some(self.uid), Some(self.gid)).context(failed)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(self.mode);
        file.set_permissions(mode).context(failed)?;
        for (name, value) in &self.xattrs {
            rustix::fs::fsetxattr(&file, name, value, XattrFlags::empty()).context(failed)?;
        }
        Ok(())
    }

    /// Make a hard link where that is the same file in every respect. False: it wants a copy.
    fn link(
        &self,
        source: &File,
        rootfs: &Utf8Path,
        at: &Path,
        labels: Option<(&Labels, &Utf8Path)>,
    ) -> bool {
        let same = source.metadata().is_ok_and(|found| {
            (found.uid(), found.gid(), found.mode() & 0o7777) == (self.uid, self.gid, self.mode)
        });
        let path = rootfs.join(&self.source);
        let agrees =
            labels.is_none_or(|(labels, target)| labels.agrees(path.as_std_path(), target));
        same && agrees && std::fs::hard_link(rootfs.join(&self.source), at).is_ok()
    }
}

fn new_file(at: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600).open(at)
}

/// The directory of a host file, if it is there.
pub(super) fn locate(path: &Utf8Path) -> Result<Option<Parent>> {
    Parent::open(follow_merged(path).as_std_path(), false)
}

/// What is at a path of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nothing.
    Missing,
    /// Something with this checksum, as it would be on record.
    There(String),
    /// Something that no image brings: a device, a socket.
    Odd,
}

impl State {
    /// True if this is what `recorded`, a checksum on record, says.
    pub fn is_as_recorded(&self, recorded: &str) -> bool {
        match self {
            Self::There(found) => found == recorded,
            Self::Missing | Self::Odd => false,
        }
    }

    /// Look. Where a directory on the way has become a link, what is behind it is not meant.
    pub fn of(path: &Utf8Path) -> Result<Self> {
        if path.file_name().is_none() {
            return Ok(Self::There("0".into()));
        }
        let failed = || format!("cannot read {path}");
        let parent = match locate(path) {
            Ok(Some(parent)) => parent,
            // Also where a directory above gave way to a file.
            Ok(None) => return Ok(Self::Missing),
            Err(error) if error.kind() == crate::error::Kind::Invalid => return Ok(Self::Odd),
            Err(error) => return Err(error),
        };
        let path = parent.path();
        let found = match std::fs::symlink_metadata(&path) {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::Missing),
            Err(error) => return Err(error).context(failed),
        };
        Ok(if found.is_dir() {
            Self::There("0".into())
        } else if found.is_symlink() {
            let target = std::fs::read_link(&path).context(failed)?;
            Self::There(format!("link:{}", target.to_string_lossy()))
        } else if found.is_file() {
            let mut file = Hashing::new(File::open(&path).context(failed)?);
            std::io::copy(&mut file, &mut std::io::sink()).context(failed)?;
            Self::There(file.finish().0.hex())
        } else {
            Self::Odd
        })
    }
}
