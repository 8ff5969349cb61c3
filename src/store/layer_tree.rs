//! A layer's tree under construction: names in memory, contents in the repository.
//!
//! Paths are resolved inside the layer alone; nothing on the host can be reached through them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::Read;
use std::path::Path;

use super::objects::{Checksum, DirMeta, DirTree};
use super::tar::{Content, Entry, EntryKind, TarStream};
use super::tree::WHITEOUT;
use super::writers::{FileMeta, Lane, Staged};
use crate::error::{Error, Kind, Result};
use crate::fail;
use crate::selinux::{self, HOST_FILES, Labels};

/// So many of those that cannot be stored are named; one is reason enough to refuse the image.
const MAX_LEFT_OUT: usize = 100;

/// The file type bits of a directory.
const DIRECTORY: u32 = 0o040_000;

/// The same limit file systems have for one name.
const MAX_NAME_BYTES: usize = 255;
/// Deeper paths serve no image.
const MAX_DEPTH: usize = 512;
/// The same limit the kernel has for one path.
const MAX_LINKS_FOLLOWED: usize = 40;
/// More entries serve no image.
const MAX_ENTRIES: u64 = 20_000_000;
/// What the names of one layer may cost in memory, in bytes: [`NODE_BYTES`] for each component.
const MAX_NAMES_COST: usize = 2 << 30;
const NODE_BYTES: usize = 256;
/// Extended attributes of one entry, in bytes; Linux stops at 64 KiB for each value.
const MAX_XATTR_BYTES: usize = 128 * 1024;
/// Implied directories of one layer, in bytes of their paths.
const MAX_IMPLIED_BYTES: usize = 16 * 1024 * 1024;
const REGULAR: u32 = 0o100_000;

/// A directory of the layer under construction.
#[derive(Default)]
struct Dir {
    /// Nothing: implied by an entry below it.
    meta: Option<DirMeta>,
    entries: BTreeMap<String, Node>,
}

enum Node {
    Dir(Dir),
    /// A file that is being written, by its number.
    File(usize),
    Symlink(Checksum, String),
}

impl Node {
    /// The files below.
    fn files(&self, out: &mut Vec<usize>) {
        match self {
            Self::File(number) => out.push(*number),
            Self::Symlink(..) => {}
            Self::Dir(dir) => dir.entries.values().for_each(|node| node.files(out)),
        }
    }
}

impl Dir {
    /// List the implied directories with the bytes of their paths. False if they are too many.
    fn list_implied(&self, path: &str, out: &mut Vec<String>, bytes: &mut usize) -> bool {
        if self.meta.is_none() {
            *bytes += path.len();
            if *bytes > MAX_IMPLIED_BYTES {
                return false;
            }
            out.push(path.to_owned());
        }
        self.entries.iter().all(|(name, node)| match node {
            Node::Dir(dir) => dir.list_implied(&join(path, name), out, bytes),
            _ => true,
        })
    }
}

/// A path below the root, without a leading slash.
pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}/{name}")
    }
}

/// Takes in a layer's entries, writes their objects, and keeps the names until the end.
pub struct Builder<'a> {
    store: Staged,
    labels: Option<&'a Labels>,
    lane: Lane,
    root: Dir,
    /// Directories that have some.
    whiteouts: Option<BTreeSet<String>>,
    whiteout_bytes: usize,
    skipped: u64,
    /// Hard links to these are left out as well.
    skipped_paths: HashSet<Vec<u8>>,
    left_out: Vec<String>,
    names_cost: usize,
    logical: u64,
    max_bytes: u64,
    superseded: Vec<usize>,
}

/// A finished layer tree.
pub struct Built {
    /// Its root directory.
    pub tree: Checksum,
    /// Metadata of its root directory.
    pub meta: Checksum,
    /// Directories the archive implies but does not declare.
    pub implied: Vec<String>,
    /// Directories that have whiteouts; nothing if there are too many.
    pub whiteouts: Option<BTreeSet<String>>,
    /// Entries that were left out.
    pub skipped: u64,
    /// Those of them that were for the host.
    pub left_out: Vec<String>,
    /// Its files, by number.
    pub files: Vec<Checksum>,
    /// Those of them that a later entry of the archive took the place of.
    pub superseded: Vec<Checksum>,
}

impl<'a> Builder<'a> {
    /// An empty layer; its files are written through `lane` and may have `max_bytes` bytes.
    pub fn new(store: Staged, labels: Option<&'a Labels>, lane: Lane, max_bytes: u64) -> Self {
        Self {
            store,
            labels,
            lane,
            root: Dir::default(),
            whiteouts: Some(BTreeSet::new()),
            whiteout_bytes: 0,
            skipped: 0,
            skipped_paths: HashSet::new(),
            left_out: Vec::new(),
            names_cost: 0,
            logical: 0,
            max_bytes,
            superseded: Vec::new(),
        }
    }

    /// Wait for the files and write the directories.
    pub fn finish(self) -> Result<Built> {
        let files = self.lane.finish()?;
        let mut directories = Directories {
            store: &self.store,
            labels: self.labels,
            files: &files,
            metas: HashMap::new(),
        };
        let (tree, meta) = directories.write(&self.root, "")?;
        let (mut implied, mut bytes) = (Vec::new(), 0);
        if !self.root.list_implied("", &mut implied, &mut bytes) {
            fail!(
                Kind::Invalid,
                "the layer has too many directories without an entry of their own"
            );
        }
        Ok(Built {
            tree,
            meta,
            implied,
            whiteouts: self.whiteouts,
            skipped: self.skipped,
            left_out: self.left_out,
            superseded: self.superseded.iter().map(|file| files[*file]).collect(),
            files,
        })
    }

    /// Take in the whole archive, to the true end of its stream.
    pub fn read<R: Read>(&mut self, stream: &mut TarStream<R>) -> Result<()> {
        let mut entries = 0u64;
        while let Some(entry) = stream.next_entry()? {
            entries += 1;
            if entries > MAX_ENTRIES {
                fail!(Kind::Invalid, "more than {MAX_ENTRIES} entries");
            }
            let stored = self.add(&entry, stream.content()).map_err(|error| {
                let path = String::from_utf8_lossy(&entry.path).into_owned();
                error.within(format_args!("entry \"{path}\""))
            })?;
            if let (Some(number), EntryKind::File { size }) = (stored, &entry.kind) {
                stream.note_stored(number, *size);
            }
        }
        stream.drain().map(|_| ())
    }

    /// Take in one entry; the number of its file, if it is one.
    fn add<R: Read>(&mut self, entry: &Entry, content: Content<'_, R>) -> Result<Option<usize>> {
        let xattr_bytes: usize = entry.xattrs.iter().map(|(k, v)| k.len() + v.len()).sum();
        if xattr_bytes > MAX_XATTR_BYTES {
            fail!(
                Kind::Invalid,
                "more than {MAX_XATTR_BYTES} bytes of extended attributes"
            );
        }
        let Some(path) = split(&entry.path)? else {
            self.skip(entry, "its name is not UTF-8");
            return Ok(None);
        };
        self.names_cost += entry.path.len() + NODE_BYTES * path.len();
        if self.names_cost > MAX_NAMES_COST {
            fail!(Kind::Invalid, "the layer has too many names");
        }
        let Some((name, parents)) = path.split_last() else {
            if entry.kind != EntryKind::Directory {
                fail!(Kind::Invalid, "the root of an image must be a directory");
            }
            self.root.meta = Some(self.dir_meta(entry, ""));
            return Ok(None);
        };
        if name == ".wh." {
            fail!(Kind::Invalid, "a whiteout of nothing");
        }
        let parents = self.resolve(parents)?;
        if name.starts_with(WHITEOUT) {
            self.note_whiteout(parents.join("/"));
        }
        let full = join(&parents.join("/"), name);
        let node = match &entry.kind {
            EntryKind::Special(_) => {
                self.skip(entry, "device nodes and fifos cannot be stored");
                return Ok(None);
            }
            EntryKind::Directory => {
                let meta = self.dir_meta(entry, &full);
                let parent = self.open_dir(&parents);
                if let Some(Node::Dir(dir)) = parent.entries.get_mut(name) {
                    dir.meta = Some(meta);
                } else {
                    let fresh = Node::Dir(Dir {
                        meta: Some(meta),
                        entries: BTreeMap::new(),
                    });
                    if let Some(old) = parent.entries.insert(name.clone(), fresh) {
                        old.files(&mut self.superseded);
                    }
                }
                return Ok(None);
            }
            EntryKind::Symlink(target) => {
                if target.contains(&0) {
                    fail!(Kind::Invalid, "a link target with a NUL byte");
                }
                let Ok(target) = std::str::from_utf8(target) else {
                    self.skip(entry, "its target is not UTF-8");
                    return Ok(None);
                };
                let meta = FileMeta {
                    uid: entry.uid,
                    gid: entry.gid,
                    mode: 0o120_777,
                    xattrs: self.xattrs(entry, &full, 0o120_000),
                };
                Node::Symlink(self.store.write_symlink(&meta, target)?, target.to_owned())
            }
            EntryKind::HardLink(target) => {
                if self.skipped_paths.contains(normal(target)) {
                    self.skip(entry, "what it links to was left out");
                    return Ok(None);
                }
                let Some(found) = self.find_link_target(target)? else {
                    fail!(
                        Kind::Invalid,
                        "a hard link to \"{}\", which is not a file in this layer",
                        String::from_utf8_lossy(target)
                    );
                };
                found
            }
            EntryKind::File { size } => Node::File(self.write_file(entry, &full, *size, content)?),
        };
        let stored = match (&entry.kind, &node) {
            (EntryKind::File { .. }, Node::File(number)) => Some(*number),
            _ => None,
        };
        if let Some(old) = self.open_dir(&parents).entries.insert(name.clone(), node) {
            old.files(&mut self.superseded);
        }
        Ok(stored)
    }

    /// Too many are as good as unknown; a short path may lead to a long one.
    fn note_whiteout(&mut self, directory: String) {
        let bytes = directory.len();
        if let Some(known) = &mut self.whiteouts
            && known.insert(directory)
        {
            self.whiteout_bytes += bytes;
            if self.whiteout_bytes > MAX_IMPLIED_BYTES {
                self.whiteouts = None;
            }
        }
    }

    fn skip(&mut self, entry: &Entry, why: &str) {
        tracing::debug!(path = %String::from_utf8_lossy(&entry.path), why, "left out");
        self.skipped += 1;
        let path = String::from_utf8_lossy(normal(&entry.path));
        if Path::new(path.as_ref()).starts_with(HOST_FILES) && self.left_out.len() < MAX_LEFT_OUT {
            self.left_out.push(path.into_owned());
        }
        self.skipped_paths.insert(normal(&entry.path).to_vec());
    }

    fn write_file<R: Read>(
        &mut self,
        entry: &Entry,
        path: &str,
        size: u64,
        mut content: Content<'_, R>,
    ) -> Result<usize> {
        // Holes count: a sparse file is stored with its zeros.
        self.logical = self.logical.saturating_add(size);
        if self.logical > self.max_bytes {
            fail!(
                Kind::Invalid,
                "the files of the layer have more than {} bytes (max_layer_bytes in the configuration)",
                self.max_bytes
            );
        }
        let mode = REGULAR | entry.mode;
        let meta = FileMeta {
            uid: entry.uid,
            gid: entry.gid,
            mode,
            xattrs: self.xattrs(entry, path, mode),
        };
        self.lane.write(meta, size, &mut content)
    }

    /// Extended attributes as libostree hashes them: sorted, names with their NUL.
    fn xattrs(&self, entry: &Entry, path: &str, mode: u32) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut list: Vec<(Vec<u8>, Vec<u8>)> = entry
            .xattrs
            .iter()
            .filter(|(name, _)| is_kept_xattr(name))
            .map(|(name, value)| ([name, &b"\0"[..]].concat(), value.clone()))
            .collect();
        list.extend(label(self.labels, path, mode));
        list.sort();
        list.dedup_by(|a, b| a.0 == b.0);
        list
    }

    fn dir_meta(&self, entry: &Entry, path: &str) -> DirMeta {
        DirMeta {
            uid: entry.uid,
            gid: entry.gid,
            mode: entry.mode,
            xattrs: self.xattrs(entry, path, DIRECTORY),
        }
    }

    /// Where a directory path leads inside this layer: its own symbolic links are followed, with
    /// the layer's root as `/`, as an extraction in a chroot would.
    fn resolve(&self, path: &[String]) -> Result<Vec<String>> {
        let mut todo: Vec<String> = path.iter().rev().cloned().collect();
        let mut done: Vec<String> = Vec::with_capacity(path.len());
        // The directories along `done`, as far as there are any.
        let mut dirs: Vec<Option<&Dir>> = vec![Some(&self.root)];
        let mut followed = 0;
        while let Some(name) = todo.pop() {
            if name == ".." {
                if done.pop().is_some() {
                    dirs.pop();
                }
                continue;
            }
            if name.len() > MAX_NAME_BYTES || todo.len() + done.len() > MAX_DEPTH {
                fail!(
                    Kind::Invalid,
                    "deeper than {MAX_DEPTH} directories, or a name longer than {MAX_NAME_BYTES} bytes"
                );
            }
            let here = dirs.last().copied().flatten();
            let target = match here.and_then(|dir| dir.entries.get(&name)) {
                Some(Node::Symlink(_, target)) => target,
                found => {
                    dirs.push(match found {
                        Some(Node::Dir(dir)) => Some(dir),
                        _ => None,
                    });
                    done.push(name);
                    continue;
                }
            };
            followed += 1;
            if followed > MAX_LINKS_FOLLOWED {
                fail!(
                    Kind::Invalid,
                    "more than {MAX_LINKS_FOLLOWED} symbolic links on the way"
                );
            }
            if target.starts_with('/') {
                done.clear();
                dirs.truncate(1);
            }
            let parts = target.split('/').rev();
            todo.extend(
                parts
                    .filter(|part| !matches!(*part, "" | "."))
                    .map(str::to_owned),
            );
        }
        Ok(done)
    }

    fn lookup(&self, path: &[String]) -> Option<&Dir> {
        let mut dir = &self.root;
        for name in path {
            match dir.entries.get(name)? {
                Node::Dir(next) => dir = next,
                _ => return None,
            }
        }
        Some(dir)
    }

    /// The directory at a resolved path, made on the way; a file in the way gives way.
    fn open_dir(&mut self, path: &[String]) -> &mut Dir {
        let mut dir = &mut self.root;
        for name in path {
            let node = dir
                .entries
                .entry(name.clone())
                .or_insert_with(|| Node::Dir(Dir::default()));
            if !matches!(node, Node::Dir(_)) {
                node.files(&mut self.superseded);
                *node = Node::Dir(Dir::default());
            }
            let Node::Dir(next) = node else {
                unreachable!("it was just made a directory")
            };
            dir = next;
        }
        dir
    }

    fn find_link_target(&self, target: &[u8]) -> Result<Option<Node>> {
        let Some(path) = split(target)? else {
            return Ok(None);
        };
        let Some((name, parents)) = path.split_last() else {
            return Ok(None);
        };
        let parents = self.resolve(parents)?;
        Ok(
            match self.lookup(&parents).and_then(|dir| dir.entries.get(name)) {
                Some(Node::File(number)) => Some(Node::File(*number)),
                Some(Node::Symlink(sum, target)) => Some(Node::Symlink(*sum, target.clone())),
                _ => None,
            },
        )
    }
}

/// Writes directories.
struct Directories<'a> {
    store: &'a Staged,
    labels: Option<&'a Labels>,
    files: &'a [Checksum],
    metas: HashMap<DirMeta, Checksum>,
}

impl Directories<'_> {
    fn write(&mut self, dir: &Dir, path: &str) -> Result<(Checksum, Checksum)> {
        let mut tree = DirTree::default();
        for (name, node) in &dir.entries {
            match node {
                Node::File(number) => {
                    tree.files.insert(name.clone(), self.files[*number]);
                }
                Node::Symlink(sum, _) => {
                    tree.files.insert(name.clone(), *sum);
                }
                Node::Dir(below) => {
                    let written = self.write(below, &format!("{path}/{name}"))?;
                    tree.dirs.insert(name.clone(), written);
                }
            }
        }
        let meta = match &dir.meta {
            Some(meta) => meta.clone(),
            // Also what the archive only implies has a label.
            None => DirMeta {
                xattrs: label(self.labels, path, DIRECTORY),
                ..DirMeta::default()
            },
        };
        let meta = if let Some(sum) = self.metas.get(&meta) {
            *sum
        } else {
            let sum = self.store.write_meta(&meta)?;
            self.metas.insert(meta, sum);
            sum
        };
        Ok((self.store.write_tree(&tree)?, meta))
    }
}

/// The components of a path in an archive; nothing if a name is not UTF-8.
fn split(path: &[u8]) -> Result<Option<Vec<String>>> {
    if path.contains(&0) {
        fail!(Kind::Invalid, "a path with a NUL byte");
    }
    let Ok(path) = std::str::from_utf8(path) else {
        return Ok(None);
    };
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                return Err(Error::new(
                    Kind::Invalid,
                    "a path with \"..\" could leave the image",
                ));
            }
            part if part.len() > MAX_NAME_BYTES => {
                fail!(Kind::Invalid, "a name longer than {MAX_NAME_BYTES} bytes")
            }
            part => parts.push(part.to_owned()),
        }
    }
    Ok(Some(parts))
}

/// A path as written, without the dots and slashes that mean nothing at its ends.
fn normal(path: &[u8]) -> &[u8] {
    let path = path.strip_prefix(b"./").unwrap_or(path);
    let start = path.iter().take_while(|byte| **byte == b'/').count();
    &path[start..]
}

/// The label of a path as an extended attribute, if there are labels.
fn label(labels: Option<&Labels>, path: &str, mode: u32) -> Vec<(Vec<u8>, Vec<u8>)> {
    labels
        .and_then(|labels| labels.look_up(path, mode))
        .map(|label| ([selinux::ATTRIBUTE.as_bytes(), b"\0"].concat(), label))
        .into_iter()
        .collect()
}

/// Which extended attributes of an image are kept. Labels come from the host's policy, and
/// overlayfs must not be told stories by an image that becomes its lower layer.
pub fn is_kept_xattr(name: &[u8]) -> bool {
    if name.contains(&0) {
        return false;
    }
    name == b"security.capability"
        || name.starts_with(b"system.posix_acl_")
        || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_split_and_escapes_refused() {
        assert_eq!(split(b"./a//b/").unwrap().unwrap(), ["a", "b"]);
        assert_eq!(split(b"/a").unwrap().unwrap(), ["a"]);
        assert!(split(b"./").unwrap().unwrap().is_empty());
        assert!(split(b"a/../b").is_err());
        assert!(split(b"..").is_err());
        assert!(split(b"a\0b").is_err());
        assert!(split(&[b'a'; 256]).is_err());
        assert_eq!(split(b"\xff").unwrap(), None);
    }

    #[test]
    fn only_harmless_attributes_are_kept() {
        for (name, kept) in [
            ("user.mime", true),
            ("security.capability", true),
            ("system.posix_acl_access", true),
            ("security.selinux", false),
            ("trusted.overlay.opaque", false),
            ("user.overlay.opaque", false),
            ("security.ima", false),
        ] {
            assert_eq!(is_kept_xattr(name.as_bytes()), kept, "{name}");
        }
    }
}
