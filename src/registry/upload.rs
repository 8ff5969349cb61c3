//! Uploading blobs: in parts, and on from where it stopped.

use std::fs::File;

use ureq::Body;
use ureq::http::{Method, Response, StatusCode};

use super::auth::{Scope, encoded};
use super::{Ask, Content, LONGEST_PAUSE, PAUSE, Registry, TRIES};
use crate::error::{Error, Kind, Result};
use crate::image::Digest;

/// Bytes of one request: what is lost at the most when a connection breaks.
const PART: u64 = 16 << 20;

/// What is to be uploaded.
#[derive(Debug, Clone, Copy)]
pub struct Blob<'a> {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes: all of this file.
    pub file: &'a File,
    /// How many they are.
    pub size: u64,
}

/// How a blob came to be in a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uploaded {
    /// It was there.
    Present,
    /// The registry took it from another of its repositories.
    Mounted,
    /// It was sent.
    Sent,
}

/// An upload under way.
struct Session {
    url: String,
    /// Bytes that the registry has.
    offset: u64,
}

/// Why an upload did not go on.
enum Broken {
    /// It can go on, or begin again.
    Passing(Error),
    /// The registry does not take a blob in parts.
    Parts(Error),
    Final(Error),
}

impl Registry {
    /// Have a blob in this repository. `progress` hears of bytes as they are sent.
    ///
    /// # Errors
    /// [`Kind::Transport`] if it cannot be sent in several tries.
    pub fn upload(&self, blob: &Blob<'_>, progress: &mut dyn FnMut(u64)) -> Result<Uploaded> {
        if self.has_blob(blob.digest)? {
            return Ok(Uploaded::Present);
        }
        let session = self.begin()?;
        self.send_blob(session, blob, progress)?;
        Ok(Uploaded::Sent)
    }

    /// Have the registry take a blob from another of its repositories; false if it does not.
    pub fn mount(&self, digest: Digest, from: &str) -> Result<bool> {
        if self.has_blob(digest)? {
            return Ok(true);
        }
        let scope = Scope::push(self.repository()).and(Scope::pull(from));
        self.prepare(&scope)?;
        let digest = digest.to_string();
        let fields = encoded(&[("mount", &digest), ("from", from)]);
        let url = self.url(&format!("blobs/uploads/?{fields}"));
        let said = self.send(&Ask::new(Method::POST, url.clone(), scope))?;
        let good = [StatusCode::CREATED, StatusCode::ACCEPTED];
        let said = self.accept(said, &good, "an upload")?;
        if said.status() == StatusCode::CREATED {
            return Ok(true);
        }
        // It has begun an upload in place of that.
        let session = Session {
            url: Self::location(&said, &url)?,
            offset: 0,
        };
        self.abandon(&session);
        Ok(false)
    }

    fn begin(&self) -> Result<Session> {
        let url = self.url("blobs/uploads/");
        let mut ask = Ask::new(Method::POST, url.clone(), Scope::push(self.repository()));
        // One that is begun twice is forgotten by the registry.
        ask.repeats = true;
        let said = self.send(&ask)?;
        let said = self.accept(said, &[StatusCode::ACCEPTED], "an upload")?;
        Ok(Session {
            url: Self::location(&said, &url)?,
            offset: 0,
        })
    }

    fn abandon(&self, session: &Session) {
        let scope = Scope::push(self.repository());
        let ask = Ask::new(Method::DELETE, session.url.clone(), scope);
        if let Err(error) = self.send(&ask) {
            tracing::debug!(%error, "an upload is left to the registry");
        }
    }

    fn send_blob(
        &self,
        mut session: Session,
        blob: &Blob<'_>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let mut tries = TRIES;
        let mut pause = PAUSE;
        let mut part = PART;
        // What was counted is not counted again.
        let mut furthest = 0;
        loop {
            let sent = self.send_parts(&mut session, blob, part, &mut |offset| {
                if offset > furthest {
                    progress(offset - furthest);
                    furthest = offset;
                }
            });
            let error = match sent {
                Ok(()) => return Ok(()),
                Err(Broken::Parts(error)) if part < blob.size => {
                    tracing::debug!(%error, "in one part");
                    part = blob.size;
                    self.abandon(&session);
                    session = self.begin()?;
                    continue;
                }
                Err(Broken::Passing(error)) => error,
                Err(Broken::Parts(error) | Broken::Final(error)) => {
                    self.abandon(&session);
                    return Err(error);
                }
            };
            tries -= 1;
            if tries == 0 {
                self.abandon(&session);
                return Err(error);
            }
            tracing::debug!(%error, offset = session.offset, "an upload goes on");
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
            // The last answer may have been lost, and not what it was about.
            if self.has_blob(blob.digest)? {
                return Ok(());
            }
            session = match self.resume(&session, part == blob.size)? {
                Some(session) => session,
                None => self.begin()?,
            };
        }
    }

    fn send_parts(
        &self,
        session: &mut Session,
        blob: &Blob<'_>,
        part: u64,
        progress: &mut dyn FnMut(u64),
    ) -> std::result::Result<(), Broken> {
        let scope = || Scope::push(self.repository());
        while session.offset < blob.size {
            let length = part.min(blob.size - session.offset);
            let last = session.offset + length - 1;
            let content = Content::Part(blob.file, session.offset, length);
            let mut ask = Ask::new(Method::PATCH, session.url.clone(), scope())
                .header("Content-Type", "application/octet-stream")
                .content(content);
            if part < blob.size {
                ask = ask.header("Content-Range", format!("{}-{last}", session.offset));
            }
            let said = self.send(&ask).map_err(Broken::Passing)?;
            let is_first = session.offset == 0;
            let said = self.judge(said, &[StatusCode::ACCEPTED], is_first)?;
            session.url = Self::location(&said, &session.url).map_err(Broken::Final)?;
            let has = received(&said).unwrap_or(last + 1);
            if has <= session.offset && length > 1 {
                let text = "the registry takes nothing of an upload";
                return Err(Broken::Passing(Error::new(Kind::Transport, text)));
            }
            session.offset = has.max(session.offset + 1);
            progress(session.offset);
        }
        let sign = if session.url.contains('?') { '&' } else { '?' };
        let digest = blob.digest.to_string();
        let url = format!("{}{sign}{}", session.url, encoded(&[("digest", &digest)]));
        let said = self.send(&Ask::new(Method::PUT, url, scope()));
        let said = said.map_err(Broken::Passing)?;
        self.judge(said, &[StatusCode::CREATED, StatusCode::NO_CONTENT], true)?;
        Ok(())
    }

    /// What an answer other than a good one means. Whoever took a first part and no second one takes no parts.
    fn judge(
        &self,
        said: Response<Body>,
        good: &[StatusCode],
        is_first: bool,
    ) -> std::result::Result<Response<Body>, Broken> {
        let status = said.status();
        let said = self.accept(said, good, "an upload");
        said.map_err(|error| match status {
            status if super::is_busy(status) => Broken::Passing(error),
            StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE => Broken::Passing(error),
            status if status.is_client_error() && !is_first => Broken::Parts(error),
            _ => Broken::Final(error),
        })
    }

    /// Where an upload stands; nothing if the registry has forgotten it.
    fn resume(&self, session: &Session, is_whole: bool) -> Result<Option<Session>> {
        if is_whole {
            return Ok(None);
        }
        let scope = Scope::push(self.repository());
        let said = self.send(&Ask::new(Method::GET, session.url.clone(), scope))?;
        if said.status() != StatusCode::NO_CONTENT {
            return Ok(None);
        }
        Ok(Some(Session {
            url: Self::location(&said, &session.url)?,
            offset: received(&said).unwrap_or(0),
        }))
    }
}

/// Bytes that a registry says it has: `Range: 0-N`, which for none and for one is the same.
fn received(said: &Response<Body>) -> Option<u64> {
    let range = said.headers().get("range")?.to_str().ok()?;
    let last: u64 = range.rsplit_once('-')?.1.parse().ok()?;
    Some(if last == 0 { 0 } else { last + 1 })
}
