//! The merged image tree: layers laid over each other, whiteouts resolved once.
//!
//! Merging works on directory objects alone; no file content is read, and a subtree that only one
//! layer has keeps its checksum.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use gio::prelude::*;
use ostree::Repo;

use super::layer_tree::join;
use super::objects::{
    Checksum, DirTree, NO_CANCEL, commit_metadata, commit_root, metadata_value, read_dirmeta,
    read_dirtree,
};
use super::writers::Staged;
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::image::digest::hex;
use crate::safefs::{FileStat, Files, Node, Walked};

/// What the name of a whiteout begins with.
pub(super) const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";
const MAX_LINKS_FOLLOWED: usize = 40;

/// A directory of the merged tree: as stored, or changed.
enum Merged {
    Stored(Checksum, Checksum),
    Open(OpenDir),
}

struct OpenDir {
    meta: Checksum,
    files: BTreeMap<String, Checksum>,
    dirs: BTreeMap<String, Merged>,
}

/// The root of a layer.
#[derive(Debug, Clone)]
pub struct LayerRoot {
    /// Its tree.
    pub tree: Checksum,
    /// Owner and mode of its root.
    pub meta: Checksum,
    /// Directories its archive implied without declaring them.
    pub implied: HashSet<String>,
    /// Directories that have whiteouts; nothing if that is not known.
    pub whiteouts: Option<BTreeSet<String>>,
    /// Entries for the host that could not be stored: devices, names that are not UTF-8.
    pub left_out: Vec<String>,
}

/// The entries that could not be stored and that no later layer hides or replaces.
pub fn left_out(store: &Staged, layers: &[LayerRoot]) -> Result<Vec<String>> {
    let mut out = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        for path in &layer.left_out {
            let mut hidden = false;
            for later in &layers[index + 1..] {
                hidden |= later.left_out.contains(path) || decides(store, &later.tree, path)?;
            }
            if !hidden {
                out.push(path.clone());
            }
        }
    }
    Ok(out)
}

/// True if a layer says what becomes of `path` of the layers below it.
fn decides(store: &Staged, tree: &Checksum, path: &str) -> Result<bool> {
    let mut tree = *tree;
    for part in path.split('/') {
        let here = store.read_tree(&tree)?;
        let whiteout = format!("{WHITEOUT}{part}");
        if [part, whiteout.as_str(), OPAQUE]
            .iter()
            .any(|name| here.files.contains_key(*name))
        {
            return Ok(true);
        }
        match here.dirs.get(part) {
            Some((below, _)) => tree = *below,
            None => return Ok(false),
        }
    }
    // A directory has its place.
    Ok(true)
}

/// Where a commit has [`LayerRoot::left_out`].
pub const LEFT_OUT: &str = "atomic-rs.left-out";

/// Where a layer's commit has [`LayerRoot::whiteouts`]. Layers of older programs do not say.
pub const WHITEOUTS: &str = "atomic-rs.whiteouts";

/// A list of strings in a commit's metadata.
fn strings(metadata: &glib::Variant, key: &str) -> Option<Vec<String>> {
    metadata_value(metadata, key)?.get::<Vec<String>>()
}

impl LayerRoot {
    /// The root of a layer that is in the store.
    pub fn of_commit(repo: &Repo, commit: &str) -> Result<Self> {
        let (tree, meta) = commit_root(repo, commit)?;
        let metadata = commit_metadata(repo, commit)?;
        let strings = |key| strings(&metadata, key);
        Ok(Self {
            tree,
            meta,
            implied: strings("atomic-rs.implied").into_iter().flatten().collect(),
            whiteouts: strings(WHITEOUTS).map(|list| list.into_iter().collect()),
            left_out: strings(LEFT_OUT).unwrap_or_default(),
        })
    }
}

/// Lay the trees of `layers`, base first, over each other and write the result. Returns its root:
/// tree and metadata.
pub fn merge(store: &Staged, layers: &[LayerRoot]) -> Result<(Checksum, Checksum)> {
    let mut merged: Option<Merged> = None;
    for root in layers {
        let layer = Layer {
            store,
            implied: &root.implied,
            whiteouts: root.whiteouts.as_ref(),
        };
        merged = Some(layer.over(merged, &root.tree, root.meta, "")?);
    }
    let Some(merged) = merged else {
        fail!(Kind::Invalid, "the image has no layers");
    };
    write(store, merged)
}

struct Layer<'r> {
    store: &'r Staged,
    implied: &'r HashSet<String>,
    whiteouts: Option<&'r BTreeSet<String>>,
}

impl Layer<'_> {
    /// True if the directory at `path` and all below it are known to have no whiteouts.
    fn is_plain(&self, path: &str) -> bool {
        let is_below = |found: &String| {
            let rest = found.strip_prefix(path);
            path.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.whiteouts.is_some_and(|all| {
            let alike = all.range(path.to_owned()..);
            !alike
                .take_while(|found| found.starts_with(path))
                .any(is_below)
        })
    }

    /// Lay the directory `tree` of this layer over `lower`.
    fn over(
        &self,
        lower: Option<Merged>,
        tree: &Checksum,
        meta: Checksum,
        path: &str,
    ) -> Result<Merged> {
        if lower.is_none() && self.is_plain(path) {
            return Ok(Merged::Stored(*tree, meta));
        }
        let upper = self.store.read_tree(tree)?;
        let opaque = upper.files.contains_key(OPAQUE);
        let keeps_meta = self.implied.contains(path);
        let lower = if let Some(lower) = lower {
            let mut lower = open(self.store, lower)?;
            if opaque {
                lower.files.clear();
                lower.dirs.clear();
            }
            lower
        } else {
            // Nothing below: the directory stands as it is, without its whiteouts.
            let mut fresh = OpenDir {
                meta,
                files: BTreeMap::new(),
                dirs: BTreeMap::new(),
            };
            self.add(&mut fresh, &upper, path)?;
            let unchanged = fresh.files.len() == upper.files.len()
                && fresh.dirs.iter().all(|(name, dir)| {
                    matches!(dir, Merged::Stored(tree, meta)
                        if upper.dirs.get(name) == Some(&(*tree, *meta)))
                });
            return Ok(if unchanged {
                Merged::Stored(*tree, meta)
            } else {
                Merged::Open(fresh)
            });
        };
        let mut result = lower;
        if !keeps_meta {
            result.meta = meta;
        }
        self.add(&mut result, &upper, path)?;
        Ok(Merged::Open(result))
    }

    fn add(&self, lower: &mut OpenDir, upper: &DirTree, path: &str) -> Result<()> {
        // Whiteouts speak of the layers below, so they come before this layer's own entries.
        for name in upper.files.keys() {
            if let Some(hidden) = name.strip_prefix(WHITEOUT) {
                lower.files.remove(hidden);
                lower.dirs.remove(hidden);
            }
        }
        for (name, sum) in &upper.files {
            if !name.starts_with(WHITEOUT) {
                lower.dirs.remove(name);
                lower.files.insert(name.clone(), *sum);
            }
        }
        for (name, (tree, meta)) in &upper.dirs {
            lower.files.remove(name);
            let below = lower.dirs.remove(name);
            let path = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}/{name}")
            };
            let merged = self.over(below, tree, *meta, &path)?;
            lower.dirs.insert(name.clone(), merged);
        }
        Ok(())
    }
}

fn open(store: &Staged, dir: Merged) -> Result<OpenDir> {
    Ok(match dir {
        Merged::Open(dir) => dir,
        Merged::Stored(tree, meta) => {
            let stored = store.read_tree(&tree)?;
            OpenDir {
                meta,
                files: stored.files,
                dirs: stored
                    .dirs
                    .into_iter()
                    .map(|(name, (tree, meta))| (name, Merged::Stored(tree, meta)))
                    .collect(),
            }
        }
    })
}

fn write(store: &Staged, dir: Merged) -> Result<(Checksum, Checksum)> {
    match dir {
        Merged::Stored(tree, meta) => Ok((tree, meta)),
        Merged::Open(dir) => {
            let mut tree = DirTree {
                files: dir.files,
                dirs: BTreeMap::new(),
            };
            for (name, below) in dir.dirs {
                tree.dirs.insert(name, write(store, below)?);
            }
            Ok((store.write_tree(&tree)?, dir.meta))
        }
    }
}

/// The files of a commit, read from the store: nothing on the host can be reached through it.
pub struct ImageTree {
    repo: Repo,
    root: (Checksum, Checksum),
    left_out: Vec<String>,
}

const LINK: gio::FileType = gio::FileType::SymbolicLink;

/// Extended attributes as people name them; in objects their names end in NUL.
fn names_of(xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    let name = |name: Vec<u8>| String::from_utf8(name).ok();
    xattrs
        .into_iter()
        .filter_map(|(key, value)| Some((name(key)?.trim_end_matches('\0').to_owned(), value)))
        .collect()
}

enum Found {
    File(Checksum),
    Dir(Checksum),
}

impl ImageTree {
    /// The files of `commit`.
    pub fn open(repo: &Repo, commit: &str) -> Result<Self> {
        Ok(Self {
            repo: repo.clone(),
            root: commit_root(repo, commit)?,
            left_out: strings(&commit_metadata(repo, commit)?, LEFT_OUT).unwrap_or_default(),
        })
    }

    fn find(&self, path: &str, follow: bool) -> Result<Option<Found>> {
        let parts = |path: &str| -> Vec<String> {
            path.split('/')
                .rev()
                .filter(|part| !matches!(*part, "" | "."))
                .map(str::to_owned)
                .collect()
        };
        let mut todo = parts(path);
        let mut done = vec![self.root];
        let mut followed = 0;
        while let Some(name) = todo.pop() {
            if name == ".." {
                if done.len() > 1 {
                    done.pop();
                }
                continue;
            }
            let here = done.last().map_or(self.root, |dir| *dir);
            let dir = read_dirtree(&self.repo, &here.0)?;
            if let Some(below) = dir.dirs.get(&name) {
                done.push(*below);
                continue;
            }
            let Some(sum) = dir.files.get(&name) else {
                return Ok(None);
            };
            match self.symlink_target(sum)? {
                Some(_) if !follow => return Ok(None),
                Some(target) => {
                    followed += 1;
                    if followed > MAX_LINKS_FOLLOWED {
                        return Ok(None);
                    }
                    if target.starts_with('/') {
                        done.truncate(1);
                    }
                    todo.extend(parts(&target));
                }
                None if todo.is_empty() => return Ok(Some(Found::File(*sum))),
                None => return Ok(None),
            }
        }
        let (_, meta) = done.last().map_or(self.root, |dir| *dir);
        Ok(Some(Found::Dir(meta)))
    }

    fn load(&self, sum: &Checksum) -> Result<(Option<gio::InputStream>, gio::FileInfo)> {
        let (stream, info, _) = self
            .repo
            .load_file(&hex(sum), NO_CANCEL)
            .context(|| format!("cannot read the object {}", hex(sum)))?;
        Ok((stream, info))
    }

    fn walk_below(&self, tree: &Checksum, above: &str, out: &mut Vec<Walked>) -> Result<()> {
        let tree = read_dirtree(&self.repo, tree)?;
        for (name, sum) in &tree.files {
            let (_, info, xattrs) = self
                .repo
                .load_file(&hex(sum), NO_CANCEL)
                .context(|| format!("cannot read the object {}", hex(sum)))?;
            let target = info.symlink_target().filter(|_| info.file_type() == LINK);
            out.push(Walked {
                path: join(above, name),
                node: match target {
                    Some(target) => Node::Link(target.to_string_lossy().into_owned()),
                    None => Node::File,
                },
                mode: info.attribute_uint32("unix::mode") & 0o7777,
                uid: info.attribute_uint32("unix::uid"),
                gid: info.attribute_uint32("unix::gid"),
                xattrs: names_of(xattrs.get::<Vec<(Vec<u8>, Vec<u8>)>>().unwrap_or_default()),
            });
        }
        for (name, (below, meta)) in &tree.dirs {
            let meta = read_dirmeta(&self.repo, meta)?;
            let path = join(above, name);
            out.push(Walked {
                path: path.clone(),
                node: Node::Dir,
                mode: meta.mode,
                uid: meta.uid,
                gid: meta.gid,
                xattrs: names_of(meta.xattrs),
            });
            self.walk_below(below, &path, out)?;
        }
        Ok(())
    }

    fn symlink_target(&self, sum: &Checksum) -> Result<Option<String>> {
        let (_, info) = self.load(sum)?;
        if info.file_type() != gio::FileType::SymbolicLink {
            return Ok(None);
        }
        Ok(info
            .symlink_target()
            .map(|target| target.to_string_lossy().into_owned()))
    }
}

impl Files for ImageTree {
    fn stat(&self, path: &str) -> Result<Option<FileStat>> {
        Ok(match self.find(path, true)? {
            None => None,
            Some(Found::Dir(meta)) => {
                let meta = read_dirmeta(&self.repo, &meta)?;
                Some(FileStat {
                    is_dir: true,
                    mode: meta.mode,
                    uid: meta.uid,
                    gid: meta.gid,
                })
            }
            Some(Found::File(sum)) => {
                let (_, info) = self.load(&sum)?;
                Some(FileStat {
                    is_dir: false,
                    mode: info.attribute_uint32("unix::mode") & 0o7777,
                    uid: info.attribute_uint32("unix::uid"),
                    gid: info.attribute_uint32("unix::gid"),
                })
            }
        })
    }

    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let sum = match self.find(path, true)? {
            None => return Ok(None),
            Some(Found::Dir(..)) => fail!(Kind::Invalid, "{path} in the image is a directory"),
            Some(Found::File(sum)) => sum,
        };
        let (stream, info) = self.load(&sum)?;
        let size = u64::try_from(info.size()).unwrap_or(u64::MAX);
        if size > limit {
            fail!(
                Kind::Invalid,
                "{path} in the image is larger than {limit} bytes"
            );
        }
        let Some(stream) = stream else {
            fail!(Kind::Invalid, "{path} in the image is not a regular file");
        };
        let mut content = vec![0; usize::try_from(size).unwrap_or(0)];
        let (n, error) = stream
            .read_all(&mut content, NO_CANCEL)
            .context(|| format!("cannot read {path}"))?;
        if let Some(error) = error {
            fail!(Kind::Failed, "cannot read {path}: {error}");
        }
        content.truncate(n);
        Ok(Some(content))
    }

    fn walk(&self, path: &str) -> Result<Vec<Walked>> {
        let mut at = self.root;
        let mut found = true;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            let Some(below) = read_dirtree(&self.repo, &at.0)?.dirs.get(part).copied() else {
                found = false;
                break;
            };
            at = below;
        }
        let mut out = Vec::new();
        if found {
            self.walk_below(&at.0, "", &mut out)?;
        }
        // They are said to be there, so that nobody thinks that they are not.
        let top = path.trim_matches('/');
        for left in &self.left_out {
            if let Some(rest) = left.strip_prefix(top) {
                out.push(Walked {
                    path: rest.trim_start_matches('/').to_owned(),
                    node: Node::Other,
                    mode: 0,
                    uid: 0,
                    gid: 0,
                    xattrs: Vec::new(),
                });
            }
        }
        Ok(out)
    }

    fn is_plain_dir(&self, path: &str) -> Result<bool> {
        Ok(matches!(self.find(path, false)?, Some(Found::Dir(..))))
    }
}
