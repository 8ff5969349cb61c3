//! A stored layer as the archive that it came in, without its files' contents, which are objects.

use std::collections::HashMap;
use std::io::{self, Read};

use camino::Utf8PathBuf;

use super::Store;
use super::objects::Checksum;
use super::side::{Record, Records};
use super::tar::{Entry, TarStream};
use super::writers::{FILE, object_path};
use crate::error::{Kind, Result};
use crate::fail;
use crate::image::Digest;

/// The entries of a stored layer, as they came.
pub struct LayerStream {
    stream: TarStream<Hollow>,
}

impl LayerStream {
    /// The next entry, or nothing at the end.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        self.stream.skip_data(Hollow::skip);
        self.stream.next_entry()
    }

    /// The object that has the current entry's content, if it is one.
    pub fn object(&self) -> Option<Checksum> {
        let at = self.stream.position();
        self.stream.get_ref().files.get(&at).copied()
    }

    /// The current entry's content where it is no object.
    pub fn content(&mut self) -> impl Read + '_ {
        self.stream.content()
    }
}

/// An archive with nothing but zeros where stored files are.
struct Hollow {
    records: Records,
    bytes: Vec<u8>,
    at: usize,
    zeros: u64,
    is_over: bool,
    position: u64,
    /// Stored files by where their contents begin.
    files: HashMap<u64, Checksum>,
}

impl Hollow {
    /// Have something to hand out, unless that was all.
    fn advance(&mut self) -> io::Result<()> {
        while !self.is_over && self.at == self.bytes.len() && self.zeros == 0 {
            match self.records.next().map_err(io::Error::other)? {
                None => self.is_over = true,
                Some(Record::Raw(bytes)) => (self.bytes, self.at) = (bytes, 0),
                Some(Record::File(checksum, size)) => {
                    self.zeros = size;
                    if size > 0 {
                        self.files.insert(self.position, checksum);
                    }
                }
            }
        }
        Ok(())
    }
}

impl Hollow {
    /// Go over the zeros that come next, so many at the most; how many those were.
    fn skip(&mut self, bytes: u64) -> u64 {
        let skipped = if self.at == self.bytes.len() {
            bytes.min(self.zeros)
        } else {
            0
        };
        self.zeros -= skipped;
        self.position += skipped;
        skipped
    }
}

impl Read for Hollow {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.advance()?;
        let rest = &self.bytes[self.at..];
        let n = if rest.is_empty() {
            let n = usize::try_from(self.zeros).unwrap_or(usize::MAX);
            let n = n.min(buffer.len());
            buffer[..n].fill(0);
            self.zeros -= n as u64;
            n
        } else {
            let n = rest.len().min(buffer.len());
            buffer[..n].copy_from_slice(&rest[..n]);
            self.at += n;
            n
        };
        self.position += n as u64;
        // Whoever has read a header asks at once what follows it.
        self.advance()?;
        Ok(n)
    }
}

impl Store {
    /// The entries of a stored layer.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if it was stored without what of it is not in its tree.
    pub fn layer_stream(&self, layer: Digest) -> Result<LayerStream> {
        let Some(side) = self.side_data(layer)? else {
            fail!(
                Kind::NotFound,
                "the layer {layer} is in the store without what stood in its archive: delete the image, prune, and pull it again"
            );
        };
        Ok(LayerStream {
            stream: TarStream::new(Hollow {
                records: Records::new(side)?,
                bytes: Vec::new(),
                at: 0,
                zeros: 0,
                is_over: false,
                position: 0,
                files: HashMap::new(),
            }),
        })
    }

    /// Where the content of a stored file is, which nobody changes.
    pub fn object_path(&self, checksum: &Checksum) -> Utf8PathBuf {
        self.path.join("objects").join(object_path(checksum, FILE))
    }
}
