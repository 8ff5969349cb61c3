//! Commands in containers: inside a running one, in a stopped one, in a throwaway deployment.

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::images::{self, Image, Layer};
use support::{Host, Registry, Said as _, free_port, wait_for_answer};

const C: &str = "/var/lib/containers/atomic";

#[test]
fn commands_run_in_running_and_stopped_containers_and_their_status_is_passed_on() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    images::plain(port, "one").push(&registry, "web");
    images::system().push(&registry, "system");
    host.atomic_ok(&format!("install --name web {}", registry.name("web")));
    let other = free_port();
    host.atomic_ok(&format!(
        "install --name system --set PORT={other} {}",
        registry.name("system")
    ));
    for name in ["web", "system"] {
        assert_eq!(host.atomic(&format!("status {name}")).code(), 3);
        let stopped = host.atomic(&format!("exec {name} sh -c exit\u{a0}7").replace('\u{a0}', " "));
        assert_eq!(stopped.code(), 0, "{}", stopped.err());
        let output = host
            .command("atomic-rs")
            .args([
                "exec",
                name,
                "sh",
                "-c",
                "echo stopped in $(pwd) $0; exit 7",
                "me",
            ])
            .output()
            .unwrap();
        assert_eq!(
            (output.code(), output.out().as_str()),
            (7, "stopped in / me\n"),
            "{}",
            output.err()
        );
        // A write in a stopped container never reaches the store.
        let write = host.atomic(&format!("exec {name} touch /bin/new"));
        assert_ne!(write.code(), 0);
        assert_eq!(
            host.atomic(&format!("run --detach {name} echo x")).code(),
            2
        );
    }
    host.atomic_ok("run web");
    wait_for_answer(port, "one");
    assert_eq!(host.atomic("status web").code(), 0);
    let running = host.atomic("run web cat /srv/index.html");
    assert_eq!(
        (running.code(), running.out().as_str()),
        (0, "one"),
        "{}",
        running.err()
    );
    let signal = host
        .command("atomic-rs")
        .args(["exec", "web", "sh", "-c", "kill -9 $$"])
        .output()
        .unwrap();
    assert_eq!(signal.code(), 137);
    let detached = host.atomic("exec --detach web sleep 30");
    assert_eq!(detached.code(), 0, "{}", detached.err());
    let processes = host.atomic_ok("exec web ps");
    assert!(processes.contains("sleep 30"), "{processes}");

    let status: Value = serde_json::from_str(&host.atomic_ok("status web --json")).unwrap();
    assert_eq!(status["state"], "running");
    assert_eq!(host.atomic("status nobody").code(), 4);
    assert!(
        host.atomic_ok("logs web -n 5")
            .contains(&format!("serving {port}"))
    );
    for (words, code) in [
        ("exec nobody true", 1),
        ("logs nobody", 1),
        ("exec web", 2),
        ("run nobody", 1),
    ] {
        assert_eq!(host.atomic(words).code(), code, "{words}");
    }
    let left = host.sh(&format!(
        "ls -A {C}/.run; runc list -q; mount | grep -c overlay-none"
    ));
    assert_eq!(left.out(), "web\n0\n", "only the service is left");
}

#[test]
fn an_image_runs_once_in_a_throwaway_deployment_that_a_kill_does_not_leave() {
    let registry = Registry::start();
    let host = Host::boot();
    images::runonce().push(&registry, "runonce");
    Image::new()
        .layer(Layer::new().busybox().file("data", 0o644, "of the image\n"))
        .set("Cmd", json!(["cat", "/data"]))
        .set("Env", json!(["GREETING=hello"]))
        .push(&registry, "tool");
    let once = host.atomic(&format!(
        "install --system --name Saturn --set RECEIVER=Pluto {}",
        registry.name("runonce")
    ));
    assert_eq!(once.code(), 0, "{}", once.err());
    assert!(
        once.out().contains("HI Pluto from Saturn"),
        "{}",
        once.out()
    );
    for path in [
        format!("{C}/Saturn"),
        format!("{C}/Saturn.0"),
        "/etc/systemd/system/Saturn.service".into(),
    ] {
        assert!(!host.exists(&path), "{path}");
    }
    let tool = registry.name("tool");
    assert_eq!(host.atomic_ok(&format!("run {tool}")), "of the image\n");
    let output = host
        .command("atomic-rs")
        .args([
            "run",
            &tool,
            "sh",
            "-c",
            "echo $GREETING > /data; cat /data; exit 5",
        ])
        .output()
        .unwrap();
    assert_eq!(
        (output.code(), output.out().as_str()),
        (5, "hello\n"),
        "{}",
        output.err()
    );
    // What it wrote is gone, and the store has not seen it.
    assert_eq!(host.atomic_ok(&format!("run {tool}")), "of the image\n");
    let fsck = format!("ostree fsck --quiet --repo={C}/.storage/ostree");
    host.ok(&fsck);
    assert_eq!(host.ok(&format!("ls -A {C}/.run")), "");

    // Killed in the middle: the next command finds nothing of it.
    let mut child = host
        .command("atomic-rs")
        .args(["run", &tool, "sleep", "300"])
        .spawn()
        .unwrap();
    let start = Instant::now();
    while host.run("pidof sleep").code() != 0 {
        assert!(start.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(host.sh("kill -KILL $(pidof atomic-rs)").code(), 0);
    child.wait().unwrap();
    host.atomic_ok("images prune");
    assert_eq!(host.ok(&format!("ls -A {C}/.run")), "");
    assert_eq!(host.ok("runc list -q"), "");
    assert_ne!(host.run("pidof sleep").code(), 0, "it does not run on");
    // ^C reaches the command, and its end is passed on.
    let script =
        format!("atomic-rs run {tool} sleep 300 & sleep 1; kill -INT $!; wait $!; echo code $?");
    let output = host
        .command("bash")
        .args(["-mc", &script])
        .output()
        .unwrap();
    assert!(
        output.out().contains("code 137"),
        "{}{}",
        output.out(),
        output.err()
    );
    assert_eq!(host.ok(&format!("ls -A {C}/.run")), "");
    host.ok(&fsck);
}

#[test]
fn mounts_are_read_only_or_private_and_never_reach_the_store() {
    let registry = Registry::start();
    let host = Host::boot();
    Image::new()
        .layer(
            Layer::new()
                .busybox()
                .file("low", 0o644, "low")
                .file("both", 0o644, "low"),
        )
        .layer(
            Layer::new()
                .file("both", 0o644, "high")
                .whiteout(".", "low"),
        )
        .set("Cmd", json!(["sleep", "100"]))
        .push(&registry, "app");
    let reference = registry.name("app");
    host.atomic_ok(&format!("install --name app {reference}"));
    host.ok("mkdir /mnt/a /mnt/b");
    for source in ["app", reference.as_str()] {
        host.atomic_ok(&format!("mount {source} /mnt/a"));
        assert_eq!(
            host.read("/mnt/a/both"),
            "high",
            "upper layers hide lower ones"
        );
        assert!(!host.exists("/mnt/a/low"), "and whiteouts count");
        let write = host.sh("echo x >> /mnt/a/both");
        assert!(write.err().contains("Read-only"), "{}", write.err());
        assert_eq!(
            host.atomic("mount app /mnt/a").code(),
            1,
            "it is not empty any more"
        );
        host.atomic_ok("unmount /mnt/a");
        assert_eq!(host.ok("ls -A /mnt/a"), "");

        host.atomic_ok(&format!("mount -o rw,nosuid {source} /mnt/b"));
        assert_eq!(
            host.sh("echo mine > /mnt/b/both; rm /mnt/b/bin/sh").code(),
            0
        );
        assert_eq!(host.read("/mnt/b/both"), "mine\n");
        assert!(host.ok("findmnt -n -o OPTIONS /mnt/b").contains("nosuid"));
        host.atomic_ok("umount /mnt/b");
        assert_eq!(host.atomic_ok("verify app"), "");
    }
    for (words, code, text) in [
        ("mount app /mnt/none", 1, "cannot mount on"),
        ("mount --live app /mnt/a", 2, "do not support --live"),
        ("mount -o loop app /mnt/a", 2, "loop"),
        ("unmount /mnt/a", 1, "is not a mount"),
    ] {
        let output = host.atomic(words);
        assert!(
            output.code() == code && output.err().contains(text),
            "{words}: {}",
            output.err()
        );
    }
    // What a reboot ended is swept.
    host.atomic_ok(&format!("mount {reference} /mnt/a"));
    host.ok("umount /mnt/a");
    host.atomic_ok("images prune");
    assert_eq!(host.ok(&format!("ls -A {C}/.mounts")), "");
    host.ok(&format!("ostree fsck --quiet --repo={C}/.storage/ostree"));

    // A user gets a copy.
    host.ok("useradd -m someone");
    let as_user = "setpriv --reuid someone --regid someone --clear-groups env HOME=/home/someone";
    host.ok(&format!("{as_user} mkdir /home/someone/m"));
    host.ok(&format!(
        "{as_user} atomic-rs mount {reference} /home/someone/m"
    ));
    assert_eq!(host.read("/home/someone/m/both"), "high");
    host.sh("echo x >> /home/someone/m/both");
    host.ok(&format!("{as_user} atomic-rs unmount /home/someone/m"));
    assert_eq!(host.ok("ls -A /home/someone/m"), "");
    host.ok(&format!(
        "{as_user} ostree fsck --quiet --repo=/home/someone/.local/share/containers/atomic/repo"
    ));
}
