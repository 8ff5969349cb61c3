//! One container: what it was made from, how it runs, what was written to it.
//!
//! # Format
//! `H/containers/ID/`:
//! - `container.json`: [`Record`]
//! - `upper/`, `work/`: what was written, as the two directories of an overlay; files in them belong to
//!   the container's users
//! - `ROOT/`: where the overlay is mounted while the container runs, out of sight of the host; once the
//!   container has run in a mode that mounts nothing, all its files (see [`super::files`]), in place of
//!   `upper` and what it shared
//! - `fake/`: what of these is changed for `fakechroot` (see [`super::fake`])
//! - `run/PID`: a process that keeps the overlay mounted. Lines: its number and when it was started
//!   (`/proc/PID/stat`, field 22), so that a number that is used again means nothing; the same of the
//!   container's first process, once that sees nothing of the host any more
//! - `bundles/PID/`: what an OCI runtime is given, and what it keeps for itself
//! - `log`: what runs in the background wrote
//! - `lock`: held exclusively while the overlay is being mounted or the container changed

use std::fmt;
use std::str::FromStr;

use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::home::Home;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::image::ImageConfig;
use crate::safefs::{self, Lock};

/// Between two looks at what is ending.
const POLL: Duration = Duration::from_millis(20);

/// The format of [`Record`] that this program writes.
pub const FORMAT: u32 = 1;

/// How a container is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// Namespaces that this program sets up, and an overlay.
    N,
    /// An OCI runtime, runc or crun, on the same overlay.
    R1,
    /// `PRoot`, by seccomp where it can.
    P1,
    /// `PRoot`, by ptrace alone.
    P2,
    /// `fakechroot`, and the container's own loader for every program.
    F1,
    /// The same, with a loader that looks for nothing on the host.
    F2,
    /// `fakechroot`, and programs that name the container's loader.
    F3,
    /// The same, also for programs that were added since the last run.
    F4,
    /// Apptainer, or Singularity.
    S1,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::N,
        Self::R1,
        Self::P1,
        Self::P2,
        Self::F1,
        Self::F2,
        Self::F3,
        Self::F4,
        Self::S1,
    ];

    /// Whether it needs no namespaces, and so cannot mount what the container shares with others.
    pub fn mounts_nothing(self) -> bool {
        !matches!(self, Self::N | Self::R1)
    }

    /// Whether system calls are translated by a process beside the container's.
    pub fn is_traced(self) -> bool {
        matches!(self, Self::P1 | Self::P2)
    }

    /// Whether names are translated by a library in the container's programs.
    pub fn is_fake(self) -> bool {
        matches!(self, Self::F1 | Self::F2 | Self::F3 | Self::F4)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::N => "N",
            Self::R1 => "R1",
            Self::P1 => "P1",
            Self::P2 => "P2",
            Self::F1 => "F1",
            Self::F2 => "F2",
            Self::F3 => "F3",
            Self::F4 => "F4",
            Self::S1 => "S1",
        })
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if matches!(text, "R2" | "R3") {
            fail!(
                Kind::Usage,
                "mode {text} is R1 with PRoot inside, which pretends other users: R1 has them, by your ranges in /etc/subuid"
            );
        }
        let found = Self::ALL.into_iter().find(|mode| mode.to_string() == text);
        found.ok_or_else(|| {
            let all = Self::ALL.map(|mode| mode.to_string()).join(", ");
            Error::new(Kind::Usage, format!("\"{text}\" is not a mode: {all}"))
        })
    }
}

/// What is on record of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// [`FORMAT`]
    pub format: u32,
    /// Its id, a UUID.
    pub id: String,
    /// The image, by name and tag.
    pub image: String,
    /// The image's id.
    pub image_id: String,
    /// When it was created, in seconds since 1970.
    pub created: u64,
    /// `os/architecture[/variant]`
    pub platform: String,
    /// How it runs.
    pub mode: Mode,
    /// Its files are its own, in `ROOT`, or on their way there.
    #[serde(default)]
    pub own_files: bool,
    /// It is not removed, nor anything of it changed.
    #[serde(default)]
    pub protected: bool,
    /// It sees the host's NVIDIA driver.
    #[serde(default)]
    pub nvidia: bool,
    /// The shared files it stands on: a name below `H/trees`.
    pub tree: String,
    /// Where its files are, if they are somebody else's and only lent to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<Utf8PathBuf>,
    /// The image's config, as it came.
    pub config: Value,
}

/// A container.
#[derive(Debug, Clone)]
pub struct Container {
    /// Where it is.
    pub path: Utf8PathBuf,
    /// What is on record.
    pub record: Record,
}

impl Container {
    /// Read the container of this id.
    pub fn open(home: &Home, id: &str) -> Result<Self> {
        Self::read(&home.container(id))
    }

    fn read(path: &Utf8Path) -> Result<Self> {
        let path = path.to_owned();
        let file = path.join("container.json");
        let text = std::fs::read(&file).context(|| format!("cannot read {file}"))?;
        let record: Record =
            serde_json::from_slice(&text).kind(Kind::Invalid, || format!("{file} is damaged"))?;
        if record.format > FORMAT {
            fail!(
                Kind::Invalid,
                "{file} is of a later version of this program"
            );
        }
        Ok(Self { path, record })
    }

    /// The image's config, as far as this program uses it.
    pub fn image_config(&self) -> Result<ImageConfig> {
        let config = ImageConfig::deserialize(&self.record.config);
        config.kind(Kind::Invalid, || "the image config is not valid".into())
    }

    /// Write the record.
    pub fn save(&self) -> Result<()> {
        let text = serde_json::to_vec_pretty(&self.record)
            .context(|| "cannot write the record of a container".into())?;
        safefs::replace_file(self.path.join("container.json").as_std_path(), &text, 0o600)
    }

    /// While this is held nobody else mounts or changes it.
    pub fn turn(&self) -> Result<Lock> {
        let path = self.path.join("lock");
        Lock::take(path.as_std_path(), safefs::Mode::Exclusive, &self.record.id)
    }

    /// Processes that keep its overlay mounted.
    pub fn holders(&self) -> Result<Vec<u32>> {
        let traces = self.traces()?.into_iter();
        let mut alive: Vec<u32> = traces
            .filter(|trace| trace.holder.is_alive())
            .map(|trace| trace.holder.pid)
            .collect();
        alive.sort_unstable();
        Ok(alive)
    }

    /// # Errors
    /// [`Kind::Refused`] if nothing runs in it.
    pub fn require_running(&self) -> Result<()> {
        if self.holders()?.is_empty() {
            fail!(Kind::Refused, "container {} is not running", self.record.id);
        }
        Ok(())
    }

    /// A process that keeps its overlay mounted, and the first one of the container there, if any is past its
    /// beginning.
    pub fn first_process(&self) -> Result<Option<(u32, u32)>> {
        let traces = self.traces()?.into_iter();
        let mut firsts = traces.filter_map(|trace| {
            let first = trace.first.filter(|_| trace.holder.is_alive())?;
            first.is_alive().then_some((trace.holder.pid, first.pid))
        });
        Ok(firsts.next())
    }

    fn traces(&self) -> Result<Vec<Trace>> {
        let run = self.path.join("run");
        let failed = || format!("cannot read {run}");
        let entries = match run.read_dir_utf8() {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context(failed),
        };
        let mut out = Vec::new();
        for entry in entries {
            let entry = entry.context(failed)?;
            // Others are being written.
            let Ok(pid) = entry.file_name().parse() else {
                continue;
            };
            match std::fs::read_to_string(entry.path()) {
                Ok(text) => out.push(Trace::parse(pid, &text)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).context(failed),
            }
        }
        Ok(out)
    }

    /// Remove what killed ones left; [`Self::turn`] must be held.
    pub fn sweep_traces(&self) -> Result<()> {
        for trace in self.traces()? {
            if !trace.holder.is_alive() {
                self.remove_holder(trace.holder.pid)?;
            }
        }
        Ok(())
    }

    /// Put a process on record that keeps the overlay mounted, and the first one of the container, once that is
    /// where nothing of the host is seen.
    pub fn add_holder(&self, holder: u32, first: Option<u32>) -> Result<()> {
        let run = self.path.join("run");
        let failed = || format!("cannot write to {run}");
        safefs::make_private_dir(run.as_std_path())?;
        let lines = [Some(holder), first]
            .into_iter()
            .flatten()
            .filter_map(Alive::of);
        let text: String = lines
            .map(|alive| format!("{} {}\n", alive.pid, alive.start))
            .collect();
        // It means nothing after a reboot, so nothing is synced.
        let staged = run.join(format!(".{holder}"));
        std::fs::write(&staged, text).context(failed)?;
        std::fs::rename(&staged, run.join(holder.to_string())).context(failed)
    }

    /// It has ended.
    pub fn remove_holder(&self, pid: u32) -> Result<()> {
        safefs::remove_tree(self.bundle(pid).as_std_path())?;
        safefs::remove_if_exists(self.path.join("run").join(pid.to_string()).as_std_path())
    }

    /// Where an OCI runtime has what it needs for a run that this process keeps mounted.
    pub fn bundle(&self, holder: u32) -> Utf8PathBuf {
        self.path.join("bundles").join(holder.to_string())
    }

    /// Ask what runs in it to end, and after `grace` end it. False if nothing does.
    pub fn stop(&self, grace: Duration) -> Result<bool> {
        let signal = |signal| -> Result<bool> {
            let holders = self.holders()?;
            for holder in &holders {
                signal_run(*holder, self.record.mode, signal);
            }
            Ok(!holders.is_empty())
        };
        if !signal(Signal::TERM)? {
            return Ok(false);
        }
        let begun = Instant::now();
        while begun.elapsed() < grace {
            if self.holders()?.is_empty() {
                return Ok(true);
            }
            std::thread::sleep(POLL);
        }
        while signal(Signal::KILL)? {
            std::thread::sleep(POLL);
        }
        Ok(true)
    }

    /// The files of its own, if it has any.
    pub fn files(&self) -> Option<Utf8PathBuf> {
        self.record.own_files.then(|| self.root())
    }

    /// What of its files is its own and no other's: all of them, or those that were written.
    pub fn written(&self) -> Utf8PathBuf {
        let written = || self.path.join("upper");
        self.files().unwrap_or_else(written)
    }

    /// It, as it is on record now.
    pub fn reloaded(&self) -> Result<Self> {
        Self::read(&self.path)
    }

    /// # Errors
    /// [`Kind::Refused`] if it has changed since it was looked at, so that what was prepared does not fit any more.
    pub fn check_unchanged(&self) -> Result<()> {
        let now = self.reloaded()?.record;
        if now.mode != self.record.mode || now.own_files != self.record.own_files {
            fail!(
                Kind::Refused,
                "container {} is being set up: try again",
                self.record.id
            );
        }
        Ok(())
    }

    /// Where the output of a run in the background goes.
    pub fn log(&self) -> Utf8PathBuf {
        self.path.join("log")
    }

    /// # Errors
    /// [`Kind::Refused`] if it is protected.
    pub fn check_unprotected(&self) -> Result<()> {
        if self.record.protected {
            fail!(Kind::Refused, "container {} is protected", self.record.id);
        }
        Ok(())
    }

    /// Where its root is.
    pub fn root(&self) -> Utf8PathBuf {
        let own = || self.path.join("ROOT");
        self.record.location.clone().unwrap_or_else(own)
    }
}

/// Send a signal to what a process runs that keeps a container.
fn signal_run(holder: u32, mode: Mode, signal: Signal) {
    let mut targets = vec![holder];
    if mode.is_traced() {
        // PRoot is deaf to signals; killed, it would let go of the programs, which would see the host then.
        targets = children_of(holder);
        if targets.is_empty() || signal == Signal::KILL {
            targets = traced_by(holder);
        }
    }
    for pid in targets {
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            // It may be gone by now.
            let _ = kill_process(pid, signal);
        }
    }
}

/// The children of a process. Source: proc(5), `/proc/PID/task/TID/children`.
pub fn children_of(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let text = text.unwrap_or_default();
    text.split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}

/// The processes that a process traces.
fn traced_by(pid: u32) -> Vec<u32> {
    let wanted = format!("TracerPid:\t{pid}");
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers
        .filter(|number: &u32| {
            let status = std::fs::read_to_string(format!("/proc/{number}/status"));
            status.is_ok_and(|text| text.lines().any(|line| line == wanted))
        })
        .collect()
}

/// A process, told from a later one of the same number by when it was started.
struct Alive {
    pid: u32,
    start: String,
}

impl Alive {
    fn of(pid: u32) -> Option<Self> {
        start_of(pid).map(|start| Self { pid, start })
    }

    fn is_alive(&self) -> bool {
        start_of(self.pid).is_some_and(|start| start == self.start)
    }
}

/// What a run is known by.
struct Trace {
    holder: Alive,
    first: Option<Alive>,
}

impl Trace {
    fn parse(pid: u32, text: &str) -> Self {
        let mut lines = text.lines().filter_map(|line| {
            let (pid, start) = line.split_once(' ')?;
            Some(Alive {
                pid: pid.parse().ok()?,
                start: start.to_owned(),
            })
        });
        let unknown = || Alive {
            pid,
            start: String::new(),
        };
        Self {
            holder: lines
                .next()
                .filter(|holder| holder.pid == pid)
                .unwrap_or_else(unknown),
            first: lines.next(),
        }
    }
}

/// When a process was started, in the kernel's ticks since boot. Source: proc(5), `/proc/PID/stat`.
fn start_of(pid: u32) -> Option<String> {
    let stat =
        std::fs::read_to_string(Utf8Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The second field, in parentheses, may have blanks.
    let (_, rest) = stat.rsplit_once(')')?;
    let state = rest.split_whitespace().next()?;
    (state != "Z").then_some(())?;
    rest.split_whitespace().nth(19).map(str::to_owned)
}
