//! Reading blobs.

use std::io::{self, Read};

use ureq::http::{Method, StatusCode};
use ureq::{Body, BodyReader};

use super::auth::Scope;
use super::{Ask, PAUSE, Registry, TRIES};
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::image::Digest;

impl Registry {
    /// Whether the repository has a blob.
    pub fn has_blob(&self, digest: Digest) -> Result<bool> {
        let scope = Scope::push(self.repository());
        self.prepare(&scope)?;
        let url = self.url(&format!("blobs/{digest}"));
        let said = self.send(&Ask::new(Method::HEAD, url, scope))?;
        match said.status() {
            StatusCode::NOT_FOUND => Ok(false),
            _ => self
                .accept(said, &[StatusCode::OK], &format!("the blob {digest}"))
                .map(|_| true),
        }
    }

    /// A blob as a stream, which goes on where a connection breaks. Whoever reads it checks the digest.
    pub fn blob(&self, digest: Digest) -> Result<BlobStream<'_>> {
        let reader = self.blob_from(digest, 0)?;
        Ok(BlobStream {
            registry: self,
            digest,
            reader,
            position: 0,
            tries: TRIES,
        })
    }

    /// A small blob, whole.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is larger than `limit` or not what its digest says.
    pub fn small_blob(&self, digest: Digest, limit: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut blob = self.blob(digest)?.take(limit + 1);
        blob.read_to_end(&mut bytes)
            .kind(Kind::Transport, || format!("the blob {digest}"))?;
        if bytes.len() as u64 > limit {
            fail!(
                Kind::Invalid,
                "the blob {digest} has more than {limit} bytes"
            );
        }
        if Digest::of(&bytes) != digest {
            fail!(
                Kind::Invalid,
                "the blob {digest} of {} does not have that digest",
                self.shown()
            );
        }
        Ok(bytes)
    }

    fn blob_from(&self, digest: Digest, position: u64) -> Result<BodyReader<'static>> {
        let url = self.url(&format!("blobs/{digest}"));
        let mut ask = Ask::new(Method::GET, url, Scope::pull(self.repository()));
        if position > 0 {
            ask = ask.header("Range", format!("bytes={position}-"));
        }
        let said = self.send(&ask)?;
        let good = [StatusCode::OK, StatusCode::PARTIAL_CONTENT];
        let said = self.accept(said, &good, &format!("the blob {digest}"))?;
        let is_part = said.status() == StatusCode::PARTIAL_CONTENT;
        let mut reader = Body::into_reader(said.into_body());
        if position > 0 && !is_part {
            // A registry that knows no parts sends all of it.
            let passed = io::copy(&mut (&mut reader).take(position), &mut io::sink());
            passed.kind(Kind::Transport, || format!("the blob {digest}"))?;
        }
        Ok(reader)
    }
}

/// The bytes of a blob.
pub struct BlobStream<'r> {
    registry: &'r Registry,
    digest: Digest,
    reader: BodyReader<'static>,
    position: u64,
    tries: u32,
}

impl Read for BlobStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.reader.read(buffer) {
                Ok(n) => {
                    self.position += n as u64;
                    return Ok(n);
                }
                Err(error) if self.tries > 0 && error.kind() != io::ErrorKind::Interrupted => {
                    self.tries -= 1;
                    tracing::debug!(%error, digest = %self.digest, position = self.position, "goes on");
                    std::thread::sleep(PAUSE);
                    let again = self.registry.blob_from(self.digest, self.position);
                    self.reader = again.map_err(io::Error::other)?;
                }
                Err(error) => return Err(error),
            }
        }
    }
}
