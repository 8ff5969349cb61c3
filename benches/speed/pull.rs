//! Pulls from a cold store, and the update of an image whose last layer changed.

use std::path::Path;
use std::process::Command;

use crate::images::Image;
use crate::report::{Row, Table};
use crate::support::{Registry, must, program};
use crate::{Bench, Peer, images, measure};

/// Put an image into a registry as it is.
pub fn push(registry: &Registry, image: &Image, name: &str) {
    must(
        Command::new("skopeo")
            .args([
                "copy",
                "--quiet",
                "--dest-tls-verify=false",
                "--preserve-digests",
            ])
            .arg(format!("oci:{}:latest", image.layout.display()))
            .arg(format!("docker://{}/{name}", registry.address())),
    );
}

/// `atomic-rs pull` into a store.
pub fn ours(store: &Path, reference: &str) -> Command {
    let mut command = Command::new(program());
    command
        .args(["pull", reference])
        .env("ATOMIC_OSTREE_CHECKOUT_PATH", store);
    command
}

/// `podman` with a store of its own.
pub fn podman(store: &Path, run_root: &Path) -> Command {
    let mut command = Command::new("podman");
    command
        .arg("--root")
        .arg(store)
        .arg("--runroot")
        .arg(run_root);
    command.arg("--storage-driver=overlay");
    command
}

fn shell(store: &Path, script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-ec", script]).current_dir(store);
    command
}

/// Pull an image with everybody in turn.
pub fn cold(bench: &Bench, name: &str) -> Table {
    let image = images::image(&bench.work, name).unwrap();
    let registry = Registry::start();
    push(&registry, &image, name);
    let run_root = tempfile::tempdir().unwrap();
    let address = registry.address();
    let each_layer = |line: &str| {
        let layers = image.layers.iter().map(|layer| layer.display().to_string());
        let lines: Vec<String> = layers.map(|layer| line.replace("LAYER", &layer)).collect();
        lines.join("\n")
    };
    let unzip = if name == "zstd" {
        "zstd -dc"
    } else {
        "gzip -dc"
    };
    let untar = format!("{unzip} | tar -x");
    let copy = "skopeo copy --quiet --src-tls-verify=false";
    let umoci = format!(
        "{copy} docker://{address}/{name} oci:layout:x && umoci unpack --image layout:x bundle"
    );
    let tar = format!(
        "mkdir t\n{}",
        each_layer(&format!("{unzip} LAYER | tar -x -C t"))
    );
    let commit = format!(
        "ostree --repo=repo init --mode=bare\n{}",
        each_layer(
            "ostree --repo=repo commit --branch=layer --tar-autocreate-parents --fsync=no --tree=tar=LAYER"
        )
    );
    let to_dir = format!(
        "{copy} docker://{address}/{name} dir:d\n{}",
        each_layer("gzip -t < LAYER")
    );
    let of_shell = |who, script: &'_ str| {
        let script = script.to_owned();
        Peer {
            who,
            command: Box::new(move |store: &Path| shell(store, &script)),
        }
    };
    let mut peers = vec![
        Peer {
            who: "atomic-rs pull",
            command: Box::new(|store| ours(store, &registry.name(name))),
        },
        Peer {
            who: "podman pull",
            command: Box::new(|store| {
                let mut command = podman(store, run_root.path());
                command.args(["pull", "--quiet", "--tls-verify=false"]);
                command.arg(format!("docker://{address}/{name}"));
                command
            }),
        },
    ];
    // umoci does not read zstd.
    if name != "zstd" {
        peers.push(of_shell("skopeo copy + umoci unpack", &umoci));
    }
    peers.push(of_shell(&untar, &tar));
    peers.push(of_shell("ostree commit --tree=tar", &commit));
    if name == "huge" {
        peers.push(of_shell("skopeo copy dir: + gzip -t", &to_dir));
    }
    let rows = bench.in_turn(name, &peers);
    bench.clear();
    Table {
        title: format!("pull {name}"),
        about: format!(
            "{}; {:.0} MB, unpacked {:.0} MB",
            image.about,
            image.compressed() / 1e6,
            image.unpacked / 1e6
        ),
        compares: true,
        rows,
    }
}

/// Pull an image, and then the one that replaces it.
pub fn update(bench: &Bench) -> Table {
    let registry = Registry::start();
    let mut rows = vec![Row::new("pull of the update"), Row::new("first pull")];
    let [first, second] =
        ["mix", "mix-update"].map(|name| images::image(&bench.work, name).unwrap());
    for round in 0..bench.rounds {
        let store = bench.fresh(&format!("update-{round}"));
        for (image, row) in [&first, &second].into_iter().zip(rows.iter_mut().rev()) {
            push(&registry, image, "app");
            let mut command = ours(&store, &registry.name("app"));
            row.samples.push(measure::run(&mut command));
        }
    }
    bench.clear();
    Table {
        title: "update".into(),
        about: "the mix, its last layer of 10 KB changed".into(),
        compares: true,
        rows,
    }
}
