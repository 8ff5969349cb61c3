//! An image of one platform or of several, read from a registry, and what becomes of it.

use serde_json::{Value, json};

use super::image::Image;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::image::manifest::{DOCKER_LIST, OCI_INDEX};
use crate::image::{Digest, Manifest, Name, Platform};
use crate::registry::{Registry, Tagged};

/// What an attestation says that it is about. Source: buildkit's documentation of attestation storage.
const SUBJECT: &str = "vnd.docker.reference.digest";
/// Configs are a few kilobytes.
const MAX_CONFIG_BYTES: u64 = 8 << 20;

/// An image as it is in the registry.
pub struct Source {
    /// What the tag names.
    pub top: Tagged,
    /// The images that are meant, or the one.
    pub entries: Vec<Entry>,
    /// An index's own words.
    index: Option<Value>,
}

/// What an index lists.
pub enum Entry {
    /// An image that is meant.
    Image {
        /// What it is made for; nothing for one that is alone.
        platform: Option<String>,
        /// Its manifest.
        manifest: Tagged,
        /// What it is.
        image: Box<Image>,
    },
    /// An image of another platform, or something that is no image.
    Other(Tagged),
}

/// What becomes of a [`Source`].
pub struct Changed {
    /// New configs.
    pub configs: Vec<Vec<u8>>,
    /// New manifests of an index, with their media types.
    pub manifests: Vec<(Vec<u8>, String)>,
    /// Blobs that stay as they are.
    pub old_blobs: Vec<Digest>,
    /// Manifests of an index that stay as they are.
    pub old_manifests: Vec<(Vec<u8>, String)>,
    /// What the tag is to name.
    pub top: (Vec<u8>, String),
    /// Attestations that are about nothing any more.
    pub dropped: usize,
}

impl Source {
    /// Read what `name` says; of an index all images, or those of one platform.
    pub fn read(registry: &Registry, name: &Name, platform: Option<&Platform>) -> Result<Self> {
        let tag = match (name.digest(), name.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        };
        let found = registry.manifest(&tag)?.ok_or_else(|| {
            Error::new(Kind::NotFound, format!("image \"{name}\": no such image"))
        })?;
        Self::of(registry, found, platform)
            .map_err(|error| error.within(format_args!("image \"{name}\"")))
    }

    /// The same of a manifest that is known.
    pub fn of(registry: &Registry, top: Tagged, platform: Option<&Platform>) -> Result<Self> {
        let entries = match Manifest::parse(&top.bytes)? {
            Manifest::Image { .. } => {
                let image = Box::new(read_image(registry, &top)?);
                if let (Some(wanted), Some(made_for)) = (platform, image.config().platform())
                    && !made_for.matches(wanted)
                {
                    fail!(
                        Kind::NotFound,
                        "there is no image for {wanted}: it is made for {made_for}"
                    );
                }
                vec![Entry::Image {
                    platform: None,
                    image,
                    manifest: top.clone(),
                }]
            }
            Manifest::Schema1 { .. } => fail!(
                Kind::Invalid,
                "it has docker's oldest form, which names no config: have \"skopeo copy --format v2s2\" make a newer one"
            ),
            Manifest::Index { manifests } => {
                let mut entries = Vec::new();
                for (descriptor, made_for) in manifests {
                    let digest = descriptor.digest;
                    let found = registry.manifest(&digest.to_string())?.ok_or_else(|| {
                        let text = format!("the index names {digest}, which is not there");
                        Error::new(Kind::NotFound, text)
                    })?;
                    let is_meant = made_for.as_ref().is_some_and(|made_for| {
                        made_for.os != "unknown"
                            && platform.is_none_or(|platform| made_for.matches(platform))
                    });
                    entries.push(match made_for {
                        Some(made_for) if is_meant => Entry::Image {
                            platform: Some(made_for.to_string()),
                            image: Box::new(read_image(registry, &found)?),
                            manifest: found,
                        },
                        _ => Entry::Other(found),
                    });
                }
                if !entries
                    .iter()
                    .any(|entry| matches!(entry, Entry::Image { .. }))
                {
                    let wanted = platform.map(|platform| format!(" for {platform}"));
                    fail!(
                        Kind::NotFound,
                        "there is no image{}",
                        wanted.unwrap_or_default()
                    );
                }
                let index = serde_json::from_slice(&top.bytes).context(|| "the index".into())?;
                return Ok(Self {
                    top,
                    entries,
                    index: Some(index),
                });
            }
        };
        Ok(Self {
            top,
            entries,
            index: None,
        })
    }

    /// The images that are meant.
    pub fn images(&self) -> impl Iterator<Item = &Image> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Image { image, .. } => Some(image.as_ref()),
            Entry::Other(_) => None,
        })
    }

    /// Have each image changed by `change`, which says whether it did.
    pub fn change(self, change: &mut dyn FnMut(&mut Image) -> Result<bool>) -> Result<Changed> {
        let mut out = Changed {
            configs: Vec::new(),
            manifests: Vec::new(),
            old_blobs: Vec::new(),
            old_manifests: Vec::new(),
            top: (self.top.bytes, self.top.media_type),
            dropped: 0,
        };
        let is_index = self.index.is_some();
        let mut replaced: Vec<(Digest, Digest, usize)> = Vec::new();
        for entry in self.entries {
            let (manifest, mut image) = match entry {
                Entry::Image {
                    manifest, image, ..
                } => (manifest, image),
                Entry::Other(manifest) => {
                    if let Ok(Manifest::Image { config, layers, .. }) =
                        Manifest::parse(&manifest.bytes)
                    {
                        out.old_blobs.push(config.digest);
                        let layers = layers.iter().map(|layer| layer.digest);
                        out.old_blobs.extend(layers);
                    }
                    out.old_manifests
                        .push((manifest.bytes, manifest.media_type));
                    continue;
                }
            };
            let before = image.blobs();
            if !change(&mut image)? {
                out.old_blobs.extend(before);
                if is_index {
                    out.old_manifests
                        .push((manifest.bytes, manifest.media_type));
                }
                continue;
            }
            let (config, bytes) = image.render()?;
            let after = image.blobs();
            let kept = before.into_iter().filter(|digest| after.contains(digest));
            out.old_blobs.extend(kept);
            out.configs.push(config);
            replaced.push((manifest.digest, Digest::of(&bytes), bytes.len()));
            let media_type = image.media_type().to_owned();
            if is_index {
                out.manifests.push((bytes, media_type));
            } else {
                out.top = (bytes, media_type);
            }
        }
        if let (Some(mut index), false) = (self.index, replaced.is_empty()) {
            out.dropped = rewrite(&mut index, &replaced);
            let media_type = match index["mediaType"].as_str() {
                Some(media_type) => media_type.to_owned(),
                None if out.top.1 == DOCKER_LIST => DOCKER_LIST.into(),
                None => OCI_INDEX.into(),
            };
            let bytes = serde_json::to_vec(&index).context(|| "cannot write the index".into())?;
            out.top = (bytes, media_type);
        }
        Ok(out)
    }
}

/// Name other manifests in an index; how many attestations of the old ones are left out.
fn rewrite(index: &mut Value, replaced: &[(Digest, Digest, usize)]) -> usize {
    let Some(manifests) = index["manifests"].as_array_mut() else {
        return 0;
    };
    let before = manifests.len();
    let is_replaced = |value: &Value| {
        let digest = value.as_str().and_then(|text| text.parse::<Digest>().ok());
        replaced.iter().find(|(old, _, _)| Some(*old) == digest)
    };
    manifests.retain(|entry| is_replaced(&entry["annotations"][SUBJECT]).is_none());
    for entry in manifests.iter_mut() {
        if let Some((_, digest, size)) = is_replaced(&entry["digest"]) {
            entry["digest"] = json!(digest);
            entry["size"] = json!(size);
            if let Some(fields) = entry.as_object_mut() {
                // A copy of what it was.
                fields.shift_remove("data");
            }
        }
    }
    before - manifests.len()
}

fn read_image(registry: &Registry, manifest: &Tagged) -> Result<Image> {
    let Manifest::Image { config, .. } = Manifest::parse(&manifest.bytes)? else {
        fail!(Kind::Invalid, "{} is no image", manifest.digest);
    };
    let text = registry.small_blob(config.digest, MAX_CONFIG_BYTES)?;
    Image::parse(&manifest.bytes, &manifest.media_type, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_names_the_new_ones_and_no_attestation_of_the_old() {
        let digest = |c: char| Digest::from_hex(&c.to_string().repeat(64)).unwrap();
        let mut index = json!({"schemaVersion": 2, "annotations": {"a": "b"}, "manifests": [
            {"digest": digest('1'), "size": 1, "platform": {"os": "linux", "architecture": "amd64"}},
            {"digest": digest('2'), "size": 2, "platform": {"os": "linux", "architecture": "arm64"}},
            {"digest": digest('3'), "size": 3, "annotations": {SUBJECT: digest('1')}},
            {"digest": digest('4'), "size": 4, "annotations": {SUBJECT: digest('2')}},
        ]});
        let dropped = rewrite(&mut index, &[(digest('1'), digest('9'), 90)]);
        assert_eq!(dropped, 1);
        assert_eq!(
            index,
            json!({"schemaVersion": 2, "annotations": {"a": "b"}, "manifests": [
                {"digest": digest('9'), "size": 90, "platform": {"os": "linux", "architecture": "amd64"}},
                {"digest": digest('2'), "size": 2, "platform": {"os": "linux", "architecture": "arm64"}},
                {"digest": digest('4'), "size": 4, "annotations": {SUBJECT: digest('2')}},
            ]})
        );
    }
}
