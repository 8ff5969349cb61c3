//! The password of root in a root filesystem.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::str::FromStr;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::rand::GetRandomFlags;
use sha_crypt::{Params, PasswordHasher as _, ShaCrypt};

use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;

/// As many rounds as the tool whose options these are makes. Source: crypt(5).
const ROUNDS: u32 = 656_000;
/// A shadow file has fewer.
const MAX_BYTES: u64 = 16 * 1024 * 1024;
/// Written as 16 characters, of which login programs read no more. Source: crypt(5).
const SALT_BYTES: usize = 12;
pub(super) const SHADOW: &str = "etc/shadow";
const IS_LINK: &str =
    "/etc/shadow is a link or behind one: root's password is not written through it";

/// Where a password comes from: never the command line, which everybody sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secret {
    /// The first line of a file.
    File(String),
    /// What a descriptor has, up to the end of its first line.
    Descriptor(i32),
    /// A variable of the environment.
    Variable(String),
}

impl FromStr for Secret {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':') {
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.to_owned())),
            Some(("fd", number)) => match number.parse() {
                Ok(number) => Ok(Self::Descriptor(number)),
                Err(_) => fail!(Kind::Usage, "\"{number}\" is not a descriptor"),
            },
            Some(("env", name)) if !name.is_empty() => Ok(Self::Variable(name.to_owned())),
            _ => fail!(
                Kind::Usage,
                "a password comes from file:PATH, fd:NUMBER or env:NAME, not from the command line"
            ),
        }
    }
}

impl Secret {
    /// The password.
    pub fn read(&self) -> Result<String> {
        let line = |file: File| -> Result<String> {
            let mut line = String::new();
            let read = BufReader::new(file).read_line(&mut line);
            read.context(|| "cannot read the password".into())?;
            Ok(line)
        };
        let text = match self {
            Self::File(path) => line(File::open(path).context(|| format!("cannot open {path}"))?)?,
            Self::Descriptor(number) => {
                let file = crate::safefs::inherited(*number);
                line(
                    file.context(|| format!("cannot read descriptor {number}"))?
                        .into(),
                )?
            }
            Self::Variable(name) => match std::env::var(name) {
                Ok(text) => text,
                Err(_) => fail!(Kind::NotFound, "the variable {name} is not set"),
            },
        };
        let text = text.trim_end_matches(['\n', '\r']);
        if text.is_empty() {
            fail!(Kind::Invalid, "the password is empty");
        }
        Ok(text.to_owned())
    }
}

/// Hash a password for a shadow file.
pub fn hash(password: &str) -> Result<String> {
    let failed = || "cannot hash the password".into();
    let params = Params::new(ROUNDS).context(failed)?;
    let mut salt = [0; SALT_BYTES];
    rustix::rand::getrandom(&mut salt, GetRandomFlags::empty()).context(failed)?;
    let hashed = ShaCrypt::from(params).hash_password_with_salt(password.as_bytes(), &salt);
    Ok(hashed.context(failed)?.as_str().to_owned())
}

/// Have root's line of `etc/shadow` below `root` hold this hash; all else stays, owner and mode as well.
///
/// # Errors
/// [`Kind::NotFound`] without such a file or line, [`Kind::Refused`] if it is a link or behind one.
pub fn set(root: &Path, hash: &str) -> Result<()> {
    let failed = || format!("cannot set root's password in /{SHADOW}");
    let above = crate::safefs::open_dir(root).context(failed)?;
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = match rustix::fs::openat2(above.as_fd(), SHADOW, flags, Mode::empty(), how) {
        Ok(found) => found,
        Err(Errno::NOENT | Errno::NOTDIR) => fail!(
            Kind::NotFound,
            "there is no /{SHADOW}, where root's password would be"
        ),
        Err(Errno::LOOP) => fail!(Kind::Refused, "{IS_LINK}"),
        Err(error) => return Err(error).context(failed),
    };
    let stat = rustix::fs::fstat(&found).context(failed)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Symlink => fail!(Kind::Refused, "{IS_LINK}"),
        _ => fail!(Kind::Refused, "/{SHADOW} is no regular file"),
    }
    // By its descriptor: the very file that was looked at.
    let itself = format!("/proc/self/fd/{}", found.as_raw_fd());
    let mode = Mode::from(stat.st_mode & 0o7777);
    let is_closed = !mode.contains(Mode::RUSR | Mode::WUSR);
    if is_closed {
        // Its owner may not write to it either.
        rustix::fs::chmod(&itself, mode | Mode::RUSR | Mode::WUSR).context(failed)?;
    }
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&itself);
    if is_closed {
        rustix::fs::chmod(&itself, mode).context(failed)?;
    }
    let mut file = file.context(failed)?;
    let mut text = Vec::new();
    (&mut file)
        .take(MAX_BYTES)
        .read_to_end(&mut text)
        .context(failed)?;
    let text = replace(&text, hash)?;
    file.rewind().context(failed)?;
    file.write_all(&text).context(failed)?;
    file.set_len(text.len() as u64).context(failed)
}

/// The text of a shadow file with this hash in root's line.
pub(super) fn replace(text: &[u8], hash: &str) -> Result<Vec<u8>> {
    let mut found = false;
    let lines: Vec<Vec<u8>> = text
        .split(|byte| *byte == b'\n')
        .map(|line| {
            let mut fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
            if !found && fields.len() > 1 && fields[0] == b"root" {
                found = true;
                fields[1] = hash.as_bytes();
            }
            fields.join(&b':')
        })
        .collect();
    if !found {
        fail!(Kind::NotFound, "/{SHADOW} has no line for root");
    }
    Ok(lines.join(&b'\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_roots_own_line_is_changed() {
        let text = b"rootless:x:1:0\nroot:*:19000:0:99999:7:::\nroot:second\n\xff:!\n";
        let replaced = replace(text, "$6$h").unwrap();
        let wanted = b"rootless:x:1:0\nroot:$6$h:19000:0:99999:7:::\nroot:second\n\xff:!\n";
        assert_eq!(replaced, wanted);
        assert!(replace(b"rootless:x\n", "h").is_err());
        assert!(hash("secret").unwrap().starts_with("$6$rounds=656000$"));
    }

    #[test]
    fn passwords_do_not_stand_on_the_command_line() {
        let parse = |text: &str| text.parse::<Secret>().unwrap();
        assert_eq!(parse("file:/x:y"), Secret::File("/x:y".into()));
        assert_eq!(parse("fd:3"), Secret::Descriptor(3));
        for bad in ["secret", "file:", "fd:x", "env:", ""] {
            assert!(bad.parse::<Secret>().is_err(), "{bad}");
        }
    }
}
