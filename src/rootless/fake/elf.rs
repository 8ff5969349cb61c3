//! Programs and libraries, as far as `fakechroot` needs them changed: which loader starts them, and where they
//! look for libraries.
//!
//! Source: ELF-64 object file format 1.5 and its 32-bit counterpart; how Linux and the GNU C library read them.

/// Kinds of program headers.
const INTERPRETER: u64 = 3;
const DYNAMIC: u64 = 2;
const LOADED: u64 = 1;
/// Kinds of entries of the dynamic section.
const STRINGS: u64 = 5;
const RPATH: u64 = 15;
const RUNPATH: u64 = 29;
/// Longer names the kernel does not read.
const MAX_INTERPRETER: usize = 4096;

/// What it is about one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Not a program nor a library of these formats.
    Other,
    /// A program or library without a loader of its own.
    Plain,
    /// A program that a loader starts.
    Dynamic,
}

/// Where things are in a file: sizes of numbers differ between 32 and 64 bits.
#[derive(Debug, Clone, Copy)]
struct Class {
    is_64: bool,
}

/// One program header.
#[derive(Debug, Clone, Copy)]
struct Segment {
    /// Where the header itself is.
    at: usize,
    kind: u64,
    offset: u64,
    address: u64,
    /// In the file, and in memory.
    size: u64,
    memory: u64,
}

fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let mut out = [0; 8];
    out[..length].copy_from_slice(bytes.get(at..at.checked_add(length)?)?);
    Some(u64::from_le_bytes(out))
}

fn put(bytes: &mut [u8], at: usize, length: usize, value: u64) -> Option<()> {
    bytes
        .get_mut(at..at.checked_add(length)?)?
        .copy_from_slice(&value.to_le_bytes()[..length]);
    Some(())
}

impl Class {
    fn of(bytes: &[u8]) -> Option<Self> {
        let is_64 = match bytes.get(..6)? {
            [0x7f, b'E', b'L', b'F', 1, 1] => false,
            [0x7f, b'E', b'L', b'F', 2, 1] => true,
            _ => return None,
        };
        // Only programs and libraries, no objects.
        matches!(number(bytes, 16, 2)?, 2 | 3).then_some(Self { is_64 })
    }

    fn word(self) -> usize {
        if self.is_64 { 8 } else { 4 }
    }

    fn segments(self, bytes: &[u8]) -> Option<Vec<Segment>> {
        let (table, size, count) = if self.is_64 {
            (32, 54, 56)
        } else {
            (28, 42, 44)
        };
        let table = usize::try_from(number(bytes, table, self.word())?).ok()?;
        let size = usize::try_from(number(bytes, size, 2)?).ok()?;
        let count = usize::try_from(number(bytes, count, 2)?).ok()?;
        (0..count)
            .map(|index| {
                let at = table.checked_add(index.checked_mul(size)?)?;
                let field = |offset: usize| number(bytes, at.checked_add(offset)?, self.word());
                Some(Segment {
                    at,
                    kind: number(bytes, at, 4)?,
                    offset: field(self.offset())?,
                    address: field(if self.is_64 { 16 } else { 8 })?,
                    size: field(self.size())?,
                    memory: field(if self.is_64 { 40 } else { 20 })?,
                })
            })
            .collect()
    }

    /// Of a program header: where its place in the file is.
    fn offset(self) -> usize {
        if self.is_64 { 8 } else { 4 }
    }

    /// Of a program header: where its size in the file is.
    fn size(self) -> usize {
        if self.is_64 { 32 } else { 16 }
    }
}

fn range(bytes: &[u8], offset: u64, size: u64) -> Option<&[u8]> {
    let (offset, size) = (usize::try_from(offset).ok()?, usize::try_from(size).ok()?);
    bytes.get(offset..offset.checked_add(size)?)
}

/// What a file is.
pub fn kind(bytes: &[u8]) -> Kind {
    let segments = Class::of(bytes).and_then(|class| class.segments(bytes));
    match segments {
        None => Kind::Other,
        Some(segments) if segments.iter().any(|segment| segment.kind == INTERPRETER) => {
            Kind::Dynamic
        }
        Some(_) => Kind::Plain,
    }
}

/// For which processor a file is, and of how many bits; nothing if it is none.
pub fn machine(bytes: &[u8]) -> Option<(bool, u64)> {
    let class = Class::of(bytes)?;
    Some((class.is_64, number(bytes, 18, 2)?))
}

/// The loader that a program names.
pub fn interpreter(bytes: &[u8]) -> Option<String> {
    let segments = Class::of(bytes)?.segments(bytes)?;
    let named = segments
        .iter()
        .find(|segment| segment.kind == INTERPRETER)?;
    let text = range(bytes, named.offset, named.size)?;
    let text = text.split(|byte| *byte == 0).next()?;
    String::from_utf8(text.to_vec()).ok()
}

/// The same file with another loader, which `loader` has for the one it names, and with places to look for
/// libraries that begin at the root made such that no host has them; nothing if there is nothing to change.
///
/// Everything that [`restored`] needs to undo this is in the file itself, wherever it is copied or moved to.
pub fn patched(bytes: &[u8], loader: impl Fn(&str) -> Option<String>) -> Option<Vec<u8>> {
    let class = Class::of(bytes)?;
    let segments = class.segments(bytes)?;
    let mut out = bytes.to_vec();
    let mut is_changed = false;
    if let Some(segment) = segments.iter().find(|segment| segment.kind == INTERPRETER)
        // What is restored is what these two say.
        && in_file(&segments, segment.address) == Some(segment.offset)
        && segment.size == segment.memory
        && let Some(new) = interpreter(bytes).and_then(|old| loader(&old))
        && new.len() < MAX_INTERPRETER
    {
        // The kernel reads the name where it is in the file, and the loader where it is in memory, to know
        // itself by it: so only the former moves, to the end.
        let at = out.len() as u64;
        out.extend_from_slice(new.as_bytes());
        out.push(0);
        put(&mut out, segment.at + class.offset(), class.word(), at)?;
        put(
            &mut out,
            segment.at + class.size(),
            class.word(),
            new.len() as u64 + 1,
        )?;
        is_changed = true;
    }
    for place in absolute_paths(bytes, class, &segments).unwrap_or_default() {
        if let Some(byte) = out.get_mut(place + 1).filter(|byte| byte.is_ascii()) {
            *byte |= MOVED;
            is_changed = true;
        }
    }
    is_changed.then_some(out)
}

/// What a file was before [`patched`]; nothing if it was not. `is_ours`: tells the names of loaders that it was
/// given.
pub fn restored(bytes: &[u8], is_ours: impl Fn(&str) -> bool) -> Option<Vec<u8>> {
    let class = Class::of(bytes)?;
    let segments = class.segments(bytes)?;
    let mut out = bytes.to_vec();
    let mut is_changed = false;
    for place in absolute_paths(bytes, class, &segments).unwrap_or_default() {
        if let Some(byte) = out.get_mut(place + 1).filter(|byte| !byte.is_ascii()) {
            *byte &= !MOVED;
            is_changed = true;
        }
    }
    if let Some(segment) = segments.iter().find(|segment| segment.kind == INTERPRETER)
        && interpreter(bytes).is_some_and(|name| is_ours(&name))
        && let Some(offset) = in_file(&segments, segment.address)
        // It may have been stripped or signed since, and then has more behind it.
        && segment.offset.checked_add(segment.size) == Some(bytes.len() as u64)
    {
        put(&mut out, segment.at + class.offset(), class.word(), offset)?;
        put(
            &mut out,
            segment.at + class.size(),
            class.word(),
            segment.memory,
        )?;
        out.truncate(usize::try_from(segment.offset).ok()?);
        is_changed = true;
    }
    is_changed.then_some(out)
}

/// Whether a place where it looks for libraries begins as [`patched`] would have it begin.
pub fn looks_patched(bytes: &[u8]) -> bool {
    let places =
        Class::of(bytes).and_then(|class| absolute_paths(bytes, class, &class.segments(bytes)?));
    let mut places = places.into_iter().flatten();
    places.any(|place| bytes.get(place + 1).is_some_and(|byte| !byte.is_ascii()))
}

/// What of a name's second byte is set where it begins at the root: no directory of a host begins like that.
const MOVED: u8 = 0x80;

/// Where in the file something is that is at an address in memory.
fn in_file(segments: &[Segment], address: u64) -> Option<u64> {
    let loaded = segments.iter().find(|segment| {
        segment.kind == LOADED
            && address >= segment.address
            && address - segment.address < segment.size
    })?;
    (address - loaded.address).checked_add(loaded.offset)
}

/// Where in the file the absolute ones of the directories begin in which it looks for libraries.
fn absolute_paths(bytes: &[u8], class: Class, segments: &[Segment]) -> Option<Vec<usize>> {
    let dynamic = segments.iter().find(|segment| segment.kind == DYNAMIC)?;
    let entries = range(bytes, dynamic.offset, dynamic.size)?;
    let word = class.word();
    let entries: Vec<(u64, u64)> = entries
        .chunks_exact(2 * word)
        .map_while(|entry| Some((number(entry, 0, word)?, number(entry, word, word)?)))
        .take_while(|(tag, _)| *tag != 0)
        .collect();
    let (_, strings) = entries.iter().find(|(tag, _)| *tag == STRINGS)?;
    let strings = in_file(segments, *strings)?;
    let mut out = Vec::new();
    let last = |kind| entries.iter().rev().find(|(tag, _)| *tag == kind);
    // Of several the last one counts.
    for (_, offset) in [last(RPATH), last(RUNPATH)].into_iter().flatten() {
        let at = usize::try_from(strings.checked_add(*offset)?).ok()?;
        let text = bytes.get(at..)?.split(|byte| *byte == 0).next()?;
        let mut begin = at;
        for entry in text.split(|byte| *byte == b':') {
            if entry.len() > 1 && entry[0] == b'/' {
                out.push(begin);
            }
            begin += entry.len() + 1;
        }
    }
    Some(out)
}

/// The GNU loader without any place of the host's where it would look for libraries: of the same length, so
/// that nothing moves. Nothing if it has none of them.
pub fn closed_loader(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = bytes.to_vec();
    let mut is_changed = false;
    for word in [&b"/etc/ld.so"[..], b"/lib", b"/usr"] {
        let led: Vec<u8> = [b"\0", word].concat();
        let mut from = 0;
        while let Some(found) = out
            .get(from..)
            .and_then(|rest| rest.windows(led.len()).position(|window| window == led))
        {
            // What is left of each is the root directory, which is no library and no list of them.
            let at = from + found + 1;
            out[at + 1..at + word.len()].fill(0);
            from = at + word.len();
            is_changed = true;
        }
    }
    is_changed.then_some(out)
}

/// The latest version of the GNU C library that a file knows or wants: `(2, 36)`.
pub fn glibc(bytes: &[u8]) -> Option<(u32, u32)> {
    const WORD: &[u8] = b"GLIBC_";
    let mut latest = None;
    for at in memchr_all(bytes, WORD) {
        let rest = bytes.get(at + WORD.len()..).unwrap_or_default();
        let text: String = rest
            .iter()
            .take(8)
            .map_while(|byte| matches!(byte, b'0'..=b'9' | b'.').then_some(*byte as char))
            .collect();
        let mut numbers = text.split('.').map(str::parse::<u32>);
        if let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) {
            latest = latest.max(Some((major, minor)));
        }
    }
    latest
}

fn memchr_all<'b>(bytes: &'b [u8], word: &'b [u8]) -> impl Iterator<Item = usize> + 'b {
    let begins = bytes
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == word[0]);
    begins
        .map(|(at, _)| at)
        .filter(|at| bytes[*at..].starts_with(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_this_machine_run_with_another_name_of_their_loader() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = std::fs::read("/usr/bin/env").unwrap();
        assert_eq!(kind(&bytes), Kind::Dynamic);
        let loader = interpreter(&bytes).unwrap();
        assert!(loader.starts_with("/lib"), "{loader}");
        // A much longer name of the same.
        let link = dir.path().join("a-name-that-is-longer-than-the-one-before");
        std::os::unix::fs::symlink(&loader, &link).unwrap();
        let named = link.to_string_lossy().into_owned();
        let new = patched(&bytes, |old| (old == loader).then(|| named.clone())).unwrap();
        assert_eq!(interpreter(&new), Some(named.clone()));
        assert_eq!(new.len(), bytes.len() + named.len() + 1);
        let program = dir.path().join("env");
        std::fs::write(&program, &new).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        let run = || std::process::Command::new(&program).arg("A=1").output();
        assert!(
            String::from_utf8(run().unwrap().stdout)
                .unwrap()
                .contains("A=1")
        );
        // It is that name that starts it.
        std::fs::remove_file(&link).unwrap();
        assert!(run().is_err());
        assert!(patched(&bytes, |_| None).is_none());
        // And back.
        assert!(restored(&new, |_| false).is_none());
        assert!(restored(&bytes, |_| false).is_none());
        assert!(restored(&new, |name| name == named).unwrap() == bytes);
        assert_eq!(machine(&bytes), machine(&new));
    }

    #[test]
    fn places_of_libraries_are_moved_and_moved_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        let made = std::process::Command::new("sh")
            .args(["-c", "echo 'int main(void){return 0;}' | cc -x c - -o \"$0\" -Wl,-rpath,/opt/x/lib:\\$ORIGIN/../lib:/y"])
            .arg(&path)
            .status();
        assert!(made.unwrap().success());
        let bytes = std::fs::read(&path).unwrap();
        assert!(!looks_patched(&bytes));
        let new = patched(&bytes, |_| None).unwrap();
        assert!(looks_patched(&new) && new.len() == bytes.len());
        let differing = bytes.iter().zip(&new).filter(|(a, b)| a != b).count();
        assert_eq!(differing, 2);
        assert!(restored(&new, |_| false).unwrap() == bytes);
    }

    #[test]
    fn what_is_cut_off_or_none_is_left_alone() {
        let bytes = std::fs::read("/usr/bin/env").unwrap();
        for length in (0..2000).chain([bytes.len() - 1]) {
            let cut = &bytes[..length];
            let _ = (
                kind(cut),
                interpreter(cut),
                patched(cut, |_| Some("/x".into())),
            );
            let _ = (restored(cut, |_| true), looks_patched(cut), machine(cut));
        }
        let mut state = 7u32;
        for _ in 0..20_000 {
            let mut odd = bytes[..4096].to_vec();
            for _ in 0..4 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = (state >> 8) as usize % 1024;
                odd[at] = state.to_le_bytes()[3];
            }
            let _ = (
                patched(&odd, |_| Some("/x".into())),
                restored(&odd, |_| true),
            );
        }
        assert_eq!(kind(b"#!/bin/sh\n"), Kind::Other);
    }

    #[test]
    fn a_loader_is_closed_and_versions_are_told() {
        let loader = b"x\0/etc/ld.so.cache\0/lib/x86_64-linux-gnu/\0/usr/lib/\0/libexec";
        let closed = closed_loader(loader).unwrap();
        assert_eq!(closed.len(), loader.len());
        assert_eq!(&closed[..4], b"x\0/\0");
        assert!(closed_loader(b"nothing").is_none());
        assert_eq!(glibc(b"GLIBC_2.4 GLIBC_2.34\0GLIBC_PRIVATE"), Some((2, 34)));
        assert_eq!(glibc(b"musl"), None);
    }
}
