//! Reading images from anywhere, through skopeo's image proxy.
//!
//! One child process answers for a registry, an archive, a layout or a daemon alike, with the
//! mirrors, credential helpers and certificates the host has configured.

mod copy;
mod policy;
mod proxy;
mod skopeo;
pub mod trust;

use std::io::Read;
use std::path::PathBuf;

use crate::command::{Child, find_program};
use crate::config::Program;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::image::{Descriptor, Digest, Manifest, Platform, Reference, Transport};
use crate::interrupt::Interrupt;
use proxy::{Content, Proxy};

pub use crate::registry::{Access, Credentials};
pub use copy::{copy_here, copy_layout, copy_pinned, sign};
pub use policy::enforce as enforce_policy;
pub use skopeo::{archive_names, raw_manifest};
use skopeo::{daemon_host, global_options, name_one_of, proxy_command, run_skopeo};

/// Where credentials end up for skopeo: a file of the caller's, or one of ours that only we can
/// read and that disappears with this value.
#[derive(Debug)]
enum Auth {
    Default,
    File(PathBuf),
    Private(tempfile::NamedTempFile),
}

impl Auth {
    fn new(access: &Access, reference: Option<&Reference>) -> Result<Self> {
        if let Some(credentials) = &access.credentials {
            let registry = reference
                .and_then(|reference| reference.name.as_ref())
                .and_then(|name| name.registry())
                .unwrap_or("docker.io");
            let auth = credentials.encoded();
            let content = serde_json::json!({"auths": {registry: {"auth": auth}}});
            let mut file = tempfile::Builder::new()
                .prefix("atomic-rs-auth-")
                .tempfile_in(
                    if PathBuf::from("/run/lock").is_dir() && rustix::process::geteuid().is_root() {
                        PathBuf::from("/run")
                    } else {
                        std::env::temp_dir()
                    },
                )
                .context(|| "cannot create a credentials file".into())?;
            std::io::Write::write_all(&mut file, content.to_string().as_bytes())
                .context(|| "cannot write a credentials file".into())?;
            return Ok(Self::Private(file));
        }
        Ok(match &access.authfile {
            Some(path) => {
                if !path.exists() {
                    fail!(
                        Kind::NotFound,
                        "the credentials file {} does not exist",
                        path.display()
                    );
                }
                Self::File(path.clone())
            }
            None => Self::Default,
        })
    }

    fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Default => None,
            Self::File(path) => Some(path.clone()),
            Self::Private(file) => Some(file.path().to_owned()),
        }
    }
}

/// More than skopeo itself takes for a manifest.
const MAX_MANIFEST_BYTES: u64 = 8 * 1024 * 1024;

/// An image that is open for reading at its source.
pub struct Source {
    reference: Reference,
    skopeo: Program,
    auth: Auth,
    tls_verify: Option<bool>,
    platform: Option<Platform>,
    proxy: Proxy,
}

/// A manifest as the source has it.
#[derive(Debug, Clone)]
pub struct FetchedManifest {
    /// The exact bytes.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
    /// What they say.
    pub manifest: Manifest,
}

impl Source {
    /// Open `reference`.
    ///
    /// # Errors
    /// [`Kind::Transport`] with skopeo's reason; [`Kind::NotFound`] if skopeo is missing.
    pub fn open(
        skopeo: &Program,
        reference: &Reference,
        access: &Access,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        if find_program(&skopeo.path).is_none() {
            fail!(
                Kind::NotFound,
                "the program \"{}\" is not installed: images are read with it",
                skopeo.path
            );
        }
        let tls_verify = match reference.transport {
            Transport::Registry { insecure: true } => Some(false),
            _ => access.tls_verify,
        };
        let auth = Auth::new(access, Some(reference))?;
        let mut command = proxy_command(skopeo, reference, access).arg("experimental-image-proxy");
        if let Some(path) = auth.path() {
            command = command.arg("--authfile").arg(path);
        }
        if tls_verify == Some(false) {
            command = command.arg("--tls-verify=false");
        }
        let patience = match reference.transport {
            Transport::Registry { .. } => skopeo.patience,
            // Some write a whole image before they answer.
            _ => None,
        };
        let proxy = Proxy::open(
            command.into_command(),
            &reference.to_skopeo(),
            patience,
            interrupt,
        )
        .map_err(|error| explain(reference, error))?;
        Ok(Self {
            reference: reference.clone(),
            skopeo: skopeo.clone(),
            auth,
            tls_verify,
            platform: access.platform.clone(),
            proxy,
        })
    }

    /// What was opened.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// Whether several blobs can be read at a time. Archives and daemons read one after the other.
    pub fn reads_several(&self) -> bool {
        matches!(
            self.reference.transport,
            Transport::Registry { .. } | Transport::OciLayout { .. }
        )
    }

    /// The manifest for this machine's platform, byte for byte.
    pub fn manifest(&self) -> Result<FetchedManifest> {
        let (digest, bytes) = self
            .proxy
            .manifest(MAX_MANIFEST_BYTES)
            .map_err(|error| explain(&self.reference, error))
            .map_err(|error| name_one_of(&self.skopeo, &self.reference, error))?;
        let digest: Digest = digest.parse()?;
        // The proxy shows docker's manifests converted to OCI; then the exact bytes are asked for.
        let bytes = if Digest::of(&bytes) == digest {
            bytes
        } else {
            self.skopeo_command("inspect")
                .args(["--raw", &self.reference.pinned_to(digest).to_skopeo()])
                .run()
                .map_err(|error| explain(&self.reference, error))?
        };
        if Digest::of(&bytes) != digest {
            fail!(
                Kind::Invalid,
                "the manifest of \"{}\" does not have the digest {digest}",
                self.reference
            );
        }
        let manifest = Manifest::parse(&bytes)
            .map_err(|error| error.within(format_args!("image \"{}\"", self.reference)))?;
        Ok(FetchedManifest {
            bytes,
            digest,
            manifest,
        })
    }

    /// Read a small blob (an image config) whole.
    pub fn read_blob(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>> {
        if descriptor.size > limit {
            fail!(
                Kind::Invalid,
                "the blob {} has {} bytes, more than {limit}",
                descriptor.digest,
                descriptor.size
            );
        }
        let mut reader = self.blob(descriptor)?;
        let mut bytes = Vec::new();
        let read = (&mut reader).take(limit + 1).read_to_end(&mut bytes);
        reader.finish()?;
        read.context(|| format!("cannot read the blob {}", descriptor.digest))?;
        if Digest::of(&bytes) != descriptor.digest {
            fail!(
                Kind::Invalid,
                "the blob {} of \"{}\" does not have that digest",
                descriptor.digest,
                self.reference
            );
        }
        Ok(bytes)
    }

    /// Read a blob as a stream. The reader's [`BlobReader::finish`] tells whether it was whole.
    pub fn blob(&self, descriptor: &Descriptor) -> Result<BlobReader<'_>> {
        let digest = descriptor.digest;
        let content = self.proxy.blob(&digest.to_string(), descriptor.size);
        let content = content.map_err(|error| self.about_blob(digest, error))?;
        Ok(BlobReader {
            source: self,
            digest,
            content,
        })
    }

    fn about_blob(&self, digest: Digest, error: Error) -> Error {
        explain(&self.reference, error).within(format_args!("blob {digest}"))
    }

    /// `skopeo VERB` with the same credentials and TLS setting as the proxy.
    fn skopeo_command(&self, verb: &str) -> Child {
        let mut child = run_skopeo(&self.skopeo)
            .args(global_options(self.platform.as_ref()))
            .arg(verb);
        if let (Transport::DockerDaemon, Some(host)) = (&self.reference.transport, daemon_host()) {
            let prefix = if verb == "copy" { "src-" } else { "" };
            child = child.arg(format!("--{prefix}daemon-host={host}"));
        }
        if let Some(path) = self.auth.path() {
            child = child.arg("--authfile").arg(path);
        }
        match (verb, self.tls_verify) {
            (_, None) => child,
            ("copy", Some(verify)) => child.arg(format!("--src-tls-verify={verify}")),
            (_, Some(verify)) => child.arg(format!("--tls-verify={verify}")),
        }
    }
}

/// The bytes of one blob.
pub struct BlobReader<'s> {
    source: &'s Source,
    digest: Digest,
    content: Content<'s>,
}

impl BlobReader<'_> {
    /// Hear from skopeo whether the blob arrived whole. Call it in every case, after reading: it
    /// says why a stream ended early.
    pub fn finish(self) -> Result<()> {
        let finished = self.content.finish();
        finished.map_err(|error| self.source.about_blob(self.digest, error))
    }
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.content.read(buffer)
    }
}

/// One clear line from skopeo's chain of causes.
fn explain(reference: &Reference, error: Error) -> Error {
    if matches!(error.kind(), Kind::Interrupted(_)) {
        return error;
    }
    let cause = error.to_string().replace('\n', " ");
    let has = |texts: &[&str]| texts.iter().any(|text| cause.contains(text));
    let (kind, hint) = if has(&[
        "manifest unknown",
        "name unknown",
        "repository name not known",
    ]) {
        (Kind::NotFound, "no such image")
    } else if has(&[
        "unauthorized",
        "authentication required",
        "access denied",
        "denied: ",
        "403 (Forbidden)",
    ]) {
        (
            Kind::Transport,
            "the registry refused the credentials: use --creds, --authfile or \"skopeo login\"",
        )
    } else if has(&["toomanyrequests", "429 (Too Many Requests)"]) {
        (
            Kind::Transport,
            "the registry was asked too often: try again later, or with credentials",
        )
    } else if has(&[
        "connection refused",
        "no such host",
        "network is unreachable",
        "i/o timeout",
        "bytes came in",
    ]) {
        (Kind::Transport, "the registry cannot be reached")
    } else if has(&["server gave HTTP response to HTTPS client"]) {
        (
            Kind::Transport,
            "the registry speaks plain HTTP: use http:NAME or --tls-verify=false",
        )
    } else if has(&["x509:", "certificate"]) {
        (Kind::Transport, "the registry's certificate is not trusted")
    } else if has(&["no such file or directory"]) {
        (Kind::NotFound, "no such file")
    } else {
        (Kind::Transport, "cannot be read")
    };
    Error::new(kind, format!("image \"{reference}\": {hint} ({cause})"))
}
