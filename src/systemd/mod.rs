//! The service manager over D-Bus, and systemd-tmpfiles.
//!
//! A job's result decides whether a unit started; no output of `systemctl` is ever read.

mod manager;
pub mod tmpfiles;

pub use manager::{Manager, UnitStatus};

use crate::command::Child;

/// Make systemd read its units again where D-Bus is not up yet. That it fails where systemd is not
/// up either is no harm: it will read them then.
pub fn reload_without_bus() {
    if let Err(error) = Child::new("systemctl").arg("daemon-reload").run() {
        tracing::debug!(%error, "daemon-reload");
    }
}

/// The last `lines` lines a unit wrote to the journal, for error messages; empty where there is
/// no journal.
pub fn journal_tail(unit: &str, lines: u32) -> String {
    Child::new("journalctl")
        .args(["--quiet", "--no-pager", "--output=cat", "--unit", unit])
        .arg(format!("--lines={lines}"))
        .output()
        .map(|finished| {
            String::from_utf8_lossy(&finished.stdout)
                .trim_end()
                .to_owned()
        })
        .unwrap_or_default()
}
