//! Images out of the store have the bytes they came with.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use support::images::{self, Compression, Image, Layer};
use support::{Registry, Said as _, Scratch, must, program};

struct Store {
    scratch: Scratch,
    config: PathBuf,
}

impl Store {
    fn new(config: &str) -> Self {
        let scratch = Scratch::new("export");
        let path = scratch.join("config.toml");
        std::fs::write(&path, config).unwrap();
        Self {
            scratch,
            config: path,
        }
    }

    fn atomic(&self, words: &str) -> Output {
        Command::new(program())
            .args(words.split_whitespace())
            .env("ATOMIC_OSTREE_CHECKOUT_PATH", self.scratch.join("c"))
            .env("ATOMIC_RS_CONFIG", &self.config)
            .output()
            .unwrap()
    }

    fn ok(&self, words: &str) -> String {
        let output = self.atomic(words);
        assert!(output.status.success(), "{words}: {}", output.err());
        output.out()
    }
}

/// Layers with all that a tree does not hold: order, times, devices, fifos, sparse and long names,
/// names that are not UTF-8, implied directories, bytes behind the end.
fn odd() -> Image {
    image(
        Layer::new()
            .file("owned", 0o644, "first")
            .file("owned", 0o644, "twice in one layer"),
    )
}

/// The same without what podman refuses: a path twice in one layer.
fn image(last: Layer) -> Image {
    Image::new()
        .layer(Layer::new().busybox())
        .layer(
            Layer::new()
                .compression(Compression::Zstd)
                .file("implied/by/this", 0o600, "x")
                .fifo("fifo")
                .raw(b"bad-\xff-name", tar::EntryType::Symlink, "/x")
                .owned_file("owned", 0o4755, 1234, vec![7; 300_000])
                .hardlink("second-name", "owned")
                .file(&format!("{}/long", "d".repeat(150)), 0o644, "long")
                .whiteout("etc", "group"),
        )
        .layer(
            Layer::new()
                .compression(Compression::None)
                .file("plain", 0o644, ""),
        )
        .layer(last)
        .set("Cmd", json!(["cat", "/plain"]))
        .set("Labels", json!({"k": "v"}))
}

fn manifest(layout: &Path) -> (String, Value) {
    let index: Value =
        serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
    let path = layout
        .join("blobs/sha256")
        .join(digest.trim_start_matches("sha256:"));
    (
        digest,
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap(),
    )
}

fn config_of(layout: &Path) -> Value {
    let (_, manifest) = manifest(layout);
    let digest = manifest["config"]["digest"].as_str().unwrap();
    let path = layout
        .join("blobs/sha256")
        .join(digest.trim_start_matches("sha256:"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn an_export_has_the_config_and_the_very_layers_of_the_image() {
    let store = Store::new("");
    let layout = store.scratch.join("layout");
    odd().write(&layout);
    let (original, original_manifest) = manifest(&layout);
    store.ok(&format!("pull oci:{}", layout.display()));
    // Prune leaves what only the archive, and no tree, names.
    store.ok("images prune");
    let out = store.scratch.join("out");
    let output = store.atomic(&format!("images export layout oci:{}:1", out.display()));
    assert_eq!(output.code(), 0, "{}", output.err());
    assert!(
        output.err().contains("manifest digest is another"),
        "{}",
        output.err()
    );
    let (digest, exported) = manifest(&out);
    assert_ne!(digest, original);
    assert_eq!(
        exported["config"]["digest"],
        original_manifest["config"]["digest"]
    );
    let layers: Vec<&Value> = exported["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| &l["digest"])
        .collect();
    let config = config_of(&out);
    let diff_ids: Vec<&Value> = config["rootfs"]["diff_ids"]
        .as_array()
        .unwrap()
        .iter()
        .collect();
    assert_eq!(
        layers, diff_ids,
        "uncompressed layers have their diff_ids as digests"
    );
    assert_eq!(config, config_of(&layout));

    // Others take it.
    must(
        Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy"])
            .arg(format!("oci:{}:1", out.display()))
            .arg(format!("dir:{}", store.scratch.join("dir").display())),
    );
    let accepted = store.scratch.join("accepted");
    image(Layer::new()).write(&accepted);
    store.ok(&format!(
        "images import oci:{} accepted:1",
        accepted.display()
    ));
    let config = config_of(&accepted);
    let archive = store.scratch.join("image.tar");
    store.ok(&format!(
        "images export accepted:1 docker-archive:{}:app:1",
        archive.display()
    ));
    // podman wants a short path there.
    let podman_run = tempfile::tempdir().unwrap();
    let podman = |words: &[&str]| {
        must(
            Command::new("podman")
                .arg("--root")
                .arg(store.scratch.join("podman"))
                .arg("--runroot")
                .arg(podman_run.path())
                .args(["--storage-driver=vfs"])
                .args(words),
        )
    };
    let loaded = podman(&["load", "--quiet", "-i", archive.to_str().unwrap()]);
    assert!(loaded.contains("app:1"), "{loaded}");
    let inspected: Value = serde_json::from_str(&podman(&["image", "inspect", "app:1"])).unwrap();
    assert_eq!(
        inspected[0]["RootFS"]["Layers"],
        config["rootfs"]["diff_ids"]
    );
    let oci_archive = store.scratch.join("oci.tar");
    store.ok(&format!(
        "images export accepted:1 oci-archive:{}",
        oci_archive.display()
    ));
    podman(&["load", "--quiet", "-i", oci_archive.to_str().unwrap()]);

    // And it comes back as what it was.
    store.ok(&format!("images import oci:{}:1 again:1", out.display()));
    store.ok("images verify --all --offline");
    let fsck = format!(
        "--repo={}",
        store.scratch.join("c/.storage/ostree").display()
    );
    must(Command::new("ostree").args(["fsck", "--quiet", &fsck]));
    for (words, code) in [
        (format!("images export nothing oci:{}", out.display()), 1),
        ("images export layout elsewhere:/x".to_owned(), 2),
        ("images export layout path".to_owned(), 2),
    ] {
        assert_eq!(store.atomic(&words).code(), code, "{words}");
    }
    let left: Vec<String> = std::fs::read_dir(store.scratch.join("c/.storage"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(".export"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn with_kept_blobs_the_manifest_digest_is_the_registrys() {
    let registry = Registry::start();
    let store = Store::new("keep_blobs = true\n");
    odd().push(&registry, "app:1");
    // What the registry has: skopeo compressed a layer on the way.
    let in_registry = |name: &str| -> String {
        let raw = must(
            Command::new("skopeo")
                .args(["inspect", "--raw", "--tls-verify=false"])
                .arg(format!("docker://{}/{name}", registry.address())),
        );
        images::sha256(raw.as_bytes())
    };
    let digest = in_registry("app:1");
    store.ok(&format!("pull {}", registry.name("app:1")));
    let name = format!("{}/app:1", registry.address());
    let out = store.scratch.join("out");
    let told: Value = serde_json::from_str(&store.ok(&format!(
        "images export --json {name} oci:{}",
        out.display()
    )))
    .unwrap();
    assert_eq!(told["same_digest"], true);
    assert_eq!(manifest(&out).0, digest);
    // Pushed under another name it is the same image.
    let pushed = store.ok(&format!("push {name} {}", registry.name("copy:1")));
    assert!(pushed.contains(&digest), "{pushed}");
    assert_eq!(in_registry("copy:1"), digest);
    // Prune keeps what the image needs, and only that.
    store.ok("images prune");
    store.ok(&format!(
        "images export {name} oci:{}",
        store.scratch.join("second").display()
    ));
    store.ok(&format!("-y images delete {name}"));
    store.ok("images prune");
    let refs = must(Command::new("ostree").args(["refs"]).arg(format!(
        "--repo={}",
        store.scratch.join("c/.storage/ostree").display()
    )));
    assert_eq!(refs, "");
    // Without them the bytes are still where they came from: within one registry no layer moves.
    let plain = Store::new("");
    plain.ok(&format!("pull {}", registry.name("app:1")));
    let pushed = plain.ok(&format!("push {name} {}", registry.name("mounted:1")));
    assert!(pushed.contains(&digest), "{pushed}");
    assert_eq!(in_registry("mounted:1"), digest);
    let requests = registry.requests();
    let to = |what: &str| {
        let to_there = requests
            .lines()
            .filter(|line| line.contains("/v2/mounted/"));
        to_there.filter(|line| line.contains(what)).count()
    };
    assert!(to("?from=app&mount=sha256") > 1, "{requests}");
    assert_eq!(to("\"PATCH "), 1, "the config alone is sent: {requests}");
    // Where they are gone a push says that the digest is another.
    for repository in ["app", "copy", "mounted"] {
        registry.delete_manifest(repository, &digest);
    }
    let output = plain.atomic(&format!("push {name} {}", registry.name("other:1")));
    assert!(
        output.code() == 0 && output.err().contains("is another"),
        "{}",
        output.err()
    );
    plain.ok(&format!("pull {}", registry.name("other:1")));
}
