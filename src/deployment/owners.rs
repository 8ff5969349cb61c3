//! Who owns what in an ordinary user's container.
//!
//! Files that a user checks out are the user's, all of them, and without set-id bits: to the container
//! they are root's. The few entries of an image that are somebody else's, or carry such bits or
//! capabilities, are written once more by root of the user's namespace, into a small tree that is laid
//! over the checkout when it is mounted: the owner layer.
//!
//! # Format
//! `C/.owners/TREE-IDS/`: the entries with all directories above them. TREE: the beginning of the
//! checksum of the image's tree; IDS: of that of the id mapping. `info` of a deployment names the one
//! it needs; one that no deployment needs is swept. Names that start with a dot are being written.

use std::io::BufRead;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{AtFlags, CWD, Gid, Mode, Uid, XattrFlags};

use super::Info;
use crate::config::Config;
use crate::error::{Context as _, Kind, Result};
use crate::image::Digest;
use crate::runtime::mounts::OwnerDirs;
use crate::runtime::userns::Mapping;
use crate::safefs::{self, Lock};
use crate::store::Store;
use crate::store::special::{Entry, Special};

/// The verb that writes an owner layer, run as root of the namespace.
pub const VERB: &str = "owner-layer";

/// An owner layer: where it is or will be, and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerLayer {
    /// Its directories, to be mounted.
    pub dirs: OwnerDirs,
    /// Its entries, directories before what is in them.
    entries: Vec<Entry>,
}

impl OwnerLayer {
    /// The owner layer of a tree for the user who runs us; nothing for root, for a user with one id,
    /// and for a tree where everything is root's anyway.
    pub fn of(config: &Config, store: &Store, commit: &str) -> Result<Option<Self>> {
        if config.is_system {
            return Ok(None);
        }
        let mapping = Mapping::of_user();
        if !mapping.has_range() {
            return Ok(None);
        }
        let (tree, mut entries) = store.special_entries(commit)?;
        // Whom the namespace does not have cannot own anything there.
        entries.retain(|entry| mapping.has_user(entry.uid) && mapping.has_group(entry.gid));
        if !entries.iter().any(Entry::is_special) {
            return Ok(None);
        }
        let ids = Digest::of(format!("{mapping:?}").as_bytes()).hex();
        let name = format!(
            "{}-{}",
            tree.get(..32).unwrap_or(&tree),
            ids.get(..16).unwrap_or(&ids)
        );
        let dirs = entries.iter().filter(|entry| entry.kind == Special::Dir);
        let dirs = OwnerDirs {
            path: owners(config).join(name),
            dirs: dirs.map(|entry| entry.path.clone()).collect(),
        };
        Ok(Some(Self { dirs, entries }))
    }

    /// Write it, unless it is there; `rootfs` is a checkout of the same tree.
    pub fn make(&self, config: &Config, rootfs: &Utf8Path) -> Result<()> {
        let _turn = turn(config)?;
        let path = &self.dirs.path;
        if path.is_dir() {
            return Ok(());
        }
        let staged = owners(config).join(format!(".{}", path.file_name().unwrap_or("new")));
        let mapping = Mapping::of_user();
        remove(&mapping, &staged)?;
        let mut list = Vec::new();
        for entry in &self.entries {
            serde_json::to_writer(&mut list, entry).context(|| "cannot write JSON".into())?;
            list.push(b'\n');
        }
        let program = std::env::current_exe().context(|| "cannot find myself".into())?;
        let program = program.to_string_lossy();
        mapping
            .run_as_root(&program, &[VERB, staged.as_str(), rootfs.as_str()], &list)
            .map_err(|error| error.within(format_args!("the owner layer {path}")))?;
        safefs::sync_file_system(staged.as_std_path())?;
        safefs::rename(staged.as_std_path(), path.as_std_path())
    }
}

/// Write the entries that `list` has, a JSON document a line, below `target`, which must not exist.
/// Whoever calls it is root of a user namespace.
pub fn write(target: &Utf8Path, rootfs: &Utf8Path, list: impl BufRead) -> Result<()> {
    let make_dir = |path: &Utf8Path, mode| {
        std::fs::DirBuilder::new()
            .mode(mode)
            .create(path)
            .context(|| format!("cannot create {path}"))
    };
    make_dir(target, 0o755)?;
    // Modes of directories come last: one that may not be written must be filled first.
    let mut directories: Vec<(Utf8PathBuf, u32)> = Vec::new();
    for line in list.lines() {
        let line = line.context(|| "cannot read the list".into())?;
        let entry: Entry =
            serde_json::from_str(&line).kind(Kind::Invalid, || "not an entry".into())?;
        let (at, from) = (target.join(&entry.path), rootfs.join(&entry.path));
        match entry.kind {
            Special::Dir => {
                make_dir(&at, 0o700)?;
                directories.push((at.clone(), entry.mode));
            }
            Special::Link => {
                let to = std::fs::read_link(&from).context(|| format!("cannot read {from}"))?;
                std::os::unix::fs::symlink(to, &at).context(|| format!("cannot create {at}"))?;
            }
            Special::File => copy(&from, &at)?,
        }
        let owner = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        rustix::fs::chownat(
            CWD,
            at.as_str(),
            Some(owner.0),
            Some(owner.1),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .context(|| format!("cannot change the owner of {at}"))?;
        if entry.kind == Special::File {
            // After the owner: a change of that takes set-id bits and capabilities away.
            set_mode(&at, entry.mode)?;
            for (name, value) in &entry.xattrs {
                rustix::fs::lsetxattr(at.as_str(), name, value, XattrFlags::empty())
                    .context(|| format!("cannot set {name} of {at}"))?;
            }
        }
    }
    for (path, mode) in directories.iter().rev() {
        set_mode(path, *mode)?;
    }
    Ok(())
}

fn set_mode(path: &Utf8Path, mode: u32) -> Result<()> {
    rustix::fs::chmod(path.as_str(), Mode::from_raw_mode(mode))
        .context(|| format!("cannot change the mode of {path}"))
}

fn copy(from: &Utf8Path, to: &Utf8Path) -> Result<()> {
    let failed = || format!("cannot copy {from}");
    let mut source = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(from)
        .context(failed)?;
    let mut target = std::fs::File::create_new(to).context(failed)?;
    std::io::copy(&mut source, &mut target)
        .map(|_| ())
        .context(failed)
}

fn owners(config: &Config) -> Utf8PathBuf {
    config.checkouts.join(".owners")
}

/// While this is held no other command writes or sweeps owner layers.
fn turn(config: &Config) -> Result<Lock> {
    safefs::make_private_dir(owners(config).as_std_path())?;
    Lock::take(
        config.checkouts.join(".locks/.owners").as_std_path(),
        safefs::Mode::Exclusive,
        "the owner layers",
    )
}

/// Remove the owner layers that no deployment needs, staged ones and those that give way included.
pub fn sweep(config: &Config) -> Result<()> {
    if config.is_system || !owners(config).is_dir() {
        return Ok(());
    }
    let _turn = turn(config)?;
    let entries = config
        .checkouts
        .read_dir_utf8()
        .context(|| format!("cannot list {}", config.checkouts))?;
    let needed: Vec<Utf8PathBuf> = entries
        .flatten()
        .filter_map(|entry| Info::read(entry.path()).ok()?.owner_layer)
        .collect();
    let layers = owners(config);
    let entries = layers
        .read_dir_utf8()
        .context(|| format!("cannot list {layers}"))?;
    let mapping = Mapping::of_user();
    for entry in entries.flatten() {
        if !needed.iter().any(|path| path == entry.path()) {
            remove(&mapping, entry.path())?;
        }
    }
    Ok(())
}

fn remove(mapping: &Mapping, path: &Utf8Path) -> Result<()> {
    if path.exists() {
        mapping.run_as_root(
            "rm",
            &["-rf", "--one-file-system", "--", path.as_str()],
            &[],
        )?;
    }
    Ok(())
}
