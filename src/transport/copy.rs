//! What goes the other way: images to registries and archives, and signatures.

use std::path::Path;

use camino::Utf8Path;

use super::{Access, Auth, Source, run_skopeo};
use crate::command::{Child, Finished};
use crate::config::Config;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::image::{Digest, Name, Reference, Transport};

/// Copy an OCI layout (its image `latest`) to anywhere skopeo reaches. `exactly`: fail rather than
/// change the manifest.
pub fn copy_layout(
    config: &Config,
    layout: &Utf8Path,
    target: &str,
    access: &Access,
    exactly: bool,
) -> Result<()> {
    let auth = Auth::new(access, target.parse().ok().as_ref())?;
    // It is our own copy; the policy was obeyed when it was pulled.
    let mut child = run_skopeo(&config.skopeo).args(["copy", "--quiet", "--insecure-policy"]);
    if exactly {
        child = child.arg("--preserve-digests");
    }
    if let Some(path) = auth.path() {
        child = child.arg("--dest-authfile").arg(path);
    }
    if let Some(verify) = access.tls_verify {
        child = child.arg(format!("--dest-tls-verify={verify}"));
    }
    let finished = child
        .arg(format!("oci:{layout}:latest"))
        .arg(target)
        .output()?;
    if finished.status.success() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Transport,
        format!(
            "cannot copy to {target}: {}",
            finished.stderr.replace('\n', " ")
        ),
    ))
}

/// Copy the one image of a layout of this host to another place of it, which skopeo names `target`. The host's policy
/// is obeyed.
pub fn copy_here(config: &Config, layout: &Utf8Path, target: &str) -> Result<()> {
    run_skopeo(&config.skopeo)
        .args(["copy", "--quiet", &format!("oci:{layout}"), target])
        .run()
        .map(|_| ())
}

/// Copy an image from the registry it came from to another place, byte for byte. Within one registry
/// blobs are not moved at all, but mounted from the other repository.
///
/// # Errors
/// [`Kind::Transport`] if the source does not have it any more, or the target does not take it.
pub fn copy_pinned(
    config: &Config,
    source: &Reference,
    digest: Digest,
    target: &Reference,
    access: &Access,
) -> Result<()> {
    let auth = Auth::new(access, Some(target))?;
    let mut child = run_skopeo(&config.skopeo)
        // Which bytes these are is known by their digest; the policy was obeyed when they were pulled.
        .args(["copy", "--quiet", "--insecure-policy", "--preserve-digests"]);
    if let Some(path) = auth.path() {
        let registry = |reference: &Reference| {
            let name = reference.name.as_ref();
            name.and_then(Name::registry).map(str::to_owned)
        };
        // Credentials for the target are none for another registry, a file may have both.
        if access.authfile.is_some() || registry(source) == registry(target) {
            child = child.arg("--src-authfile").arg(&path);
        }
        child = child.arg("--dest-authfile").arg(path);
    }
    if matches!(source.transport, Transport::Registry { insecure: true }) {
        child = child.arg("--src-tls-verify=false");
    }
    if let Some(verify) = access.tls_verify {
        child = child.arg(format!("--dest-tls-verify={verify}"));
    }
    child
        .arg(source.pinned_to(digest).to_skopeo())
        .arg(target.to_skopeo())
        .run()
        .map(|_| ())
        .map_err(|error| error.within(format_args!("cannot copy {source} to {target}")))
}

/// Sign the image at `reference` with a GPG key. The signature goes where registries.d says, or into
/// `directory` in the same layout. Returns the digest that was signed.
pub fn sign(
    config: &Config,
    reference: &Reference,
    access: &Access,
    key: &str,
    gnupghome: Option<&Path>,
    directory: Option<&Path>,
) -> Result<Digest> {
    let source = Source::open(&config.skopeo, reference, access, &config.interrupt)?;
    let fetched = source.manifest()?;
    let Some(name) = &reference.name else {
        fail!(Kind::Usage, "only images in registries can be signed");
    };
    let with_home = |child: Child| match gnupghome {
        Some(home) => child.env("GNUPGHOME", home),
        None => child,
    };
    let failed = |finished: Finished| {
        Error::new(
            Kind::Failed,
            format!(
                "cannot sign \"{reference}\": {}",
                finished.stderr.replace('\n', " ")
            ),
        )
    };
    if let Some(directory) = directory {
        let manifest =
            tempfile::NamedTempFile::new().context(|| "cannot create a temporary file".into())?;
        std::fs::write(manifest.path(), &fetched.bytes)
            .context(|| "cannot write a temporary file".into())?;
        let repository = name.without_tag();
        let path = repository
            .split_once('/')
            .map_or(repository.as_str(), |(_, path)| path);
        let place = directory.join(format!("{path}@sha256={}", fetched.digest.hex()));
        std::fs::create_dir_all(&place).context(|| format!("cannot create {}", place.display()))?;
        let mut number = 1;
        while place.join(format!("signature-{number}")).exists() {
            number += 1;
        }
        let finished = with_home(run_skopeo(&config.skopeo).arg("standalone-sign"))
            .arg("--output")
            .arg(place.join(format!("signature-{number}")))
            .arg(manifest.path())
            .args([name.to_string().as_str(), key])
            .output()?;
        return if finished.status.success() {
            Ok(fetched.digest)
        } else {
            Err(failed(finished))
        };
    }
    let mut copy = with_home(source.skopeo_command("copy").arg("--quiet"))
        // What is signed need not be trusted yet.
        .args(["--insecure-policy", "--preserve-digests", "--sign-by", key]);
    if let Some(verify) = source.tls_verify {
        copy = copy.arg(format!("--dest-tls-verify={verify}"));
    }
    let finished = copy
        .arg(reference.pinned_to(fetched.digest).to_skopeo())
        .arg(reference.to_skopeo())
        .output()?;
    if finished.status.success() {
        Ok(fetched.digest)
    } else {
        Err(failed(finished))
    }
}
