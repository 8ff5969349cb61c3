//! Bytes that anybody may have written, changed at random: nothing panics, and what is promised holds. For a few
//! seconds each here, a minute where continuous integration runs (`CI`), ten in `make torture`; `fuzz/` has the same
//! targets for a fuzzer that is guided by what it reaches.
//!
//! What was once found, and what is to begin with, is in `tests/corpus/TARGET/`.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::images::{Image, Layer, layout};
use support::targets::{TARGETS, Target, names};
use support::{Place, Random, Said as _, Scratch, is_torture, must, program};

const SHORT: Duration = Duration::from_secs(8);
const OF_CI: Duration = Duration::from_mins(1);
const LONG: Duration = Duration::from_mins(10);
/// Longer inputs are of no further use.
const MAX_BYTES: usize = 16 * 1024;

fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(target.name);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
        .iter()
        .map(|file| std::fs::read(file).unwrap())
        .collect()
}

/// Change an input a little.
fn mutate(bytes: &mut Vec<u8>, all: &[Vec<u8>], words: &[&str], random: &mut Random) {
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len() + 1);
        match random.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = u8::try_from(random.below(256)).unwrap(),
            2 => {
                let end = (at + 1 + random.below(32)).min(bytes.len());
                bytes.drain(at.min(end)..end);
            }
            3 => bytes.truncate(at),
            4 => {
                // A piece of another one.
                let other = random.one_of(all);
                let from = random.below(other.len() + 1);
                let to = (from + random.below(600)).min(other.len());
                bytes.splice(at..at, other[from..to].iter().copied());
            }
            5 => {
                let end = (at + random.below(512)).min(bytes.len());
                let piece = bytes[at.min(end)..end].to_vec();
                bytes.splice(at..at, piece);
            }
            6 if at < bytes.len() => {
                // A word over what is there.
                let word = random.one_of(words).as_bytes();
                let end = (at + word.len()).min(bytes.len());
                bytes.splice(at..end, word.iter().copied());
            }
            _ => {
                let word = random.one_of(words).as_bytes();
                bytes.splice(at..at, word.iter().copied());
            }
        }
    }
    bytes.truncate(MAX_BYTES);
}

/// An archive's headers have sums: they are put right, most times, or nothing else would be looked at.
fn put_sums_right(bytes: &mut [u8], random: &mut Random) {
    if random.below(5) == 0 {
        return;
    }
    for block in bytes.chunks_exact_mut(512) {
        if &block[257..262] == b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

/// For how long all targets are tried.
fn span() -> Duration {
    if is_torture() {
        LONG
    } else if std::env::var_os("CI").is_some() {
        OF_CI
    } else {
        SHORT
    }
}

fn fuzz(target: &Target, random: &mut Random) -> u64 {
    let all = corpus(target);
    for bytes in &all {
        (target.run)(bytes);
    }
    let end = Instant::now() + span();
    let mut executions = 0;
    while Instant::now() < end {
        for _ in 0..200 {
            let mut bytes = random.one_of(&all).clone();
            mutate(&mut bytes, &all, target.words, random);
            if target.name == "tar" {
                put_sums_right(&mut bytes, random);
            }
            executions += 1;
            let begun = Instant::now();
            let ran = catch_unwind(AssertUnwindSafe(|| (target.run)(&bytes)));
            assert!(
                ran.is_ok() && begun.elapsed() < Duration::from_secs(5),
                "{}, after {:?}: keep this as a file of the corpus: {}",
                target.name,
                begun.elapsed(),
                bytes.escape_ascii()
            );
        }
    }
    executions
}

#[test]
fn no_input_breaks_a_promise() {
    let mut random = Random::new();
    let mut rows = Vec::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = TARGETS
            .iter()
            .map(|target| {
                let mut random = random.branch();
                scope.spawn(move || (target.name, fuzz(target, &mut random)))
            })
            .collect();
        rows.extend(threads.into_iter().map(|thread| thread.join().unwrap()));
    });
    println!("target      executions  crashes");
    for (name, executions) in rows {
        println!("{name:10} {executions:11}        0");
        assert!(executions > 1000, "{name}");
    }
}

/// An archive of a few entries, in the order that anybody may have written: each replaces what was there before.
/// `kinds_change`: of another kind, too.
fn archive(random: &mut Random, kinds_change: bool) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let (above, names) = (["a", "b"], ["cc", "d.e", "f g", "h\u{e9}", "-i", "j\\k"]);
    for number in 0..=random.below(12) {
        let mut path: Vec<&str> = (0..random.below(3))
            .map(|_| *random.one_of(&above))
            .collect();
        let kind = random.below(4);
        path.push(*if kind == 0 && !(kinds_change && random.below(2) == 0) {
            random.one_of(&above[..])
        } else {
            random.one_of(&names[..])
        });
        let path = path.join("/");
        let mut header = tar::Header::new_gnu();
        header.set_mode([0o644, 0o755, 0o4755, 0o1777, 0o600][random.below(5)]);
        header.set_uid(random.below(3) as u64 * 1000);
        header.set_gid(random.below(3) as u64 * 100);
        header.set_mtime(1_700_000_000 + number as u64);
        header.set_size(0);
        match kind {
            0 => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(0o755);
                builder
                    .append_data(&mut header, path, std::io::empty())
                    .unwrap();
            }
            1 => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                builder.append_link(&mut header, path, "nowhere").unwrap();
            }
            _ => {
                let content = path.repeat(random.below(300)) + &number.to_string();
                header.set_size(content.len() as u64);
                builder
                    .append_data(&mut header, path, content.as_bytes())
                    .unwrap();
            }
        }
    }
    builder.into_inner().unwrap()
}

/// All of a tree, but for times of directories, which depend on what was put into them last.
fn listing(tree: &Path) -> String {
    let times = "find . -mindepth 1 -not -type d -printf '%p %T@\\n' | sort";
    without_times(tree) + &must(Command::new("sh").current_dir(tree).args(["-ec", times]))
}

fn without_times(tree: &Path) -> String {
    must(Command::new("sh").current_dir(tree).args([
        "-ec",
        "find . -mindepth 1 -type d -printf '%p %y %m %U:%G\\n' -o -mindepth 1 -printf '%p %y %m %U:%G %s %l\\n' | sort; \
         find . -type f -exec sha256sum {} + | sort",
    ]))
}

/// Whether GNU tar unpacks an archive over what is in a directory.
fn untar(file: &Path, into: &Path) -> bool {
    let status = Command::new("tar")
        .args(["-x", "-p", "--same-owner", "--numeric-owner", "-f"])
        .arg(file)
        .arg("-C")
        .arg(into)
        .stderr(Stdio::null())
        .status();
    status.unwrap().success()
}

/// What both accept, both unpack to the same.
#[test]
fn archives_are_unpacked_as_by_gnu_tar() {
    let mut random = Random::new();
    let place = Place::new("bootstrap");
    let scratch = Scratch::new("tar");
    let end = Instant::now() + if is_torture() { LONG } else { SHORT };
    let (mut compared, mut refused) = (0, 0);
    while Instant::now() < end || compared < 20 {
        let bytes = archive(&mut random, false);
        let file = scratch.join("archive.tar");
        std::fs::write(&file, &bytes).unwrap();
        let (ours, theirs) = (scratch.join("ours"), scratch.join("theirs"));
        for tree in [&ours, &theirs] {
            let _ = std::fs::remove_dir_all(tree);
        }
        std::fs::create_dir(&theirs).unwrap();
        let is_tars = untar(&file, &theirs);
        let own = place.run(&format!("file://{} {}", file.display(), ours.display()));
        // Where a directory is in the way of a file, or a link in the way of a directory, layers mean something else.
        if !is_tars || !own.status.success() {
            refused += 1;
            continue;
        }
        compared += 1;
        assert_eq!(listing(&ours), listing(&theirs), "{}", bytes.escape_ascii());
        let listed = must(
            Command::new("tar")
                .arg("-tf")
                .arg(&file)
                .args(["--quoting-style=literal"]),
        );
        let read = names(&bytes).unwrap();
        assert_eq!(listed.lines().count(), read.len());
    }
    println!("{compared} archives compared, {refused} that one of both refused");
}

/// A layer, and what it takes away of those below: paths, and directories of which nothing stays.
struct Over {
    layer: Vec<u8>,
    entries: Vec<u8>,
    whiteouts: Vec<String>,
    opaque: Vec<String>,
}

fn over(random: &mut Random) -> Over {
    let (mut whiteouts, mut opaque) = (Vec::new(), Vec::new());
    let mut hides = Vec::new();
    for _ in 0..random.below(4) {
        let above = *random.one_of(&["", "a/", "b/", "a/b/"]);
        if random.below(4) == 0 && !above.is_empty() {
            hides.push(format!("{above}.wh..wh..opq"));
            opaque.push(above.to_owned());
        } else {
            let name = random.one_of(&["a", "b", "cc", "d.e", "f g", "-i"]);
            hides.push(format!("{above}.wh.{name}"));
            whiteouts.push(format!("{above}{name}"));
        }
    }
    let hide = |builder: &mut tar::Builder<Vec<u8>>, hides: &[String]| {
        for path in hides {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            header.set_mode(0o600);
            builder
                .append_data(&mut header, path, std::io::empty())
                .unwrap();
        }
    };
    let entries = archive(random, true);
    // Whatever comes first in the archive: what it takes away is of the layers below.
    let mut builder = tar::Builder::new(Vec::new());
    let (before, after) = hides.split_at(random.below(hides.len() + 1));
    hide(&mut builder, before);
    let mut layer = builder.into_inner().unwrap();
    layer.truncate(before.len() * 512);
    let end = entries.len() - 1024;
    layer.extend(&entries[..end]);
    let mut builder = tar::Builder::new(Vec::new());
    hide(&mut builder, after);
    layer.extend(builder.into_inner().unwrap());
    Over {
        layer,
        entries,
        whiteouts,
        opaque,
    }
}

/// The merged tree of an image's layers is what GNU tar makes of their entries, one archive over the other, where what
/// a layer takes away is removed by hand before.
#[test]
fn layers_are_merged_as_by_gnu_tar() {
    let mut random = Random::new();
    let scratch = Scratch::new("merge");
    let end = Instant::now() + if is_torture() { LONG } else { SHORT };
    let (mut compared, mut refused) = (0, 0);
    while Instant::now() < end || compared < 20 {
        let layers: Vec<Over> = (0..2 + random.below(3))
            .map(|_| over(&mut random))
            .collect();
        let told = layers
            .iter()
            .map(|over| over.layer.escape_ascii().to_string());
        let told = told.collect::<Vec<_>>().join("\n");
        let theirs = scratch.join("theirs");
        std::fs::create_dir(&theirs).unwrap();
        let are_tars = layers.iter().all(|over| {
            for path in &over.whiteouts {
                must(
                    Command::new("rm")
                        .args(["-rf", "--", path])
                        .current_dir(&theirs),
                );
            }
            for path in &over.opaque {
                let all = ["-mindepth", "1", "-delete"];
                if theirs.join(path).is_dir() {
                    must(Command::new("find").arg(theirs.join(path)).args(all));
                }
            }
            // Whoever unpacks layers makes the directories on the way to a whiteout, too.
            for path in over.whiteouts.iter().chain(&over.opaque) {
                let above = Path::new(path.as_str());
                let above = if path.ends_with('/') {
                    Some(above)
                } else {
                    above.parent()
                };
                std::fs::create_dir_all(theirs.join(above.unwrap())).unwrap();
            }
            let file = scratch.join("entries.tar");
            std::fs::write(&file, &over.entries).unwrap();
            untar(&file, &theirs)
        });
        let image = layers.iter().fold(Image::new(), |image, over| {
            image.layer(Layer::of(over.layer.clone(), None))
        });
        let (_layout, directory, _) = layout(image);
        let store = scratch.join("store");
        let pulled = Command::new(program())
            .args(["pull", "--json"])
            .arg(format!("oci:{}", directory.display()))
            .env("ATOMIC_OSTREE_CHECKOUT_PATH", &store)
            .output()
            .unwrap();
        if are_tars && pulled.status.success() {
            compared += 1;
            let read: serde_json::Value = serde_json::from_str(&pulled.out()).unwrap();
            let digest = read["digest"]
                .as_str()
                .unwrap()
                .trim_start_matches("sha256:");
            let ours = scratch.join("ours");
            must(
                Command::new("ostree")
                    .arg(format!("--repo={}/.storage/ostree", store.display()))
                    .args(["checkout", &format!("ociimage-tree/{digest}")])
                    .arg(&ours),
            );
            assert_eq!(without_times(&ours), without_times(&theirs), "{told}");
            std::fs::remove_dir_all(&ours).unwrap();
        } else {
            // GNU tar keeps a directory that is not empty from a file that wants its name.
            assert_eq!(pulled.code(), 0, "{told}: {}", pulled.err());
            refused += 1;
        }
        std::fs::remove_dir_all(&theirs).unwrap();
        std::fs::remove_dir_all(&store).unwrap();
    }
    println!("{compared} images compared, {refused} that GNU tar refused");
}
