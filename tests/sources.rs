//! Images come from everywhere: archives in all their shapes, a daemon, podman's store, indexes.

mod support;

use std::io::Read as _;
use std::path::Path;

use serde_json::{Value, json};
use support::images::{self, Image, Layer};
use support::{Host, Registry, Said as _, Scratch, free_port, wait_for_answer};

/// Write an archive as `docker save` does: images with their tags. A layer that was written already
/// is a symlink to where it is, as docker writes it.
fn docker_archive(path: &Path, images: &[(&Path, &[&str])]) {
    let mut builder = tar::Builder::new(std::fs::File::create(path).unwrap());
    let mut add = |name: &str, content: Result<&[u8], &str>| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        match content {
            Ok(bytes) => {
                header.set_size(bytes.len() as u64);
                builder.append_data(&mut header, name, bytes).unwrap();
            }
            Err(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                builder.append_link(&mut header, name, target).unwrap();
            }
        }
    };
    let mut written: Vec<String> = Vec::new();
    let mut manifests = Vec::new();
    for (number, (layout, tags)) in images.iter().enumerate() {
        let blob = |digest: &Value| {
            let hex = digest.as_str().unwrap().trim_start_matches("sha256:");
            std::fs::read(layout.join("blobs/sha256").join(hex)).unwrap()
        };
        let json = |bytes: Vec<u8>| serde_json::from_slice::<Value>(&bytes).unwrap();
        let index = json(std::fs::read(layout.join("index.json")).unwrap());
        let manifest = json(blob(&index["manifests"][0]["digest"]));
        let config = format!("{number}.json");
        add(&config, Ok(&blob(&manifest["config"]["digest"])));
        let mut layers = Vec::new();
        for (place, layer) in manifest["layers"].as_array().unwrap().iter().enumerate() {
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(&blob(&layer["digest"])[..])
                .read_to_end(&mut plain)
                .unwrap();
            let id = images::sha256(&plain);
            let name = format!("{number}-{place}/layer.tar");
            if let Some(at) = written.iter().position(|have| have.starts_with(&id)) {
                add(&name, Err(&format!("../{}", &written[at][id.len()..])));
            } else {
                add(&name, Ok(&plain));
                written.push(format!("{id}{name}"));
            }
            layers.push(name);
        }
        manifests.push(json!({"Config": config, "RepoTags": tags, "Layers": layers}));
    }
    add("manifest.json", Ok(json!(manifests).to_string().as_bytes()));
    builder.finish().unwrap();
}

fn greeting(text: &str) -> Image {
    let again = || Layer::new().file("again", 0o644, "the same layer twice");
    Image::new()
        .layer(again())
        .layer(Layer::new().file("text", 0o644, text))
        .layer(again())
}

#[test]
fn archives_with_several_tags_images_and_linked_layers_are_read() {
    let host = Host::boot();
    let root = host.path("/root");
    let (one, two) = (Scratch::new("one"), Scratch::new("two"));
    greeting("one").write(one.path());
    greeting("two").write(two.path());
    docker_archive(
        &root.join("saved"),
        &[(one.path(), &["team/app:1", "team/app:latest"])],
    );
    let out = host.atomic_ok("pull dockertar:/root/saved");
    let lines: Vec<&str> = out.lines().collect();
    assert!(
        lines.len() == 2
            && lines[0].starts_with("team/app:1 sha256:")
            && lines[1].starts_with("team/app:latest sha256:"),
        "both names are there: {out}"
    );
    let list = host.atomic_ok("images list");
    assert!(
        list.contains("team/app") && list.lines().count() == 3,
        "{list}"
    );
    host.ok("mkdir /root/at");
    host.atomic_ok("mount team/app:1 /root/at");
    assert_eq!(host.read("/root/at/text"), "one");
    assert_eq!(host.read("/root/at/again"), "the same layer twice");
    host.atomic_ok("unmount /root/at");

    docker_archive(
        &root.join("many.tar"),
        &[
            (one.path(), &["first:1", "first:2"]),
            (two.path(), &["second:1"]),
        ],
    );
    let refused = host.atomic("pull docker-archive:/root/many.tar");
    assert!(
        refused.code() == 2
            && refused.err().lines().count() == 1
            && refused.err().contains("holds several images")
            && refused.err().contains("first:1, first:2, second:1"),
        "{}",
        refused.err()
    );
    let out = host.atomic_ok("pull docker-archive:/root/many.tar:second:1");
    assert!(out.starts_with("second:1 sha256:"), "{out}");
    assert!(!host.atomic_ok("images list").contains("first"));
    let out = host.atomic_ok("images import docker-archive:/root/many.tar");
    assert_eq!(out.lines().count(), 3, "{out}");
    host.atomic_ok("mount second:1 /root/at");
    assert_eq!(host.read("/root/at/text"), "two", "the other image's layer");
    host.atomic_ok("unmount /root/at");
    let id = |name: &str| {
        let value: Value =
            serde_json::from_str(&host.atomic_ok(&format!("inspect {name}"))).unwrap();
        value["id"].clone()
    };
    assert_eq!(id("first:1"), id("first:2"));
    assert_ne!(id("first:1"), id("second:1"));

    // Without any name it is called after its file.
    docker_archive(&root.join("nameless.tar"), &[(two.path(), &[])]);
    let out = host.atomic_ok("pull dockertar:/root/nameless.tar");
    assert!(out.starts_with("nameless:latest sha256:"), "{out}");
    host.ok("ostree fsck --quiet --repo=/var/lib/containers/atomic/.storage/ostree");
}

#[test]
fn a_docker_daemon_and_podmans_store_and_directories_are_sources() {
    let host = Host::boot();
    let port = free_port();
    images::plain(port, "from the daemon").docker_archive(&host.path("/root/app"), "team/app:7");
    host.ok("mkdir -p /etc/containers /run/other");
    std::fs::write(
        host.path("/etc/containers/storage.conf"),
        "[storage]\ndriver = \"vfs\"\nrunroot = \"/run/containers/storage\"\ngraphroot = \"/var/lib/containers/storage\"\n",
    )
    .unwrap();
    host.ok("podman load --quiet -i /root/app");
    // A daemon that speaks docker's interface, where docker's own listens.
    let serve = |at: &str| {
        format!(
            "systemd-run --quiet --unit=daemon-{} podman system service --time=0 unix://{at}",
            at.len()
        )
    };
    host.ok(&serve("/run/docker.sock"));
    host.sh("until [ -S /run/docker.sock ]; do sleep 0.05; done");
    let out = host.atomic_ok("pull docker:docker.io/team/app:7");
    assert!(out.starts_with("docker.io/team/app:7 sha256:"), "{out}");
    host.ok("systemctl stop daemon-16");
    let refused = host.atomic("pull docker:docker.io/team/app:7");
    assert!(
        refused.code() == 1 && refused.err().lines().count() == 1,
        "{}",
        refused.err()
    );
    // Or elsewhere, as docker's own variable says.
    host.ok(&serve("/run/other/d.sock"));
    host.sh("until [ -S /run/other/d.sock ]; do sleep 0.05; done");
    host.atomic_ok("-y images delete docker.io/team/app:7");
    let name = "docker:docker.io/team/app:7";
    let with = format!("DOCKER_HOST=unix:///run/other/d.sock atomic-rs install --name app {name}");
    let output = host.sh(&with);
    assert_eq!(output.code(), 0, "{}", output.err());
    host.ok("systemctl start app");
    wait_for_answer(port, "from the daemon");
    let again = host.sh("DOCKER_HOST=unix:///run/other/d.sock atomic-rs update app");
    assert!(
        again.out().contains("Latest version already installed."),
        "{}{}",
        again.out(),
        again.err()
    );
    host.atomic_ok("uninstall app");

    let out = host.atomic_ok("pull containers-storage:docker.io/team/app:7");
    assert!(out.starts_with("docker.io/team/app:7 sha256:"), "{out}");
    host.ok("skopeo copy --quiet --insecure-policy docker-archive:/root/app dir:/root/directory");
    let out = host.atomic_ok("pull dir:/root/directory");
    assert!(out.starts_with("directory:latest sha256:"), "{out}");
    // One layout, two images.
    for tag in ["a", "b"] {
        let (_scratch, layout, _) = images::layout(greeting(tag));
        support::must(
            std::process::Command::new("skopeo")
                .args(["copy", "--quiet", "--insecure-policy"])
                .arg(format!("oci:{}", layout.display()))
                .arg(format!(
                    "oci:{}:{tag}",
                    host.path("/var/lib/containers/layout").display()
                )),
        );
    }
    let a = host.atomic_ok("pull oci:/var/lib/containers/layout:a");
    let b = host.atomic_ok("pull oci:/var/lib/containers/layout:b");
    assert!(
        a.starts_with("layout:a ") && b.starts_with("layout:b "),
        "{a}{b}"
    );
    host.ok("ostree fsck --quiet --repo=/var/lib/containers/atomic/.storage/ostree");
}

#[test]
fn another_platform_is_taken_where_it_is_asked_for_and_kept_by_updates() {
    let registry = Registry::start();
    let host = Host::boot();
    let push = |text: &str| {
        let both = ["arm64", "amd64"].map(|architecture| {
            Image::new()
                .architecture(architecture)
                .layer(Layer::new().busybox().file(
                    "text",
                    0o644,
                    format!("{text} for {architecture}"),
                ))
                .set("Cmd", json!(["cat", "/text"]))
                .push(&registry, &format!("app:{architecture}"))
        });
        registry.put_index("app", "latest", &[("arm64", &both[0]), ("amd64", &both[1])]);
        both
    };
    let [arm, ours] = push("one");
    let name = registry.name("app");
    let out = host.atomic_ok(&format!("pull {name}"));
    assert!(out.trim().ends_with(&ours.digest), "{out}");
    let output = host.atomic(&format!("pull --platform linux/arm64 {name}"));
    assert!(
        output.out().trim().ends_with(&arm.digest),
        "{}",
        output.out()
    );
    assert!(!output.err().contains("made for"), "{}", output.err());
    // The platform is part of what is asked for again.
    let [arm, ours] = push("two");
    let out = host.atomic_ok(&format!("images update {name}"));
    assert!(out.trim().ends_with(&arm.digest), "{out}");
    host.atomic_ok(&format!("images verify {name}"));

    host.atomic_ok(&format!("install --name app --platform amd64 {name}"));
    let revision = || {
        let value: Value = serde_json::from_str(&host.atomic_ok("inspect app")).unwrap();
        let deployments = value["deployments"].as_array().unwrap();
        let current = deployments.iter().find(|one| one["current"] == true);
        current.unwrap()["image_id"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        revision(),
        ours.id(),
        "what was there was for another platform"
    );
    host.atomic_ok(&format!("pull --platform linux/arm64 {name}"));
    let [arm, ours] = push("three");
    host.atomic_ok("update app");
    assert_eq!(revision(), ours.id(), "not {}", arm.digest);

    // What is not an index is what it is.
    let refused = host.atomic(&format!("pull --platform linux/arm64 {name}:amd64"));
    assert!(
        refused.code() == 1
            && refused
                .err()
                .contains("is not made for linux/arm64, only for linux/amd64"),
        "{}",
        refused.err()
    );
    let output = host.atomic(&format!("pull {name}:arm64"));
    assert!(
        output.code() == 0
            && output
                .err()
                .contains("is made for linux/arm64, and this machine is linux/amd64"),
        "{}",
        output.err()
    );
    host.atomic_ok(&format!("pull {name}:amd64"));
    let refused = host.atomic(&format!("pull --platform linux/arm64 {name}:amd64"));
    assert_eq!(
        refused.code(),
        1,
        "that it is stored makes it no other: {}",
        refused.out()
    );
    let refused = host.atomic(&format!("pull --platform linux/s390x {name}"));
    assert_eq!(
        (refused.code(), refused.err().lines().count()),
        (1, 1),
        "{}",
        refused.err()
    );
    assert_eq!(host.atomic("pull --platform a/b/c/d x").code(), 2);
}

#[test]
fn an_index_digest_is_pinned_and_stays_put() {
    let registry = Registry::start();
    let host = Host::boot();
    let image = |text: &str| {
        let written = Image::new()
            .layer(Layer::new().busybox().file("text", 0o644, text))
            .set("Cmd", json!(["cat", "/text"]))
            .push(&registry, "app:amd64");
        (
            registry.put_index("app", "latest", &[("amd64", &written)]),
            written,
        )
    };
    let (index, first) = image("one");
    let pinned = format!("{}@{index}", registry.name("app"));
    let out = host.atomic_ok(&format!("pull {pinned}"));
    assert_eq!(
        out.trim(),
        format!("{}/app@{index} {}", registry.address(), first.digest)
    );
    host.atomic_ok(&format!("install --name app {pinned}"));
    image("two");
    let output = host.atomic("update app");
    assert!(
        output.code() == 0 && output.out().contains("Latest version already installed."),
        "{}{}",
        output.out(),
        output.err()
    );
    let all = host.atomic_ok("update --all");
    assert!(
        all.contains("Updated") && !all.contains("Updated now"),
        "{all}"
    );
    // A name without the digest moves it on.
    host.atomic_ok(&format!("update app --rebase {}", registry.name("app")));
    assert!(host.atomic_ok("inspect app").contains("app:latest"));
}
