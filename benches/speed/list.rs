//! Lists of many containers and images, and an installation without a pull, on a booted host.

use std::process::Command;

use crate::measure::Sample;
use crate::report::{Row, Table};
use crate::support::{Host, Registry, Said as _, free_port, images as small, must};
use crate::{Bench, images, pull};

/// So many containers are listed.
const CONTAINERS: usize = 300;
/// So many images.
const IMAGES: usize = 1000;
/// What any program that is linked to libostree takes to start.
const LIBRARIES: &str = "ostree --version";
/// The one call that a list makes.
const UNITS: &str = "busctl --json=short call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager ListUnits";
const STORE: &str = "/var/lib/containers/atomic";

/// A line of the shell with what it took, as bash says it: seconds of the clock, of the user, of the system.
fn timed(line: &str) -> String {
    format!("bash -c 'TIMEFORMAT=\"%R %U %S\"; time {line} >/dev/null 2>&1'")
}

fn sample(said: &str) -> Sample {
    let last = said.trim().lines().last().unwrap_or_default();
    let figures: Vec<f64> = last
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect();
    let [wall, user, system] = figures[..] else {
        panic!("no figures: {said}");
    };
    Sample {
        wall,
        cpu: user + system,
        ..Sample::default()
    }
}

fn on_host(host: &Host, line: &str) -> Sample {
    let said = host.sh(&timed(line));
    assert_eq!(said.code(), 0, "{line}: {}", said.err());
    sample(&said.err())
}

/// List many containers, beside podman.
pub fn containers(bench: &Bench) -> Table {
    let registry = Registry::start();
    let image = small::plain(free_port(), "x");
    image.push(&registry, "app");
    let host = Host::boot();
    host.atomic_ok(&format!("install --name c0 {}", registry.name("app")));
    let made = host.sh(&format!(
        "cd {STORE} && for i in $(seq {}); do cp -al c0.0 c$i.0; ln -s c$i.0 c$i; mv c$i.0/c0.service c$i.0/c$i.service; \
         cp /etc/systemd/system/c0.service /etc/systemd/system/c$i.service; done; systemctl daemon-reload",
        CONTAINERS - 1
    ));
    assert_eq!(made.code(), 0, "{}", made.err());
    let listed = host.atomic_ok("containers list --all --noheading");
    assert_eq!(listed.lines().count(), CONTAINERS);
    let (store, run_root) = (bench.fresh("list-podman"), tempfile::tempdir().unwrap());
    let podman = || pull::podman(&store, run_root.path());
    let name = format!("docker://{}/app", registry.address());
    let id = must(podman().args(["pull", "--quiet", "--tls-verify=false", &name]));
    for number in 0..CONTAINERS {
        must(podman().args(["create", "--name", &format!("c{number}"), id.trim(), "true"]));
    }
    let mut rows = vec![
        Row::new("atomic-rs containers list --all"),
        Row::new("podman ps -a"),
        Row::new(LIBRARIES),
        Row::new(UNITS),
    ];
    for _ in 0..bench.rounds {
        rows[0]
            .samples
            .push(on_host(&host, "atomic-rs containers list --all"));
        let mut command = podman();
        command.args(["ps", "-a"]);
        let words: Vec<String> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let said = Command::new("sh")
            .args(["-c", &timed(&words.join(" "))])
            .output()
            .unwrap();
        rows[1].samples.push(sample(&said.err()));
        rows[2].samples.push(on_host(&host, LIBRARIES));
        rows[3].samples.push(on_host(&host, UNITS));
    }
    // podman has so many locks for containers, wherever its stores are.
    must(podman().args(["rm", "--all"]));
    bench.clear();
    Table {
        title: "list containers".into(),
        about: format!(
            "{CONTAINERS} containers; below podman what is the floor: to load libostree's libraries, and to have systemd's answer"
        ),
        compares: true,
        rows,
    }
}

/// What else a person waits for.
pub fn others(bench: &Bench) -> Table {
    let registry = Registry::start();
    let image = images::image(&bench.work, "mix").unwrap();
    pull::push(&registry, &image, "mix");
    let host = Host::boot();
    let name = registry.name("mix");
    host.atomic_ok(&format!("pull {name}"));
    let made = host.sh(&format!(
        "cd {STORE}/.storage/ostree/refs/heads/ociimage && set -- $(ls | grep mix) && \
         for i in $(seq {IMAGES}); do cp \"$1\" \"app${{i}}_3Alatest\"; done"
    ));
    assert_eq!(made.code(), 0, "{}", made.err());
    let mut rows = vec![
        Row::new("install --no-pull"),
        Row::new("images list"),
        Row::new("completion"),
    ];
    for _ in 0..bench.rounds {
        rows[0].samples.push(on_host(
            &host,
            &format!("atomic-rs install --name app {name}"),
        ));
        host.atomic_ok("uninstall app");
        rows[1]
            .samples
            .push(on_host(&host, "atomic-rs images list"));
        rows[2].samples.push(on_host(
            &host,
            "env ATOMIC_RS_COMPLETE=bash _CLAP_COMPLETE_INDEX=2 atomic-rs -- atomic-rs update \"\"",
        ));
    }
    Table {
        title: "others".into(),
        about: format!("the mix is installed from the store; {IMAGES} images"),
        compares: false,
        rows,
    }
}
