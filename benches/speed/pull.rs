//! Pulls from a cold store, and the update of an image whose last layer changed.

use std::hint::black_box;
use std::io::Read as _;
use std::path::Path;
use std::process::Command;

use atomic_rs::store::gunzip::Gunzip;
use sha2::{Digest as _, Sha256};

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

/// A script in a directory.
pub fn shell(store: &Path, script: &str) -> Command {
    let mut command = Command::new(measure::SHELL);
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
    let synced = format!("{untar}, then sync");
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
    let tar_and_sync = format!("{tar}\nsync -f t");
    peers.push(of_shell(&synced, &tar_and_sync));
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

/// The word that makes this very program go over layers and write nothing: `WORD HOW LAYER…`.
pub const GO_OVER: &str = "go-over";

/// Inflate layers, and hash them on the way if that is `HOW`: as often as a pull has to.
pub fn go_over(words: &[String]) {
    let (how, layers) = words.split_first().expect("how");
    for layer in layers {
        let bytes = std::fs::read(layer).unwrap();
        if how == "hash" {
            black_box(Sha256::digest(&bytes));
        }
        let mut decoder = Gunzip::new(&bytes[..]);
        let mut piece = vec![0; 256 * 1024];
        let mut sums = [Sha256::new(), Sha256::new()];
        loop {
            let read = decoder.read(&mut piece).unwrap();
            if read == 0 {
                break;
            }
            if how == "hash" {
                for sum in &mut sums {
                    sum.update(&piece[..read]);
                }
            }
            black_box(&piece);
        }
        black_box(sums.map(Sha256::finalize));
    }
}

/// What a pull of the mix cannot do without, each on its own and one after the other: with all of it on all
/// processors at once it can be no faster than the sum of their processor time, divided.
pub fn floor(bench: &Bench) -> Table {
    let image = images::image(&bench.work, "mix").unwrap();
    let registry = Registry::start();
    push(&registry, &image, "mix");
    let plain = bench.fresh("plain");
    let mut tars = Vec::new();
    for (number, layer) in image.layers.iter().enumerate() {
        let tar = plain.join(format!("{number}.tar"));
        let line = format!("gzip -dc {} > {}", layer.display(), tar.display());
        must(&mut shell(&plain, &line));
        tars.push(tar);
    }
    let untar = tars
        .iter()
        .map(|tar| format!("tar -x -C t -f {}\n", tar.display()));
    let untar = format!("mkdir t\n{}sync -f t", untar.collect::<String>());
    let go_over = |how: &'static str| {
        let layers = &image.layers;
        move |_: &Path| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args([GO_OVER, how]).args(layers);
            command
        }
    };
    let copy = format!(
        "skopeo copy --quiet --src-tls-verify=false docker://{}/mix dir:d",
        registry.address()
    );
    let peers = [
        Peer {
            who: "atomic-rs pull",
            command: Box::new(|store| ours(store, &registry.name("mix"))),
        },
        Peer {
            who: "skopeo copy dir:",
            command: Box::new(move |store| shell(store, &copy)),
        },
        Peer {
            who: "inflate (fdeflate)",
            command: Box::new(go_over("inflate")),
        },
        Peer {
            who: "inflate and three SHA-256",
            command: Box::new(go_over("hash")),
        },
        Peer {
            who: "tar -x of what is inflated, then sync",
            command: Box::new(move |store| shell(store, &untar)),
        },
    ];
    let rows = bench.in_turn("floor", &peers);
    bench.clear();
    Table {
        title: "floor".into(),
        about: "what a pull of the mix cannot do without, each on its own".into(),
        compares: false,
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
            row.samples.push(measure::run(&mut command, &bench.disk()));
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
