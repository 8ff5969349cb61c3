//! What a checkout by an ordinary user cannot show: other owners than root, set-id bits, capabilities.

use serde::{Deserialize, Serialize};

use super::Store;
use super::objects::{Checksum, NO_CANCEL, commit_root, read_dirmeta, read_dirtree};
use crate::error::{Context as _, Result};
use crate::image::digest::hex;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Special {
    /// A directory.
    Dir,
    /// A regular file.
    File,
    /// A symbolic link.
    Link,
}

/// An entry that a user's checkout does not show as it is, or a directory above one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Relative to the root.
    pub path: String,
    /// What it is.
    pub kind: Special,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
    /// Capabilities of a file, as its extended attribute.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub xattrs: Vec<(String, Vec<u8>)>,
}

const SET_ID: u32 = 0o6000;
const CAPABILITY: &str = "security.capability";

impl Entry {
    /// True unless it is only there for what is below it.
    pub fn is_special(&self) -> bool {
        let bits = self.kind == Special::File && self.mode & SET_ID != 0;
        self.uid != 0 || self.gid != 0 || bits || !self.xattrs.is_empty()
    }
}

impl Store {
    /// The special entries of a commit's tree, with all directories above them before them, and the
    /// checksum of the tree: equal trees have equal ones, whatever their commits say.
    pub fn special_entries(&self, commit: &str) -> Result<(String, Vec<Entry>)> {
        let (tree, _) = commit_root(&self.repo, commit)?;
        let mut out = Vec::new();
        self.add_special(&tree, "", &mut out)?;
        Ok((hex(&tree), out))
    }

    fn add_special(&self, tree: &Checksum, above: &str, out: &mut Vec<Entry>) -> Result<()> {
        let tree = read_dirtree(&self.repo, tree)?;
        for (name, sum) in &tree.files {
            let entry = self.file_entry(super::layer_tree::join(above, name), sum)?;
            if entry.is_special() {
                out.push(entry);
            }
        }
        for (name, (below, meta)) in &tree.dirs {
            let meta = read_dirmeta(&self.repo, meta)?;
            let entry = Entry {
                path: super::layer_tree::join(above, name),
                kind: Special::Dir,
                uid: meta.uid,
                gid: meta.gid,
                mode: meta.mode,
                xattrs: Vec::new(),
            };
            let (path, special) = (entry.path.clone(), entry.is_special());
            let before = out.len();
            out.push(entry);
            self.add_special(below, &path, out)?;
            if !special && out.len() == before + 1 {
                out.pop();
            }
        }
        Ok(())
    }

    fn file_entry(&self, path: String, sum: &Checksum) -> Result<Entry> {
        let (_, info, xattrs) = self
            .repo
            .load_file(&hex(sum), NO_CANCEL)
            .context(|| format!("cannot read the object {}", hex(sum)))?;
        let is_link = info.file_type() == gio::FileType::SymbolicLink;
        let xattrs = xattrs
            .get::<Vec<(Vec<u8>, Vec<u8>)>>()
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(name, value)| {
                let name = String::from_utf8(name).ok()?;
                Some((name.trim_end_matches('\0').to_owned(), value))
            })
            .filter(|(name, _)| name == CAPABILITY && !is_link)
            .collect();
        Ok(Entry {
            path,
            kind: if is_link {
                Special::Link
            } else {
                Special::File
            },
            uid: info.attribute_uint32("unix::uid"),
            gid: info.attribute_uint32("unix::gid"),
            mode: info.attribute_uint32("unix::mode") & 0o7777,
            xattrs,
        })
    }
}
