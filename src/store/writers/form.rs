//! What a file is beside its content: as it is hashed, and as it is given.

use std::fs::File;

use glib::prelude::*;
use rustix::fs::{Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

/// The attribute that holds what a file of a user's repository really is.
pub const OSTREE_META: &str = "user.ostreemeta";
/// Set-user-ID, set-group-ID, sticky.
const SPECIAL: u32 = 0o7000;

/// What a file is beside its content.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FileMeta {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Mode with the bits of its type.
    pub mode: u32,
    /// Extended attributes, names with their NUL, sorted.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// How files are written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    /// Files keep their owners; else these are in an attribute.
    pub is_system: bool,
    /// What a new file does not get of its mode.
    pub umask: u32,
}

/// A [`FileMeta`], made ready.
pub(super) struct Form {
    pub meta: FileMeta,
    /// What is hashed before the content.
    pub header: Vec<u8>,
    manner: Manner,
    /// The mode it is created with.
    first: u32,
    /// The mode it will have on the disk.
    last: u32,
    /// The value of [`OSTREE_META`].
    kept: Vec<u8>,
}

impl Form {
    pub(super) fn new(meta: FileMeta, manner: Manner) -> Self {
        let (uid, gid, mode) = (meta.uid.to_be(), meta.gid.to_be(), meta.mode.to_be());
        let xattrs = &meta.xattrs;
        let last = if manner.is_system {
            meta.mode & 0o7777
        } else {
            meta.mode & 0o775 | 0o400
        };
        // One that is special is closed until it is whole.
        let is_plain = manner.is_system && last & (SPECIAL | manner.umask) == 0;
        Self {
            header: header(&meta, ""),
            manner,
            first: if is_plain { last } else { 0o600 },
            last,
            kept: (uid, gid, mode, xattrs).to_variant().data().to_vec(),
            meta,
        }
    }

    /// The mode to create a file with.
    pub(super) fn first_mode(&self) -> Mode {
        Mode::from(self.first)
    }

    /// Give a file all that it is beside its content.
    pub(super) fn give(&self, file: &File) -> rustix::io::Result<()> {
        let meta = &self.meta;
        if self.manner.is_system && (meta.uid, meta.gid) != (0, 0) {
            let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
            rustix::fs::fchown(file, Some(uid), Some(gid))?;
        }
        if !self.manner.is_system {
            rustix::fs::fsetxattr(file, OSTREE_META, &self.kept, XattrFlags::empty())?;
        }
        if self.first != self.last {
            rustix::fs::fchmod(file, Mode::from(self.last))?;
        }
        if self.manner.is_system {
            set_xattrs(file, &meta.xattrs)?;
        }
        reset_times(file)
    }
}

/// What is hashed of a file before its content, and of a link all that is. Shape: libostree's `ostree-core.c`, the
/// file header.
pub(super) fn header(meta: &FileMeta, target: &str) -> Vec<u8> {
    let (uid, gid, mode) = (meta.uid.to_be(), meta.gid.to_be(), meta.mode.to_be());
    let variant = (uid, gid, mode, 0u32, target, &meta.xattrs).to_variant();
    let size = u32::try_from(variant.size()).unwrap_or(u32::MAX);
    // The variant is aligned to eight bytes.
    let mut header = size.to_be_bytes().to_vec();
    header.extend_from_slice(&[0; 4]);
    header.extend_from_slice(variant.data());
    header
}

/// Set extended attributes whose names end in NUL.
pub fn set_xattrs(file: &File, xattrs: &[(Vec<u8>, Vec<u8>)]) -> rustix::io::Result<()> {
    for (name, value) in xattrs {
        let name = name.strip_suffix(b"\0").unwrap_or(name);
        rustix::fs::fsetxattr(file, name, value, XattrFlags::empty())?;
    }
    Ok(())
}

/// Give a file the modification time that all of a repository have.
pub fn reset_times(file: &File) -> rustix::io::Result<()> {
    let epoch = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: Timespec {
            tv_nsec: rustix::fs::UTIME_OMIT,
            ..epoch
        },
        last_modification: epoch,
    };
    rustix::fs::futimens(file, &times)
}
