//! Whether an engine that translates paths does so: a tiny program is run by it that looks for a file which
//! only its own root has.
//!
//! # Format
//! `H/engines.json`: what was found, by program, its size and time, the kernel's release, and mode.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use serde::{Deserialize, Serialize};

use super::proot::Proot;
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::rootless::container::Mode;
use crate::rootless::home::Home;
use crate::safefs;

/// Who runs in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confinement {
    /// Sees nothing of the host's that was not bound.
    Whole,
    /// The same, but for the answers to `statx`.
    Leaky,
    /// Sees the host.
    None,
    /// There is no probe for this processor.
    Unknown,
}

/// The probe's exit codes.
const SEES_NOTHING: i32 = 1;
const STATX_SEES_NOTHING: i32 = 2;

/// How well `PRoot` confines in a mode, as found out once.
pub fn confinement(home: &Home, proot: &Proot, mode: Mode) -> Result<Confinement> {
    let file = home.engines();
    let key = key(proot, mode)?;
    let read = std::fs::read(&file).unwrap_or_default();
    // Who cannot read it tries again.
    let mut known: BTreeMap<String, Confinement> =
        serde_json::from_slice(&read).unwrap_or_default();
    if let Some(known) = known.get(&key) {
        return Ok(*known);
    }
    let found = try_out(home, proot, mode)?;
    tracing::debug!(?found, %mode, "tried out {}", proot.path());
    known.insert(key, found);
    let text =
        serde_json::to_vec_pretty(&known).context(|| "cannot write what was found".into())?;
    safefs::replace_file(file.as_std_path(), &text, 0o600)?;
    Ok(found)
}

fn key(proot: &Proot, mode: Mode) -> Result<String> {
    let path = proot.path();
    let meta = std::fs::metadata(path).context(|| format!("cannot look at {path}"))?;
    let kernel = rustix::system::uname();
    let kernel = kernel.release().to_string_lossy();
    Ok(format!(
        "{path} {} {} {kernel} {mode}",
        meta.len(),
        meta.mtime()
    ))
}

fn try_out(home: &Home, proot: &Proot, mode: Mode) -> Result<Confinement> {
    let Some(program) = program() else {
        return Ok(Confinement::Unknown);
    };
    let failed = || "cannot try out how well programs are confined".into();
    // While it is held nobody sweeps.
    let _turn = home.turn()?;
    let root = tempfile::Builder::new()
        .prefix(".probe-")
        .tempdir_in(home.trees())
        .context(failed)?;
    let path = root.path().join("probe");
    std::fs::write(&path, program).context(failed)?;
    let may_run = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(&path, may_run).context(failed)?;
    // A name that no host has.
    let marker = format!("atomic-rs-{}", uuid::Uuid::new_v4());
    std::fs::write(root.path().join(&marker), "").context(failed)?;
    let done = proot
        .command(mode)
        .arg("-r")
        .arg(root.path())
        .args(["-w", "/", "-0", "/probe", &format!("/{marker}")])
        .stdin(std::process::Stdio::null())
        .output()
        .context(failed)?;
    match done.status.code() {
        Some(0) => Ok(Confinement::Whole),
        Some(STATX_SEES_NOTHING) => Ok(Confinement::Leaky),
        Some(SEES_NOTHING) => Ok(Confinement::None),
        // Something is in its way, which may be gone the next time.
        _ => fail!(
            Kind::Refused,
            "{} does not run in mode {mode}, and so whether it confines is not known: {} {}",
            proot.path(),
            done.status,
            String::from_utf8_lossy(&done.stderr).trim()
        ),
    }
}

/// A program without libraries: it opens the file that its first word names, then asks `statx` of it.
///
/// Source: ELF-64 object file format 1.5 for the headers; Linux's numbers of system calls.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::unnecessary_wraps)] // not every processor has one
fn program() -> Option<Vec<u8>> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    #[rustfmt::skip]
    let code: &[u8] = &[
        0x48, 0x8b, 0x5c, 0x24, 0x10,             // mov rbx, [rsp+16]     its first word
        0x48, 0x89, 0xde,                         // mov rsi, rbx
        0xbf, 0x9c, 0xff, 0xff, 0xff,             // mov edi, -100          AT_FDCWD
        0x31, 0xd2,                               // xor edx, edx           O_RDONLY
        0xb8, 0x01, 0x01, 0x00, 0x00,             // mov eax, 257           openat
        0x0f, 0x05,                               // syscall
        0xbf, 0x01, 0x00, 0x00, 0x00,             // mov edi, 1             SEES_NOTHING
        0x85, 0xc0,                               // test eax, eax
        0x78, 0x2c,                               // js end
        0x48, 0x81, 0xec, 0x00, 0x02, 0x00, 0x00, // sub rsp, 512
        0xbf, 0x9c, 0xff, 0xff, 0xff,             // mov edi, -100          AT_FDCWD
        0x48, 0x89, 0xde,                         // mov rsi, rbx
        0x31, 0xd2,                               // xor edx, edx
        0x41, 0xba, 0xff, 0x07, 0x00, 0x00,       // mov r10d, 0x7ff        STATX_BASIC_STATS
        0x49, 0x89, 0xe0,                         // mov r8, rsp
        0xb8, 0x4c, 0x01, 0x00, 0x00,             // mov eax, 332           statx
        0x0f, 0x05,                               // syscall
        0xbf, 0x02, 0x00, 0x00, 0x00,             // mov edi, 2             STATX_SEES_NOTHING
        0x85, 0xc0,                               // test eax, eax
        0x78, 0x02,                               // js end
        0x31, 0xff,                               // xor edi, edi
        0xb8, 0x3c, 0x00, 0x00, 0x00,             // end: mov eax, 60       exit
        0x0f, 0x05,                               // syscall
    ];
    let length = HEADERS + code.len() as u64;
    let mut out = b"\x7fELF\x02\x01\x01".to_vec();
    out.resize(16, 0);
    let mut put = |bytes: &[u8]| out.extend_from_slice(bytes);
    for half in [2_u16, 62] {
        put(&half.to_le_bytes()); // an executable, for x86-64
    }
    put(&1_u32.to_le_bytes());
    for address in [BASE + HEADERS, 64, 0] {
        put(&address.to_le_bytes()); // entry, program headers, no sections
    }
    put(&0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 64, 0, 0] {
        put(&half.to_le_bytes());
    }
    for word in [1_u32, 5] {
        put(&word.to_le_bytes()); // loaded, to be read and executed
    }
    for long in [0, BASE, BASE, length, length, 0x1000] {
        put(&long.to_le_bytes());
    }
    put(code);
    Some(out)
}

#[cfg(not(target_arch = "x86_64"))]
fn program() -> Option<Vec<u8>> {
    None
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn the_probe_tells_what_it_sees() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("probe");
        std::fs::write(&path, program().unwrap()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        for (file, code) in [("/etc/passwd", 0), ("/no/such/file", SEES_NOTHING)] {
            let status = std::process::Command::new(&path).arg(file).status();
            assert_eq!(status.unwrap().code(), Some(code), "{file}");
        }
    }
}
