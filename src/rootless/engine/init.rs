//! Process 1 of a container: it makes the container's root its world, starts the program, passes signals on
//! to it, and cleans up after everybody.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Access, FileType, Gid, Mode, Uid};
use rustix::process::{DumpableBehavior, Pid, WaitOptions, wait};

use super::signals::{Forward, Listening};
use super::wire::{self, Report};
use super::{CANNOT_EXECUTE, InitTask, NO_SUCH_PROGRAM, SETUP_FAILED, root, runtime};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::rootless::process::{Process, Resolved};
use crate::runtime::{User, capabilities};
use crate::safefs::{self, Identity, Root};

/// What the program does not give new files of their modes, whatever the caller's is.
pub(super) const UMASK: Mode = Mode::from_raw_mode(0o022);

/// Be that process: the exit code is the program's. `line`: the number of a pipe to whoever started it.
pub fn main(number: i32, line: i32) -> Result<u8> {
    hide()?;
    let inherited =
        |number| safefs::inherited(number).context(|| "nobody is there to talk to".into());
    let (stream, line) = (inherited(number)?, inherited(line)?);
    Ok(see_to(stream.into(), |stream| start(stream, &line)))
}

/// Have nobody in the container get at this program by way of `/proc/PID/exe`: it is the host's, and may be its
/// user's to write. What it executes is as open as any.
pub(super) fn hide() -> Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context(|| "cannot hide from the container".into())
}

/// Start a program, tell the parent how that went, and wait for its end.
pub(super) fn see_to(
    mut stream: UnixStream,
    start: impl FnOnce(&mut UnixStream) -> Result<Pid>,
) -> u8 {
    match start(&mut stream) {
        Ok(program) => {
            // The end of the stream says that it runs.
            drop(stream);
            reap(program)
        }
        Err(error) => {
            let code = match error.kind() {
                Kind::Child(code) => code,
                _ => SETUP_FAILED,
            };
            let message = error.to_string();
            wire::report(&mut stream, &Report::Failed { code, message });
            code
        }
    }
}

fn start(stream: &mut UnixStream, line: &OwnedFd) -> Result<Pid> {
    let task: InitTask = wire::receive(stream)?;
    let failed = || "cannot set up the first process".into();
    safefs::become_root().context(failed)?;
    safefs::end_with_parent(line).context(failed)?;
    rustix::process::umask(UMASK);
    // Process 1 hears only what it listens to; a thread would stay behind in the host's world.
    let listening = Listening::start()?;
    if let Some(runtime) = &task.runtime {
        root::number_anew()?;
        let forward = Forward::of(listening, task.at_terminal)?;
        let pid = runtime::start(&task, runtime)?;
        forward.to(pid);
        return Ok(pid);
    }
    root::enter(&task)?;
    rustix::system::sethostname(task.process.hostname.as_bytes()).context(failed)?;
    launch(&task, &Forward::of(listening, task.at_terminal)?)
}

/// Start the program in the root that this process is in.
pub(super) fn launch(task: &InitTask, forward: &Forward) -> Result<Pid> {
    let process = &task.process;
    let resolved = process.resolve(&Root::open(Path::new("/"))?)?;
    check_user(task, &resolved.user)?;
    let directory = go_to(process)?;
    let program = find(&process.args, &directory, &resolved.env)?;
    let child = command(task, &program, resolved)?
        .current_dir(directory)
        .spawn()
        .map_err(|error| {
            let text = format!("cannot execute {}: {error}", program.display());
            Error::new(Kind::Child(CANNOT_EXECUTE), text)
        })?;
    let pid = Pid::from_child(&child);
    forward.to(pid);
    Ok(pid)
}

/// # Errors
/// [`Kind::Invalid`] for a user or group that this namespace does not have.
pub(super) fn check_user(task: &InitTask, user: &User) -> Result<()> {
    let has = |file: &str, id: u32| {
        // Whoever enters has no number among the processes there yet.
        let read = |process: &str| std::fs::read_to_string(format!("/proc/{process}/{file}"));
        let text = read("self").or_else(|_| read("1")).unwrap_or_default();
        text.lines().any(|line| {
            // The first one inside, the first one outside, how many. Source: user_namespaces(7).
            let mut numbers = line
                .split_whitespace()
                .filter_map(|word| word.parse::<u32>().ok());
            let (first, count) = (numbers.next(), numbers.nth(1));
            let within = |first: u32, count: u32| id >= first && id - first < count;
            first
                .zip(count)
                .is_some_and(|(first, count)| within(first, count))
        })
    };
    let groups = user.additional_gids.iter().chain([&user.gid]);
    let has_groups = groups.into_iter().all(|gid| has("gid_map", *gid));
    if has("uid_map", user.uid) && has_groups {
        return Ok(());
    }
    let remedy = if task.has_range {
        "is outside of your ranges in /etc/subuid and /etc/subgid"
    } else {
        "needs more ids than your own: ask for a range in /etc/subuid and /etc/subgid"
    };
    fail!(
        Kind::Invalid,
        "the container's user {}:{} {remedy}",
        user.uid,
        user.gid
    )
}

fn command(task: &InitTask, program: &Path, resolved: Resolved) -> Result<Command> {
    let Some((first, rest)) = task.process.args.split_first() else {
        fail!(Kind::Usage, "there is no program");
    };
    let mut command = Command::new(program);
    command.arg0(first).args(rest).env_clear();
    command.envs(
        resolved
            .env
            .iter()
            .filter_map(|entry| entry.split_once('=')),
    );
    let user = resolved.user;
    hand_over_pipes(&user);
    // Root keeps the groups of the person who runs it: what is shared with them on the host stays open.
    let is_root = user.uid == 0 && user.gid == 0 && user.additional_gids.is_empty();
    safefs::run_as(
        &mut command,
        &Identity {
            uid: user.uid,
            gid: user.gid,
            groups: (task.has_range && !is_root).then_some(user.additional_gids),
            capabilities: capabilities::default_bits(),
            new_session: !task.at_terminal,
        },
    );
    Ok(command)
}

/// What opens `/dev/stdout` must own the pipe there: logs of services often are such links. Files that somebody
/// redirected to stay whose they are.
fn hand_over_pipes(user: &User) {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    for stream in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        let kind = rustix::fs::fstat(stream).map(|found| FileType::from_raw_mode(found.st_mode));
        if kind == Ok(FileType::Fifo) {
            // One that is somebody else's stays so.
            let _ = rustix::fs::fchown(stream, Some(uid), Some(gid));
        }
    }
}

/// The directory it starts in.
fn go_to(process: &Process) -> Result<PathBuf> {
    let path = PathBuf::from(&process.cwd);
    if !path.is_absolute() {
        fail!(
            Kind::Usage,
            "the working directory {} is not absolute",
            path.display()
        );
    }
    if process.makes_cwd && !path.exists() {
        std::fs::create_dir_all(&path).context(|| format!("cannot create {}", path.display()))?;
    }
    if !path.is_dir() {
        fail!(
            Kind::NotFound,
            "the working directory {} is not there",
            path.display()
        );
    }
    Ok(path)
}

/// The program that a word means in the container.
fn find(args: &[String], here: &Path, env: &[String]) -> Result<PathBuf> {
    let word = args.first().map(String::as_str).unwrap_or_default();
    let candidates: Vec<PathBuf> = if word.contains('/') {
        vec![here.join(word)]
    } else {
        let path = env.iter().find_map(|entry| entry.strip_prefix("PATH="));
        let directories = path.unwrap_or_default().split(':');
        directories
            .map(|directory| here.join(directory).join(word))
            .collect()
    };
    let files = candidates.iter().filter(|path| path.is_file());
    let mut files = files.peekable();
    if files.peek().is_none() {
        fail!(
            Kind::Child(NO_SUCH_PROGRAM),
            "command not found or has no execute bit set: {word}"
        );
    }
    let found = files.find(|path| rustix::fs::access(path.as_path(), Access::EXEC_OK).is_ok());
    found.cloned().ok_or_else(|| {
        Error::new(
            Kind::Child(CANNOT_EXECUTE),
            format!("command not found or has no execute bit set: {word}"),
        )
    })
}

/// Wait for the program, and for whoever lost their parents meanwhile. When this ends, the kernel ends all
/// that are left.
fn reap(program: Pid) -> u8 {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == program => return wire::code_of(status),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return SETUP_FAILED,
        }
    }
}
