//! Points at which a debug build can be made to die or to fail, so that tests can try each of them; a release build has
//! none.
//!
//! `ATOMIC_RS_FAULT=kill@N` has the program kill itself when it comes to its Nth point (the first one is 1), `fail@N`
//! has the operation there fail. `ATOMIC_RS_FAULT_LOG=FILE` writes down the name of each point that is reached, a line
//! each.

use std::fmt::Display;

use crate::error::Result;

/// A place where an operation that matters begins, by the name of that operation, which ends before a brace.
///
/// # Errors
/// The fault that was asked for.
#[cfg(debug_assertions)]
pub fn point(name: impl Display) -> Result<()> {
    use std::io::Write as _;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use crate::error::Kind;

    /// What was asked for: whether to die, and at which point.
    static WANTED: OnceLock<Option<(bool, usize)>> = OnceLock::new();
    static REACHED: AtomicUsize = AtomicUsize::new(0);
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("ATOMIC_RS_FAULT").ok()?;
        let (what, number) = text.split_once('@')?;
        Some((what == "kill", number.parse().ok()?))
    });
    let number = REACHED.fetch_add(1, Ordering::SeqCst) + 1;
    let name = name.to_string();
    let name = name.split(" {").next().unwrap_or_default();
    if let Some(path) = std::env::var_os("ATOMIC_RS_FAULT_LOG")
        && let Ok(mut log) = std::fs::File::options()
            .append(true)
            .create(true)
            .open(path)
    {
        let _ = writeln!(log, "{name}");
    }
    match wanted {
        Some((true, wanted)) if *wanted == number => {
            let _ = rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            );
            // It takes effect when this thread is next scheduled.
            loop {
                std::thread::park();
            }
        }
        Some((false, wanted)) if *wanted == number => {
            crate::fail!(Kind::Failed, "a fault was asked for at \"{name}\"")
        }
        _ => Ok(()),
    }
}

/// See the other one.
#[cfg(not(debug_assertions))]
#[inline(always)]
#[allow(clippy::unnecessary_wraps, clippy::inline_always)]
pub fn point(_: impl Display) -> Result<()> {
    Ok(())
}
