//! A host of the original `atomic` is taken over in place.

mod support;

use serde_json::{Value, json};
use support::images::{Image, Layer};
use support::{Host, Registry, Said as _, free_port, http_get, wait_for_answer};

const C: &str = "/var/lib/containers/atomic";

/// A template as real images have them: a value inside a string, and a raw fragment with a leading
/// comma outside of any.
const CONFIG: &str = r#"{
  "ociVersion": "1.0.0",
  "process": {"terminal": false, "user": {"uid": 0, "gid": 0}, "cwd": "/",
    "args": ["/usr/bin/run.sh"],
    "env": ["PATH=/usr/bin:/bin", "PORT=$PORT", "GREETING=$GREETING", "VERSION=@VERSION@"],
    "capabilities": {"bounding": [${ALL_PROCESS_CAPABILITIES}]}},
  "root": {"path": "rootfs", "readonly": true},
  "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]}
    $ADDTL_MOUNTS],
  "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]}
}"#;

fn image(version: &str) -> Image {
    Image::new().layer(Layer::new().busybox()).layer(
        Layer::new()
            .dir("usr", 0o755)
            .dir("usr/bin", 0o755)
            .file("usr/bin/run.sh", 0o755, "#!/bin/sh\ntrap 'kill $!; exit 0' INT TERM\nnc -ll -p $PORT -e /usr/bin/greet.sh &\nwait\n")
            .file("usr/bin/greet.sh", 0o755, "#!/bin/sh\nread line\nprintf 'HTTP/1.0 200 OK\\r\\n\\r\\n%s %s %s\\n' \"$GREETING\" \"$VERSION\" \"$(ls /extra 2>/dev/null)\"\n")
            .dir("exports", 0o755)
            .dir("extra", 0o755)
            .file("exports/manifest.json", 0o644, r#"{"version": "1.0", "defaultValues": {"PORT": "8081", "GREETING": "hello", "ADDTL_MOUNTS": ""}}"#)
            .file("exports/config.json.template", 0o644, CONFIG.replace("@VERSION@", version))
            .file("exports/service.template", 0o644, "[Unit]\nDescription=$NAME\n\n[Service]\nExecStart=$EXEC_START\nExecStop=$EXEC_STOP\nRestart=on-failure\nWorkingDirectory=$DESTDIR\n\n[Install]\nWantedBy=multi-user.target\n"),
    )
}

/// Turn what this program installed into what the original would have left: its keys in `info`, its
/// merged values, none of our refs, directories or locks.
fn age(host: &Host, name: &str, greeting: &str, mounts: &str) {
    let path = format!("{C}/{name}.0/info");
    let info: Value = serde_json::from_str(&host.read(&path)).unwrap();
    let mut old = json!({});
    for key in [
        "image",
        "revision",
        "ostree-commit",
        "created",
        "values",
        "has-container-service",
        "installed-files",
        "installed-files-checksum",
        "installed-files-template",
        "rename-installed-files",
        "rpm-installed",
        "remote",
        "use-links",
        "runtime",
    ] {
        old[key] = info[key].clone();
    }
    old["values"]["GREETING"] = greeting.into();
    old["values"]["ADDTL_MOUNTS"] = mounts.into();
    let text = serde_json::to_string_pretty(&old).unwrap();
    std::fs::write(host.path(&path), text).unwrap();
    let script = format!(
        "rm -rf {C}/.ledger {C}/.journal {C}/.locks; for ref in $(ostree refs --repo={C}/.storage/ostree | grep -E '^(atomic-deployment|ociimage-tree|ociimage-side)/'); do ostree refs --repo={C}/.storage/ostree --delete $ref; done; chmod 755 {C}"
    );
    assert_eq!(host.sh(&script).code(), 0);
}

#[test]
fn containers_of_the_original_are_listed_updated_rolled_back_and_uninstalled() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    image("one").push(&registry, "app");
    let reference = registry.name("app");
    host.atomic_ok(&format!("install --name app --set PORT={port} {reference}"));
    host.atomic_ok(&format!("install --name broken --set PORT=1 {reference}"));
    host.ok("mkdir -p /srv/extra");
    host.ok("touch /srv/extra/mounted");
    // The original pasted values into JSON as they were, so its users escaped them.
    let mount = r#", {"destination": "/extra", "type": "bind", "source": "/srv/extra", "options": ["bind", "ro"]}"#;
    age(&host, "app", r#"say \"hi\""#, mount);
    std::fs::remove_file(host.path(&format!("{C}/broken.0/info"))).unwrap();
    host.sh("mkdir -p /usr/lib/containers/atomic/packaged; echo '{\"image\": \"p:1\", \"revision\": \"12\", \"runtime\": \"/usr/bin/runc\"}' > /usr/lib/containers/atomic/packaged/info");

    let list = host.atomic("containers list --all");
    assert_eq!(list.code(), 0);
    let out = list.out();
    for (name, state) in [
        ("app", "inactive"),
        ("broken", "broken"),
        ("packaged", "inactive"),
    ] {
        let line = out
            .lines()
            .find(|line| line.contains(&format!("  {name} ")))
            .unwrap_or_else(|| panic!("{out}"));
        assert!(line.contains(state), "{line}");
    }
    assert!(list.err().contains("broken: cannot read"), "{}", list.err());
    let refused = host.atomic("update packaged");
    assert!(
        refused.code() == 1
            && refused
                .err()
                .contains("Cannot update a preinstalled container"),
        "{}",
        refused.err()
    );
    assert_eq!(host.atomic("uninstall packaged").code(), 1);

    host.ok("systemctl start app");
    wait_for_answer(port, "hello one");
    image("two").push(&registry, "app");
    // Where it was pulled from over plain HTTP is not on record there.
    host.atomic_ok("update app --tls-verify=false");
    let answer = wait_for_answer(port, "two");
    assert!(
        answer.contains(r#"say "hi" two mounted"#),
        "stored values keep their meaning: {answer}"
    );
    assert_eq!(
        host.ok(&format!("readlink {C}/app")),
        format!("{C}/app.1\n")
    );
    host.atomic_ok("rollback app");
    wait_for_answer(port, "hello one");
    host.atomic_ok("rollback app");
    wait_for_answer(port, r#"say "hi" two mounted"#);
    // The broken one is shown as such, refuses what cannot be done, and can be removed.
    let update = host.atomic("update broken");
    assert!(
        update.code() == 1 && update.err().contains("broken.0/info"),
        "{}",
        update.err()
    );
    let all = host.atomic("update --all --no-pull");
    assert!(
        all.code() == 1 && all.out().contains("Failed"),
        "{}",
        all.out()
    );
    host.atomic_ok("uninstall broken");
    host.atomic_ok("uninstall app");
    assert_eq!(http_get(port), None);
    assert_eq!(
        host.sh(&format!(
            "ls {C}; ls /etc/systemd/system | grep -E 'app|broken'"
        ))
        .out(),
        ""
    );
    host.ok(&format!("ostree fsck --quiet --repo={C}/.storage/ostree"));
}
