//! What a checkout by an ordinary user cannot show: other owners than root, set-id bits, capabilities.

use serde::{Deserialize, Serialize};

use super::objects::commit_root;
use super::{ImageTree, Store};
use crate::error::Result;
use crate::image::digest::hex;
use crate::safefs::{Files as _, Node, Walked};

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
    fn new(walked: Walked) -> Option<Self> {
        let kind = match walked.node {
            Node::Dir => Special::Dir,
            Node::File => Special::File,
            Node::Link(_) => Special::Link,
            Node::Other => return None,
        };
        let mut xattrs = walked.xattrs;
        xattrs.retain(|(name, _)| name == CAPABILITY && kind == Special::File);
        Some(Self {
            path: walked.path,
            kind,
            uid: walked.uid,
            gid: walked.gid,
            mode: walked.mode,
            xattrs,
        })
    }

    /// True unless it is only there for what is below it.
    pub fn is_special(&self) -> bool {
        let bits = self.kind == Special::File && self.mode & SET_ID != 0;
        self.uid != 0 || self.gid != 0 || bits || !self.xattrs.is_empty()
    }
}

impl Store {
    /// The checksum of a commit's tree: equal trees have equal ones, whatever their commits say.
    pub fn tree_of(&self, commit: &str) -> Result<String> {
        Ok(hex(&commit_root(&self.repo, commit)?.0))
    }

    /// The special entries of a commit's tree, with all directories above them before them.
    pub fn special_entries(&self, commit: &str) -> Result<Vec<Entry>> {
        let mut out: Vec<Entry> = Vec::new();
        // Directories above the entry at hand that are not in the list yet.
        let mut above: Vec<Entry> = Vec::new();
        for walked in ImageTree::open(&self.repo, commit)?.walk("")? {
            let Some(entry) = Entry::new(walked) else {
                continue;
            };
            above.retain(|dir| {
                let rest = entry.path.strip_prefix(&dir.path);
                rest.is_some_and(|rest| rest.starts_with('/'))
            });
            if entry.is_special() {
                out.append(&mut above);
                out.push(entry);
            } else if entry.kind == Special::Dir {
                above.push(entry);
            }
        }
        Ok(out)
    }
}
