//! udocker's command line, by the link of that name.

mod support;

use serde_json::json;
use support::images::{Image, Layer};
use support::{Host, Registry, Said as _, User};

fn app() -> Image {
    Image::new()
        .layer(
            Layer::new()
                .busybox()
                .symlink("bin/pwd", "busybox")
                .symlink("bin/nproc", "busybox")
                .symlink("bin/cmp", "busybox")
                .file(
                    "etc/passwd",
                    0o644,
                    "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n",
                )
                .file("etc/group", 0o644, "root:x:0:\nweb:x:33:\n"),
        )
        .set("Cmd", json!(["echo", "of the image"]))
        .set("Env", json!(["IMAGE=image"]))
}

/// The script is what a person may have: it knows nothing of us.
#[test]
fn scripts_written_for_udocker_go_on_working() {
    let registry = Registry::start();
    app().push(&registry, "app:1");
    let written = app().push(&registry, "multi:2");
    registry.put_index("multi", "1", &[("amd64", &written)]);
    let host = Host::boot();
    let user = User::on_disk(&host);
    let work = "/var/lib/containers/someone/scripts";
    user.ok(&format!("mkdir {work}"));
    host.ok("ln -s atomic-rs /usr/local/bin/udocker");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/udocker.sh");
    std::fs::copy(script, host.path("/usr/local/bin/udocker.sh")).unwrap();
    let said = user.command(&format!(
        "sh /usr/local/bin/udocker.sh {} {work}",
        registry.address()
    ));
    let lines = said.out();
    let failures: Vec<&str> = lines
        .lines()
        .filter(|line| !line.starts_with("ok "))
        .collect();
    assert_eq!(said.code(), 0, "{}\n{}", failures.join("\n"), said.err());
    let passed = lines.lines().filter(|line| line.starts_with("ok ")).count();
    assert!(passed >= 60, "{passed}");
}
