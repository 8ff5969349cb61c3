//! A directory or an archive as a layer: the same content gives the same bytes, wherever and whenever.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek as _, Write};

use camino::Utf8Path;
use flate2::write::GzEncoder;

use super::image::{Compression, Described, LayerName};
use super::walk;
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::image::digest::Hashing;
use crate::interrupt::Interrupt;
use crate::pull;
use crate::safefs::entry_path::normal;
use crate::store::tar::{EntryKind, TarStream};

/// zstd's own default.
const ZSTD_LEVEL: i32 = 3;
const BUFFER: usize = 256 * 1024;

/// What a layer is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content<'a> {
    /// The directory of the layer's name, with nothing in it.
    Empty(&'a LayerName),
    /// All that is in a directory.
    Directory(&'a Utf8Path),
    /// An archive, however it is compressed.
    Tar(&'a Utf8Path),
}

/// Who owns what is packed.
pub type Owner = Option<(u32, u32)>;

/// A layer that is ready to be uploaded.
#[derive(Debug)]
pub struct Packed {
    /// What it is.
    pub described: Described,
    /// Its bytes, in a file without a name.
    pub file: File,
    /// What a layer cannot have: sockets.
    pub left_out: Vec<String>,
    /// When the newest of its files was changed: seconds since 1970.
    pub newest: i64,
    /// What it makes the image's own root, if it says anything of that: permission bits.
    pub root_mode: Option<u32>,
}

/// What is known of the entries that were written.
#[derive(Debug, Default)]
pub struct Seen {
    /// See [`Packed::left_out`].
    pub left_out: Vec<String>,
    /// See [`Packed::newest`].
    pub newest: i64,
    /// See [`Packed::root_mode`].
    pub root_mode: Option<u32>,
}

/// Make one.
///
/// # Errors
/// [`Kind::Invalid`] for an archive that is malformed or leads out of its root.
pub fn pack(
    content: &Content<'_>,
    compression: Compression,
    owner: Owner,
    interrupt: &Interrupt,
    progress: &mut dyn FnMut(u64),
) -> Result<Packed> {
    let failed = || "cannot write a temporary file".into();
    let file = tempfile::tempfile().context(failed)?;
    let blob = Hashing::new(BufWriter::with_capacity(BUFFER, file));
    let encoder = match compression {
        Compression::Gzip => Encoder::Gzip(GzEncoder::new(blob, flate2::Compression::default())),
        Compression::Zstd => {
            Encoder::Zstd(zstd::stream::write::Encoder::new(blob, ZSTD_LEVEL).context(failed)?)
        }
    };
    let mut archive = Hashing::new(encoder);
    let seen = match content {
        Content::Empty(name) => {
            walk::empty_directory(name.as_str(), &mut archive).context(failed)?;
            Seen::default()
        }
        Content::Directory(path) => {
            walk::directory(path, owner, &mut archive, interrupt, progress)?
        }
        Content::Tar(path) => copy_archive(path, &mut archive, interrupt, progress)?,
    };
    let (diff_id, _, encoder) = archive.finish();
    let (digest, size, out) = encoder.finish().context(failed)?.finish();
    let mut file = out
        .into_inner()
        .map_err(io::IntoInnerError::into_error)
        .context(failed)?;
    file.rewind().context(failed)?;
    Ok(Packed {
        described: Described {
            diff_id,
            digest,
            size,
        },
        file,
        left_out: seen.left_out,
        newest: seen.newest,
        root_mode: seen.root_mode,
    })
}

enum Encoder<W: Write> {
    Gzip(GzEncoder<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    fn finish(self) -> io::Result<W> {
        match self {
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(encoder) => encoder.write(buffer),
            Self::Zstd(encoder) => encoder.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Gzip(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}

/// An archive as it is, if it is one that we would take as a layer.
fn copy_archive(
    path: &Utf8Path,
    out: &mut dyn Write,
    interrupt: &Interrupt,
    progress: &mut dyn FnMut(u64),
) -> Result<Seen> {
    let mut seen = Seen::default();
    let mut is_empty = true;
    pull::with_unpacked(path, |input| {
        let mut entries = TarStream::new(Tee {
            input,
            out,
            progress,
        });
        while let Some(entry) = entries.next_entry()? {
            interrupt.check()?;
            let path = normal(&entry.path)?;
            is_empty = false;
            seen.newest = seen.newest.max(entry.mtime.0);
            if path.is_empty() {
                seen.root_mode = Some(entry.mode);
            }
            if let EntryKind::HardLink(target) = &entry.kind {
                normal(target)?;
            }
        }
        entries.drain()?;
        Ok(())
    })
    .map_err(|error| error.within(path))?;
    if is_empty {
        // Whatever was to write it has failed.
        fail!(Kind::Invalid, "{path}: the archive has nothing in it");
    }
    Ok(seen)
}

/// Writes what is read.
struct Tee<'a> {
    input: &'a mut dyn Read,
    out: &'a mut dyn Write,
    progress: &'a mut dyn FnMut(u64),
}

impl Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buffer)?;
        self.out.write_all(&buffer[..n])?;
        (self.progress)(n as u64);
        Ok(n)
    }
}
