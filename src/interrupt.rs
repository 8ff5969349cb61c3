//! ^C and SIGTERM: where something was begun that must be undone, they are noticed between steps;
//! everywhere else they end the program at once, as they do by default.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::error::{Context as _, Error, Kind, Result};

/// Whether this process ignores a signal. Source: proc(5), `SigIgn`.
pub fn is_ignored(signal: i32) -> bool {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = text.lines();
    let mask = lines.find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Whether a signal asked us to end.
#[derive(Debug, Clone)]
pub struct Interrupt {
    noted: Arc<AtomicUsize>,
    at_once: Arc<AtomicBool>,
}

/// While this lives, signals are noted and nothing more.
#[derive(Debug)]
pub struct Held<'i>(&'i Interrupt);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.at_once.store(true, Ordering::SeqCst);
    }
}

impl Interrupt {
    /// Listen to SIGINT and SIGTERM from now on.
    pub fn listen() -> Result<Self> {
        Self::listen_to(&[SIGINT, SIGTERM])
    }

    /// The same without what whoever started us has us ignore, as for jobs in the background: what we start is to
    /// ignore it as well.
    pub fn listen_unless_ignored() -> Result<Self> {
        let mut signals = vec![SIGINT, SIGTERM];
        signals.retain(|signal| !is_ignored(*signal));
        Self::listen_to(&signals)
    }

    fn listen_to(signals: &[i32]) -> Result<Self> {
        let interrupt = Self {
            noted: Arc::default(),
            at_once: Arc::new(AtomicBool::new(true)),
        };
        for signal in signals.iter().copied() {
            let number = usize::try_from(signal).unwrap_or_default();
            flag::register_conditional_default(signal, interrupt.at_once.clone())
                .and_then(|_| flag::register_usize(signal, interrupt.noted.clone(), number))
                .context(|| "cannot listen for signals".into())?;
        }
        Ok(interrupt)
    }

    /// From here on something would have to be undone.
    pub fn hold(&self) -> Held<'_> {
        self.at_once.store(false, Ordering::SeqCst);
        Held(self)
    }

    fn signal(&self) -> Option<u8> {
        let noted = self.noted.load(Ordering::SeqCst);
        u8::try_from(noted).ok().filter(|signal| *signal > 0)
    }

    /// # Errors
    /// [`Kind::Interrupted`] if a signal asked us to end.
    pub fn check(&self) -> Result<()> {
        match self.signal() {
            None => Ok(()),
            Some(signal) => Err(Error::new(Kind::Interrupted(signal), "interrupted")),
        }
    }

    /// The same error, or that we were interrupted if we were: a child that got the same ^C fails
    /// first, with words that would puzzle.
    pub fn explain(&self, error: Error) -> Error {
        match (self.signal(), error.kind()) {
            (Some(_), Kind::Interrupted(_)) | (None, _) => error,
            (Some(signal), _) => {
                tracing::debug!(%error, "interrupted");
                Error::new(Kind::Interrupted(signal), "interrupted")
            }
        }
    }
}
