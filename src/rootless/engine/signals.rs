//! Signals on their way to the program inside.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use crate::error::{Context as _, Result};

/// Passes signals on to one process, as soon as that is known.
pub struct Forward {
    to: Arc<AtomicI32>,
}

impl Forward {
    /// Listen from now on. At a terminal ^C and ^\ reach everybody by themselves, and are not doubled.
    pub fn start(at_terminal: bool) -> Result<Self> {
        let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2])
            .context(|| "cannot listen for signals".into())?;
        let to = Arc::new(AtomicI32::new(0));
        let target = to.clone();
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                for number in signals.forever() {
                    if !(at_terminal && matches!(number, SIGINT | SIGQUIT)) {
                        pass_on(&target, number);
                    }
                }
            })
            .context(|| "cannot start a thread".into())?;
        Ok(Self { to })
    }

    /// From here on this is whom they are for.
    pub fn to(&self, pid: Pid) {
        self.to.store(pid.as_raw_nonzero().get(), Ordering::SeqCst);
    }
}

fn pass_on(target: &AtomicI32, number: i32) {
    const POLL: Duration = Duration::from_millis(5);
    let pid = loop {
        match Pid::from_raw(target.load(Ordering::SeqCst)) {
            Some(pid) => break pid,
            None => std::thread::sleep(POLL),
        }
    };
    if let Some(signal) = Signal::from_named_raw(number) {
        // It may be gone by now.
        let _ = kill_process(pid, signal);
    }
}
