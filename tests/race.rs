//! Somebody else exchanges a directory for a link out of the tree, over and over, while root works in it: nothing is
//! ever written, made, removed or read outside.

mod support;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use atomic_rs::safefs::{Files as _, Meta, Parent, Root, Unpack, remove_tree};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use support::{Scratch, is_torture};

const SHORT: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_mins(2);
/// What an attacker would like to have changed.
const SECRET: &str = "secret";

/// A tree with a directory `d` and, beside it, a link `l` to what is outside, which are exchanged meanwhile.
struct Field {
    scratch: Scratch,
}

impl Field {
    fn new() -> Self {
        let scratch = Scratch::new("race");
        std::fs::create_dir_all(scratch.join("outside/deep")).unwrap();
        std::fs::write(scratch.join("outside/f"), SECRET).unwrap();
        std::fs::write(scratch.join("outside/deep/f"), SECRET).unwrap();
        std::fs::create_dir_all(scratch.join("tree")).unwrap();
        Self { scratch }
    }

    fn tree(&self) -> PathBuf {
        self.scratch.join("tree")
    }

    /// What is outside, to the last name.
    fn assert_untouched(&self, what: &str) {
        let mut names: Vec<_> = std::fs::read_dir(self.scratch.join("outside"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["deep", "f"], "{what}");
        for file in ["outside/f", "outside/deep/f"] {
            let file = self.scratch.join(file);
            assert_eq!(std::fs::read_to_string(file).unwrap(), SECRET, "{what}");
        }
    }

    /// Do `work` over and over while somebody exchanges; how often each of them was done.
    fn fight(&self, what: &str, mut work: impl FnMut(&Path)) {
        let tree = self.tree();
        let (over, exchanges) = (AtomicBool::new(false), AtomicU64::new(0));
        let lay = || {
            let _ = std::fs::create_dir_all(tree.join("d/deep"));
            let _ = symlink("../outside", tree.join("l"));
        };
        lay();
        let end = Instant::now() + if is_torture() { LONG } else { SHORT };
        let mut rounds = 0_u64;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let (from, to) = (tree.join("d"), tree.join("l"));
                    if renameat_with(CWD, &from, CWD, &to, RenameFlags::EXCHANGE).is_ok() {
                        exchanges.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            while Instant::now() < end {
                work(&tree);
                lay();
                rounds += 1;
            }
            over.store(true, Ordering::Relaxed);
        });
        let exchanges = exchanges.into_inner();
        println!("{what}: {rounds} rounds, {exchanges} exchanges, 0 escapes");
        assert!(
            rounds > 100 && exchanges > 1000,
            "{what}: {rounds}, {exchanges}"
        );
        self.assert_untouched(what);
    }
}

fn meta(mode: u32) -> Meta {
    Meta {
        mode,
        uid: 0,
        gid: 0,
        mtime: (1_700_000_000, 0),
        xattrs: Vec::new(),
    }
}

#[test]
fn what_is_unpacked_stays_in_its_tree() {
    let field = Field::new();
    field.fight("unpack", |tree| {
        let Ok(mut unpack) = Unpack::new(tree, true, false) else {
            return;
        };
        // Whether it could be done depends on who was quicker.
        let _ = unpack.dir(b"d/deep", &meta(0o700));
        if let Ok(mut file) = unpack.file(b"d/deep/f") {
            let _ = std::io::Write::write_all(&mut file, b"of the image");
        }
        let _ = unpack.file(b"d/f");
        let _ = unpack.symlink(b"d/s", b"x", &meta(0o777));
        let _ = unpack.hard_link(b"d/h", b"d/f");
        let _ = unpack.white_out(b"d/deep/f");
        let _ = unpack.make_opaque(b"d");
        let _ = unpack.end_layer();
        let _ = unpack.finish();
    });
}

#[test]
fn what_is_made_below_a_root_stays_below_it() {
    let field = Field::new();
    field.fight("make", |tree| {
        let Ok(root) = Root::open(tree) else {
            return;
        };
        let _ = root.make_dir("/d/deep/new");
        let _ = root.make_file("/d/new");
        let _ = root.make_link("/d/link", "/nowhere");
        // Only outside is there such a file.
        for path in ["/d/f", "/l/f", "/d/deep/f", "/l/deep/f"] {
            assert!(!matches!(root.read(path, 100), Ok(Some(_))), "{path}");
        }
    });
}

#[test]
fn what_is_removed_is_below_its_root() {
    let field = Field::new();
    field.fight("remove", |tree| {
        let _ = remove_tree(&tree.join("d"));
        let _ = remove_tree(&tree.join("l"));
    });
}

#[test]
fn a_file_of_the_host_is_put_where_its_directory_was_found() {
    let field = Field::new();
    field.fight("host file", |tree| {
        if let Ok(Some(parent)) = Parent::open(&tree.join("d/f"), false) {
            let _ = std::fs::write(parent.beside("id", "new"), "of the image");
            let _ = std::fs::rename(parent.beside("id", "new"), parent.path());
        }
    });
}
