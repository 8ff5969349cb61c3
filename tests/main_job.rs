//! The main job on a real systemd host: pull, install, start, update, rollback, uninstall.

mod support;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Command;

use serde_json::{Value, json};
use support::images::{self, Image, Layer};
use support::{Host, Registry, Said as _, free_port, http_get, wait_for_answer};

const C: &str = "/var/lib/containers/atomic";
/// Where a container leaves traces, but for the store itself.
const TRACES: [&str; 4] = ["/etc", "/run", "/var/lib", "/usr/local"];

/// Every path below the usual places, without those that change by themselves.
fn traces(host: &Host) -> Vec<String> {
    let script = format!(
        "find {} -path '*/.storage*' -prune -o -path /run/systemd -prune -o -path /var/lib/systemd -prune -o -path /run/log -prune -o -path /run/runc -prune -o -path {C}/.locks -prune -o -print | sort",
        TRACES.join(" ")
    );
    host.sh(&script).out().lines().map(str::to_owned).collect()
}

fn whole_job(name: &str, image: fn(u16, &str) -> Image, kept: &[&str]) {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    let reference = registry.name(&format!("{name}:stable"));
    image(port, "version-1").push(&registry, &format!("{name}:stable"));
    host.atomic_ok("containers list");
    host.atomic_ok(&format!("pull {reference}"));
    let before = traces(&host);

    let out = host.atomic_ok(&format!("install --system --name {name} {reference}"));
    assert!(
        out.contains(&format!("Extracting to {C}/{name}.0")),
        "{out}"
    );
    assert!(out.contains(&format!("systemctl enable {name}")), "{out}");
    assert_eq!(
        host.ok(&format!("systemctl is-enabled {name}")),
        "enabled\n"
    );
    assert_eq!(
        host.run(&format!("systemctl is-active {name}")).out(),
        "inactive\n"
    );
    assert_eq!(
        host.atomic_ok("containers list"),
        "",
        "only running ones are listed"
    );

    host.ok(&format!("systemctl start {name}"));
    wait_for_answer(port, "version-1");
    let list = host.atomic_ok("containers list");
    assert!(list.contains(name) && list.contains("running"), "{list}");

    image(port, "version-2").push(&registry, &format!("{name}:stable"));
    host.atomic_ok(&format!("update {name}"));
    wait_for_answer(port, "version-2");
    assert_eq!(
        host.ok(&format!("readlink {C}/{name}")),
        format!("{C}/{name}.1\n")
    );

    host.atomic_ok(&format!("rollback {name}"));
    wait_for_answer(port, "version-1");
    host.atomic_ok(&format!("rollback {name}"));
    wait_for_answer(port, "version-2");

    let output = host.atomic(&format!("uninstall {name}"));
    assert_eq!(output.code(), 0, "{}", output.err());
    assert_eq!(http_get(port), None, "nothing of it survives");
    let left: Vec<String> = traces(&host)
        .into_iter()
        .filter(|path| !before.contains(path))
        .collect();
    for path in kept {
        assert!(output.err().contains(path), "{} names {path}", output.err());
    }
    let unexpected: Vec<&String> = left
        .iter()
        .filter(|path| {
            !kept
                .iter()
                .any(|kept| kept.starts_with(path.as_str()) || path.starts_with(kept))
        })
        .collect();
    assert!(unexpected.is_empty(), "left behind: {unexpected:?}");
    let refs = host.ok(&format!("ostree refs --repo={C}/.storage/ostree"));
    assert!(!refs.contains("atomic-deployment"), "{refs}");
    host.ok(&format!("ostree fsck --quiet --repo={C}/.storage/ostree"));
}

#[test]
fn a_plain_image_is_installed_updated_rolled_back_and_uninstalled() {
    whole_job("web", images::plain, &[]);
}

#[test]
fn a_plain_image_writes_below_var_cache_as_another_user_and_its_volume_survives() {
    whole_job("cache", images::cache, &["/var/lib/cache"]);
}

#[test]
fn an_image_with_templates_is_installed_with_its_variables() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    images::system().push(&registry, "atomic-test-system");
    images::system_update().push(&registry, "atomic-test-system-update");
    let system = registry.name("atomic-test-system");
    let secret = "0a1b  -";

    let output = host
        .command("atomic-rs")
        .args(["install", "--system", "--name=test-system"])
        .arg(format!("--set=PORT={port}"))
        .arg(format!("--set=RECEIVER={secret}"))
        .arg(&system)
        .output()
        .unwrap();
    assert_eq!(output.code(), 0, "{}", output.err());
    for path in [
        "/etc/tmpfiles.d/test-system.conf",
        "/etc/systemd/system/test-system.service",
    ] {
        assert!(host.exists(path), "{path}");
    }
    for file in [
        "test-system.service",
        "tmpfiles-test-system.conf",
        "config.json",
        "info",
    ] {
        assert!(host.exists(&format!("{C}/test-system.0/{file}")), "{file}");
    }
    let config: Value =
        serde_json::from_str(&host.read(&format!("{C}/test-system.0/config.json"))).unwrap();
    let env = config["process"]["env"].as_array().unwrap();
    assert!(
        env.contains(&json!(format!("RECEIVER={secret}"))),
        "{env:?}"
    );
    let info: Value = serde_json::from_str(&host.read(&format!("{C}/test-system.0/info"))).unwrap();
    let uuid = info["values"]["UUID"].as_str().unwrap().to_owned();

    // The same name again is no error, and changes nothing.
    let again = host.atomic(&format!("install --system --name=test-system {system}"));
    assert_eq!(
        (again.code(), again.out().trim()),
        (0, "test-system already present")
    );

    host.atomic_ok("run test-system");
    wait_for_answer(
        port,
        &format!("Hi {secret} from container test-system with UUID={uuid}"),
    );

    let other = free_port();
    host.atomic_ok(&format!("update test-system --set=PORT={other}"));
    wait_for_answer(other, &format!("UUID={uuid}"));
    host.atomic_ok("rollback test-system");
    wait_for_answer(port, &format!("Hi {secret}"));
    host.atomic_ok("stop test-system");
    assert_eq!(http_get(port), None);

    // A variable without a value: one clear line, nothing left behind, and a second try works.
    let update = registry.name("atomic-test-system-update");
    let missing = host.atomic(&format!("install --system --name=other {update}"));
    assert_eq!(missing.code(), 1);
    assert!(
        missing
            .err()
            .contains("still contains an unreplaced value for: ''VAR_WITH_NO_DEFAULT''"),
        "{}",
        missing.err()
    );
    assert!(!host.exists(&format!("{C}/other")) && !host.exists(&format!("{C}/other.0")));
    let third = free_port();
    host.atomic_ok(&format!(
        "install --system --name=other --set=VAR_WITH_NO_DEFAULT=World --set=PORT={third} {update}"
    ));
    host.ok("systemctl start other");
    wait_for_answer(third, "Hi from World");

    // A failed rebase leaves the symlink alone; one with the missing value works while running.
    let failed = host.atomic(&format!("update test-system --rebase {update}"));
    assert_eq!(failed.code(), 1);
    assert_eq!(
        host.ok(&format!("readlink {C}/test-system")),
        format!("{C}/test-system.0\n")
    );
    host.ok("systemctl start test-system");
    wait_for_answer(port, "Hi");
    host.atomic_ok(&format!(
        "update test-system --rebase {update} --set=VAR_WITH_NO_DEFAULT=Rebase"
    ));
    wait_for_answer(port, "Hi from Rebase");

    // A name that looks like another's deployment is fine as long as nobody has it.
    host.atomic_ok(&format!("install --system --name=container.0 {system}"));
    host.atomic_ok("uninstall container.0");
    let taken = host.atomic(&format!("install --system --name=test-system.1 {system}"));
    assert_eq!(taken.code(), 1);
    assert!(taken.err().contains("collides"), "{}", taken.err());
}

#[test]
fn the_unit_is_what_an_administrator_expects() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    images::plain(port, "hello").push(&registry, "web");
    host.atomic_ok(&format!(
        "install --name web --stop-timeout 7 {}",
        registry.name("web")
    ));
    host.ok("systemctl start web");
    wait_for_answer(port, "hello");
    let status = host.ok("systemctl --no-pager status web");
    assert!(status.contains("Active: active (running)"), "{status}");
    assert!(
        status.contains("Main PID:") && status.contains("(sh)"),
        "{status}"
    );
    // The container's processes are in the unit's cgroup: the shell and its web server.
    let inside =
        host.sh("cat /sys/fs/cgroup/system.slice/web.service/payload/cgroup.procs | wc -l");
    assert!(inside.out().trim().parse::<u32>().unwrap() >= 2, "{status}");
    let log = host.ok("journalctl --no-pager -u web");
    assert!(log.contains(&format!("serving {port}")), "{log}");
    assert_eq!(host.ok("systemctl show -P TimeoutStopUSec web"), "7s\n");
    let pid = host.ok("systemctl show -P MainPID web").trim().to_owned();

    host.ok("systemctl stop web");
    let log = host.ok("journalctl --no-pager -u web");
    assert!(log.contains("got TERM"), "{log}");
    assert_eq!(http_get(port), None);
    assert!(
        !host.exists(&format!("/proc/{pid}")),
        "the main process is gone"
    );
    assert_eq!(host.ok("systemctl show -P ActiveState web"), "inactive\n");
    assert_eq!(
        host.ok("runc list -q"),
        "",
        "no state of the runtime is left"
    );
    assert_eq!(
        host.sh("cat /sys/fs/cgroup/system.slice/web.service/cgroup.procs 2>/dev/null")
            .out(),
        ""
    );
    // It starts again, and on failure by itself.
    host.ok("systemctl start web");
    wait_for_answer(port, "hello");
    host.ok("systemctl kill -s KILL web");
    wait_for_answer(port, "hello");
}

#[test]
fn an_image_may_open_its_output_again_as_web_servers_do() {
    let registry = Registry::start();
    let host = Host::boot();
    // A log file that is a link to /dev/stdout, opened by an ordinary user.
    Image::new()
        .layer(Layer::new().busybox().dir("var/log", 0o755).symlink("var/log/access.log", "/dev/stdout").symlink("var/log/error.log", "/dev/stderr"))
        .set("Entrypoint", json!(["/bin/sh", "-c", "echo to-access > /var/log/access.log; echo to-error > /var/log/error.log; echo done; sleep 100"]))
        .set("User", "web")
        .push(&registry, "logs");
    host.atomic_ok(&format!(
        "install --name logs --stop-timeout 1 {}",
        registry.name("logs")
    ));
    host.ok("systemctl start logs");
    let start = std::time::Instant::now();
    loop {
        let log = host.ok("journalctl --no-pager --output=cat -u logs SYSLOG_IDENTIFIER=logs");
        if log.contains("done") {
            assert_eq!(log, "to-access\nto-error\ndone\n");
            break;
        }
        assert!(start.elapsed().as_secs() < 10, "{log}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn an_interrupted_command_leaves_nothing_half_done() {
    let registry = Registry::start();
    let host = Host::boot();
    let mut layer = Layer::new().busybox();
    for i in 0..3000 {
        layer = layer.file(&format!("many/{i}"), 0o644, format!("{i}"));
    }
    Image::new()
        .layer(layer)
        .set("Cmd", json!(["sleep", "100"]))
        .push(&registry, "many");
    let reference = registry.name("many");
    host.atomic_ok("images list");
    let mut codes = Vec::new();
    for delay in [30, 80, 150, 250, 400] {
        for (signal, code) in [("INT", 130), ("TERM", 143)] {
            let script = format!(
                "atomic-rs install --name many {reference} & sleep 0.{delay:03}; kill -{signal} $!; wait $!; echo code $?"
            );
            let output = host
                .command("bash")
                .args(["-mc", &script])
                .output()
                .unwrap();
            let got = output.out();
            let got = got.lines().last().unwrap().to_owned();
            assert!(
                got == format!("code {code}") || got == "code 0",
                "{signal} after {delay}: {got} {}",
                output.err()
            );
            codes.push(got);
            let left = host.sh(&format!("ls -A {C}/.journal /etc/tmpfiles.d | grep -v ':$' | grep -c many; ls /run | grep atomic-rs-auth; pgrep -x skopeo"));
            if host.exists(&format!("{C}/many")) {
                host.atomic_ok("uninstall many");
            } else {
                assert_eq!(left.out(), "0\n", "{signal} after {delay}");
            }
        }
        host.atomic("-y images delete --all --force");
        host.atomic_ok("images prune");
    }
    assert!(codes.iter().any(|code| code == "code 130"), "{codes:?}");
    assert!(codes.iter().any(|code| code == "code 143"), "{codes:?}");
    host.atomic_ok(&format!("install --name many {reference}"));
}

#[test]
fn an_ordinary_user_has_a_store_of_their_own() {
    let registry = Registry::start();
    let host = Host::boot();
    images::plain(8080, "x").push(&registry, "web");
    host.ok("useradd -m someone");
    let as_user = "setpriv --reuid someone --regid someone --clear-groups env HOME=/home/someone";
    host.ok(&format!(
        "{as_user} atomic-rs pull {}",
        registry.name("web")
    ));
    let list = host.ok(&format!("{as_user} atomic-rs images list"));
    assert!(list.contains("/web"), "{list}");
    let repo = "/home/someone/.local/share/containers/atomic/repo";
    assert!(
        host.read(&format!("{repo}/config"))
            .contains("mode=bare-user")
    );
    host.ok(&format!("{as_user} ostree fsck --quiet --repo={repo}"));
    let refused = host.run(&format!(
        "{as_user} atomic-rs install --system --name web {}",
        registry.name("web")
    ));
    assert!(
        refused.err().contains("Only root can use --system"),
        "{}",
        refused.err()
    );
}

#[test]
fn an_image_stops_by_its_own_signal() {
    let registry = Registry::start();
    let host = Host::boot();
    Image::new()
        .layer(Layer::new().busybox())
        .set("Entrypoint", json!(["/bin/sh", "-c", "trap 'echo got QUIT; exit 0' QUIT; trap 'echo got TERM; exit 1' TERM; while :; do sleep 1; done"]))
        .set("StopSignal", "SIGQUIT")
        .push(&registry, "quit");
    host.atomic_ok(&format!("install --name quit {}", registry.name("quit")));
    host.ok("systemctl start quit");
    host.ok("systemctl stop quit");
    let log = host.ok("journalctl --no-pager -u quit");
    assert!(
        log.contains("got QUIT") && !log.contains("got TERM"),
        "{log}"
    );
    assert_eq!(host.ok("systemctl show -P Result quit"), "success\n");
}

#[test]
fn an_image_that_asks_for_it_notifies_systemd_itself() {
    let registry = Registry::start();
    let host = Host::boot();
    // Readiness comes a second late; "active" must not come before.
    let script = "sleep 1; echo READY=1 | nc -w1 -u local:$NOTIFY_SOCKET 2>/dev/null; touch /tmp/x; echo $NOTIFY_SOCKET; sleep 100";
    Image::new()
        .layer(Layer::new().busybox())
        .set("Entrypoint", json!(["/bin/sh", "-c", script]))
        .set("Labels", json!({"atomic.service.type": "notify"}))
        .push(&registry, "ready");
    host.atomic_ok(&format!("install --name ready {}", registry.name("ready")));
    assert_eq!(host.ok("systemctl show -P Type ready"), "notify\n");
    host.ok("systemctl start --no-block ready");
    // busybox cannot write to a unix datagram socket, so the test does it through the container's.
    let start = std::time::Instant::now();
    loop {
        let log = host.ok("journalctl --no-pager --output=cat -u ready");
        if log.contains("/notify.sock") {
            break;
        }
        assert!(
            start.elapsed().as_secs() < 15,
            "no socket was passed: {log}"
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(
        host.ok("systemctl show -P ActiveState ready"),
        "activating\n"
    );
    let sent = host.sh(
        "for s in /run/runc/ready/notify/notify.sock; do python3 -c \"import socket,sys; s=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM); s.sendto(b'READY=1',sys.argv[1])\" $s; done",
    );
    assert_eq!(sent.code(), 0, "{}", sent.err());
    let start = std::time::Instant::now();
    while host.run("systemctl is-active ready").out() != "active\n" {
        assert!(
            start.elapsed().as_secs() < 10,
            "{}",
            host.run("systemctl status ready").out()
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let main = host.ok("systemctl show -P MainPID ready").trim().to_owned();
    let line = host
        .sh(&format!("tr '\\0' ' ' < /proc/{main}/cmdline"))
        .out();
    assert!(
        line.contains("sleep 100"),
        "the main process is the container's: {main} {line}"
    );
}

#[test]
fn update_with_nothing_new_changes_no_file_and_a_second_update_reuses_slot_zero_clean() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    let push = |text: &str, file: &str| {
        Image::new()
            .layer(Layer::new().busybox())
            .layer(
                Layer::new()
                    .dir("srv", 0o755)
                    .file("srv/index.html", 0o644, text)
                    .file(file, 0o644, "x"),
            )
            .set(
                "Entrypoint",
                json!([
                    "/bin/sh",
                    "-c",
                    format!("trap 'kill $!; exit 0' TERM; httpd -f -p {port} -h /srv & wait")
                ]),
            )
            .push(&registry, "web");
    };
    push("one", "only-in-one");
    host.atomic_ok(&format!("install --name web {}", registry.name("web")));
    host.ok("systemctl start web");
    wait_for_answer(port, "one");
    let places = ["/etc", C];
    let before = host.listing(&places);
    let output = host.atomic("update web");
    assert_eq!(
        (output.code(), output.out().as_str()),
        (0, "Latest version already installed.\n")
    );
    host.assert_unchanged(&places, &before);

    push("two", "only-in-two");
    host.atomic_ok("update web");
    wait_for_answer(port, "two");
    push("three", "only-in-three");
    host.atomic_ok("update web");
    wait_for_answer(port, "three");
    assert_eq!(
        host.ok(&format!("readlink {C}/web")),
        format!("{C}/web.0\n")
    );
    assert!(host.exists(&format!("{C}/web.0/rootfs/only-in-three")));
    assert!(!host.exists(&format!("{C}/web.0/rootfs/only-in-one")));
    assert!(!host.exists(&format!("{C}/web.0/rootfs/only-in-two")));
    let leftovers = host.sh(&format!("find {C} /etc/systemd /etc/tmpfiles.d -name '.*next*' -o -name '.*old*' -o -name '.atomic-rs*'"));
    assert_eq!(leftovers.out(), "");
}

#[test]
fn an_update_whose_unit_fails_to_start_leaves_the_old_version_running() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    images::plain(port, "good").push(&registry, "web");
    host.atomic_ok(&format!("install --name web {}", registry.name("web")));
    host.ok("systemctl start web");
    wait_for_answer(port, "good");
    let before = host.listing(&[
        &format!("{C}/web.0/"),
        &format!("{C}/web"),
        "/etc/systemd/system",
    ]);
    Image::new()
        .layer(Layer::new().busybox())
        .set("Entrypoint", json!(["/no/such/program"]))
        .push(&registry, "web");
    let output = host.atomic("update web");
    assert_eq!(output.code(), 1);
    let err = output.err();
    assert!(err.contains("the job ended as \"failed\""), "{err}");
    assert!(
        err.contains("last lines of web.service:") && err.contains("/no/such/program"),
        "{err}"
    );
    assert!(
        err.contains("deployment 0 of web is running again"),
        "{err}"
    );
    wait_for_answer(port, "good");
    assert_eq!(host.ok("systemctl is-active web"), "active\n");
    assert_eq!(host.ok("systemctl is-enabled web"), "enabled\n");
    let names = |listing: &str| -> Vec<String> {
        listing
            .lines()
            .map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
            .collect()
    };
    let after = host.listing(&[
        &format!("{C}/web.0/"),
        &format!("{C}/web"),
        "/etc/systemd/system",
    ]);
    let ignored = |line: &String| {
        line.contains("/etc/systemd/system") || line.starts_with(&format!("{C}/web "))
    };
    let strip = |all: Vec<String>| {
        all.into_iter()
            .filter(|line| !ignored(line))
            .collect::<Vec<_>>()
    };
    assert_eq!(strip(names(&after)), strip(names(&before)));
    assert!(!host.exists(&format!("{C}/web.1")));
    // The same with a stopped service: it stays stopped, and at the old version.
    host.ok("systemctl stop web");
    host.atomic_ok("update web --force");
    assert_eq!(host.run("systemctl is-active web").out(), "inactive\n");
    assert_eq!(host.run("systemctl start web").code(), 1);
    host.atomic_ok("rollback web");
    host.ok("systemctl start web");
    wait_for_answer(port, "good");
}

#[test]
fn an_administrators_disable_and_drop_ins_stay() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    images::plain(port, "one").push(&registry, "web");
    host.atomic_ok(&format!("install --name web {}", registry.name("web")));
    host.ok("systemctl disable web");
    host.sh("mkdir -p /etc/systemd/system/web.service.d; echo '[Service]' > /etc/systemd/system/web.service.d/mine.conf");
    images::plain(port, "two").push(&registry, "web");
    host.atomic_ok("update web");
    assert_eq!(host.run("systemctl is-enabled web").out(), "disabled\n");
    let output = host.atomic("uninstall web");
    assert_eq!(output.code(), 0);
    assert!(
        output.err().contains("/etc/systemd/system/web.service.d"),
        "{}",
        output.err()
    );
    assert!(host.exists("/etc/systemd/system/web.service.d/mine.conf"));
    // And they are no unit that would stand in the way of the next installation.
    host.atomic_ok(&format!("install --name web {}", registry.name("web")));
}

#[test]
fn deployed_files_are_the_stores_own_and_nobody_else_reaches_them() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    let image =
        || images::plain(port, "x").layer(Layer::new().file("bin/suid", 0o4755, "#!/bin/sh\n"));
    let written = image().push(&registry, "web");
    host.atomic_ok(&format!(
        "install --name web --env SECRET=hush {}",
        registry.name("web")
    ));
    let repo = format!("{C}/.storage/ostree");

    let inode = std::fs::metadata(host.path(&format!("{C}/web.0/rootfs/srv/index.html")))
        .unwrap()
        .ino();
    let object = host.ok(&format!("find {repo}/objects -inum {inode}"));
    assert!(object.contains("/objects/"), "{object}");
    host.ok(&format!("ostree fsck --quiet --repo={repo}"));
    let refs = host.ok(&format!("ostree refs --repo={repo}"));
    let encoded = format!(
        "ociimage/127.0.0.1_3A{}_2Fweb_3Alatest",
        registry.address().split(':').next_back().unwrap()
    );
    let mut expected = vec![
        encoded,
        format!("ociimage-tree/{}", written.id()),
        "atomic-deployment/web/0".to_owned(),
    ];
    expected.extend(written.layers.iter().flat_map(|layer| {
        ["ociimage", "ociimage-side"].map(|kind| format!("{kind}/{}", &layer[7..]))
    }));
    for name in &expected {
        assert!(refs.lines().any(|line| line == name), "{name} in {refs}");
    }
    assert_eq!(
        refs.lines().count(),
        expected.len() + 1,
        "and the config: {refs}"
    );

    let suid = std::fs::metadata(host.path(&format!("{C}/web.0/rootfs/bin/suid"))).unwrap();
    assert_eq!(suid.permissions().mode() & 0o7777, 0o4755);
    host.ok("useradd -m someone");
    for path in [
        format!("{C}/web.0/info"),
        format!("{C}/web.0/config.json"),
        format!("{C}/web.0/rootfs/bin/suid"),
        format!("{repo}/config"),
    ] {
        let refused = host.run(&format!(
            "setpriv --reuid someone --regid someone --clear-groups cat {path}"
        ));
        assert_ne!(refused.code(), 0, "{path}");
        assert!(
            refused.err().contains("Permission denied"),
            "{}",
            refused.err()
        );
    }
    for file in ["info", "config.json"] {
        let mode = std::fs::metadata(host.path(&format!("{C}/web.0/{file}")))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let find = host.run("setpriv --reuid someone --regid someone --clear-groups find / -xdev -perm -4000 -path *suid");
    assert_eq!(find.out(), "");
    // Somebody else sees their own containers, of which there are none.
    let list = host.run(
        "setpriv --reuid someone --regid someone --clear-groups env HOME=/tmp/someone atomic-rs containers list --all --json",
    );
    assert_eq!(
        (list.code(), list.out().as_str()),
        (0, "[]\n"),
        "{}",
        list.err()
    );
}

#[test]
fn writes_go_where_the_person_said() {
    let registry = Registry::start();
    let host = Host::boot();
    let script = "echo more >> /etc/mine; wc -l < /etc/mine; cat /data/seen 2>/dev/null; echo old > /data/seen; touch /bin/x 2>&1; \
                  trap 'exit 0' TERM; while :; do sleep 0.1; done";
    Image::new()
        .layer(Layer::new().busybox().owned_dir("data", 0o750, 1234))
        .set("Entrypoint", json!(["/bin/sh", "-c", script]))
        .set("Volumes", json!({"/data": {}}))
        .push(&registry, "writer");
    // The host's root is an overlay, which cannot carry another one's upper layer.
    host.sh("mkdir /var/lib/keeps && mount -t tmpfs tmpfs /var/lib/keeps");
    let reference = registry.name("writer");
    // What it has said, once it has said it `times` times: the last word is the refused write.
    let lines = |name: &str, times: usize| {
        let start = std::time::Instant::now();
        loop {
            let log = host.ok(&format!(
                "journalctl --no-pager --output=cat -u {name} SYSLOG_IDENTIFIER={name}"
            ));
            if log.matches("/bin/x").count() >= times || start.elapsed().as_secs() > 10 {
                return log;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    };

    host.atomic_ok(&format!("install --name brief {reference}"));
    host.ok("systemctl start brief");
    lines("brief", 1);
    host.ok("systemctl restart brief");
    let log = lines("brief", 2);
    assert_eq!(
        log.matches("1\n").count(),
        2,
        "writes to /etc are gone after a stop: {log}"
    );
    assert!(log.contains("old"), "a volume keeps its data: {log}");
    assert!(log.contains("Read-only file system"), "{log}");

    host.atomic_ok(&format!(
        "install --name keeps --writable=persist {reference}"
    ));
    host.ok("systemctl start keeps");
    lines("keeps", 1);
    host.ok("systemctl restart keeps");
    assert!(lines("keeps", 2).contains("2\n"), "{}", lines("keeps", 2));
    let stat = host.ok("stat -c %a:%u /var/lib/keeps/volumes/data");
    assert_eq!(
        stat, "750:1234\n",
        "a volume has the image's owner and mode"
    );

    host.atomic_ok(&format!(
        "install --name never --read-only --volume /srv:/mnt/host:ro {reference}"
    ));
    host.ok("systemctl start never");
    assert!(
        lines("never", 1).contains("can't create /etc/mine"),
        "{}",
        lines("never", 1)
    );
    assert!(!host.exists(&format!("{C}/never.0/rootfs/etc/mine")));

    // Nothing reached the store.
    host.ok(&format!("ostree fsck --quiet --repo={C}/.storage/ostree"));
    let output = host.atomic("uninstall keeps");
    assert!(
        output.err().contains("/var/lib/keeps/volumes")
            && output.err().contains("/var/lib/keeps/writable"),
        "{}",
        output.err()
    );
    assert!(host.exists("/var/lib/keeps/volumes/data/seen"));
    let output = host.atomic("uninstall --purge brief");
    assert_eq!((output.code(), output.err().as_str()), (0, ""));
    assert!(!host.exists("/var/lib/brief"));
}

#[test]
fn options_of_install_reach_the_container_and_survive_an_update() {
    let registry = Registry::start();
    let host = Host::boot();
    let push = |n: &str| {
        Image::new()
            .layer(Layer::new().busybox().file("version", 0o644, n))
            .set("Entrypoint", json!(["/bin/sh"]))
            .set("Cmd", json!(["-c", "echo default"]))
            .set("Env", json!(["A=image", "B=image"]))
            .push(&registry, "opts");
    };
    push("1");
    host.sh("echo 'B=file' > /root/env");
    let script =
        "id -u; id -g; echo $A $B $C; grep Cap /proc/self/status; while :; do sleep 1; done";
    let output = host
        .command("atomic-rs")
        .args([
            "install",
            "--name=opts",
            "--user=web",
            "--env=C=call",
            "--env-file=/root/env",
        ])
        .args([
            "--cap-add=sys_time",
            "--cap-drop=CHOWN",
            "--stop-timeout=1",
            "--runtime=/usr/sbin/runc",
        ])
        .arg(registry.name("opts"))
        .args(["-c", script])
        .output()
        .unwrap();
    assert_eq!(output.code(), 0, "{}", output.err());
    push("2");
    for _ in 0..2 {
        host.ok("systemctl restart opts");
        let start = std::time::Instant::now();
        loop {
            let log = host.ok("journalctl --no-pager --output=cat -u opts SYSLOG_IDENTIFIER=opts");
            if log.contains("CapBnd") {
                assert!(log.contains("1234\n1234\nimage file call\n"), "{log}");
                let bounding = log
                    .lines()
                    .find_map(|line| line.strip_prefix("CapBnd:\t"))
                    .unwrap();
                let bounding = u64::from_str_radix(bounding, 16).unwrap();
                assert_eq!(bounding & 1, 0, "CAP_CHOWN is dropped");
                assert_ne!(bounding & (1 << 25), 0, "CAP_SYS_TIME is added");
                break;
            }
            assert!(start.elapsed().as_secs() < 10, "{log}");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let seccomp = host.read(&format!("{C}/opts/config.json"));
        assert!(
            seccomp.contains("\"defaultAction\": \"SCMP_ACT_ERRNO\""),
            "the distribution's profile"
        );
        host.atomic("update opts");
        host.sh("journalctl --rotate; journalctl --vacuum-time=1s");
    }
    assert_eq!(host.read(&format!("{C}/opts/rootfs/version")), "2");
}

#[test]
fn a_dry_run_says_what_would_happen_and_changes_nothing() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    images::plain(port, "one").push(&registry, "web");
    let reference = registry.name("web");
    host.atomic_ok(&format!("pull {reference}"));
    let before = host.listing(&["/etc", C]);
    let output = host.atomic(&format!("install --dry-run --name web {reference}"));
    assert_eq!(output.code(), 3, "{}", output.err());
    assert!(
        output
            .out()
            .contains("create /etc/systemd/system/web.service"),
        "{}",
        output.out()
    );
    let output = host.atomic(&format!("install --display --json --name web {reference}"));
    assert_eq!(output.code(), 0);
    let plan: Value = serde_json::from_str(&output.out()).unwrap();
    assert_eq!(plan["verb"], "install");
    host.assert_unchanged(&["/etc", C], &before);
    host.atomic_ok(&format!("install --name web {reference}"));
    let before = host.listing(&["/etc", C]);
    assert_eq!(host.atomic("update --dry-run web").code(), 0);
    assert_eq!(host.atomic("uninstall --dry-run web").code(), 3);
    assert_eq!(host.atomic("uninstall --display web").code(), 0);
    host.assert_unchanged(&["/etc", C], &before);
}

#[test]
fn a_remote_rootfs_is_used_in_place_and_survives() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    images::plain(port, "remote").push(&registry, "web");
    let reference = registry.name("web");
    host.atomic_ok(&format!("install --name web {reference}"));
    host.atomic_ok(&format!(
        "install --name remote --rootfs={C}/web.0 {reference}"
    ));
    assert_eq!(
        host.ok(&format!("readlink {C}/remote.0/rootfs")),
        format!("{C}/web.0/rootfs\n")
    );
    host.ok("systemctl start remote");
    wait_for_answer(port, "remote");
    host.atomic_ok("uninstall remote");
    assert!(host.exists(&format!("{C}/web.0/rootfs/srv/index.html")));
    let output = host.atomic(&format!("install --name bad --rootfs=/etc {reference}"));
    assert_eq!(output.code(), 1);
    assert!(
        output.err().contains("does not contain a rootfs"),
        "{}",
        output.err()
    );
}

#[test]
fn images_are_listed_deleted_and_pruned_without_hurting_containers() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    let written = images::plain(port, "used").push(&registry, "used");
    Image::new()
        .layer(Layer::new().file("only-here", 0o644, "unused content"))
        .push(&registry, "cafe:12");
    let used = registry.name("used");
    host.atomic_ok(&format!("install --name used {used}"));
    host.atomic_ok(&format!("pull {}", registry.name("cafe:12")));
    // A second pull fetches nothing.
    let again = host.atomic(&format!("pull {used}"));
    assert_eq!(again.code(), 0);
    assert!(!again.err().contains("Pulling layer"), "{}", again.err());

    let list = host.atomic_ok("images list");
    let row = list.lines().find(|line| line.contains("/used")).unwrap();
    assert!(row.starts_with(">  127.0.0.1"), "{row}");
    assert!(row.contains(&written.id()[..12]), "{row}");
    assert!(
        list.contains("/cafe"),
        "a name that looks hexadecimal is listed: {list}"
    );
    assert!(!list.contains("<none>"));
    assert!(host.atomic_ok("images list --all").contains("<none>"));
    assert!(
        host.atomic_ok("images list -q")
            .contains(&written.id()[..12])
    );
    let json: Value =
        serde_json::from_str(&host.atomic_ok("images list --json -f repo=CAFE")).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 1);
    assert_eq!(json[0]["tag"], "12");
    assert_eq!(host.atomic("images list -f nope=1").code(), 2);

    let inspect: Value = serde_json::from_str(&host.atomic_ok("inspect used")).unwrap();
    assert_eq!(inspect["kind"], "container");
    assert_eq!(inspect["deployments"][0]["image_id"], written.id());
    let inspect: Value =
        serde_json::from_str(&host.atomic_ok(&format!("inspect {}", &written.id()[..12]))).unwrap();
    assert_eq!(inspect["kind"], "image");

    let refused = host.atomic(
        "-y images delete "
            .to_owned()
            .as_str()
            .trim()
            .to_owned()
            .as_str(),
    );
    assert_eq!(refused.code(), 2);
    let name = used.trim_start_matches("http:");
    let refused = host.atomic(&format!("-y images delete {name}"));
    assert_eq!(refused.code(), 1);
    assert!(
        refused.err().contains("a container was made from"),
        "{}",
        refused.err()
    );
    // Without a terminal and without -y the answer is no.
    assert_eq!(host.atomic("images delete --all --force").code(), 2);
    host.atomic_ok(&format!("-y images delete --force {name}"));
    host.atomic_ok("-y images delete --all");
    assert_eq!(host.atomic_ok("images list"), "");
    let pruned = host.atomic_ok("images prune");
    assert!(pruned.contains("Deleting ociimage/"), "{pruned}");
    assert!(
        !pruned.contains(&written.layers[0][7..]),
        "what a deployment needs stays: {pruned}"
    );
    host.ok("systemctl start used");
    wait_for_answer(port, "used");
    // Even a change of variables still works from the pinned image.
    host.ok(&format!("ostree fsck --quiet --repo={C}/.storage/ostree"));
    host.atomic_ok("uninstall used");
    host.atomic_ok("images prune");
    assert_eq!(
        host.ok(&format!("ostree refs --repo={C}/.storage/ostree")),
        ""
    );
    let objects = host.sh(&format!("find {C}/.storage/ostree/objects -type f | wc -l"));
    assert_eq!(objects.out().trim(), "0");
}

#[test]
fn containers_are_deleted_by_list_and_a_broken_one_hides_no_other() {
    let registry = Registry::start();
    let host = Host::boot();
    images::plain(free_port(), "x").push(&registry, "web");
    let reference = registry.name("web");
    host.atomic_ok(&format!("install --name good {reference}"));
    host.atomic_ok(&format!("install --name broken {reference}"));
    std::fs::write(host.path(&format!("{C}/broken.0/info")), "{").unwrap();
    let list = host.atomic("containers list -a");
    assert_eq!(list.code(), 0);
    assert!(
        list.out().contains("good") && list.out().contains("broken"),
        "{}",
        list.out()
    );
    assert!(list.err().contains("info is not valid"), "{}", list.err());
    let rows: Value =
        serde_json::from_str(&host.atomic_ok("containers list -a --json -f state=broken")).unwrap();
    assert_eq!(rows[0]["name"], "broken");
    assert_eq!(
        host.atomic_ok("containers list --json -f container=idonotexist"),
        "[]\n"
    );
    assert_eq!(host.atomic_ok("containers list -aq"), "broken\ngood\n");
    let out = host.atomic_ok("-y containers delete broken");
    assert!(
        out.contains("The following containers will be deleted."),
        "{out}"
    );
    assert_eq!(
        host.atomic("containers delete good").code(),
        2,
        "no confirmation is a refusal"
    );
    assert_eq!(host.atomic("containers delete").code(), 2);
    host.atomic_ok("-y containers delete --all");
    assert_eq!(host.atomic_ok("containers list -a"), "");
}

#[test]
fn a_repository_in_the_old_format_is_listed_and_installed_from() {
    let host = Host::boot();
    let port = free_port();
    let script = r#"
set -e
export R=/var/lib/containers/atomic/.storage/ostree
mkdir -p $R; ostree init --repo=$R --mode=bare
cd $(mktemp -d)
mkdir -p base/bin base/etc top/srv top/exports top/bin top/tmp
cp /bin/busybox base/bin/busybox; for a in sh httpd; do ln -s busybox base/bin/$a; done
echo root:x:0:0:root:/root:/bin/sh > base/etc/passwd
echo gone > base/etc/gone; mkdir top/etc; : > top/etc/.wh.gone
echo from-old-store > top/srv/index.html
L1=$(echo base | sha256sum | cut -c1-64); L2=$(echo top | sha256sum | cut -c1-64); CFG=$(echo cfg | sha256sum | cut -c1-64)
commit() { ostree commit --repo=$R --owner-uid=0 --owner-gid=0 --branch=$1 --tree=dir=$2 "${@:3}" >/dev/null; }
commit ociimage/$L1 base --add-metadata-string=docker.size=100 --add-metadata-string=docker.uncompressed_size=200 --add-metadata-string=docker.uncompressed_digest=sha256:$L1
commit ociimage/$L2 top --add-metadata-string=docker.size=10 --add-metadata-string=docker.uncompressed_size=20 --add-metadata-string=docker.uncompressed_digest=sha256:$L2
mkdir cfg; printf '{"config":{"Entrypoint":["/bin/sh","-c","trap \\"kill $!; exit 0\\" TERM; httpd -f -p %s -h /srv & wait"],"Labels":{"Name":"old"}}}' PORT > cfg/content
commit ociimage/$CFG cfg --add-metadata-string=docker.size=5
mkdir m; M="{\"schemaVersion\":2,\"mediaType\":\"application/vnd.docker.distribution.manifest.v2+json\",\"config\":{\"digest\":\"sha256:$CFG\",\"size\":5},\"layers\":[{\"digest\":\"sha256:$L1\",\"size\":100},{\"digest\":\"sha256:$L2\",\"size\":10}]}"
printf %s "$M" > m/manifest.json
commit ociimage/docker.io_2Fold_3Alatest m "--add-metadata-string=docker.manifest=$M" --add-metadata-string=docker.digest=sha256:$(printf %s "$M" | sha256sum | cut -c1-64) --add-metadata-string=signatures=0
"#;
    let made = host.sh(&script.replace("PORT", &port.to_string()));
    assert_eq!(made.code(), 0, "{}", made.err());
    let list = host.atomic_ok("images list");
    assert!(list.contains("docker.io/old"), "{list}");
    host.atomic_ok("install --system --name old docker.io/old");
    assert!(
        !host.exists(&format!("{C}/old.0/rootfs/etc/gone")),
        "whiteouts are applied"
    );
    host.ok("systemctl start old");
    wait_for_answer(port, "from-old-store");
    host.ok(&format!("ostree fsck --quiet --repo={C}/.storage/ostree"));
}

#[test]
fn seventy_thousand_identical_files_are_deployed() {
    let registry = Registry::start();
    let host = Host::boot();
    let mut layer = Layer::new().busybox();
    for i in 0..70_000 {
        layer = layer.file(&format!("many/{}/{i}", i / 1000), 0o644, "the same");
    }
    Image::new()
        .layer(layer)
        .set("Entrypoint", json!(["/bin/sleep", "100"]))
        .push(&registry, "many");
    host.atomic_ok(&format!("install --name many {}", registry.name("many")));
    let count = host.sh(&format!("find {C}/many/rootfs/many -type f | wc -l"));
    assert_eq!(count.out().trim(), "70000");
    let links = host.sh(&format!(
        "find {C}/many/rootfs/many -type f -printf '%n\\n' | sort -n | tail -1"
    ));
    assert!(
        links.out().trim().parse::<u32>().unwrap() > 60_000,
        "{}",
        links.out()
    );
    assert_eq!(
        host.read(&format!("{C}/many/rootfs/many/69/69999")),
        "the same"
    );
    host.ok("systemctl start many");
    host.atomic_ok("uninstall many");
}

#[test]
fn the_registry_is_asked_with_credentials_and_the_policy_is_obeyed() {
    let registry = Registry::with_password("me", "secret-word");
    let host = Host::boot();
    images::plain(free_port(), "x").push_with(&registry, "web", &["--dest-creds=me:secret-word"]);
    let reference = registry.name("web");
    let refused = host.atomic(&format!("pull {reference}"));
    assert_eq!(refused.code(), 1);
    assert!(
        refused.err().contains("refused the credentials"),
        "{}",
        refused.err()
    );
    let wrong = host.atomic(&format!("pull --creds me:wrong {reference}"));
    assert_eq!(wrong.code(), 1);
    assert!(
        wrong.err().contains("refused the credentials"),
        "{}",
        wrong.err()
    );
    assert!(!wrong.err().contains("wrong "), "no password is shown");
    host.atomic_ok(&format!("pull --creds me:secret-word {reference}"));
    assert_eq!(
        host.sh("ls /run /tmp | grep -c atomic-rs-auth").out(),
        "0\n",
        "no credentials are left"
    );

    // A policy that rejects stops a pull although skopeo's proxy would not.
    let other = Registry::start();
    images::plain(free_port(), "y").push(&other, "web");
    std::fs::write(
        host.path("/etc/containers/policy.json"),
        json!({"default": [{"type": "insecureAcceptAnything"}],
               "transports": {"docker": {other.address(): [{"type": "reject"}]}}})
        .to_string(),
    )
    .unwrap();
    let rejected = host.atomic(&format!("pull {}", other.name("web")));
    assert_eq!(rejected.code(), 1);
    assert!(
        rejected.err().contains("rejected by the signature policy"),
        "{}",
        rejected.err()
    );
    assert!(!host.atomic_ok("images list").contains(&other.address()));
    // What the policy accepts still comes, without fetching layers twice.
    host.atomic_ok("-y images delete --all");
    host.atomic_ok("images prune");
    host.atomic_ok(&format!("pull --creds me:secret-word {reference}"));
    std::fs::remove_file(host.path("/etc/containers/policy.json")).unwrap();
    let closed = host.atomic(&format!("pull {}", other.name("web")));
    assert_eq!(closed.code(), 1, "no policy means no");
}

#[test]
fn archives_layouts_and_dockers_manifests_are_pulled_alike() {
    let registry = Registry::start();
    let host = Host::boot();
    let image = || images::plain(8080, "x");
    let shared = host.path("/root");
    image().docker_archive(&shared.join("saved"), "team/app:7");
    let (scratch, layout, written) = images::layout(image());
    support::must(
        Command::new("cp")
            .arg("-r")
            .arg(&layout)
            .arg(shared.join("layout")),
    );
    support::must(
        Command::new("tar")
            .arg("-C")
            .arg(&layout)
            .arg("-cf")
            .arg(shared.join("layout.tar"))
            .arg("."),
    );
    drop(scratch);
    let out = host.atomic_ok("pull dockertar:/root/saved");
    assert!(out.starts_with("docker.io/team/app:7 sha256:"), "{out}");
    let out = host.atomic_ok("pull oci:/root/layout");
    assert_eq!(out.trim(), format!("layout:latest {}", written.digest));
    let out = host.atomic_ok("pull oci-archive:/root/layout.tar");
    assert_eq!(out.trim(), format!("layout:latest {}", written.digest));
    assert_eq!(
        host.sh("ls -d /var/tmp/oci* 2>/dev/null").out(),
        "",
        "skopeo puts its copy away"
    );
    // docker's schema2 keeps its own digest: the stored manifest is the registry's, byte for byte.
    image().push_with(&registry, "v2", &["--format=v2s2"]);
    let raw = support::must(
        Command::new("skopeo")
            .args(["inspect", "--raw", "--tls-verify=false"])
            .arg(format!("docker://{}/v2", registry.address())),
    );
    let out = host.atomic_ok(&format!("pull {}", registry.name("v2")));
    assert!(
        out.trim().ends_with(&images::sha256(raw.as_bytes())),
        "{out}"
    );
    // A digest reference is found again by that digest.
    let pinned = format!("{}@{}", registry.name("v2"), images::sha256(raw.as_bytes()));
    host.atomic_ok(&format!("pull {pinned}"));
    host.atomic_ok(&format!("install --name pinned {pinned}"));
    host.atomic_ok("update pinned");
}

#[test]
fn an_index_gives_the_image_for_this_machine_and_mirrors_are_honoured() {
    let registry = Registry::start();
    let host = Host::boot();
    let [other, ours] = ["s390x", "amd64"].map(|architecture| {
        Image::new()
            .architecture(architecture)
            .layer(Layer::new().file("text", 0o644, architecture))
            .push(&registry, &format!("multi:{architecture}"))
    });
    registry.put_index("multi", "latest", &[("s390x", &other), ("amd64", &ours)]);
    let digest = |out: String| out.trim().rsplit_once(' ').unwrap().1.to_owned();
    let pulled = digest(host.atomic_ok(&format!("pull {}", registry.name("multi"))));
    assert_eq!(
        pulled, ours.digest,
        "the image's own digest, not the index's"
    );

    // registries.conf is skopeo's business, and skopeo is asked for everything.
    std::fs::create_dir_all(host.path("/etc/containers/registries.conf.d")).unwrap();
    std::fs::write(
        host.path("/etc/containers/registries.conf.d/mirror.conf"),
        format!(
            "[[registry]]\nlocation = \"registry.example\"\n[[registry.mirror]]\nlocation = \"{}\"\ninsecure = true\n",
            registry.address()
        ),
    )
    .unwrap();
    let out = host.atomic_ok("pull registry.example/multi");
    assert_eq!(
        out.trim(),
        format!("registry.example/multi:latest {pulled}")
    );
}

#[test]
fn images_that_want_more_than_a_service_are_told_apart() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    images::hostfs().push(&registry, "hostfs");
    images::runonce().push(&registry, "runonce");
    // Labels may be null; docker writes that.
    Image::new()
        .layer(Layer::new().busybox())
        .set("Labels", Value::Null)
        .set("Cmd", json!(["sleep", "100"]))
        .push(&registry, "null");
    let output = host.atomic(&format!(
        "install --name hostfs --set PORT={port} {}",
        registry.name("hostfs")
    ));
    assert_eq!(output.code(), 0, "{}", output.err());
    assert!(host.exists("/usr/local/lib/secret-message"));
    host.ok("systemctl start hostfs");
    wait_for_answer(port, "Hi World");
    host.atomic_ok(&format!("install --name null {}", registry.name("null")));
    assert!(host.atomic_ok("images list").contains("/null"));
}

#[test]
fn what_belongs_to_others_is_neither_used_nor_shadowed_nor_deleted() {
    let registry = Registry::start();
    let host = Host::boot();
    images::cache(free_port(), "x").push(&registry, "cache");
    let reference = registry.name("cache");
    // Data of another program under the directory that would be ours.
    host.sh("mkdir -p /var/lib/taken && echo precious > /var/lib/taken/data");
    let output = host.atomic(&format!("install --name taken {reference}"));
    assert_eq!(output.code(), 1);
    assert!(
        output
            .err()
            .contains("/var/lib/taken, which belongs to something else"),
        "{}",
        output.err()
    );
    // Our own, left by an uninstallation, is used again.
    host.atomic_ok(&format!("install --name mine {reference}"));
    host.sh("echo mine > /var/lib/mine/volumes/data/file");
    host.atomic_ok("uninstall mine");
    host.atomic_ok(&format!("install --name mine {reference}"));
    assert_eq!(host.read("/var/lib/mine/volumes/data/file"), "mine\n");
    // A unit the distribution ships.
    let output = host.atomic(&format!("install --name systemd-journald {reference}"));
    assert_eq!(output.code(), 1);
    assert!(
        output.err().contains("already exists on this host"),
        "{}",
        output.err()
    );
    // Something an administrator mounted into a deployment is not deleted with it.
    host.sh(&format!("mkdir /root/mounted && echo keep > /root/mounted/me && mount --bind /root/mounted {C}/mine.0/rootfs/tmp"));
    let output = host.atomic("uninstall --purge mine");
    assert_eq!(output.code(), 1);
    assert!(
        output.err().contains("unmount it first"),
        "{}",
        output.err()
    );
    assert_eq!(host.read("/root/mounted/me"), "keep\n");
    host.sh(&format!("umount {C}/.mine.0.old-*/rootfs/tmp"));
    let output = host.atomic("recover");
    assert!(
        output
            .out()
            .contains("the interrupted uninstall of mine was completed"),
        "{}{}",
        output.out(),
        output.err()
    );
    assert!(!host.exists("/var/lib/mine"));
    assert_eq!(host.read("/root/mounted/me"), "keep\n");
}

#[test]
fn volumes_within_volumes_cannot_lead_the_host_astray() {
    let registry = Registry::start();
    let host = Host::boot();
    // At its first start the container turns the way to its inner volume into a link to the host.
    let script = "if [ -e /data/evil ]; then sleep 100; fi; touch /data/evil; rm -rf /data/x 2>/dev/null; mv /data/x /data/y; ln -s /etc /data/x; exit 1";
    Image::new()
        .layer(
            Layer::new()
                .busybox()
                .dir("data", 0o755)
                .dir("data/x", 0o755)
                .dir("data/x/systemd", 0o755),
        )
        .set("Entrypoint", json!(["/bin/sh", "-c", script]))
        .set("Volumes", json!({"/data": {}, "/data/x/systemd": {}}))
        .push(&registry, "evil");
    let mode = host.ok("stat -c %a:%Y /etc/systemd");
    host.atomic_ok(&format!(
        "install --name evil --stop-timeout 1 {}",
        registry.name("evil")
    ));
    host.run("systemctl start evil");
    std::thread::sleep(std::time::Duration::from_secs(1));
    let mounts = host.sh("cat /proc/$(systemctl show -P MainPID evil)/mountinfo");
    // The fourth field is what is mounted: never a directory of the host's own.
    let sources: Vec<String> = mounts
        .out()
        .lines()
        .map(|line| line.split(' ').nth(3).unwrap().to_owned())
        .collect();
    assert!(
        sources
            .iter()
            .any(|source| source.starts_with("/var/lib/evil/volumes/")),
        "{sources:?}"
    );
    assert!(
        !sources
            .iter()
            .any(|source| source.starts_with("/etc/systemd")),
        "{sources:?}"
    );
    assert_eq!(host.ok("stat -c %a:%Y /etc/systemd"), mode);
}
