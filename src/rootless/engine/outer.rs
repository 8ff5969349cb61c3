//! The stage that is root of the user namespace and keeps the container's root mounted.

use std::ffi::CString;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;

use camino::Utf8Path;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, WaitOptions, waitpid};

use super::signals::Forward;
use super::wire::{self, Report};
use super::{Base, INIT_VERB, Inside, OuterTask, SETUP_FAILED, join};
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::safefs::{self, Leave};

/// Be that stage: the exit code is the program's. `namespaces`: numbers of descriptors of those that are there
/// already, where they are.
pub fn main(number: i32, namespaces: &[i32]) -> Result<u8> {
    let stream = safefs::inherited(number).context(|| "nobody is there to talk to".into())?;
    let mut stream = UnixStream::from(stream);
    let namespaces = join::inherited(namespaces)?;
    safefs::close_on_exec().context(|| "cannot close what others left open".into())?;
    wire::ready(&mut stream)?;
    let task: OuterTask = wire::receive(&mut stream)?;
    match start(&mut stream, &task, &namespaces) {
        Ok((first, _line)) => {
            // When the first process closes its end as well, the parent knows that all is well.
            drop(stream);
            wait_for(first)
        }
        Err(error) => {
            let (code, message) = (SETUP_FAILED, error.to_string());
            wire::report(&mut stream, &Report::Failed { code, message });
            Ok(code)
        }
    }
}

fn start(
    stream: &mut UnixStream,
    task: &OuterTask,
    namespaces: &[OwnedFd],
) -> Result<(Pid, Option<OwnedFd>)> {
    let failed = || "cannot become root of the user namespace".into();
    if namespaces.is_empty() {
        safefs::become_root().context(failed)?;
        // After the change of identity, which makes the kernel forget it.
        safefs::end_with_parent(stream).context(failed)?;
    } else {
        join::enter(namespaces, stream)?;
    }
    if let Some(base) = &task.base {
        mount_root(task, base)?;
    }
    wire::report(stream, &Report::Mounted);
    // A process that has left its number space can start no thread.
    let forward = Forward::start(task.at_terminal)?;
    let (pid, line) = match &task.inside {
        Inside::First => first(stream).map(|(pid, line)| (pid, Some(line)))?,
        Inside::Host(words) => (of_host(&task.container, words)?, None),
    };
    forward.to(pid);
    Ok((pid, line))
}

/// The first process of a world of its own, and a pipe by which it sees whether this one is there.
fn first(stream: &UnixStream) -> Result<(Pid, OwnedFd)> {
    let failed = || "cannot start the first process".into();
    let (theirs, ours) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context(failed)?;
    safefs::leave(Leave::Others).context(|| "cannot leave the namespaces".into())?;
    safefs::keep_open(stream).context(failed)?;
    safefs::keep_open(&theirs).context(failed)?;
    // By this name it is found also if somebody has replaced it meanwhile.
    let child = Command::new("/proc/self/exe")
        .arg(INIT_VERB)
        .args([stream.as_raw_fd(), theirs.as_raw_fd()].map(|number| number.to_string()))
        .spawn()
        .context(failed)?;
    Ok((Pid::from_child(&child), ours))
}

fn of_host(container: &Utf8Path, words: &[String]) -> Result<Pid> {
    let Some((program, args)) = words.split_first() else {
        fail!(Kind::Usage, "there is no program");
    };
    let child = Command::new(program)
        .args(args)
        .current_dir(container.join("ROOT"))
        .spawn()
        .context(|| format!("cannot run {program}"))?;
    Ok(Pid::from_child(&child))
}

/// Mount the root where only this namespace sees it.
fn mount_root(task: &OuterTask, base: &Base) -> Result<()> {
    let failed = || "cannot mount the container's root".into();
    // What the host mounts later on is seen by later runs; nothing of ours is seen by the host.
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .context(failed)?;
    // Relative names have nothing that mount options would misread.
    std::env::set_current_dir(&task.container).context(failed)?;
    let lower = match base {
        Base::Overlay(lower) => lower,
        Base::Files(root) => {
            return mount_bind(root.as_str(), root.as_str()).context(failed);
        }
    };
    let options = format!(
        "lowerdir={},upperdir=upper,workdir=work,userxattr",
        lower.join(":")
    );
    let options = CString::new(options).context(failed)?;
    mount(
        "overlay",
        "ROOT",
        "overlay",
        MountFlags::NODEV,
        options.as_c_str(),
    )
    .context(failed)
}

/// Wait for the end of a child, and say it in an exit code.
pub(super) fn wait_for(pid: Pid) -> Result<u8> {
    loop {
        match waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(wire::code_of(status)),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context(|| "cannot wait for the container".into()),
        }
    }
}
