//! Manifests of a repository, by tag or by digest.

use ureq::http::{Method, StatusCode};

use super::auth::Scope;
use super::{Ask, Content, Registry};
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::image::Digest;
use crate::image::manifest::{MAX_MANIFEST_BYTES, MEDIA_TYPES};

/// A manifest as a registry has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tagged {
    /// Its exact bytes.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
    /// What the registry says that it is.
    pub media_type: String,
}

impl Registry {
    /// The manifest of a tag or a digest, if there is one.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it does not have the digest that was asked for.
    pub fn manifest(&self, tag: &str) -> Result<Option<Tagged>> {
        let url = self.url(&format!("manifests/{tag}"));
        let scope = Scope::pull(self.repository());
        let ask = Ask::new(Method::GET, url, scope).header("Accept", MEDIA_TYPES.join(", "));
        let said = self.send(&ask)?;
        if said.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let mut said = self.accept(said, &[StatusCode::OK], "the manifest")?;
        let media_type = said.headers().get("content-type");
        let media_type = media_type.and_then(|value| value.to_str().ok());
        let media_type = media_type.unwrap_or_default().to_owned();
        let body = said.body_mut().with_config();
        let bytes = body.limit(MAX_MANIFEST_BYTES as u64 + 1).read_to_vec();
        let bytes = bytes.kind(Kind::Transport, || {
            format!("the manifest of {}", self.shown())
        })?;
        let digest = Digest::of(&bytes);
        if let Ok(wanted) = tag.parse::<Digest>()
            && wanted != digest
        {
            fail!(
                Kind::Invalid,
                "the manifest {wanted} of {} does not have that digest",
                self.shown()
            );
        }
        Ok(Some(Tagged {
            bytes,
            digest,
            media_type,
        }))
    }

    /// What a tag names now, if anything.
    pub fn digest_of(&self, tag: &str) -> Result<Option<Digest>> {
        // Not every registry says it without the manifest, and some say another one's.
        Ok(self.manifest(tag)?.map(|found| found.digest))
    }

    /// Put a manifest under a tag, or under its own digest where `tag` is nothing.
    pub fn put_manifest(
        &self,
        tag: Option<&str>,
        bytes: &[u8],
        media_type: &str,
    ) -> Result<Digest> {
        let digest = Digest::of(bytes);
        let name = tag.map_or_else(|| digest.to_string(), str::to_owned);
        let scope = Scope::push(self.repository());
        self.prepare(&scope)?;
        let ask = Ask::new(Method::PUT, self.url(&format!("manifests/{name}")), scope)
            .header("Content-Type", media_type)
            .content(Content::Bytes(bytes));
        let said = self.send(&ask)?;
        let good = [StatusCode::CREATED, StatusCode::OK, StatusCode::ACCEPTED];
        self.accept(said, &good, "the manifest")?;
        Ok(digest)
    }
}
