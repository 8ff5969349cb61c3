//! Updates that prove themselves, and what is remembered of those that did not.

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::images::{self, Image, Layer};
use support::{Host, Registry, Said as _, free_port, http_get, outage, wait_for_answer};

const C: &str = "/var/lib/containers/atomic";

/// A service that runs `script` in place of serving.
fn broken(script: &str) -> Image {
    Image::new()
        .layer(Layer::new().busybox())
        .set("Entrypoint", json!(["/bin/sh", "-c", script]))
}

/// The same as `Type=simple` under a unit of the image's own.
fn broken_simple(script: &str) -> Image {
    let config = json!({
        "ociVersion": "1.0.0",
        "process": {"terminal": false, "user": {"uid": 0, "gid": 0}, "cwd": "/",
                    "args": ["/bin/sh", "-c", script], "env": ["PATH=/bin"]},
        "root": {"path": "rootfs", "readonly": true},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]}
    });
    Image::new().layer(Layer::new().busybox()).layer(
        Layer::new()
            .dir("exports", 0o755)
            .file("exports/config.json", 0o644, config.to_string())
            .file(
                "exports/service.template",
                0o644,
                "[Service]\nType=simple\nExecStart=$EXEC_START\nExecStop=$EXEC_STOP\nWorkingDirectory=$DESTDIR\n\n[Install]\nWantedBy=multi-user.target\n",
            ),
    )
}

fn json_of(host: &Host, words: &str) -> Value {
    serde_json::from_str(&host.atomic_ok(words)).unwrap()
}

/// Update a serving container to something bad: the old version must serve again within the watch
/// and five seconds, and the ledger must know.
fn returns(bad: fn(u16) -> Image, reasons: &[&str]) {
    let tells = |text: &str| reasons.iter().any(|reason| text.contains(reason));
    let name = "web";
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    images::plain(port, "good").push(&registry, name);
    let reference = registry.name(name);
    host.atomic_ok(&format!("install --name {name} {reference}"));
    host.ok(&format!("systemctl start {name}"));
    wait_for_answer(port, "good");

    let written = bad(port).push(&registry, name);
    let watch = 5;
    let begun = Instant::now();
    let output = host.atomic(&format!("update {name} --watch {watch}"));
    wait_for_answer(port, "good");
    let took = begun.elapsed();
    let err = output.err();
    assert_eq!(output.code(), 1, "{err}");
    assert!(tells(&err), "{err}");
    assert!(
        err.contains("is running again") && err.contains("on record as bad"),
        "{err}"
    );
    assert!(took < Duration::from_secs(watch + 5), "{took:?}");
    assert_eq!(
        host.ok(&format!("readlink {C}/{name}")),
        format!("{C}/{name}.0\n")
    );

    let history = json_of(&host, &format!("history {name} --json"));
    let last = history["deployments"].as_array().unwrap().last().unwrap();
    assert_eq!(last["verdict"], "returned", "{history}");
    assert_eq!(last["revision"], written.id());
    assert!(tells(last["reason"].as_str().unwrap()), "{last}");
    assert!(
        host.atomic_ok(&format!("history {name}"))
            .contains("returned")
    );

    // Neither everything nor this one by name is tried again; by force it is.
    let all = host.atomic("update --all");
    assert_eq!(all.code(), 0, "{}", all.err());
    assert!(
        all.err().contains("failed on") && all.out().contains("Skipped"),
        "{}",
        all.err()
    );
    let again = host.atomic(&format!("update {name}"));
    assert!(
        again.code() == 1 && again.err().contains("--force"),
        "{}",
        again.err()
    );
    assert!(http_get(port).is_some());
    // A good version after it is deployed.
    images::plain(port, "better").push(&registry, name);
    let output = host.atomic_ok(&format!("update {name} --watch 1"));
    assert!(output.contains("outage: "), "{output}");
    wait_for_answer(port, "better");
}

#[test]
fn an_update_whose_process_ends_at_once_returns() {
    // It is a race whether systemd still sees it start. Once the start was ended by nothing but the watch;
    // presumably systemd was waiting for another PID file, which was not traced.
    returns(
        |_| broken("echo dying; exit 3"),
        &[
            "did not stay",
            "could not start web.service",
            "did not start within 5 seconds",
        ],
    );
}

#[test]
fn an_update_that_dies_after_three_seconds_returns() {
    returns(
        |_| broken_simple("echo here; sleep 3; exit 1"),
        &["did not stay"],
    );
}

#[test]
fn an_update_that_restarts_in_a_loop_returns() {
    returns(|_| broken("sleep 0.5; exit 1"), &["did not stay"]);
}

#[test]
fn an_update_whose_health_command_fails_returns() {
    returns(
        |port| {
            images::plain(port, "sick").set(
                "Healthcheck",
                json!({"Test": ["CMD-SHELL", "echo not well; exit 1"], "Timeout": 1_000_000_000}),
            )
        },
        &["not healthy after 5 seconds: the health command ended with exit status: 1: not well"],
    );
}

#[test]
fn an_update_that_hangs_at_start_returns() {
    returns(
        // It asks for Type=notify, says nothing and does not hear SIGTERM.
        |_| {
            broken("trap '' TERM; while :; do sleep 1; done")
                .set("Labels", json!({"atomic.service.type": "notify"}))
        },
        &["did not start within 5 seconds"],
    );
}

#[test]
fn a_health_command_of_the_persons_decides_and_is_kept() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    let reference = registry.name("web");
    images::plain(port, "one").push(&registry, "web");
    let install = host
        .command("atomic-rs")
        .args(["install", "--name=web", "--health-cmd"])
        .arg(format!(
            "wget -q -O - http://127.0.0.1:{port}/ | grep -v bad"
        ))
        .arg(&reference)
        .output()
        .unwrap();
    assert_eq!(install.code(), 0, "{}", install.err());
    host.ok("systemctl start web");
    wait_for_answer(port, "one");
    images::plain(port, "two").push(&registry, "web");
    host.atomic_ok("update web");
    wait_for_answer(port, "two");
    images::plain(port, "bad").push(&registry, "web");
    let output = host.atomic("update web");
    assert_eq!(output.code(), 1);
    assert!(output.err().contains("health command"), "{}", output.err());
    wait_for_answer(port, "two");
    // New settings that fail say nothing about the image: others may be tried at once.
    let output = host.atomic("update web --health-cmd false");
    assert_eq!(output.code(), 1, "{}", output.err());
    assert!(
        !output.err().contains("on record as bad"),
        "{}",
        output.err()
    );
    wait_for_answer(port, "two");
}

#[test]
fn a_person_who_presses_control_c_in_the_watch_gets_the_old_version_back() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    images::plain(port, "one").push(&registry, "web");
    host.atomic_ok(&format!("install --name web {}", registry.name("web")));
    host.ok("systemctl start web");
    wait_for_answer(port, "one");
    images::plain(port, "two").push(&registry, "web");
    let mut child = host
        .command("atomic-rs")
        .args(["update", "web", "--watch", "60"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_answer(port, "two");
    host.sh("kill -INT $(pidof atomic-rs)");
    let code = child.wait().unwrap().code();
    assert_eq!(code, Some(130));
    wait_for_answer(port, "one");
    let history = json_of(&host, "history web --json");
    let last = history["deployments"].as_array().unwrap().last().unwrap();
    assert_eq!(last["verdict"], "interrupted");
    host.atomic_ok("update web");
    wait_for_answer(port, "two");
}

#[test]
fn what_is_pinned_or_rolled_back_from_stays_where_it_is() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    let reference = registry.name("web");
    let first = images::plain(port, "one").push(&registry, "web");
    host.atomic_ok(&format!("install --name web --auto-update {reference}"));
    host.ok("systemctl start web");
    wait_for_answer(port, "one");
    host.atomic_ok("pin web");
    images::plain(port, "two").push(&registry, "web");
    host.atomic_ok(&format!("pull {reference}"));
    assert!(host.atomic_ok("update web").contains(first.id()));
    let all = host.atomic("update --all");
    assert!(
        all.err().contains("unpin") && all.out().contains("Skipped"),
        "{}",
        all.err()
    );
    wait_for_answer(port, "one");
    // New settings do not move a pinned container to another image.
    host.atomic_ok("update web --set ANY=thing");
    wait_for_answer(port, "one");
    host.atomic_ok("unpin web");
    let auto = host.atomic("auto-update");
    assert!(
        auto.code() == 0 && auto.out().contains("Updated now"),
        "{}{}",
        auto.out(),
        auto.err()
    );
    wait_for_answer(port, "two");
    host.atomic_ok("rollback web");
    wait_for_answer(port, "one");
    let auto = host.atomic("auto-update");
    assert!(auto.err().contains("rolled back from"), "{}", auto.err());
    wait_for_answer(port, "one");
    host.atomic_ok("update web");
    wait_for_answer(port, "two");

    // Who opts out is left alone, and outside its window nothing is touched.
    images::plain(port, "three").push(&registry, "web");
    host.atomic_ok("auto-update --disable web");
    assert!(host.atomic_ok("auto-update").contains("no container"));
    host.atomic_ok("auto-update --enable web");
    let minute = host.ok("date +%-H:%-M");
    let hour: u32 = minute.split(':').next().unwrap().parse().unwrap();
    let (from, to) = ((hour + 2) % 24, (hour + 3) % 24);
    host.sh(&format!(
        "printf 'watch = 1\\nupdate_window = \"{from:02}:00-{to:02}:00\"\\n' > /etc/atomic-rs.toml"
    ));
    assert!(
        host.atomic_ok("auto-update")
            .contains("outside the maintenance window")
    );
    wait_for_answer(port, "two");
    host.atomic_ok("auto-update --now");
    wait_for_answer(port, "three");
}

#[test]
fn one_bad_container_does_not_stop_the_update_of_the_rest() {
    let registry = Registry::start();
    let host = Host::boot();
    let ports: Vec<u16> = (0..3).map(|_| free_port()).collect();
    for (index, port) in ports.iter().enumerate() {
        let name = format!("c{index}");
        images::plain(*port, "one").push(&registry, &name);
        host.atomic_ok(&format!("install --name {name} {}", registry.name(&name)));
        host.ok(&format!("systemctl start {name}"));
        wait_for_answer(*port, "one");
    }
    broken("exit 1").push(&registry, "c0");
    images::plain(ports[2], "two").push(&registry, "c2");
    std::fs::write(host.path(&format!("{C}/c1.0/info")), "{").unwrap();
    let dry = host.atomic("update --all --dry-run --json");
    assert_eq!(dry.code(), 1, "one of them cannot be read");
    let dry: Value = serde_json::from_str(&dry.out()).unwrap();
    assert_eq!(dry["containers"].as_array().unwrap().len(), 3);
    assert!(
        !host
            .atomic("update --all --no-pull")
            .out()
            .contains("Updated now")
    );
    let output = host.atomic("update --all");
    assert_eq!(output.code(), 1);
    assert!(output.out().contains("SUMMARY"), "{}", output.out());
    let status = |name: &str| {
        let text = output.out();
        text.lines()
            .rev()
            .find(|line| line.starts_with(name))
            .unwrap()
            .to_owned()
    };
    assert!(status("c0").ends_with("Failed"), "{}", output.out());
    assert!(status("c1").ends_with("Failed"), "{}", output.out());
    assert!(status("c2").ends_with("Updated now"), "{}", output.out());
    wait_for_answer(ports[0], "one");
    wait_for_answer(ports[1], "one");
    wait_for_answer(ports[2], "two");
    for wrong in [
        "update --all c0",
        "update --all --set A=b",
        "update --all --rebase x",
        "update",
    ] {
        assert_eq!(host.atomic(wrong).code(), 2, "{wrong}");
    }
}

#[test]
fn a_plan_is_printed_before_anything_is_downloaded_and_is_what_happens() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    let reference = registry.name("web");
    images::plain(port, "one").push(&registry, "web");
    host.atomic_ok(&format!("install --name web {reference}"));
    host.ok("systemctl start web");
    wait_for_answer(port, "one");
    images::plain(port, "two")
        .set("Env", json!(["MODE=new"]))
        .set("ExposedPorts", json!({"9999/tcp": {}}))
        .push(&registry, "web");
    let places = ["/etc", C, "/run/systemd/system"];
    let before = host.listing(&places);
    let dry = host.atomic("update web --dry-run --json");
    assert_eq!(dry.code(), 3, "{}", dry.err());
    let told: Value = serde_json::from_str(&dry.out()).unwrap();
    host.assert_unchanged(&places, &before);
    let effects = &told["effects"];
    assert_eq!(
        effects["fetch"]["layers"].as_array().unwrap().len(),
        1,
        "{told}"
    );
    assert!(effects["fetch"]["free_bytes"].as_u64().unwrap() > 0);
    assert_eq!(effects["environment"]["added"], json!(["MODE"]));
    assert_eq!(effects["ports"]["added"], json!(["9999/tcp"]));
    assert_eq!(effects["complete"], false);
    let text = host.atomic("update web --display");
    assert_eq!(text.code(), 0);
    assert!(
        text.out().contains("fetch: 1 layers") && text.out().contains("environment: +MODE"),
        "{}",
        text.out()
    );

    let done: Value = serde_json::from_str(&host.atomic_ok("update web --json")).unwrap();
    assert_eq!(
        done["steps"], told["steps"],
        "what was printed is what happened"
    );
    assert!(done["result"]["outage_ms"].as_u64().is_some(), "{done}");
    assert_eq!(done["effects"]["to_image"], told["effects"]["to_image"]);
    wait_for_answer(port, "two");
    let nothing: Value =
        serde_json::from_str(&host.atomic_ok("update web --dry-run --json")).unwrap();
    assert_eq!(nothing["changes"], false);

    // The same for an installation.
    let other = registry.name("other");
    images::plain(port, "other").push(&registry, "other");
    let before = host.listing(&places);
    let dry = host.atomic(&format!("install --dry-run --json --name other {other}"));
    assert_eq!(dry.code(), 3, "{}", dry.err());
    host.assert_unchanged(&places, &before);
    let told: Value = serde_json::from_str(&dry.out()).unwrap();
    assert_eq!(
        told["effects"]["fetch"]["layers"].as_array().unwrap().len(),
        1,
        "{told}"
    );
}

#[test]
fn a_running_service_is_not_touched_if_it_could_not_be_put_back() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    images::plain(port, "one").push(&registry, "web");
    host.atomic_ok(&format!("install --name web {}", registry.name("web")));
    host.ok("systemctl start web");
    wait_for_answer(port, "one");
    images::plain(port, "two").push(&registry, "web");
    std::fs::write(host.path(&format!("{C}/web.0/config.json")), "{").unwrap();
    let output = host.atomic("update web");
    assert_eq!(output.code(), 1);
    assert!(
        output.err().contains("could not be put back"),
        "{}",
        output.err()
    );
    wait_for_answer(port, "one");
    host.atomic_ok("update web --force");
    wait_for_answer(port, "two");
}

#[test]
fn an_update_is_out_of_service_no_longer_than_its_own_stop_and_start() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    images::plain(port, "one").push(&registry, "web");
    host.atomic_ok(&format!("install --name web {}", registry.name("web")));
    host.ok("systemctl start web");
    wait_for_answer(port, "one");
    // The service's own stop and start, by systemd alone.
    let own = outage(port, || {
        host.ok("systemctl stop web");
        host.ok("systemctl start web");
    });
    images::plain(port, "two").push(&registry, "web");
    let update = outage(port, || {
        host.atomic_ok("update web");
    });
    println!("out of service: stop and start {own:?}, update {update:?}");
    assert!(
        update < own + Duration::from_millis(500),
        "stop and start {own:?}, update {update:?}"
    );
    wait_for_answer(port, "two");
}
