//! Side data of a layer: what of its archive is not in the tree, so that the archive can be put
//! together again bit for bit.
//!
//! # Format
//! Ref `ociimage-side/<layer digest>`, tree: one file `side`. Its first line is `atomic-rs side 2`.
//! Then, all numbers little-endian: how many stored files there are, in 32 bits, their checksums of 32
//! bytes in the order of the archive, and a zstd stream of records: `0`, a 32-bit length and so many
//! bytes of the archive as they are (headers, padding, the content of what could not be stored), or `1` and
//! the 64-bit size of the next stored file, whose content stands there.
//!
//! Version 1, which is still read, had each file's checksum in its record instead.

use std::io::{self, Read, Write};

use gio::prelude::*;
use ostree::Repo;

use super::objects::{Checksum, NO_CANCEL};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::image::digest::hex;

const MAGIC_1: &[u8] = b"atomic-rs side 1\n";
const MAGIC: &[u8] = b"atomic-rs side 2\n";
const RAW: u8 = 0;
const FILE: u8 = 1;
/// Headers of a layer compress to a few bytes a file. A layer that has more than this is made of
/// what cannot be stored, and is not worth it.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// Raw bytes are gathered up to this size.
const RECORD_BYTES: usize = 64 * 1024;
const LEVEL: i32 = 1;

/// Takes down the side data while an archive is read.
pub struct Recorder {
    encoder: Option<zstd::stream::Encoder<'static, Vec<u8>>>,
    raw: Vec<u8>,
    /// The stored files by number.
    files: Vec<usize>,
}

impl Recorder {
    /// Nothing taken down yet.
    pub fn new() -> Self {
        Self {
            encoder: zstd::stream::Encoder::new(Vec::new(), LEVEL).ok(),
            raw: Vec::with_capacity(RECORD_BYTES),
            files: Vec::new(),
        }
    }

    /// Bytes of the archive that are not the content of a stored file.
    pub fn raw(&mut self, bytes: &[u8]) {
        if self.encoder.is_none() {
            return;
        }
        self.raw.extend_from_slice(bytes);
        if self.raw.len() >= RECORD_BYTES {
            self.flush();
        }
    }

    /// The content of a stored file, by its number.
    pub fn file(&mut self, number: usize, size: u64) {
        self.flush();
        let mut record = [FILE; 9];
        record[1..].copy_from_slice(&size.to_le_bytes());
        self.write(&record);
        self.files.push(number);
    }

    /// What was taken down, with the checksums of stored files by number; nothing if it was too much.
    pub fn finish(mut self, checksums: &[Checksum]) -> Option<Vec<u8>> {
        self.flush();
        let records = self.encoder.take()?.finish().ok()?;
        let count = u32::try_from(self.files.len()).ok()?;
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&count.to_le_bytes());
        for number in &self.files {
            out.extend_from_slice(checksums.get(*number)?);
        }
        out.extend_from_slice(&records);
        (out.len() <= MAX_BYTES).then_some(out)
    }

    fn flush(&mut self) {
        let raw = std::mem::take(&mut self.raw);
        if let (Ok(length), false) = (u32::try_from(raw.len()), raw.is_empty()) {
            let mut head = vec![RAW];
            head.extend_from_slice(&length.to_le_bytes());
            self.write(&head);
            self.write(&raw);
        }
        self.raw = raw;
        self.raw.clear();
    }

    fn write(&mut self, bytes: &[u8]) {
        let fits = self.encoder.as_mut().is_some_and(|encoder| {
            encoder.write_all(bytes).is_ok() && encoder.get_ref().len() <= MAX_BYTES
        });
        if !fits {
            self.encoder = None;
        }
    }
}

/// The records of side data, in the order of the archive.
pub struct Records {
    records: zstd::stream::read::Decoder<'static, io::BufReader<io::Cursor<Vec<u8>>>>,
    /// The files' checksums, and how many were handed out; nothing where each record has its own.
    files: Option<(Vec<Checksum>, usize)>,
}

/// What comes next in an archive.
pub enum Record {
    /// These bytes.
    Raw(Vec<u8>),
    /// The content of a stored file of this size.
    File(Checksum, u64),
}

impl Records {
    /// Read side data.
    pub fn new(side: Vec<u8>) -> Result<Self> {
        let (mut files, mut at) = (None, MAGIC_1.len());
        if !side.starts_with(MAGIC_1) {
            let rest = side.strip_prefix(MAGIC).ok_or_else(damaged)?;
            let (count, rest) = rest.split_first_chunk().ok_or_else(damaged)?;
            let bytes = usize::try_from(u32::from_le_bytes(*count)).ok();
            let bytes = bytes.and_then(|count| count.checked_mul(size_of::<Checksum>()));
            let bytes = bytes
                .filter(|bytes| *bytes <= rest.len())
                .ok_or_else(damaged)?;
            let table = rest[..bytes].as_chunks().0.to_vec();
            at = MAGIC.len() + size_of::<u32>() + bytes;
            files = Some((table, 0));
        }
        let mut side = io::Cursor::new(side);
        side.set_position(at as u64);
        let records = zstd::stream::read::Decoder::new(side).map_err(|_| damaged())?;
        Ok(Self { records, files })
    }

    /// The next one, or nothing at the end.
    pub fn next(&mut self) -> Result<Option<Record>> {
        let records = &mut self.records;
        let mut tag = [0];
        match records.read_exact(&mut tag) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(_) => return Err(damaged()),
        }
        match tag[0] {
            RAW => {
                let mut length = [0; 4];
                records.read_exact(&mut length).map_err(|_| damaged())?;
                let length = u64::from(u32::from_le_bytes(length));
                let mut bytes = Vec::new();
                let read = records.take(length).read_to_end(&mut bytes);
                if read.ok().and_then(|n| u64::try_from(n).ok()) != Some(length) {
                    return Err(damaged());
                }
                Ok(Some(Record::Raw(bytes)))
            }
            FILE => {
                let (mut size, mut checksum) = ([0; 8], [0; 32]);
                records.read_exact(&mut size).map_err(|_| damaged())?;
                match &mut self.files {
                    Some((table, next)) => {
                        checksum = *table.get(*next).ok_or_else(damaged)?;
                        *next += 1;
                    }
                    None => records.read_exact(&mut checksum).map_err(|_| damaged())?,
                }
                Ok(Some(Record::File(checksum, u64::from_le_bytes(size))))
            }
            _ => Err(damaged()),
        }
    }
}

fn damaged() -> Error {
    Error::new(Kind::Invalid, "the side data of the layer are damaged")
}

/// Put an archive together again.
pub fn rebuild(repo: &Repo, side: Vec<u8>, out: &mut impl Write) -> Result<()> {
    let mut records = Records::new(side)?;
    while let Some(record) = records.next()? {
        match record {
            Record::Raw(bytes) => {
                out.write_all(&bytes)
                    .context(|| "cannot write the layer".into())?;
            }
            Record::File(checksum, size) => copy_file(repo, &checksum, size, out)?,
        }
    }
    Ok(())
}

fn copy_file(repo: &Repo, checksum: &Checksum, size: u64, out: &mut impl Write) -> Result<()> {
    let name = hex(checksum);
    let (stream, _, _) = repo
        .load_file(&name, NO_CANCEL)
        .context(|| format!("cannot read the object {name}"))?;
    let copied = match stream {
        Some(stream) => io::copy(&mut stream.into_read(), out)
            .context(|| format!("cannot copy the object {name}"))?,
        None => 0,
    };
    if copied != size {
        fail!(Kind::Invalid, "the object {name} is damaged");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::objects::checksum;

    #[test]
    fn both_versions_are_put_together_again() {
        let dir = tempfile::tempdir().unwrap();
        let repo = crate::store::repository(dir.path().try_into().unwrap()).unwrap();
        repo.create(ostree::RepoMode::BareUser, NO_CANCEL).unwrap();
        let sums: Vec<Checksum> = [&b"one"[..], b"two"]
            .map(|content| {
                let written =
                    repo.write_regfile_inline(None, 0, 0, 0o100_644, None, content, NO_CANCEL);
                checksum(&written.unwrap()).unwrap()
            })
            .into();
        let mut recorder = Recorder::new();
        recorder.raw(b"<");
        recorder.file(1, 3);
        recorder.raw(b"|");
        recorder.file(0, 3);
        recorder.raw(b">");
        let second = recorder.finish(&sums).unwrap();
        let record = |sum: &Checksum| [&[FILE][..], &3u64.to_le_bytes(), sum].concat();
        let raw = |text: &[u8]| [&[RAW][..], &1u32.to_le_bytes(), text].concat();
        let records = [
            raw(b"<"),
            record(&sums[1]),
            raw(b"|"),
            record(&sums[0]),
            raw(b">"),
        ]
        .concat();
        let packed = zstd::stream::encode_all(&records[..], LEVEL).unwrap();
        let first = [MAGIC_1, &packed].concat();
        for side in [&first, &second] {
            let mut out = Vec::new();
            rebuild(&repo, side.clone(), &mut out).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), "<two|one>");
            for cut in 0..side.len() {
                // Whatever the end of a cut stream says, nothing panics and nothing else comes out.
                let mut out = Vec::new();
                let _ = rebuild(&repo, side[..cut].to_vec(), &mut out);
                assert!(b"<two|one>".starts_with(&out));
            }
        }
    }
}
