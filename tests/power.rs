//! The power is cut: a disk is left as it was at a random moment, with nothing on it that was not written, and the host
//! boots from it. Every container is at one version then, and at the new one if the verb had ended.
//!
//! The disk is a file on XFS, which is snapshotted by sharing its blocks; in it there is XFS, or ext4 that does not hide
//! a missing fsync.

mod support;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::disk::{Disk, EXT4, Kind, XFS};
use support::images::{Layer, plain};
use support::whole::{C, HOST_FILE, State, assert_whole};
use support::{Host, Random, Registry, Said as _, Scratch, free_port, is_torture, must};

/// Cuts on each file system.
const CUTS: u32 = 6;
/// The same in `make torture`.
const MANY_CUTS: u32 = 120;

/// What is on a disk at this moment.
fn snapshot(disk: &Disk) -> PathBuf {
    let taken = disk.image.with_extension("cut");
    must(
        Command::new("cp")
            .arg("--reflink=always")
            .args([&disk.image, &taken]),
    );
    taken
}

struct Trial<'t> {
    kind: &'t Kind,
    scratch: &'t Scratch,
    disk: &'t Disk,
    host: &'t Host,
    port: u16,
    name: String,
    random: Random,
    during: u32,
    completed: u32,
    undone: u32,
}

impl Trial<'_> {
    /// Cut the power while a verb runs, or just after it.
    fn cut(&mut self, words: &str, span: &mut Duration) {
        let before = State::of(self.host);
        let moment = span.mul_f64(self.random.fraction() * 1.2);
        let start = Instant::now();
        let mut child = self
            .host
            .command("atomic-rs")
            .args(words.split_whitespace())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(moment);
        let has_ended = child.try_wait().unwrap().is_some();
        let taken = snapshot(self.disk);
        assert!(child.wait().unwrap().success(), "{words}");
        if !has_ended {
            self.during += 1;
            *span = (*span + start.elapsed()) / 2;
        }
        let after = State::of(self.host);
        // The port is shared.
        self.host.run("systemctl stop web");
        let at = format!("{words} on {}, cut after {moment:?}", self.kind.name);
        let disk = Disk::mount(taken, self.scratch.join("cut"), self.kind);
        let host = Host::boot_on(&disk.mount);
        self.check(&host, (&before, &after), has_ended, &at);
        drop(host);
        drop(disk);
        if after.has_web() {
            self.host.ok("systemctl start web");
        }
    }

    /// A host that has booted after the cut.
    fn check(&mut self, host: &Host, states: (&State, &State), has_ended: bool, at: &str) {
        let noted = |id| {
            host.sh(&format!("journalctl -b -q -o cat MESSAGE_ID={id}"))
                .out()
        };
        let (completed, undone) = (
            noted("45fa0026a95c4b2b9b3ae3de6e8f11d6"),
            noted("45554ddb54054ed4be29882a81991852"),
        );
        self.completed += u32::from(!completed.is_empty());
        self.undone += u32::from(!undone.is_empty());
        let at = format!("{at}; the boot said {completed}{undone}");
        // The units at boot have done all there was to do.
        let recovered = host.atomic("recover");
        assert_eq!(
            (recovered.code(), recovered.out().as_str()),
            (0, ""),
            "{at}: {}",
            recovered.err()
        );
        let (before, after) = states;
        let found = State::of(host);
        for part in [
            |state: &State| state.container.clone(),
            |state: &State| state.images.clone(),
        ] {
            let (was, is, found) = (part(before), part(after), part(&found));
            assert!(
                found == is || !has_ended && found == was,
                "{at}: was {was:?}, then {is:?}, and is {found:?}"
            );
        }
        assert_whole(host, self.port, &at);
        host.ok(&format!("ostree fsck --quiet --repo={C}/.storage/ostree"));
        // And it goes on from there.
        let has_other = host.exists(&format!("{C}/web.0")) && host.exists(&format!("{C}/web.1"));
        let next = match (found.has_web(), has_other) {
            (true, true) => "rollback web".to_owned(),
            (true, false) => "repair web".to_owned(),
            (false, _) => format!("install --system-package no --name web {}", self.name),
        };
        host.atomic_ok(&next);
        assert_whole(host, self.port, &format!("{at}, then {next}"));
        host.run("systemctl stop web");
        host.atomic_ok("images prune");
        host.ok(&format!("ostree fsck --quiet --repo={C}/.storage/ostree"));
    }
}

fn try_on(kind: &Kind) {
    let registry = Registry::start();
    let scratch = Scratch::new("power");
    let disk = Disk::new(&scratch, kind);
    let host = Host::boot_on(&disk.mount);
    host.add_recovery();
    let port = free_port();
    let mut trial = Trial {
        kind,
        scratch: &scratch,
        disk: &disk,
        host: &host,
        port,
        name: registry.name("web"),
        random: Random::new(),
        during: 0,
        completed: 0,
        undone: 0,
    };
    let mut version = 0;
    let mut push = || {
        version += 1;
        let text = format!("version-{version}");
        let file = Layer::new().file(&format!("exports/hostfs{HOST_FILE}"), 0o644, &text);
        plain(port, &text).layer(file).push(&registry, "web");
    };
    push();
    // What is not synced is lost: otherwise nothing here would be shown.
    host.ok("sync");
    host.sh("echo unsynced > /root/unsynced");
    let taken = Disk::mount(snapshot(&disk), scratch.join("cut"), kind);
    let found = std::fs::read_to_string(taken.mount.join("upper/root/unsynced"));
    assert!(found.is_err() || found.is_ok_and(|text| text.is_empty()));
    drop(taken);
    let name = trial.name.clone();
    let verbs = [
        "install",
        "update",
        "rollback",
        "pull",
        "update",
        "uninstall",
    ];
    // Each verb's usual time.
    let mut spans = [Duration::from_millis(500); 6];
    let cuts = if is_torture() { MANY_CUTS } else { CUTS };
    for (number, which) in (0..cuts).zip((0..verbs.len()).cycle()) {
        let words = match verbs[which] {
            "install" => {
                // What is stored would be taken.
                host.atomic_ok(&format!("pull {name}"));
                format!("install --system-package no --name web {name}")
            }
            "pull" => {
                push();
                format!("pull {name}")
            }
            "update" => {
                push();
                "update web".to_owned()
            }
            verb => format!("{verb} web"),
        };
        trial.cut(&words, &mut spans[which]);
        println!("{number}: {words}");
    }
    println!(
        "{}: {cuts} cuts, {} of them while a verb ran; at boot {} were completed and {} undone; inconsistent: 0",
        kind.name, trial.during, trial.completed, trial.undone
    );
    assert!(trial.during > cuts / 3, "the cuts must hit verbs");
}

#[test]
fn a_power_cut_on_xfs_leaves_the_old_version_or_the_new_one() {
    try_on(&XFS);
}

#[test]
fn a_power_cut_on_ext4_leaves_the_old_version_or_the_new_one() {
    try_on(&EXT4);
}
