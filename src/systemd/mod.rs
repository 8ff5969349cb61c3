//! The service manager over D-Bus, and systemd-tmpfiles.
//!
//! A job's result decides whether a unit started; no output of `systemctl` is ever read.

pub mod journal;
mod manager;
pub mod tmpfiles;
mod watch;

pub use manager::{Manager, ServiceState, UnitStatus};
pub use watch::Watch;

use crate::command::Child;
use crate::error::Error;

/// Make systemd read its units again where D-Bus is not up yet. That it fails where systemd is not
/// up either is no harm: it will read them then.
pub fn reload_without_bus() {
    if let Err(error) = Child::new("systemctl").arg("daemon-reload").run() {
        tracing::debug!(%error, "daemon-reload");
    }
}

/// How many lines of a failed unit's journal an error shows.
pub const FAILURE_LINES: u32 = 10;

/// The same error with the last lines of the unit's journal, which say more.
#[must_use]
pub fn with_journal(error: Error, unit: &str, is_system: bool) -> Error {
    match journal_tail(unit, FAILURE_LINES, is_system) {
        tail if tail.is_empty() => error,
        tail => Error::new(
            error.kind(),
            format!("{error}\nlast lines of {unit}:\n{tail}"),
        ),
    }
}

/// The last `lines` lines a unit wrote to the journal; empty where there is no journal.
pub fn journal_tail(unit: &str, lines: u32, is_system: bool) -> String {
    Child::new("journalctl")
        .args(["--quiet", "--no-pager", "--output=cat"])
        .args([unit_option(is_system), unit])
        .arg(format!("--lines={lines}"))
        .output()
        .map(|finished| {
            String::from_utf8_lossy(&finished.stdout)
                .trim_end()
                .to_owned()
        })
        .unwrap_or_default()
}

/// The option by which journalctl takes a unit of the system or of the user.
pub fn unit_option(is_system: bool) -> &'static str {
    if is_system { "--unit" } else { "--user-unit" }
}
