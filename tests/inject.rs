//! One layer of an image in a registry: seen by others, left alone by nobody else's doing, and never half there.

mod support;

use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::images::{Image, Layer, Written, sha256};
use support::place::Place;
use support::tree::{difference, listing};
use support::wire::Wire;
use support::{Registry, Said as _, must};

fn image() -> Image {
    Image::new()
        .layer(Layer::new().busybox())
        .layer(Layer::new().file("etc/said", 0o644, "said"))
        .set("Cmd", json!(["cat", "/etc/said"]))
}

/// What a registry has under a tag: its digest, and the manifest itself.
fn manifest(address: &str, name: &str) -> (String, Value) {
    let text = raw(address, name);
    (
        sha256(text.as_bytes()),
        serde_json::from_str(&text).unwrap(),
    )
}

fn raw(address: &str, name: &str) -> String {
    must(
        Command::new("skopeo")
            .args(["inspect", "--raw", "--tls-verify=false"])
            .arg(format!("docker://{address}/{name}")),
    )
}

fn config(registry: &Registry, manifest: &Value) -> Value {
    let digest = manifest["config"]["digest"].as_str().unwrap();
    let text = std::fs::read(registry.blob(digest)).unwrap();
    assert_eq!(manifest["config"]["size"], text.len());
    serde_json::from_slice(&text).unwrap()
}

fn strings(value: &Value) -> Vec<String> {
    let all = value.as_array().unwrap().iter();
    all.map(|value| value.as_str().unwrap().to_owned())
        .collect()
}

fn digests(manifest: &Value) -> Vec<String> {
    let layers = manifest["layers"].as_array().unwrap().iter();
    layers
        .map(|layer| layer["digest"].as_str().unwrap().to_owned())
        .collect()
}

/// The digest of what a layer is when it is not compressed.
fn diff_id(registry: &Registry, digest: &str) -> String {
    let script = "zstd -dc -- \"$1\" 2>/dev/null || gzip -dc < \"$1\"";
    let output = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(registry.blob(digest))
        .output()
        .unwrap();
    sha256(&output.stdout)
}

fn requests(wire: &Wire, method: &str) -> Vec<String> {
    let mut asked = wire.asked();
    asked.retain(|line| line.starts_with(method));
    asked
}

#[test]
fn others_pull_what_was_injected_and_all_other_layers_stay() {
    let registry = Registry::start();
    let place = Place::new("inject");
    // podman wants a short path there.
    let podman_run = tempfile::tempdir().unwrap();
    place.sh("mkdir -p tree/cvmfs/sw; echo one > tree/cvmfs/sw/file; ln -s sw tree/cvmfs/link");
    for (form, compression) in [("oci", "zstd"), ("oci", "gzip"), ("v2s2", "gzip")] {
        let written = image().push_with(&registry, "app:1", &["--format", form]);
        let name = format!("http:{}/app", registry.address());
        let before = manifest(&registry.address(), "app:1");
        let said = place.ok(&format!("init {name}:1"));
        assert!(said.contains("/app:cvmfs is sha256:"), "{said}");
        let (digest, empty) = manifest(&registry.address(), "app:cvmfs");
        assert!(said.trim_end().ends_with(&digest), "{said}");
        assert_eq!(digests(&empty)[..2], digests(&before.1)[..]);
        assert_eq!(digests(&empty).len(), 3);
        // Setting up twice adds nothing, wherever it is read.
        for tag in ["cvmfs", "1"] {
            let again = place.ok(&format!("init {name}:{tag}"));
            assert!(again.contains("is up to date"), "{again}");
        }
        place.ok(&format!(
            "update {name}:cvmfs --dir tree --compression {compression}"
        ));
        let (_, after) = manifest(&registry.address(), "app:cvmfs");
        let config = config(&registry, &after);
        assert_eq!(digests(&after)[..2], digests(&before.1)[..]);
        assert_eq!(after["mediaType"], before.1["mediaType"]);
        let kind = after["layers"][2]["mediaType"].as_str().unwrap();
        match compression {
            "zstd" => assert_eq!(kind, "application/vnd.oci.image.layer.v1.tar+zstd"),
            _ => assert_eq!(kind, before.1["layers"][0]["mediaType"]),
        }
        // What the labels and the config say of it is so.
        let injected = digests(&after)[2].clone();
        let wanted = diff_id(&registry, &injected);
        assert_eq!(strings(&config["rootfs"]["diff_ids"])[2], wanted);
        let labels = &config["config"]["Labels"];
        assert_eq!(labels["cvmfs_injection_tar"], wanted);
        assert_eq!(labels["cvmfs_injection_gz"], injected);
        let listed: Value =
            serde_json::from_str(&place.ok(&format!("list --json {name}:cvmfs"))).unwrap();
        assert_eq!(listed["images"][0]["layers"][0]["diff_id"], wanted);
        assert_eq!(listed["images"][0]["layers"][0]["index"], 2);
        // What is in it is not put out of the way by an empty one, unless that is wanted.
        place.refused(&format!("init {name}:1"), "has a layer \"cvmfs\" already");
        place.ok(&format!("init {name}:1 --dest other"));
        place.ok(&format!("init {name}:1 --dest other --force"));
        // The image that it comes from is what it was.
        assert_eq!(manifest(&registry.address(), "app:1").0, before.0);
        assert_eq!(written.layers.len(), 2);
        // Others take it: podman, skopeo and, unless it is too new for it, umoci.
        let source = format!("docker://{}/app:cvmfs", registry.address());
        let (oci, bundle) = (place.path("oci"), place.path("bundle"));
        must(
            Command::new("skopeo")
                .args([
                    "copy",
                    "--quiet",
                    "--insecure-policy",
                    "--src-tls-verify=false",
                ])
                .args([source.as_str(), &format!("oci:{}:latest", oci.display())]),
        );
        if compression == "gzip" {
            must(
                Command::new("umoci")
                    .args(["unpack", "--image"])
                    .arg(format!("{}:latest", oci.display()))
                    .arg(&bundle),
            );
            let text = std::fs::read_to_string(bundle.join("rootfs/cvmfs/link/file"));
            assert_eq!(text.unwrap(), "one\n");
            std::fs::remove_dir_all(&bundle).unwrap();
        }
        std::fs::remove_dir_all(&oci).unwrap();
        let podman = |words: &[&str]| {
            must(
                Command::new("podman")
                    .arg("--root")
                    .arg(place.path("podman"))
                    .arg("--runroot")
                    .arg(podman_run.path())
                    .args(["--storage-driver", "vfs"])
                    .args(words),
            )
        };
        podman(&["pull", "--quiet", "--tls-verify=false", &source]);
        let mounted = podman(&["image", "mount", &source["docker://".len()..]]);
        let mounted = std::path::Path::new(mounted.trim());
        assert_eq!(
            std::fs::read(mounted.join("cvmfs/sw/file")).unwrap(),
            b"one\n"
        );
        podman(&["rmi", "--force", "--all"]);
        // Taken away, the image has the layers that it had.
        place.ok(&format!("remove {name}:cvmfs"));
        let (_, without) = manifest(&registry.address(), "app:cvmfs");
        assert_eq!(digests(&without), digests(&before.1));
        let digest = &before.0;
        place.refused(&format!("remove {name}@{digest}"), "names a digest");
        place.refused(&format!("remove {name}:cvmfs"), "has no layer \"cvmfs\"");
    }
    place.refused(
        &format!(
            "update http:{}/app:1 --dir tree --compression zstd",
            registry.address()
        ),
        "docker's form",
    );
}

#[test]
fn a_change_uploads_the_layer_the_config_and_the_manifest_and_no_change_nothing() {
    let registry = Registry::start();
    let wire = Wire::to(&registry.address());
    let place = Place::new("inject");
    image().push(&registry, "app:1");
    let name = format!("http:{}/app", wire.address());
    place.sh("mkdir -p tree/cvmfs; for i in $(seq 1000); do echo $i > tree/cvmfs/$i; done");
    // An image that is not set up is that as well, with one move of the tag.
    let dry = place.run(&format!("update {name}:1 --dir tree --dry-run --json"));
    assert_eq!(dry.code(), 3, "{}", dry.err());
    let dry: Value = serde_json::from_str(&dry.out()).unwrap();
    assert_eq!(requests(&wire, "P"), [] as [String; 0]);
    let done = place.ok(&format!("update {name}:1 --dir tree --json"));
    let done: Value = serde_json::from_str(&done).unwrap();
    let kinds = |value: &Value| {
        let parts = value["parts"].as_array().unwrap().iter();
        let kinds = parts.map(|part| part["what"].as_str().unwrap().to_owned());
        kinds.collect::<Vec<_>>()
    };
    assert_eq!(kinds(&dry), ["layer", "config", "manifest"]);
    assert_eq!(kinds(&done), kinds(&dry));
    assert_eq!(
        (&done["layer"], &done["digest"]),
        (&dry["layer"], &dry["digest"])
    );
    let asked = wire.asked();
    let of = |method: &str, part: &str| {
        let lines = asked.iter();
        lines
            .filter(|line| line.starts_with(method) && line.contains(part))
            .count()
    };
    assert_eq!((of("PATCH", ""), of("PUT", "/uploads/")), (2, 2));
    assert_eq!(of("PUT", "/manifests/"), 1);
    // No layer is read.
    assert_eq!(of("GET", "/blobs/sha256"), 1, "{asked:?}");
    // A thousand files more.
    place.sh("for i in $(seq 1000); do echo more >> tree/cvmfs/$i; done");
    place.ok(&format!("update {name}:cvmfs --dir tree"));
    let asked = wire.asked();
    let sent = |method: &str| asked.iter().filter(|line| line.starts_with(method)).count();
    assert_eq!((sent("PATCH"), sent("PUT")), (2, 3), "{asked:?}");
    // The same again, also for an image that does not have it and goes where it is.
    let before = manifest(&registry.address(), "app:cvmfs").0;
    for from in ["cvmfs", "1"] {
        let said = place.ok(&format!("update {name}:{from} --dir tree --dest cvmfs"));
        assert!(said.contains("is up to date"), "{said}");
        assert_eq!(requests(&wire, "P"), [] as [String; 0]);
    }
    assert_eq!(manifest(&registry.address(), "app:cvmfs").0, before);
    let again = place.run(&format!("update {name}:cvmfs --dir tree --dry-run"));
    assert_eq!(again.code(), 0);
}

#[test]
fn what_is_seldom_survives_a_round_trip() {
    let registry = Registry::start();
    let place = Place::new("inject");
    image().push(&registry, "app:1");
    let name = format!("http:{}/app", registry.address());
    let said = place.ok(&format!("prepare {name}:1 --dir work"));
    assert!(said.contains("is a beginning"), "{said}");
    place.sh(
        r#"
        mkdir -p work/cvmfs/dir work/cvmfs/closed; cd work/cvmfs
        echo x > "sp ace"; echo x > "$(printf 'new\nline')"; echo x > "quo'te\"\\"; echo x > -dash
        echo x > "$(printf 'odd-\377\376')"; echo x > ünï; echo x > .wh.hidden
        long=$(printf '%0200d' 7); mkdir -p $long/$long; echo x > $long/$long/$long; ln -s $long/$long/$long link
        ln -s /etc/passwd absolute; ln -s ../../../.. up; ln "sp ace" hard; ln link hard-link-to-link
        mknod null c 1 3; mknod disk b 8 17; mkfifo pipe
        echo x > suid; chown 1234:3000000 suid; chmod 6755 suid; chmod 000 closed; chmod 1777 dir
        setfattr -n user.note -v kept "sp ace"; setfacl -m u:7:r dir 2>/dev/null || true
        cp /bin/true capable; setcap cap_net_raw+ep capable
        touch -d '1960-01-02 03:04:05.25' dir; touch -hd '2001-02-03 04:05:06.789' link suid
        truncate -s 100K hole; : > empty
        "#,
    );
    let _socket = UnixListener::bind(place.path("work/cvmfs/socket")).unwrap();
    let output = place.run(&format!("update {name}:1 --dir work"));
    assert_eq!(output.code(), 0, "{}", output.err());
    assert!(
        output.err().contains("cvmfs/socket is a socket"),
        "{}",
        output.err()
    );
    let mtime = must(
        Command::new("stat")
            .args(["-c", "%Y"])
            .arg(place.path("work/cvmfs")),
    );
    std::fs::remove_file(place.path("work/cvmfs/socket")).unwrap();
    must(
        Command::new("touch")
            .args(["-d", &format!("@{}", mtime.trim())])
            .arg(place.path("work/cvmfs")),
    );
    let said = place.ok(&format!("update {name}:cvmfs --dir work"));
    place.ok(&format!("prepare {name}:cvmfs --dir again"));
    let (found, wanted) = (listing(&place.path("again")), listing(&place.path("work")));
    assert!(found == wanted, "{}", difference(&found, &wanted));
    assert!(
        wanted.contains("null 1:3") && wanted.contains("user.note"),
        "{wanted}"
    );
    assert!(wanted.contains("security.capability"), "{wanted}");
    // Nothing has changed, so nothing is done.
    let again = place.ok(&format!("update {name}:cvmfs --dir again"));
    assert!(again.contains("is up to date"), "{said}{again}");
    place.refused(&format!("prepare {name}:cvmfs --dir again"), "is not empty");
    place.ok(&format!("prepare {name}:cvmfs --dir again --force"));
}

#[test]
fn images_that_the_original_stumbled_over_are_taken() {
    let registry = Registry::start();
    let place = Place::new("inject");
    place.sh("mkdir -p 'a tree/cvmfs'; echo x > 'a tree/cvmfs/x'");
    let odd = image()
        .beside("author", "d'Arc, Jeanne \u{1f600}\n\"quoted\"")
        .beside("container_config", json!({"Hostname": "x"}))
        .beside("history", json!([{"created_by": "one"}, {"created_by": "ENV", "empty_layer": true}, {"created_by": "two"}]));
    let written = odd.push(&registry, "odd:1");
    let labelled = image().set("Labels", Value::Null);
    labelled.push(&registry, "null:1");
    for name in ["odd", "null"] {
        let mut update = place.command(&format!("update http:{}/{name}:1", registry.address()));
        let output = update.args(["--dir", "a tree"]).output().unwrap();
        assert_eq!(output.code(), 0, "{}", output.err());
        let (_, manifest) = manifest(&registry.address(), &format!("{name}:cvmfs"));
        let config = config(&registry, &manifest);
        assert!(config["config"]["Labels"]["cvmfs_injection_tar"].is_string());
        if name == "odd" {
            assert_eq!(config["author"], "d'Arc, Jeanne \u{1f600}\n\"quoted\"");
            assert!(config["container_config"]["Labels"]["cvmfs_injection_gz"].is_string());
            assert_eq!(config["history"].as_array().unwrap().len(), 4);
        }
    }
    assert_eq!(written.layers.len(), 2);
    // Names of one's own, beside each other.
    let name = format!("http:{}/odd", registry.address());
    place.ok(&format!("init {name}:cvmfs --name data"));
    let listed: Value =
        serde_json::from_str(&place.ok(&format!("list --json {name}:data"))).unwrap();
    assert_eq!(listed["images"][0]["layers"].as_array().unwrap().len(), 2);
    let listed = place.ok(&format!("list {name}:data"));
    assert!(
        listed.contains("cvmfs ") && listed.contains("data "),
        "{listed}"
    );
}

#[test]
fn an_index_is_changed_for_every_platform_or_for_one() {
    let registry = Registry::start();
    let place = Place::new("inject");
    place.sh("mkdir -p tree/cvmfs; echo x > tree/cvmfs/x");
    let made = |architecture: &str| -> Written {
        let layer = Layer::new().file("etc/arch", 0o644, architecture);
        let image = Image::new().architecture(architecture).layer(layer);
        image.push(&registry, &format!("app:{architecture}"))
    };
    let (amd, arm) = (made("amd64"), made("arm64"));
    let index = registry.put_index("app", "1", &[("amd64", &amd), ("arm64", &arm)]);
    let name = format!("http:{}/app", registry.address());
    place.ok(&format!("update {name}:1 --dir tree --dest both"));
    let (_, both) = manifest(&registry.address(), "app:both");
    assert_eq!(both["mediaType"], "application/vnd.oci.image.index.v1+json");
    let child = |index: &Value, at: usize| {
        let digest = index["manifests"][at]["digest"].as_str().unwrap();
        let found = manifest(&registry.address(), &format!("app@{digest}"));
        assert_eq!(found.0, digest);
        assert_eq!(
            index["manifests"][at]["size"],
            raw(&registry.address(), &format!("app@{digest}")).len()
        );
        found.1
    };
    let (one, other) = (child(&both, 0), child(&both, 1));
    assert_eq!(digests(&one)[0], amd.layers[0]);
    assert_eq!(digests(&other)[0], arm.layers[0]);
    assert_eq!(digests(&one)[1], digests(&other)[1]);
    assert_eq!(both["manifests"][1]["platform"]["architecture"], "arm64");
    let listed = place.ok(&format!("list {name}:both"));
    assert!(
        listed.contains("linux/amd64") && listed.contains("linux/arm64"),
        "{listed}"
    );
    // One of them.
    place.ok(&format!(
        "update {name}:1 --dir tree --dest one --platform linux/arm64"
    ));
    let (_, one) = manifest(&registry.address(), "app:one");
    assert_eq!(one["manifests"][0]["digest"], amd.digest);
    assert_ne!(one["manifests"][1]["digest"], arm.digest);
    assert_eq!(manifest(&registry.address(), "app:1").0, index);
    place.refused(
        &format!("init {name}:1 --platform linux/s390x"),
        "no image for linux/s390x",
    );
}

#[test]
fn another_repository_gets_its_blobs_from_the_first() {
    let registry = Registry::start();
    let wire = Wire::to(&registry.address());
    let place = Place::new("inject");
    place.sh("mkdir -p tree/cvmfs; echo x > tree/cvmfs/x");
    image().push(&registry, "team/app:1");
    let name = format!("http:{}/team/app:1", wire.address());
    place.ok(&format!(
        "update {name} --dir tree --dest {}/other/app:2",
        wire.address()
    ));
    let asked = requests(&wire, "P");
    let mounts = asked
        .iter()
        .filter(|line| line.contains("mount=sha256"))
        .count();
    let sent = asked
        .iter()
        .filter(|line| line.starts_with("PATCH"))
        .count();
    assert_eq!((mounts, sent), (2, 2), "{asked:?}");
    must(
        Command::new("skopeo")
            .args([
                "copy",
                "--quiet",
                "--insecure-policy",
                "--src-tls-verify=false",
            ])
            .arg(format!("docker://{}/other/app:2", registry.address()))
            .arg(format!("dir:{}", place.path("copy").display())),
    );
    place.refused(
        &format!("init {name} --dest elsewhere.example/app:1"),
        "on another registry",
    );
}

#[test]
fn of_two_at_once_one_wins_and_the_other_says_so() {
    let registry = Registry::start();
    let wire = Wire::to(&registry.address());
    let place = Place::new("inject");
    place.sh("mkdir -p one/cvmfs two/cvmfs; echo 1 > one/cvmfs/x; echo 2 > two/cvmfs/x");
    image().push(&registry, "app:1");
    let name = |address: &str| format!("http:{address}/app:cvmfs");
    place.ok(&format!("init http:{}/app:1", registry.address()));
    // The first one is about to upload when the second one comes and goes.
    wire.hold("POST /v2/app/blobs/uploads/");
    let first = place
        .command(&format!("update {} --dir one", name(&wire.address())))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wire.await_held();
    place.ok(&format!("update {} --dir two", name(&registry.address())));
    let winner = manifest(&registry.address(), "app:cvmfs").0;
    wire.release();
    let first = first.wait_with_output().unwrap();
    assert_eq!(first.code(), 1);
    assert!(
        first.err().contains("changed by somebody else"),
        "{}",
        first.err()
    );
    assert!(first.err().contains(&winner), "{}", first.err());
    assert_eq!(manifest(&registry.address(), "app:cvmfs").0, winner);
    // Again, and it is what it should be.
    place.ok(&format!("update {} --dir one", name(&wire.address())));
    place.ok(&format!("prepare {} --dir now", name(&wire.address())));
    assert_eq!(std::fs::read(place.path("now/cvmfs/x")).unwrap(), b"1\n");
}

#[test]
fn an_upload_goes_on_where_it_broke_and_a_lost_one_leaves_the_tag() {
    let registry = Registry::start();
    let wire = Wire::to(&registry.address());
    let place = Place::new("inject");
    place.sh("mkdir -p tree/cvmfs; head -c 40000000 /dev/urandom > tree/cvmfs/noise");
    image().push(&registry, "app:1");
    let name = format!("http:{}/app:cvmfs", wire.address());
    place.ok(&format!("init http:{}/app:1", wire.address()));
    let before = manifest(&registry.address(), "app:cvmfs").0;
    // It breaks and breaks.
    wire.cut(1_000_000, usize::MAX);
    let output = place.run(&format!("update {name} --dir tree"));
    assert_eq!(output.code(), 1, "{}", output.err());
    assert!(
        output.err().contains("cannot be reached"),
        "{}",
        output.err()
    );
    assert_eq!(manifest(&registry.address(), "app:cvmfs").0, before);
    // It breaks twice, in the middle.
    wire.cut(20_000_000, 2);
    wire.asked();
    place.ok(&format!("update {name} --dir tree"));
    assert_eq!(wire.cuts_left(), 0);
    place.ok(&format!("prepare {name} --dir now"));
    place.sh("cmp tree/cvmfs/noise now/cvmfs/noise");
    // Killed while it uploads.
    let before = manifest(&registry.address(), "app:cvmfs").0;
    place.sh("head -c 1000000 /dev/urandom > tree/cvmfs/noise");
    wire.hold("PATCH ");
    let mut killed = place
        .command(&format!("update {name} --dir tree"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wire.await_held();
    killed.kill().unwrap();
    killed.wait().unwrap();
    wire.release();
    assert_eq!(manifest(&registry.address(), "app:cvmfs").0, before);
}

#[test]
fn what_a_registry_or_an_archive_makes_up_is_refused() {
    let registry = Registry::start();
    let place = Place::new("inject");
    image().push(&registry, "app:1");
    let name = format!("http:{}/app", registry.address());
    place.sh(
        "mkdir -p tree/cvmfs victim; echo x > tree/cvmfs/x; echo y > victim/y
         tar -c --transform='s,^,../,' -P tree/cvmfs/x > up.tar
         ln -s ../victim tree/out; tar -c -C tree out > out.tar; rm tree/out; mkdir tree/out; echo z > tree/out/y
         tar -r -C tree -f out.tar out/y; rm -r tree/out; head -c 700 out.tar > cut.tar",
    );
    place.refused(&format!("update {name}:1 --tar up.tar"), "leads upwards");
    place.refused(&format!("update {name}:1 --tar cut.tar"), "cut off");
    place.refused(
        &format!("update {name}:1 --tar none.tar"),
        "there is no regular file",
    );
    place.sh(": > empty.tar; tar -cf none-in-it.tar -T /dev/null");
    for empty in ["empty.tar", "none-in-it.tar"] {
        place.refused(&format!("update {name}:1 --tar {empty}"), "nothing in it");
    }
    place.refused(
        &format!("update {name}:1 --dir tree --platform linux/s390x"),
        "it is made for linux/amd64",
    );
    place.refused(
        &format!("prepare {name}:1 --dir . --force"),
        "is being used",
    );
    place.refused(
        &format!("update {name}:1 --dir none"),
        "there is no directory",
    );
    place.refused(&format!("update {name}:2 --dir tree"), "no such image");
    place.refused(&format!("update {name}:1"), "--dir");
    place.refused("init oci:/x --name a", "not an image on a registry");
    // Links of a layer stay in the directory.
    place.ok(&format!("update {name}:1 --tar out.tar"));
    let output = place.run(&format!("prepare {name}:cvmfs --dir work"));
    assert_eq!(std::fs::read(place.path("victim/y")).unwrap(), b"y\n");
    assert!(output.code() == 1 || place.path("work").exists());
    // A registry that lies about a layer is found out.
    place.ok(&format!("update {name}:cvmfs --dir tree"));
    let (_, manifest) = manifest(&registry.address(), "app:cvmfs");
    let blob = registry.blob(&digests(&manifest)[2]);
    let mut bytes = std::fs::read(&blob).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    let output = place.run(&format!("prepare {name}:cvmfs --dir lies"));
    assert_eq!(output.code(), 1);
    assert!(!place.path("lies").exists());
}

#[test]
fn credentials_come_from_files_and_are_checked() {
    let registry = Registry::with_password("me", "se:cret");
    let place = Place::new("inject");
    let auth = place.path("auth.json");
    must(
        Command::new("skopeo")
            .args([
                "login",
                "--tls-verify=false",
                "--username",
                "me",
                "--password",
                "se:cret",
            ])
            .arg("--authfile")
            .arg(&auth)
            .arg(registry.address()),
    );
    image().push_with(&registry, "app:1", &["--dest-creds", "me:se:cret"]);
    let name = format!("http:{}/app:1", registry.address());
    place.refused(&format!("init {name}"), "refused the credentials");
    place.refused(
        &format!("init {name} --creds me:wrong"),
        "refused the credentials",
    );
    std::fs::write(place.path("creds"), "me:se:cret\n").unwrap();
    place.ok(&format!("init {name} --creds-file creds"));
    place.ok(&format!("list {name} --authfile {}", auth.display()));
    let mut list = place.command(&format!("list {name}"));
    assert_eq!(
        list.env("REGISTRY_AUTH_FILE", &auth)
            .output()
            .unwrap()
            .code(),
        0
    );
    // A helper, as docker and podman have them.
    let helper = "#!/bin/sh\nread host; [ \"$1\" = get ] && echo '{\"Username\":\"me\",\"Secret\":\"se:cret\"}'\n";
    std::fs::create_dir(place.path("bin")).unwrap();
    std::fs::write(place.path("bin/docker-credential-test"), helper).unwrap();
    place.sh("chmod +x bin/docker-credential-test");
    let helped = json!({"credHelpers": {registry.address(): "test"}}).to_string();
    std::fs::write(place.path("helped.json"), helped).unwrap();
    let path = format!(
        "{}:{}",
        place.path("bin").display(),
        std::env::var("PATH").unwrap()
    );
    let mut list = place.command(&format!("list {name} --authfile helped.json"));
    let output = list.env("PATH", path).output().unwrap();
    assert_eq!(output.code(), 0, "{}", output.err());
}

#[test]
fn tokens_are_fetched_for_what_is_to_be_done() {
    let (registry, tokens) = Registry::with_tokens("me", "secret");
    let place = Place::new("inject");
    image().push_with(&registry, "app:1", &["--dest-creds", "me:secret"]);
    tokens.asked();
    place.sh("mkdir -p tree/cvmfs; echo x > tree/cvmfs/x; echo me:secret > creds");
    let name = format!("http:{}/app:1", registry.address());
    place.ok(&format!("list {name} --creds-file creds"));
    assert_eq!(tokens.asked(), ["repository:app:pull"]);
    place.ok(&format!("update {name} --dir tree --creds-file creds"));
    assert_eq!(
        tokens.asked(),
        ["repository:app:pull", "repository:app:pull,push"]
    );
    place.ok(&format!(
        "update {name} --dir tree --creds-file creds --dest {}/other:1",
        registry.address()
    ));
    let asked = tokens.asked();
    let mounts = ["repository:other:pull,push", "repository:app:pull"];
    assert!(asked.windows(2).any(|two| two == mounts), "{asked:?}");
    place.refused(
        &format!("list {name} --creds me:wrong"),
        "refused the credentials",
    );
    place.refused(&format!("list {name}"), "refused the credentials");
}

#[test]
fn a_registry_with_tls_must_be_trusted() {
    let (registry, certificate) = Registry::with_tls();
    let place = Place::new("inject");
    image().push(&registry, "app:1");
    let name = format!("{}/app:1", registry.address());
    place.refused(&format!("init {name}"), "certificate is not trusted");
    place.ok(&format!("init {name} --tls-verify=false"));
    place.ok(&format!("list http:{name}"));
    // Where podman and skopeo look for it.
    let kept = place.path(&format!(
        ".config/containers/certs.d/{}",
        registry.address()
    ));
    std::fs::create_dir_all(&kept).unwrap();
    std::fs::copy(certificate, kept.join("ca.crt")).unwrap();
    let run = |address: &str| {
        let mut command = place.command(&format!("list {address}/app:1"));
        command.env("HOME", place.directory()).output().unwrap()
    };
    let output = run(&registry.address());
    assert_eq!(output.code(), 0, "{}", output.err());
    // It is for that host alone, and for no other name.
    let port = registry.address().split_once(':').unwrap().1.to_owned();
    let other = format!("localhost:{port}");
    let kept = place.path(&format!(".config/containers/certs.d/{other}"));
    std::fs::create_dir_all(&kept).unwrap();
    let known = place.path(&format!(
        ".config/containers/certs.d/{}/ca.crt",
        registry.address()
    ));
    std::fs::copy(known, kept.join("ca.crt")).unwrap();
    let output = run(&other);
    assert_eq!(output.code(), 1);
    assert!(output.err().contains("not trusted"), "{}", output.err());
    // Plain HTTP is not found by accident.
    let plain = Registry::start();
    place.refused(
        &format!("list {}/app:1", plain.address()),
        "it speaks plain HTTP",
    );
}

#[test]
fn programs_read_how_far_it_is() {
    let registry = Registry::start();
    let place = Place::new("inject");
    image().push(&registry, "app:1");
    place.sh("mkdir -p tree/cvmfs; head -c 3000000 /dev/urandom > tree/cvmfs/noise");
    let program = support::program();
    let run = |words: &str| -> Vec<Value> {
        let text = place.sh(&format!(
            "ATOMIC_OSTREE_CHECKOUT_PATH=$PWD/store ATOMIC_RS_CONFIG=/none {} --progress-fd 3 {words} 3>&1 >/dev/null 2>/dev/null",
            program.display()
        ));
        let lines = text.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let name = format!("http:{}/app:1", registry.address());
    let lines = run(&format!("inject update {name} --dir tree"));
    let ends: Vec<&Value> = lines.iter().filter(|line| line["done"] == true).collect();
    assert_eq!(
        (&ends[0]["phase"], &ends[0]["bytes"]),
        (&json!("pack"), &json!(3_000_000))
    );
    assert_eq!(ends[1]["phase"], "upload");
    assert_eq!(ends[1]["bytes"], ends[1]["total"]);
    let lines = run(&format!(
        "bootstrap http:{}/app:cvmfs root",
        registry.address()
    ));
    let phases: Vec<&str> = lines
        .iter()
        .filter(|line| line["done"] == true)
        .map(|line| line["phase"].as_str().unwrap())
        .collect();
    assert_eq!(phases, ["pull", "unpack"]);
    let pulled = lines.iter().filter(|line| line["phase"] == "pull");
    let steps = pulled.filter(|line| {
        line["step"]
            .as_str()
            .is_some_and(|step| step.starts_with("layer sha256:"))
    });
    assert!(steps.count() >= 3);
    assert!(lines.iter().all(|line| line["version"] == 1));
    place.refused(
        &format!("list {name} --progress-fd 77"),
        "no open file descriptor",
    );
}
