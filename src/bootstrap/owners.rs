//! Whose the files of a directory are where root does not make it.

use std::str::FromStr;

use super::{Form, Request};
use crate::error::{Error, Kind, Result};
use crate::fail;
use crate::runtime::userns::{Mapping, are_allowed};

/// Whose they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// The caller's, all of them.
    Mine,
    /// Those of the image, as ids of the caller's user namespace: 0 is the caller.
    Namespace,
    /// The caller's, and whose they are in the image is in an attribute of theirs; see [`record`].
    Recorded,
}

impl FromStr for Owners {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "mine" => Ok(Self::Mine),
            "namespace" => Ok(Self::Namespace),
            "recorded" => Ok(Self::Recorded),
            _ => fail!(
                Kind::Usage,
                "\"{text}\" is none of mine, namespace, recorded"
            ),
        }
    }
}

/// Whose files are to be where that is a question; nothing for root and for disks, which have what the image has.
///
/// # Errors
/// [`Kind::Usage`] for words that do not go together, [`Kind::Permission`] for owners that cannot be had.
pub fn of(request: &Request) -> Result<Option<Owners>> {
    let is_root = rustix::process::geteuid().is_root();
    if is_root || request.form != Form::Directory {
        if request.owners.is_some() {
            fail!(
                Kind::Usage,
                "--owners is for directories of those who are not root: all others have the owners of the image"
            );
        }
        return Ok(None);
    }
    let owners = match request.owners {
        Some(owners) => owners,
        None if request.ids.is_empty() => Owners::Mine,
        None => Owners::Namespace,
    };
    match owners {
        Owners::Mine if !request.ids.is_empty() => fail!(
            Kind::Usage,
            "ranges of ids, and all files yours: say --owners namespace or recorded, or leave the ranges out"
        ),
        Owners::Namespace if !are_allowed() || !Mapping::of_user().has_range() => fail!(
            Kind::Permission,
            "files of others need newuidmap, newgidmap, and a range of ids of yours in /etc/subuid and /etc/subgid; \"--owners recorded\" needs none"
        ),
        owners => Ok(Some(owners)),
    }
}

/// The attribute that tells whose a file is: a protocol buffer of user and group, as umoci and proot write and read it.
/// Source: github.com/rootless-containers/proto, `rootlesscontainers.proto`.
pub fn record(uid: u32, gid: u32) -> Option<(Vec<u8>, Vec<u8>)> {
    if (uid, gid) == (0, 0) {
        return None;
    }
    let mut value = Vec::new();
    for (tag, id) in [(1u8, uid), (2, gid)] {
        if id != 0 {
            value.push(tag << 3);
            let mut rest = id;
            while rest > 0x7f {
                value.push((rest & 0x7f) as u8 | 0x80);
                rest >>= 7;
            }
            value.push((rest & 0x7f) as u8);
        }
    }
    Some((b"user.rootlesscontainers".to_vec(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_recorded_as_others_read_them() {
        assert_eq!(record(0, 0), None);
        let value = |uid, gid| record(uid, gid).unwrap().1;
        assert_eq!(value(33, 33), [8, 33, 16, 33]);
        assert_eq!(value(0, 1000), [16, 0xe8, 7]);
        assert_eq!(value(u32::MAX, 0), [8, 0xff, 0xff, 0xff, 0xff, 0xf]);
    }
}
