//! What the stages tell each other.
//!
//! # Format
//! To the stages: JSON documents, each after its length in 32 bits, little-endian; the first is for
//! [`super::outer`], the second for [`super::init`]. From them: one byte when the user namespace is there, then
//! lines of JSON, [`Report`]. The end of the stream means that the program was started.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use rustix::process::WaitStatus;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::SETUP_FAILED;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;

/// More is no task.
const MAX_BYTES: u32 = 64 * 1024 * 1024;

/// What a stage reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// The root is mounted.
    Mounted,
    /// It is over, with the exit code that says so.
    Failed {
        /// Exit code.
        code: u8,
        /// Why.
        message: String,
    },
}

/// Tell that the user namespace is there, and its ids may be mapped.
pub fn ready(stream: &mut UnixStream) -> Result<()> {
    stream
        .write_all(b"r")
        .context(|| "nobody is there to talk to".into())
}

/// Wait for that.
///
/// # Errors
/// [`Kind::Failed`] if the stage has ended before.
pub fn await_ready(stream: &mut UnixStream) -> Result<()> {
    stream
        .read_exact(&mut [0])
        .context(|| "the user namespace was not made".into())
}

/// The exit code by which a program's end is passed on.
pub fn code_of(status: WaitStatus) -> u8 {
    let code = status
        .exit_status()
        .or_else(|| Some(128 + status.terminating_signal()?));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(SETUP_FAILED)
}

/// Send a task.
pub fn send(stream: &mut UnixStream, task: &impl Serialize) -> Result<()> {
    let failed = || "cannot talk to the container".into();
    let text = serde_json::to_vec(task).context(failed)?;
    let length = u32::try_from(text.len())
        .ok()
        .filter(|length| *length <= MAX_BYTES);
    let Some(length) = length else {
        fail!(Kind::Usage, "the command and its environment are too long");
    };
    stream
        .write_all(&length.to_le_bytes())
        .and_then(|()| stream.write_all(&text))
        .context(failed)
}

/// Read a task, and no byte more: the next one is for another stage.
pub fn receive<T: DeserializeOwned>(stream: &mut UnixStream) -> Result<T> {
    let failed = || "cannot read the task".into();
    let mut length = [0; 4];
    stream.read_exact(&mut length).context(failed)?;
    let length = u32::from_le_bytes(length);
    if length > MAX_BYTES {
        fail!(Kind::Invalid, "the task is too long");
    }
    let mut text = Vec::new();
    stream
        .take(length.into())
        .read_to_end(&mut text)
        .context(failed)?;
    serde_json::from_slice(&text).context(failed)
}

/// Say something to whoever waits.
pub fn report(stream: &mut UnixStream, report: &Report) {
    let mut line = serde_json::to_vec(report).unwrap_or_default();
    line.push(b'\n');
    // Whoever is gone needs no report.
    let _ = stream.write_all(&line);
}

/// The next report; nothing when there will be none.
///
/// # Errors
/// [`Kind::Child`] with what a stage says that failed.
pub fn next(stream: &mut impl Read) -> Result<Option<Report>> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        match stream.read(&mut byte) {
            Ok(0) if line.is_empty() => return Ok(None),
            Ok(0) => break,
            Ok(_) if byte[0] == b'\n' => break,
            Ok(_) => line.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The others' end, with something unread in it.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(error).context(|| "cannot hear the container".into()),
        }
    }
    let report =
        serde_json::from_slice(&line).context(|| "cannot understand the container".into())?;
    match report {
        Report::Failed { code, message } => Err(Error::new(Kind::Child(code), message)),
        mounted @ Report::Mounted => Ok(Some(mounted)),
    }
}
