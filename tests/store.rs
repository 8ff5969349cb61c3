//! The store against a temporary directory: what is pulled is what is stored, layer by layer and
//! merged.

mod support;

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::json;
use support::images::{Compression, Image, Layer, Written};
use support::{Said as _, Scratch, must, program};

struct Store {
    scratch: Scratch,
}

impl Store {
    fn new() -> Self {
        Self {
            scratch: Scratch::new("store"),
        }
    }

    fn atomic(&self, words: &[&str]) -> Output {
        Command::new(program())
            .args(words)
            .env("ATOMIC_OSTREE_CHECKOUT_PATH", self.scratch.join("c"))
            .env("ATOMIC_RS_CONFIG", "/no/such/file")
            .output()
            .unwrap()
    }

    fn pull(&self, layout: &Path) -> Output {
        self.atomic(&["pull", &format!("oci:{}", layout.display())])
    }

    fn repo(&self) -> String {
        format!(
            "--repo={}",
            self.scratch.join("c/.storage/ostree").display()
        )
    }

    /// Write an image, pull it, and check its merged tree out by the `ostree` command.
    fn deploy(&self, image: Image) -> (Written, std::path::PathBuf) {
        let layout = self.scratch.join("layout");
        let _ = std::fs::remove_dir_all(&layout);
        let written = image.write(&layout);
        let output = self.pull(&layout);
        assert!(output.status.success(), "{}", output.err());
        let tree = self.scratch.join("tree");
        let _ = std::fs::remove_dir_all(&tree);
        must(
            Command::new("ostree")
                .args(["checkout", "-H", &self.repo()])
                .arg(format!("ociimage-tree/{}", written.id()))
                .arg(&tree),
        );
        must(Command::new("ostree").args(["fsck", "--quiet", &self.repo()]));
        (written, tree)
    }
}

/// `path kind mode owner` of everything below a directory.
fn listing(tree: &Path) -> Vec<String> {
    let out = must(Command::new("find").arg(tree).args([
        "-mindepth",
        "1",
        "-printf",
        "%P %y %m %U%l\\n",
    ]));
    let mut lines: Vec<String> = out.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn layers_are_merged_with_whiteouts_opaque_directories_and_replaced_kinds() {
    let base = Layer::new()
        .dir("etc", 0o750)
        .file("etc/gone", 0o644, "x")
        .file("etc/kept", 0o640, "x")
        // Of nothing, and not to be seen.
        .whiteout("etc", "never")
        .dir("opaque", 0o700)
        .file("opaque/old", 0o644, "x")
        .dir("opaque/sub", 0o755)
        .dir("deep", 0o711)
        .dir("deep/er", 0o755)
        .file("deep/er/file", 0o644, "x")
        .file("was-file", 0o644, "x")
        .dir("was-dir", 0o755)
        .file("was-dir/below", 0o644, "x")
        .symlink("was-link", "etc")
        .dir("tmp", 0o1777);
    let top = Layer::new()
        .whiteout("etc", "gone")
        .whiteout("deep", "er")
        .file("opaque/.wh..wh..opq", 0o644, "")
        .file("opaque/new", 0o644, "x")
        .dir("was-file", 0o755)
        .file("was-file/now", 0o644, "x")
        .file("was-dir", 0o600, "x")
        .dir("was-link", 0o755)
        .file("was-link/inside", 0o644, "x")
        // `tmp` is implied: it keeps the mode of the layer below.
        .file("tmp/file", 0o644, "x");
    let store = Store::new();
    let (_, tree) = store.deploy(Image::new().layer(base).layer(top));
    assert_eq!(
        listing(&tree),
        [
            "deep d 711 0",
            "etc d 750 0",
            "etc/kept f 640 0",
            "opaque d 700 0",
            "opaque/new f 644 0",
            "tmp d 1777 0",
            "tmp/file f 644 0",
            "was-dir f 600 0",
            "was-file d 755 0",
            "was-file/now f 644 0",
            "was-link d 755 0",
            "was-link/inside f 644 0",
        ]
    );
}

#[test]
fn layers_are_inflated_at_the_same_time() {
    if std::thread::available_parallelism().unwrap().get() == 1 {
        return;
    }
    let content = |seed: u32| -> Vec<u8> {
        let mut state = seed;
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .take(8_000_000)
        .collect()
    };
    let layer = |seed: u32| Layer::new().file(&format!("file-{seed}"), 0o644, content(seed));
    let store = Store::new();
    let layout = store.scratch.join("layout");
    Image::new().layer(layer(1)).layer(layer(2)).write(&layout);
    let said = store.atomic(&["--debug", "pull", &format!("oci:{}", layout.display())]);
    assert_eq!(said.code(), 0, "{}", said.err());
    let log = said.err();
    let steps: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("layer{"))
        .filter_map(|line| line.split_once("}: "))
        .map(|(_, step)| step.split(' ').next().unwrap())
        .collect();
    assert_eq!(steps, ["begins", "begins", "is", "is"], "{log}");
}

#[test]
fn a_layer_hides_only_what_lies_below_it_and_may_bring_the_name_again() {
    let base = Layer::new()
        .dir("d", 0o755)
        .file("d/a", 0o644, "old")
        .file("d/b", 0o644, "b");
    // The whiteout stands after the new file in the archive, and means the old one all the same.
    let top = Layer::new().file("d/a", 0o600, "new").whiteout("d", "a");
    let store = Store::new();
    let (_, tree) = store.deploy(Image::new().layer(base).layer(top));
    assert_eq!(std::fs::read_to_string(tree.join("d/a")).unwrap(), "new");
    assert_eq!(std::fs::read_to_string(tree.join("d/b")).unwrap(), "b");
}

#[test]
fn every_kind_of_entry_is_stored_as_it_is() {
    let store = Store::new();
    let long = format!("{}/{}", "directory".repeat(20), "name".repeat(60));
    let big = vec![0xa5; 3_000_000];
    let layer = Layer::new()
        .dir("bin", 0o755)
        .owned_file("bin/suid", 0o4755, 7, "suid")
        .hardlink("bin/second-name", "bin/suid")
        .symlink("absolute", "/bin/suid")
        .symlink("dangling", "../../nowhere")
        .owned_dir("home", 0o2770, 99)
        .file(&long, 0o644, "long")
        .file("big", 0o644, &big)
        .file("empty", 0o644, "")
        .file("dir-link-target/x", 0o644, "x")
        .symlink("dir-link", "dir-link-target")
        // Through the layer's own link, as an extraction would.
        .file("dir-link/y", 0o644, "y")
        .fifo("pipe");
    let (_, tree) = store.deploy(Image::new().layer(layer));
    let meta = std::fs::metadata(tree.join("bin/suid")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o4755, 7));
    assert_eq!(
        meta.ino(),
        std::fs::metadata(tree.join("bin/second-name"))
            .unwrap()
            .ino()
    );
    assert_eq!(
        std::fs::read_link(tree.join("absolute")).unwrap(),
        Path::new("/bin/suid")
    );
    assert_eq!(
        std::fs::read_link(tree.join("dangling")).unwrap(),
        Path::new("../../nowhere")
    );
    let home = std::fs::metadata(tree.join("home")).unwrap();
    assert_eq!((home.mode() & 0o7777, home.gid()), (0o2770, 99));
    assert_eq!(std::fs::read(tree.join(&long)).unwrap(), b"long");
    assert_eq!(std::fs::read(tree.join("big")).unwrap(), big);
    assert_eq!(std::fs::read(tree.join("dir-link-target/y")).unwrap(), b"y");
    assert!(!tree.join("pipe").exists());
}

#[test]
fn what_gnu_tar_writes_is_read_sparse_files_and_attributes_too() {
    let store = Store::new();
    let source = store.scratch.join("source");
    std::fs::create_dir(&source).unwrap();
    let sparse = std::fs::File::create(source.join("sparse")).unwrap();
    sparse.set_len(20_000_000).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 10_000_000).unwrap();
    std::fs::write(source.join("attributes"), "x").unwrap();
    must(
        Command::new("setfattr")
            .args(["-n", "user.color", "-v", "blue"])
            .arg(source.join("attributes")),
    );
    for (format, name) in [("gnu", "gnu.tar"), ("posix", "posix.tar")] {
        let archive = store.scratch.join(name);
        let mut tar = Command::new("tar");
        tar.arg(format!("--format={format}"))
            .args(["--sparse", "-C"])
            .arg(&source);
        if format == "posix" {
            tar.args(["--xattrs", "--xattrs-include=user.*"]);
        }
        must(tar.arg("-cf").arg(&archive).arg("."));
        let layout = store.scratch.join("made");
        let _ = std::fs::remove_dir_all(&layout);
        let bytes = std::fs::read(&archive).unwrap();
        write_layout(&layout, &bytes, &support::images::sha256(&bytes));
        let output = store.pull(&layout);
        assert!(output.status.success(), "{format}: {}", output.err());
        let digest = output.out().trim().rsplit(':').next().unwrap().to_owned();
        let tree = store.scratch.join(format);
        must(
            Command::new("ostree")
                .args(["checkout", "-H", &store.repo()])
                .arg(format!("ociimage-tree/{digest}"))
                .arg(&tree),
        );
        must(
            Command::new("cmp")
                .arg(source.join("sparse"))
                .arg(tree.join("sparse")),
        );
        if format == "posix" {
            let value = must(
                Command::new("getfattr")
                    .args(["--only-values", "-n", "user.color"])
                    .arg(tree.join("attributes")),
            );
            assert_eq!(value, "blue");
        }
        must(Command::new("ostree").args(["fsck", "--quiet", &store.repo()]));
    }
}

/// An OCI layout around one layer's exact bytes.
fn write_layout(directory: &Path, layer: &[u8], diff_id: &str) {
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = support::images::sha256(bytes);
        std::fs::write(blobs.join(&digest[7..]), bytes).unwrap();
        json!({"digest": digest, "size": bytes.len()})
    };
    let with_type = |mut value: serde_json::Value, kind: &str| {
        value["mediaType"] = format!("application/vnd.oci.image.{kind}").into();
        value
    };
    let config = json!({"architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [diff_id]}});
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": with_type(put(config.to_string().as_bytes()), "config.v1+json"),
        "layers": [with_type(put(layer), "layer.v1.tar")]});
    let index = json!({"schemaVersion": 2,
        "manifests": [with_type(put(manifest.to_string().as_bytes()), "manifest.v1+json")]});
    std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
    std::fs::write(
        directory.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
}

#[test]
fn layers_come_plain_gzipped_or_with_zstd_and_give_the_same_tree() {
    let store = Store::new();
    let mut trees = Vec::new();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let layer = Layer::new().compression(compression).dir("d", 0o755).file(
            "d/f",
            0o644,
            vec![3; 500_000],
        );
        let (written, _) = store.deploy(Image::new().layer(layer));
        let commit = must(
            Command::new("ostree")
                .args(["rev-parse", &store.repo()])
                .arg(format!("ociimage-tree/{}", written.id())),
        );
        let content = must(
            Command::new("ostree")
                .args(["show", &store.repo(), "--raw"])
                .arg(commit.trim()),
        );
        // The last two fields of a commit are the checksums of its root.
        let (_, root) = content
            .lines()
            .last()
            .unwrap()
            .split_once(", [byte")
            .unwrap();
        trees.push(root.to_owned());
        let size = must(
            Command::new("ostree")
                .args([
                    "show",
                    &store.repo(),
                    "--print-metadata-key=docker.uncompressed_size",
                ])
                .arg(format!("ociimage/{}", &written.layers[0][7..])),
        );
        assert_eq!(size.trim(), "'502272'");
    }
    assert!(trees.iter().all(|tree| *tree == trees[0]), "{trees:?}");
}

#[test]
fn what_is_not_what_its_digest_says_is_refused_and_not_kept() {
    let store = Store::new();
    let layout = store.scratch.join("layout");
    let plain = b"not a tar archive at all, but long enough to be looked at as one".repeat(20);
    write_layout(&layout, &plain, &support::images::sha256(&plain));
    let output = store.pull(&layout);
    assert_eq!(output.code(), 1);
    assert!(output.err().contains("malformed"), "{}", output.err());

    let layout = store.scratch.join("diff-id");
    let empty = vec![0; 1024];
    write_layout(&layout, &empty, &support::images::sha256(b"something else"));
    let output = store.pull(&layout);
    assert_eq!(output.code(), 1);
    assert!(
        output.err().contains("but the image config says"),
        "{}",
        output.err()
    );
    assert_eq!(
        must(Command::new("ostree").args(["refs", &store.repo()])),
        ""
    );
    // A good one still comes.
    store.deploy(Image::new().layer(Layer::new().file("f", 0o644, "x")));
}

#[test]
fn two_pulls_at_once_both_succeed() {
    let store = Store::new();
    let layouts: Vec<_> = (0..4)
        .map(|i| {
            let layout = store.scratch.join(&format!("layout{i}"));
            Image::new()
                .layer(Layer::new().file("shared", 0o644, vec![1; 2_000_000]))
                .layer(Layer::new().file("own", 0o644, format!("{i}")))
                .write(&layout);
            layout
        })
        .collect();
    std::thread::scope(|scope| {
        let pulls: Vec<_> = layouts
            .iter()
            .map(|layout| scope.spawn(|| store.pull(layout)))
            .collect();
        for pull in pulls {
            let output = pull.join().unwrap();
            assert!(output.status.success(), "{}", output.err());
        }
    });
    assert_eq!(
        store
            .atomic(&["images", "list", "-q"])
            .out()
            .lines()
            .count(),
        4
    );
    must(Command::new("ostree").args(["fsck", "--quiet", &store.repo()]));
}

#[test]
fn a_pull_of_one_huge_file_needs_little_memory() {
    let store = Store::new();
    let source = store.scratch.join("source");
    std::fs::create_dir(&source).unwrap();
    // One gigabyte that compresses well enough to be quick, and is not a hole.
    let archive = store.scratch.join("layer.tar.gz");
    must(Command::new("bash").arg("-c").arg(format!(
        "yes 0123456789abcdef | head -c 1G > {0}/huge && tar -C {0} -cf - huge | gzip -1 > {1} && rm {0}/huge",
        source.display(),
        archive.display()
    )));
    let layer = std::fs::read(&archive).unwrap();
    let diff_id = must(
        Command::new("bash")
            .arg("-c")
            .arg(format!("gzip -dc {} | sha256sum", archive.display())),
    );
    let layout = store.scratch.join("layout");
    write_layout(
        &layout,
        &layer,
        &format!("sha256:{}", diff_id.split_whitespace().next().unwrap()),
    );
    let output = Command::new("/usr/bin/time")
        .args(["-f", "peak %M"])
        .arg(program())
        .args(["pull", &format!("oci:{}", layout.display())])
        .env("ATOMIC_OSTREE_CHECKOUT_PATH", store.scratch.join("c"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", output.err());
    let err = output.err();
    let peak: u64 = err.split("peak ").nth(1).unwrap().trim().parse().unwrap();
    println!("peak memory {} MB", peak / 1024);
    assert!(peak < 100 * 1024, "{peak} KB");
}

#[test]
fn a_repository_that_was_half_made_is_completed() {
    let store = Store::new();
    // As a kill while it was created leaves it: a configuration and nothing to hold objects.
    let repo = store.scratch.join("c/.storage/ostree");
    std::fs::create_dir_all(&repo).unwrap();
    std::fs::write(repo.join("config"), "[core]\nrepo_version=1\nmode=bare\n").unwrap();
    assert_eq!(store.atomic(&["images", "list"]).code(), 0);
    store.deploy(Image::new().layer(Layer::new().file("f", 0o644, "x")));
}

/// libostree moves what it writes into place in no order: a kill must not leave a commit without
/// its tree, neither while an image comes in nor while one goes.
#[test]
fn kills_during_pulls_and_prunes_leave_no_commit_without_its_tree() {
    let store = Store::new();
    let image = |n: u32| {
        let mut layer = Layer::new().busybox();
        for index in 0..60 {
            layer = layer.dir(&format!("d{n}-{index}"), 0o755).file(
                &format!("d{n}-{index}/f"),
                0o644,
                format!("{n} {index}"),
            );
        }
        Image::new().layer(layer)
    };
    let fsck = |at: &str| {
        let output = Command::new("ostree")
            .args(["fsck", "--quiet", &store.repo()])
            .output()
            .unwrap();
        assert!(output.status.success(), "{at}: {}", output.err());
    };
    let layout = store.scratch.join("layout");
    let kill = |words: &[&str], after: u64| {
        let mut child = Command::new(program())
            .args(words)
            .env("ATOMIC_OSTREE_CHECKOUT_PATH", store.scratch.join("c"))
            .env("ATOMIC_RS_CONFIG", "/no/such/file")
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_micros(after));
        let _ = child.kill();
        child.wait().unwrap();
    };
    let source = format!("oci:{}", layout.display());
    image(0).write(&layout);
    let begun = std::time::Instant::now();
    assert!(store.pull(&layout).status.success());
    let span = u64::try_from(begun.elapsed().as_micros()).unwrap();
    for n in 1..=40 {
        let _ = std::fs::remove_dir_all(&layout);
        image(n).write(&layout);
        // The end of a pull is where everything becomes visible.
        kill(&["pull", &source], span / 2 + span * u64::from(n) / 60);
        fsck(&format!("pull {n}"));
        if n % 4 == 0 {
            kill(&["images", "prune"], span * u64::from(n) / 400);
            fsck(&format!("prune {n}"));
        }
    }
    let _ = std::fs::remove_dir_all(&layout);
    image(41).write(&layout);
    assert!(store.pull(&layout).status.success());
    fsck("the end");
    // What the killed ones were about to write was swept.
    let tmp = std::fs::read_dir(store.scratch.join("c/.storage/ostree/tmp")).unwrap();
    let left: Vec<_> = tmp
        .flatten()
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|name| name.starts_with("atomic-rs-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn libostree_is_loaded_when_a_repository_is_opened_and_not_before() {
    let libraries = must(Command::new("ldd").arg(program()));
    assert!(libraries.contains("libgio-2.0"), "{libraries}");
    assert!(!libraries.contains("libostree"), "{libraries}");
}

#[test]
fn a_plain_archive_becomes_an_image_however_it_is_compressed() {
    let store = Store::new();
    let tree = store.scratch.join("tree");
    std::fs::create_dir_all(tree.join("etc")).unwrap();
    std::fs::write(tree.join("etc/kept"), "kept").unwrap();
    let ids: Vec<String> = ["", "--gzip", "--zstd", "--xz", "--bzip2"]
        .into_iter()
        .map(|how| {
            let archive = store.scratch.join(&format!("archive{how}"));
            let mut tar = Command::new("tar");
            tar.args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0"]);
            tar.args((!how.is_empty()).then_some(how));
            must(tar.arg("-C").arg(&tree).arg("-cf").arg(&archive).arg("."));
            let source = format!("tar:{}", archive.display());
            let name = format!("plain{}:1", how.trim_start_matches('-'));
            let said = store.atomic(&["images", "import", &source, &name, "--json"]);
            assert_eq!(said.code(), 0, "{how}: {}", said.err());
            let said: serde_json::Value = serde_json::from_str(&said.out()).unwrap();
            said["digest"].as_str().unwrap().to_owned()
        })
        .collect();
    // The layer is what is in them.
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    // One that is cut off, and one without a name.
    let cut = store.scratch.join("cut");
    let whole = std::fs::read(store.scratch.join("archive--xz")).unwrap();
    std::fs::write(&cut, &whole[..whole.len() - 8]).unwrap();
    let source = format!("tar:{}", cut.display());
    let refused = store.atomic(&["images", "import", &source, "cut:1"]);
    assert_eq!(refused.code(), 1, "{}", refused.err());
    assert_eq!(store.atomic(&["images", "import", &source]).code(), 2);
}
