//! Directories and links on their way into the repository, which are written at once.

use std::io::Write as _;
use std::sync::Arc;

use glib::prelude::*;
use ostree::Repo;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use sha2::{Digest as _, Sha256};

use super::super::objects::{
    Checksum, DirMeta, DirTree, NO_CANCEL, checksum, dirtree, parse_dirtree, read_dirtree,
    write_dirmeta,
};
use super::failed;
use super::form::{FileMeta, header};
use super::work::{FILE, Shared, path};
use crate::error::{Context as _, Result};

/// What directories end in, as objects.
const TREE: &str = ".dirtree";

/// The repository with what waits for its place in it.
#[derive(Clone)]
pub struct Staged {
    pub(super) repo: Repo,
    pub(super) shared: Arc<Shared>,
}

impl Staged {
    /// Write a directory.
    ///
    /// # Errors
    /// [`crate::error::Kind::Invalid`] for a name that is no name.
    pub fn write_tree(&self, tree: &DirTree) -> Result<Checksum> {
        let variant = dirtree(tree)?;
        let sum: Checksum = Sha256::digest(variant.data()).into();
        if !self.shared.claim(sum, TREE)? {
            return Ok(sum);
        }
        let name = path(&sum, TREE);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let staging = &self.shared.staging;
        self.shared.take_room(variant.size() as u64)?;
        let file = self.shared.in_part(&name, || {
            rustix::fs::openat(staging, &name, flags, Mode::from(0o644))
        });
        let mut file = file.map(std::fs::File::from).context(failed)?;
        file.write_all(variant.data()).context(failed)?;
        if self.shared.manner().umask & 0o644 != 0 {
            rustix::fs::fchmod(&file, Mode::from(0o644)).context(failed)?;
        }
        Ok(sum)
    }

    /// Read a directory.
    pub fn read_tree(&self, sum: &Checksum) -> Result<DirTree> {
        let name = path(sum, TREE);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.shared.staging, &name, flags, Mode::empty()) {
            Ok(file) => {
                let mut bytes = Vec::new();
                let mut file = std::fs::File::from(file);
                std::io::Read::read_to_end(&mut file, &mut bytes).context(failed)?;
                parse_dirtree(sum, bytes)
            }
            Err(rustix::io::Errno::NOENT) => read_dirtree(&self.repo, sum),
            Err(error) => Err(error).context(failed),
        }
    }

    /// Write a directory metadata object; there are few.
    pub fn write_meta(&self, meta: &DirMeta) -> Result<Checksum> {
        write_dirmeta(&self.repo, meta)
    }

    /// Write a symbolic link.
    pub fn write_symlink(&self, meta: &FileMeta, target: &str) -> Result<Checksum> {
        if !self.shared.manner().is_system || !meta.xattrs.is_empty() {
            // A user's repository has links as files; both are seldom.
            let xattrs = meta.xattrs.to_variant();
            let (uid, gid) = (meta.uid, meta.gid);
            let written = self
                .repo
                .write_symlink(None, uid, gid, Some(&xattrs), target, NO_CANCEL);
            return checksum(&written.context(failed)?);
        }
        let sum: Checksum = Sha256::digest(header(meta, target)).into();
        if !self.shared.claim(sum, FILE)? {
            return Ok(sum);
        }
        let name = path(&sum, FILE);
        let staging = &self.shared.staging;
        self.shared.take_room(target.len() as u64)?;
        let made = self
            .shared
            .in_part(&name, || rustix::fs::symlinkat(target, staging, &name));
        made.context(failed)?;
        if (meta.uid, meta.gid) != (0, 0) {
            let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
            let how = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(staging, &name, Some(uid), Some(gid), how).context(failed)?;
        }
        Ok(sum)
    }
}
