//! `make bench`: how long a service does not answer while it is updated, beside podman's stop, rm and
//! run of the same image, in turn, in one run. A client asks every 10 ms.

#[path = "mod.rs"]
mod support;

use std::process::Command;
use std::time::Duration;

use support::{Host, Registry, Scratch, free_port, images, must, outage, wait_for_answer};

const ROUNDS: usize = 7;

fn main() {
    let registry = Registry::start();
    let host = Host::boot();
    let scratch = Scratch::new("outage");
    let (ours, theirs) = (free_port(), free_port());
    let image = |port, round: usize| images::plain(port, &format!("round-{round}"));
    image(ours, 0).push(&registry, "web");
    host.atomic_ok(&format!("install --name web {}", registry.name("web")));
    host.ok("systemctl start web");
    wait_for_answer(ours, "round-0");
    // podman wants a short path there.
    let run_root = tempfile::tempdir().unwrap();
    let podman = |words: &str| {
        must(
            Command::new("podman")
                .arg("--root")
                .arg(scratch.join("podman"))
                .arg("--runroot")
                .arg(run_root.path())
                .args(["--storage-driver=vfs", "--cgroup-manager=cgroupfs"])
                .args(["--runtime=runc"])
                .args(words.split_whitespace()),
        )
    };
    let podman_image = |round| {
        let layout = scratch.join(&format!("layout-{round}"));
        image(theirs, round).write(&layout);
        podman(&format!("pull --quiet oci:{}", layout.display()))
            .trim()
            .to_owned()
    };
    let start = |id: &str| {
        podman(&format!(
            "run -d --network=host --ulimit=nofile=1024:1024 --ulimit=nproc=1024:1024 --name=web {id}"
        ));
    };
    start(&podman_image(0));
    wait_for_answer(theirs, "round-0");
    let (mut update, mut replace, mut restart) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        // Both have the new image before the clock runs.
        image(ours, round).push(&registry, "web");
        host.atomic_ok(&format!("pull {}", registry.name("web")));
        let id = podman_image(round);
        update.push(outage(ours, || {
            host.atomic_ok("update web --no-pull");
        }));
        wait_for_answer(ours, &format!("round-{round}"));
        replace.push(outage(theirs, || {
            podman("stop web");
            podman("rm web");
            start(&id);
        }));
        wait_for_answer(theirs, &format!("round-{round}"));
        restart.push(outage(ours, || {
            host.ok("systemctl restart web");
        }));
    }
    podman("rm -f web");
    let (update, replace, restart) = (median(update), median(replace), median(restart));
    println!(
        "out of service, medians of {ROUNDS}: atomic-rs update {update} ms, podman stop + rm + run {replace} ms, systemctl restart {restart} ms; ratio to podman {:.2}",
        f64::from(update) / f64::from(replace)
    );
}

fn median(mut times: Vec<Duration>) -> u32 {
    times.sort();
    u32::try_from(times[times.len() / 2].as_millis()).unwrap()
}
