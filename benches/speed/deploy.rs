//! Deployments of an image that is in the store.

use std::path::{Path, PathBuf};
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

/// A deployment, and what else one could be made from.
struct Made {
    _registry: Registry,
    /// The image by name.
    name: String,
    store: PathBuf,
    /// A deployment as hard links.
    rootfs: PathBuf,
    /// The same as an image of names and metadata.
    erofs: PathBuf,
}

impl Made {
    fn new(bench: &Bench) -> Self {
        let registry = Registry::start();
        let image = images::image(&bench.work, "mix").unwrap();
        pull::push(&registry, &image, "mix");
        let store = bench.fresh("deploy-store");
        must(&mut pull::ours(&store, &registry.name("mix")));
        let from = bench.fresh("deploy-from");
        let out = Self {
            name: format!("{}/mix:latest", registry.address()),
            _registry: registry,
            store,
            rootfs: from.join("rootfs"),
            erofs: from.join("erofs"),
        };
        must(&mut out.check_out(&from));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/erofs.py");
        let make = [&out.rootfs, &out.objects(), &out.erofs];
        must(Command::new("python3").arg(script).args(make));
        out
    }

    fn objects(&self) -> PathBuf {
        self.store.join(".storage/ostree/objects")
    }

    /// Our checkout into a directory.
    fn check_out(&self, to: &Path) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([CHECK_OUT, &self.name]).arg(to);
        command.env("ATOMIC_OSTREE_CHECKOUT_PATH", &self.store);
        command
    }

    /// The image mounted, and over it an overlay that takes contents from the repository.
    fn mount(&self, to: &Path) -> Command {
        let script = format!(
            "mkdir meta rootfs\nmount -t erofs -o ro,loop {} meta\n\
             mount -t overlay -o ro,metacopy=on,redirect_dir=on,lowerdir=meta::{} overlay rootfs",
            self.erofs.display(),
            self.objects().display()
        );
        pull::shell(to, &script)
    }
}

/// Check the mix out with everybody in turn.
pub fn run(bench: &Bench) -> Table {
    let made = Made::new(bench);
    let repo = format!("--repo={}", made.store.join(".storage/ostree").display());
    let refs = must(Command::new("ostree").args([&repo, "refs", "--list", "ociimage-tree"]));
    let tree = refs.trim().to_owned();
    let copy = |to: &Path| {
        let mut command = Command::new("cp");
        command.arg("-al").arg(&made.rootfs).arg(to);
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
            command: Box::new(|to| made.check_out(to)),
        },
        Peer {
            who: "cp -al",
            command: Box::new(copy),
        },
        Peer {
            who: "ostree checkout -H --union",
            command: Box::new(checkout),
        },
        Peer {
            who: "mount of an erofs image and an overlay",
            command: Box::new(|to| made.mount(to)),
        },
    ];
    let rows = bench.in_turn("deploy", &peers);
    bench.clear();
    Table {
        title: "deployment".into(),
        about: "the tree of the mix, as hard links; and as a mount, which is an experiment".into(),
        compares: true,
        rows,
    }
}

/// Look at every file of a deployment, and read every file.
pub fn use_it(bench: &Bench) -> Table {
    let made = Made::new(bench);
    let mounted = bench.fresh("deploy-mounted");
    must(&mut made.mount(&mounted));
    let in_both = |who: [&'static str; 2], script: &'static str| {
        [made.rootfs.clone(), mounted.join("rootfs")]
            .into_iter()
            .zip(who)
            .map(move |(root, who)| Peer {
                who,
                command: Box::new(move |_: &Path| pull::shell(&root, script)),
            })
    };
    let stat = ["stat of hard links", "stat of the mount"];
    let read = ["reading of hard links", "reading of the mount"];
    let peers: Vec<Peer<'_>> = in_both(stat, "find . -printf '%s\\n' | tail -n 1")
        .chain(in_both(read, "tar -c . | tail -c 1"))
        .collect();
    let rows = bench.in_turn("use", &peers);
    must(Command::new("umount").arg(mounted.join("rootfs")));
    must(Command::new("umount").arg(mounted.join("meta")));
    bench.clear();
    Table {
        title: "use of a deployment".into(),
        about: "all files of the mix, warm: hard links, and an erofs image under an overlay".into(),
        compares: false,
        rows,
    }
}
