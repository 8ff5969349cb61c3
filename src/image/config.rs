//! The image config: what to run and how. Source: OCI image specification 1.1, `config.md`.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use super::digest::Digest;
use super::platform::Platform;
use crate::error::{Context as _, Kind, Result};
use crate::fail;

/// The parts of an image config this program uses. Every field tolerates `null` and absence,
/// as docker and podman write both.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct ImageConfig {
    /// GOARCH the image is built for.
    #[serde(default, deserialize_with = "or_default")]
    pub architecture: String,
    /// GOOS the image is built for.
    #[serde(default, deserialize_with = "or_default")]
    pub os: String,
    /// `v7`, `v8`, or empty.
    #[serde(default, deserialize_with = "or_default")]
    pub variant: String,
    /// When the image was built, RFC 3339.
    #[serde(default, deserialize_with = "or_default")]
    pub created: String,
    /// How to run it.
    #[serde(default, deserialize_with = "or_default")]
    pub config: RunConfig,
    /// Its layers.
    #[serde(default, deserialize_with = "or_default")]
    pub rootfs: RootFs,
}

/// Digests of the uncompressed layers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct RootFs {
    /// Base first.
    #[serde(default, deserialize_with = "or_default")]
    pub diff_ids: Vec<Digest>,
}

/// A command that tells whether a container works. Source: docker's image specification 1.2, which
/// OCI does not know and everyone writes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthCheck {
    /// `["CMD", word…]`, `["CMD-SHELL", line]`, or `["NONE"]`.
    #[serde(default, deserialize_with = "or_default")]
    pub test: Vec<String>,
    /// Nanoseconds one run may take; 0 means unsaid.
    #[serde(default, deserialize_with = "or_default")]
    pub timeout: u64,
    /// Failures in a row that are too many; 0 means unsaid.
    #[serde(default, deserialize_with = "or_default")]
    pub retries: u32,
}

/// How an image wants to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    /// `user[:group]`, names or numbers; empty means root.
    #[serde(default, deserialize_with = "or_default")]
    pub user: String,
    /// `KEY=value`
    #[serde(default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// The fixed part of the command.
    #[serde(default, deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// The default arguments.
    #[serde(default, deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// The working directory; empty means `/`.
    #[serde(default, deserialize_with = "or_default")]
    pub working_dir: String,
    /// Paths that hold data (the keys).
    #[serde(default, deserialize_with = "or_default")]
    pub volumes: BTreeMap<String, serde_json::Value>,
    /// `80/tcp` (the keys); only noted.
    #[serde(default, deserialize_with = "or_default")]
    pub exposed_ports: BTreeMap<String, serde_json::Value>,
    /// Labels.
    #[serde(default, deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// `SIGTERM`, `TERM` or a number; empty means SIGTERM.
    #[serde(default, deserialize_with = "or_default")]
    pub stop_signal: String,
    /// Whether it works.
    #[serde(default, deserialize_with = "or_default")]
    pub healthcheck: HealthCheck,
}

impl ImageConfig {
    /// Read an image config.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).kind(Kind::Invalid, || "the image config is not valid".into())
    }

    /// What each layer is when it is not compressed; the manifest has so many layers.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if the config names more or fewer.
    pub fn diff_ids(&self, layers: usize) -> Result<&[Digest]> {
        let ids = &self.rootfs.diff_ids;
        if ids.len() != layers {
            fail!(
                Kind::Invalid,
                "the image config names {} layers and the manifest {layers}",
                ids.len()
            );
        }
        Ok(ids)
    }

    /// The platform the image is made for, unless it does not say.
    pub fn platform(&self) -> Option<Platform> {
        (!self.architecture.is_empty()).then(|| Platform {
            architecture: self.architecture.clone(),
            os: match self.os.as_str() {
                "" => "linux".into(),
                os => os.to_owned(),
            },
            variant: self.variant.clone(),
        })
    }

    /// The platform the image is made for, if that is not this machine's.
    pub fn foreign_platform(&self) -> Option<Platform> {
        self.platform()
            .filter(|platform| !platform.matches(&Platform::host()))
    }

    /// A label's value.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.config.labels.get(key).map(String::as_str)
    }
}

fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_and_missing_fields_are_tolerated() {
        let config = ImageConfig::parse(
            br#"{"config":{"Labels":null,"Env":null,"Cmd":["a"]},"rootfs":null}"#,
        )
        .unwrap();
        assert_eq!(config.config.cmd, ["a"]);
        assert_eq!(config.label("x"), None);
        assert_eq!(ImageConfig::parse(b"{}").unwrap(), ImageConfig::default());
        assert!(ImageConfig::parse(b"[").is_err());
        assert!(ImageConfig::parse(br#"{"rootfs":{"diff_ids":["md5:1"]}}"#).is_err());
    }
}
