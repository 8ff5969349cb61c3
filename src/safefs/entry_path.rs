//! Paths of archives: bytes, relative to a root.

use crate::error::{Kind, Result};
use crate::fail;

/// A path of an archive without its odd parts.
pub fn normal(path: &[u8]) -> Result<Vec<u8>> {
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => fail!(
                Kind::Invalid,
                "the path \"{}\" leads upwards",
                String::from_utf8_lossy(path)
            ),
            part if part.contains(&0) => fail!(Kind::Invalid, "a path with a NUL byte"),
            part => parts.push(part),
        }
    }
    Ok(parts.join(&b'/'))
}

/// The directory and the name; nothing for the root.
pub fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => Some((&path[..at], &path[at + 1..])),
        None => Some((b"", path)),
    }
}
