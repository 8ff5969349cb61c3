//! Root filesystems of an image: from a registry beside others, and from the store as a directory and as disks.

use std::path::Path;
use std::process::Command;

use crate::report::Table;
use crate::support::{Registry, must, program};
use crate::{Bench, Peer, images, pull};

fn ours(store: &Path, words: &[&str], to: &Path) -> Command {
    let mut command = Command::new(program());
    command
        .args(["bootstrap", "--quiet"])
        .args(words)
        .arg(to.join("made"))
        .env("ATOMIC_OSTREE_CHECKOUT_PATH", store);
    command
}

/// With nothing in the store, everybody in turn.
pub fn cold(bench: &Bench) -> Table {
    let image = images::image(&bench.work, "mix").unwrap();
    let registry = Registry::start();
    pull::push(&registry, &image, "mix");
    let address = registry.address();
    let name = registry.name("mix");
    let copy = "skopeo copy --quiet --src-tls-verify=false";
    let umoci = format!(
        "{copy} docker://{address}/mix oci:layout:x && umoci unpack --image layout:x bundle"
    );
    let layers = image.layers.iter().map(|layer| {
        let digest = layer.file_name().unwrap().to_string_lossy().into_owned();
        format!("gzip -dc < d/{digest} | tar -x -C t\n")
    });
    let tar = format!(
        "{copy} docker://{address}/mix dir:d\nmkdir t\n{}",
        layers.collect::<String>()
    );
    let tar_and_sync = format!("{tar}sync -f t");
    let peers = [
        Peer {
            who: "atomic-rs bootstrap",
            command: Box::new(|to: &Path| ours(&to.join("store"), &[&name], to)),
        },
        Peer {
            who: "skopeo copy + umoci unpack",
            command: Box::new(|to: &Path| pull::shell(to, &umoci)),
        },
        Peer {
            who: "skopeo copy dir: + tar",
            command: Box::new(|to: &Path| pull::shell(to, &tar)),
        },
        Peer {
            who: "skopeo copy dir: + tar, then sync",
            command: Box::new(|to: &Path| pull::shell(to, &tar_and_sync)),
        },
    ];
    let rows = bench.in_turn("bootstrap", &peers);
    bench.clear();
    Table {
        title: "bootstrap".into(),
        about: "the mix as a directory; ours is in the store as well then, and synced".into(),
        compares: true,
        rows,
    }
}

/// From the store: a chain of disk images beside a directory.
pub fn disks(bench: &Bench) -> Table {
    let image = images::image(&bench.work, "mix").unwrap();
    let registry = Registry::start();
    pull::push(&registry, &image, "mix");
    let store = bench.fresh("bootstrap-store");
    must(&mut pull::ours(&store, &registry.name("mix")));
    let name = format!("{}/mix:latest", registry.address());
    let store = &store;
    let made = |who, words: &'static [&'static str]| {
        let name = name.clone();
        Peer {
            who,
            command: Box::new(move |to: &Path| {
                let words: Vec<&str> = words.iter().copied().chain([name.as_str()]).collect();
                ours(store, &words, to)
            }),
        }
    };
    let empty = "truncate -s 5G raw && mke2fs -q -F -t ext4 -E nodiscard raw";
    let peers = [
        made("a chain of qcow2 images", &["--format", "qcow2"]),
        made("a directory", &[]),
        made("one qcow2 image", &["--format", "qcow2", "--flat"]),
        Peer {
            who: "mke2fs",
            command: Box::new(|to: &Path| pull::shell(to, empty)),
        },
    ];
    let rows = bench.in_turn("disks", &peers);
    bench.clear();
    Table {
        title: "disks".into(),
        about: "the mix from the store, all by ourselves".into(),
        compares: true,
        rows,
    }
}
