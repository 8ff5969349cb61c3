//! A Debian tree, as people without root use it: users, owners, packages, and every way to run it.

mod support;

use support::images::{Image, Layer};
use support::{Host, Registry, Said as _, User, debian};

const HOME: &str = "/var/lib/containers/someone/.rootless";

/// Run a script as root of the host.
fn shell_of(host: &Host, script: &str) -> String {
    let said = host.sh(script);
    assert_eq!(said.code(), 0, "{script}: {}", said.err());
    said.out()
}

/// A package that makes a user when it is installed, and gives it files.
fn package(host: &Host) {
    let script = "set -e
        d=$(mktemp -d); mkdir -p $d/DEBIAN $d/srv/tool $d/usr/bin
        printf 'Package: tool\\nVersion: 1\\nArchitecture: all\\nMaintainer: x <x@example.org>\\nDescription: x\\n' > $d/DEBIAN/control
        printf '#!/bin/sh\\nset -e\\nadduser --system --group --home /srv/tool --no-create-home tool\\nchown tool:tool /srv/tool\\nchmod 2750 /srv/tool\\n' > $d/DEBIAN/postinst
        chmod 755 $d/DEBIAN/postinst
        printf '#!/bin/sh\\nexec id -un\\n' > $d/usr/bin/tool; chmod 755 $d/usr/bin/tool
        dpkg-deb --root-owner-group --build $d /var/lib/containers/someone/tool.deb
        chmod 644 /var/lib/containers/someone/tool.deb; rm -r $d";
    shell_of(host, script);
}

#[test]
fn a_debian_tree_in_every_mode() {
    let registry = Registry::start();
    Image::new().layer(debian::tree()).push(&registry, "debian");
    let host = Host::boot();
    let user = User::on_disk(&host);
    package(&host);
    let name = registry.name("debian");
    let rootless = |words: &str| user.ok(&format!("atomic-rs rootless {words}"));
    let code = |words: &str| {
        let said = user.command(&format!("atomic-rs rootless {words}"));
        (said.code(), said.err())
    };
    rootless(&format!("create --name d {name}"));
    // The work of packages, where the mode has users.
    for mode in ["N", "R1"] {
        rootless(&format!("setup d --mode {mode}"));
        let volume = "--volume /var/lib/containers/someone/tool.deb:/tool.deb";
        let who = format!("user-{}", mode.to_lowercase());
        let said = rootless(&format!(
            "run {volume} d sh -ec 'useradd --create-home {who}; touch /home/{who}/f; chown {who}: /home/{who}/f; \
             stat -c %U /home/{who}/f; dpkg --install /tool.deb >/dev/null; stat -c \"%U %a\" /srv/tool; dpkg -s tool | \
             grep ^Status; dpkg --purge tool >/dev/null; deluser --quiet tool'"
        ));
        assert_eq!(
            said,
            format!("{who}\ntool 2750\nStatus: install ok installed\n")
        );
        assert_eq!(
            rootless(&format!("run --user {who} d id -un")),
            format!("{who}\n")
        );
        let apt = rootless("run d apt-cache policy dpkg");
        assert!(apt.contains("Installed: 1."), "{apt}");
    }
    // What the host's proot lets through, these programs use.
    rootless("setup d --mode P2");
    let refused = code("run d true");
    assert!(
        refused.0 == 125 && refused.1.contains("statx"),
        "{}",
        refused.1
    );
    let leaky =
        rootless("run --allow-leaky d sh -c 'id -u; dpkg -s dpkg | grep ^Version | cut -d. -f1'");
    assert_eq!(leaky, "0\nVersion: 1\n");
    // By fakechroot, and back: the tree is what it was.
    let id = rootless("inspect d | jq -r .id");
    let files = format!("{HOME}/containers/{}/ROOT", id.trim());
    let shell = |script: &str| shell_of(&host, script);
    let hash = || {
        shell(&format!(
            "cd {files} && find . -printf '%p %y %m %l\\n' | sort | sha256sum && \
             find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum"
        ))
    };
    let before = hash();
    for mode in ["F1", "F2", "F3", "F4"] {
        rootless(&format!("setup d --mode {mode}"));
        assert_ne!(hash(), before, "{mode}");
        let said = rootless(
            "run --env A=b d bash -c 'echo $A; ls -d /var/lib/dpkg /nowhere; cat /etc/debian_version; perl -e \"print 6*7\"; \
             pwd; ls /var/lib/containers; echo inside > /tmp/written' 2>&1",
        );
        for wanted in [
            "b\n",
            "/var/lib/dpkg\n",
            "12\n",
            "42",
            "cannot access '/nowhere'",
            "cannot access '/var/lib/containers'",
        ] {
            assert!(said.contains(wanted), "{mode}: {wanted}: {said}");
        }
        assert_eq!(host.ok(&format!("cat {files}/tmp/written")), "inside\n");
        assert!(!host.exists("/tmp/written"));
        assert_eq!(code("run d sh -c 'exit 9'").0, 9, "{mode}");
        assert_eq!(code("run d no-such-program").0, 127, "{mode}");
        user.ok("mkdir -p $HOME/data && echo content > $HOME/data/file");
        let volume = rootless("run --volume $HOME/data:/data d cat /data/file");
        assert_eq!(volume, "content\n", "{mode}");
        let same = rootless("run --volume $HOME/data:$HOME/data d cat $HOME/data/file");
        assert_eq!(same, "content\n", "{mode}");
        // A script, and a program that is no program.
        shell(&format!(
            "printf '#!/bin/bash\\necho from a script\\n' > {files}/usr/bin/own-script; chmod 755 {files}/usr/bin/own-script"
        ));
        assert_eq!(rootless("run d own-script"), "from a script\n", "{mode}");
        host.ok(&format!(
            "rm {files}/usr/bin/own-script {files}/tmp/written"
        ));
        // Programs without libraries are not started.
        let bare = code("run d /sbin/ldconfig --version");
        assert!(
            bare.0 == 125 && bare.1.contains("does not confine"),
            "{mode}: {}",
            bare.1
        );
    }
    rootless("setup d --mode N");
    assert_eq!(hash(), before);
    assert_eq!(rootless("run d cat /etc/debian_version"), "12\n");
    // Busybox alone has nothing for fakechroot to be in.
    Image::new()
        .layer(Layer::new().busybox())
        .push(&registry, "busybox");
    let refused = code(&format!("run --mode F1 {} ls /", registry.name("busybox")));
    assert!(
        refused.0 == 125 && refused.1.contains("no loader"),
        "{}",
        refused.1
    );
    // A library for a later C library than the container's would not be loaded, and nothing confined.
    let old = "printf 'GLIBC_2.99' > $HOME/lib.so; FAKECHROOT_SO=$HOME/lib.so atomic-rs rootless run --name old --mode F1";
    let said = user.command(&format!("{old} {name} true"));
    assert!(
        said.code() == 125 && said.err().contains("wants version 2.99"),
        "{}",
        said.err()
    );
}

/// A change of mode that is killed is undone or done by the next.
#[test]
fn kills_while_the_mode_changes_leave_a_tree_that_is_whole() {
    let registry = Registry::start();
    Image::new().layer(debian::tree()).push(&registry, "debian");
    let host = Host::boot();
    let user = User::on_disk(&host);
    let name = registry.name("debian");
    user.ok(&format!("atomic-rs rootless create --name d {name}"));
    let id = user.ok("atomic-rs rootless inspect d | jq -r .id");
    let files = format!("{HOME}/containers/{}/ROOT", id.trim());
    user.ok("atomic-rs rootless setup d --mode P2");
    let shell = |script: &str| shell_of(&host, script);
    let hash = || {
        shell(&format!(
            "cd {files} && find . -printf '%p %y %m %l\\n' | sort | sha256sum && \
             find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum"
        ))
    };
    let before = hash();
    let mut interrupted = 0;
    for milliseconds in [15, 25, 35, 45, 55, 70, 85, 100, 120, 150] {
        for mode in ["F3", "N"] {
            let said = user.command(&format!(
                "timeout --signal=KILL 0.{milliseconds:03} atomic-rs rootless setup d --mode {mode}"
            ));
            interrupted += usize::from(!said.status.success());
        }
        user.ok("atomic-rs rootless setup d --mode P2");
        assert_eq!(hash(), before, "killed after {milliseconds} ms");
    }
    assert!(interrupted > 4, "{interrupted}");
    user.ok("atomic-rs rootless setup d --mode F3");
    assert_eq!(
        user.ok("atomic-rs rootless run d cat /etc/debian_version"),
        "12\n"
    );
}
