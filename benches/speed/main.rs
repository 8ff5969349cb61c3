//! `make bench`: what pulls, updates, deployments and lists cost, beside those of other programs, each
//! in turn in one run.
//!
//! `cargo bench --bench speed -- [--rounds N] [--results DIRECTORY] [PART…]`; without parts all of them, and
//! the results go to `benches`: `RESULTS.md`, `results.json` and `results.svg`.
#![allow(missing_docs)]

#[path = "../../tests/support/mod.rs"]
mod support;

mod bootstrap;
mod deploy;
mod images;
mod list;
mod measure;
mod pull;
mod report;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use report::{Results, Row, Table};
use support::must;

/// Enough for one round of the largest part with everybody. The file has holes.
const DISK_BYTES: u64 = 40 << 30;

/// What every part needs.
pub struct Bench {
    /// Where images are kept.
    pub work: PathBuf,
    /// How often everything is measured.
    pub rounds: usize,
}

/// Somebody who does the same as we into a directory that is new.
pub struct Peer<'a> {
    pub who: &'a str,
    pub command: Box<dyn Fn(&Path) -> Command + 'a>,
}

impl Bench {
    fn new(work: PathBuf, rounds: usize) -> Self {
        std::fs::create_dir_all(&work).unwrap();
        let out = Self { work, rounds };
        out.unmount();
        let (disk, image) = (out.disk(), out.work.join("disk.img"));
        std::fs::create_dir_all(&disk).unwrap();
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(DISK_BYTES).unwrap();
        must(
            Command::new("mkfs.ext4")
                // Everybody makes a file of each of 100 000, in every round.
                .args([
                    "-q",
                    "-F",
                    "-i",
                    "8192",
                    "-E",
                    "lazy_itable_init=0,lazy_journal_init=0",
                ])
                .arg(&image),
        );
        let device = must(
            Command::new("losetup")
                .args(["--direct-io=on", "--show", "--find"])
                .arg(&image),
        );
        let device = device.trim();
        must(Command::new("mount").arg(device).arg(disk));
        // It goes when it is unmounted.
        must(Command::new("losetup").args(["--detach", device]));
        out
    }

    /// A file system of its own, on the disk that is measured: on one that others use, what they
    /// deleted lately slows down whoever comes next.
    pub fn disk(&self) -> PathBuf {
        self.work.join("disk")
    }

    /// A new directory on it.
    pub fn fresh(&self, name: &str) -> PathBuf {
        let path = self.disk().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// Let everybody do it in turn, as often as is wanted.
    pub fn in_turn(&self, name: &str, peers: &[Peer<'_>]) -> Vec<Row> {
        let mut rows: Vec<Row> = peers.iter().map(|peer| Row::new(peer.who)).collect();
        for round in 0..self.rounds {
            for (number, (peer, row)) in peers.iter().zip(&mut rows).enumerate() {
                let directory = self.fresh(&format!("{name}-{round}-{number}"));
                let command = &mut (peer.command)(&directory);
                row.samples.push(measure::run(command, &self.disk()));
            }
        }
        rows
    }

    /// Delete all of them.
    pub fn clear(&self) {
        let disk = self.disk();
        unmount_below(&disk);
        for entry in std::fs::read_dir(disk).unwrap().flatten() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }

    fn unmount(&self) {
        unmount_below(&self.disk());
        let _ = Command::new("umount")
            .arg(self.disk())
            .stderr(Stdio::null())
            .status();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.unmount();
        let _ = std::fs::remove_file(self.work.join("disk.img"));
    }
}

/// podman leaves mounts in its store.
fn unmount_below(path: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let prefix = format!("{}/", path.display());
    for mount in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        if mount.starts_with(&prefix) {
            let _ = Command::new("umount").args(["-l", mount]).status();
        }
    }
}

type Part = fn(&Bench) -> Table;

const PARTS: [(&str, Part); 13] = [
    ("mix", |bench| pull::cold(bench, "mix")),
    ("zstd", |bench| pull::cold(bench, "zstd")),
    ("tiny", |bench| pull::cold(bench, "tiny")),
    ("huge", |bench| pull::cold(bench, "huge")),
    ("many", |bench| pull::cold(bench, "many")),
    ("floor", pull::floor),
    ("update", pull::update),
    ("deploy", deploy::run),
    ("use", deploy::use_it),
    ("bootstrap", bootstrap::cold),
    ("disks", bootstrap::disks),
    ("list", list::containers),
    ("others", list::others),
];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.split_first().map(|(word, rest)| (&**word, rest)) {
        Some((deploy::CHECK_OUT, rest)) => return deploy::check_out(rest),
        Some((pull::GO_OVER, rest)) => return pull::go_over(rest),
        _ => {}
    }
    let mut rounds = 5;
    let mut results = None;
    let mut asked: Vec<String> = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            // cargo's own.
            "--bench" => {}
            "--rounds" => {
                let number = words.next().and_then(|number| number.parse().ok());
                rounds = number.expect("--rounds wants a number");
            }
            "--results" => results = words.next().map(PathBuf::from),
            _ => asked.push(word),
        }
    }
    for word in &asked {
        let known = PARTS.iter().any(|(name, _)| name == word);
        assert!(
            known,
            "no part \"{word}\": {:?}",
            PARTS.map(|(name, _)| name)
        );
    }
    let exe = std::env::current_exe().unwrap();
    let target = exe
        .ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").exists())
        .unwrap();
    let bench = Bench::new(target.join("speed"), rounds);
    let mut tables = Vec::new();
    for (name, part) in PARTS {
        if asked.is_empty() || asked.iter().any(|word| word == name) {
            let table = part(&bench);
            println!("{}", table.markdown());
            tables.push(table);
        }
    }
    if asked.is_empty() {
        results.get_or_insert_with(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("benches"));
    }
    if let Some(directory) = results {
        Results::new(rounds, tables).write(&directory).unwrap();
    }
}
