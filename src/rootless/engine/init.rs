//! Process 1 of a container: it makes the container's root its world, starts the program, passes signals on
//! to it, and cleans up after everybody.

use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::Access;
use rustix::process::{Pid, WaitOptions, waitpid};

use super::signals::Forward;
use super::wire::{self, Report};
use super::{CANNOT_EXECUTE, InitTask, NO_SUCH_PROGRAM, SETUP_FAILED, root};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::rootless::process::{Process, Resolved};
use crate::runtime::{User, capabilities};
use crate::safefs::{self, Identity, Root};

/// Be that process: the exit code is the program's.
pub fn main(number: i32) -> Result<u8> {
    let stream = safefs::inherited(number).context(|| "nobody is there to talk to".into())?;
    Ok(see_to(stream.into(), start))
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

fn start(stream: &mut UnixStream) -> Result<Pid> {
    let task: InitTask = wire::receive(stream)?;
    let failed = || "cannot set up the first process".into();
    safefs::become_root().context(failed)?;
    safefs::end_with_parent().context(failed)?;
    root::enter(&task)?;
    rustix::system::sethostname(task.process.hostname.as_bytes()).context(failed)?;
    launch(&task, &Forward::start(task.at_terminal)?)
}

/// Start the program in the root that this process is in.
pub(super) fn launch(task: &InitTask, forward: &Forward) -> Result<Pid> {
    let process = &task.process;
    let resolved = process.resolve(&Root::open(Path::new("/"))?)?;
    check_user(task, &resolved.user)?;
    let directory = go_to(process)?;
    let program = find(&process.args, &resolved.env)?;
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
/// [`Kind::Invalid`] for a user whose id is not mapped.
pub(super) fn check_user(task: &InitTask, user: &User) -> Result<()> {
    if !task.has_range && (user.uid, user.gid) != (0, 0) {
        fail!(
            Kind::Invalid,
            "the container's user {}:{} needs more ids than your own: ask for a range in /etc/subuid and /etc/subgid",
            user.uid,
            user.gid
        );
    }
    Ok(())
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
    // Root keeps the groups of the person who runs it: what is shared with them on the host stays open.
    let is_root = user.uid == 0 && user.gid == 0 && user.additional_gids.is_empty();
    safefs::run_as(
        &mut command,
        &Identity {
            uid: user.uid,
            gid: user.gid,
            groups: (task.has_range && !is_root).then_some(user.additional_gids),
            capabilities: capabilities::default_bits(),
        },
    );
    Ok(command)
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
fn find(args: &[String], env: &[String]) -> Result<PathBuf> {
    let word = args.first().map(String::as_str).unwrap_or_default();
    let candidates: Vec<PathBuf> = if word.contains('/') {
        vec![PathBuf::from(word)]
    } else {
        let path = env.iter().find_map(|entry| entry.strip_prefix("PATH="));
        let directories = path.unwrap_or_default().split(':');
        directories
            .map(|directory| Path::new(directory).join(word))
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
        match waitpid(None, WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == program => return wire::code_of(status),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return SETUP_FAILED,
        }
    }
}
