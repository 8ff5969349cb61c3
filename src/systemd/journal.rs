//! Entries of the journal that an administrator can look for: their `MESSAGE_ID` never changes.
//!
//! They have the fields `CONTAINER` and `VERB`, the name and what was interrupted or returned. Source:
//! systemd's `docs/JOURNAL_NATIVE_PROTOCOL.md`, `systemd.journal-fields(7)`.

use std::os::unix::net::UnixDatagram;

const SOCKET: &str = "/run/systemd/journal/socket";

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// An interrupted change was completed.
    Completed,
    /// An interrupted change was undone.
    Undone,
    /// A new version did not work, and the one before is back.
    Returned,
}

impl Event {
    /// Its `MESSAGE_ID`.
    pub fn id(self) -> &'static str {
        match self {
            Self::Completed => "45fa0026a95c4b2b9b3ae3de6e8f11d6",
            Self::Undone => "45554ddb54054ed4be29882a81991852",
            Self::Returned => "665dd7d3867c4b4588c6a78f8984c213",
        }
    }

    /// As syslog(3) has it: 4 is a warning, 5 is worth a look.
    fn priority(self) -> u8 {
        match self {
            Self::Completed | Self::Undone => 5,
            Self::Returned => 4,
        }
    }
}

/// Write an entry. A host without a journal, or one that is not up yet, is no reason to fail.
pub fn note(event: Event, container: &str, verb: &str, message: &str) {
    let mut entry = Vec::new();
    let mut field = |name: &str, value: &str| {
        // With a line break a value has its length before it.
        entry.extend_from_slice(name.as_bytes());
        entry.push(b'\n');
        entry.extend((value.len() as u64).to_le_bytes());
        entry.extend_from_slice(value.as_bytes());
        entry.push(b'\n');
    };
    field("MESSAGE", message);
    field("MESSAGE_ID", event.id());
    field("PRIORITY", &event.priority().to_string());
    field("SYSLOG_IDENTIFIER", "atomic-rs");
    field("CONTAINER", container);
    field("VERB", verb);
    let sent = UnixDatagram::unbound().and_then(|socket| socket.send_to(&entry, SOCKET));
    if let Err(error) = sent {
        tracing::debug!(%error, message, "not in the journal");
    }
}
