//! An OCI runtime in place of our own first process. It runs inside the user namespace that is there already,
//! on the root that is mounted already, and so needs neither ids nor an overlay of its own.

use std::io::IsTerminal as _;
use std::process::Command;

use rustix::process::Pid;
use serde_json::{Value, json};

use super::root::HOST_FILES;
use super::{InitTask, RuntimeTask};
use crate::error::{Context as _, Result};
use crate::rootless::process::{Process, Resolved};
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

/// The name a runtime knows the container by.
pub const NAME: &str = "rootless";
/// Where a runtime keeps what it knows, in its bundle.
pub const STATE: &str = "state";

/// Start it.
pub fn start(task: &InitTask, runtime: &RuntimeTask) -> Result<Pid> {
    let root = Root::open(task.root.as_std_path())?;
    let resolved = task.process.resolve(&root)?;
    super::init::check_user(task, &resolved.user)?;
    let RuntimeTask { path, bundle } = runtime;
    let spec = serde_json::to_vec_pretty(&spec(task, &resolved)?)
        .context(|| "cannot write the configuration".into())?;
    safefs::write_new_file(bundle.join("config.json").as_std_path(), &spec, 0o600)?;
    let child = Command::new(path)
        .args(["--root", bundle.join(STATE).as_str(), "--rootless=true"])
        .args(["run", "--bundle", bundle.as_str(), NAME])
        .spawn()
        .context(|| format!("cannot run {path}"))?;
    Ok(Pid::from_child(&child))
}

/// What a runtime is told of a process, as for its `exec --process`.
pub fn process(process: &Process, resolved: &Resolved, terminal: bool) -> Result<Value> {
    let capabilities = capabilities::with_changes(&[], &[])?;
    Ok(json!({
        "terminal": terminal,
        "user": resolved.user,
        "args": process.args,
        "env": resolved.env,
        "cwd": process.cwd,
        "capabilities": {
            "bounding": capabilities,
            "effective": capabilities,
            "permitted": capabilities,
        },
    }))
}

/// Whether it gets the terminal that we have.
pub fn has_terminal() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
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
        &["rbind", "nosuid", "noexec", "nodev", "rro"],
    ));
    for file in HOST_FILES {
        let is_bound = process
            .volumes
            .iter()
            .any(|volume| volume.destination == file);
        if !is_bound && std::path::Path::new(file).is_file() {
            all.push(mounts::bind(file, file, &["bind", "nosuid", "nodev", "ro"]));
        }
    }
    for volume in &process.volumes {
        // Also what is mounted below.
        let access = if volume.read_only { "rro" } else { "rw" };
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
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": self::process(process, resolved, has_terminal())?,
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
