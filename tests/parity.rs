//! What users of the original type, and what every verb owes them: a plan first, names completed.

mod support;

use serde_json::{Value, json};
use support::images::{self, Image, Layer};
use support::{Host, Registry, Said as _, free_port, wait_for_answer};

const C: &str = "/var/lib/containers/atomic";

#[test]
fn called_by_the_originals_name_it_takes_the_originals_words() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    images::system().push(&registry, "atomic-test-system");
    Image::new()
        .layer(
            Layer::new()
                .file(
                    "help.1",
                    0o644,
                    ".TH APP 1\n.SH NAME\napp \\- the help page\n",
                )
                .file("exports/config.json", 0o644, "{}"),
        )
        .set("Labels", json!({"Version": "1.2", "Release": "3"}))
        .push(&registry, "app");
    Image::new()
        .layer(Layer::new().file("README.md", 0o644, "read \u{1b}[31mme\n"))
        .push(&registry, "other");
    host.ok("ln -s /usr/local/bin/atomic-rs /usr/local/bin/atomic");
    let name = registry.name("atomic-test-system");
    let plain = name.trim_start_matches("http:").to_owned();
    host.ok(&format!("atomic --debug pull --storage ostree {name}"));
    host.ok(&format!(
        "atomic --debug install --system --name test-system --set=PORT={port} --set RECEIVER=you {name}"
    ));
    host.ok("atomic --debug run test-system");
    wait_for_answer(port, "Hi you from container test-system");
    // "/usr/bin/r" is the command as the narrow column cuts it, which scripts look for.
    let list = host.ok("atomic --debug containers list");
    for word in ["/usr/bin/r", "running", "ostree", "runc", "test-system"] {
        assert!(list.contains(word), "{word}: {list}");
    }
    // What is not a container is an image; options may be cut short and stand anywhere.
    let out = host.ok("atomic update test-system");
    assert!(out.contains("Latest version already installed."), "{out}");
    let out = host.ok(&format!("atomic update --stor=ostree {name}"));
    assert!(out.contains("sha256:"), "{out}");
    let kept = host.listing(&[C]);
    let dry = host.run(&format!("atomic update --dry-run {}", registry.name("app")));
    assert_eq!(dry.code(), 3, "{}", dry.err());
    host.assert_unchanged(&[C], &kept);
    let refused = host.run(&format!("atomic update --set A=b {name}"));
    assert_eq!(refused.code(), 2, "{}", refused.err());
    let all = host.run("atomic images update --all --storage=ostree");
    assert_eq!(all.code(), 0, "{}", all.err());
    assert!(all.out().contains("SUMMARY"), "{}", all.out());
    let info = host.ok(&format!("atomic info {plain}"));
    assert!(
        info.starts_with("Image Name:") && info.contains("RECEIVER: World"),
        "{info}"
    );
    host.ok(&format!("atomic pull {}", registry.name("app")));
    let app = format!("{}/app", registry.address());
    let version = host.ok(&format!("atomic version {app}"));
    assert!(version.contains("1.2-3"), "{version}");
    let verify = host.run(&format!("atomic verify -v --no-validate {app}"));
    assert_eq!(verify.code(), 0, "{}", verify.err());
    assert!(verify.out().contains("NO"), "{}", verify.out());
    for form in ["help", "images help"] {
        let help = host.ok(&format!("atomic {form} {app}"));
        assert!(help.contains("the help page"), "{help}");
    }
    host.ok(&format!("atomic pull {}", registry.name("other")));
    let help = host.ok(&format!("atomic help {}/other", registry.address()));
    assert_eq!(help, "read [31mme\n", "nothing that steers a terminal");
    let none = host.run(&format!("atomic images help {plain}"));
    assert_eq!(
        (none.code(), none.err()),
        (1, format!("There is no help for {plain}.\n"))
    );
    assert!(host.ok("atomic help").contains("Usage:"));
    let refused = host.run("atomic uninstall -n x test-system");
    assert!(
        refused
            .err()
            .contains("System containers do not support --name"),
        "{}",
        refused.err()
    );
    let refused = host.run("atomic run -n x test-system");
    assert!(
        refused
            .err()
            .contains("--name is not supported by this backend"),
        "{}",
        refused.err()
    );
    assert!(
        host.ok("atomic stop --display test-system")
            .contains("stop test-system.service")
    );
    wait_for_answer(port, "Hi you");
    host.ok("atomic stop test-system");
    let none = host.ok("atomic containers list --json -f container=idonotexist");
    assert_eq!(none, "[]\n");
    let unknown = host.run("atomic images tag nosuch new");
    assert_eq!(unknown.code(), 1);
    assert!(host.ok("atomic help install").contains("--system"));
    let told: Value =
        serde_json::from_str(&host.ok(&format!("atomic images tag --json {plain} new:1"))).unwrap();
    assert_eq!(told["done"], true);
    let inspected: Value =
        serde_json::from_str(&host.ok("atomic containers inspect test-system")).unwrap();
    assert_eq!(inspected["name"], "test-system");
    host.ok("atomic -y containers delete test-system");
    assert_eq!(host.ok("atomic containers list --all"), "");
}

#[test]
fn the_originals_configuration_counts_where_ours_is_silent() {
    let registry = Registry::start();
    let host = Host::boot();
    images::plain(8080, "x").push(&registry, "web");
    std::fs::write(
        host.path("/etc/atomic.conf"),
        "# Atomic CLI configuration file\ndefault_scanner: openscap\ncheckout_path: /var/lib/containers/elsewhere\n\
         ostree_repository:\nruntime: /usr/bin/crun\nhttps_proxy: http://127.0.0.1:1\ndefault_signer: nobody@example.org\n",
    )
    .unwrap();
    let name = registry.name("web");
    host.atomic_ok(&format!("install --name web {name}"));
    assert!(host.exists("/var/lib/containers/elsewhere/web.0/rootfs"));
    assert!(!host.exists(C));
    assert!(
        host.read("/etc/systemd/system/web.service")
            .contains("/usr/bin/crun")
    );
    // The proxy is skopeo's to use.
    let refused = host.atomic("pull registry.example/app");
    assert!(
        refused.code() == 1 && refused.err().contains("proxyconnect"),
        "{}",
        refused.err()
    );
    let refused = host.atomic(&format!("sign {name}"));
    assert!(
        refused.code() == 1 && refused.err().contains("nobody@example.org"),
        "{}",
        refused.err()
    );
    // Ours comes first, and the environment before both.
    std::fs::write(
        host.path("/etc/atomic-rs.toml"),
        "runtime = '/usr/bin/runc'\n",
    )
    .unwrap();
    let output = host.sh(&format!(
        "ATOMIC_OSTREE_CHECKOUT_PATH=/var/lib/containers/third atomic-rs install --name third {name}"
    ));
    assert_eq!(output.code(), 0, "{}", output.err());
    assert!(host.exists("/var/lib/containers/third/third.0"));
    assert!(
        host.read("/etc/systemd/system/third.service")
            .contains("/usr/bin/runc")
    );
    std::fs::write(host.path("/etc/atomic.conf"), "checkout_path: [\n").unwrap();
    let refused = host.atomic("containers list");
    assert!(
        refused.code() == 1
            && refused.err().starts_with("/etc/atomic.conf: ")
            && refused.err().lines().count() == 1,
        "{}",
        refused.err()
    );
}

#[test]
fn every_changing_verb_tells_its_plan_first_and_changes_nothing() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    images::plain(port, "one").push(&registry, "web");
    let name = registry.name("web");
    host.atomic_ok(&format!("install --name web {name}"));
    host.atomic_ok("run web");
    wait_for_answer(port, "one");
    host.atomic_ok("update web --set A=1");
    images::plain(port, "two").push(&registry, "web");
    images::plain(port, "other").push(&registry, "other");
    host.atomic_ok(&format!("pull {}", registry.name("other")));
    host.atomic_ok(&format!("-y images delete {}/other", registry.address()));
    host.ok("mkdir /srv/at");
    host.ok("touch /root/key.gpg");
    host.atomic_ok("trust add a.example -t reject");
    let other = registry.name("other");
    let stored = format!("{}/web", registry.address());
    let where_it_could = ["/etc", "/run/systemd/system", "/srv", C, "/var/lib/web"];
    let before = host.listing(&where_it_could);
    for (verb, words) in [
        ("pull", other.as_str()),
        ("install", &format!("--name n {other}")),
        ("update", "web"),
        ("update", "--all"),
        ("containers update", "web --pull"),
        ("auto-update", "--enable web"),
        ("rollback", "web"),
        ("containers rollback", "web"),
        ("pin", "web"),
        ("repair", "web"),
        ("uninstall", "web"),
        ("containers delete", "web"),
        ("stop", "web"),
        ("exec", ""),
        ("run", "web true"),
        ("mount", &format!("{stored} /srv/at")),
        ("unmount", "/srv/at"),
        ("images tag", &format!("{stored} new")),
        ("images update", &stored),
        ("images update", "--all"),
        ("images delete", &format!("--force {stored}")),
        ("images prune", ""),
        ("images import", "docker-archive:/root/none"),
        ("push", &format!("{stored} {}", registry.name("new"))),
        ("trust add", "b.example -t reject"),
        ("trust delete", "a.example"),
        ("trust default", "reject"),
        ("trust reset", ""),
    ] {
        if verb == "exec" {
            // A command's own words are not ours to plan.
            continue;
        }
        let output = host.atomic(&format!("{verb} --dry-run --json {words}"));
        assert_eq!(
            output.code(),
            3,
            "{verb} {words}: {}{}",
            output.out(),
            output.err()
        );
        let plan: Value = serde_json::from_str(&output.out()).unwrap();
        assert_eq!(plan["version"], 1, "{verb}: {plan}");
        let output = host.atomic(&format!("{verb} --display {words}"));
        assert!(
            output.code() == 0 && !output.out().is_empty(),
            "{verb} {words}: {}",
            output.err()
        );
    }
    // Where there is nothing to do that is said, too.
    for words in [
        "run --dry-run web",
        "unpin --dry-run web",
        "recover --dry-run",
    ] {
        let output = host.atomic(words);
        assert_eq!(
            (output.code(), output.out()),
            (0, "nothing to do\n".into()),
            "{words}"
        );
    }
    host.assert_unchanged(&where_it_could, &before);
    wait_for_answer(port, "one");
}

#[test]
fn bash_completes_verbs_options_containers_and_images() {
    let registry = Registry::start();
    let host = Host::boot();
    images::plain(8080, "x").push(&registry, "team/web");
    let name = registry.name("team/web");
    host.atomic_ok(&format!("install --name web-one {name}"));
    host.atomic_ok(&format!("install --name web-two {name}"));
    // What bash does when a key is pressed: words are taken apart at colons, too.
    let complete = |words: &[&str]| -> Vec<String> {
        let list = format!("'{}'", words.join("' '"));
        let last = words.last().unwrap();
        let last = if *last == ":" { "" } else { last };
        let script = format!(
            "source <(atomic-rs completion bash); COMP_WORDS=({list}); COMP_CWORD={}; _atomic_rs atomic-rs '{last}' ''; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            words.len() - 1
        );
        let output = host.sh(&script);
        assert_eq!(output.err(), "");
        output
            .out()
            .lines()
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(complete(&["atomic-rs", "rollb"]), ["rollback"]);
    assert_eq!(complete(&["atomic-rs", "images", "pr"]), ["prune"]);
    assert_eq!(complete(&["atomic-rs", "update", "--reb"]), ["--rebase"]);
    assert_eq!(
        complete(&["atomic-rs", "rollback", "web-"]),
        ["web-one", "web-two"]
    );
    assert_eq!(complete(&["atomic-rs", "exec", "web-t"]), ["web-two"]);
    assert_eq!(
        complete(&["atomic-rs", "exec", "web-two", "web-"]).len(),
        0,
        "a command, not a name"
    );
    let port = registry.address().rsplit_once(':').unwrap().1.to_owned();
    assert_eq!(
        complete(&["atomic-rs", "images", "info", "127.0"]),
        [format!("127.0.0.1:{port}/team/web:latest")]
    );
    let rest = [format!("{port}/team/web:latest")];
    assert_eq!(
        complete(&["atomic-rs", "images", "info", "127.0.0.1", ":"]),
        rest
    );
    assert_eq!(
        complete(&["atomic-rs", "images", "info", "127.0.0.1", ":", &port]),
        rest
    );
    assert_eq!(
        complete(&["atomic-rs", "update", "web-one", "--rebase", "=", "127"]),
        [format!("127.0.0.1:{port}/team/web:latest")]
    );
    let both = complete(&["atomic-rs", "diff", ""]);
    assert!(
        both.contains(&"web-one".into()) && both.iter().any(|name| name.contains("/team/web")),
        "{both:?}"
    );
    for shell in ["zsh", "fish"] {
        let script = host.atomic_ok(&format!("completion {shell}"));
        assert!(script.contains("ATOMIC_RS_COMPLETE"), "{script}");
    }
}

#[test]
fn three_hundred_containers_are_listed_in_one_round_trip() {
    let registry = Registry::start();
    let host = Host::boot();
    images::plain(free_port(), "x").push(&registry, "web");
    host.atomic_ok(&format!("install --name web {}", registry.name("web")));
    host.atomic_ok("run web");
    host.sh(&format!(
        "cd {C}; for i in $(seq -w 299); do cp -al web.0 c$i.0; ln -s {C}/c$i.0 c$i; done"
    ));
    host.ok("systemd-run --quiet --unit=watch --property=StandardOutput=file:/root/calls busctl --system monitor --match type=method_call");
    host.sh("until [ -s /root/calls ]; do sleep 0.05; done; sleep 0.2");
    let list = host.atomic_ok("containers list --all --json");
    host.sh("sleep 0.2; systemctl stop watch");
    let rows: Value = serde_json::from_str(&list).unwrap();
    let state = |state: &str| {
        let rows = rows.as_array().unwrap();
        rows.iter().filter(|row| row["state"] == state).count()
    };
    assert_eq!((state("running"), state("inactive")), (1, 299));
    let calls = host.read("/root/calls");
    let to_manager = calls
        .lines()
        .filter(|line| line.contains("Interface=org.freedesktop.systemd1."))
        .count();
    assert_eq!(to_manager, 1, "{calls}");
    // By name systemd would read the file of each that it has not in memory.
    assert!(calls.contains("Member=ListUnits\n"), "{calls}");
}
