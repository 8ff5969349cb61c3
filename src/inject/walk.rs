//! The files of a directory as entries of an archive: sorted, with numbers in place of user names, and with no time but
//! that of the last change.
//!
//! Extended attributes, long names, parts of a second and what else does not fit a header are PAX records.
//! Source: pax(1) of POSIX.1-2024, and `SCHILY.xattr` of star(1).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::fd::AsFd;

use camino::Utf8Path;
use rustix::fs::{FileType, Mode, OFlags, Stat};
use tar::{EntryType, Header};

use super::pack::{Owner, Seen};
use crate::error::{Context as _, Result};
use crate::interrupt::Interrupt;
use crate::safefs;
use crate::store::is_kept_xattr;

const BLOCK: usize = 512;
/// What of a name fits a header.
const NAME_BYTES: usize = 100;
/// The largest numbers of 7 and of 11 octal digits.
const MAX_ID: u64 = 0o777_7777;
const MAX_SIZE: u64 = 0o777_7777_7777;
const NO_TIME: (i64, u32) = (0, 0);

/// One directory on the way down.
struct Level {
    directory: File,
    /// Its path in the archive, with a slash at the end unless it is the root.
    path: Vec<u8>,
    /// What is left of it, the last one first.
    names: Vec<Vec<u8>>,
}

/// Write all that is in a directory. Sockets are left out.
pub fn directory(
    path: &Utf8Path,
    owner: Owner,
    out: &mut dyn Write,
    interrupt: &Interrupt,
    progress: &mut dyn FnMut(u64),
) -> Result<Seen> {
    let failed = |path: &[u8]| {
        let path = String::from_utf8_lossy(path).escape_debug().to_string();
        move || format!("cannot pack \"{path}\"")
    };
    let root = safefs::open_dir(path.as_std_path()).context(|| format!("cannot read {path}"))?;
    let mut links: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    let mut seen = Seen::default();
    let mut levels = vec![Level {
        names: sorted(&root).context(failed(b""))?,
        directory: root,
        path: Vec::new(),
    }];
    while let Some(level) = levels.last_mut() {
        interrupt.check()?;
        let Some(name) = level.names.pop() else {
            levels.pop();
            continue;
        };
        let path = [level.path.as_slice(), &name].concat();
        let failed = failed(&path);
        let opened = open(&level.directory, &name).context(&failed)?;
        let found = rustix::fs::fstat(&opened).context(&failed)?;
        let kind = match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile => EntryType::Regular,
            FileType::Directory => EntryType::Directory,
            FileType::Symlink => EntryType::Symlink,
            FileType::CharacterDevice => EntryType::Char,
            FileType::BlockDevice => EntryType::Block,
            FileType::Fifo => EntryType::Fifo,
            FileType::Socket | FileType::Unknown => {
                seen.left_out
                    .push(String::from_utf8_lossy(&path).into_owned());
                continue;
            }
        };
        let mut entry = Entry::of(&path, kind, &found, owner);
        seen.newest = seen.newest.max(entry.mtime.0);
        let is_directory = kind == EntryType::Directory;
        if is_directory {
            entry.path.push(b'/');
        } else if found.st_nlink > 1 {
            let inode = (found.st_dev, found.st_ino);
            if let Some(first) = links.get(&inode) {
                entry.kind = EntryType::Link;
                entry.target.clone_from(first);
                entry.size = 0;
                entry.write(out).context(&failed)?;
                continue;
            }
            links.insert(inode, path.clone());
        }
        let attributes = safefs::all_xattrs(&opened).context(&failed)?;
        entry.xattrs = attributes
            .into_iter()
            .filter(|(name, _)| is_kept_xattr(name))
            .collect();
        entry.xattrs.sort();
        match kind {
            EntryType::Symlink => {
                let target = rustix::fs::readlinkat(&opened, "", Vec::new()).context(&failed)?;
                entry.target = target.into_bytes();
                entry.write(out).context(&failed)?;
            }
            EntryType::Regular => {
                entry.write(out).context(&failed)?;
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(
                    &level.directory,
                    name.as_slice(),
                    flags | OFlags::NONBLOCK,
                    Mode::empty(),
                );
                let file = File::from(file.context(&failed)?);
                copy(file, entry.size, out).context(&failed)?;
                progress(entry.size);
            }
            EntryType::Directory => {
                entry.write(out).context(&failed)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let directory = rustix::fs::openat(&opened, ".", flags, Mode::empty());
                let directory = File::from(directory.context(&failed)?);
                let names = sorted(&directory).context(&failed)?;
                levels.push(Level {
                    directory,
                    path: entry.path,
                    names,
                });
            }
            _ => entry.write(out).context(&failed)?,
        }
    }
    end(out).context(|| "cannot write the archive".into())?;
    Ok(seen)
}

/// An archive of one empty directory.
pub fn empty_directory(name: &str, out: &mut dyn Write) -> io::Result<()> {
    let entry = Entry {
        path: format!("{name}/").into_bytes(),
        kind: EntryType::Directory,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: NO_TIME,
        size: 0,
        device: None,
        target: Vec::new(),
        xattrs: Vec::new(),
    };
    entry.write(out)?;
    end(out)
}

fn end(out: &mut dyn Write) -> io::Result<()> {
    out.write_all(&[0; 2 * BLOCK])
}

/// The file must have the bytes that its header says.
fn copy(file: File, size: u64, out: &mut dyn Write) -> io::Result<()> {
    let copied = io::copy(&mut file.take(size), out)?;
    if copied < size {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "it became smaller while it was read",
        ));
    }
    pad(size, out)
}

fn pad(size: u64, out: &mut dyn Write) -> io::Result<()> {
    let missing = size.next_multiple_of(BLOCK as u64) - size;
    out.write_all(&[0; BLOCK][..usize::try_from(missing).unwrap_or(0)])
}

fn open(directory: &impl AsFd, name: &[u8]) -> rustix::io::Result<std::os::fd::OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty())
}

/// The names in a directory, so that the first one is popped first.
fn sorted(directory: &File) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = safefs::names_in(directory)?;
    names.sort_by(|a, b| b.cmp(a));
    Ok(names)
}

/// An entry to be written.
struct Entry {
    path: Vec<u8>,
    kind: EntryType,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
    size: u64,
    device: Option<(u32, u32)>,
    target: Vec<u8>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    fn of(path: &[u8], kind: EntryType, found: &Stat, owner: Owner) -> Self {
        let is_device = matches!(kind, EntryType::Char | EntryType::Block);
        let numbers = || {
            let number = found.st_rdev;
            (rustix::fs::major(number), rustix::fs::minor(number))
        };
        let (uid, gid) = owner.unwrap_or((found.st_uid, found.st_gid));
        Self {
            path: path.to_vec(),
            kind,
            mode: found.st_mode & 0o7777,
            uid,
            gid,
            mtime: (
                found.st_mtime,
                u32::try_from(found.st_mtime_nsec).unwrap_or(0),
            ),
            size: match kind {
                EntryType::Regular => u64::try_from(found.st_size).unwrap_or(0),
                _ => 0,
            },
            device: is_device.then(numbers),
            target: Vec::new(),
            xattrs: Vec::new(),
        }
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let records = self.records();
        if !records.is_empty() {
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::XHeader);
            name(&mut header, b"PaxHeaders/");
            header.set_mode(0o644);
            header.set_size(records.len() as u64);
            header.set_cksum();
            out.write_all(header.as_bytes())?;
            out.write_all(&records)?;
            pad(records.len() as u64, out)?;
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(self.kind);
        name(&mut header, &self.path);
        header.set_mode(self.mode);
        header.set_uid(fits(self.uid.into(), MAX_ID));
        header.set_gid(fits(self.gid.into(), MAX_ID));
        header.set_mtime(u64::try_from(self.mtime.0).unwrap_or(0));
        header.set_size(fits(self.size, MAX_SIZE));
        if let Some((major, minor)) = self.device {
            header.set_device_major(major)?;
            header.set_device_minor(minor)?;
        }
        let target = &self.target[..self.target.len().min(NAME_BYTES)];
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
        header.set_cksum();
        out.write_all(header.as_bytes())
    }

    /// What does not fit the header.
    fn records(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if self.path.len() > NAME_BYTES {
            record(&mut out, b"path", &self.path);
        }
        if self.target.len() > NAME_BYTES {
            record(&mut out, b"linkpath", &self.target);
        }
        for (key, number, max) in [
            ("uid", u64::from(self.uid), MAX_ID),
            ("gid", self.gid.into(), MAX_ID),
            ("size", self.size, MAX_SIZE),
        ] {
            if number > max {
                record(&mut out, key.as_bytes(), number.to_string().as_bytes());
            }
        }
        let (seconds, nanoseconds) = self.mtime;
        if nanoseconds > 0 || seconds < 0 {
            record(&mut out, b"mtime", time(seconds, nanoseconds).as_bytes());
        }
        for (name, value) in &self.xattrs {
            // The sign ends the keyword.
            if !name.contains(&b'=') {
                record(
                    &mut out,
                    &[b"SCHILY.xattr.", name.as_slice()].concat(),
                    value,
                );
            }
        }
        out
    }
}

/// What is too large stands in a record.
fn fits(number: u64, max: u64) -> u64 {
    if number > max { 0 } else { number }
}

fn name(header: &mut Header, name: &[u8]) {
    let name = &name[..name.len().min(NAME_BYTES)];
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
}

/// Seconds as a decimal number; nanoseconds count forwards, also before 1970.
fn time(seconds: i64, nanoseconds: u32) -> String {
    let all = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let sign = if all < 0 { "-" } else { "" };
    let all = all.unsigned_abs();
    let text = format!("{sign}{}.{:09}", all / 1_000_000_000, all % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(format!("{length} ").as_bytes());
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_their_own_length() {
        for (value, length) in [(1, 7), (3, 9), (4, 11), (92, 99), (93, 101), (94, 102)] {
            let mut out = Vec::new();
            record(&mut out, b"ab", &vec![b'x'; value]);
            assert_eq!(out.len(), length, "{value}");
            assert!(out.starts_with(format!("{length} ab=x").as_bytes()));
        }
    }

    #[test]
    fn times_are_decimal() {
        assert_eq!(time(5, 0), "5");
        assert_eq!(time(5, 120_000_000), "5.12");
        assert_eq!(time(-1, 0), "-1");
        assert_eq!(time(-1, 500_000_000), "-0.5");
    }
}
