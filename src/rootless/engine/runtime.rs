//! An OCI runtime in place of our own first process. It runs inside the user namespace that is there already,
//! on the root that is mounted already, and so needs neither ids nor an overlay of its own.

use std::os::unix::net::UnixStream;
use std::process::Command;

use camino::Utf8Path;
use rustix::process::Pid;
use serde_json::{Value, json};

use super::{InitTask, wire};
use crate::error::{Context as _, Result};
use crate::rootless::process::Resolved;
use crate::runtime::{capabilities, default_seccomp, mounts};
use crate::safefs::{self, Root};

/// What containers must not see of the host's kernel. Source: docker's defaults.
const MASKED: [&str; 8] = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Start it.
pub fn start(stream: &mut UnixStream, container: &Utf8Path, runtime: &str) -> Result<Pid> {
    let task: InitTask = wire::receive(stream)?;
    let root = Root::open(task.root.as_std_path())?;
    let resolved = task.process.resolve(&root)?;
    super::init::check_user(&task, &resolved.user)?;
    let bundle = bundle(container);
    safefs::make_private_dir(container.join("bundles").as_std_path())?;
    safefs::make_private_dir(bundle.as_std_path())?;
    let text = serde_json::to_vec_pretty(&spec(&task, &resolved)?)
        .context(|| "cannot write the configuration".into())?;
    safefs::write_new_file(bundle.join("config.json").as_std_path(), &text, 0o600)?;
    let child = Command::new(runtime)
        .args(["--root", bundle.join("state").as_str(), "--rootless=true"])
        .args(["run", "--bundle", bundle.as_str()])
        .arg(format!("rootless-{}", std::process::id()))
        .spawn()
        .context(|| format!("cannot run {runtime}"))?;
    Ok(Pid::from_child(&child))
}

/// Remove what [`start`] made.
pub fn clear(container: &Utf8Path) {
    if let Err(error) = safefs::remove_tree(bundle(container).as_std_path()) {
        tracing::warn!(%error, "left behind");
    }
}

fn bundle(container: &Utf8Path) -> camino::Utf8PathBuf {
    container
        .join("bundles")
        .join(std::process::id().to_string())
}

fn spec(task: &InitTask, resolved: &Resolved) -> Result<Value> {
    let process = &task.process;
    let capabilities = capabilities::with_changes(&[], &[])?;
    let mut all: Vec<Value> = mounts::base_mounts();
    all.retain(|mount| !matches!(mount["type"].as_str(), Some("sysfs" | "cgroup")));
    if !task.has_range {
        // Its group is none of ours.
        for mount in &mut all {
            if let Some(options) = mount["options"].as_array_mut() {
                options.retain(|option| option != "gid=5");
            }
        }
    }
    all.push(mounts::bind(
        "/sys",
        "/sys",
        &["rbind", "nosuid", "noexec", "nodev", "ro"],
    ));
    for file in ["/etc/resolv.conf", "/etc/hosts"] {
        let is_bound = process
            .volumes
            .iter()
            .any(|volume| volume.destination == file);
        if !is_bound && std::path::Path::new(file).is_file() {
            all.push(mounts::bind(file, file, &["bind", "nosuid", "nodev", "ro"]));
        }
    }
    for volume in &process.volumes {
        let access = if volume.read_only { "ro" } else { "rw" };
        all.push(mounts::bind(
            volume.source.as_str(),
            &volume.destination,
            &["rbind", "rprivate", "nosuid", "nodev", access],
        ));
    }
    for device in &process.devices {
        all.push(mounts::bind(
            device.as_str(),
            device.as_str(),
            &["bind", "nosuid", "noexec"],
        ));
    }
    let namespaces = ["pid", "ipc", "uts", "mount"].map(|kind| json!({"type": kind}));
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stdin());
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": terminal && std::io::IsTerminal::is_terminal(&std::io::stdout()),
            "user": resolved.user,
            "args": process.args,
            "env": resolved.env,
            "cwd": process.cwd,
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
        },
        "root": {"path": task.root, "readonly": false},
        "hostname": process.hostname,
        "mounts": all,
        "linux": {
            "namespaces": namespaces,
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "seccomp": default_seccomp(&capabilities),
        },
    }))
}
