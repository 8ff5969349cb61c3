//! A real systemd host that boots in a second: systemd-nspawn over an overlay whose lower layer is
//! this machine's root.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::images::plain;
use super::{Registry, Said as _, Scratch, must, program, wait_for_answer};

/// Units that have no business in a throwaway host.
const MASKED: [&str; 9] = [
    "systemd-udevd.service",
    "systemd-udev-trigger.service",
    "systemd-networkd.service",
    "systemd-timesyncd.service",
    "systemd-resolved.service",
    "systemd-firstboot.service",
    "systemd-update-utmp.service",
    "e2scrub_reap.service",
    "docker-registry.service",
];

const TARGET: &str = "[Unit]\nRequires=basic.target\nWants=dbus.service\nAfter=basic.target dbus.service\nAllowIsolate=yes\n";

pub struct Host {
    nspawn: Child,
    leader: u32,
    containers: PathBuf,
    _cgroups: Cgroups,
    _scratch: Scratch,
}

impl Host {
    /// Boot a host with the program under test installed as `/usr/local/bin/atomic-rs`.
    pub fn boot() -> Self {
        Self::boot_with(|_| {})
    }

    /// The same after `prepare` did something to its root directory.
    pub fn boot_with(prepare: impl FnOnce(&Path)) -> Self {
        let scratch = Scratch::new("host");
        let base = scratch.join("host");
        std::fs::create_dir_all(&base).unwrap();
        must(
            Command::new("mount")
                .args(["-t", "tmpfs", "tmpfs"])
                .arg(&base),
        );
        let containers = scratch.join("containers");
        Self::start(scratch, &base, containers, prepare)
    }

    /// The same with another time for which new versions are watched, in seconds.
    pub fn watching(seconds: u32) -> Self {
        Self::boot_with(|root| {
            let config = format!("watch = {seconds}\n");
            std::fs::write(root.join("etc/atomic-rs.toml"), config).unwrap();
        })
    }

    /// A host that has all it writes in `disk`, the root of a file system of its own. One that was there before boots
    /// again as it was.
    pub fn boot_on(disk: &Path) -> Self {
        let scratch = Scratch::new("host");
        Self::start(scratch, disk, disk.join("containers"), |_| ())
    }

    fn start(
        scratch: Scratch,
        base: &Path,
        containers: PathBuf,
        prepare: impl FnOnce(&Path),
    ) -> Self {
        let is_new = !base.join("upper").exists();
        std::fs::create_dir_all(&containers).unwrap();
        for dir in ["upper", "work"] {
            std::fs::create_dir_all(base.join(dir)).unwrap();
        }
        // Below the scratch directory, where whoever comes after a crash unmounts it first.
        let root = scratch.join("host/root");
        std::fs::create_dir_all(&root).unwrap();
        must(
            Command::new("mount")
                .args(["-t", "overlay", "overlay", "-o"])
                .arg(format!(
                    "lowerdir=/,upperdir={0}/upper,workdir={0}/work",
                    base.display()
                ))
                .arg(&root),
        );
        if is_new {
            furnish(&root);
            prepare(&root);
        }
        let log = std::fs::File::create(scratch.join("console.log")).unwrap();
        let cgroups = Cgroups::new(&scratch);
        let mut nspawn = Command::new("sh")
            .arg("-c")
            .arg(cgroups.enter("exec systemd-nspawn \"$@\""))
            .arg("sh")
            .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1")
            .args([
                "--quiet",
                "--register=no",
                "--keep-unit",
                "--capability=all",
            ])
            .args([
                "--system-call-filter=@known",
                "--console=pipe",
                "--boot",
                "-D",
            ])
            .arg(&root)
            .arg(format!(
                "--bind={}:/var/lib/containers",
                containers.display()
            ))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("sh cannot run");
        std::fs::write(scratch.join("pid"), nspawn.id().to_string()).unwrap();
        let start = Instant::now();
        let leader = loop {
            if let Some(leader) = leader_of(nspawn.id()) {
                break leader;
            }
            assert!(
                start.elapsed() < Duration::from_secs(20) && nspawn.try_wait().unwrap().is_none(),
                "the host does not boot: {}",
                std::fs::read_to_string(scratch.join("console.log")).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(10));
        };
        let host = Self {
            nspawn,
            leader,
            containers,
            _cgroups: cgroups,
            _scratch: scratch,
        };
        host.wait_until_up();
        host
    }

    fn wait_until_up(&self) {
        let start = Instant::now();
        loop {
            let output = self
                .command("systemctl")
                .args(["is-system-running", "--wait"])
                .output()
                .unwrap();
            if matches!(output.out().trim(), "running" | "degraded") {
                break;
            }
            assert!(
                start.elapsed() < Duration::from_mins(1),
                "the host does not come up: {}{}",
                output.out(),
                output.err()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A command inside the host.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args([
                "-t",
                &self.leader.to_string(),
                "-m",
                "-u",
                "-i",
                "-p",
                "-C",
                "--",
            ])
            .args([
                "env",
                "-i",
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME=/root",
                "LANG=C.UTF-8",
            ])
            .arg(program)
            .stdin(Stdio::null());
        command
    }

    /// Run words separated by blanks inside the host.
    pub fn run(&self, words: &str) -> Output {
        let mut words = words.split_whitespace();
        let program = words.next().unwrap();
        self.command(program).args(words).output().unwrap()
    }

    /// The same for a command that must work; its stdout.
    pub fn ok(&self, words: &str) -> String {
        let output = self.run(words);
        assert!(
            output.status.success(),
            "{words}: {}\n{}{}",
            output.status,
            output.out(),
            output.err()
        );
        output.out()
    }

    /// Run a shell script inside the host.
    pub fn sh(&self, script: &str) -> Output {
        self.command("bash").args(["-c", script]).output().unwrap()
    }

    /// Run the program under test inside the host.
    pub fn atomic(&self, words: &str) -> Output {
        self.run(&format!("atomic-rs {words}"))
    }

    /// The same where it must work.
    pub fn atomic_ok(&self, words: &str) -> String {
        self.ok(&format!("atomic-rs {words}"))
    }

    /// Have `web` run its first version, and begin to update it: the second one answers, and is being watched.
    pub fn begin_update(&self, registry: &Registry, port: u16) -> Child {
        plain(port, "one").push(registry, "web");
        self.atomic_ok(&format!("install --name web {}", registry.name("web")));
        self.ok("systemctl start web");
        plain(port, "two").push(registry, "web");
        let update = self
            .command("atomic-rs")
            .args(["update", "web"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_for_answer(port, "two");
        update
    }

    /// The units that bring interrupted changes in order, as they are shipped; they run at the next boot.
    pub fn add_recovery(&self) {
        for unit in [
            "atomic-rs-recover.service",
            "atomic-rs-recover-finish.service",
        ] {
            let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/systemd/system");
            let text = std::fs::read_to_string(format!("{shipped}/{unit}")).unwrap();
            let text = text.replace("@BINDIR@", "/usr/local/bin");
            std::fs::write(self.path(&format!("/etc/systemd/system/{unit}")), text).unwrap();
            self.ok(&format!("systemctl enable {unit}"));
        }
        // This host's default target stands in for the usual one.
        self.ok("systemctl add-wants atomic-test.target atomic-rs-recover-finish.service");
    }

    /// A path of the host, seen from outside.
    pub fn path(&self, path: &str) -> PathBuf {
        match path.strip_prefix("/var/lib/containers/") {
            Some(rest) => self.containers.join(rest),
            // Mounts of the host (its /run, its /tmp) are seen through its first process.
            None => {
                Path::new(&format!("/proc/{}/root", self.leader)).join(path.trim_start_matches('/'))
            }
        }
    }

    /// The content of a file of the host.
    pub fn read(&self, path: &str) -> String {
        // Inside, where absolute links mean what they say.
        self.ok(&format!("cat {path}"))
    }

    /// What is in a tree, as one text: names, kinds, modes and links, and the content of files.
    pub fn hash_of(&self, tree: &str) -> String {
        let said = self.sh(&format!(
            "cd {tree} && find . -printf '%p %y %m %l\\n' | sort | sha256sum && \
             find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum"
        ));
        assert_eq!(said.code(), 0, "{tree}: {}", said.err());
        said.out()
    }

    pub fn exists(&self, path: &str) -> bool {
        std::fs::symlink_metadata(self.path(path)).is_ok()
    }

    /// Assert that nothing below some directories has changed since `before` was listed.
    pub fn assert_unchanged(&self, directories: &[&str], before: &str) {
        let after = self.listing(directories);
        let lines = |text| str::lines(text).collect::<BTreeSet<&str>>();
        let (before, after) = (lines(before), lines(&after));
        let gone: Vec<_> = before.difference(&after).collect();
        let new: Vec<_> = after.difference(&before).collect();
        assert!(
            gone.is_empty() && new.is_empty(),
            "gone: {gone:#?}\nnew: {new:#?}"
        );
    }

    /// Names and kinds of everything below some directories of the host, with times and sizes: two
    /// equal listings mean that nothing was changed.
    pub fn listing(&self, directories: &[&str]) -> String {
        let script = format!(
            "find {} -not -name .lock -not -path '*/.locks*' -printf '%p %y %s %i %m %T@\\n' 2>/dev/null | sort",
            directories.join(" ")
        );
        self.sh(&script).out()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let journal = self.run("journalctl --no-pager --lines=60 --output=short-monotonic");
            eprintln!("the host's journal:\n{}", journal.out());
        }
        let _ = Command::new("kill")
            .args(["-KILL", &self.leader.to_string()])
            .status();
        let _ = self.nspawn.wait();
    }
}

/// Control groups of a host's own: without them two hosts would share the one this test runs in, and
/// the `web.service` of one would be stopped with that of the other.
struct Cgroups(Vec<PathBuf>);

impl Cgroups {
    fn new(scratch: &Scratch) -> Self {
        let name = scratch.path().file_name().unwrap().to_string_lossy();
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        let paths: Vec<PathBuf> = mounts
            .lines()
            .filter_map(|line| {
                let mut words = line.split(' ').skip(1);
                let (at, kind, options) = (words.next()?, words.next()?, words.next()?);
                let wanted = kind == "cgroup2" || options.contains("name=systemd");
                wanted.then(|| Path::new(at).join(format!("atomic-rs-tests-{name}")))
            })
            .collect();
        for path in &paths {
            sweep_cgroups(path.parent().unwrap());
            std::fs::create_dir(path).unwrap();
        }
        Self(paths)
    }

    /// A shell script that runs `then` inside.
    fn enter(&self, then: &str) -> String {
        let enter = |path: &PathBuf| format!("echo $$ > {}/cgroup.procs; ", path.display());
        self.0.iter().map(enter).collect::<String>() + then
    }
}

/// Remove the groups of test programs that died.
fn sweep_cgroups(parent: &Path) {
    for entry in std::fs::read_dir(parent).unwrap().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let pid = name
            .strip_prefix("atomic-rs-tests-")
            .and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove_cgroup(&entry.path());
        }
    }
}

fn remove_cgroup(path: &Path) {
    let _ = Command::new("find")
        .arg(path)
        .args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"])
        .stderr(Stdio::null())
        .status();
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for path in &self.0 {
            // Killed processes take a moment to leave.
            for _ in 0..100 {
                remove_cgroup(path);
                if !path.exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

fn furnish(root: &Path) {
    let system = root.join("etc/systemd/system");
    for entry in std::fs::read_dir(&system).unwrap().flatten() {
        if entry.file_name().to_string_lossy().ends_with(".wants") {
            std::fs::remove_dir_all(entry.path()).unwrap();
        }
    }
    std::fs::write(system.join("atomic-test.target"), TARGET).unwrap();
    let default = system.join("default.target");
    let _ = std::fs::remove_file(&default);
    symlink("atomic-test.target", default).unwrap();
    for unit in MASKED {
        let path = system.join(unit);
        let _ = std::fs::remove_file(&path);
        symlink("/dev/null", path).unwrap();
    }
    std::fs::write(
        root.join("etc/machine-id"),
        "b08dfa6083e7567a1921a715000001fb\n",
    )
    .unwrap();
    // A test that is about the watch says how long it shall be.
    std::fs::write(root.join("etc/atomic-rs.toml"), "watch = 1\n").unwrap();
    let bin = root.join("usr/local/bin");
    std::fs::create_dir_all(&bin).unwrap();
    std::fs::copy(program(), bin.join("atomic-rs")).unwrap();
}

/// The first process of the container: the child of nspawn that is number 1 in its own namespace.
fn leader_of(nspawn: u32) -> Option<u32> {
    let children =
        std::fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children")).ok()?;
    children.split_whitespace().find_map(|pid| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let is_first = status
            .lines()
            .any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"));
        let booted = Path::new(&format!("/proc/{pid}/root/run/systemd/private")).exists();
        (is_first && booted).then(|| pid.parse().ok())?
    })
}
