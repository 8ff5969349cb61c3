//! What the original got wrong, by the number it has in the list of its defects, and would be noticed
//! here if it came back. Those without a test in this file are noticed elsewhere:
//!
//! | defect | noticed by |
//! |---|---|
//! | 1, 18 | every test of `updates.rs`; `main_job.rs`: `an_update_whose_unit_fails_to_start_leaves_the_old_version_running` |
//! | 2 | `main_job.rs`: `…a_second_update_reuses_slot_zero_clean`; here with a remote root |
//! | 3, 9, 10 | `crash.rs`; `store.rs`: `kills_during_pulls_and_prunes…`, `two_pulls_at_once_both_succeed`; `commands.rs`: `…a_kill_does_not_leave` |
//! | 4, 21, 37 | `hostfiles.rs` |
//! | 11 | `main_job.rs`: `images_are_listed_deleted_and_pruned_without_hurting_containers` |
//! | 12, 13 | `commands.rs`: `mounts_are_read_only_or_private_and_never_reach_the_store`; `store.rs`: `layers_are_merged…` |
//! | 14 | `integrity.rs` |
//! | 15, 16 | `image::reference`; `sources.rs`; `main_job.rs`: `archives_layouts…` |
//! | 22, 25 | `deployment::info`; `main_job.rs`: `…a_broken_one_hides_no_other`; `takeover.rs` |
//! | 23 | `packages.rs` |
//! | 24 | `runtime::userns`; `user.rs` |
//! | 27 | `parity.rs`: `every_changing_verb_tells_its_plan_first_and_changes_nothing` |
//! | 31 | `template::dollar`: `variables_are_listed_without_dollars` |
//! | 34 | no daemon and no other configuration is needed to start: `wrong_input.rs`: `a_host_without_what_is_needed_is_told_so` |
//! | 38 | no archive is unpacked: skopeo lists what is in it (`sources.rs`) |
//! | 39 | `main_job.rs`: `the_registry_is_asked_with_credentials_and_the_policy_is_obeyed` |

mod support;

use serde_json::{Value, json};
use support::images::{self, Image, Layer};
use support::{Host, Registry, Said as _, free_port, http_get, wait_for_answer};

const C: &str = "/var/lib/containers/atomic";

/// `images::system` with some of its files of `/exports` replaced.
fn exporting(files: &[(&str, &str)]) -> Image {
    let layer = files.iter().fold(Layer::new(), |layer, (name, text)| {
        layer.file(&format!("exports/{name}"), 0o644, text)
    });
    images::system().layer(layer)
}

fn manifest(receiver: &str) -> String {
    json!({"version": "1.0", "defaultValues": {"PORT": "8081", "RECEIVER": receiver}}).to_string()
}

#[test]
fn defect_05_nothing_is_stopped_before_everything_is_rendered_and_checked() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    images::system().push(&registry, "app");
    host.atomic_ok(&format!(
        "install --name app --set PORT={port} {}",
        registry.name("app")
    ));
    host.atomic_ok("run app");
    wait_for_answer(port, "Hi World");
    let main = host.ok("systemctl show -P MainPID app");
    let before = host.listing(&["/etc/systemd/system", "/etc/tmpfiles.d"]);
    let writable = r#"{"root": {"path": "rootfs", "readonly": false}}"#;
    for (file, text, message) in [
        (
            "service.template",
            "[Service]\nExecStart=$NO_SUCH\n",
            "unreplaced value for: ''NO_SUCH''",
        ),
        (
            "service.template",
            "[Service]\nExecStart=$ 5\n",
            "Invalid placeholder in string",
        ),
        (
            "tmpfiles.template",
            "d $NO_SUCH\n",
            "unreplaced value for: ''NO_SUCH''",
        ),
        ("config.json.template", "{\"root\": ", "not valid JSON"),
        (
            "config.json.template",
            writable,
            "Only readonly images are supported",
        ),
        ("manifest.json", "{", "Invalid manifest.json file in image"),
    ] {
        exporting(&[(file, text)]).push(&registry, "app");
        let refused = host.atomic("update app");
        assert!(
            refused.code() == 1 && refused.err().contains(message),
            "{file}: {}",
            refused.err()
        );
        assert_eq!(host.ok("systemctl show -P MainPID app"), main, "{file}");
        host.assert_unchanged(&["/etc/systemd/system", "/etc/tmpfiles.d"], &before);
        assert!(!host.exists(&format!("{C}/app.1")), "{file}");
    }
    wait_for_answer(port, "Hi World");
}

#[test]
fn defect_06_a_failed_installation_leaves_nothing_and_can_be_repeated() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    images::system_update().push(&registry, "app");
    let name = registry.name("app");
    host.atomic_ok(&format!("pull {name}"));
    let places = [
        "/etc/systemd/system",
        "/etc/tmpfiles.d",
        "/run/systemd",
        "/var/lib/app",
    ];
    let before = host.listing(&places);
    let failed = host.atomic(&format!("install --name app --set PORT={port} {name}"));
    assert!(
        failed.code() == 1
            && failed
                .err()
                .contains("unreplaced value for: ''VAR_WITH_NO_DEFAULT''"),
        "{}",
        failed.err()
    );
    host.assert_unchanged(&places, &before);
    assert_eq!(host.sh(&format!("ls {C}")).out(), "");
    host.atomic_ok(&format!(
        "install --name app --set PORT={port} --set VAR_WITH_NO_DEFAULT=me {name}"
    ));
    host.atomic_ok("run app");
    wait_for_answer(port, "Hi from me");
}

#[test]
fn defects_07_and_08_prune_keeps_configs_and_names_that_look_hexadecimal() {
    let registry = Registry::start();
    let host = Host::boot();
    images::system().push(&registry, "cafe:12");
    let name = registry.name("cafe:12");
    host.atomic_ok(&format!("pull {name}"));
    host.atomic_ok(&format!("images tag {name} cafe:12"));
    host.atomic_ok(&format!("-y images delete {name}"));
    host.atomic_ok("images prune");
    assert!(host.atomic_ok("images list").contains("cafe"));
    let info = host.atomic_ok("images info cafe:12");
    assert!(
        info.contains("Name: atomic-test-system"),
        "the labels are there: {info}"
    );
}

#[test]
fn defect_17_new_defaults_count_settings_stay_and_a_rebase_keeps_its_name() {
    let registry = Registry::start();
    let host = Host::boot();
    let (port, other) = (free_port(), free_port());
    images::system().push(&registry, "app");
    let name = registry.name("app");
    host.atomic_ok(&format!("install --name app --set PORT={port} {name}"));
    host.atomic_ok(&format!(
        "install --name mine --set PORT={other} --set RECEIVER=me {name}"
    ));
    for container in ["app", "mine"] {
        host.atomic_ok(&format!("run {container}"));
    }
    wait_for_answer(port, "Hi World");
    exporting(&[("manifest.json", &manifest("Moon"))]).push(&registry, "app");
    host.atomic_ok("update app");
    wait_for_answer(port, "Hi Moon");
    host.atomic_ok("update mine");
    wait_for_answer(other, "Hi me");
    // The same image by another name is another thing to follow from now on.
    let plain = name.trim_start_matches("http:");
    host.atomic_ok(&format!("images tag {plain} local/other:2"));
    host.atomic_ok("containers update app --rebase local/other:2");
    let info: Value = serde_json::from_str(&host.read(&format!("{C}/app/info"))).unwrap();
    assert_eq!(info["image"], "local/other:2");
    let again = host.atomic_ok("containers update app");
    assert_eq!(again, "Latest version already installed.\n");
}

#[test]
fn defects_19_and_20_containers_without_service_and_units_that_change() {
    let registry = Registry::start();
    let host = Host::boot();
    let none = r#"{"version": "1.0", "defaultValues": {"PORT": "1", "RECEIVER": "x"}, "noContainerService": true}"#;
    let made = |path: &str| format!("d {path} 0755 - - - -\n");
    exporting(&[
        ("manifest.json", none),
        ("tmpfiles.template", &made("/run/first")),
    ])
    .push(&registry, "files");
    let name = registry.name("files");
    host.atomic_ok(&format!("install --name files {name}"));
    assert!(host.exists("/run/first") && !host.exists("/etc/systemd/system/files.service"));
    let list = host.atomic_ok("containers list");
    assert!(list.contains("no service"), "{list}");
    exporting(&[
        ("manifest.json", none),
        ("tmpfiles.template", &made("/run/second")),
    ])
    .push(&registry, "files");
    host.atomic_ok("update files");
    assert!(host.exists("/run/second"));
    assert!(
        host.read("/etc/tmpfiles.d/files.conf")
            .contains("/run/second")
    );
    host.atomic_ok("rollback files");
    assert!(
        host.read("/etc/tmpfiles.d/files.conf")
            .contains("/run/first")
    );
    host.atomic_ok("uninstall files");
    assert!(!host.exists("/etc/tmpfiles.d/files.conf") && !host.exists(&format!("{C}/files")));

    // An image whose next version wants to start elsewhere, and has no tmpfiles any more.
    let unit = |target: &str| {
        format!("[Service]\nType=oneshot\nExecStart=/bin/true\n\n[Install]\nWantedBy={target}\n")
    };
    let service = |target: &str, more: Layer| {
        Image::new().layer(Layer::new().busybox()).layer(
            more.dir("exports", 0o755)
                .file(
                    "exports/config.json",
                    0o644,
                    r#"{"root": {"path": "rootfs", "readonly": true}}"#,
                )
                .file("exports/service.template", 0o644, unit(target)),
        )
    };
    let tmpfiles = Layer::new().file("exports/tmpfiles.template", 0o644, made("/run/app"));
    service("multi-user.target", tmpfiles).push(&registry, "app");
    host.atomic_ok(&format!("install --name app {}", registry.name("app")));
    assert!(host.exists("/etc/systemd/system/multi-user.target.wants/app.service"));
    assert!(host.exists("/etc/tmpfiles.d/app.conf"));
    service("timers.target", Layer::new()).push(&registry, "app");
    host.atomic_ok("update app");
    assert!(!host.exists("/etc/systemd/system/multi-user.target.wants/app.service"));
    assert!(host.exists("/etc/systemd/system/timers.target.wants/app.service"));
    assert!(!host.exists("/etc/tmpfiles.d/app.conf"));
}

#[test]
fn defects_26_28_29_and_33_names_mean_what_they_say() {
    let registry = Registry::start();
    let host = Host::boot();
    Image::new()
        .layer(Layer::new().busybox())
        .set("Entrypoint", json!(["/no/such"]))
        .push(&registry, "foo/bar:1");
    let name = registry.name("foo/bar:1");
    host.atomic_ok(&format!("install --name app --runtime crun {name}"));
    let failed = host.atomic("run app");
    assert!(
        failed.code() == 1 && failed.err().contains("app.service"),
        "a failed start is said, and no image of that name is looked for: {}",
        failed.err()
    );
    assert!(host.read(&format!("{C}/app.0/info")).contains("/crun"));
    host.atomic_ok(&format!(
        "images tag {} foo/bar:1",
        name.trim_start_matches("http:")
    ));
    host.atomic_ok("install --name plain foo/bar:1");
    let all = host.atomic("update --all --no-pull");
    assert!(
        all.code() == 0 && !all.out().contains("Unknown") && !all.out().contains("NOT FOUND"),
        "{}{}",
        all.out(),
        all.err()
    );
    drop(registry);
    // Without its registry: there is nothing to pull.
    let again = host.atomic(&format!("install --name app {name}"));
    assert_eq!(
        (again.code(), again.out()),
        (0, "app already present\n".into())
    );
    // A container's name comes before an image's, and unknown ones are an error.
    host.atomic_ok("images tag foo/bar:1 app");
    host.atomic_ok("uninstall app");
    assert!(host.atomic_ok("images list").contains("app"));
    let unknown = host.atomic("uninstall app");
    assert!(
        unknown.code() == 1 && unknown.err().contains("'app' is not installed"),
        "{}",
        unknown.err()
    );
}

#[test]
fn defect_30_a_container_called_like_a_deployment_stays_apart() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    images::plain(port, "zero").push(&registry, "web");
    let name = registry.name("web");
    host.atomic_ok(&format!("install --name container.0 {name}"));
    host.atomic_ok("run container.0");
    wait_for_answer(port, "zero");
    let refused = host.atomic(&format!("install --name container {name}"));
    assert!(
        refused.code() == 1 && refused.err().contains("collides"),
        "{}",
        refused.err()
    );
    host.atomic_ok("update container.0 --set A=1");
    wait_for_answer(port, "zero");
    host.atomic_ok("images prune");
    assert!(host.atomic_ok("containers list").contains("container.0"));
    host.atomic_ok("uninstall container.0");
    assert_eq!(host.sh(&format!("ls {C}")).out(), "");
    host.atomic_ok(&format!("install --name container {name}"));
    let refused = host.atomic(&format!("install --name container.1 {name}"));
    assert!(
        refused.code() == 1 && refused.err().contains("collides"),
        "{}",
        refused.err()
    );
}

#[test]
fn defects_02_and_32_a_remote_root_goes_through_update_and_rollback() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    images::system().push(&registry, "app");
    let name = registry.name("app");
    host.atomic_ok(&format!("pull {name}"));
    // Not called "rootfs", and named by a path that means something only here.
    host.ok("mkdir -p /srv/tree /srv/at");
    host.atomic_ok(&format!(
        "mount {} /srv/at",
        name.trim_start_matches("http:")
    ));
    host.ok("cp -a /srv/at/. /srv/tree");
    host.atomic_ok("unmount /srv/at");
    let output = host.sh(&format!(
        "cd /srv && atomic-rs install --name app --rootfs tree --set PORT={port} --set RECEIVER=one {name}"
    ));
    assert_eq!(output.code(), 0, "{}", output.err());
    host.atomic_ok("run app");
    wait_for_answer(port, "Hi one");
    for (receiver, slot) in [("two", 1), ("three", 0)] {
        host.atomic_ok(&format!("update app --no-pull --set RECEIVER={receiver}"));
        wait_for_answer(port, &format!("Hi {receiver}"));
        assert_eq!(
            host.ok(&format!("readlink {C}/app {C}/app.{slot}/rootfs")),
            format!("{C}/app.{slot}\n/srv/tree\n")
        );
    }
    host.atomic_ok("rollback app");
    wait_for_answer(port, "Hi two");
    host.atomic_ok("uninstall app");
    assert!(host.exists("/srv/tree/usr/bin/run.sh"));
    assert_eq!(http_get(port), None);
}

#[test]
fn defects_35_36_and_40_values_and_links_cannot_reach_beyond_their_place() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    let unit = "[Unit]\nDescription=for $RECEIVER\n\n[Service]\nExecStart=$EXEC_START\nExecStop=$EXEC_STOP\nWorkingDirectory=$DESTDIR\n\n[Install]\nWantedBy=multi-user.target\n";
    exporting(&[("service.template", unit)]).push(&registry, "app");
    let value = "x\", \"HOME=/evil\n[Service]\nExecStartPre=/bin/touch /run/evil %n";
    let output = host
        .command("atomic-rs")
        .args(["install", "--name=app"])
        .arg(format!("--set=PORT={port}"))
        .arg(format!("--set=RECEIVER={value}"))
        .arg(registry.name("app"))
        .output()
        .unwrap();
    if output.code() == 0 {
        let config: Value =
            serde_json::from_str(&host.read(&format!("{C}/app.0/config.json"))).unwrap();
        let env = config["process"]["env"].as_array().unwrap();
        assert!(env.contains(&json!(format!("RECEIVER={value}"))), "{env:?}");
        assert!(!env.contains(&json!("HOME=/evil")));
        let unit = host.read("/etc/systemd/system/app.service");
        assert_eq!(unit.matches("[Service]\n").count(), 1, "{unit}");
        assert!(
            !unit.lines().any(|line| line.starts_with("ExecStartPre")),
            "{unit}"
        );
    } else {
        assert!(output.err().contains("RECEIVER"), "{}", output.err());
    }
    assert!(!host.exists("/run/evil"));

    // Links of an image lead inside the image, whatever the host has at their end.
    host.ok("mkdir /etc/secret");
    std::fs::write(
        host.path("/etc/secret/config.json"),
        r#"{"root": {"path": "rootfs", "readonly": true}, "process": {"args": ["from-the-host"]}}"#,
    )
    .unwrap();
    for (number, layer) in [
        Layer::new().symlink("exports", "/etc/secret"),
        Layer::new().symlink("exports", "../../../../../../etc/secret"),
        Layer::new()
            .dir("exports", 0o755)
            .symlink("exports/config.json", "/etc/secret/config.json"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("link{number}");
        Image::new()
            .layer(Layer::new().busybox())
            .layer(layer)
            .set("Entrypoint", json!(["/bin/sh"]))
            .push(&registry, &name);
        host.atomic(&format!("install --name {name} {}", registry.name(&name)));
        let config = host.sh(&format!("cat {C}/{name}.0/config.json")).out();
        assert!(!config.contains("from-the-host"), "{name}: {config}");
    }
}
