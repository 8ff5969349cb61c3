//! A tree as hard links to the store, several directories at a time.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::{Arc, Condvar, Mutex};

use camino::{Utf8Path, Utf8PathBuf};
use ostree::Repo;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, fchmod, fchown, lgetxattr, linkat, mkdirat, openat,
    symlinkat,
};
use rustix::io::Errno;

use super::objects::{Checksum, DirMeta, read_dirmeta, read_dirtree};
use super::writers::{
    FILE, OSTREE_META, lock, object_path, reset_times, set_xattrs, threads, wait,
};
use crate::error::{Context as _, Error, Result};
use crate::fail;

/// Linux has no longer ones.
const MAX_ATTRIBUTES: usize = 64 * 1024;

/// What a repository keeps of files, and so what a checkout of its has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Files as they are.
    Bare,
    /// Owners and modes in an attribute, links as files: a checkout has one owner, and links.
    BareUser,
}

/// A directory that is there and has to be filled.
struct Todo {
    above: Arc<File>,
    name: String,
    tree: Checksum,
    meta: Checksum,
}

#[derive(Default)]
struct Queue {
    todo: Vec<Todo>,
    /// Directories that wait or are being filled.
    pending: usize,
    outcome: Outcome,
}

#[derive(Default)]
enum Outcome {
    #[default]
    Good,
    /// A file cannot be linked, as when it has as many links as its file system can count.
    Full,
    Failed(Error),
}

struct Checkout {
    kind: Kind,
    objects: File,
    path: Utf8PathBuf,
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// Check out a tree into the new directory `name` of `parent`. False if it cannot be done with links alone;
/// then a part of it is there.
///
/// Owners, modes, attributes and times are those libostree gives.
pub fn check_out(
    repo: &Repo,
    path: &Utf8Path,
    kind: Kind,
    (tree, meta): (Checksum, Checksum),
    parent: &File,
    name: &str,
) -> Result<bool> {
    let objects = path.join("objects");
    let checkout = Checkout {
        kind,
        objects: File::open(&objects).context(|| format!("cannot open {objects}"))?,
        path: objects,
        queue: Mutex::default(),
        changed: Condvar::new(),
    };
    let above = Arc::new(parent.try_clone().context(failed)?);
    mkdirat(&above, name, Mode::from(0o700)).context(failed)?;
    checkout.push(vec![Todo {
        above,
        name: name.to_owned(),
        tree,
        meta,
    }]);
    std::thread::scope(|scope| {
        for _ in 1..threads() {
            let (repo, checkout) = (repo.clone(), &checkout);
            scope.spawn(move || checkout.work(&repo));
        }
        checkout.work(repo);
    });
    let outcome = std::mem::take(&mut lock(&checkout.queue).outcome);
    match outcome {
        Outcome::Good => Ok(true),
        Outcome::Full => Ok(false),
        Outcome::Failed(error) => Err(error),
    }
}

fn failed() -> String {
    "cannot check out".into()
}

impl Checkout {
    fn push(&self, more: Vec<Todo>) {
        let mut queue = lock(&self.queue);
        queue.pending += more.len();
        queue.todo.extend(more);
        drop(queue);
        self.changed.notify_all();
    }

    /// Fill one directory after another until all are.
    fn work(&self, repo: &Repo) {
        let mut metas = HashMap::new();
        loop {
            let mut queue = lock(&self.queue);
            let todo = loop {
                if queue.pending == 0 || !matches!(queue.outcome, Outcome::Good) {
                    return;
                }
                if let Some(todo) = queue.todo.pop() {
                    break todo;
                }
                queue = wait(&self.changed, queue);
            };
            drop(queue);
            let filled = self.fill(repo, &todo, &mut metas);
            let mut queue = lock(&self.queue);
            queue.pending -= 1;
            match filled {
                Ok(outcome @ Outcome::Full) => queue.outcome = outcome,
                Ok(_) => {}
                Err(error) => {
                    let error = error.within(format_args!("the directory {}", todo.name));
                    queue.outcome = Outcome::Failed(error);
                }
            }
            let is_over = queue.pending == 0 || !matches!(queue.outcome, Outcome::Good);
            drop(queue);
            if is_over {
                self.changed.notify_all();
            }
        }
    }

    fn fill(
        &self,
        repo: &Repo,
        todo: &Todo,
        metas: &mut HashMap<Checksum, DirMeta>,
    ) -> Result<Outcome> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let here = openat(&*todo.above, todo.name.as_str(), flags, Mode::empty());
        let here = Arc::new(File::from(here.context(failed)?));
        let tree = read_dirtree(repo, &todo.tree)?;
        for (name, file) in &tree.files {
            check_name(name)?;
            let object = object_path(file, FILE);
            if self.kind == Kind::BareUser && self.is_link(&object)? {
                self.copy_link(&object, &here, name)?;
                continue;
            }
            match linkat(
                &self.objects,
                object,
                &*here,
                name.as_str(),
                AtFlags::empty(),
            ) {
                Ok(()) => {}
                // Also across mounts of one file system, and where an object must not be touched.
                Err(Errno::MLINK | Errno::XDEV | Errno::PERM) => return Ok(Outcome::Full),
                Err(error) => Err(error).context(|| format!("cannot link {name}"))?,
            }
        }
        let mut below = Vec::with_capacity(tree.dirs.len());
        for (name, (tree, meta)) in tree.dirs {
            check_name(&name)?;
            mkdirat(&*here, name.as_str(), Mode::from(0o700))
                .context(|| format!("cannot create {name}"))?;
            below.push(Todo {
                above: here.clone(),
                name,
                tree,
                meta,
            });
        }
        let meta = match metas.entry(todo.meta) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(read_dirmeta(repo, &todo.meta)?),
        };
        if self.kind == Kind::BareUser {
            // Others are on their way to what is below, and have no rights of root's.
            if meta.mode & 0o700 != 0o700 {
                return Ok(Outcome::Full);
            }
            fchmod(&here, Mode::from(meta.mode)).context(failed)?;
            reset_times(&here).context(failed)?;
        } else {
            give(&here, meta).context(failed)?;
        }
        if !below.is_empty() {
            self.push(below);
        }
        Ok(Outcome::Good)
    }
}

impl Checkout {
    /// Whether an object stands for a symbolic link. Source: ostree-core.h, `user.ostreemeta` is
    /// `(uuua(ayay))`, big-endian: user, group, mode, attributes.
    fn is_link(&self, object: &str) -> Result<bool> {
        let path = self.path.join(object);
        let failed = || format!("cannot read the attributes of {path}");
        // Its attributes may be of any length.
        let mut buffer = vec![0; 256];
        let length = loop {
            match lgetxattr(path.as_std_path(), OSTREE_META, &mut buffer) {
                Err(Errno::RANGE) if buffer.len() < MAX_ATTRIBUTES => {
                    buffer.resize(buffer.len() * 16, 0);
                }
                read => break read.context(failed)?,
            }
        };
        let mode = buffer[..length].get(8..12).unwrap_or_default();
        let Ok(mode) = <[u8; 4]>::try_from(mode) else {
            fail!(
                crate::error::Kind::Invalid,
                "the attributes of {path} are damaged"
            );
        };
        Ok(FileType::from_raw_mode(u32::from_be_bytes(mode)) == FileType::Symlink)
    }

    fn copy_link(&self, object: &str, here: &File, name: &str) -> Result<()> {
        let path = self.path.join(object);
        let target = std::fs::read(&path).context(|| format!("cannot read {path}"))?;
        // It ends with a NUL.
        let target = target.strip_suffix(b"\0").unwrap_or(&target);
        let target = std::ffi::OsStr::from_bytes(target);
        symlinkat(target, here, name).context(|| format!("cannot link {name}"))
    }
}

/// A repository may come from elsewhere: its names must stay in their directory.
fn check_name(name: &str) -> Result<()> {
    if matches!(name, "" | "." | "..") || name.contains('/') {
        fail!(
            crate::error::Kind::Invalid,
            "\"{}\" is not a file name",
            name.escape_debug()
        );
    }
    Ok(())
}

fn give(directory: &File, meta: &DirMeta) -> rustix::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
    fchown(directory, Some(uid), Some(gid))?;
    fchmod(directory, Mode::from(meta.mode))?;
    set_xattrs(directory, &meta.xattrs)?;
    reset_times(directory)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::MetadataExt as _;

    use camino::Utf8PathBuf;

    use super::*;
    use crate::store::objects::{
        Commit, DirTree, NO_CANCEL, checksum, write_dirmeta, write_dirtree,
    };

    /// What a directory is, path by path, inode numbers of files included.
    fn listing(root: &Utf8Path, below: &str, out: &mut BTreeMap<String, String>) {
        let path = Utf8PathBuf::from(format!("{root}{below}"));
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let inode = if meta.is_dir() { 0 } else { meta.ino() };
        let attribute = rustix::fs::lgetxattr(path.as_std_path(), "user.a", &mut [0; 8]).ok();
        let text = format!(
            "{inode} {:o} {}:{} {} {attribute:?}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime()
        );
        out.insert(below.to_owned(), text);
        if meta.is_dir() {
            for entry in path.read_dir_utf8().unwrap() {
                let name = entry.unwrap().file_name().to_owned();
                listing(root, &format!("{below}/{name}"), out);
            }
        }
    }

    #[test]
    fn a_checkout_is_what_libostree_makes_of_the_tree() {
        if rustix::process::geteuid().is_root() {
            compare(Kind::Bare);
        }
        compare(Kind::BareUser);
    }

    fn compare(kind: Kind) {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(dir.path()).unwrap();
        let repo = crate::store::repository(&path.join("repo")).unwrap();
        let mode = match kind {
            Kind::Bare => ostree::RepoMode::Bare,
            Kind::BareUser => ostree::RepoMode::BareUser,
        };
        repo.create(mode, NO_CANCEL).unwrap();
        let file = repo
            .write_regfile_inline(None, 5, 6, 0o104_755, None, b"content", NO_CANCEL)
            .unwrap();
        let link = repo
            .write_symlink(None, 7, 8, None, "file", NO_CANCEL)
            .unwrap();
        let meta = |mode: u32, uid: u32| {
            let xattrs = vec![(b"user.a\0".to_vec(), b"value".to_vec())];
            let (gid, xattrs) = (uid, if uid > 0 { xattrs } else { Vec::new() });
            let meta = DirMeta {
                uid,
                gid,
                mode,
                xattrs,
            };
            write_dirmeta(&repo, &meta).unwrap()
        };
        let mut tree = DirTree::default();
        tree.files.insert("file".into(), checksum(&file).unwrap());
        tree.files.insert("link".into(), checksum(&link).unwrap());
        for depth in 0..4 {
            let below = write_dirtree(&repo, &tree).unwrap();
            for name in 0..6 {
                let mut mode = [0o755, 0o700, 0o1777, 0o2755, 0o000, 0o711][name];
                if kind == Kind::BareUser && mode == 0 {
                    // That is left to libostree.
                    mode = 0o750;
                }
                tree.dirs
                    .insert(format!("d{name}"), (below, meta(mode, depth)));
            }
        }
        let commit = Commit {
            subject: "x",
            metadata: Vec::new(),
            tree: write_dirtree(&repo, &tree).unwrap(),
            meta: meta(0o751, 9),
            timestamp: 0,
        };
        let (root, commit) = ((commit.tree, commit.meta), commit.seal());
        commit.write(&repo).unwrap();
        let parent = File::open(path).unwrap();
        assert!(check_out(&repo, &path.join("repo"), kind, root, &parent, "ours").unwrap());
        let options = ostree::RepoCheckoutAtOptions {
            mode: match kind {
                Kind::Bare => ostree::RepoCheckoutMode::None,
                Kind::BareUser => ostree::RepoCheckoutMode::User,
            },
            ..Default::default()
        };
        repo.checkout_at(
            Some(&options),
            parent.as_raw_fd(),
            "theirs",
            &commit.checksum,
            NO_CANCEL,
        )
        .unwrap();
        let [ours, theirs] = ["ours", "theirs"].map(|name| {
            let mut out = BTreeMap::new();
            listing(&path.join(name), "", &mut out);
            assert!(out.len() > 4000, "{}", out.len());
            if kind == Kind::BareUser {
                // Each link is a file of its own, of this moment.
                out.retain(|path, _| !path.ends_with("link"));
                assert_eq!(
                    path.join(name).join("d0/link").read_link_utf8().unwrap(),
                    "file"
                );
            }
            out
        });
        for (path, found) in &theirs {
            assert_eq!(ours.get(path), Some(found), "{path}");
        }
        assert_eq!(ours.len(), theirs.len());
        // What cannot be done is said, and all threads end.
        let error = check_out(&repo, &path.join("repo"), kind, root, &parent, "ours").unwrap_err();
        assert!(error.to_string().contains("exists"), "{error}");
    }
}
