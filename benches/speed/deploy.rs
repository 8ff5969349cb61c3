//! Deployments of an image that is in the store.

use std::path::Path;
use std::process::Command;

use atomic_rs::config::Config;
use atomic_rs::interrupt::Interrupt;
use atomic_rs::store::Store;
use camino::Utf8Path;

use crate::report::Table;
use crate::support::{Registry, must};
use crate::{Bench, Peer, images, pull};

/// The word that makes this very program check out an image: `WORD IMAGE DIRECTORY`.
pub const CHECK_OUT: &str = "check-out";

/// Check out the tree of an image, as a deployment has it, and make it durable.
pub fn check_out(words: &[String]) {
    let [image, directory] = words else {
        panic!("{CHECK_OUT} IMAGE DIRECTORY");
    };
    let config = Config::load(Interrupt::listen().unwrap()).unwrap();
    let store = Store::open(&config).unwrap();
    let image = store.find_one(image).unwrap();
    let commit = store.image_tree(&image).unwrap();
    store.check_out(&commit, Utf8Path::new(directory)).unwrap();
}

/// Check the mix out with everybody in turn.
pub fn run(bench: &Bench) -> Table {
    let registry = Registry::start();
    let image = images::image(&bench.work, "mix").unwrap();
    pull::push(&registry, &image, "mix");
    let store = bench.fresh("deploy-store");
    must(&mut pull::ours(&store, &registry.name("mix")));
    let name = format!("{}/mix:latest", registry.address());
    let ours = |to: &Path| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([CHECK_OUT, &name]).arg(to);
        command.env("ATOMIC_OSTREE_CHECKOUT_PATH", &store);
        command
    };
    let from = bench.fresh("deploy-from");
    must(&mut ours(&from));
    let repo = format!("--repo={}", store.join(".storage/ostree").display());
    let refs = must(Command::new("ostree").args([&repo, "refs", "--list", "ociimage-tree"]));
    let tree = refs.trim().to_owned();
    let copy = |to: &Path| {
        let mut command = Command::new("cp");
        command.arg("-al").arg(from.join("rootfs")).arg(to);
        command
    };
    let checkout = |to: &Path| {
        let mut command = Command::new("ostree");
        command.args([&repo, "checkout", "-H", "--union", &tree]);
        command.arg(to.join("rootfs"));
        command
    };
    let peers = [
        Peer {
            who: "checkout of atomic-rs",
            command: Box::new(ours),
        },
        Peer {
            who: "cp -al",
            command: Box::new(copy),
        },
        Peer {
            who: "ostree checkout -H --union",
            command: Box::new(checkout),
        },
    ];
    let rows = bench.in_turn("deploy", &peers);
    bench.clear();
    Table {
        title: "deployment".into(),
        about: "the tree of the mix, as hard links".into(),
        compares: true,
        rows,
    }
}
