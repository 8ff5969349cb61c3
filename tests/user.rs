//! Containers of an ordinary user: `systemctl --user`, a user namespace, no help of root but ranges.

mod support;

use serde_json::{Value, json};
use support::images::{self, Image, Layer};
use support::{Host, Registry, Said as _, free_port, http_get, wait_for_answer};

const HOME: &str = "/home/someone";

struct User<'h>(&'h Host);

impl<'h> User<'h> {
    /// A user with ranges and a manager of their own.
    fn new(host: &'h Host) -> Self {
        host.ok("useradd -m someone");
        host.sh("usermod -v 300000-300009 someone; usermod -w 300000-300009 someone");
        host.ok("systemctl start user@$(id-u)"
            .replace("$(id-u)", host.ok("id -u someone").trim())
            .as_str());
        Self(host)
    }

    fn command(&self, words: &str) -> std::process::Output {
        let uid = self.0.ok("id -u someone");
        let mut command = self.0.command("setpriv");
        command
            .args(["--reuid=someone", "--regid=someone", "--init-groups", "env"])
            .arg(format!("HOME={HOME}"))
            .arg(format!("XDG_RUNTIME_DIR=/run/user/{}", uid.trim()))
            .arg("ATOMIC_RS_CONFIG=/etc/atomic-rs.toml")
            .args(["sh", "-c", words]);
        command.output().unwrap()
    }

    fn ok(&self, words: &str) -> String {
        let output = self.command(words);
        assert!(
            output.status.success(),
            "{words}: {}{}",
            output.out(),
            output.err()
        );
        output.out()
    }
}

#[test]
fn an_unprivileged_user_installs_updates_rolls_back_and_uninstalls() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    let user = User::new(&host);
    let reference = registry.name("web");
    images::plain(port, "one").push(&registry, "web");
    let before = user.ok("find ~ /run/user/$(id -u) -not -path '*/systemd/*' -not -path '*/.local/share/containers/*' 2>/dev/null | sort");
    user.ok(&format!(
        "cd; atomic-rs install --user --name web {reference}"
    ));
    assert_eq!(user.ok("systemctl --user is-enabled web"), "enabled\n");
    user.ok("systemctl --user start web");
    wait_for_answer(port, "one");
    assert!(user.ok("atomic-rs containers list").contains("running"));
    assert_eq!(user.command("atomic-rs status web").code(), 0);
    let main = user.ok("systemctl --user show -P MainPID web");
    let line = host.read(&format!("/proc/{}/uid_map", main.trim()));
    let ranges: Vec<Vec<u32>> = line
        .lines()
        .map(|line| {
            line.split_whitespace()
                .map(|n| n.parse().unwrap())
                .collect()
        })
        .collect();
    assert!(
        ranges.len() == 3 && ranges[0][0] == 0 && ranges[0][2] == 1,
        "{line}"
    );
    assert_eq!(ranges[1][0], 1);
    assert_eq!(
        ranges[2][0],
        1 + ranges[1][2],
        "ranges follow one another: {line}"
    );

    images::plain(port, "two").push(&registry, "web");
    user.ok("atomic-rs update web");
    wait_for_answer(port, "two");
    assert_eq!(user.ok("atomic-rs exec web cat /srv/index.html"), "two");
    user.ok("atomic-rs rollback web");
    wait_for_answer(port, "one");
    Image::new()
        .layer(Layer::new().busybox())
        .set("Entrypoint", json!(["/bin/false"]))
        .push(&registry, "web");
    let failed = user.command("atomic-rs update web");
    assert!(
        failed.code() == 1 && failed.err().contains("is running again"),
        "{}",
        failed.err()
    );
    wait_for_answer(port, "one");
    assert!(user.ok("atomic-rs history web").contains("returned"));

    // After a reboot it starts by itself: the manager is what a lingering user's boot starts.
    let uid = user.ok("id -u");
    let uid = uid.trim();
    host.ok(&format!("systemctl stop user@{uid}"));
    assert_eq!(http_get(port), None);
    host.ok(&format!("systemctl start user@{uid}"));
    wait_for_answer(port, "one");

    user.ok("atomic-rs uninstall web");
    assert_eq!(http_get(port), None);
    let after = user.ok("find ~ /run/user/$(id -u) -not -path '*/systemd/*' -not -path '*/.local/share/containers/*' 2>/dev/null | sort");
    let left: Vec<&str> = after
        .lines()
        .filter(|path| {
            // The session's own, and the store.
            let others = [".config", "/runc", "/.local", "/dbus-1"];
            !before.contains(path) && !others.iter().any(|other| path.contains(other))
        })
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(
        user.ok("ls ~/.config/systemd/user ~/.config/user-tmpfiles.d | grep -c web || true"),
        "0\n"
    );
}

#[test]
fn a_users_container_runs_as_another_user_of_its_own_and_keeps_a_volume() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    let user = User::new(&host);
    let reference = registry.name("cache");
    Image::new()
        .layer(
            Layer::new()
                .busybox()
                .owned_dir("data", 0o750, 1234),
        )
        .set("Entrypoint", json!(["/bin/sh", "-c", format!(
            "(id -u; date +%s%N) >> /data/index.html && trap 'kill $!; exit 0' TERM; httpd -f -p {port} -h /data & wait"
        )]))
        .set("User", "web")
        .set("Volumes", json!({"/data": {}}))
        .push(&registry, "cache");
    user.ok(&format!("atomic-rs install --name cache {reference}"));
    user.ok("atomic-rs run cache");
    let first = wait_for_answer(port, "1234");
    user.ok("atomic-rs stop cache");
    user.ok("atomic-rs run cache");
    let second = wait_for_answer(port, "1234");
    assert!(second.len() > first.len(), "the volume is kept: {second}");
    let output = user.command("atomic-rs uninstall cache");
    assert!(output.err().contains(".data/cache"), "{}", output.err());
    user.ok(&format!("atomic-rs install --name cache {reference}"));
    user.ok("atomic-rs uninstall --purge cache");
    assert_eq!(user.ok("ls -A ~/.data"), "");
}

#[test]
fn what_is_roots_and_what_is_the_users_is_told_apart() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    let user = User::new(&host);
    images::system().push(&registry, "system");
    let reference = registry.name("system");
    let refused = user.command(&format!("atomic-rs install --system {reference}"));
    assert!(
        refused.code() == 1 && refused.err().contains("Only root can use --system"),
        "{}",
        refused.err()
    );
    let refused = host.atomic(&format!("install --user {reference}"));
    assert!(
        refused.code() == 1
            && refused
                .err()
                .contains("--user does not work for privileged user"),
        "{}",
        refused.err()
    );
    // An image's own config.json is fitted to a user namespace.
    user.ok(&format!(
        "atomic-rs install --user --name sys --set PORT={port} {reference}"
    ));
    let config: Value = serde_json::from_str(&host.read(&format!(
        "{HOME}/.local/share/containers/atomic/sys.0/config.json"
    )))
    .unwrap();
    let mounts = config["mounts"].as_array().unwrap();
    assert_eq!(mounts.last().unwrap()["destination"], "/sys");
    assert!(
        config["linux"]["namespaces"]
            .as_array()
            .unwrap()
            .contains(&json!({"type": "user"}))
    );
    user.ok("systemctl --user start sys");
    wait_for_answer(port, "Hi World from container sys");
    user.ok("atomic-rs uninstall sys");
    assert_eq!(http_get(port), None);
    assert_eq!(host.atomic_ok("containers list --all"), "");
}
