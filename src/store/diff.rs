//! How two trees differ. Equal subtrees have equal checksums and are not looked at.

use ostree::Repo;
use serde::Serialize;

use super::Store;
use super::objects::{self, Checksum, DirTree, NO_CANCEL, read_dirmeta, read_dirtree};
use crate::error::{Context as _, Result};
use crate::image::digest::hex;

/// One path that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Absolute in the image.
    pub path: String,
    /// What became of it.
    pub change: Change,
    /// For changed ones: what of `content`, `kind`, `owner`, `mode`, `attributes`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub what: Vec<&'static str>,
}

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// Only the second tree has it.
    Added,
    /// Both have it, and not the same.
    Changed,
    /// Only the first tree has it.
    Removed,
}

impl Store {
    /// How the tree of the commit `after` differs from that of `before`, in order of paths.
    pub fn diff(&self, before: &str, after: &str) -> Result<Vec<Difference>> {
        let (a, b) = (
            objects::commit_root(&self.repo, before)?,
            objects::commit_root(&self.repo, after)?,
        );
        let mut out = Vec::new();
        directories(&self.repo, "", a, b, &mut out)?;
        Ok(out)
    }
}

fn directories(
    repo: &Repo,
    path: &str,
    a: (Checksum, Checksum),
    b: (Checksum, Checksum),
    out: &mut Vec<Difference>,
) -> Result<()> {
    if a.1 != b.1 {
        let (old, new) = (read_dirmeta(repo, &a.1)?, read_dirmeta(repo, &b.1)?);
        let mut what = Vec::new();
        if (old.uid, old.gid) != (new.uid, new.gid) {
            what.push("owner");
        }
        if old.mode != new.mode {
            what.push("mode");
        }
        if old.xattrs != new.xattrs {
            what.push("attributes");
        }
        out.push(Difference {
            path: if path.is_empty() { "/" } else { path }.to_owned(),
            change: Change::Changed,
            what,
        });
    }
    if a.0 == b.0 {
        return Ok(());
    }
    let (old, new) = (read_dirtree(repo, &a.0)?, read_dirtree(repo, &b.0)?);
    let mut names: Vec<&String> = [&old, &new]
        .into_iter()
        .flat_map(|tree| tree.files.keys().chain(tree.dirs.keys()))
        .collect();
    names.sort();
    names.dedup();
    for name in names {
        let path = format!("{path}/{name}");
        match (old.dirs.get(name), new.dirs.get(name)) {
            (Some(a), Some(b)) => {
                directories(repo, &path, *a, *b, out)?;
                continue;
            }
            (Some(a), None) => whole(repo, &path, &a.0, Change::Removed, out)?,
            (None, Some(b)) => {
                if old.files.contains_key(name) {
                    only(&path, Change::Removed, out);
                }
                whole(repo, &path, &b.0, Change::Added, out)?;
                continue;
            }
            (None, None) => {}
        }
        match (old.files.get(name), new.files.get(name)) {
            (Some(a), Some(b)) if a != b => out.push(Difference {
                what: files(repo, a, b)?,
                path,
                change: Change::Changed,
            }),
            (Some(_), None) => only(&path, Change::Removed, out),
            (None, Some(_)) => only(&path, Change::Added, out),
            _ => {}
        }
    }
    Ok(())
}

fn only(path: &str, change: Change, out: &mut Vec<Difference>) {
    out.push(Difference {
        path: path.to_owned(),
        change,
        what: Vec::new(),
    });
}

/// A directory with all below it came or went.
fn whole(
    repo: &Repo,
    path: &str,
    tree: &Checksum,
    change: Change,
    out: &mut Vec<Difference>,
) -> Result<()> {
    only(path, change, out);
    let DirTree { files, dirs } = read_dirtree(repo, tree)?;
    for name in files.keys() {
        only(&format!("{path}/{name}"), change, out);
    }
    for (name, (below, _)) in &dirs {
        whole(repo, &format!("{path}/{name}"), below, change, out)?;
    }
    Ok(())
}

fn files(repo: &Repo, a: &Checksum, b: &Checksum) -> Result<Vec<&'static str>> {
    let load = |sum: &Checksum| {
        repo.load_file(&hex(sum), NO_CANCEL)
            .context(|| format!("cannot read the object {}", hex(sum)))
    };
    let ((stream_a, info_a, xattrs_a), (stream_b, info_b, xattrs_b)) = (load(a)?, load(b)?);
    let mut what = Vec::new();
    if info_a.file_type() != info_b.file_type() {
        what.push("kind");
    } else if info_a.symlink_target() != info_b.symlink_target()
        || info_a.size() != info_b.size()
        || !same_content(stream_a, stream_b)
    {
        what.push("content");
    }
    let number = |info: &gio::FileInfo, key: &str| info.attribute_uint32(key);
    let owner = |info| (number(info, "unix::uid"), number(info, "unix::gid"));
    if owner(&info_a) != owner(&info_b) {
        what.push("owner");
    }
    if number(&info_a, "unix::mode") & 0o7777 != number(&info_b, "unix::mode") & 0o7777 {
        what.push("mode");
    }
    if xattrs_a != xattrs_b {
        what.push("attributes");
    }
    Ok(what)
}

fn same_content(a: Option<gio::InputStream>, b: Option<gio::InputStream>) -> bool {
    use gio::prelude::*;
    match (a, b) {
        (Some(a), Some(b)) => super::verify::same_bytes(&mut a.into_read(), &mut b.into_read()),
        (a, b) => a.is_none() && b.is_none(),
    }
}
