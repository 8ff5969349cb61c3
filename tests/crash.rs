//! Kills at random moments: every container is wholly old or wholly new afterwards.

mod support;

use std::io::{Read as _, Seek as _};
use std::process::Command;
use std::time::{Duration, Instant};

use support::images;
use support::whole::{C, assert_whole};
use support::{Host, Random, Registry, Said as _, free_port, is_torture};

const KILLS: u32 = 50;
/// The same in `make torture`.
const MANY_KILLS: u32 = 1000;

struct Trial<'h> {
    host: &'h Host,
    port: u16,
    killed: u32,
    completed: u32,
    done: u32,
    undone: u32,
    random: Random,
    /// Moments were drawn from this long: a little more than the verb takes.
    span: Duration,
}

impl Trial<'_> {
    /// Start a verb, kill it at a random moment, recover.
    fn kill(&mut self, words: &str) {
        let moment = self.span.mul_f64(self.random.fraction() * 1.1);
        let start = Instant::now();
        let mut said = tempfile::tempfile().unwrap();
        let mut child = self
            .host
            .command("atomic-rs")
            .args(words.split_whitespace())
            .stdout(std::process::Stdio::null())
            .stderr(said.try_clone().unwrap())
            .spawn()
            .unwrap();
        std::thread::sleep(moment);
        // nsenter forks for the new process namespace: the program is its only child.
        let nsenter = child.id();
        let children = std::fs::read_to_string(format!("/proc/{nsenter}/task/{nsenter}/children"))
            .unwrap_or_default();
        for pid in children.split_whitespace() {
            let _ = Command::new("kill").args(["-KILL", pid]).status();
        }
        let status = child.wait().unwrap();
        if status.success() {
            self.completed += 1;
            self.span = (self.span + start.elapsed()) / 2;
        } else {
            self.killed += 1;
            let mut text = String::new();
            said.rewind().unwrap();
            said.read_to_string(&mut text).unwrap();
            assert!(!children.is_empty(), "{words} failed by itself: {text}");
        }
        // Half the time as after a power cut: files first, before D-Bus is there.
        if self.random.fraction() < 0.5 {
            let early = self.host.atomic("recover --offline");
            assert_eq!(early.code(), 0, "{words} at {moment:?}: {}", early.err());
            let again = self.host.atomic("recover --offline");
            assert_eq!(again.code(), 0, "{words} at {moment:?}: {}", again.err());
        }
        let recovered = self.host.atomic("recover");
        assert_eq!(
            recovered.code(),
            0,
            "{words} at {moment:?}: {}",
            recovered.err()
        );
        self.done += u32::from(recovered.out().contains("completed"));
        self.undone += u32::from(recovered.out().contains("undone"));
        // A second recovery finds nothing to do.
        let again = self.host.atomic("recover");
        assert_eq!(
            (again.code(), again.out().as_str()),
            (0, ""),
            "{words} at {moment:?}"
        );
        let at = format!("{words} killed after {moment:?}");
        assert_whole(self.host, self.port, &at);
    }
}

#[test]
fn kills_at_random_moments_leave_every_container_wholly_old_or_wholly_new() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    let mut trial = Trial {
        host: &host,
        port,
        killed: 0,
        completed: 0,
        done: 0,
        undone: 0,
        random: Random::new(),
        span: Duration::from_millis(300),
    };
    let reference = registry.name("web");
    let mut version = 0;
    let mut push = || {
        version += 1;
        images::plain(port, &format!("version-{version}")).push(&registry, "web");
    };
    push();
    let repo = format!("{C}/.storage/ostree");
    let verbs = ["install", "update", "rollback", "update", "uninstall"];
    let mut verb = 0;
    let kills = if is_torture() { MANY_KILLS } else { KILLS };
    while trial.killed < kills {
        let installed = host.run(&format!("readlink {C}/web")).code() == 0;
        let has_other = host.exists(&format!("{C}/web.0")) && host.exists(&format!("{C}/web.1"));
        let words = match verbs[verb % verbs.len()] {
            "install" if !installed => format!("install --name web {reference}"),
            "update" if installed => {
                push();
                "update web".to_owned()
            }
            "rollback" if has_other => "rollback web".to_owned(),
            "uninstall" if installed => "uninstall web".to_owned(),
            _ => {
                verb += 1;
                continue;
            }
        };
        verb += 1;
        trial.kill(&words);
        if trial.killed.is_multiple_of(10) {
            host.ok(&format!("ostree fsck --quiet --repo={repo}"));
        }
        // What killed pulls left behind goes at the next prune.
    }
    println!(
        "{} kills, {} verbs that were faster; recovery completed {} and undid {}",
        trial.killed, trial.completed, trial.done, trial.undone
    );
    assert!(
        trial.done + trial.undone > 5,
        "the kills must hit changes under way"
    );
    host.ok(&format!("ostree fsck --quiet --repo={repo}"));
    if host.run(&format!("readlink {C}/web")).code() != 0 {
        host.atomic_ok(&format!("install --name web {reference}"));
    }
    host.atomic_ok("uninstall web");
    host.atomic_ok("-y images delete --all");
    host.atomic_ok("images prune");
    host.ok(&format!("ostree fsck --quiet --repo={repo}"));
}
