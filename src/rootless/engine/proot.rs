//! `PRoot`: the program's system calls are stopped and their paths translated. No namespaces and no mounts.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child as Running, Command};
use std::time::Duration;

use camino::Utf8Path;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, wait};

use super::parent::is_at_terminal;
use super::probe::{self, Confinement};
use super::root::HOST_FILES;
use super::signals::Forward;
use super::{NO_SUCH_PROGRAM, wire};
use crate::command::{Child, find_program};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::rootless::container::{Container, Mode, children_of};
use crate::rootless::home::Home;
use crate::rootless::process::Process;
use crate::safefs::{Files as _, Root};

/// By this variable `PRoot` is told not to use seccomp.
const NO_SECCOMP: (&str, &str) = ("PROOT_NO_SECCOMP", "1");
/// Of the host's, in every container.
const DIRECTORIES: [&str; 3] = ["/dev", "/proc", "/sys"];
/// No C library is larger.
const MAX_LIBRARY_BYTES: u64 = 64 * 1024 * 1024;
/// Between two looks at what is starting or ending.
const POLL: Duration = Duration::from_millis(5);

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
    let Some(files) = container.files() else {
        fail!(Kind::Failed, "the container has no files of its own");
    };
    let proot = Proot::find()?;
    let mode = container.record.mode;
    check(home, &proot, mode, &files, allow_leaky)?;
    let mut command = command(&proot, mode, &files, process)?;
    let at_terminal = is_at_terminal();
    let forward = Forward::start(at_terminal)?;
    // Whoever loses their parents is ours to end.
    let own = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(own)).context(|| "cannot adopt processes".into())?;
    let turn = container.turn()?;
    container.sweep_traces()?;
    let running = command
        .spawn()
        .context(|| format!("cannot run {}", proot.path))?;
    let pid = running.id();
    container.add_holder(pid, None)?;
    drop(turn);
    let code = see_to(&running, &forward);
    container.remove_holder(pid)?;
    code
}

/// Wait for its end, and for that of all that it ran.
fn see_to(running: &Running, forward: &Forward) -> Result<u8> {
    let proot = running.id();
    let failed = || "cannot start a thread".into();
    let first = first_child(proot);
    if let Some(first) = first {
        forward.to(first);
        let watch = std::thread::Builder::new().name("watch".into());
        // It ends with the program.
        watch
            .spawn(move || {
                wait_for_end(first);
                loop {
                    end_others(proot);
                    std::thread::sleep(POLL);
                }
            })
            .context(failed)?;
    }
    let code = loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == Pid::from_child(running) => {
                break wire::code_of(status);
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context(|| "cannot wait for the container".into()),
        }
    };
    // If it was killed, what it had in hand runs on, and sees the host.
    while !children_of(std::process::id()).is_empty() {
        end_others(proot);
        let _ = wait(WaitOptions::NOHANG);
        std::thread::sleep(POLL);
    }
    Ok(code)
}

/// The program itself, as soon as there is one.
fn first_child(proot: u32) -> Option<Pid> {
    loop {
        if let Some(first) = children_of(proot).first() {
            return i32::try_from(*first).ok().and_then(Pid::from_raw);
        }
        let stat = std::fs::read_to_string(format!("/proc/{proot}/stat")).ok()?;
        if stat.contains(") Z ") {
            return None;
        }
        std::thread::sleep(POLL);
    }
}

fn wait_for_end(pid: Pid) {
    if let Ok(watched) = pidfd_open(pid, PidfdFlags::empty()) {
        let poll = &mut [rustix::event::PollFd::new(
            &watched,
            rustix::event::PollFlags::IN,
        )];
        while rustix::event::poll(poll, None) == Err(rustix::io::Errno::INTR) {}
    }
}

/// End all that was adopted.
fn end_others(proot: u32) {
    for pid in children_of(std::process::id()) {
        if pid != proot
            && let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw)
        {
            let _ = kill_process(pid, Signal::KILL);
        }
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
    let root = Root::open(files.as_std_path())?;
    let resolved = process.resolve(&root)?;
    if !process.cwd.starts_with('/') {
        fail!(
            Kind::Usage,
            "the working directory {} is not absolute",
            process.cwd
        );
    }
    let mut command = proot.command(mode);
    command.args(["-r", files.as_str(), "-w", &process.cwd]);
    for path in DIRECTORIES {
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
        command
            .arg("-b")
            .arg(format!("{}:{}", volume.source, volume.destination));
    }
    let user = &resolved.user;
    if user.uid == 0 {
        command.arg("-0");
    } else {
        command.args(["-i", &format!("{}:{}", user.uid, user.gid)]);
    }
    let is_seen = |path: &str| {
        process
            .volumes
            .iter()
            .any(|volume| Utf8Path::new(path).starts_with(&volume.destination))
    };
    if process.makes_cwd {
        root.make_dir(&process.cwd)?;
    } else if !is_seen(&process.cwd) && !root.stat(&process.cwd)?.is_some_and(|stat| stat.is_dir) {
        fail!(
            Kind::NotFound,
            "the working directory {} is not there",
            process.cwd
        );
    }
    let Some((word, _)) = process.args.split_first() else {
        fail!(Kind::Usage, "there is no program");
    };
    // It would look for it by itself, and say that there is none by a code that means other things as well.
    let has_volumes = !process.volumes.is_empty();
    if !has_volumes && !is_program(&root, word, &process.cwd, &resolved.env)? {
        return Err(Error::new(
            Kind::Child(NO_SUCH_PROGRAM),
            format!("command not found or has no execute bit set: {word}"),
        ));
    }
    command.args(&process.args);
    let pairs = resolved
        .env
        .iter()
        .filter_map(|entry| entry.split_once('='));
    command.envs(pairs);
    if !is_at_terminal() {
        // A hang-up of our terminal is no concern of its.
        command.process_group(0);
    }
    Ok(command)
}

fn is_program(root: &Root, word: &str, cwd: &str, env: &[String]) -> Result<bool> {
    let is_executable = |path: &str| -> Result<bool> {
        let found = root.stat(path)?;
        Ok(found.is_some_and(|stat| !stat.is_dir && stat.mode & 0o111 != 0))
    };
    let below = |directory: &str| Utf8Path::new(directory).join(word);
    if word.contains('/') {
        return is_executable(below(cwd).as_str());
    }
    let path = env.iter().find_map(|entry| entry.strip_prefix("PATH="));
    for directory in path.unwrap_or_default().split(':') {
        if is_executable(below(directory).as_str())? {
            return Ok(true);
        }
    }
    Ok(false)
}
