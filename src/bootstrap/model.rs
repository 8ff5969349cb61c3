//! A tree of names, as a file system has it: what is where, which links lead to what, and what a layer has brought.
//!
//! Paths are resolved as the kernel does with the tree as root: links are followed and never lead out.

use std::collections::BTreeMap;

use crate::error::{Kind, Result};
use crate::fail;

/// As many as the kernel follows. Source: `path_resolution(7)`.
const MAX_LINKS: u32 = 40;

/// A node of the tree.
pub type Id = usize;

/// The root.
pub const ROOT: Id = 0;

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory, and what is in it.
    Dir(BTreeMap<Vec<u8>, Id>),
    /// A symbolic link.
    Link(Vec<u8>),
    /// A file or something that is like one.
    Other,
}

#[derive(Debug)]
struct Known {
    node: Node,
    links: u32,
    /// The layer that has brought or confirmed it.
    layer: u32,
    /// Names of extended attributes.
    xattrs: Vec<Vec<u8>>,
}

/// A directory that was found, and its path without links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Which one.
    pub id: Id,
    /// Where; nothing for the root, else with slashes between.
    pub path: Vec<u8>,
}

/// What has to be done to take something away, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// A name of a file.
    File(Vec<u8>),
    /// A directory that is empty by then.
    Dir(Vec<u8>),
}

/// The tree.
#[derive(Debug)]
pub struct Model {
    nodes: Vec<Known>,
    layer: u32,
}

impl Model {
    /// A root with one directory in it.
    pub fn with(name: &[u8]) -> Self {
        let known = |node| Known {
            node,
            links: 1,
            layer: 0,
            xattrs: Vec::new(),
        };
        let names = BTreeMap::from([(name.to_vec(), 1)]);
        Self {
            nodes: vec![known(Node::Dir(names)), known(Node::Dir(BTreeMap::new()))],
            layer: 1,
        }
    }

    /// What comes now is another layer's.
    pub fn next_layer(&mut self) {
        self.layer += 1;
    }

    /// What a node is.
    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[id].node
    }

    /// Names that lead to it.
    pub fn links(&self, id: Id) -> u32 {
        self.nodes[id].links
    }

    /// The layer at hand has it.
    pub fn confirm(&mut self, id: Id) {
        self.nodes[id].layer = self.layer;
    }

    fn is_brought(&self, id: Id) -> bool {
        self.nodes[id].layer == self.layer
    }

    /// Note what attributes it has; those that it had.
    pub fn set_xattrs(&mut self, id: Id, names: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        std::mem::replace(&mut self.nodes[id].xattrs, names)
    }

    /// What has a name in a directory.
    pub fn child(&self, directory: Id, name: &[u8]) -> Option<Id> {
        match self.node(directory) {
            Node::Dir(names) => names.get(name).copied(),
            _ => None,
        }
    }

    /// Put something new there, where nothing is.
    pub fn add(&mut self, directory: Id, name: &[u8], node: Node) -> Id {
        let id = self.nodes.len();
        self.nodes.push(Known {
            node,
            links: 0,
            layer: self.layer,
            xattrs: Vec::new(),
        });
        self.link(directory, name, id);
        id
    }

    /// Have one more name lead to it.
    pub fn link(&mut self, directory: Id, name: &[u8], id: Id) {
        if let Node::Dir(names) = &mut self.nodes[directory].node {
            names.insert(name.to_vec(), id);
            self.nodes[id].links += 1;
            self.confirm(id);
        }
    }

    /// The directory at `path`, if there is one.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for links that lead in circles.
    pub fn find_dir(&self, path: &[u8]) -> Result<Option<Found>> {
        // Where we are: all directories above, so that `..` is known.
        let mut here: Vec<(Vec<u8>, Id)> = Vec::new();
        let mut left: Vec<Vec<u8>> = split(path).rev().map(<[u8]>::to_vec).collect();
        let mut followed = 0;
        while let Some(part) = left.pop() {
            if part == b".." {
                here.pop();
                continue;
            }
            let current = here.last().map_or(ROOT, |(_, id)| *id);
            let Some(next) = self.child(current, &part) else {
                return Ok(None);
            };
            match self.node(next) {
                Node::Dir(_) => here.push((part, next)),
                Node::Link(target) => {
                    followed += 1;
                    if followed > MAX_LINKS {
                        fail!(
                            Kind::Invalid,
                            "\"{}\" leads through too many links",
                            String::from_utf8_lossy(path).escape_debug()
                        );
                    }
                    if target.starts_with(b"/") {
                        here.clear();
                    }
                    left.extend(split(target).rev().map(<[u8]>::to_vec));
                }
                Node::Other => return Ok(None),
            }
        }
        let names: Vec<&[u8]> = here.iter().map(|(name, _)| name.as_slice()).collect();
        Ok(Some(Found {
            id: here.last().map_or(ROOT, |(_, id)| *id),
            path: names.join(&b'/'),
        }))
    }

    /// Take a name away, and all below it.
    pub fn remove(&mut self, directory: &Found, name: &[u8]) -> Vec<Removal> {
        let mut out = Vec::new();
        if let Some(id) = self.child(directory.id, name) {
            self.empty(id, &join(&directory.path, name), false, &mut out);
            self.unlink(directory, name, &mut out);
        }
        out
    }

    /// The same of what layers below have: what this one has brought stays, with the directories above it.
    pub fn white_out(&mut self, directory: &Found, name: &[u8]) -> Vec<Removal> {
        let mut out = Vec::new();
        if let Some(id) = self.child(directory.id, name)
            && self.empty(id, &join(&directory.path, name), true, &mut out)
            && !self.is_brought(id)
        {
            self.unlink(directory, name, &mut out);
        }
        out
    }

    /// The same of all in a directory.
    pub fn make_opaque(&mut self, directory: &Found) -> Vec<Removal> {
        let mut out = Vec::new();
        self.empty(directory.id, &directory.path, true, &mut out);
        out
    }

    /// Take away what is in a directory, deepest first; whether nothing is left. Its depth is that of a path, which
    /// is limited.
    fn empty(&mut self, id: Id, path: &[u8], keeps: bool, out: &mut Vec<Removal>) -> bool {
        let names: Vec<(Vec<u8>, Id)> = match self.node(id) {
            Node::Dir(names) => names.iter().map(|(name, id)| (name.clone(), *id)).collect(),
            _ => return true,
        };
        let found = Found {
            id,
            path: path.to_vec(),
        };
        let mut is_empty = true;
        for (name, child) in names {
            let cleared = self.empty(child, &join(path, &name), keeps, out);
            if cleared && !(keeps && self.is_brought(child)) {
                self.unlink(&found, &name, out);
            } else {
                is_empty = false;
            }
        }
        is_empty
    }

    fn unlink(&mut self, directory: &Found, name: &[u8], out: &mut Vec<Removal>) {
        let Node::Dir(names) = &mut self.nodes[directory.id].node else {
            return;
        };
        let Some(id) = names.remove(name) else {
            return;
        };
        self.nodes[id].links -= 1;
        let path = join(&directory.path, name);
        out.push(match self.node(id) {
            Node::Dir(_) => Removal::Dir(path),
            _ => Removal::File(path),
        });
    }
}

fn split(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    let parts = path.split(|byte| *byte == b'/');
    parts.filter(|part| !matches!(*part, b"" | b"."))
}

/// A path one further.
pub fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() {
        return name.to_vec();
    }
    [path, name].join(&b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> Found {
        Found {
            id: ROOT,
            path: Vec::new(),
        }
    }

    fn dir() -> Node {
        Node::Dir(BTreeMap::new())
    }

    #[test]
    fn links_are_followed_and_never_lead_out() {
        let mut model = Model::with(b"lost+found");
        let usr = model.add(ROOT, b"usr", dir());
        let bin = model.add(usr, b"bin", dir());
        for (name, target) in [
            ("bin", "usr/bin"),
            ("absolute", "/usr/bin"),
            ("up", "../../../usr"),
            ("nowhere", "missing"),
            ("loop", "loop"),
        ] {
            model.add(ROOT, name.as_bytes(), Node::Link(target.into()));
        }
        let find = |path: &str| model.find_dir(path.as_bytes());
        for path in ["bin", "absolute", "up/bin", "usr/./bin/", "../usr/bin"] {
            let found = find(path).unwrap().unwrap();
            assert_eq!((found.id, found.path.as_slice()), (bin, &b"usr/bin"[..]));
        }
        assert_eq!(find("nowhere").unwrap(), None);
        assert_eq!(find("bin/x").unwrap(), None);
        assert!(find("loop").is_err());
        assert_eq!(find("").unwrap().unwrap().id, ROOT);
    }

    #[test]
    fn whiteouts_spare_what_their_own_layer_brings() {
        let mut model = Model::with(b"lost+found");
        let a = model.add(ROOT, b"a", dir());
        let b = model.add(a, b"b", dir());
        let file = model.add(b, b"old", Node::Other);
        model.link(ROOT, b"again", file);
        model.next_layer();
        model.add(b, b"new", Node::Other);
        let found = model.find_dir(b"a").unwrap().unwrap();
        assert_eq!(
            model.make_opaque(&found),
            [Removal::File(b"a/b/old".to_vec())]
        );
        assert_eq!(model.links(file), 1);
        // Again, and nothing more goes; by another layer all of it does.
        assert_eq!(model.white_out(&root(), b"a"), []);
        model.next_layer();
        assert_eq!(
            model.white_out(&root(), b"a"),
            [
                Removal::File(b"a/b/new".to_vec()),
                Removal::Dir(b"a/b".to_vec()),
                Removal::Dir(b"a".to_vec())
            ]
        );
        assert_eq!(model.child(ROOT, b"a"), None);
        assert_eq!(model.child(ROOT, b"again"), Some(file));
    }
}
