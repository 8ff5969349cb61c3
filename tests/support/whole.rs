//! What holds for the container `web` whatever was killed: it is wholly at one version, or not there at all.

use super::{Host, Said as _, wait_for_answer};

pub const C: &str = "/var/lib/containers/atomic";
/// A file of the host that `web` may bring, with its version.
pub const HOST_FILE: &str = "/usr/local/lib/web-version";

/// See above; `at` says what happened before. It is running afterwards if it is there.
pub fn assert_whole(host: &Host, port: u16, at: &str) {
    let leftovers = host.sh(&format!(
        "find {C} /etc/systemd/system /etc/tmpfiles.d /usr/local/lib -maxdepth 1 \\( -name '.*next-*' -o -name '.*old-*' -o -name '.atomic-rs*' -o -name '.*.new' \\); find {C}/.journal -type f"
    ));
    assert_eq!(leftovers.out(), "", "{at}");
    let unit = host.exists("/etc/systemd/system/web.service");
    let tmpfiles = host.exists("/etc/tmpfiles.d/web.conf");
    let link = host.run(&format!("readlink {C}/web"));
    if link.code() != 0 {
        let file = host.exists(HOST_FILE);
        assert!(
            !unit && !tmpfiles && !file,
            "{at}: host files without container"
        );
        assert!(
            !host.exists(&format!("{C}/web.0")) && !host.exists(&format!("{C}/web.1")),
            "{at}"
        );
        return;
    }
    let deployment = link.out().trim().to_owned();
    for (installed, copy) in [
        ("/etc/systemd/system/web.service", "web.service"),
        ("/etc/tmpfiles.d/web.conf", "tmpfiles-web.conf"),
    ] {
        assert_eq!(
            host.read(installed),
            host.read(&format!("{deployment}/{copy}")),
            "{at}"
        );
    }
    let config = host.read(&format!("{deployment}/config.json"));
    assert!(
        config.contains(&format!("{deployment}/rootfs")),
        "{at}: config of another deployment"
    );
    let info: serde_json::Value =
        serde_json::from_str(&host.read(&format!("{deployment}/info"))).unwrap();
    assert!(info["revision"].as_str().unwrap().len() == 64, "{at}");
    assert_eq!(
        host.run("systemctl is-enabled web").out(),
        "enabled\n",
        "{at}"
    );
    // It starts and answers what its root file system says.
    let started = host.run("systemctl start web");
    assert_eq!(
        started.code(),
        0,
        "{at}: {}\n{}",
        started.err(),
        host.run("journalctl -u web -n 20 --no-pager").out()
    );
    let version = host.read(&format!("{deployment}/rootfs/srv/index.html"));
    let answered = std::panic::catch_unwind(|| wait_for_answer(port, version.trim()));
    assert!(answered.is_ok(), "{at}: {deployment} does not answer");
    let brings = format!("{deployment}/rootfs/exports/hostfs{HOST_FILE}");
    assert_eq!(host.exists(HOST_FILE), host.exists(&brings), "{at}");
    if host.exists(&brings) {
        assert_eq!(host.read(HOST_FILE), host.read(&brings), "{at}");
    }
}

/// What is on a host.
#[derive(Debug, PartialEq)]
pub struct State {
    /// Which version `web` is at, and whose file the host has.
    pub container: String,
    /// The images in the store, by name.
    pub images: String,
}

impl State {
    pub fn of(host: &Host) -> Self {
        let container = host.sh(&format!(
            "readlink {C}/web && cat {C}/web/rootfs/srv/index.html; cat {HOST_FILE} 2>/dev/null"
        ));
        let listed = host.atomic_ok("images list --json");
        let listed: Vec<serde_json::Value> = serde_json::from_str(&listed).unwrap();
        let images = listed
            .iter()
            .map(|image| format!("{}:{} {}\n", image["repo"], image["tag"], image["id"]));
        Self {
            container: container.out(),
            images: images.collect(),
        }
    }

    pub fn has_web(&self) -> bool {
        self.container.contains("web.")
    }
}
