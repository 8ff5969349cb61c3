//! One file on its way to the host, and what is on the disk.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use camino::Utf8Path;
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid, XattrFlags};
use serde::{Deserialize, Serialize};

use super::wanted::Kind;
use crate::error::{Context as _, Result};
use crate::image::digest::Hashing;
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
    /// Write it as `at`, which must not exist; `rootfs` is that of the deployment. `labels`: where it gets
    /// that of its target.
    pub fn write(
        &self,
        rootfs: &Utf8Path,
        at: &Path,
        labels: Option<(&Labels, &Utf8Path)>,
    ) -> Result<()> {
        let failed = || format!("cannot write {}", at.display());
        match &self.kind {
            Kind::Dir => std::fs::create_dir(at).context(failed)?,
            Kind::Link(target) => std::os::unix::fs::symlink(target, at).context(failed)?,
            Kind::Text(text) => crate::safefs::write_new_file(at, text.as_bytes(), 0o600)?,
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
                let mut target = File::create_new(at).context(failed)?;
                std::io::copy(&mut source, &mut target).context(failed)?;
            }
        }
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        rustix::fs::chownat(CWD, at, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .context(failed)?;
        if let Some((labels, target)) = labels {
            labels.give(at, target)?;
        }
        if matches!(self.kind, Kind::Link(_)) {
            return Ok(());
        }
        rustix::fs::chmod(at, Mode::from_raw_mode(self.mode)).context(failed)?;
        for (name, value) in &self.xattrs {
            rustix::fs::lsetxattr(at, name, value, XattrFlags::empty()).context(failed)?;
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
            // The original had no other checksum for links.
            Self::There(found) => {
                found == recorded || (recorded == "0" && found.starts_with("link:"))
            }
            Self::Missing | Self::Odd => false,
        }
    }

    /// Look.
    pub fn of(path: &Utf8Path) -> Result<Self> {
        let failed = || format!("cannot read {path}");
        let found = match std::fs::symlink_metadata(path) {
            Ok(found) => found,
            // Also where a directory above gave way to a file.
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                return Ok(Self::Missing);
            }
            Err(error) => return Err(error).context(failed),
        };
        Ok(if found.is_dir() {
            Self::There("0".into())
        } else if found.is_symlink() {
            let target = std::fs::read_link(path).context(failed)?;
            Self::There(format!("link:{}", target.to_string_lossy()))
        } else if found.is_file() {
            let mut file = Hashing::new(File::open(path).context(failed)?);
            std::io::copy(&mut file, &mut std::io::sink()).context(failed)?;
            Self::There(file.finish().0.hex())
        } else {
            Self::Odd
        })
    }
}
