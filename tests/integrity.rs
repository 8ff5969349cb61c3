//! What is stored is what was pulled, and what is deployed is what is stored; and the verbs on
//! single images.

mod support;

use std::io::Write as _;

use serde_json::{Value, json};
use support::images::{self, Image, Layer};
use support::{Host, Registry, Said as _, free_port, wait_for_answer};

const C: &str = "/var/lib/containers/atomic";

/// Write into a file without replacing it.
fn write_through(host: &Host, path: &str) {
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(host.path(path))
        .unwrap();
    file.write_all(b"tampered").unwrap();
}

#[test]
fn a_write_through_a_deployment_is_reported_and_repaired() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    let written = images::plain(port, "genuine").push(&registry, "web");
    let reference = registry.name("web");
    host.atomic_ok(&format!("install --name web {reference}"));
    host.ok("systemctl start web");
    wait_for_answer(port, "genuine");
    assert_eq!(host.atomic_ok("verify web"), "");
    host.atomic_ok(&format!("images verify {reference}"));

    // A label that the host's policy gave a file since is no damage.
    let file = format!("{C}/web.0/rootfs/etc/group");
    host.ok(&format!(
        "setfattr -n security.selinux -v system_u:object_r:etc_t:s0 {file}"
    ));
    let found = host.atomic("verify web --json");
    let told: Value = serde_json::from_str(&found.out()).unwrap();
    assert_eq!(
        (&told["problems"], &told["relabelled"]),
        (&json!([]), &json!(["/etc/group"]))
    );
    assert!(
        found.code() == 1 && found.err().contains("but for SELinux labels"),
        "{}",
        found.err()
    );
    let image = host.atomic(&format!("images verify {reference}"));
    assert!(
        image.code() == 1 && image.out().contains("LABELS"),
        "{}{}",
        image.out(),
        image.err()
    );
    let again = host.atomic(&format!("pull {reference}"));
    assert!(!again.err().contains("Pulling layer"), "{}", again.err());
    host.ok(&format!("setfattr -x security.selinux {file}"));

    write_through(&host, &format!("{C}/web.0/rootfs/srv/index.html"));
    let found = host.atomic("verify web");
    assert_eq!(found.code(), 1);
    assert!(
        found
            .out()
            .contains("/srv/index.html was written to, and so was the store's copy"),
        "{}",
        found.out()
    );
    let image = host.atomic(&format!("images verify {reference}"));
    assert!(
        image.code() == 1 && image.out().contains("DAMAGED"),
        "{}{}",
        image.out(),
        image.err()
    );
    assert!(image.err().contains("srv/index.html"), "{}", image.err());
    assert_eq!(
        host.run(&format!("ostree fsck --quiet --repo={C}/.storage/ostree"))
            .code(),
        1
    );
    // Healing the store does not heal the deployment, and that is seen.
    host.atomic_ok(&format!("pull {reference}"));
    host.ok(&format!("ostree fsck --quiet --repo={C}/.storage/ostree"));
    host.atomic_ok(&format!("images verify {reference}"));
    let found = host.atomic("verify web");
    assert!(
        found.code() == 1 && found.out().contains("has another content"),
        "{}",
        found.out()
    );

    assert_eq!(host.atomic("repair web --dry-run").code(), 3);
    host.atomic_ok("repair web");
    let answer = wait_for_answer(port, "genuine");
    assert!(!answer.contains("tampered"), "{answer}");
    assert_eq!(host.atomic_ok("verify web"), "");

    // The rest of what can happen to a deployment: by one repair, the store included.
    write_through(&host, &format!("{C}/web.0/rootfs/etc/passwd"));
    host.sh(&format!(
        "cd {C}/web.0/rootfs && rm etc/group && chmod 700 tmp && echo x > added; rm ../web.service; echo '# mine' >> /etc/systemd/system/web.service"
    ));
    let found: Value = serde_json::from_str(&host.atomic("verify web --json").out()).unwrap();
    let text = found["problems"].to_string();
    for part in [
        "etc/passwd",
        "/etc/group is missing",
        "/tmp has owner",
        "/added is not in the image",
        "web.service is not what was installed",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    host.atomic_ok("repair web");
    wait_for_answer(port, "genuine");
    assert_eq!(host.atomic_ok("verify web"), "");
    host.ok(&format!("ostree fsck --quiet --repo={C}/.storage/ostree"));
    assert_eq!(
        host.ok(&format!("readlink {C}/web")),
        format!("{C}/web.0\n")
    );

    // What only the merged tree has, and no layer, is put together again.
    let tree = host.ok(&format!(
        "ostree rev-parse --repo={C}/.storage/ostree ociimage-tree/{}",
        written.id()
    ));
    let root = host.ok(&format!(
        "ostree ls --repo={C}/.storage/ostree -d -C {}",
        tree.trim()
    ));
    let checksum = root
        .split_whitespace()
        .find(|word| word.len() == 64)
        .unwrap();
    let object = format!(
        "{C}/.storage/ostree/objects/{}/{}.dirtree",
        &checksum[..2],
        &checksum[2..]
    );
    assert!(host.exists(&object), "{root}");
    host.ok(&format!("rm {object}"));
    assert_eq!(host.atomic(&format!("images verify {reference}")).code(), 1);
    host.atomic_ok(&format!("pull {reference}"));
    host.atomic_ok(&format!("images verify {reference}"));

    // Where the registry has another image under the name by now, the very one is fetched.
    images::plain(port, "newer").push(&registry, "web");
    let newer = host.atomic("images verify --all");
    assert!(
        newer.code() == 1 && newer.out().contains("YES"),
        "{}",
        newer.out()
    );
    write_through(&host, &format!("{C}/web.0/rootfs/srv/index.html"));
    host.atomic_ok("repair web");
    assert_eq!(host.atomic_ok("verify web"), "");
    let info = host.read(&format!("{C}/web.0/info"));
    assert!(info.contains(written.id()));
    wait_for_answer(port, "genuine");
}

#[test]
fn images_are_tagged_described_and_updated() {
    let registry = Registry::start();
    let host = Host::boot();
    images::system().push(&registry, "system");
    images::system_update().push(&registry, "update");
    let versioned = |n: u32| {
        Image::new()
            .layer(Layer::new().busybox().file("n", 0o644, n.to_string()))
            .set("Cmd", json!(["true"]))
            .set(
                "Labels",
                json!({"Version": n.to_string(), "Release": "1", "atomic.type": "system"}),
            )
    };
    versioned(1).push(&registry, "tool");
    for name in ["system", "update", "tool"] {
        host.atomic_ok(&format!("pull {}", registry.name(name)));
    }
    let tool = registry.name("tool");
    let info = host.atomic_ok(&format!("images info {}", registry.name("update")));
    assert!(
        info.starts_with("Image Name: ") && info.contains("atomic.type: system"),
        "{info}"
    );
    for line in [
        "PORT: 8081",
        "VAR_WITH_NO_DEFAULT: {DEF_VALUE}",
        "UUID: {SET_BY_OS}",
    ] {
        assert!(info.contains(line), "{line}: {info}");
    }
    assert!(info.contains("overridable with --set:") && info.contains("must be set with --set:"));
    let json: Value = serde_json::from_str(
        &host.atomic_ok(&format!("images info --json {}", registry.name("system"))),
    )
    .unwrap();
    assert!(
        json["variables"]
            .as_array()
            .unwrap()
            .iter()
            .any(|v| v["name"] == "RECEIVER" && v["default"] == "World")
    );

    host.atomic_ok(&format!("images tag {tool} mine:one"));
    assert_eq!(host.atomic("images tag nothing mine:two").code(), 1);
    let list = host.atomic_ok("images list");
    assert!(list.contains("mine") && list.contains("one"), "{list}");
    let version = host.atomic_ok(&format!("images version {tool}"));
    assert!(
        version.contains("1-1") && version.contains("  Tag: mine:one"),
        "{version}"
    );
    // One of two names goes, and its layers stay for the other.
    host.atomic_ok(&format!("-y images delete {tool}"));
    host.atomic_ok("images prune");
    host.atomic_ok("run mine:one true");

    host.atomic_ok(&format!("pull {tool}"));
    versioned(2).push(&registry, "tool");
    let output = host.atomic("images update --all");
    assert_eq!(output.code(), 0, "{}", output.err());
    assert!(
        output
            .err()
            .contains("mine:one not fully qualified: skipping"),
        "{}",
        output.err()
    );
    assert!(
        output.out().contains("SUMMARY") && output.out().contains("Updated now"),
        "{}",
        output.out()
    );
    assert!(
        host.atomic_ok(&format!("images version {tool}"))
            .contains("2-1")
    );
}

#[test]
fn what_an_update_would_change_is_shown_file_by_file() {
    let registry = Registry::start();
    let host = Host::boot();
    let image = |new: bool| {
        let layer = Layer::new()
            .busybox()
            .dir("d", if new { 0o700 } else { 0o755 })
            .file("d/same", 0o644, "same")
            .file("d/content", 0o644, if new { "b" } else { "a" })
            .owned_file("d/owner", 0o644, u32::from(new), "x")
            .file("d/mode", if new { 0o600 } else { 0o644 }, "x");
        let layer = if new {
            layer
                .dir("new", 0o755)
                .file("new/file", 0o644, "")
                .file("turns", 0o644, "")
        } else {
            layer
                .file("old", 0o644, "")
                .dir("turns", 0o755)
                .file("turns/in", 0o644, "")
        };
        Image::new().layer(layer).set("Cmd", json!(["true"])).set(
            "Env",
            if new {
                json!(["A=2", "B=1"])
            } else {
                json!(["A=1"])
            },
        )
    };
    image(false).push(&registry, "app");
    let reference = registry.name("app");
    host.atomic_ok(&format!("install --name app {reference}"));
    assert_eq!(host.atomic_ok("diff app"), "");
    image(true).push(&registry, "app");
    host.atomic_ok(&format!("pull {reference}"));
    assert_eq!(
        host.atomic_ok("diff app"),
        "~ /d (mode)\n~ /d/content (content)\n~ /d/mode (mode)\n~ /d/owner (owner)\n+ /new\n+ /new/file\n- /old\n- /turns\n- /turns/in\n+ /turns\nenvironment: +B ~A\n"
    );
    let names = host.atomic_ok("diff app --names-only");
    assert!(
        names.starts_with("/d\n/d/content\n") && !names.contains("environment"),
        "{names}"
    );
    assert_eq!(
        host.atomic_ok("diff app --metadata"),
        "environment: +B ~A\n"
    );
    let told: Value = serde_json::from_str(&host.atomic_ok("diff --json app")).unwrap();
    assert_eq!(
        told["files"][1],
        json!({"path": "/d/content", "change": "changed", "what": ["content"]})
    );
    host.atomic_ok("update app --no-pull");
    assert_eq!(host.atomic_ok("diff app"), "");
    assert_eq!(host.atomic("diff app nothing").code(), 1);
}
