//! Side data of a layer: what of its archive is not in the tree, so that the archive can be put
//! together again bit for bit.
//!
//! # Format
//! Ref `ociimage-side/<layer digest>`, tree: one file `side`. Its first line is
//! `atomic-rs side 1`; then a zstd stream of records: `0`, a 32-bit little-endian length and so many
//! bytes of the archive as they are (headers, padding, the content of what could not be stored), or
//! `1`, a 64-bit little-endian size and the 32-byte checksum of the stored file whose content stands
//! there.

use std::io::{self, Read, Write};

use gio::prelude::*;
use ostree::Repo;

use super::objects::{Checksum, NO_CANCEL};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::image::digest::hex;

const MAGIC: &[u8] = b"atomic-rs side 1\n";
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
}

impl Recorder {
    /// Nothing taken down yet.
    pub fn new() -> Self {
        Self {
            encoder: zstd::stream::Encoder::new(MAGIC.to_vec(), LEVEL).ok(),
            raw: Vec::with_capacity(RECORD_BYTES),
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

    /// The content of a stored file.
    pub fn file(&mut self, checksum: &Checksum, size: u64) {
        self.flush();
        let mut record = vec![FILE];
        record.extend_from_slice(&size.to_le_bytes());
        record.extend_from_slice(checksum);
        self.write(&record);
    }

    /// What was taken down; nothing if it was too much.
    pub fn finish(mut self) -> Option<Vec<u8>> {
        self.flush();
        self.encoder.take()?.finish().ok()
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

/// Put an archive together again.
pub fn rebuild(repo: &Repo, side: &[u8], out: &mut impl Write) -> Result<()> {
    let damaged = || Error::new(Kind::Invalid, "the side data of the layer are damaged");
    let stream = side.strip_prefix(MAGIC).ok_or_else(damaged)?;
    let mut records = zstd::stream::read::Decoder::new(stream).map_err(|_| damaged())?;
    let mut buffer = Vec::new();
    loop {
        let mut tag = [0];
        match records.read_exact(&mut tag) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(_) => return Err(damaged()),
        }
        let written = match tag[0] {
            RAW => {
                let mut length = [0; 4];
                records.read_exact(&mut length).map_err(|_| damaged())?;
                let length = u64::from(u32::from_le_bytes(length));
                buffer.clear();
                let read = (&mut records).take(length).read_to_end(&mut buffer);
                if read.ok().and_then(|n| u64::try_from(n).ok()) != Some(length) {
                    return Err(damaged());
                }
                out.write_all(&buffer)
            }
            FILE => {
                let (mut size, mut checksum) = ([0; 8], [0; 32]);
                records.read_exact(&mut size).map_err(|_| damaged())?;
                records.read_exact(&mut checksum).map_err(|_| damaged())?;
                let size = u64::from_le_bytes(size);
                copy_file(repo, &checksum, size, out)?;
                Ok(())
            }
            _ => return Err(damaged()),
        };
        written.context(|| "cannot write the layer".into())?;
    }
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
