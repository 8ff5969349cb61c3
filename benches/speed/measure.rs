//! What a command costs.

use std::collections::HashMap;
use std::io::{self, Read as _, Seek as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

/// What runs scripts.
pub const SHELL: &str = "/bin/sh";
/// Between two looks at a process's memory.
const LOOK: Duration = Duration::from_millis(50);
/// Units of the times in `/proc/PID/stat` in a second. Source: `USER_HZ` of every Linux.
const TICKS: f64 = 100.0;

/// What one run took.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Sample {
    /// Seconds from start to end.
    pub wall: f64,
    /// Seconds of processor time, user and system, with all children.
    pub cpu: f64,
    /// Peak resident memory of the command itself, in bytes.
    pub memory: f64,
    /// Bytes the command itself wrote (`wchar`), to pipes and sockets as well.
    pub written: f64,
    /// Bytes of the disk that were in use on the way and not at the end.
    pub temporary: f64,
    /// It was a script: memory and bytes are the shell's.
    pub is_script: bool,
}

/// What children have written, by number: it is on their parent's account when they have ended.
type Children = HashMap<u32, u64>;

/// Run a command that must work, on `disk`, where its temporary files go as well.
pub fn run(command: &mut Command, disk: &Path) -> Sample {
    // What the last one left to write back is not this one's doing.
    rustix::fs::sync();
    let mut complaints = tempfile::tempfile().unwrap();
    let before = cpu_of_children();
    let start = Instant::now();
    let mut peak = 0.0_f64;
    let mut child = command
        .env("TMPDIR", disk)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(complaints.try_clone().unwrap())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?} cannot run: {error}: run \"make deps\""));
    let mut sample = Sample {
        is_script: command.get_program() == SHELL,
        ..Sample::default()
    };
    let mut children = Children::new();
    let pid = child.id();
    let id = rustix::process::Pid::from_child(&child);
    let wait = || {
        let options = rustix::process::WaitIdOptions::EXITED
            | rustix::process::WaitIdOptions::NOWAIT
            | rustix::process::WaitIdOptions::NOHANG;
        rustix::process::waitid(rustix::process::WaitId::Pid(id), options)
    };
    while matches!(wait(), Ok(None)) {
        if let Some(memory) = field(&format!("/proc/{pid}/status"), "VmHWM:") {
            sample.memory = sample.memory.max(float(memory * 1024));
        }
        look_at_children(pid, &mut children);
        peak = peak.max(in_use(disk));
        // To look at many threads and children takes time from the two processors.
        std::thread::sleep(if start.elapsed() < LOOK {
            LOOK / 100
        } else if start.elapsed() < LOOK * 4 {
            LOOK / 10
        } else {
            LOOK
        });
    }
    sample.wall = start.elapsed().as_secs_f64();
    // Its books are kept until it is waited for.
    let written = field(&format!("/proc/{pid}/io"), "wchar:").unwrap_or(0);
    sample.written = float(written.saturating_sub(children.values().sum()));
    let status = child.wait().unwrap();
    if !status.success() {
        let mut text = String::new();
        complaints.rewind().unwrap();
        complaints.read_to_string(&mut text).unwrap();
        let words = format!("{command:?}");
        panic!("{words:.200}: {status}: {text}");
    }
    sample.cpu = cpu_of_children() - before;
    sample.temporary = (peak - in_use(disk)).max(0.0);
    sample
}

/// Bytes of a file system that are in use.
fn in_use(disk: &Path) -> f64 {
    let found = rustix::fs::statvfs(disk).unwrap();
    float((found.f_blocks - found.f_bfree) * found.f_frsize)
}

/// Bytes as they are shown, for which a float is exact enough.
#[allow(clippy::cast_precision_loss)]
pub fn float(bytes: u64) -> f64 {
    bytes as f64
}

fn look_at_children(pid: u32, children: &mut Children) {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
    for thread in threads.into_iter().flatten().flatten() {
        let list = std::fs::read_to_string(thread.path().join("children"));
        for child in list.unwrap_or_default().split_whitespace() {
            let written = field(&format!("/proc/{child}/io"), "wchar:");
            if let (Ok(child), Some(written)) = (child.parse(), written) {
                children.insert(child, written);
            }
        }
    }
}

fn field(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Processor time of all children that were waited for, theirs included.
fn cpu_of_children() -> f64 {
    let read = || -> io::Result<f64> {
        let text = std::fs::read_to_string("/proc/self/stat")?;
        let (_, after_name) = text.rsplit_once(')').unwrap_or_default();
        let ticks = after_name.split_whitespace().skip(13).take(2);
        Ok(ticks.filter_map(|field| field.parse::<f64>().ok()).sum())
    };
    read().unwrap_or(0.0) / TICKS
}

/// The median of some figures.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => figures[middle],
        _ => f64::midpoint(figures[middle - 1], figures[middle]),
    }
}
