//! A tree as hard links to the store, several directories at a time.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::sync::{Arc, Condvar, Mutex};

use camino::Utf8Path;
use ostree::Repo;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, fchmod, fchown, linkat, mkdirat, openat};
use rustix::io::Errno;

use super::objects::{Checksum, DirMeta, read_dirmeta, read_dirtree};
use super::writers::{lock, object_path, reset_times, set_xattrs, threads, wait};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;

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
    objects: File,
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
    (tree, meta): (Checksum, Checksum),
    parent: &File,
    name: &str,
) -> Result<bool> {
    let objects = path.join("objects");
    let checkout = Checkout {
        objects: File::open(&objects).context(|| format!("cannot open {objects}"))?,
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
            let object = object_path(file);
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
        give(&here, meta).context(failed)?;
        if !below.is_empty() {
            self.push(below);
        }
        Ok(Outcome::Good)
    }
}

/// A repository may come from elsewhere: its names must stay in their directory.
fn check_name(name: &str) -> Result<()> {
    if matches!(name, "" | "." | "..") || name.contains('/') {
        fail!(
            Kind::Invalid,
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
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(dir.path()).unwrap();
        let repo = crate::store::repository(&path.join("repo")).unwrap();
        repo.create(ostree::RepoMode::Bare, NO_CANCEL).unwrap();
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
                let mode = [0o755, 0o700, 0o1777, 0o2755, 0o000, 0o711][name];
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
        assert!(check_out(&repo, &path.join("repo"), root, &parent, "ours").unwrap());
        let options = ostree::RepoCheckoutAtOptions::default();
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
            out
        });
        assert!(ours.len() > 4000, "{}", ours.len());
        for (path, found) in &theirs {
            assert_eq!(ours.get(path), Some(found), "{path}");
        }
        assert_eq!(ours.len(), theirs.len());
        // What cannot be done is said, and all threads end.
        let error = check_out(&repo, &path.join("repo"), root, &parent, "ours").unwrap_err();
        assert!(error.to_string().contains("exists"), "{error}");
    }
}
