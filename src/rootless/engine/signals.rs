//! Signals on their way to the program inside.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use crate::error::{Context as _, Result};
use crate::interrupt::is_ignored;

/// Those that are passed on.
const ALL: [i32; 6] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];

/// Hears signals that are to be passed on, and keeps them until somebody does.
pub struct Listening(Signals);

impl Listening {
    /// Listen from now on, but for what we were told to ignore: that is for what we start as well.
    pub fn start() -> Result<Self> {
        let wanted = ALL.into_iter().filter(|number| !is_ignored(*number));
        let signals = Signals::new(wanted).context(|| "cannot listen for signals".into())?;
        Ok(Self(signals))
    }
}

/// Passes signals on to one process, as soon as that is known.
pub struct Forward {
    to: Arc<AtomicI32>,
}

impl Forward {
    /// Listen from now on, and pass on.
    pub fn start(at_terminal: bool) -> Result<Self> {
        Self::of(Listening::start()?, at_terminal)
    }

    /// Pass on what is heard. At a terminal ^C and ^\ reach everybody by themselves, and are not doubled.
    pub fn of(Listening(mut signals): Listening, at_terminal: bool) -> Result<Self> {
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
