//! The stage that is root of the user namespace and keeps the container's root mounted.

use std::ffi::CString;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{Pid, WaitOptions, waitpid};

use super::signals::Forward;
use super::wire::{self, Report};
use super::{INIT_VERB, OuterTask, SETUP_FAILED, join, runtime};
use crate::error::{Context as _, Result};
use crate::safefs::{self, Leave};

/// Be that stage: the exit code is the program's. `namespaces`: numbers of descriptors of those that are there
/// already, where they are.
pub fn main(number: i32, namespaces: &[i32]) -> Result<u8> {
    let stream = safefs::inherited(number).context(|| "nobody is there to talk to".into())?;
    let mut stream = UnixStream::from(stream);
    let namespaces = join::inherited(namespaces)?;
    wire::ready(&mut stream)?;
    let task: OuterTask = wire::receive(&mut stream)?;
    match start(&mut stream, &task, &namespaces) {
        Ok(first) => {
            // When the first process closes its end as well, the parent knows that all is well.
            drop(stream);
            let code = wait_for(first);
            runtime::clear(&task.container);
            code
        }
        Err(error) => {
            let (code, message) = (SETUP_FAILED, error.to_string());
            wire::report(&mut stream, &Report::Failed { code, message });
            Ok(code)
        }
    }
}

fn start(stream: &mut UnixStream, task: &OuterTask, namespaces: &[OwnedFd]) -> Result<Pid> {
    let failed = || "cannot become root of the user namespace".into();
    if namespaces.is_empty() {
        safefs::become_root().context(failed)?;
        // After the change of identity, which makes the kernel forget it.
        safefs::end_with_parent().context(failed)?;
    } else {
        join::enter(namespaces)?;
    }
    if let Some(lower) = &task.lower {
        mount_root(task, lower)?;
    }
    wire::report(stream, &Report::Mounted);
    // A process that has left its number space can start no thread.
    let forward = Forward::start(task.at_terminal)?;
    if let Some(runtime) = &task.runtime {
        let pid = runtime::start(stream, &task.container, runtime)?;
        forward.to(pid);
        return Ok(pid);
    }
    safefs::leave(Leave::Others).context(|| "cannot leave the namespaces".into())?;
    safefs::keep_open(stream).context(failed)?;
    let program = std::env::current_exe().context(|| "cannot find myself".into())?;
    let child = Command::new(program)
        .arg(INIT_VERB)
        .arg(stream.as_raw_fd().to_string())
        .spawn()
        .context(|| "cannot start the first process".into())?;
    let pid = Pid::from_child(&child);
    forward.to(pid);
    Ok(pid)
}

/// Mount the overlay where only this namespace sees it.
fn mount_root(task: &OuterTask, lower: &[String]) -> Result<()> {
    let failed = || "cannot mount the container's root as an overlay".into();
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .context(failed)?;
    // Relative names have nothing that mount options would misread.
    std::env::set_current_dir(&task.container).context(failed)?;
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
