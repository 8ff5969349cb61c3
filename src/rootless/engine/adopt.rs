//! Processes of a container without a number space of its own: whoever loses their parents is adopted by this
//! process, and ended with the program.

use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};

use crate::error::{Context as _, Result};
use crate::rootless::container::children_of;

/// Between two looks.
pub const POLL: Duration = Duration::from_millis(5);

/// Adopt from now on.
pub fn start() -> Result<()> {
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
pub fn end_all() {
    while !others(None).is_empty() {
        kill_others(None);
        let _ = wait(WaitOptions::NOHANG);
        std::thread::sleep(POLL);
    }
}
