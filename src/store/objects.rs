//! `OSTree` metadata objects as Rust values. Shapes: libostree's `ostree-core.h`.

use std::collections::BTreeMap;

use camino::Utf8Path;
use glib::prelude::*;
use glib::{FixedSizeVariantArray, Variant, VariantDict, VariantTy};
use ostree::DirmetaVariantType;
use ostree::{ObjectType, Repo};

use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::image::digest::{hex, unhex};

/// A checksum of an `OSTree` object.
pub type Checksum = [u8; 32];

/// Bytes that are read and written as a whole; a `Vec` would be a variant for each of them.
type Bytes = FixedSizeVariantArray<Vec<u8>, u8>;

/// A directory: names and checksums of files; names, trees and metadata of directories.
type TreeVariant = (Vec<(String, Bytes)>, Vec<(String, Bytes, Bytes)>);

/// No cancellation: a killed command is brought back by the journal and libostree's staging.
pub const NO_CANCEL: Option<&gio::Cancellable> = None;

/// `S_IFDIR`
const DIRECTORY: u32 = 0o040_000;

/// The entries of a directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DirTree {
    /// Files and symbolic links.
    pub files: BTreeMap<String, Checksum>,
    /// Directories: their tree and their metadata.
    pub dirs: BTreeMap<String, (Checksum, Checksum)>,
}

/// Owner and mode of a directory, with its extended attributes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DirMeta {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
    /// Extended attributes, names with their NUL, sorted.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Default for DirMeta {
    fn default() -> Self {
        Self {
            uid: 0,
            gid: 0,
            mode: 0o755,
            xattrs: Vec::new(),
        }
    }
}

/// Read a checksum as libostree writes it.
pub fn checksum(text: &str) -> Result<Checksum> {
    unhex(text).ok_or_else(|| Error::new(Kind::Invalid, format!("\"{text}\" is not a checksum")))
}

/// Write a directory metadata object.
pub fn write_dirmeta(repo: &Repo, meta: &DirMeta) -> Result<Checksum> {
    let variant: Variant = (
        meta.uid.to_be(),
        meta.gid.to_be(),
        (DIRECTORY | meta.mode).to_be(),
        meta.xattrs.clone(),
    )
        .to_variant();
    write(repo, ObjectType::DirMeta, &variant)
}

/// Read a directory metadata object.
pub fn read_dirmeta(repo: &Repo, sum: &Checksum) -> Result<DirMeta> {
    let variant = load(repo, ObjectType::DirMeta, sum)?;
    let (uid, gid, mode, xattrs) = variant
        .try_get::<DirmetaVariantType>()
        .kind(Kind::Invalid, || {
            format!("the object {} is damaged", hex(sum))
        })?;
    Ok(DirMeta {
        uid: u32::from_be(uid),
        gid: u32::from_be(gid),
        mode: u32::from_be(mode) & 0o7777,
        xattrs,
    })
}

/// Write a directory.
///
/// # Errors
/// [`Kind::Invalid`] for a name that is no name.
pub fn write_dirtree(repo: &Repo, tree: &DirTree) -> Result<Checksum> {
    write(repo, ObjectType::DirTree, &dirtree(tree)?)
}

/// A directory as it is written.
///
/// # Errors
/// [`Kind::Invalid`] for a name that is no name: it must never reach a checkout.
pub fn dirtree(tree: &DirTree) -> Result<Variant> {
    let bad =
        |name: &&String| matches!(name.as_str(), "" | "." | "..") || name.contains(['/', '\0']);
    if let Some(name) = tree.files.keys().chain(tree.dirs.keys()).find(bad) {
        return Err(Error::new(
            Kind::Invalid,
            format!("\"{}\" is not a file name", name.escape_debug()),
        ));
    }
    let bytes = |sum: &Checksum| Bytes::from(sum.to_vec());
    let value: TreeVariant = (
        tree.files
            .iter()
            .map(|(name, sum)| (name.clone(), bytes(sum)))
            .collect(),
        tree.dirs
            .iter()
            .map(|(name, (tree, meta))| (name.clone(), bytes(tree), bytes(meta)))
            .collect(),
    );
    Ok(value.to_variant())
}

/// Read a directory.
pub fn read_dirtree(repo: &Repo, sum: &Checksum) -> Result<DirTree> {
    parse(sum, &load(repo, ObjectType::DirTree, sum)?)
}

/// The same of the bytes that it is.
pub fn parse_dirtree(sum: &Checksum, bytes: Vec<u8>) -> Result<DirTree> {
    parse(sum, &Variant::from_data::<TreeVariant, _>(bytes))
}

fn parse(sum: &Checksum, variant: &Variant) -> Result<DirTree> {
    let damaged = || Error::new(Kind::Invalid, format!("the object {} is damaged", hex(sum)));
    let (files, dirs) = variant.try_get::<TreeVariant>().map_err(|_| damaged())?;
    let sum_of = |bytes: Bytes| Checksum::try_from(bytes.into_inner()).map_err(|_| damaged());
    Ok(DirTree {
        files: files
            .into_iter()
            .map(|(name, sum)| Ok((name, sum_of(sum)?)))
            .collect::<Result<_>>()?,
        dirs: dirs
            .into_iter()
            .map(|(name, tree, meta)| Ok((name, (sum_of(tree)?, sum_of(meta)?))))
            .collect::<Result<_>>()?,
    })
}

/// A commit without parent.
pub struct Commit<'a> {
    /// One line.
    pub subject: &'a str,
    /// `docker.*` keys and ours.
    pub metadata: Vec<(&'a str, Variant)>,
    /// Root directory.
    pub tree: Checksum,
    /// Metadata of the root directory.
    pub meta: Checksum,
    /// Seconds since 1970.
    pub timestamp: u64,
}

/// A commit as it will be written, with the checksum it will have.
#[derive(Debug, Clone)]
pub struct Sealed {
    variant: Variant,
    /// Its checksum as text.
    pub checksum: String,
    /// That of its root directory.
    pub tree: String,
}

impl Commit<'_> {
    /// Put it together without writing it.
    pub fn seal(&self) -> Sealed {
        let dict = VariantDict::new(None);
        for (key, value) in &self.metadata {
            dict.insert_value(key, value);
        }
        let variant = Variant::tuple_from_iter([
            dict.end(),
            Vec::<u8>::new().to_variant(),
            Vec::<(String, Vec<u8>)>::new().to_variant(),
            self.subject.to_variant(),
            "".to_variant(),
            self.timestamp.to_be().to_variant(),
            self.tree.to_vec().to_variant(),
            self.meta.to_vec().to_variant(),
        ]);
        let checksum = crate::image::Digest::of(variant.data()).hex();
        Sealed {
            variant,
            checksum,
            tree: hex(&self.tree),
        }
    }
}

impl Sealed {
    /// Write it. Its tree must be there, for good: whoever finds a commit goes on to its tree.
    pub fn write(&self, repo: &Repo) -> Result<()> {
        let written = hex(&write(repo, ObjectType::Commit, &self.variant)?);
        if written != self.checksum {
            return Err(Error::new(
                Kind::Failed,
                format!("the commit {written} was expected to be {}", self.checksum),
            ));
        }
        Ok(())
    }
}

/// A commit's root directory: tree and metadata.
pub fn commit_root(repo: &Repo, commit: &str) -> Result<(Checksum, Checksum)> {
    let variant = load_commit(repo, commit)?;
    let part = |index| {
        variant
            .child_value(index)
            .get::<Vec<u8>>()
            .and_then(|bytes| Checksum::try_from(bytes).ok())
            .ok_or_else(|| Error::new(Kind::Invalid, format!("the commit {commit} is damaged")))
    };
    Ok((part(6)?, part(7)?))
}

/// The metadata dictionary of a commit.
pub fn commit_metadata(repo: &Repo, commit: &str) -> Result<Variant> {
    Ok(load_commit(repo, commit)?.child_value(0))
}

/// The same, and when the commit was made, in seconds since 1970.
pub fn commit_metadata_and_time(repo: &Repo, commit: &str) -> Result<(Variant, u64)> {
    let variant = load_commit(repo, commit)?;
    Ok((
        variant.child_value(0),
        ostree::commit_get_timestamp(&variant),
    ))
}

/// When a commit was made, seconds since 1970.
pub fn commit_timestamp(repo: &Repo, commit: &str) -> Result<u64> {
    Ok(ostree::commit_get_timestamp(&load_commit(repo, commit)?))
}

/// The same of a commit in the file that it is, for lists of many: libostree takes a lock for each.
///
/// Source: ostree-core.h, `OSTREE_COMMIT_GVARIANT_FORMAT`; the time is big-endian.
pub fn read_commit_metadata_and_time(objects: &Utf8Path, commit: &str) -> Result<(Variant, u64)> {
    let damaged = || format!("the commit {commit} is damaged");
    let Some((part, rest)) = unhex(commit).and_then(|_| commit.split_at_checked(2)) else {
        fail!(Kind::Invalid, "{commit} is no commit");
    };
    let path = objects.join(part).join(format!("{rest}.commit"));
    let bytes = std::fs::read(&path).context(|| format!("cannot read the commit {commit}"))?;
    let kind = VariantTy::new("(a{sv}aya(say)sstayay)").kind(Kind::Invalid, damaged)?;
    let variant = Variant::from_data_with_type(bytes, kind);
    let time = variant.child_value(5).get::<u64>().map_or(0, u64::from_be);
    Ok((variant.child_value(0), time))
}

/// What a commit's metadata have for a key. They are few, and a dictionary would be a copy of them.
pub fn metadata_value(dict: &Variant, key: &str) -> Option<Variant> {
    let found = dict
        .iter()
        .find(|entry| entry.child_value(0).str() == Some(key));
    found?.child_value(1).as_variant()
}

/// Several strings among a commit's metadata.
pub fn metadata_strings<const N: usize>(dict: &Variant, keys: [&str; N]) -> [Option<String>; N] {
    let mut out = [const { None }; N];
    for entry in dict.iter() {
        let name = entry.child_value(0);
        if let Some(at) = keys.iter().position(|key| name.str() == Some(key)) {
            out[at] = entry
                .child_value(1)
                .as_variant()
                .and_then(|value| value.get());
        }
    }
    out
}

/// A string among a commit's metadata.
pub fn metadata_string(dict: &Variant, key: &str) -> Option<String> {
    metadata_value(dict, key)?.get::<String>()
}

fn load_commit(repo: &Repo, commit: &str) -> Result<Variant> {
    repo.load_commit(commit)
        .map(|(variant, _)| variant)
        .context(|| format!("cannot read the commit {commit}"))
}

fn load(repo: &Repo, kind: ObjectType, sum: &Checksum) -> Result<Variant> {
    repo.load_variant(kind, &hex(sum))
        .context(|| format!("cannot read the object {}", hex(sum)))
}

fn write(repo: &Repo, kind: ObjectType, variant: &Variant) -> Result<Checksum> {
    let written = repo
        .write_metadata(kind, None, variant, NO_CANCEL)
        .context(|| "cannot write to the repository".into())?;
    checksum(&written.to_string())
}
