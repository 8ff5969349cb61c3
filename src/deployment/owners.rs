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

use super::{ContainerName, Info};
use crate::config::Config;
use crate::error::{Context as _, Kind, Result};
use crate::image::Digest;
use crate::runtime::mounts::{OwnerDirs, check_container_path};
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
        let tree = store.tree_of(commit)?;
        let mut entries = store.special_entries(commit)?;
        fit(&mut entries, &mapping);
        if !entries.iter().any(Entry::is_special) {
            return Ok(None);
        }
        let ids = Digest::of(mapping.to_string().as_bytes()).hex();
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

    /// The same for a deployment that knows its place already.
    #[must_use]
    pub fn at(mut self, path: &Utf8Path) -> Self {
        path.clone_into(&mut self.dirs.path);
        self
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
        mapping.remove_tree(&staged)?;
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
/// While another container than `own` is being changed nothing is removed: its deployments are on the
/// move.
///
/// # Errors
/// What cannot be read may need any of them, so nothing is removed then.
pub fn sweep(config: &Config, own: Option<&ContainerName>) -> Result<()> {
    if config.is_system || !owners(config).is_dir() {
        return Ok(());
    }
    let _turn = turn(config)?;
    let moving = list(&config.checkouts.join(".journal"))?
        .iter()
        .map(|path| super::journal_of(path.file_name().unwrap_or_default()))
        .any(|name| name.is_none_or(|name| Some(&name) != own));
    if moving {
        return Ok(());
    }
    let mut needed: Vec<Utf8PathBuf> = Vec::new();
    for path in list(&config.checkouts)? {
        if path.join("info").exists() {
            needed.extend(Info::read(&path)?.owner_layer);
        }
    }
    let mapping = Mapping::of_user();
    for path in list(&owners(config))? {
        if !needed.contains(&path) {
            mapping.remove_tree(&path)?;
        }
    }
    Ok(())
}

fn list(directory: &Utf8Path) -> Result<Vec<Utf8PathBuf>> {
    let failed = || format!("cannot list {directory}");
    let entries = directory.read_dir_utf8().context(failed)?;
    entries
        .map(|entry| Ok(entry.context(failed)?.into_path()))
        .collect()
}

/// Leave out whom the namespace does not have, and what mount options would misread.
fn fit(entries: &mut Vec<Entry>, mapping: &Mapping) {
    let mut fitted: Vec<Entry> = Vec::with_capacity(entries.len());
    // From below, so that a directory is known to have something in it.
    for mut entry in std::mem::take(entries).into_iter().rev() {
        let top = entry.path.split('/').next().unwrap_or_default();
        if check_container_path(&format!("/{top}")).is_err() {
            tracing::warn!(path = %entry.path, "its owner is not kept: its name is odd");
            continue;
        }
        if !mapping.has_user(entry.uid) || !mapping.has_group(entry.gid) {
            if entry.kind != Special::Dir {
                continue;
            }
            (entry.uid, entry.gid) = (0, 0);
        }
        let holds = |below: &Entry| {
            let rest = below.path.strip_prefix(&entry.path);
            rest.is_some_and(|rest| rest.starts_with('/'))
        };
        if entry.is_special() || fitted.last().is_some_and(holds) {
            fitted.push(entry);
        }
    }
    fitted.reverse();
    *entries = fitted;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::userns::Range;

    #[test]
    fn only_who_is_mapped_owns_and_odd_names_reach_no_mount_option() {
        let range = |inside, size| Range {
            inside,
            outside: 1000,
            size,
        };
        let mapping = Mapping {
            users: vec![range(0, 1), range(1, 100)],
            groups: vec![range(0, 1), range(1, 100)],
        };
        let entry = |path: &str, kind, id| Entry {
            path: path.into(),
            kind,
            uid: id,
            gid: id,
            mode: 0o755,
            xattrs: Vec::new(),
        };
        let mut entries = vec![
            entry("data", Special::Dir, 1_000_650_000),
            entry("data/far", Special::File, 4000),
            entry("data/near", Special::File, 7),
            entry("far", Special::Dir, 4000),
            entry("far/away", Special::File, 4000),
            entry("x,lowerdir=y:z", Special::Dir, 7),
            entry("x,lowerdir=y:z/file", Special::File, 7),
        ];
        fit(&mut entries, &mapping);
        let left: Vec<(&str, u32)> = entries.iter().map(|e| (e.path.as_str(), e.uid)).collect();
        assert_eq!(left, [("data", 0), ("data/near", 7)]);
    }
}
