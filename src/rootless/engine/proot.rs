//! `PRoot`: the program's system calls are stopped and their paths translated. No namespaces and no mounts.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child as Running, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use camino::Utf8Path;
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, wait};

use super::parent::is_at_terminal;
use super::probe::{self, Confinement};
use super::root::HOST_FILES;
use super::signals::Forward;
use super::{adopt, program, wire};
use crate::command::{Child, find_program};
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::rootless::container::{Container, Mode, children_of};
use crate::rootless::fake::OF_HOST;
use crate::rootless::home::Home;
use crate::rootless::process::Process;
use crate::safefs::{self, Files as _, Root};

/// By this variable `PRoot` is told not to use seccomp.
const NO_SECCOMP: (&str, &str) = ("PROOT_NO_SECCOMP", "1");
/// No C library is larger.
const MAX_LIBRARY_BYTES: u64 = 64 * 1024 * 1024;

/// The program, and what it can do.
#[derive(Debug, Clone)]
pub struct Proot {
    path: String,
    has_seccomp: bool,
    help: String,
}

impl Proot {
    /// The one that is installed, or named by `PROOT_PATH`.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none.
    pub fn find() -> Result<Self> {
        let named = std::env::var("PROOT_PATH").unwrap_or_else(|_| "proot".into());
        let Some(path) = find_program(&named) else {
            fail!(
                Kind::NotFound,
                "the program \"{named}\" is not installed: modes P1 and P2 are by it"
            );
        };
        let path = path.to_string_lossy().into_owned();
        let ask = |word: &str| -> Result<String> {
            let said = Child::new(&path).arg(word).output()?;
            Ok(String::from_utf8_lossy(&said.stdout).into_owned())
        };
        let version = ask("--version")?;
        Ok(Self {
            has_seccomp: version.contains("seccomp_filter = yes"),
            help: ask("--help")?,
            path,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// It, to run in a mode.
    pub fn command(&self, mode: Mode) -> Command {
        let mut command = Command::new(&self.path);
        // It is not to die with us: what it has in hand would go on without it, and on the host's files.
        command.env_clear();
        // Where it puts what it executes itself by.
        if let Some(path) = std::env::var_os("PROOT_TMP_DIR") {
            command.env("PROOT_TMP_DIR", path);
        }
        if mode == Mode::P2 && self.has_seccomp {
            command.env(NO_SECCOMP.0, NO_SECCOMP.1);
        }
        if self.help.contains("--kill-on-exit") {
            command.arg("--kill-on-exit");
        }
        command
    }
}

/// Run a process on a container's own files and return its exit code.
///
/// # Errors
/// [`Kind::Refused`] if this `PRoot` does not confine it, and nobody wants it nevertheless (`allow_leaky`).
pub fn run(home: &Home, container: &Container, process: &Process, allow_leaky: bool) -> Result<u8> {
    let proot = Proot::find()?;
    let mode = container.record.mode;
    let command = |files: &Utf8Path| {
        check(home, &proot, mode, files, allow_leaky)?;
        command(&proot, mode, files, process)
    };
    adopt::run(container, command, see_to)
}

/// Wait for its end, and for that of all that it ran.
fn see_to(running: &Running, forward: &Forward) -> Result<u8> {
    let proot = running.id();
    let first = first_child(proot);
    let watched = first.and_then(|first| pidfd_open(first, PidfdFlags::empty()).ok());
    if let Some(first) = first {
        forward.to(first);
    }
    let watched = watched.map(Arc::new);
    let seen = watched.clone();
    let is_over = Arc::new(AtomicBool::new(false));
    let over = is_over.clone();
    let watch = std::thread::Builder::new()
        .name("watch".into())
        .spawn(move || {
            if let Some(watched) = seen {
                let poll = &mut [PollFd::new(&watched, PollFlags::IN)];
                while rustix::event::poll(poll, None) == Err(rustix::io::Errno::INTR) {}
            }
            while !over.load(Ordering::SeqCst) {
                adopt::kill_others(Some(proot));
                std::thread::sleep(adopt::POLL);
            }
        })
        .context(|| "cannot start a thread".into())?;
    let code = loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == Pid::from_child(running) => {
                break wire::code_of(status);
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context(|| "cannot wait for the container".into()),
        }
    };
    // Whoever is started from here on is not of the container.
    is_over.store(true, Ordering::SeqCst);
    if watch.join().is_err() {
        fail!(Kind::Failed, "the thread that watches the container died");
    }
    // PRoot says how the last of all programs ended that were not killed.
    let status = watched.and_then(|watched| safefs::status_of_ended(&watched));
    Ok(status.map_or(code, |status| match status & 0x7f {
        0 => u8::try_from(status >> 8 & 0xff).unwrap_or(code),
        signal => u8::try_from(128 + signal).unwrap_or(code),
    }))
}

/// The program itself, as soon as there is one; nothing if it has ended before it was seen.
fn first_child(proot: u32) -> Option<Pid> {
    loop {
        if let Some(first) = children_of(proot).first() {
            return i32::try_from(*first).ok().and_then(Pid::from_raw);
        }
        let stat = std::fs::read_to_string(format!("/proc/{proot}/stat")).ok()?;
        // What it left behind is ours.
        if stat.contains(") Z ") || !adopt::others(Some(proot)).is_empty() {
            return None;
        }
        std::thread::sleep(adopt::POLL);
    }
}

/// # Errors
/// [`Kind::Refused`] for what would see the host.
fn check(
    home: &Home,
    proot: &Proot,
    mode: Mode,
    files: &Utf8Path,
    allow_leaky: bool,
) -> Result<()> {
    match probe::confinement(home, proot, mode)? {
        Confinement::Whole => Ok(()),
        Confinement::Unknown if allow_leaky => Ok(()),
        Confinement::Unknown => fail!(
            Kind::Refused,
            "whether {} confines what it runs is not known on this processor: use mode N or R1, or --allow-leaky",
            proot.path
        ),
        Confinement::None => fail!(
            Kind::Refused,
            "{} does not confine what it runs in mode {mode}: it would run on the host's own files",
            proot.path
        ),
        Confinement::Leaky if allow_leaky || !uses_statx(files)? => Ok(()),
        Confinement::Leaky => fail!(
            Kind::Refused,
            "{} does not translate the system call statx, which this container's programs use: they would be told of \
             the host's files in place of their own; use mode N or R1, a later PRoot, or --allow-leaky",
            proot.path
        ),
    }
}

/// Whether the container's C library has that call for its programs.
fn uses_statx(files: &Utf8Path) -> Result<bool> {
    let root = Root::open(files.as_std_path())?;
    let names = ["libc.so.6", "ld-musl-x86_64.so.1", "libc.so"];
    let directories = [
        "lib",
        "lib64",
        "usr/lib",
        "usr/lib64",
        "lib/x86_64-linux-gnu",
        "usr/lib/x86_64-linux-gnu",
    ];
    for directory in directories {
        for name in names {
            let path = format!("{directory}/{name}");
            let text = root.read(&path, MAX_LIBRARY_BYTES)?.unwrap_or_default();
            let word = b"\0statx\0";
            if text.windows(word.len()).any(|window| window == word) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn command(proot: &Proot, mode: Mode, files: &Utf8Path, process: &Process) -> Result<Command> {
    let resolved = process.resolve(&Root::open(files.as_std_path())?)?;
    program::directory(process, files)?;
    let program = program::find(process, files, &resolved.env)?;
    let mut command = proot.command(mode);
    command.args(["-r", files.as_str(), "-w", &process.cwd]);
    for path in OF_HOST {
        command.args(["-b", path]);
    }
    for path in HOST_FILES {
        let is_bound = process
            .volumes
            .iter()
            .any(|volume| volume.destination == path);
        if !is_bound && Path::new(path).is_file() {
            command.args(["-b", path]);
        }
    }
    for volume in &process.volumes {
        if volume.read_only {
            fail!(
                Kind::Refused,
                "mode {mode} cannot make {} read-only: use mode N or R1",
                volume.destination
            );
        }
        if volume.source.as_str().contains(':') {
            fail!(
                Kind::Refused,
                "mode {mode} cannot bind {}: there is a colon in it",
                volume.source
            );
        }
        if !volume.source.exists() {
            fail!(Kind::NotFound, "there is no {}", volume.source);
        }
        let pair = format!("{}:{}", volume.source, volume.destination);
        command.args(["-b", &pair]);
    }
    let user = &resolved.user;
    if user.uid == 0 {
        command.arg("-0");
    } else {
        command.args(["-i", &format!("{}:{}", user.uid, user.gid)]);
    }
    // A word of the image's that begins with a dash would be an option: paths begin with a slash.
    command.arg(program.inside);
    command.args(process.args.iter().skip(1));
    let pairs = resolved
        .env
        .iter()
        .filter_map(|entry| entry.split_once('='));
    command.envs(pairs.filter(|(name, _)| is_for_programs(name)));
    if !is_at_terminal() {
        // A hang-up of our terminal is no concern of its.
        command.process_group(0);
    }
    Ok(command)
}

/// Whether a variable is for what runs inside alone: these would be heard by `PRoot` or its loader first.
fn is_for_programs(name: &str) -> bool {
    let is_heard = name.starts_with("PROOT_") || matches!(name, "LD_PRELOAD" | "LD_AUDIT");
    if is_heard {
        tracing::warn!("{name} is not passed on: it would be for PRoot itself");
    }
    !is_heard
}
