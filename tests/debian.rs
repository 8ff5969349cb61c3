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
    let hash = || host.hash_of(&files);
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
    // What the container's programs have copied and linked meanwhile is put right as well, also after a clone.
    rootless("run d sh -c 'cp /bin/true /usr/bin/own-true; ln -s /usr/bin/env /usr/bin/own-link'");
    let copy = rootless("clone d --name copy");
    rootless("setup d --mode N");
    shell(&format!(
        "cmp {files}/usr/bin/own-true {files}/usr/bin/true"
    ));
    assert_eq!(
        shell(&format!("readlink {files}/usr/bin/own-link")),
        "/usr/bin/env\n"
    );
    shell(&format!(
        "rm {files}/usr/bin/own-true {files}/usr/bin/own-link"
    ));
    assert_eq!(hash(), before);
    rootless("run copy /usr/bin/own-true");
    rootless("setup copy --mode N");
    let cloned = format!("{HOME}/containers/{}/ROOT", copy.trim());
    for file in [
        "usr/bin/true",
        "usr/bin/perl",
        "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
    ] {
        shell(&format!("cmp {cloned}/{file} {files}/{file}"));
    }
    shell(&format!(
        "cmp {cloned}/usr/bin/own-true {files}/usr/bin/true"
    ));
    // An empty directory under a volume is there again, as it was; another volume is not taken for it.
    shell(&format!("install -d -m 750 -o someone {files}/empty"));
    rootless("setup d --mode F3");
    user.ok("mkdir -p $HOME/other && echo other > $HOME/other/file");
    rootless("run --detach --volume $HOME/data:/empty d sh -c 'sleep 1003 & sleep 1004'");
    user.ok("until atomic-rs rootless ps | grep -q running; do sleep 0.1; done");
    let (other, why) = code("run --volume $HOME/other:/empty d cat /empty/file");
    assert!(other == 125 && why.contains("another command"), "{why}");
    assert_eq!(
        rootless("run --volume $HOME/data:/empty d cat /empty/file"),
        "content\n"
    );
    assert_eq!(code("setup d --mode N").0, 2);
    rootless("stop --time 1 d");
    user.ok("until ! atomic-rs rootless ps | grep -q running; do sleep 0.1; done");
    assert_eq!(host.sh("pgrep -f 'sleep 100[34]'").out(), "");
    assert_eq!(
        shell(&format!("stat -c '%F %a' {files}/empty")),
        "directory 750\n"
    );
    shell(&format!("rmdir {files}/empty"));
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
    // A library for a later C library than the container's, or none at all, would not be loaded, and nothing confined.
    for (made, why) in [
        ("echo GLIBC_2.4 > $HOME/lib.so", "is not a library for"),
        (
            "(cat /usr/lib/x86_64-linux-gnu/fakechroot/libfakechroot.so; echo GLIBC_2.99) > $HOME/lib.so",
            "wants version 2.99",
        ),
    ] {
        user.ok(made);
        let line =
            format!("FAKECHROOT_SO=$HOME/lib.so atomic-rs rootless run --mode F1 {name} true");
        let said = user.command(&line);
        assert!(
            said.code() == 125 && said.err().contains(why),
            "{}",
            said.err()
        );
    }
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
    let hash = || host.hash_of(&files);
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
