//! Whatever fails around a verb: one error that says what, exit status 1, nothing changed, and the verb then works.
//!
//! `--nocapture` prints what is said in each case.

mod support;

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use support::disk::{Disk, EXT4, FEW_INODES, FailingDisk, Kind, XFS};
use support::images::{Image, Layer};
use support::scene::Scene;
use support::whole::{C, State, assert_whole};
use support::wicked::{Way, Wicked};
use support::{
    Host, Random, Registry, Said as _, Scratch, free_port, images, is_torture, must, program,
    wait_for_answer,
};

const VERBS: [&str; 7] = [
    "pull",
    "install",
    "update",
    "rollback",
    "repair",
    "uninstall",
    "prune",
];

/// The one line that says what went wrong, which is printed.
fn error_of(case: &str, output: &Output) -> String {
    let text = output.err();
    assert!(!text.contains("panicked"), "{case}: {text}");
    assert_eq!(output.code(), 1, "{case}: {}{text}", output.out());
    let is_told = |line: &&str| {
        ![
            "Pulling ",
            "waiting for ",
            "web.service is watched",
            " WARN ",
            "Attempting to roll back",
            "Rolling back container",
        ]
        .iter()
        .any(|told| line.starts_with(told))
    };
    // What the service itself said comes after what is to be said.
    let is_own = |line: &&str| !line.starts_with("last lines of web.service");
    let lines: Vec<&str> = text.lines().take_while(is_own).filter(is_told).collect();
    println!("| {case} | {} |", lines.join(" / "));
    assert!(
        !lines.is_empty() && lines.len() <= 3,
        "{case}: not one error: {text}"
    );
    lines.join("\n")
}

/// A store outside of any host, with an image in it, and a registry that can be wicked.
struct Stand {
    scratch: Scratch,
    registry: Registry,
    wicked: Wicked,
    name: String,
    timeout: u32,
}

impl Stand {
    fn new(timeout: u32) -> Self {
        let scratch = Scratch::new("adversity");
        let registry = Registry::start();
        let wicked = Wicked::before(&registry.address());
        let config = format!("registry_timeout = {timeout}\n");
        std::fs::write(scratch.join("config.toml"), config).unwrap();
        Image::new()
            .layer(Layer::new().file("kept", 0o644, "kept"))
            .push(&registry, "kept");
        // Large enough that half of it is not nothing.
        let text: String = (0..60_000).map(|n| format!("{n:x}")).collect();
        Image::new()
            .layer(Layer::new().busybox())
            .layer(Layer::new().file("new", 0o644, text))
            .push(&registry, "new");
        let stand = Self {
            name: wicked.name("new"),
            scratch,
            registry,
            wicked,
            timeout,
        };
        let pulled = stand.run(&format!("pull {}", stand.registry.name("kept")));
        assert_eq!(pulled.code(), 0, "{}", pulled.err());
        stand
    }

    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(program());
        command
            .args(words.split_whitespace())
            .current_dir(self.scratch.path())
            .env("ATOMIC_OSTREE_CHECKOUT_PATH", self.scratch.join("store"))
            .env("ATOMIC_RS_CONFIG", self.scratch.join("config.toml"))
            .stdin(Stdio::null());
        command
    }

    fn run(&self, words: &str) -> Output {
        self.command(words).output().unwrap()
    }

    fn start(&self, words: &str) -> Child {
        self.command(words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn repo(&self) -> PathBuf {
        self.scratch.join("store/.storage/ostree")
    }

    /// The images, the refs, and whatever lies about.
    fn state(&self) -> String {
        let images = self.run("images list --json");
        assert_eq!(images.code(), 0, "{}", images.err());
        let repo = self.repo();
        let rest = must(Command::new("sh").args(["-ec", &format!(
            "cd {}; find refs -type f | sort; find tmp -mindepth 1 -not -path 'tmp/cache*'; find {} -maxdepth 1 | sort",
            repo.display(),
            self.scratch.join("store").display()
        )]));
        images.out() + &rest
    }

    /// Nothing was changed, and it then works.
    fn assert_unharmed(&self, case: &str, before: &str) {
        assert_eq!(self.state(), before, "{case}");
        let repo = format!("--repo={}", self.repo().display());
        must(Command::new("ostree").args(["fsck", "--quiet", &repo]));
        self.wicked.answer("", Way::Honest);
        let pulled = self.run(&format!("pull {}", self.name));
        assert_eq!(pulled.code(), 0, "{case}: {}", pulled.err());
        for words in [
            format!("-y images delete -f {}", self.name),
            "images prune".into(),
        ] {
            let done = self.run(&words);
            assert_eq!(done.code(), 0, "{case}: {}", done.err());
        }
        assert_eq!(self.state(), before, "{case}");
    }

    fn pull_from(&self, part: &str, way: Way, wanted: &[&str]) {
        let case = format!("pull, {way:?} at {part}, registry_timeout {}", self.timeout);
        let before = self.state();
        self.wicked.answer(part, way);
        let begun = Instant::now();
        let output = self.run(&format!("pull {}", self.name));
        let said = error_of(&case, &output);
        assert!(
            wanted.iter().any(|wanted| said.contains(wanted)),
            "{case}: {said}"
        );
        assert!(begun.elapsed() < Duration::from_mins(2), "{case}");
        self.assert_unharmed(&case, &before);
    }
}

const MANIFEST: &str = "/manifests/";
const BLOB: &str = "/blobs/";

#[test]
fn a_registry_that_fails_is_one_error_and_changes_nothing() {
    let stand = Stand::new(5);
    for (part, way, wanted) in [
        (MANIFEST, Way::Reset, &["cannot be reached", "EOF"][..]),
        (BLOB, Way::Reset, &["EOF"]),
        ("/v2/", Way::Status(401), &["refused the credentials"]),
        (MANIFEST, Way::Status(403), &["refused the credentials"]),
        (BLOB, Way::Status(403), &["refused the credentials"]),
        (
            MANIFEST,
            Way::Status(404),
            &["no such image", "404", "wicked"],
        ),
        (BLOB, Way::Status(404), &["404", "unknown"]),
        (MANIFEST, Way::Status(500), &["500"]),
        (BLOB, Way::Status(500), &["500"]),
        (MANIFEST, Way::Half, &["EOF", "cannot be reached"]),
        (BLOB, Way::Half, &["cut off", "EOF"]),
        (BLOB, Way::Flipped, &["corrupted blob"]),
        (MANIFEST, Way::Endless, &["exceeded", "bytes", "JSON"]),
        (BLOB, Way::Endless, &["bytes", "digest", "size"]),
        (MANIFEST, Way::Silent, &["0 bytes came in 5 seconds"]),
        (BLOB, Way::Silent, &["0 bytes came in 5 seconds"]),
        (BLOB, Way::Trickle, &["bytes came in 5 seconds"]),
        (MANIFEST, Way::Redirect, &["redirects"]),
        (BLOB, Way::Redirect, &["redirects"]),
        (MANIFEST, Way::Html, &["invalid character"]),
    ] {
        stand.pull_from(part, way, wanted);
    }
}

/// skopeo asks again, for a minute.
#[test]
fn a_registry_that_is_asked_too_often_is_one_error() {
    Stand::new(100).pull_from(MANIFEST, Way::Status(429), &["asked too often"]);
}

#[test]
fn a_skopeo_that_is_killed_or_missing_is_one_error() {
    let stand = Stand::new(60);
    let before = stand.state();
    stand.wicked.answer(BLOB, Way::Trickle);
    let child = stand.start(&format!("pull {}", stand.name));
    let skopeo = await_child(child.id(), "skopeo");
    must(Command::new("kill").args(["-KILL", &skopeo.to_string()]));
    let said = error_of("pull, skopeo is killed", &child.wait_with_output().unwrap());
    assert!(said.contains("skopeo ended: by signal 9"), "{said}");
    stand.assert_unharmed("skopeo is killed", &before);
    let output = stand
        .command(&format!("pull {}", stand.name))
        .env("SKOPEO_PATH", "/no/such/skopeo")
        .output()
        .unwrap();
    let said = error_of("pull, no skopeo", &output);
    assert!(
        said.contains("\"/no/such/skopeo\" is not installed"),
        "{said}"
    );
    stand.assert_unharmed("no skopeo", &before);
}

/// The number of a child of `parent` by this name, as soon as it has one and has begun.
fn await_child(parent: u32, name: &str) -> u32 {
    let begun = Instant::now();
    loop {
        let tasks = std::fs::read_dir(format!("/proc/{parent}/task")).unwrap();
        let children: String = tasks
            .flatten()
            .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
            .collect();
        let found = children.split_whitespace().find(|child| {
            let comm = std::fs::read_to_string(format!("/proc/{child}/comm"));
            comm.is_ok_and(|comm| comm.trim() == name)
        });
        if let Some(found) = found {
            std::thread::sleep(Duration::from_millis(300));
            return found.parse().unwrap();
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "no {name}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn whoever_is_interrupted_leaves_nothing_and_says_by_what() {
    let stand = Stand::new(60);
    let pulled = stand.run(&format!("pull {}", stand.name));
    assert_eq!(pulled.code(), 0, "{}", pulled.err());
    let kept = stand.registry.name("kept");
    let new = &stand.name;
    let other = stand.wicked.name("other");
    std::fs::create_dir(stand.scratch.join("files")).unwrap();
    images::plain(free_port(), "other").push(&stand.registry, "other");
    let before = stand.state();
    for (signal, status) in [("INT", 130), ("TERM", 143)] {
        // Whatever asks a registry is held there.
        for words in [
            format!("pull {other}"),
            format!("images update {new}"),
            format!("images verify {new}"),
            format!("bootstrap {other} tree"),
            format!("archive save {other} archive"),
            format!("inject list {other}"),
            format!("inject update --dir files {other}"),
        ] {
            let case = format!("{words}, {signal}");
            stand.wicked.answer("/v2/", Way::Silent);
            let child = stand.start(&words);
            std::thread::sleep(Duration::from_millis(400));
            must(Command::new("kill").args([format!("-{signal}"), child.id().to_string()]));
            let begun = Instant::now();
            let output = child.wait_with_output().unwrap();
            // By the signal itself where nothing had to be undone, which a shell says in the same way.
            let said = output
                .status
                .code()
                .or(output.status.signal().map(|it| 128 + it));
            assert_eq!(said, Some(status), "{case}: {}", output.err());
            assert!(begun.elapsed() < Duration::from_secs(5), "{case}");
            println!("| {case} | {status}: {} |", output.err().trim());
            assert_eq!(stand.state(), before, "{case}");
            for made in ["tree", "archive"] {
                assert!(!stand.scratch.join(made).exists(), "{case}");
            }
        }
    }
    stand.wicked.answer("", Way::Honest);
    assert_eq!(stand.run(&format!("images verify {kept}")).code(), 0);
}

/// Have `left` of something left on the host's disk: KB, or inodes.
fn fill(host: &Host, is_inodes: bool, left: u32) {
    let script = if is_inodes {
        format!(
            "mkdir -p /root/ballast && cd /root/ballast && n=$(($(df --output=iavail /root | tail -1) - {left})) && \
             [ $n -le 0 ] || seq $n | xargs touch"
        )
    } else {
        // To the last block, and then so much less.
        format!(
            "mkdir -p /root/ballast && cd /root/ballast && sync && n=$(($(df --output=avail /root | tail -1) - 4000)) && \
             (fallocate -l ${{n}}K most; cat /dev/zero > rest 2>/dev/null; truncate -s -{left}K rest; sync)"
        )
    };
    let said = host.sh(&script);
    assert_eq!(said.code(), 0, "{}", said.err());
}

/// Nothing is otherwise than it was, but that an update has pulled its image.
fn assert_unchanged(host: &Host, before: &State, verb: &str, case: &str) {
    let now = State::of(host);
    assert_eq!(now.container, before.container, "{case}");
    if verb != "update" {
        assert_eq!(now.images, before.images, "{case}");
    }
}

/// Every verb, with less and less room: until it has enough.
fn try_without_room(is_inodes: bool) {
    let scratch = Scratch::new("room");
    let disk = Disk::small(&scratch, "600M", &FEW_INODES);
    let mut scene = Scene::new(Host::boot_on(&disk.mount));
    let what = if is_inodes { "inodes" } else { "KB" };
    // libostree would have some percents stay free, which is another error.
    scene.install();
    scene.host.ok(&format!(
        "ostree config --repo={C}/.storage/ostree set core.min-free-space-percent 0"
    ));
    let (mut tried, mut refused) = (0, 0);
    for verb in VERBS {
        // A step of another size at each try goes through the phases.
        let step = if is_inodes { 10 } else { 50 };
        let step = if is_torture() { step / 5 } else { step };
        let mut left = 0;
        loop {
            let words = scene.prepare(verb);
            let before = State::of(&scene.host);
            fill(&scene.host, is_inodes, left);
            let output = scene.host.atomic(&words);
            scene.host.ok("rm -rf /root/ballast");
            tried += 1;
            let case = format!("{verb}, {left} {what} left");
            if output.code() == 0 {
                assert_eq!(scene.host.atomic_ok("recover"), "", "{case}");
                break;
            }
            refused += 1;
            let said = error_of(&case, &output);
            assert!(
                // systemd and a service that find no room say so in their own words.
                [
                    "No space left on device",
                    "no free inodes",
                    "systemd: enable web.service",
                    "could not start web.service"
                ]
                .iter()
                .any(|text| said.contains(text)),
                "{case}: {said}"
            );
            scene.host.atomic_ok("recover");
            // What was not tidied up was wholly done.
            if !said.contains("is done but for what is tidied up after it") {
                assert_unchanged(&scene.host, &before, verb, &case);
            }
            assert_whole(&scene.host, scene.port, &case);
            left += step * (1 + left / (10 * step));
            assert!(left < 100_000, "{case}");
        }
        assert_whole(&scene.host, scene.port, verb);
        scene
            .host
            .ok(&format!("ostree fsck --quiet --repo={C}/.storage/ostree"));
    }
    println!("{tried} tries, {refused} of them with too few {what}");
    assert!(refused > 5);
    drop(scene);
    drop(disk);
}

#[test]
fn a_full_disk_is_one_error_and_changes_nothing() {
    try_without_room(false);
}

#[test]
fn no_inodes_are_one_error_and_change_nothing() {
    try_without_room(true);
}

const SIGBUS: i32 = 7;

/// Every verb, on a disk that fails when it has taken so many bytes more: what was synced before is there afterwards,
/// and the host that boots from it is as before or as after the verb.
fn try_failing(kind: &'static Kind) {
    let scratch = Scratch::new("failing");
    let Some(disk) = FailingDisk::new(&scratch, kind) else {
        println!("not tried: this kernel has no disks that can be made to fail");
        return;
    };
    let mut scene = Scene::new(Host::boot_on(&disk.mount));
    scene.host.add_recovery();
    scene.install();
    let moments: &[u64] = if is_torture() {
        &[0, 16, 32, 64, 128, 256, 512, 768, 1024, 2048]
    } else {
        &[0, 16]
    };
    let verbs = if is_torture() {
        &VERBS[..]
    } else {
        &["update"]
    };
    let (mut tried, mut refused, mut died) = (0, 0, 0);
    for verb in verbs {
        for moment in moments {
            let words = scene.prepare(verb);
            let before = State::of(&scene.host);
            scene.host.ok("sync");
            disk.leave(moment * 1024);
            let output = scene.host.atomic(&words);
            let case = format!("{verb}, {} fails after {moment} KB", kind.name);
            tried += 1;
            // The program itself is on that disk as well, and dies where a part of it cannot be read.
            let is_dead = output.status.signal() == Some(SIGBUS) || output.code() == 128 + SIGBUS;
            if is_dead {
                println!("| {case} | dies of SIGBUS |");
                died += 1;
            }
            let said = (output.code() != 0 && !is_dead).then(|| error_of(&case, &output));
            if let Some(said) = &said {
                refused += 1;
                let is_told = [
                    "Input/output error",
                    "Read-only file system",
                    "Structure needs cleaning",
                ]
                .iter()
                .any(|text| said.contains(text));
                // The disk has systemd's files and its service's as well.
                let is_theirs = said.contains("web.service") || said.contains("systemd: ");
                assert!(is_told || is_theirs, "{case}: {said}");
            }
            scene = scene.rebooted(|| {
                disk.mend();
                Host::boot_on(&disk.mount)
            });
            let recovered = scene.host.atomic("recover");
            assert_eq!(
                (recovered.code(), recovered.out().as_str()),
                (0, ""),
                "{case}: {}",
                recovered.err()
            );
            assert_whole(&scene.host, scene.port, &case);
            // What could neither be done nor undone then was brought to one end or the other at the boot.
            let is_either = |said: &str| {
                [
                    "is done but for what is tidied up",
                    "and returning to the state before failed",
                ]
                .iter()
                .any(|text| said.contains(text))
            };
            let now = State::of(&scene.host);
            match said {
                _ if is_dead => {}
                // What is told to be done lasts, on this disk as well.
                None if matches!(*verb, "repair" | "prune") => {}
                None => assert_ne!(now, before, "{case}"),
                Some(said) if is_either(&said) => {}
                Some(_) => {
                    assert_eq!(now.container, before.container, "{case}");
                    assert!(
                        now.images == before.images || *verb == "update",
                        "{case}: {}",
                        now.images
                    );
                    assert_eq!(
                        now.images.lines().count(),
                        before.images.lines().count(),
                        "{case}"
                    );
                }
            }
            scene
                .host
                .ok(&format!("ostree fsck --quiet --repo={C}/.storage/ostree"));
            let next = scene.prepare("update");
            scene.host.atomic_ok(&next);
            assert_whole(&scene.host, scene.port, &format!("{case}, then {next}"));
        }
    }
    println!(
        "{}: {tried} tries, {refused} of them on a disk that failed, {died} without a word",
        kind.name
    );
    assert!(refused + died > 0);
    drop(scene);
    drop(disk);
}

#[test]
fn a_failing_disk_with_xfs_loses_nothing() {
    try_failing(&XFS);
}

#[test]
fn a_failing_disk_with_ext4_loses_nothing() {
    try_failing(&EXT4);
}

#[test]
fn what_cannot_be_written_or_run_is_one_error_and_changes_nothing() {
    let mut scene = Scene::new(Host::boot());
    let read_only = |at: &str| {
        (
            format!("mount --bind {at} {at} && mount -o remount,ro,bind {at}"),
            format!("umount {at}"),
        )
    };
    let store = read_only(C);
    let units = read_only("/etc/systemd/system");
    let tmpfiles = read_only("/etc/tmpfiles.d");
    let hidden = |program: &str| {
        (
            format!(
                "mount --bind /dev/null /usr/bin/{program} 2>/dev/null || mount --bind /dev/null /usr/sbin/{program}"
            ),
            format!("umount /usr/bin/{program} 2>/dev/null || umount /usr/sbin/{program}"),
        )
    };
    let no_runc = (
        hidden("runc").0 + "; " + &hidden("crun").0,
        hidden("runc").1 + "; " + &hidden("crun").1,
    );
    let no_bus = (
        "systemctl stop dbus.socket dbus.service; mv /run/systemd/private /run/systemd/private.away".to_owned(),
        "mv /run/systemd/private.away /run/systemd/private; systemctl start dbus.socket dbus.service".to_owned(),
    );
    let masked = (
        "ln -s /dev/null /run/systemd/system/web.service; mkdir -p /etc/systemd/system.control; ln -s /dev/null /etc/systemd/system.control/web.service; systemctl daemon-reload".to_owned(),
        "rm -f /run/systemd/system/web.service /etc/systemd/system.control/web.service; systemctl daemon-reload".to_owned(),
    );
    scene.install();
    for (what, (begin, end), verbs, wanted) in [
        (
            "store read-only",
            &store,
            &VERBS[..],
            &["Read-only file system", "read-only"][..],
        ),
        (
            "units read-only",
            &units,
            &["install", "update", "uninstall"],
            &["Read-only file system", "read-only"],
        ),
        (
            "tmpfiles read-only",
            &tmpfiles,
            &["install", "uninstall"],
            &["Read-only file system", "read-only"],
        ),
        (
            "no runtime",
            &no_runc,
            &["install"],
            &["is not installed", "runc"],
        ),
        (
            "no D-Bus",
            &no_bus,
            &["install", "update", "rollback", "uninstall"],
            &["D-Bus", "bus", "systemd"],
        ),
        (
            "unit masked",
            &masked,
            &["install"],
            &["masked", "web.service"],
        ),
    ] {
        for verb in verbs {
            let words = scene.prepare(verb);
            let before = State::of(&scene.host);
            let begun = scene.host.sh(begin);
            assert_eq!(begun.code(), 0, "{what}: {}", begun.err());
            let output = scene.host.atomic(&words);
            let ended = scene.host.sh(end);
            assert_eq!(ended.code(), 0, "{what}: {}", ended.err());
            let case = format!("{verb}, {what}");
            let said = error_of(&case, &output);
            assert!(
                wanted.iter().any(|wanted| said.contains(wanted)),
                "{case}: {said}"
            );
            scene.host.atomic_ok("recover");
            assert_unchanged(&scene.host, &before, verb, &case);
            assert_whole(&scene.host, scene.port, &case);
            let again = scene.host.atomic(&words);
            assert_eq!(again.code(), 0, "{case}, again: {}", again.err());
        }
    }
}

/// ^C or SIGTERM at any moment of a change: the old version is back when the command has ended, or it was too late and
/// the new one is there. Nothing is left to recover.
#[test]
fn a_signal_at_any_moment_of_a_change_leaves_one_version() {
    let mut scene = Scene::new(Host::boot());
    let mut random = Random::new();
    let rounds = if is_torture() { 200 } else { 10 };
    let verbs = ["update", "install", "rollback", "repair", "uninstall"];
    let (mut ended, mut late) = (0, 0);
    for verb in verbs.iter().cycle().take(rounds) {
        let words = scene.prepare(verb);
        let before = State::of(&scene.host);
        let (name, signal) = *random.one_of(&[("INT", 2), ("TERM", 15)]);
        let is_watched = matches!(*verb, "update" | "rollback");
        let moment =
            Duration::from_secs_f64(random.fraction() * if is_watched { 1.8 } else { 0.6 });
        // Who runs the tests in the background may have ^C ignored by all that is started.
        let inside = scene.host.command("atomic-rs");
        let child = Command::new("env")
            .arg("--default-signal=INT,TERM")
            .arg(inside.get_program())
            .args(inside.get_args())
            .args(words.split(' '))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(moment);
        // There is no other one on this host.
        scene.host.run(&format!("pkill -{name} -x atomic-rs"));
        let output = child.wait_with_output().unwrap();
        let case = format!("{verb}, {name} after {moment:?}: {}", output.status);
        assert!(
            !output.err().contains("panicked"),
            "{case}: {}",
            output.err()
        );
        let is_ended = output.status.signal() == Some(signal) || output.code() == 128 + signal;
        if is_ended {
            ended += 1;
            assert_unchanged(&scene.host, &before, verb, &case);
        } else {
            late += 1;
            assert_eq!(output.code(), 0, "{case}: {}", output.err());
        }
        let recovered = scene.host.atomic("recover");
        assert_eq!(
            (recovered.code(), recovered.out().as_str()),
            (0, ""),
            "{case}"
        );
        assert_whole(&scene.host, scene.port, &case);
    }
    println!("{ended} changes ended by a signal, {late} that were through or too far for it");
    assert!(ended >= 3);
}

#[test]
fn a_bus_that_goes_in_the_middle_leaves_one_version() {
    let registry = Registry::start();
    let host = Host::watching(4);
    let port = free_port();
    let update = host.begin_update(&registry, port);
    host.sh("systemctl stop dbus.socket dbus.service");
    let output = update.wait_with_output().unwrap();
    host.ok("systemctl start dbus.socket dbus.service");
    println!(
        "| update, D-Bus gone while it is watched | {}: {} |",
        output.code(),
        output.err().trim()
    );
    assert!(!output.err().contains("panicked"), "{}", output.err());
    host.atomic_ok("recover");
    assert_whole(&host, port, "after the bus was gone");
    host.atomic_ok("update web");
    wait_for_answer(port, "two");
    assert_whole(&host, port, "after the update");
}
