//! Files that an image brings for the host: tracked, reversible, and nobody else's.

mod support;

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use support::images::{self, Image, Layer};
use support::{Host, Registry, Said as _};

const C: &str = "/var/lib/containers/atomic";

/// An image without service that has these files for the host.
fn bringing(manifest: Value, layer: Layer) -> Image {
    let mut manifest = manifest;
    manifest["version"] = "1.0".into();
    manifest["noContainerService"] = true.into();
    Image::new()
        .layer(Layer::new().busybox())
        .layer(layer.file("exports/manifest.json", 0o644, manifest.to_string()))
        .set("Cmd", json!(["true"]))
}

#[test]
fn host_files_go_through_install_update_rollback_and_uninstall() {
    let registry = Registry::start();
    let host = Host::boot();
    let name = registry.name("hostfs");
    images::hostfs().push(&registry, "hostfs");
    host.atomic_ok(&format!("pull {name}"));
    let places = [
        "/usr/local/lib",
        "/usr/local/placeholder-lib",
        "/broken-symlink",
    ];
    let before = host.listing(&places);
    // The plan names every file before one is written.
    let words =
        format!("install --system-package=no --name files --set RECEIVER=you --set PORT=1 {name}");
    let plan = host.atomic(&words.replace("install ", "install --dry-run "));
    assert_eq!(plan.code(), 3, "{}", plan.err());
    for path in [
        "/broken-symlink",
        "/usr/local/placeholder-lib",
        "/usr/local/lib/secret-message",
        "/usr/local/lib/secret-message-template",
        "/usr/local/lib/renamed-files",
    ] {
        assert!(plan.out().contains(path), "{path}: {}", plan.out());
    }
    host.assert_unchanged(&places, &before);
    host.atomic_ok(&words);
    let lib = "/usr/local/lib";
    assert_eq!(host.ok("readlink /broken-symlink"), "/does/not/exist\n");
    assert_eq!(
        host.ok("stat -c %F /usr/local/placeholder-lib"),
        "directory\n"
    );
    assert_eq!(
        host.read(&format!("{lib}/secret-message")),
        "Hello unknown $RECEIVER\n"
    );
    assert_eq!(
        host.read(&format!("{lib}/secret-message-template")),
        "hello you\n"
    );
    assert_eq!(
        host.read(&format!("{lib}/renamed-files")),
        "Hello unknown $RECEIVER\n"
    );
    assert!(!host.exists(&format!("{lib}/placeholder-file")));
    assert_eq!(
        host.atomic_ok(&format!("which-container {lib}/renamed-files")),
        "files\n"
    );
    assert_eq!(host.atomic("which-container /etc/hosts").code(), 1);
    let inspected = host.atomic_ok("inspect files");
    assert!(
        inspected.contains("/usr/local/lib/renamed-files"),
        "{inspected}"
    );
    assert_eq!(host.atomic_ok("verify files"), "");

    host.ok("rm /usr/local/lib/renamed-files");
    let verify = host.atomic("verify files");
    assert!(
        verify.code() == 1 && verify.out().contains("renamed-files is missing"),
        "{}",
        verify.out()
    );
    host.atomic_ok("repair files");
    assert!(host.exists("/usr/local/lib/renamed-files"));
    assert_eq!(host.atomic_ok("verify files"), "");

    // Somebody changes one, and something else has a name of the next version's.
    host.sh(&format!(
        "echo mine > {lib}/secret-message-template; echo theirs > {lib}/new"
    ));
    let verify = host.atomic("verify files");
    assert!(
        verify.code() == 1 && verify.out().contains("secret-message-template"),
        "{}",
        verify.out()
    );
    images::hostfs()
        .layer(
            Layer::new()
                .file(
                    "exports/hostfs/usr/local/lib/secret-message",
                    0o600,
                    "second\n",
                )
                .file("exports/hostfs/usr/local/lib/deep/er/file", 0o644, "deep\n")
                .file("exports/hostfs/usr/local/lib/new", 0o644, "new\n")
                .whiteout("exports/hostfs", "broken-symlink"),
        )
        .push(&registry, "hostfs");
    let update = host.atomic("update files --set RECEIVER=them");
    assert_eq!(update.code(), 0, "{}", update.err());
    for said in [
        format!("{lib}/secret-message-template was modified"),
        format!("File {lib}/new already exists"),
    ] {
        assert!(update.err().contains(&said), "{said}: {}", update.err());
    }
    assert_eq!(host.read(&format!("{lib}/secret-message")), "second\n");
    assert_eq!(
        host.ok(&format!("stat -c %a {lib}/secret-message")),
        "600\n"
    );
    assert_eq!(
        host.read(&format!("{lib}/secret-message-template")),
        "mine\n"
    );
    assert_eq!(host.read(&format!("{lib}/new")), "theirs\n");
    assert_eq!(host.read(&format!("{lib}/deep/er/file")), "deep\n");
    assert!(!host.exists("/broken-symlink"));

    let rollback = host.atomic("rollback files");
    assert!(
        rollback.code() == 0
            && rollback
                .err()
                .contains("secret-message-template was modified"),
        "{}",
        rollback.err()
    );
    assert_eq!(
        host.read(&format!("{lib}/secret-message")),
        "Hello unknown $RECEIVER\n"
    );
    assert_eq!(
        host.read(&format!("{lib}/secret-message-template")),
        "mine\n"
    );
    assert!(host.exists("/broken-symlink") && !host.exists(&format!("{lib}/deep")));
    host.atomic_ok("rollback files");
    assert_eq!(host.read(&format!("{lib}/secret-message")), "second\n");

    let uninstall = host.atomic("uninstall files");
    assert!(
        uninstall.code() == 0
            && uninstall.err().contains(&format!(
                "Will not delete {lib}/secret-message-template as it was manually modified."
            )),
        "{}",
        uninstall.err()
    );
    host.ok(&format!("rm {lib}/secret-message-template {lib}/new"));
    let left = |text: &str| {
        let names = text.lines().filter_map(|line| line.split(' ').next());
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(left(&host.listing(&places)), left(&before));
    assert_eq!(host.sh(&format!("ls {C}")).out(), "");
}

#[test]
fn every_kind_of_entry_arrives_as_it_is_and_links_are_made_where_they_may_be() {
    let registry = Registry::start();
    let host = Host::boot();
    let layer = Layer::new()
        .dir("exports/hostfs/srv/tree", 0o750)
        .owned_dir("exports/hostfs/srv/tree/empty", 0o1770, 1234)
        .owned_file("exports/hostfs/srv/tree/own", 0o4711, 1234, "x")
        .symlink("exports/hostfs/srv/tree/to-dir", "/usr")
        .symlink("exports/hostfs/srv/tree/relative", "../../etc/hosts")
        .xattr(
            "security.capability",
            &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        )
        .file("exports/hostfs/srv/tree/capable", 0o755, "y")
        .file(
            "exports/hostfs/usr/local/bin/tool",
            0o755,
            "#!/bin/sh\necho a tool of $0\n",
        );
    bringing(json!({}), layer).push(&registry, "kinds");
    host.atomic_ok(&format!(
        "install --system-package=no --name kinds {}",
        registry.name("kinds")
    ));
    let stat = host.ok("stat -c %n:%F:%a:%u:%g /srv/tree /srv/tree/empty /srv/tree/own /srv/tree/to-dir /srv/tree/capable");
    assert_eq!(
        stat,
        "/srv/tree:directory:750:0:0\n/srv/tree/empty:directory:1770:1234:1234\n/srv/tree/own:regular file:4711:1234:1234\n\
         /srv/tree/to-dir:symbolic link:777:0:0\n/srv/tree/capable:regular file:755:0:0\n"
    );
    assert_eq!(
        host.ok("readlink /srv/tree/to-dir /srv/tree/relative"),
        "/usr\n../../etc/hosts\n"
    );
    let capability = host.ok("getcap /srv/tree/capable");
    assert!(capability.contains("cap_net_bind_service"), "{capability}");
    assert_eq!(
        host.ok("/usr/local/bin/tool"),
        "a tool of /usr/local/bin/tool\n"
    );
    host.atomic_ok("uninstall kinds");
    assert!(!host.exists("/srv/tree") && !host.exists("/usr/local/bin/tool"));
}

#[test]
fn modes_and_owners_follow_the_image_unless_the_host_has_changed_them() {
    let registry = Registry::start();
    let host = Host::boot();
    let name = registry.name("modes");
    let image = |modes: [u32; 4], owner: u32, content: &str| {
        let layer = Layer::new()
            .dir("exports/hostfs/srv/t", modes[0])
            .file("exports/hostfs/srv/t/shut", modes[1], "s")
            .file("exports/hostfs/srv/t/own", modes[2], content)
            .owned_file("exports/hostfs/srv/t/theirs", modes[3], owner, "t");
        bringing(json!({}), layer)
    };
    let stat = |host: &Host| {
        let files = "/srv/t /srv/t/shut /srv/t/own /srv/t/theirs";
        host.ok(&format!("stat -c %a:%u {files}"))
            .replace('\n', " ")
    };
    image([0o755, 0o644, 0o755, 0o644], 1000, "o").push(&registry, "modes");
    host.atomic_ok(&format!("install --system-package=no --name modes {name}"));
    let first = stat(&host);
    assert_eq!(first, "755:0 644:0 755:0 644:1000 ");
    // The image shuts what was open; the host has shut one of its own accord.
    host.ok("chmod 700 /srv/t/own");
    let verify = host.atomic("verify modes");
    assert!(
        verify.code() == 1
            && verify
                .out()
                .contains("/srv/t/own on the host has mode 0700 in place of 0755"),
        "{}",
        verify.out()
    );
    image([0o750, 0o600, 0o755, 0o644], 1001, "changed").push(&registry, "modes");
    host.atomic_ok(&format!("pull {name}"));
    let dry = host.atomic("update modes --dry-run --json");
    for path in ["\"/srv/t\"", "/srv/t/shut", "/srv/t/theirs"] {
        assert!(dry.out().contains(path), "{path}: {}", dry.out());
    }
    let update = host.atomic("update modes");
    assert!(
        update
            .err()
            .contains("/srv/t/own has mode 0700 in place of 0755, and stays so"),
        "{}",
        update.err()
    );
    assert_eq!(stat(&host), "750:0 600:0 700:0 644:1001 ");
    assert_eq!(host.read("/srv/t/own"), "changed");
    host.atomic_ok("rollback modes");
    assert_eq!(stat(&host), "755:0 644:0 700:0 644:1000 ");
    assert_eq!(host.read("/srv/t/own"), "o");
    // What was installed before attributes were on record is left as it is.
    host.ok(&format!(
        "sed -i s/installed-files-attributes/unknown-to-us/ {C}/modes/info"
    ));
    host.atomic_ok("update modes");
    assert_eq!(stat(&host), "755:0 644:0 755:0 644:1000 ");
    // From then on it is: what the image changes next reaches the host.
    image([0o711, 0o640, 0o755, 0o644], 1002, "changed").push(&registry, "modes");
    host.atomic_ok("update modes");
    assert_eq!(stat(&host), "711:0 640:0 755:0 644:1002 ");
    assert_eq!(host.atomic_ok("verify modes"), "");
    // What the image says nothing of any more stays as it is, with what somebody changed in it.
    host.sh("echo mine > /srv/t/own; chmod 700 /srv/t; chown 200 /srv/t");
    bringing(
        json!({}),
        Layer::new().file("exports/hostfs/srv/else", 0o644, "x"),
    )
    .push(&registry, "modes");
    host.atomic_ok("update modes");
    assert_eq!(host.ok("stat -c %a:%u /srv/t"), "700:200\n");
    host.ok("rm /srv/t/own");
    host.atomic_ok("uninstall modes");
    assert!(!host.exists("/srv/t"));
}

#[test]
fn what_an_image_must_not_write_is_refused_before_anything_is_written() {
    let registry = Registry::start();
    let host = Host::boot();
    host.ok("ln -s /etc /srv/link");
    let long = format!("/usr/local/{}", "x".repeat(300));
    let before = host.listing(&["/etc", "/srv", "/usr/local/lib", C]);
    for (number, (target, named)) in [
        ("../outside", "outside"),
        ("/usr/../etc/x", "/usr/../etc/x"),
        ("/etc/passwd", "/etc/passwd"),
        ("/boot/vmlinuz", "/boot/vmlinuz"),
        ("/proc/sys/kernel/core_pattern", "core_pattern"),
        ("/var/lib/dpkg/status", "/var/lib/dpkg/status"),
        (
            "/var/lib/containers/atomic/x",
            "/var/lib/containers/atomic/x",
        ),
        ("/etc/systemd/system/c5.service/../x", "/x"),
        ("/srv/link/passwd", "/srv/link"),
        (long.as_str(), "xxx"),
        ("/etc/hosts/x", "/etc/hosts"),
    ]
    .into_iter()
    .enumerate()
    {
        let manifest = json!({"renameFiles": {"/srv/a": target}});
        let layer = Layer::new().file("exports/hostfs/srv/a", 0o644, "a").file(
            "exports/hostfs/srv/good",
            0o644,
            "good",
        );
        let name = format!("bad{number}");
        bringing(manifest, layer).push(&registry, &name);
        let refused = host.atomic(&format!(
            "install --system-package=no --name {name} {}",
            registry.name(&name)
        ));
        assert!(
            refused.code() == 1 && refused.err().contains(named),
            "{target}: {}",
            refused.err()
        );
        assert!(!host.exists("/srv/good"), "{target}");
    }
    for (number, (layer, named)) in [
        (Layer::new().fifo("exports/hostfs/srv/fifo"), "/srv/fifo"),
        (
            Layer::new().raw(b"exports/hostfs/srv/null", tar::EntryType::Char, ""),
            "/srv/null",
        ),
        (
            Layer::new().raw(b"exports/hostfs/srv/\xff", tar::EntryType::Symlink, "x"),
            "/srv/\u{fffd}",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("odd{number}");
        let layer = layer.file("exports/hostfs/srv/good", 0o644, "good");
        bringing(json!({}), layer).push(&registry, &name);
        let refused = host.atomic(&format!("install --name {name} {}", registry.name(&name)));
        assert!(
            refused.code() == 1 && refused.err().contains(named),
            "{named}: {}",
            refused.err()
        );
        assert!(!host.exists("/srv/good"), "{named}");
    }
    host.sh(&format!("rm -rf {C}"));
    let after = host.listing(&["/etc", "/srv", "/usr/local/lib", C]);
    assert_eq!(before, after);
    // A person may open a path.
    let manifest = json!({"renameFiles": {"/srv/a": "/boot/loader/entry"}});
    bringing(
        manifest,
        Layer::new().file("exports/hostfs/srv/a", 0o644, "boot me"),
    )
    .push(&registry, "boot");
    host.atomic_ok(&format!(
        "install --system-package=no --name boot --allow-host-path /boot/loader {}",
        registry.name("boot")
    ));
    assert_eq!(host.read("/boot/loader/entry"), "boot me");
    host.atomic_ok("uninstall boot");
    assert!(!host.exists("/boot/loader"));
}

#[test]
fn a_directory_that_has_become_a_link_is_not_followed() {
    let registry = Registry::start();
    let host = Host::boot();
    let layer = Layer::new().file("exports/hostfs/srv/open/hosts", 0o644, "x");
    bringing(json!({}), layer).push(&registry, "open");
    host.atomic_ok(&format!(
        "install --system-package=no --name open {}",
        registry.name("open")
    ));
    // Whoever may write to /srv makes the container's file mean another one.
    host.sh("mv /srv/open /srv/moved; ln -s /etc /srv/open; echo -n x > /etc/hosts");
    let layer = Layer::new().file("exports/hostfs/srv/open/hosts", 0o644, "evil");
    bringing(json!({}), layer).push(&registry, "open");
    let update = host.atomic("update open");
    assert!(
        update.code() == 1 && update.err().contains("/srv/open"),
        "{}",
        update.err()
    );
    host.atomic_ok("uninstall open");
    assert_eq!(host.read("/etc/hosts"), "x");
}

#[test]
fn a_path_belongs_to_one_container() {
    let registry = Registry::start();
    let host = Host::boot();
    for name in ["first", "second"] {
        let layer = Layer::new()
            .file("exports/hostfs/usr/local/bin/shared", 0o755, name)
            .file(
                &format!("exports/hostfs/usr/local/share/both/{name}"),
                0o644,
                name,
            );
        bringing(json!({}), layer).push(&registry, name);
    }
    host.atomic_ok(&format!(
        "install --system-package=no --name first {}",
        registry.name("first")
    ));
    let refused = host.atomic(&format!(
        "install --system-package=no --name second {}",
        registry.name("second")
    ));
    assert!(
        refused.code() == 1
            && refused.err().contains("/usr/local/bin/shared")
            && refused.err().contains("container first"),
        "{}",
        refused.err()
    );
    assert_eq!(host.read("/usr/local/bin/shared"), "first");
    assert!(!host.exists("/usr/local/share/both/second"));
    host.atomic_ok("uninstall first");
    host.atomic_ok(&format!(
        "install --system-package=no --name second {}",
        registry.name("second")
    ));
    assert_eq!(host.read("/usr/local/bin/shared"), "second");
}

#[test]
fn kills_leave_host_files_wholly_old_or_wholly_new() {
    let registry = Registry::start();
    let host = Host::boot();
    let push = |version: &str| {
        let mut layer = Layer::new();
        for number in 0..40 {
            layer = layer.file(
                &format!("exports/hostfs/srv/many/{version}/{number}"),
                0o644,
                version,
            );
            layer = layer.file(&format!("exports/hostfs/srv/same/{number}"), 0o644, version);
        }
        bringing(json!({}), layer).push(&registry, "many");
    };
    push("v0");
    host.atomic_ok(&format!(
        "install --system-package=no --name many {}",
        registry.name("many")
    ));
    for round in 1..=12_u32 {
        push(&format!("v{round}"));
        let mut child = host
            .command("atomic-rs")
            .args(["update", "many"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(u64::from(round * 37 % 350) + 60));
        host.sh("pkill -KILL -x atomic-rs");
        let _ = child.wait();
        host.atomic_ok("recover");
        let contents = host.sh("cat /srv/same/* | grep -o 'v[0-9]*' | sort -u; ls /srv/many; find /srv -name '.atomic-rs*'").out();
        let words: Vec<&str> = contents.split_whitespace().collect();
        assert!(
            words.len() == 2 && words[0] == words[1],
            "one version and nothing left over after kill {round}: {words:?}"
        );
        assert_eq!(host.atomic_ok("verify many"), "", "{round}");
        let count = host
            .sh("ls /srv/same | wc -l; ls /srv/many/* | wc -l")
            .out();
        assert_eq!(count, "40\n40\n");
    }
    host.atomic_ok("uninstall many");
    assert!(!host.exists("/srv/many") && !host.exists("/srv/same"));
}
