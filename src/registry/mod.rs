//! Talking to a registry directly, where no whole image is copied: one blob, one manifest, one question.
//!
//! - `access`: how a person says that it is to be reached
//! - [`credentials`]: who we are to it
//! - `place`: where it is
//! - `tls`: whom we trust to be it
//! - `auth`: what it wants to see before it answers
//! - `manifest`, `blob`, `upload`: what it keeps
//! - `search`: what it knows
//!
//! Blocking, over HTTP/1.1. Questions that change nothing are asked again where a connection breaks or a registry is
//! busy; an upload goes on where it stopped.
//!
//! Source: the OCI distribution specification 1.1.

mod access;
mod auth;
mod blob;
pub mod credentials;
mod manifest;
mod place;
mod search;
mod tls;
mod upload;

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use serde_json::Value;
use ureq::http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{
    ConnectProxyConnector, Connector as _, SocksConnector, TcpConnector,
};
use ureq::{Agent, Body, Proxy, SendBody};

use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::image::Name;
pub use access::{Access, Credentials};
use auth::{Challenge, Scope};
pub use blob::BlobStream;
use credentials::Login;
pub use manifest::Tagged;
use place::Place;
pub use search::{Found, search};
use tls::{Tls, Trust};
pub use upload::{Blob, Uploaded};

/// How long a registry may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(30);
/// How long it may be silent: some sum up a large blob before they answer.
const SILENCE: Duration = Duration::from_mins(5);
/// How often a question is asked, and how long is waited after the first try; twice as long after each further one.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(300);
/// No registry that asks for more patience gets it.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Most bytes of an answer that is JSON.
const MAX_ANSWER_BYTES: u64 = 8 << 20;

/// A repository of a registry, or a registry as such.
pub struct Registry {
    place: Place,
    agent: Agent,
    login: Option<Login>,
    /// `https://HOST` or `http://HOST`, once it is known.
    base: OnceCell<String>,
    /// What the registry said it wants to see.
    challenge: RefCell<Option<Challenge>>,
    /// What it was shown, by what was to be done.
    answers: RefCell<HashMap<Scope, String>>,
}

/// What is sent along.
#[derive(Clone, Copy)]
enum Content<'a> {
    Nothing,
    Bytes(&'a [u8]),
    /// A part of a file: where it begins, and how many bytes.
    Part(&'a File, u64, u64),
}

/// A question.
struct Ask<'a> {
    method: Method,
    url: String,
    scope: Scope,
    headers: Vec<(&'static str, String)>,
    content: Content<'a>,
    /// Whether it may be asked twice.
    repeats: bool,
}

impl<'a> Ask<'a> {
    fn new(method: Method, url: String, scope: Scope) -> Self {
        let repeats = matches!(method, Method::GET | Method::HEAD);
        Self {
            method,
            url,
            scope,
            headers: Vec::new(),
            content: Content::Nothing,
            repeats,
        }
    }

    fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn content(mut self, content: Content<'a>) -> Self {
        self.content = content;
        self
    }
}

/// Keep credentials for a host, if it takes them.
///
/// # Errors
/// [`Kind::Transport`] if it does not; then nothing is kept.
pub fn login(host: &str, credentials: &Credentials, access: &Access) -> Result<()> {
    let with = Access {
        credentials: Some(credentials.clone()),
        ..access.clone()
    };
    let registry = Registry::of_host(host, &with, None)?;
    registry.check_login()?;
    credentials::keep(access, &registry.place.host, credentials)?;
    Ok(())
}

impl Registry {
    /// The repository of `name`. Nothing is asked yet.
    ///
    /// # Errors
    /// [`Kind::Refused`] if registries.conf blocks it; [`Kind::Invalid`] if a certificate cannot be read.
    pub fn open(name: &Name, access: &Access) -> Result<Self> {
        Self::at(Place::of(name, access)?, access, None)
    }

    /// A registry, which is reached through a proxy if there is one, as `socks5://HOST:PORT`; else the one that the
    /// environment names.
    pub fn of_host(host: &str, access: &Access, proxy: Option<&str>) -> Result<Self> {
        Self::at(Place::of_host(host, access)?, access, proxy)
    }

    fn at(place: Place, access: &Access, proxy: Option<&str>) -> Result<Self> {
        let login = credentials::find(access, &place.host, &place.repository)?;
        Ok(Self {
            agent: agent(place.trust()?, proxy)?,
            place,
            login,
            base: OnceCell::new(),
            challenge: RefCell::new(None),
            answers: RefCell::default(),
        })
    }

    /// The repository without the registry.
    pub fn repository(&self) -> &str {
        &self.place.repository
    }

    /// Whether two are on the same registry, so that blobs go from one to the other without us.
    pub fn is_beside(&self, other: &Self) -> bool {
        self.place.address == other.place.address
    }

    /// Registry and repository, for messages.
    pub fn shown(&self) -> String {
        format!("{}/{}", self.place.host, self.place.repository)
    }

    /// Whether the registry takes these credentials.
    ///
    /// # Errors
    /// [`Kind::Transport`] if it cannot be reached or does not.
    pub fn check_login(&self) -> Result<()> {
        let url = format!("{}/v2/", self.base());
        let said = self.send(&Ask::new(Method::GET, url, Scope::default()))?;
        self.accept(said, &[StatusCode::OK], "its credentials")?;
        Ok(())
    }

    fn url(&self, rest: &str) -> String {
        format!("{}/v2/{}/{rest}", self.base(), self.place.repository)
    }

    /// With TLS, unless that need not be and there is none.
    fn base(&self) -> &str {
        if let Some(base) = self.base.get() {
            return base;
        }
        let address = &self.place.address;
        let mut base = format!("https://{address}");
        if self.place.insecure {
            let tried = self.agent.get(format!("{base}/v2/")).call();
            if let Err(error) = tried {
                tracing::debug!(%error, address, "no TLS");
                base = format!("http://{address}");
            }
        }
        self.base.get_or_init(|| base)
    }

    /// Ask, and show what the registry wants to see.
    fn send(&self, ask: &Ask<'_>) -> Result<Response<Body>> {
        let mut tries = if ask.repeats { TRIES } else { 1 };
        let mut pause = PAUSE;
        let mut was_refused = false;
        loop {
            tries -= 1;
            match self.send_once(ask) {
                Ok(said) if said.status() == StatusCode::UNAUTHORIZED && !was_refused => {
                    was_refused = true;
                    tries += 1;
                    if !self.answer(&ask.scope, said.headers())? {
                        return Ok(said);
                    }
                }
                Ok(said) if is_busy(said.status()) && tries > 0 => {
                    let wanted = patience(said.headers()).unwrap_or(pause);
                    tracing::debug!(status = %said.status(), url = ask.url, "once more");
                    std::thread::sleep(wanted.min(LONGEST_PAUSE));
                    pause *= 2;
                }
                Ok(said) => return Ok(said),
                Err(error) if tries > 0 && is_passing(&error) => {
                    tracing::debug!(%error, url = ask.url, "once more");
                    std::thread::sleep(pause);
                    pause *= 2;
                }
                Err(error) => return Err(self.explain(&error)),
            }
        }
    }

    fn send_once(&self, ask: &Ask<'_>) -> std::result::Result<Response<Body>, ureq::Error> {
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(ask.url.as_str());
        for (name, value) in &ask.headers {
            request = request.header(*name, value);
        }
        // An upload may be at another host, which is not to hear of it.
        if self.is_own(&ask.url)
            && let Some(authorization) = self.answers.borrow().get(&ask.scope)
        {
            request = request.header("Authorization", authorization);
        }
        match ask.content {
            Content::Nothing if takes_content(&ask.method) => {
                self.agent.run(request.body(&b""[..])?)
            }
            Content::Nothing => self.agent.run(request.body(SendBody::none())?),
            Content::Bytes(bytes) => self.agent.run(request.body(bytes)?),
            Content::Part(file, offset, length) => {
                let mut part = Part {
                    file,
                    offset,
                    left: length,
                };
                let request = request.header("Content-Length", length);
                self.agent
                    .run(request.body(SendBody::from_reader(&mut part))?)
            }
        }
    }

    fn is_own(&self, url: &str) -> bool {
        let base = self.base.get().map(String::as_str).unwrap_or_default();
        url.strip_prefix(base)
            .is_some_and(|rest| rest.starts_with('/'))
    }

    /// What the registry says if it did what it was asked to.
    fn accept(
        &self,
        mut said: Response<Body>,
        good: &[StatusCode],
        what: &str,
    ) -> Result<Response<Body>> {
        let status = said.status();
        if good.contains(&status) {
            return Ok(said);
        }
        let text = said.body_mut().with_config().limit(64 << 10);
        let text = text.lossy_utf8(true).read_to_string().unwrap_or_default();
        let cause = reason(&text).unwrap_or_else(|| status.to_string());
        let (kind, hint) = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => (
                Kind::Transport,
                "the registry refused the credentials: use --creds, --authfile or \"skopeo login\"",
            ),
            StatusCode::NOT_FOUND => (Kind::NotFound, "there is no such thing"),
            _ => (Kind::Transport, "the registry does not do it"),
        };
        Err(Error::new(
            kind,
            format!("{what} of {}: {hint} ({cause})", self.shown()),
        ))
    }

    fn explain(&self, error: &ureq::Error) -> Error {
        let address = &self.place.address;
        let hint = match error {
            ureq::Error::Io(error) if tls::is_distrust(error) => {
                "the registry's certificate is not trusted, or it speaks plain HTTP: use http:NAME or --tls-verify=false"
            }
            ureq::Error::HostNotFound
            | ureq::Error::ConnectionFailed
            | ureq::Error::Timeout(_)
            | ureq::Error::Io(_) => "the registry cannot be reached",
            _ => "the registry does not answer as one",
        };
        Error::new(Kind::Transport, format!("{address}: {hint} ({error})"))
    }

    /// A URL that the registry names, which may be relative to the one that was asked.
    fn location(said: &Response<Body>, asked: &str) -> Result<String> {
        let header = said.headers().get("location");
        let Some(location) = header.and_then(|value| value.to_str().ok()) else {
            fail!(Kind::Transport, "the registry does not say where to upload");
        };
        if location.contains("://") {
            return Ok(location.to_owned());
        }
        let asked: Uri = asked.parse().context(|| asked.to_owned())?;
        let scheme = asked.scheme_str().unwrap_or("https");
        let host = asked
            .authority()
            .map(ToString::to_string)
            .unwrap_or_default();
        Ok(format!(
            "{scheme}://{host}/{}",
            location.trim_start_matches('/')
        ))
    }
}

/// What all questions have in common.
fn agent(trust: Trust, proxy: Option<&str>) -> Result<Agent> {
    let mut config = Agent::config_builder()
        .http_status_as_error(false)
        .user_agent(concat!("atomic-rs/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(CONNECT))
        .timeout_per_read(Some(SILENCE))
        .timeout_per_write(Some(SILENCE));
    if let Some(proxy) = proxy {
        let proxy = Proxy::new(proxy).kind(Kind::Usage, || format!("the proxy {proxy}"))?;
        config = config.proxy(Some(proxy));
    }
    // By a proxy or directly, and then with TLS of our own trust.
    let connector =
        ().chain(SocksConnector::default())
            .chain(ConnectProxyConnector::default())
            .chain(TcpConnector::default())
            .chain(Tls::new(trust)?);
    let resolver = DefaultResolver::default();
    Ok(Agent::with_parts(config.build(), connector, resolver))
}

fn takes_content(method: &Method) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::PATCH)
}

fn is_busy(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS
        || (status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED)
}

/// Errors that another try may not have.
fn is_passing(error: &ureq::Error) -> bool {
    match error {
        // Nobody listens, or what does is no TLS.
        ureq::Error::Io(error) => !matches!(
            error.kind(),
            std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::InvalidData
        ),
        ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed => true,
        _ => false,
    }
}

/// How long the registry wants to be left alone.
fn patience(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get("retry-after")?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The registry's own words: `{"errors": [{"code", "message"}]}`.
fn reason(text: &str) -> Option<String> {
    let said: Value = serde_json::from_str(text).ok()?;
    let first = said["errors"].get(0)?;
    let code = first["code"].as_str().unwrap_or_default();
    let message = first["message"].as_str().unwrap_or_default();
    Some(format!("{code}: {message}").replace(|c: char| c.is_control(), " "))
}

fn json(mut said: Response<Body>, what: &str) -> Result<Value> {
    let body = said.body_mut().with_config().limit(MAX_ANSWER_BYTES);
    let bytes = body.read_to_vec().kind(Kind::Transport, || what.into())?;
    serde_json::from_slice(&bytes).kind(Kind::Transport, || {
        format!("{what}: the answer is not JSON")
    })
}

/// A part of a file, which can be read again.
struct Part<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let n = self.file.read_at(&mut buffer[..length], self.offset)?;
        self.offset += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}
