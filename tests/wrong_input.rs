//! Wrong input gives one clear line, the right exit code, and changes nothing.

mod support;

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};

use serde_json::json;
use support::images::{self, Image, Layer};
use support::{Host, Registry, Said as _, free_port};

const C: &str = "/var/lib/containers/atomic";

#[test]
fn wrong_input_is_refused_in_one_line_and_changes_nothing() {
    let registry = Registry::start();
    let locked = Registry::with_password("me", "pass");
    let host = Host::boot();
    let good = registry.name("good");
    images::plain(free_port(), "x").push(&registry, "good");
    images::system_update().push(&registry, "needs-variable");
    let exported = |file: &str, text: &str| {
        Image::new().layer(Layer::new().busybox().dir("exports", 0o755).file(
            &format!("exports/{file}"),
            0o644,
            text,
        ))
    };
    exported("config.json", "{\"root\": ").push(&registry, "bad-config");
    exported(
        "config.json",
        r#"{"root": {"path": "rootfs", "readonly": false}}"#,
    )
    .push(&registry, "writable-root");
    exported("manifest.json", "{").push(&registry, "bad-manifest");
    exported("service.template", "[Service]\nExecStart=$ x").push(&registry, "bad-template");
    Image::new()
        .layer(Layer::new().busybox())
        .push(&registry, "no-command");
    Image::new()
        .layer(Layer::new().busybox())
        .set("Cmd", json!(["true"]))
        .set("User", "ghost")
        .push(&registry, "no-user");
    Image::new()
        .layer(Layer::new().raw(b"../../etc/escaped", tar::EntryType::Regular, ""))
        .push(&registry, "escapes");
    Image::new()
        .layer(Layer::new().raw(b"x", tar::EntryType::Link, "/etc/shadow"))
        .push(&registry, "links-out");
    Image::new()
        .layer(Layer::new().raw(b".", tar::EntryType::Symlink, "/etc"))
        .push(&registry, "root-link");
    // A registry whose disk rots: one blob with a flipped byte, one cut short.
    for (name, damage) in [("corrupt", true), ("truncated", false)] {
        let written = Image::new()
            .layer(
                Layer::new()
                    .file("f", 0o644, vec![7; 100_000])
                    .file(name, 0o644, name),
            )
            .push(&registry, name);
        let path = registry.blob(&written.layers[0]);
        let mut file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        let size = file.metadata().unwrap().len();
        if damage {
            let mut byte = [0];
            file.seek(SeekFrom::Start(size / 2)).unwrap();
            file.read_exact(&mut byte).unwrap();
            file.seek(SeekFrom::Start(size / 2)).unwrap();
            file.write_all(&[byte[0] ^ 1]).unwrap();
        } else {
            file.set_len(size / 2).unwrap();
        }
    }
    host.atomic_ok(&format!("pull {good}"));
    host.atomic_ok(&format!("install --name taken {good}"));
    host.sh("echo mine > /etc/systemd/system/occupied.service");
    let dead = free_port();
    let long = "x".repeat(300);
    let name = |image: &str| registry.name(image);

    // (words, exit code, what the message says)
    let cases: Vec<(String, i32, &str)> = vec![
        (format!("pull {}", name("nothing")), 1, "no such image"),
        (
            format!("pull http:127.0.0.1:{dead}/x"),
            1,
            "the registry cannot be reached",
        ),
        (
            format!("pull {}", locked.name("x")),
            1,
            "refused the credentials",
        ),
        (
            format!("pull --creds me:wrong {}", locked.name("x")),
            1,
            "refused the credentials",
        ),
        (
            format!(
                "pull 127.0.0.1:{}/good",
                registry.address().rsplit(':').next().unwrap()
            ),
            1,
            "speaks plain HTTP",
        ),
        ("pull UPPER".into(), 1, "is not an image name"),
        ("pull oci:/no/such/layout".into(), 1, "no such file"),
        ("pull dockertar:/no/such/file".into(), 1, "no such file"),
        (
            format!("pull --authfile /no/such {good}"),
            1,
            "does not exist",
        ),
        (format!("pull {}", name("corrupt")), 1, "blob sha256:"),
        (format!("pull {}", name("truncated")), 1, "blob sha256:"),
        (
            format!("pull {}", name("escapes")),
            1,
            "could leave the image",
        ),
        (
            format!("pull {}", name("links-out")),
            1,
            "which is not a file in this layer",
        ),
        (
            format!("pull {}", name("root-link")),
            1,
            "the root of an image must be a directory",
        ),
        (
            format!("install --name a {}", name("needs-variable")),
            1,
            "unreplaced value for: ''VAR_WITH_NO_DEFAULT''",
        ),
        (
            format!("install --name a {}", name("bad-config")),
            1,
            "config.json is not valid JSON",
        ),
        (
            format!("install --name a {}", name("writable-root")),
            1,
            "Only readonly images are supported",
        ),
        (
            format!("install --name a {}", name("bad-manifest")),
            1,
            "Invalid manifest.json file in image",
        ),
        (
            format!("install --name a {}", name("bad-template")),
            1,
            "Invalid placeholder in string: line 2, col 11",
        ),
        (
            format!("install --name a {}", name("no-command")),
            1,
            "neither entrypoint nor command",
        ),
        (
            format!("install --name a {}", name("no-user")),
            1,
            "no user \"ghost\"",
        ),
        (
            format!("install --name ../x {good}"),
            2,
            "is not a container name",
        ),
        (
            format!("install --name=-x {good}"),
            2,
            "is not a container name",
        ),
        (
            format!("install --name a/b {good}"),
            2,
            "is not a container name",
        ),
        (
            format!("install --name= {good}"),
            2,
            "is not a container name",
        ),
        (
            format!("install --name {long} {good}"),
            2,
            "is not a container name",
        ),
        (
            format!("install --name a --set X {good}"),
            2,
            "Expected form NAME=VALUE",
        ),
        (
            format!("install --name a --set =x {good}"),
            2,
            "Expected form NAME=VALUE",
        ),
        (
            format!("install --name a --set NAME=x {good}"),
            2,
            "cannot be set",
        ),
        (
            format!("install --name a --runtime /no/such {good}"),
            1,
            "is not installed",
        ),
        (
            format!("install --name a --runtime nope {good}"),
            1,
            "is not installed",
        ),
        (
            format!("install --name a --volume x {good}"),
            2,
            "is not a volume",
        ),
        (
            format!("install --name a --volume /no/such:/x {good}"),
            1,
            "does not exist",
        ),
        (
            format!("install --name a --cap-add NOPE {good}"),
            2,
            "no capability",
        ),
        (
            format!("install --name a --rootfs /no/such {good}"),
            1,
            "cannot be used",
        ),
        (
            format!("install --name a --env-file /no/such {good}"),
            1,
            "cannot read /no/such",
        ),
        (
            format!("install --name occupied {good}"),
            1,
            "The file /etc/systemd/system/occupied.service already exists.",
        ),
        ("install".into(), 2, "required arguments were not provided"),
        (
            "update unknown".into(),
            1,
            "System container 'unknown' is not installed",
        ),
        (
            "rollback unknown".into(),
            1,
            "System container 'unknown' is not installed",
        ),
        (
            "uninstall unknown".into(),
            1,
            "System container 'unknown' is not installed",
        ),
        (
            "run unknown".into(),
            1,
            "The container 'unknown' doesn't exist",
        ),
        (
            "stop unknown".into(),
            1,
            "The container 'unknown' doesn't exist",
        ),
        ("update ../x".into(), 2, "is not a container name"),
        (
            "rollback taken".into(),
            1,
            "Cannot find a previous deployment to rollback located at",
        ),
        ("update taken --set X".into(), 2, "Expected form NAME=VALUE"),
        ("inspect unknown".into(), 1, "no container and no image"),
        ("nonsense".into(), 2, "unrecognized subcommand"),
        (
            "containers list -f nope=1".into(),
            2,
            "The filter nope is not valid.  Please choose from",
        ),
        (
            "containers list -f nope".into(),
            2,
            "It should be VAR=VALUE",
        ),
    ];
    // What was pulled on the way to a refused installation may stay; host and deployments may not.
    let places = [
        "/etc",
        &format!("{C}/taken.0"),
        &format!("{C}/taken"),
        "/var/lib/private",
    ];
    let before = host.listing(&places);
    let entries = |host: &Host| host.sh(&format!("ls -A {C} {C}/.journal")).out();
    let before_entries = entries(&host);
    for (words, code, message) in &cases {
        let output = host.atomic(words);
        let err = output.err();
        assert_eq!(output.code(), *code, "{words}: {err}");
        assert!(err.contains(message), "{words}: {err}");
        let said: Vec<&str> = err
            .lines()
            .filter(|line| !line.starts_with("Pulling layer") && !line.starts_with("Attempting to"))
            .collect();
        let expected = if *code == 2 && (words == "nonsense" || words == "install") {
            2
        } else {
            1
        };
        assert_eq!(said.len(), expected, "{words}: {err}");
        assert!(!err.contains("panicked"), "{words}: {err}");
        assert_eq!(entries(&host), before_entries, "{words}");
    }
    host.assert_unchanged(&places, &before);
    host.ok(&format!("ostree fsck --quiet --repo={C}/.storage/ostree"));
    assert!(!host.exists("/etc/escaped"));
}

#[test]
fn a_host_without_what_is_needed_is_told_so() {
    let registry = Registry::start();
    let host = Host::boot();
    images::plain(free_port(), "x").push(&registry, "good");
    let good = registry.name("good");
    host.atomic_ok(&format!("pull {good}"));
    let before = host.listing(&["/etc", C]);

    // No D-Bus.
    let output = host
        .command("env")
        .arg("DBUS_SYSTEM_BUS_ADDRESS=unix:path=/no/such/socket")
        .args(["atomic-rs", "install", "--name", "a", &good])
        .output()
        .unwrap();
    assert_eq!(output.code(), 1);
    assert!(
        output.err().contains("cannot reach systemd over D-Bus"),
        "{}",
        output.err()
    );

    // No runtime, no skopeo.
    let output = host
        .command("env")
        .args([
            "PATH=/nowhere",
            "/usr/local/bin/atomic-rs",
            "install",
            "--name",
            "a",
            &good,
        ])
        .output()
        .unwrap();
    assert_eq!(output.code(), 1);
    assert!(
        output.err().contains("the runtime runc is not installed"),
        "{}",
        output.err()
    );
    let output = host
        .command("env")
        .args(["SKOPEO_PATH=/no/skopeo", "atomic-rs", "pull", &good])
        .output()
        .unwrap();
    assert_eq!(output.code(), 1);
    assert!(
        output.err().contains("\"/no/skopeo\" is not installed"),
        "{}",
        output.err()
    );

    // Repository and checkouts on different file systems.
    let output = host
        .command("env")
        .args([
            "ATOMIC_OSTREE_REPO=/run/other/repo",
            "atomic-rs",
            "pull",
            &good,
        ])
        .output()
        .unwrap();
    assert_eq!(output.code(), 1);
    assert!(
        output.err().contains("different file systems"),
        "{}",
        output.err()
    );

    // Not root.
    host.ok("useradd someone");
    let as_user = "setpriv --reuid someone --regid someone --clear-groups env HOME=/tmp/someone";
    let output = host.run(&format!(
        "{as_user} atomic-rs install --system --name a {good}"
    ));
    assert_eq!(output.code(), 1);
    assert!(
        output.err().starts_with("Only root can use --system\n"),
        "{}",
        output.err()
    );
    let output = host.run(&format!("{as_user} atomic-rs install --name a {good}"));
    assert_eq!(output.code(), 1);
    assert!(
        output.err().contains("loginctl enable-linger"),
        "{}",
        output.err()
    );
    host.sh("userdel someone");
    host.assert_unchanged(
        &[C],
        &before
            .lines()
            .filter(|line| line.starts_with(C))
            .collect::<Vec<_>>()
            .join("\n"),
    );

    // A registry that never answers: a signal to the program alone ends it.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let output = host
        .command("bash")
        .args(["-mc", &format!("atomic-rs pull http:127.0.0.1:{port}/x & sleep 1; kill -TERM $!; wait $!; echo code $?")])
        .output()
        .unwrap();
    assert!(
        output.out().ends_with("code 143\n"),
        "{}{}",
        output.out(),
        output.err()
    );
    assert!(output.err().contains("interrupted"), "{}", output.err());

    // Nobody reads the output, or it cannot be written.
    for words in ["--help", "images --help", "images list", "completion bash"] {
        let output = host.sh(&format!(
            "atomic-rs {words} | true; echo ${{PIPESTATUS[0]}}"
        ));
        assert!(
            matches!(output.out().trim(), "0" | "141"),
            "{words}: {}",
            output.out()
        );
        assert_eq!(output.err(), "", "{words}");
    }
    let output = host.sh("atomic-rs --help > /dev/full");
    assert_eq!(output.code(), 1);
    assert!(output.err().contains("No space left"), "{}", output.err());

    // A limit that is reached is named.
    host.sh("echo 'max_layer_bytes = 100' > /etc/atomic-rs.toml");
    host.atomic_ok("-y images delete --all");
    host.atomic_ok("images prune");
    let output = host.atomic(&format!("pull {good}"));
    assert_eq!(output.code(), 1);
    assert!(
        output
            .err()
            .contains("more than 100 bytes (max_layer_bytes"),
        "{}",
        output.err()
    );

    // A configuration with a slip.
    host.sh("echo 'chekout_path = \"/x\"' > /etc/atomic-rs.toml");
    let output = host.atomic("containers list");
    assert_eq!(output.code(), 1);
    assert!(
        output.err().contains("/etc/atomic-rs.toml") && output.err().contains("chekout_path"),
        "{}",
        output.err()
    );
}
