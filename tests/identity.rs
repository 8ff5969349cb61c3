//! Plan, apply, undo: whatever plan is applied, and before whatever step it fails, everything is as it was. The plans
//! are made up at random of steps that change files, directories, names, refs and what is enabled, and applied by the
//! engine itself on a host of their own. What fails within a step, kills, and services that run are in `faults.rs`.

mod support;

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use atomic_rs::config::Config;
use atomic_rs::deployment::{ContainerName, Paths, Slot};
use atomic_rs::hostfiles::{Kind, Payload};
use atomic_rs::interrupt::Interrupt;
use atomic_rs::store::Store;
use atomic_rs::transaction::{self, DeployFile, Plan, Step};
use camino::{Utf8Path, Utf8PathBuf};
use support::{Host, Random, Said as _, is_torture, must};

/// How many plans are tried, each with a failure at each of its steps.
const PLANS: usize = 6;
/// The same in `make torture`.
const MANY_PLANS: usize = 150;
/// Says to the test below how many, and that it is where it may change things.
const ASKED: &str = "ATOMIC_RS_PLANS";

/// Where the container's own things are on the host, and what its root file system has for it.
const ABOVE: &str = "/srv/web";
const REMOTE: &str = "/srv/remote";
const UNIT: &str = "/etc/systemd/system/web.service";
/// A file: nothing can be made below it.
const NO_DIRECTORY: &str = "/srv/file";

#[test]
fn a_plan_that_fails_anywhere_changes_nothing() {
    let host = Host::boot();
    let program = host.path("/root/plans");
    std::fs::copy(std::env::current_exe().unwrap(), program).unwrap();
    let plans = if is_torture() { MANY_PLANS } else { PLANS };
    let seed = std::env::var("ATOMIC_RS_SEED");
    let output = host
        .command("env")
        .arg(format!("{ASKED}={plans}"))
        .args(seed.map(|seed| format!("ATOMIC_RS_SEED={seed}")))
        .args(["/root/plans", "--ignored", "--exact", "plans_on_this_host"])
        .arg("--nocapture")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}{}", output.out(), output.err());
    assert!(output.out().contains("1 passed"), "{}", output.out());
    print!("{}", output.out());
}

#[test]
#[ignore = "changes the machine: the test above runs it on a host of its own"]
fn plans_on_this_host() {
    let plans = std::env::var(ASKED).expect("only on a throwaway host");
    let plans: usize = plans.parse().unwrap();
    let mut random = Random::new();
    let config = Config::load(Interrupt::listen().unwrap()).unwrap();
    let host = transaction::Host::new(&config);
    let mut world = World::new(&config);
    let (mut failed, mut applied, mut kinds) = (0, 0, BTreeSet::new());
    for number in 0..plans {
        let plan = world.plan(&mut random);
        kinds.extend(plan.steps().map(kind));
        let before = world.listing();
        // What is past the commit point of an uninstallation has no way back.
        let prove = if plan.to.is_some() {
            plan.prove.len() + 1
        } else {
            0
        };
        let stop = plan.stop.len();
        for phase in [plan.stage.len() + 1, stop, plan.switch.len() + 1, prove]
            .into_iter()
            .enumerate()
            .flat_map(|(phase, length)| (0..length).map(move |at| (phase, at)))
        {
            let mut broken = plan.clone();
            broken.id = format!("{:08x}", failed + 1);
            let impossible = Step::MakeDirectory {
                path: format!("{NO_DIRECTORY}/x").into(),
                owner: (0o755, 0, 0),
            };
            match phase {
                (0, at) => broken.stage.insert(at, impossible),
                (1, at) => broken.stop.insert(at + 1, impossible),
                (2, at) => broken.switch.insert(at, impossible),
                (_, at) => broken.prove.insert(at, impossible),
            }
            let error = transaction::apply(&host, &broken, None).unwrap_err();
            let at = format!("plan {number}, failed at {phase:?}: {error}\n{plan:#?}");
            assert!(error.to_string().contains(NO_DIRECTORY), "{at}");
            assert_eq!(world.listing(), before, "{at}");
            failed += 1;
        }
        transaction::apply(&host, &plan, None)
            .unwrap_or_else(|error| panic!("plan {number}: {error}\n{plan:#?}"));
        assert!(transaction::recover(&host, &plan.name).unwrap().is_none());
        let after = world.listing();
        world.check(&plan, &after);
        applied += 1;
    }
    println!(
        "{applied} plans of {} kinds of steps, undone after {failed} failures: all as before",
        kinds.len()
    );
    assert!(kinds.len() >= 18 || plans < PLANS, "{kinds:?}");
}

/// A step's name.
fn kind(step: &Step) -> String {
    let text = format!("{step:?}");
    text.split([' ', '{']).next().unwrap_or_default().to_owned()
}

/// What plans change.
struct World {
    name: ContainerName,
    paths: Paths,
    store: Utf8PathBuf,
    commits: Vec<String>,
    version: usize,
}

impl World {
    fn new(config: &Config) -> Self {
        let name: ContainerName = "web".parse().unwrap();
        drop(Store::open(config).unwrap());
        let store = config.checkouts.join(".storage/ostree");
        for directory in [ABOVE, "/srv/remote/d", "/srv/web/a", "/srv/web/b"] {
            std::fs::create_dir_all(directory).unwrap();
        }
        std::fs::write(NO_DIRECTORY, "").unwrap();
        let commits = (0..3).map(|number| {
            std::fs::write(format!("{REMOTE}/f{number}"), format!("remote {number}")).unwrap();
            let commit = ["commit", "--branch=seed", "--tree=dir=/srv/remote"];
            must(
                Command::new("ostree")
                    .arg(format!("--repo={store}"))
                    .args(commit),
            )
            .trim()
            .to_owned()
        });
        Self {
            commits: commits.collect(),
            paths: Paths::new(config, &name),
            name,
            store,
            version: 0,
        }
    }

    /// All there is: kinds, modes, owners, contents, targets, and times of files.
    fn listing(&self) -> String {
        let script = r#"
            cd / && above=$1 && shift
            find srv/web etc/systemd/system etc/tmpfiles.d "$above" -path '*/.storage' -prune -o \
                -type f -printf '%p %y %m %U:%G %s %T@\n' -o -printf '%p %y %m %U:%G %l\n' | sort
            find srv/web etc/systemd/system "$above" -path '*/.storage' -prune -o -type f -exec sha256sum {} + | sort
            cd "$1/refs/heads" && find . -type f -printf '%p ' -exec cat {} ';' | sort
        "#;
        let above = self.paths.link();
        let above = above.parent().unwrap().as_str().trim_start_matches('/');
        must(Command::new("bash").args(["-ec", script, "bash", above, self.store.as_str()]))
    }

    fn text(&mut self) -> String {
        self.version += 1;
        format!("version {}\n", self.version)
    }

    /// A plan that goes somewhere from how things are.
    fn plan(&mut self, random: &mut Random) -> Plan {
        let from = self.paths.current().unwrap();
        // Nowhere is an uninstallation, the same slot a repair.
        let to = match from {
            None => Some(*random.one_of(&[Slot::Zero, Slot::One])),
            Some(slot) => {
                *random.one_of(&[Some(slot.other()), Some(slot.other()), Some(slot), None])
            }
        };
        let verb = match (from, to) {
            (None, _) => "install",
            (_, None) => "uninstall",
            _ if from == to => "repair",
            _ => "update",
        };
        let mut plan = Plan::new(verb, &self.name, from, to);
        plan.was_enabled =
            std::fs::symlink_metadata("/etc/systemd/system/multi-user.target.wants/web.service")
                .is_ok();
        self.add_ref(&mut plan, random);
        if let Some(slot) = to {
            plan.stage.push(Step::Deploy {
                slot,
                commit: None,
                remote: Some(REMOTE.into()),
                files: vec![DeployFile {
                    name: "config.json".into(),
                    content: self.text(),
                    mode: 0o600,
                }],
            });
            plan.switch.push(Step::PlaceDeployment { slot });
            plan.close.push(Step::DropDeployment { slot });
        }
        for slot in [Slot::Zero, Slot::One] {
            if to.is_none() && self.paths.slot(slot).exists() {
                plan.switch.push(Step::RemoveDeployment { slot });
                plan.close.push(Step::DropDeployment { slot });
            }
        }
        for directory in ["a", "b", "a/c", "a/c/d"] {
            add_directory(&mut plan, &Utf8Path::new(ABOVE).join(directory), random);
        }
        for file in ["x", "a/x", "a/y", "b/x", "a/c/x", "a/c/d/x"] {
            self.add_file(&mut plan, &Utf8Path::new(ABOVE).join(file), random);
        }
        self.add_unit(&mut plan);
        plan.switch.push(Step::Switch { from, to });
        plan.prove.insert(0, Step::Reload);
        plan
    }

    fn add_ref(&self, plan: &mut Plan, random: &mut Random) {
        let name = "atomic-deployment/web/next".to_owned();
        let from = std::fs::read_to_string(self.store.join("refs/heads").join(&name)).ok();
        let from = from.map(|commit| commit.trim().to_owned());
        let to = random.below(3);
        let to = self
            .commits
            .get(to)
            .filter(|_| random.below(4) > 0)
            .cloned();
        plan.stage.push(Step::SetRef { name, from, to });
    }

    fn add_file(&mut self, plan: &mut Plan, target: &Utf8Path, random: &mut Random) {
        let target = target.to_owned();
        if !will_be_there(plan, target.parent().unwrap()) {
            return;
        }
        let replaces = std::fs::symlink_metadata(&target).is_ok();
        match (random.below(4), plan.to) {
            (0, _) => return,
            (1, _) if replaces => {
                remove(plan, target.clone());
                if random.below(2) == 0 {
                    let path = target.parent().unwrap().to_owned();
                    plan.close.push(Step::RemoveEmptyDir { path });
                }
                return;
            }
            (2, Some(slot)) => plan.stage.push(Step::StageHostFile {
                slot,
                target: target.clone(),
                payload: Payload {
                    source: format!("/f{}", random.below(3)),
                    kind: match random.below(3) {
                        0 => Kind::Link("../f0".into()),
                        1 => Kind::Text(self.text()),
                        _ => Kind::File,
                    },
                    mode: *random.one_of(&[0o644, 0o4755, 0o600]),
                    uid: 0,
                    gid: 1,
                    xattrs: Vec::new(),
                    may_link: false,
                },
            }),
            _ => plan.stage.push(Step::StageFile {
                target: target.clone(),
                content: self.text(),
                mode: 0o644,
            }),
        }
        place(plan, target, replaces);
    }

    fn add_unit(&mut self, plan: &mut Plan) {
        let target = Utf8PathBuf::from(UNIT);
        let unit = self.name.unit();
        let replaces = target.exists();
        if plan.to.is_none() {
            if plan.was_enabled {
                plan.stop.push(Step::Disable { unit });
            }
            remove(plan, target);
            return;
        }
        let content = format!(
            "[Unit]\nDescription={}[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n",
            self.text()
        );
        plan.stage.push(Step::StageFile {
            target: target.clone(),
            content,
            mode: 0o644,
        });
        place(plan, target, replaces);
        plan.prove.push(if plan.was_enabled {
            Step::Reenable { unit }
        } else {
            Step::Enable { unit }
        });
    }

    /// What the plan has said is so.
    fn check(&self, plan: &Plan, listing: &str) {
        assert_eq!(self.paths.current().unwrap(), plan.to, "{plan:#?}");
        for step in plan.steps() {
            match step {
                Step::StageFile {
                    target, content, ..
                } => {
                    assert_eq!(
                        &std::fs::read_to_string(target).unwrap(),
                        content,
                        "{target}"
                    );
                }
                Step::StageHostFile {
                    target, payload, ..
                } => {
                    let is_link = target.is_symlink();
                    assert_eq!(is_link, matches!(payload.kind, Kind::Link(_)), "{target}");
                }
                Step::RemoveFile { target } => {
                    assert!(std::fs::symlink_metadata(target).is_err(), "{target}");
                }
                Step::SetRef { name, to, .. } => {
                    let found = std::fs::read_to_string(self.store.join("refs/heads").join(name));
                    assert_eq!(
                        found.ok().as_deref().map(str::trim),
                        to.as_deref(),
                        "{name}"
                    );
                }
                Step::Enable { unit } | Step::Reenable { unit } => {
                    let link = format!("/etc/systemd/system/multi-user.target.wants/{unit}");
                    assert!(std::fs::symlink_metadata(link).is_ok(), "{unit}");
                }
                Step::ChangeDirectory { path, to, .. }
                | Step::MakeDirectory { path, owner: to } => {
                    let removes = |step: &Step| matches!(step, Step::RemoveEmptyDir { path: it } if it == path);
                    let found = std::fs::metadata(path);
                    assert!(found.is_ok() || plan.steps().any(removes), "{path}");
                    if let Ok(found) = found {
                        assert_eq!(
                            &(found.mode() & 0o7777, found.uid(), found.gid()),
                            to,
                            "{path}"
                        );
                    }
                }
                _ => {}
            }
        }
        for beside in [".atomic-rs-", ".next-", ".old-"] {
            assert!(!listing.contains(beside), "{listing}");
        }
    }
}

/// Whether a directory is there when files are staged.
fn will_be_there(plan: &Plan, directory: &Utf8Path) -> bool {
    let makes = |step: &Step| matches!(step, Step::MakeDirectory { path, .. } if path == directory);
    directory.is_dir() || plan.stage.iter().any(makes)
}

/// What is staged goes into place.
fn place(plan: &mut Plan, target: Utf8PathBuf, replaces: bool) {
    let staged = target.clone();
    plan.switch.push(Step::PlaceFile {
        target: staged,
        replaces,
    });
    if replaces {
        plan.close.push(Step::DropFile { target });
    }
}

fn remove(plan: &mut Plan, target: Utf8PathBuf) {
    let there = target.clone();
    plan.switch.push(Step::RemoveFile { target: there });
    plan.close.push(Step::DropFile { target });
}

/// A directory that is there becomes another one; one that is not there may become.
fn add_directory(plan: &mut Plan, path: &Utf8Path, random: &mut Random) {
    let owner = (
        *random.one_of(&[0o755, 0o700, 0o2775]),
        0,
        u32::try_from(random.below(2)).unwrap(),
    );
    if let Ok(found) = std::fs::metadata(path) {
        if random.below(3) == 0 {
            let from = (found.mode() & 0o7777, found.uid(), found.gid());
            plan.stage.push(Step::ChangeDirectory {
                path: path.to_owned(),
                from,
                to: owner,
            });
        }
    } else if random.below(2) == 0 && will_be_there(plan, path.parent().unwrap()) {
        plan.stage.push(Step::MakeDirectory {
            path: path.to_owned(),
            owner,
        });
    }
}
