//! A host of the original `atomic` is taken over in place.

mod support;

use serde_json::json;
use support::images::{self, Image, Layer};
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
    let base = Layer::new()
        .busybox()
        .dir("srv", 0o755)
        .file("srv/gone", 0o644, "x");
    Image::new().layer(base).layer(
        Layer::new()
            .dir("usr", 0o755)
            .dir("usr/bin", 0o755)
            .file("usr/bin/run.sh", 0o755, "#!/bin/sh\ntrap 'kill $!; exit 0' INT TERM\nnc -ll -p $PORT -e /usr/bin/greet.sh &\nwait\n")
            .file("usr/bin/greet.sh", 0o755, "#!/bin/sh\nread line\nprintf 'HTTP/1.0 200 OK\\r\\n\\r\\n%s %s %s\\n' \"$GREETING\" \"$VERSION\" \"$(ls /extra 2>/dev/null)\"\n")
            .dir("exports", 0o755)
            .dir("extra", 0o755)
            .whiteout("srv", "gone")
            .file("exports/manifest.json", 0o644, r#"{"version": "1.0", "defaultValues": {"PORT": "8081", "GREETING": "hello", "ADDTL_MOUNTS": ""}}"#)
            .file("exports/config.json.template", 0o644, CONFIG.replace("@VERSION@", version))
            .file("exports/service.template", 0o644, "[Unit]\nDescription=$NAME\n\n[Service]\nExecStart=$EXEC_START\nExecStop=$EXEC_STOP\nRestart=on-failure\nWorkingDirectory=$DESTDIR\n\n[Install]\nWantedBy=multi-user.target\n"),
    )
}

/// What the original and skopeo's `ostree:` destination left on a host, made by `ostree` and hand: one
/// commit a layer with its whiteouts as files, a manifest converted to docker's schema 2, a checkout of
/// hard links, and nothing of ours.
const OLD_STORE: &str = r#"
set -e
C=/var/lib/containers/atomic; R=$C/.storage/ostree
mkdir -p $R; [ -d $R/objects ] || ostree init --repo=$R --mode=bare
cd "$1"
size() { stat -c %s "$1"; }
commit() { ostree commit --repo=$R --branch=$1 --tree=dir=$2 "${@:3}" >/dev/null; }
M=blobs/sha256/$(jq -r '.manifests[0].digest' index.json | cut -d: -f2)
layers=$(jq -r '.layers[].digest' $M | cut -d: -f2)
for layer in $layers; do
    mkdir -p t/$layer; gzip -dc blobs/sha256/$layer > t/tar; tar -x -p -C t/$layer -f t/tar
    commit ociimage/$layer t/$layer --add-metadata-string=docker.size=$(size blobs/sha256/$layer)         --add-metadata-string=docker.uncompressed_size=$(size t/tar)         --add-metadata-string=docker.uncompressed_digest=sha256:$(sha256sum < t/tar | cut -c1-64)
done
config=$(jq -r '.config.digest' $M | cut -d: -f2)
mkdir t/config; cp blobs/sha256/$config t/config/content
commit ociimage/$config t/config --add-metadata-string=docker.size=$(size t/config/content)
mkdir t/image
jq -c '.mediaType = "application/vnd.docker.distribution.manifest.v2+json" | .config.mediaType = "application/vnd.docker.container.image.v1+json" | .layers[].mediaType = "application/vnd.docker.image.rootfs.diff.tar.gzip"' $M > t/image/manifest.json
id=$(sha256sum < t/image/manifest.json | cut -c1-64)
commit ociimage/$2 t/image "--add-metadata-string=docker.manifest=$(cat t/image/manifest.json)"     --add-metadata-string=docker.digest=sha256:$id --add-metadata-string=signatures=0
for name in app broken; do
    mkdir -p $C/$name.0
    for layer in $layers; do ostree checkout --repo=$R --union -H --whiteouts ociimage/$layer $C/$name.0/rootfs; done
    ln -s $C/$name.0 $C/$name
done
rm -r t
echo $id $(ostree rev-parse --repo=$R ociimage/$2)
"#;

/// The two containers of the original: `app`, and `broken`, which lost its `info`.
fn old_host(host: &Host, image_name: &str, port: u16, greeting: &str, mounts: &str) {
    let (_scratch, layout, _) = images::layout(image("one"));
    support::must(
        std::process::Command::new("cp")
            .arg("-r")
            .arg(&layout)
            .arg(host.path("/var/lib/containers/layout")),
    );
    let encoded = image_name.replace(':', "_3A").replace('/', "_2F");
    std::fs::write(host.path("/var/lib/containers/old.sh"), OLD_STORE).unwrap();
    let made = host.run(&format!(
        "bash /var/lib/containers/old.sh /var/lib/containers/layout {encoded}"
    ));
    assert_eq!(made.code(), 0, "{}", made.err());
    let made = made.out();
    let (id, commit) = made.trim().split_once(' ').unwrap();
    for name in ["app", "broken"] {
        let destdir = format!("{C}/{name}.0");
        let values = json!({
            "PORT": port.to_string(), "GREETING": greeting, "ADDTL_MOUNTS": mounts,
            "RUN_DIRECTORY": "/run", "STATE_DIRECTORY": "/var/lib", "CONF_DIRECTORY": "/etc",
            "UUID": "6f8e8c2f-5b3a-4f3e-9d6c-0a1b2c3d4e5f", "DESTDIR": destdir, "NAME": name,
            "EXEC_START": format!("/usr/bin/runc --systemd-cgroup run '{name}'"),
            "EXEC_STOP": format!("/usr/bin/runc --systemd-cgroup kill '{name}'"),
            "EXEC_STARTPRE": "", "EXEC_STOPPOST": "", "HOST_UID": "0", "HOST_GID": "0",
            "PIDFILE": format!("/run/container-{name}.pid"), "IMAGE_ID": id,
            "IMAGE_NAME": image_name, "RUNTIME": "/usr/bin/runc", "ATOMIC": "/usr/bin/atomic",
            "ALL_PROCESS_CAPABILITIES": "\"CAP_CHOWN\",\n\"CAP_KILL\",\n\"CAP_NET_BIND_SERVICE\"\n",
        });
        // Pasted, as the original did.
        let mut config = CONFIG.replace("@VERSION@", "one");
        for key in ["PORT", "GREETING", "ADDTL_MOUNTS"] {
            config = config.replace(&format!("${key}"), values[key].as_str().unwrap());
        }
        let config = config.replace(
            "${ALL_PROCESS_CAPABILITIES}",
            values["ALL_PROCESS_CAPABILITIES"].as_str().unwrap(),
        );
        let unit = format!(
            "[Unit]\nDescription={name}\n\n[Service]\nExecStart={}\nExecStop={}\nRestart=on-failure\nWorkingDirectory={destdir}\n\n[Install]\nWantedBy=multi-user.target\n",
            values["EXEC_START"]
                .as_str()
                .unwrap()
                .replace("/usr/bin/runc", "/usr/sbin/runc"),
            values["EXEC_STOP"]
                .as_str()
                .unwrap()
                .replace("/usr/bin/runc", "/usr/sbin/runc"),
        );
        let info = json!({
            "image": image_name, "revision": id, "ostree-commit": commit, "created": 1_600_000_000,
            "values": values, "has-container-service": true, "installed-files": [],
            "installed-files-checksum": {}, "installed-files-template": [],
            "rename-installed-files": {}, "rpm-installed": null, "system-package": "no",
            "remote": null, "use-links": true, "runtime": "/usr/sbin/runc",
        });
        let put = |path: &str, text: &str| std::fs::write(host.path(path), text).unwrap();
        put(&format!("{destdir}/config.json"), &config);
        put(&format!("{destdir}/{name}.service"), &unit);
        put(&format!("/etc/systemd/system/{name}.service"), &unit);
        if name == "app" {
            let info = serde_json::to_string_pretty(&info).unwrap();
            put(&format!("{destdir}/info"), &info);
        }
        host.ok("systemctl daemon-reload");
        host.ok(&format!("systemctl enable {name}"));
    }
}

#[test]
fn containers_of_the_original_are_listed_updated_rolled_back_and_uninstalled() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    host.ok("mkdir -p /srv/extra");
    host.ok("touch /srv/extra/mounted");
    // The original pasted values into JSON as they were, so its users escaped them.
    let mount = r#", {"destination": "/extra", "type": "bind", "source": "/srv/extra", "options": ["bind", "ro"]}"#;
    let name = format!("{}/app:latest", registry.address());
    old_host(&host, &name, port, r#"say \"hi\""#, mount);
    assert!(
        !host.exists(&format!("{C}/app.0/rootfs/srv/gone"))
            && !host.exists(&format!("{C}/.ledger")),
        "nothing of ours is there"
    );
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

    assert!(host.atomic_ok("images list").contains("/app"));
    host.ok("systemctl start app");
    wait_for_answer(port, r#"say "hi" one mounted"#);
    // A setting alone needs no registry.
    host.atomic_ok("containers update app --set GREETING=hello");
    wait_for_answer(port, "hello one mounted");
    host.atomic_ok("rollback app");
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
    wait_for_answer(port, r#"say "hi" one mounted"#);
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
