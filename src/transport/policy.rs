//! Enforcing containers-policy.json(5).
//!
//! skopeo's image proxy does not apply the policy before version 1.16 or so, `skopeo copy` always
//! does. So where a policy has any requirement, a copy is made of the pinned image whose layers
//! are already "there", as sparse files of the right sizes: the policy decides, nothing is fetched
//! twice.

use std::fs::File;
use std::path::PathBuf;

use serde_json::Value;

use super::{FetchedManifest, Source};
use crate::config::Config;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::image::Manifest;

const SYSTEM_POLICY: &str = "/etc/containers/policy.json";

/// Ask the host's policy whether the image may be used.
///
/// # Errors
/// [`Kind::Policy`] if the policy rejects it, cannot be read, or does not exist: it fails closed.
pub fn enforce(config: &Config, source: &Source, fetched: &FetchedManifest) -> Result<()> {
    let path = policy_path(config);
    let text = std::fs::read(&path).kind(Kind::Policy, || {
        format!("cannot read the signature policy {}", path.display())
    })?;
    let policy: Value = serde_json::from_slice(&text).kind(Kind::Policy, || {
        format!("the signature policy {} is not valid", path.display())
    })?;
    if accepts_anything(&policy) {
        return Ok(());
    }
    let Manifest::Image {
        config: image,
        layers,
        ..
    } = &fetched.manifest
    else {
        fail!(
            Kind::Policy,
            "the policy cannot be applied to this manifest"
        );
    };
    let scratch = tempfile::Builder::new()
        .prefix("atomic-rs-policy-")
        .tempdir()
        .context(|| "cannot create a directory".into())?;
    let blobs = scratch.path().join("blobs");
    let sha256 = blobs.join("sha256");
    std::fs::create_dir_all(&sha256).context(|| "cannot create a directory".into())?;
    for layer in layers {
        let path = sha256.join(layer.digest.hex());
        File::create(&path)
            .and_then(|file| file.set_len(layer.size))
            .context(|| format!("cannot create {}", path.display()))?;
    }
    let mut copy = source
        .skopeo_command("copy")
        // They are checked, and cannot be kept in a layout.
        .args(["--quiet", "--remove-signatures"]);
    if image.media_type == "application/vnd.oci.image.config.v1+json" {
        copy = copy.arg("--preserve-digests");
    }
    let finished = copy
        .arg("--dest-shared-blob-dir")
        .arg(&blobs)
        .arg(source.reference().pinned_to(fetched.digest).to_skopeo())
        .arg(format!("oci:{}", scratch.path().join("image").display()))
        .output()?;
    if finished.status.success() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Policy,
        format!(
            "image \"{}\" is rejected by the signature policy {}: {}",
            source.reference(),
            path.display(),
            finished.stderr.replace('\n', " ")
        ),
    ))
}

/// The policy that counts for whoever runs us: skopeo looks there, too.
pub(super) fn policy_path(config: &Config) -> PathBuf {
    if let Some(path) = &config.trust_policy {
        return path.clone();
    }
    std::env::var_os("HOME")
        .map(|home| PathBuf::from(home).join(".config/containers/policy.json"))
        .filter(|path| path.exists())
        .unwrap_or_else(|| SYSTEM_POLICY.into())
}

/// True only if every requirement in the whole file accepts anything.
fn accepts_anything(policy: &Value) -> bool {
    let open = |requirements: &Value| {
        requirements.as_array().is_some_and(|list| {
            !list.is_empty()
                && list
                    .iter()
                    .all(|requirement| requirement["type"] == "insecureAcceptAnything")
        })
    };
    let transports = match &policy["transports"] {
        Value::Null => true,
        Value::Object(transports) => transports.values().all(|scopes| {
            scopes
                .as_object()
                .is_some_and(|scopes| scopes.values().all(open))
        }),
        _ => false,
    };
    open(&policy["default"]) && transports
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_a_policy_without_any_requirement_is_skipped() {
        let anything = json!([{"type": "insecureAcceptAnything"}]);
        let reject = json!([{"type": "reject"}]);
        for (policy, open) in [
            (json!({"default": anything}), true),
            (
                json!({"default": anything, "transports": {"docker-daemon": {"": anything}}}),
                true,
            ),
            (json!({"default": reject}), false),
            (json!({"default": []}), false),
            (json!({}), false),
            (
                json!({"default": anything, "transports": {"docker": {"a.b": reject}}}),
                false,
            ),
            (
                json!({"default": anything, "transports": {"docker": "x"}}),
                false,
            ),
        ] {
            assert_eq!(accepts_anything(&policy), open, "{policy}");
        }
    }
}
