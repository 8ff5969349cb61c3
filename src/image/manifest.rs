//! Manifests: OCI, docker schema2, docker schema1 and indexes, read from their exact bytes.
//!
//! Sources: the OCI image specification 1.1 (`manifest.md`, `image-index.md`) and docker's
//! "Image Manifest V 2, Schema 1" and "Schema 2".

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::Platform;
use super::digest::Digest;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;

/// No manifest is larger: registries stop at the same size.
pub const MAX_MANIFEST_BYTES: usize = 4 * 1024 * 1024;

/// All that a manifest may be, for a registry that is asked for one.
pub const MEDIA_TYPES: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];
/// An image of the OCI's form.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Several of them.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// An image of docker's form, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Several of them.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// A blob as a manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is; empty where the manifest does not say.
    #[serde(default)]
    pub media_type: String,
    /// Its digest, of the bytes as stored in the registry.
    pub digest: Digest,
    /// Its size in bytes, as stored in the registry.
    #[serde(default)]
    pub size: u64,
}

/// A parsed manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manifest {
    /// One image: OCI or docker schema2.
    Image {
        /// The image config.
        config: Descriptor,
        /// The layers, base first.
        layers: Vec<Descriptor>,
        /// The manifest's annotations.
        annotations: BTreeMap<String, String>,
    },
    /// Several images, one per platform.
    Index {
        /// The images and what they are for.
        manifests: Vec<(Descriptor, Option<Platform>)>,
    },
    /// docker schema1: layers only, base first. Old stores hold some; none is pulled any more.
    Schema1 {
        /// Digests of the layers, base first.
        layers: Vec<Digest>,
        /// Labels found in the history.
        labels: BTreeMap<String, String>,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    schema_version: u64,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<RawIndexEntry>>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    fs_layers: Option<Vec<RawSchema1Layer>>,
    #[serde(default)]
    history: Vec<Value>,
    /// Output of `skopeo inspect`, which some old stores keep in place of a manifest.
    #[serde(rename = "Layers")]
    inspected_layers: Option<Vec<Digest>>,
    #[serde(rename = "Labels")]
    inspected_labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct RawIndexEntry {
    #[serde(flatten)]
    descriptor: Descriptor,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSchema1Layer {
    blob_sum: Digest,
}

impl Manifest {
    /// Read a manifest.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if the bytes are too many, not JSON, not a manifest, or could be read
    /// both as an image and as an index (CVE-2021-41190).
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_MANIFEST_BYTES {
            fail!(
                Kind::Invalid,
                "the manifest has {} bytes, more than {MAX_MANIFEST_BYTES}",
                bytes.len()
            );
        }
        let raw: Raw = serde_json::from_slice(bytes)
            .kind(Kind::Invalid, || "the manifest is not valid".into())?;
        let ambiguous = raw.manifests.is_some()
            && (raw.layers.is_some() || raw.config.is_some() || raw.fs_layers.is_some());
        let says_index = raw.media_type.ends_with("image.index.v1+json")
            || raw.media_type.ends_with("manifest.list.v2+json");
        if ambiguous
            || (says_index && raw.manifests.is_none())
            || (!says_index && !raw.media_type.is_empty() && raw.manifests.is_some())
        {
            fail!(
                Kind::Invalid,
                "the manifest could be read both as an image and as an index"
            );
        }
        if let Some(manifests) = raw.manifests {
            return Ok(Self::Index {
                manifests: manifests
                    .into_iter()
                    .map(|entry| (entry.descriptor, entry.platform))
                    .collect(),
            });
        }
        if let (Some(config), Some(layers)) = (raw.config, raw.layers) {
            return Ok(Self::Image {
                config,
                layers,
                annotations: raw.annotations.unwrap_or_default(),
            });
        }
        if let Some(layers) = raw.inspected_layers {
            return Ok(Self::Schema1 {
                layers,
                labels: raw.inspected_labels.unwrap_or_default(),
            });
        }
        if let Some(mut layers) = raw.fs_layers
            && raw.schema_version == 1
        {
            layers.reverse();
            return Ok(Self::Schema1 {
                layers: layers.into_iter().map(|layer| layer.blob_sum).collect(),
                labels: schema1_labels(&raw.history),
            });
        }
        Err(Error::new(
            Kind::Invalid,
            "the manifest has neither layers nor a list of images",
        ))
    }

    /// Digests of the layers, base first; none for an index.
    pub fn layer_digests(&self) -> Vec<Digest> {
        match self {
            Self::Image { layers, .. } => layers.iter().map(|layer| layer.digest).collect(),
            Self::Schema1 { layers, .. } => layers.clone(),
            Self::Index { .. } => Vec::new(),
        }
    }

    /// The digest of the image config, where there is one.
    pub fn config_digest(&self) -> Option<Digest> {
        match self {
            Self::Image { config, .. } => Some(config.digest),
            _ => None,
        }
    }

    /// The image of an index that is made for `wanted`; the first match counts.
    pub fn select(&self, wanted: &Platform) -> Result<&Descriptor> {
        let Self::Index { manifests } = self else {
            fail!(Kind::Invalid, "the manifest is not an index");
        };
        manifests
            .iter()
            .find(|(_, platform)| platform.as_ref().is_some_and(|p| p.matches(wanted)))
            .map(|(descriptor, _)| descriptor)
            .ok_or_else(|| {
                let offered: Vec<String> = manifests
                    .iter()
                    .filter_map(|(_, platform)| platform.as_ref().map(ToString::to_string))
                    .collect();
                Error::new(
                    Kind::NotFound,
                    format!(
                        "the image is not made for {wanted}, only for {}",
                        offered.join(", ")
                    ),
                )
            })
    }
}

fn schema1_labels(history: &[Value]) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for entry in history {
        let Some(text) = entry["v1Compatibility"].as_str() else {
            continue;
        };
        let Ok(v1) = serde_json::from_str::<Value>(text) else {
            continue;
        };
        if let Some(map) = v1["container_config"]["Labels"].as_object() {
            for (key, value) in map {
                if let Some(value) = value.as_str() {
                    labels
                        .entry(key.clone())
                        .or_insert_with(|| value.to_owned());
                }
            }
        }
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(c: char) -> String {
        format!("sha256:{}", c.to_string().repeat(64))
    }

    #[test]
    fn an_image_manifest_gives_config_and_layers_base_first() {
        let text = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"{}","size":7}},
                "layers":[{{"mediaType":"a","digest":"{}","size":1}},{{"digest":"{}","size":2}}]}}"#,
            digest('c'),
            digest('1'),
            digest('2')
        );
        let manifest = Manifest::parse(text.as_bytes()).unwrap();
        assert_eq!(manifest.config_digest().unwrap().to_string(), digest('c'));
        assert_eq!(manifest.layer_digests()[1].to_string(), digest('2'));
    }

    #[test]
    fn schema1_layers_are_reversed_and_labels_found() {
        let text = format!(
            r#"{{"schemaVersion":1,"fsLayers":[{{"blobSum":"{}"}},{{"blobSum":"{}"}}],
                "history":[{{"v1Compatibility":"{{\"container_config\":{{\"Labels\":{{\"a\":\"b\"}}}}}}"}}]}}"#,
            digest('2'),
            digest('1')
        );
        let Manifest::Schema1 { layers, labels } = Manifest::parse(text.as_bytes()).unwrap() else {
            panic!("not schema1")
        };
        assert_eq!(layers[0].to_string(), digest('1'));
        assert_eq!(labels["a"], "b");
    }

    #[test]
    fn an_index_is_searched_by_platform() {
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[
                {{"digest":"{}","size":1,"platform":{{"os":"linux","architecture":"arm64","variant":"v8"}}}},
                {{"digest":"{}","size":1,"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#,
            digest('a'),
            digest('b')
        );
        let index = Manifest::parse(text.as_bytes()).unwrap();
        let platform = |os: &str, architecture: &str| Platform {
            os: os.into(),
            architecture: architecture.into(),
            variant: String::new(),
        };
        let found = index.select(&platform("linux", "amd64")).unwrap();
        assert_eq!(found.digest.to_string(), digest('b'));
        let missing = index.select(&platform("linux", "s390x")).unwrap_err();
        assert!(missing.to_string().contains("linux/arm64/v8, linux/amd64"));
    }

    #[test]
    fn confusing_manifests_are_refused() {
        let d = digest('a');
        for text in [
            String::new(),
            "[]".into(),
            "{}".into(),
            "not json".into(),
            format!(r#"{{"manifests":[],"layers":[],"config":{{"digest":"{d}"}}}}"#),
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.index.v1+json","layers":[],"config":{{"digest":"{d}"}}}}"#
            ),
            r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json","manifests":[]}"#.into(),
            r#"{"config":{"digest":"sha256:../../etc"},"layers":[]}"#.into(),
            format!(r#"{{"config":{{"digest":"{d}","size":-1}},"layers":[]}}"#),
        ] {
            assert!(Manifest::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
