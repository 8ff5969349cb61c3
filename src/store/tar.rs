//! Reading tar entries from a stream: strict, limited, never touching the file system.

use std::io::{self, Read};

use tar_core::EntryType;
use tar_core::parse::{Limits, ParseError, ParseEvent, Parser};

use super::side::Recorder;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::safefs::Device;

const BLOCK: u64 = 512;
/// One read from below; also the buffer's first size.
const CHUNK: usize = 128 * 1024;
/// Headers of one entry (long names, PAX records, xattrs) never need more.
const MAX_HEADER_BYTES: usize = 4 * 1024 * 1024;
const MAX_PATH_BYTES: u32 = 4096;

/// The PAX record that has a time.
const MTIME: &str = "mtime";

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file of this many bytes (after filling its holes).
    File {
        /// Logical size in bytes.
        size: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// Another name for an earlier file.
    HardLink(Vec<u8>),
    /// A device node, fifo or, where nothing is said, something unknown: `OSTree` cannot hold it.
    Special(Option<Device>),
}

/// One entry: metadata as in the archive, nothing normalised.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The path as written.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits only.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was changed: seconds since 1970, and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes, names without NUL.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A region of data in a sparse file.
type Chunk = tar_core::SparseEntry;

/// A stream of tar entries.
pub struct TarStream<R> {
    reader: R,
    parser: Parser,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes of the current entry (with padding) that are still in the stream.
    pending: u64,
    /// The part of `pending` that is data.
    data: u64,
    sparse: Option<Sparse>,
    /// What takes down all but the contents of stored files.
    recorder: Option<Recorder>,
    /// Bytes of the archive before what is looked at.
    position: u64,
}

struct Sparse {
    chunks: std::vec::IntoIter<Chunk>,
    current: Option<Chunk>,
    position: u64,
    size: u64,
}

impl<R: Read> TarStream<R> {
    /// Read entries from `reader`.
    pub fn new(reader: R) -> Self {
        Self {
            reader,
            parser: Parser::new(Limits {
                max_path_len: Some(MAX_PATH_BYTES),
                ..Limits::default()
            }),
            buffer: vec![0; CHUNK],
            start: 0,
            end: 0,
            pending: 0,
            data: 0,
            sparse: None,
            recorder: None,
            position: 0,
        }
    }

    /// The same, with all taken down that [`Self::note_stored`] does not say to be stored.
    pub fn recorded(reader: R) -> Self {
        Self {
            recorder: Some(Recorder::new()),
            ..Self::new(reader)
        }
    }

    /// Note that the content of the current entry, read to its end, is the stored file of this number.
    pub fn note_stored(&mut self, number: usize, size: u64) {
        // A sparse file's content is not what stands in the archive, which was taken down raw.
        if let (Some(recorder), None) = (&mut self.recorder, &self.sparse) {
            recorder.file(number, size);
        }
    }

    /// Where in the archive the current entry's content begins, before any of it is read.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// What lies below.
    pub fn get_ref(&self) -> &R {
        &self.reader
    }

    /// Go over data of the current entry that was not read from below yet, as far as `skip`, which is told how much
    /// there is, goes over it below.
    pub fn skip_data(&mut self, skip: impl FnOnce(&mut R, u64) -> u64) {
        if self.start == self.end && self.data > 0 && self.recorder.is_none() {
            let skipped = skip(&mut self.reader, self.data).min(self.data);
            self.data -= skipped;
            self.pending -= skipped;
            self.position += skipped;
        }
    }

    /// What lies below, after the end was reached, and what was taken down of the archive.
    pub fn into_inner(self) -> (R, Option<Recorder>) {
        (self.reader, self.recorder)
    }

    /// The next entry; its content, if any, comes from [`Self::content`]. Nothing at the end.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        self.skip_pending()?;
        let mut wanted = 0;
        loop {
            while self.end - self.start < wanted {
                if self.fill(wanted)? == 0 {
                    let rest = &self.buffer[self.start..self.end];
                    if rest.iter().all(|byte| *byte == 0) {
                        // The closing zero blocks are missing or cut: every tar accepts that.
                        return Ok(None);
                    }
                    fail!(Kind::Invalid, "the archive is cut off");
                }
            }
            let event = parse(&mut self.parser, &self.buffer[self.start..self.end])
                .map_err(|error| malformed(&error))?;
            match event {
                ParseEvent::NeedData { min_bytes } => {
                    if min_bytes > MAX_HEADER_BYTES {
                        fail!(
                            Kind::Invalid,
                            "the archive is malformed: an entry has too many headers"
                        );
                    }
                    wanted = min_bytes.max(self.end - self.start + 1);
                }
                ParseEvent::GlobalExtensions { consumed, .. } => {
                    self.pass(consumed);
                    wanted = 0;
                }
                ParseEvent::End { .. } => return Ok(None),
                ParseEvent::Entry { consumed, entry } => {
                    let size = entry.size;
                    let parsed = convert(&entry, size)?;
                    self.begin(consumed, size, None)?;
                    return Ok(Some(parsed));
                }
                ParseEvent::SparseEntry {
                    consumed,
                    entry,
                    sparse_map,
                    real_size,
                } => {
                    check_sparse(&sparse_map, entry.size, real_size)?;
                    let parsed = convert(&entry, real_size)?;
                    let size = entry.size;
                    let mut chunks = sparse_map.into_iter();
                    let current = chunks.next();
                    self.begin(
                        consumed,
                        size,
                        Some(Sparse {
                            chunks,
                            current,
                            position: 0,
                            size: real_size,
                        }),
                    )?;
                    return Ok(Some(parsed));
                }
            }
        }
    }

    /// Go over buffered bytes that are no stored content.
    fn pass(&mut self, count: usize) {
        if let Some(recorder) = &mut self.recorder {
            recorder.raw(&self.buffer[self.start..self.start + count]);
        }
        self.start += count;
        self.position += count as u64;
    }

    fn begin(&mut self, consumed: usize, size: u64, sparse: Option<Sparse>) -> Result<()> {
        self.pass(consumed);
        self.data = size;
        self.pending = size
            .checked_next_multiple_of(BLOCK)
            .ok_or_else(|| Error::new(Kind::Invalid, "the archive is malformed: absurd size"))?;
        self.sparse = sparse;
        Ok(())
    }

    /// A reader of the current entry's content, holes filled with zeros.
    pub fn content(&mut self) -> Content<'_, R> {
        Content { stream: self }
    }

    /// Read to the true end of the stream, so that digests cover all of it. Returns how many bytes
    /// followed the archive.
    pub fn drain(&mut self) -> Result<u64> {
        let mut rest = 0;
        loop {
            let buffered = self.end - self.start;
            rest += buffered as u64;
            self.pass(buffered);
            if self
                .fill(1)
                .map_err(|error| error.within("cannot read the layer to its end"))?
                == 0
            {
                return Ok(rest);
            }
        }
    }

    fn skip_pending(&mut self) -> Result<()> {
        while self.pending > 0 {
            if self.start == self.end && self.fill(1)? == 0 {
                // A missing padding after the last entry hurts nobody, missing data does.
                if self.data > 0 {
                    fail!(Kind::Invalid, "the archive is cut off");
                }
                self.pending = 0;
                break;
            }
            let buffered = self.end - self.start;
            let take = usize::try_from(self.pending)
                .unwrap_or(usize::MAX)
                .min(buffered);
            self.pass(take);
            self.pending -= take as u64;
            self.data = self.data.saturating_sub(take as u64);
        }
        Ok(())
    }

    /// Read some more into the buffer, making room for `wanted` bytes in all.
    fn fill(&mut self, wanted: usize) -> Result<usize> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.buffer.len() < wanted || self.end == self.buffer.len() {
            self.buffer.resize(
                (self.buffer.len() * 2).max(wanted.next_multiple_of(CHUNK)),
                0,
            );
        }
        let n = read_retrying(&mut self.reader, &mut self.buffer[self.end..])
            .kind(Kind::Invalid, || "cannot read the layer".into())?;
        self.end += n;
        Ok(n)
    }

    /// Raw data of the current entry.
    fn read_data(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let limit = usize::try_from(self.data)
            .unwrap_or(usize::MAX)
            .min(out.len());
        if limit == 0 {
            return Ok(0);
        }
        let buffered = self.end - self.start;
        let n = if buffered > 0 {
            let n = buffered.min(limit);
            out[..n].copy_from_slice(&self.buffer[self.start..self.start + n]);
            self.start += n;
            n
        } else {
            read_retrying(&mut self.reader, &mut out[..limit])?
        };
        if n == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the archive is cut off",
            ));
        }
        self.data -= n as u64;
        self.pending -= n as u64;
        self.position += n as u64;
        Ok(n)
    }

    /// The same for a sparse file, whose stored content is another.
    fn read_raw_data(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.read_data(out)?;
        if let Some(recorder) = &mut self.recorder {
            recorder.raw(&out[..n]);
        }
        Ok(n)
    }
}

/// The content of the current entry.
pub struct Content<'a, R> {
    stream: &'a mut TarStream<R>,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let Some(mut sparse) = self.stream.sparse.take() else {
            return self.stream.read_data(out);
        };
        let result = self.read_sparse(&mut sparse, out);
        self.stream.sparse = Some(sparse);
        result
    }
}

impl<R: Read> Content<'_, R> {
    fn read_sparse(&mut self, sparse: &mut Sparse, out: &mut [u8]) -> io::Result<usize> {
        while let Some(chunk) = &sparse.current {
            if sparse.position < chunk.offset + chunk.length {
                break;
            }
            sparse.current = sparse.chunks.next();
        }
        let (until, is_data) = match &sparse.current {
            Some(chunk) if sparse.position >= chunk.offset => (chunk.offset + chunk.length, true),
            Some(chunk) => (chunk.offset, false),
            None => (sparse.size, false),
        };
        let left = usize::try_from(until - sparse.position).unwrap_or(usize::MAX);
        let limit = left.min(out.len());
        let n = if is_data {
            self.stream.read_raw_data(&mut out[..limit])?
        } else {
            out[..limit].fill(0);
            limit
        };
        sparse.position += n as u64;
        Ok(n)
    }
}

/// The parser takes no time before 1970, which POSIX allows and archives have. Of such an entry it may overlook that,
/// and nothing else: whatever else it would overlook then is refused here.
fn parse<'b>(parser: &mut Parser, bytes: &'b [u8]) -> Result<ParseEvent<'b>, ParseError> {
    let refused = match parser.parse(bytes) {
        Err(ParseError::InvalidPaxValue { key, value })
            if key == MTIME && parse_time(&value).is_some() =>
        {
            ParseError::InvalidPaxValue {
                key,
                value: value.into_owned().into(),
            }
        }
        parsed => return parsed,
    };
    parser.set_ignore_pax_errors(true);
    let event = parser.parse(bytes);
    parser.set_ignore_pax_errors(false);
    let event = event?;
    let records = match &event {
        ParseEvent::Entry { entry, .. } => entry.pax,
        ParseEvent::SparseEntry { .. } => return Err(refused),
        _ => return Ok(event),
    };
    for record in tar_core::PaxExtensions::new(records.unwrap_or_default()) {
        let record = record?;
        let key = record.key()?;
        let is_number = || record.value().is_ok_and(|text| text.parse::<u64>().is_ok());
        let is_time = || record.value().is_ok_and(|text| parse_time(text).is_some());
        let is_bad = match key {
            "uid" | "gid" | "size" => !is_number(),
            MTIME => !is_time(),
            key => key.starts_with("GNU.sparse."),
        };
        if is_bad {
            return Err(refused);
        }
    }
    Ok(event)
}

fn read_retrying(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Chunks must lie in order, inside the file, and hold exactly the stored bytes.
fn check_sparse(chunks: &[Chunk], stored: u64, size: u64) -> Result<()> {
    let mut position = 0u64;
    let mut total = 0u64;
    for chunk in chunks {
        let end = chunk.offset.checked_add(chunk.length);
        match end {
            Some(end) if chunk.offset >= position && end <= size => position = end,
            _ => fail!(
                Kind::Invalid,
                "the archive is malformed: a sparse map is not in order"
            ),
        }
        total += chunk.length;
    }
    if total != stored {
        fail!(
            Kind::Invalid,
            "the archive is malformed: a sparse map does not fit its data"
        );
    }
    Ok(())
}

fn convert(entry: &tar_core::parse::ParsedEntry<'_>, size: u64) -> Result<Entry> {
    let id = |value: u64| {
        // The last one means nobody in particular to the kernel.
        let number = u32::try_from(value).ok().filter(|id| *id != u32::MAX);
        number.ok_or_else(|| {
            Error::new(
                Kind::Invalid,
                format!("the archive has an owner number out of range: {value}"),
            )
        })
    };
    let target = || {
        entry
            .link_target
            .as_ref()
            .map(|target| target.to_vec())
            .ok_or_else(|| {
                Error::new(
                    Kind::Invalid,
                    format!(
                        "the archive has a link without target: {}",
                        entry.path_lossy()
                    ),
                )
            })
    };
    let kind = match entry.entry_type {
        // Old archives mark directories by a closing slash alone.
        EntryType::Regular if entry.path.ends_with(b"/") => EntryKind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GnuSparse => {
            EntryKind::File { size }
        }
        EntryType::Directory => EntryKind::Directory,
        EntryType::Symlink => EntryKind::Symlink(target()?),
        EntryType::Link => EntryKind::HardLink(target()?),
        other => {
            let numbers = entry.dev_major.zip(entry.dev_minor);
            EntryKind::Special(match other {
                EntryType::Fifo => Some(Device::Fifo),
                EntryType::Char => numbers.map(|(major, minor)| Device::Char(major, minor)),
                EntryType::Block => numbers.map(|(major, minor)| Device::Block(major, minor)),
                _ => None,
            })
        }
    };
    Ok(Entry {
        path: entry.path.to_vec(),
        kind,
        mode: entry.mode & 0o7777,
        uid: id(entry.uid)?,
        gid: id(entry.gid)?,
        mtime: mtime(entry),
        xattrs: entry
            .xattrs
            .iter()
            .map(|(name, value)| (name.to_vec(), value.to_vec()))
            .collect(),
    })
}

/// The time of an entry; a PAX record has parts of a second, and may be before 1970.
fn mtime(entry: &tar_core::parse::ParsedEntry<'_>) -> (i64, u32) {
    let whole = i64::try_from(entry.mtime).unwrap_or(0);
    let records = entry.pax.map(tar_core::PaxExtensions::new);
    let text = records.and_then(|records| records.get(MTIME));
    text.and_then(parse_time).unwrap_or((whole, 0))
}

/// Seconds with a fraction, as in `-1.25`: what is left of a second counts upwards.
fn parse_time(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    match (whole.starts_with('-'), nanoseconds) {
        (true, 1..) => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds)),
        _ => Some((seconds, nanoseconds)),
    }
}

fn malformed(error: &ParseError) -> Error {
    Error::new(Kind::Invalid, format!("the archive is malformed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_parts_of_seconds_and_may_be_early() {
        for (text, time) in [
            ("12", Some((12, 0))),
            ("12.5", Some((12, 500_000_000))),
            ("1.0000000019", Some((1, 1))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-3", Some((-3, 0))),
            ("x", None),
            ("1.x", None),
        ] {
            assert_eq!(parse_time(text), time, "{text}");
        }
    }

    fn read_all(bytes: &[u8]) -> Result<Vec<(String, EntryKind, Vec<u8>)>> {
        let mut stream = TarStream::new(bytes);
        let mut out = Vec::new();
        while let Some(entry) = stream.next_entry()? {
            let mut content = Vec::new();
            stream
                .content()
                .read_to_end(&mut content)
                .kind(Kind::Invalid, || "content".into())?;
            out.push((
                String::from_utf8_lossy(&entry.path).into_owned(),
                entry.kind,
                content,
            ));
        }
        Ok(out)
    }

    fn archive(long: &str, content: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder
            .append_data(&mut header.clone(), long, content)
            .unwrap();
        builder.append_data(&mut header, "second", content).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn files_from_before_1970_are_read_and_nothing_else_is_overlooked_for_them() {
        let archive = |records: &[(&str, &[u8])]| {
            let mut builder = tar::Builder::new(Vec::new());
            builder
                .append_pax_extensions(records.iter().copied())
                .unwrap();
            let mut header = tar::Header::new_ustar();
            header.set_size(1);
            header.set_mode(0o644);
            builder.append_data(&mut header, "old", &b"x"[..]).unwrap();
            builder.into_inner().unwrap()
        };
        let early: (&str, &[u8]) = ("mtime", b"-1.25");
        let bytes = archive(&[early, ("uid", b"7")]);
        let mut stream = TarStream::new(bytes.as_slice());
        let entry = stream.next_entry().unwrap().unwrap();
        assert_eq!((entry.mtime, entry.uid), ((-2, 750_000_000), 7));
        assert!(stream.next_entry().unwrap().is_none());
        for bad in [
            ("size", &b"-1"[..]),
            ("uid", b"x"),
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.map", b"0,x"),
        ] {
            assert!(read_all(&archive(&[early, bad])).is_err(), "{bad:?}");
        }
        assert!(read_all(&archive(&[("mtime", b"soon")])).is_err());
    }

    #[test]
    fn long_names_and_content_are_read() {
        let long = "d/".repeat(150) + "file";
        let content = vec![7u8; 300_000];
        let entries = read_all(&archive(&long, &content)).unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].0, long);
        assert_eq!(entries[0].2, content);
        assert_eq!(entries[1].0, "second");
    }

    #[test]
    fn content_that_is_not_read_is_skipped() {
        let bytes = archive("a", &vec![1; 200_000]);
        let mut stream = TarStream::new(&bytes[..]);
        assert!(stream.next_entry().unwrap().is_some());
        assert_eq!(stream.next_entry().unwrap().unwrap().path, b"second");
        assert!(stream.next_entry().unwrap().is_none());
    }

    #[test]
    fn every_cut_of_an_archive_is_an_error_or_a_clean_prefix() {
        let bytes = archive("a", &[1; 1000]);
        for cut in 0..bytes.len() {
            match read_all(&bytes[..cut]) {
                Ok(entries) => assert!(
                    entries.iter().all(|(_, _, content)| content.len() == 1000),
                    "{cut}"
                ),
                Err(error) => assert_eq!(error.kind(), Kind::Invalid),
            }
        }
    }

    #[test]
    fn garbage_is_refused_without_panic() {
        let mut seed = 1u32;
        for _ in 0..200 {
            let bytes: Vec<u8> = (0..2048)
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (seed >> 24) as u8
                })
                .collect();
            assert!(read_all(&bytes).is_err());
        }
    }
}
