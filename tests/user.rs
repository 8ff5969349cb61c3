//! Containers of an ordinary user: `systemctl --user`, a user namespace, no help of root but ranges.

mod support;

use serde_json::{Value, json};
use support::images::{self, Image, Layer};
use support::user::HOME;
use support::{Host, Registry, Said as _, User, free_port, http_get, wait_for_answer};

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

/// `cap_net_bind_service=ep`, as the kernel has it on disk: linux/capability.h.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn files_of_the_image_keep_their_owners_set_id_bits_and_capabilities_inside() {
    let registry = Registry::start();
    let host = Host::boot();
    let user = User::new(&host);
    let image = |port: u16, text: &str| {
        Image::new()
            .layer(
                Layer::new()
                    .busybox()
                    .owned_dir("srv", 0o755, 0)
                    .owned_dir("srv/www", 0o750, 1234)
                    .owned_file("srv/www/index.html", 0o640, 1234, "as it came")
                    .dir("opt", 0o755)
                    .dir("opt/bin", 0o555)
                    .owned_file("opt/bin/tool", 0o4755, 0, "a tool")
                    .dir("lib", 0o755)
                    .xattr("security.capability", &CAPABILITY)
                    .owned_file("lib/bind", 0o755, 0, "binds ports")
                    .owned_file("lib/group", 0o2755, 0, "of a group")
                    .symlink("lib/link", "group")
                    .owned_dir("lib/too-far", 0o755, 4_000_000)
                    .owned_file("lib/too-far/near", 0o600, 1234, "mapped")
                    .owned_dir("x,lowerdir=y:z", 0o755, 1234)
                    .symlink("y", "/home"),
            )
            .set(
                "Entrypoint",
                json!(["/bin/sh", "-c", format!(
                    "[ \"$(cat /srv/www/index.html)\" = 'as it came' ] && echo {text} > /srv/www/index.html && trap 'kill $!; exit 0' TERM; httpd -f -p {port} -h /srv/www & wait"
                )]),
            )
            .set("User", "web")
    };
    for (name, runtime) in [("one", "runc"), ("two", "crun")] {
        let port = free_port();
        image(port, "first").push(&registry, name);
        user.ok(&format!(
            "atomic-rs install --name {name} --runtime {runtime} {}",
            registry.name(name)
        ));
        user.ok(&format!("atomic-rs run {name}"));
        // Only its owner may write there: without the owner layer it would not have started.
        wait_for_answer(port, "first");
        let stat = user.ok(&format!(
            "atomic-rs exec {name} stat -c '%n %u %g %a' /srv /srv/www /srv/www/index.html /opt/bin /opt/bin/tool /lib/bind /lib/group /lib/too-far /lib/too-far/near"
        ));
        assert_eq!(
            stat,
            "/srv 0 0 755\n/srv/www 1234 1234 750\n/srv/www/index.html 1234 1234 640\n\
             /opt/bin 0 0 555\n/opt/bin/tool 0 0 4755\n/lib/bind 0 0 755\n/lib/group 0 0 2755\n/lib/too-far 0 0 755\n/lib/too-far/near 1234 1234 600\n",
            "{runtime}"
        );
        let main = user.ok(&format!("systemctl --user show -P MainPID {name}"));
        let capability = host.ok(&format!(
            "getfattr --only-values -n security.capability /proc/{}/root/lib/bind",
            main.trim()
        ));
        assert!(!capability.is_empty());
        // A write stays where writes go: the next version begins from the image again.
        image(port, "second").push(&registry, name);
        user.ok(&format!("atomic-rs update {name}"));
        wait_for_answer(port, "second");
        user.ok(&format!("atomic-rs verify {name}"));
        user.ok(&format!("atomic-rs stop {name}"));
        let stopped = user.ok(&format!("atomic-rs exec {name} cat /srv/www/index.html"));
        assert_eq!(stopped, "as it came");
    }
    let owners = "~/.local/share/containers/atomic/.owners";
    assert_eq!(
        user.ok(&format!("ls -A {owners} | wc -l")),
        "1\n",
        "one for all deployments of equal trees"
    );
    user.ok("atomic-rs uninstall one");
    assert_eq!(user.ok(&format!("ls -A {owners} | wc -l")), "1\n");
    user.ok("atomic-rs uninstall two");
    assert_eq!(user.ok(&format!("ls -A {owners}")), "");
    user.ok("ostree fsck --quiet --repo ~/.local/share/containers/atomic/repo");
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
    // Its own unit makes no directories: those are there again when the user's manager starts anew.
    let uid = user.ok("id -u");
    let uid = uid.trim();
    host.ok(&format!("systemctl stop user@{uid}"));
    assert_eq!(http_get(port), None);
    host.ok(&format!("rm -rf /run/user/{uid}/sys"));
    host.ok(&format!("systemctl start user@{uid}"));
    wait_for_answer(port, "Hi World from container sys");
    user.ok("atomic-rs uninstall sys");
    assert_eq!(http_get(port), None);
    assert_eq!(host.atomic_ok("containers list --all"), "");
}
