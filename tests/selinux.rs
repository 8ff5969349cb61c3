//! Labels, by the file contexts of a real policy (Debian's `selinux-policy-default`). The kernel that tests
//! run on need not have `SELinux`: what is looked at is what is stored and written.

mod support;

use serde_json::json;
use support::images::{Image, Layer};
use support::{Host, Registry};

const CONTEXTS: &str = "/etc/selinux/default/contexts/files/file_contexts";

/// Where links from deployments to the host can be made: one file system for all.
const STORE: &str = "/var/store";

fn image() -> Image {
    let manifest = json!({"version": "1.0", "noContainerService": true,
        "renameFiles": {"/usr/share/was-data": "/usr/local/bin/is-program"}});
    Image::new()
        .layer(Layer::new().busybox())
        .layer(
            Layer::new()
                .file("exports/manifest.json", 0o644, manifest.to_string())
                .file("exports/hostfs/usr/local/bin/tool", 0o755, "tool")
                .file("exports/hostfs/usr/share/was-data", 0o755, "program")
                .file(
                    "exports/hostfs/etc/systemd/system/x.service",
                    0o644,
                    "[Unit]\n",
                )
                .file("exports/hostfs/var/log/deep/er/log", 0o644, "log")
                .symlink("exports/hostfs/usr/local/bin/link", "tool"),
        )
        .set("Cmd", json!(["true"]))
}

fn host(more: &str) -> Host {
    Host::boot_with(|root| {
        let config = format!(
            "watch = 1\ncheckout_path = \"{STORE}\"\nostree_repository = \"{STORE}/repo\"\n{more}"
        );
        std::fs::write(root.join("etc/atomic-rs.toml"), config).unwrap();
    })
}

/// The type in the label of a file, or nothing.
fn kind(host: &Host, path: &str) -> String {
    let label = host.sh(&format!(
        "getfattr -h -n security.selinux --only-values {path} 2>/dev/null | tr -d '\\0'"
    ));
    let label = String::from_utf8(label.stdout).unwrap();
    label.split(':').nth(2).unwrap_or_default().to_owned()
}

fn inode(host: &Host, path: &str) -> String {
    host.ok(&format!("stat -c %i {path}"))
}

#[test]
fn files_have_the_labels_of_where_they_are_on_the_host() {
    let registry = Registry::start();
    let host = host(&format!("selinux_file_contexts = \"{CONTEXTS}\"\n"));
    image().push(&registry, "labels");
    host.atomic_ok(&format!(
        "install --system-package=no --name labels {}",
        registry.name("labels")
    ));
    let rootfs = format!("{STORE}/labels/rootfs");
    for (path, wanted) in [
        (format!("{rootfs}/"), "root_t"),
        (format!("{rootfs}/bin/busybox"), "bin_t"),
        (format!("{rootfs}/etc/passwd"), "etc_t"),
        // Below the host files: as if they were there already, directories that no archive declared too.
        (
            format!("{rootfs}/exports/hostfs/usr/local/bin/tool"),
            "bin_t",
        ),
        (
            format!("{rootfs}/exports/hostfs/usr/share/was-data"),
            "usr_t",
        ),
        (format!("{rootfs}/exports/hostfs/var/log/deep"), "var_log_t"),
        ("/usr/local/bin/tool".into(), "bin_t"),
        ("/usr/local/bin/link".into(), "bin_t"),
        ("/usr/local/bin/is-program".into(), "bin_t"),
        ("/etc/systemd/system/x.service".into(), "systemd_unit_t"),
        ("/var/log/deep".into(), "var_log_t"),
        ("/var/log/deep/er/log".into(), "var_log_t"),
    ] {
        assert_eq!(kind(&host, &path), wanted, "{path}");
    }
    // A link where the labels agree, a copy where they do not.
    let source = |name: &str| format!("{rootfs}/exports/hostfs/usr/{name}");
    let same = |a: &str, b: &str| inode(&host, a) == inode(&host, b);
    assert!(same("/usr/local/bin/tool", &source("local/bin/tool")));
    assert!(!same(
        "/usr/local/bin/is-program",
        &source("share/was-data")
    ));
    assert_eq!(host.atomic_ok("verify labels"), "");
    host.atomic_ok(&format!("images verify {}", registry.name("labels")));
    host.atomic_ok("uninstall labels");
}

#[test]
fn without_selinux_nothing_is_labelled() {
    let registry = Registry::start();
    let host = host("");
    image().push(&registry, "labels");
    host.atomic_ok(&format!(
        "install --system-package=no --name labels {}",
        registry.name("labels")
    ));
    for path in [
        format!("{STORE}/labels/rootfs/bin/busybox"),
        "/usr/local/bin/tool".to_owned(),
        "/var/log/deep".to_owned(),
    ] {
        assert_eq!(kind(&host, &path), "", "{path}");
    }
    assert_eq!(
        inode(&host, "/usr/local/bin/tool"),
        inode(
            &host,
            &format!("{STORE}/labels/rootfs/exports/hostfs/usr/local/bin/tool")
        )
    );
}
