//! Runs in a container without namespaces: on its own files, and with whoever loses their parents adopted by this
//! process, and ended with the program.

use std::process::{Child as Running, Command};
use std::time::Duration;

use camino::Utf8Path;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};

use super::parent::is_at_terminal;
use super::signals::Forward;
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::rootless::container::{Container, children_of};
use crate::rootless::fake;

/// Between two looks.
pub const POLL: Duration = Duration::from_millis(5);

/// Run a command on a container's own files and return the exit code that `see_to` has for it.
///
/// `command`: told where the files are, with the container's turn held.
///
/// # Errors
/// [`Kind::Refused`] if the files are not what the container's mode needs.
pub fn run(
    container: &Container,
    command: impl FnOnce(&Utf8Path) -> Result<Command>,
    see_to: impl FnOnce(&Running, &Forward) -> Result<u8>,
) -> Result<u8> {
    // Before anything runs, so that no signal gets lost.
    let forward = Forward::start(is_at_terminal())?;
    start()?;
    let turn = container.turn()?;
    fake::check_ready(container)?;
    let Some(files) = container.files() else {
        fail!(Kind::Failed, "the container has no files of its own");
    };
    container.sweep_traces()?;
    let mut command = command(&files)?;
    let running = command.spawn().context(|| {
        let program = command.get_program().to_string_lossy();
        format!("cannot run {program}")
    })?;
    let pid = running.id();
    let recorded = container.add_holder(pid, None);
    drop(turn);
    let code = recorded.and_then(|()| see_to(&running, &forward));
    end_all();
    let _turn = container.turn()?;
    container.remove_holder(pid)?;
    if container.record.mode.is_fake() && container.holders()?.is_empty() {
        fake::volumes::sweep(container)?;
    }
    code
}

/// Pass signals on to what was started itself, and wait for its end.
pub fn wait_for(running: &Running, forward: &Forward) -> Result<u8> {
    let pid = Pid::from_child(running);
    forward.to(pid);
    super::outer::wait_for(pid)
}

/// Adopt from now on.
fn start() -> Result<()> {
    let own = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(own)).context(|| "cannot adopt processes".into())
}

/// The children of this process but one.
pub fn others(than: Option<u32>) -> Vec<u32> {
    let mut all = children_of(std::process::id());
    all.retain(|pid| Some(*pid) != than);
    all
}

/// Kill them; theirs become ours then.
pub fn kill_others(than: Option<u32>) {
    for pid in others(than) {
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            // It may be gone by now.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Kill all that are left, until there are none.
fn end_all() {
    while !others(None).is_empty() {
        kill_others(None);
        let _ = wait(WaitOptions::NOHANG);
        std::thread::sleep(POLL);
    }
}
