//! Every verb is killed, and made to fail, at every point where it writes something that lasts: the container is
//! wholly old or wholly new afterwards, and the verb then works.
//!
//! Here each kind of point is tried once, in one of the two ways; `make torture` tries all points in both.
//! `ATOMIC_RS_FAULT_VERBS=update,rollback` tries only these verbs.

mod support;

use std::collections::BTreeSet;
use std::process::Output;

use serde_json::Value;
use support::scene::Scene;
use support::whole::{C, assert_whole};
use support::{Host, Said as _, is_torture};

/// What is done at a point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    Kill,
    Fail,
}

impl Fault {
    fn word(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Fail => "fail",
        }
    }
}

const VERBS: [&str; 13] = [
    "pull",
    "install",
    "update",
    "return",
    "rollback",
    "repair",
    "uninstall",
    "prune",
    "install-package",
    "update-package",
    "return-package",
    "rollback-package",
    "uninstall-package",
];

/// What the journal has where a recovery completed a change, undid one, and where a version was given up.
const COMPLETED: &str = "45fa0026a95c4b2b9b3ae3de6e8f11d6";
const UNDONE: &str = "45554ddb54054ed4be29882a81991852";
const RETURNED: &str = "665dd7d3867c4b4588c6a78f8984c213";

/// What one verb went through.
#[derive(Default)]
struct Row {
    points: usize,
    tried: u32,
    not_reached: u32,
    /// Faults that the verb lived with: what failed is tidied up later.
    borne: u32,
}

/// The faults of a scene.
struct Trial {
    scene: Scene,
}

impl Trial {
    /// How often an event is in the journal.
    fn noted(&self, id: &str) -> usize {
        let said = self
            .scene
            .host
            .sh(&format!("journalctl --quiet --output=json MESSAGE_ID={id}"));
        said.out().lines().count()
    }

    fn run(&self, words: &str, env: &str) -> Output {
        self.scene.host.sh(&format!("env {env} atomic-rs {words}"))
    }

    /// The names of all points that a verb comes to, in their order.
    fn points(&mut self, verb: &str) -> Vec<String> {
        let words = self.scene.prepare(verb);
        self.scene.host.ok("rm -f /root/points");
        let output = self.run(&words, "ATOMIC_RS_FAULT_LOG=/root/points");
        assert_eq!(
            output.code(),
            i32::from(is_return(verb)),
            "{words}: {}",
            output.err()
        );
        let text = self.scene.host.read("/root/points");
        text.lines().map(str::to_owned).collect()
    }

    /// The package manager's books say what the deployment in use says.
    fn assert_package(&self, verb: &str, at: &str) {
        let host = &self.scene.host;
        let query =
            "dpkg-query -W -f '${db:Status-Abbrev}${Version} ' atomic-container-web; dpkg --audit";
        let found = host.sh(query).out();
        let info = host.sh(&format!("cat {C}/web/info"));
        let info: Value = serde_json::from_str(&info.out()).unwrap_or_default();
        match info["package"]["version"].as_str() {
            Some(version) => assert_eq!(found, format!("ii {version} "), "{at}"),
            None => assert_eq!(found, "", "{at}"),
        }
        assert_eq!(
            info["package"].is_object(),
            self.scene.is_installed() && verb.ends_with("-package"),
            "{at}: {info}"
        );
    }

    fn attempt(&mut self, verb: &str, fault: Fault, number: usize, name: &str, row: &mut Row) {
        let words = self.scene.prepare(verb);
        let output = self.run(
            &words,
            &format!("ATOMIC_RS_FAULT={}@{number}", fault.word()),
        );
        let at = format!("{words} ({verb}), {fault:?} at point {number}, \"{name}\"");
        println!("{at}: {}", output.status);
        let expected = i32::from(is_return(verb));
        match (fault, output.code()) {
            // By a signal.
            (Fault::Kill, -1 | 137) => row.tried += 1,
            // There were fewer points this time.
            (Fault::Kill, code) if code == expected => row.not_reached += 1,
            (Fault::Fail, 1) if output.err().contains("a fault was asked for") => row.tried += 1,
            (Fault::Fail, code) if code == expected => {
                row.tried += 1;
                row.borne += 1;
            }
            (_, code) => panic!("{at}: {code}: {}", output.err()),
        }
        assert!(!output.err().contains("panicked"), "{at}: {}", output.err());
        // Some as after a power cut: files first, before D-Bus is there; and some as the units at boot do it.
        match number % 3 {
            0 => {
                for unit in ["atomic-rs-recover", "atomic-rs-recover-finish"] {
                    // It counts how often it is started in a short time.
                    self.scene
                        .host
                        .run(&format!("systemctl reset-failed {unit}"));
                    let started = self.scene.host.run(&format!("systemctl start {unit}"));
                    let journal = format!("journalctl -u {unit} -n 20 --no-pager -o cat");
                    assert_eq!(
                        started.code(),
                        0,
                        "{at}: {}",
                        self.scene.host.run(&journal).out()
                    );
                }
            }
            1 => {
                let early = self.scene.host.atomic("recover --offline");
                assert_eq!(early.code(), 0, "{at}: {}", early.err());
            }
            _ => {}
        }
        let recovered = self.scene.host.atomic("recover");
        assert_eq!(recovered.code(), 0, "{at}: {}", recovered.err());
        let at = format!("{at}, recovered: {}{}", recovered.out(), recovered.err());
        assert_eq!(self.scene.host.atomic("recover").out(), "", "{at}");
        assert_whole(&self.scene.host, self.scene.port, &at);
        self.assert_package(verb, &at);
        let listed = self.scene.host.atomic_ok("containers list --json");
        let listed: Value = serde_json::from_str(&listed).unwrap();
        assert_eq!(
            listed.as_array().is_some_and(|all| all
                .iter()
                .any(|one| one["container"] == "web" || one["id"] == "web")),
            self.scene.is_installed(),
            "{at}: {listed}"
        );
        // The same verb works now, if there is anything left to do.
        let again = match verb.strip_suffix("-package").unwrap_or(verb) {
            "install" if self.scene.is_installed() => return,
            "uninstall" if !self.scene.is_installed() => return,
            "return" => return,
            _ => self.scene.host.atomic(&words),
        };
        assert_eq!(again.code(), 0, "{at}, again: {}", again.err());
    }
}

fn is_return(verb: &str) -> bool {
    verb.starts_with("return")
}

/// The numbers of the points to try: all, or the first one of each name, of which one half is for kills and the other
/// one for failures. What is as without a package is not tried at all its points again: of those the first one of each
/// name, or only of what has to do with packages.
fn chosen(verb: &str, points: &[String], fault: Fault) -> Vec<usize> {
    let with_package = verb.ends_with("-package");
    if is_torture() && !with_package {
        return (1..=points.len()).collect();
    }
    let mut names = BTreeSet::new();
    let first = (1..=points.len()).filter(|number| names.insert(&points[number - 1]));
    if is_torture() {
        return first.collect();
    }
    if with_package {
        return first
            .filter(|number| points[number - 1].contains("Package"))
            .collect();
    }
    first
        .skip(usize::from(fault == Fault::Fail))
        .step_by(2)
        .collect()
}

fn try_all(fault: Fault) {
    let host = Host::boot();
    host.add_recovery();
    let mut trial = Trial {
        scene: Scene::new(host),
    };
    let repo = format!("{C}/.storage/ostree");
    let mut table =
        String::from("verb              points  tried  not reached  completed  undone  borne\n");
    let only = std::env::var("ATOMIC_RS_FAULT_VERBS").unwrap_or_default();
    for verb in VERBS {
        if !only.is_empty() && !only.split(',').any(|one| one == verb) {
            continue;
        }
        let points = trial.points(verb);
        let before = (trial.noted(COMPLETED), trial.noted(UNDONE));
        let mut row = Row {
            points: points.len(),
            ..Row::default()
        };
        for number in chosen(verb, &points, fault) {
            let name = &points[number - 1];
            trial.attempt(verb, fault, number, name, &mut row);
        }
        assert!(row.tried > 0, "{verb}");
        trial
            .scene
            .host
            .ok(&format!("ostree fsck --quiet --repo={repo}"));
        table += &format!(
            "{verb:17} {:6} {:6} {:12} {:10} {:7} {:6}\n",
            row.points,
            row.tried,
            row.not_reached,
            trial.noted(COMPLETED) - before.0,
            trial.noted(UNDONE) - before.1,
            row.borne
        );
    }
    assert!(
        !only.is_empty()
            || trial.noted(COMPLETED) > 0 && trial.noted(UNDONE) > 0 && trial.noted(RETURNED) > 0
    );
    println!("{fault:?}: inconsistent states: 0\n{table}");
    if trial.scene.is_installed() {
        trial.scene.host.atomic_ok("uninstall web");
    }
    trial.scene.host.atomic_ok("-y images delete --all");
    trial.scene.host.atomic_ok("images prune");
    trial
        .scene
        .host
        .ok(&format!("ostree fsck --quiet --repo={repo}"));
    let left = trial.scene.host.sh(&format!(
        "find {repo}/objects -type f | wc -l; ls {repo}/tmp"
    ));
    println!("objects and leftovers in the end: {}", left.out());
}

#[test]
fn a_kill_at_any_point_leaves_every_container_wholly_old_or_wholly_new() {
    try_all(Fault::Kill);
}

#[test]
fn a_failure_at_any_point_is_one_error_and_changes_nothing_or_everything() {
    try_all(Fault::Fail);
}
