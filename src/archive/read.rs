//! What a directory holds: an OCI layout, or what `docker save` and its kind write, unpacked.

use std::io::Read as _;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};

use super::{blob_path, open_regular, read_json, read_small, sum_up};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::image::manifest::OCI_MANIFEST;
use crate::image::{Descriptor, Digest, ImageConfig, Manifest};

/// Manifests and configs are smaller.
const MAX_JSON_BYTES: u64 = 8 * 1024 * 1024;
/// Indexes in indexes are followed so far.
const MAX_DEPTH: u32 = 4;
const TAG: &str = "org.opencontainers.image.ref.name";
const FULL_NAME: &str = "io.containerd.image.name";

/// A directory with images.
#[derive(Debug, Clone)]
pub struct Archive {
    /// Where it is.
    pub directory: Utf8PathBuf,
    /// Its images.
    pub images: Vec<ArchivedImage>,
}

/// One of them.
#[derive(Debug, Clone)]
pub struct ArchivedImage {
    /// The directory.
    pub directory: Utf8PathBuf,
    /// What it is called there.
    pub tags: Vec<String>,
    /// The digest of its config, by which docker knows it.
    pub id: Digest,
    /// Its config's file, as the directory names it.
    pub config: Utf8PathBuf,
    /// Its layers, base first.
    pub layers: Vec<Layer>,
    /// Its manifest, where there is one.
    pub manifest: Option<Descriptor>,
}

/// A layer's file.
#[derive(Debug, Clone)]
pub struct Layer {
    /// As the directory names it.
    pub path: Utf8PathBuf,
    /// What its manifest says of it.
    pub described: Option<Descriptor>,
}

/// Which of several images.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// The one of this name, to the letter.
    pub repo_tag: Option<String>,
    /// The one whose id, or config's file, begins so.
    pub config: Option<String>,
}

impl Archive {
    /// Read what a directory holds; layers are not read.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if it has neither form.
    pub fn open(directory: &Utf8Path) -> Result<Self> {
        let directory = camino::absolute_utf8(directory).context(|| directory.to_string())?;
        let mut images = Vec::new();
        if directory.join("oci-layout").exists() && directory.join("index.json").exists() {
            let index = read_json(&directory.join("index.json"), MAX_JSON_BYTES)?;
            add_index(&directory, &index, MAX_DEPTH, &mut images)?;
        } else if directory.join("manifest.json").exists() {
            let list = read_json(&directory.join("manifest.json"), MAX_JSON_BYTES)?;
            for item in list.as_array().into_iter().flatten() {
                images.push(docker_image(&directory, item)?);
            }
        } else {
            for name in ["index.json", "manifest.json"] {
                if directory.join(name).is_symlink() {
                    fail!(
                        Kind::NotFound,
                        "{directory}/{name} is a link to what is not here: \"git annex get {directory}\" or \"datalad get\" fetches it"
                    );
                }
            }
            fail!(
                Kind::NotFound,
                "{directory} holds no image: it has neither index.json nor manifest.json"
            );
        }
        Ok(Self { directory, images })
    }

    /// The image that is meant.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none, [`Kind::Usage`] if there are several.
    pub fn choose(&self, choice: &Choice) -> Result<&ArchivedImage> {
        let matches = |image: &&ArchivedImage| {
            let has_tag = |tag: &String| image.tags.contains(tag);
            let begins = |prefix: &String| {
                let prefix = prefix.strip_prefix("sha256:").unwrap_or(prefix);
                image.id.hex().starts_with(prefix) || image.config.as_str().starts_with(prefix)
            };
            choice.repo_tag.as_ref().is_none_or(has_tag)
                && choice.config.as_ref().is_none_or(begins)
        };
        let mut found = self.images.iter().filter(matches);
        match (found.next(), found.next()) {
            (None, _) => fail!(
                Kind::NotFound,
                "No matching images found in {}",
                self.directory
            ),
            (Some(image), None) => Ok(image),
            _ => fail!(
                Kind::Usage,
                "Multiple images found in {}; disambiguate with --repo-tag or --config",
                self.directory
            ),
        }
    }
}

impl ArchivedImage {
    /// Its config.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if the file is not what the id says.
    pub fn config_bytes(&self) -> Result<Vec<u8>> {
        let path = self.directory.join(&self.config);
        let bytes = read_small(&path, MAX_JSON_BYTES)?;
        let found = Digest::of(&bytes);
        if found != self.id {
            fail!(Kind::Invalid, "{path} is damaged: its digest is {found}");
        }
        Ok(bytes)
    }

    /// What each layer is when it is not compressed.
    pub fn diff_ids(&self) -> Result<Vec<Digest>> {
        let ids = ImageConfig::parse(&self.config_bytes()?)?.rootfs.diff_ids;
        if ids.len() != self.layers.len() {
            fail!(
                Kind::Invalid,
                "{} names {} layers, and the image has {}",
                self.config,
                ids.len(),
                self.layers.len()
            );
        }
        Ok(ids)
    }

    /// Write an OCI layout of this image alone, with links to its files.
    pub(super) fn write_layout(&self, layout: &Utf8Path) -> Result<()> {
        let blobs = layout.join("blobs/sha256");
        let failed = || format!("cannot write {layout}");
        std::fs::create_dir_all(&blobs).context(failed)?;
        let put = |bytes: &[u8]| -> Result<Digest> {
            let digest = Digest::of(bytes);
            std::fs::write(blobs.join(digest.hex()), bytes).context(failed)?;
            Ok(digest)
        };
        let config = self.config_bytes()?;
        put(&config)?;
        self.diff_ids()?;
        let mut layers = Vec::new();
        for layer in &self.layers {
            let path = self.directory.join(&layer.path);
            let (digest, size, media_type) = match &layer.described {
                // Whoever reads it checks it.
                Some(known) => (known.digest, known.size, known.media_type.clone()),
                None => describe(&path)?,
            };
            let link = blobs.join(digest.hex());
            if link.symlink_metadata().is_err() {
                std::os::unix::fs::symlink(&path, &link).context(failed)?;
            }
            layers.push(json!({"mediaType": media_type, "digest": digest, "size": size}));
        }
        let manifest = match &self.manifest {
            Some(known) => read_small(
                &self.directory.join(blob_path(known.digest)),
                MAX_JSON_BYTES,
            )?,
            None => json!({
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": {"mediaType": CONFIG, "digest": self.id, "size": config.len()},
                "layers": layers,
            })
            .to_string()
            .into_bytes(),
        };
        let kind = self
            .manifest
            .as_ref()
            .map(|known| known.media_type.as_str());
        let kind = kind.filter(|kind| !kind.is_empty()).unwrap_or(OCI_MANIFEST);
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{"mediaType": kind, "digest": put(&manifest)?, "size": manifest.len()}],
        });
        let layout_file = json!({"imageLayoutVersion": "1.0.0"});
        for (name, value) in [("index.json", index), ("oci-layout", layout_file)] {
            std::fs::write(layout.join(name), value.to_string()).context(failed)?;
        }
        Ok(())
    }
}

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Digest, size and type of a layer of which nothing is said.
fn describe(path: &Utf8Path) -> Result<(Digest, u64, String)> {
    let failed = || format!("cannot read {path}");
    let mut head = Vec::new();
    let mut file = open_regular(path)?;
    (&mut file).take(4).read_to_end(&mut head).context(failed)?;
    let suffix = match head.as_slice() {
        [0x1f, 0x8b, ..] => "+gzip",
        [0x28, 0xb5, 0x2f, 0xfd] => "+zstd",
        _ => "",
    };
    let (digest, size) = sum_up(head.as_slice().chain(file), path)?;
    Ok((digest, size, format!("{LAYER}{suffix}")))
}

fn add_index(
    directory: &Utf8Path,
    index: &Value,
    depth: u32,
    out: &mut Vec<ArchivedImage>,
) -> Result<()> {
    for entry in index["manifests"].as_array().into_iter().flatten() {
        let described: Descriptor = serde_json::from_value(entry.clone())
            .kind(Kind::Invalid, || "index.json is damaged".into())?;
        let path = directory.join(blob_path(described.digest));
        let bytes = read_small(&path, MAX_JSON_BYTES)?;
        let found = Digest::of(&bytes);
        if found != described.digest {
            fail!(Kind::Invalid, "{path} is damaged: its digest is {found}");
        }
        let notes = &entry["annotations"];
        let tag = notes[FULL_NAME].as_str().or_else(|| notes[TAG].as_str());
        match Manifest::parse(&bytes)? {
            Manifest::Image { config, layers, .. } => out.push(ArchivedImage {
                directory: directory.to_owned(),
                tags: tag.into_iter().map(str::to_owned).collect(),
                id: config.digest,
                config: blob_path(config.digest),
                layers: layers
                    .into_iter()
                    .map(|layer| Layer {
                        path: blob_path(layer.digest),
                        described: Some(layer),
                    })
                    .collect(),
                manifest: Some(described),
            }),
            Manifest::Index { .. } if depth > 0 => {
                let inner: Value = serde_json::from_slice(&bytes)
                    .kind(Kind::Invalid, || format!("{path} is damaged"))?;
                add_index(directory, &inner, depth - 1, out)?;
            }
            _ => fail!(Kind::Invalid, "{path} is a manifest of an unknown kind"),
        }
    }
    Ok(())
}

fn docker_image(directory: &Utf8Path, item: &Value) -> Result<ArchivedImage> {
    let damaged = || {
        Error::new(
            Kind::Invalid,
            format!("{directory}/manifest.json is damaged"),
        )
    };
    let config = plain(item["Config"].as_str().ok_or_else(damaged)?)?;
    let name = config.file_name().unwrap_or_default();
    let name = name.strip_suffix(".json").unwrap_or(name);
    let id = match Digest::from_hex(name) {
        Some(id) => id,
        // Then only its content says what it is.
        None => Digest::of(&read_small(&directory.join(&config), MAX_JSON_BYTES)?),
    };
    let layers = item["Layers"].as_array().ok_or_else(damaged)?;
    let layers = layers.iter().map(|path| {
        Ok(Layer {
            path: plain(path.as_str().ok_or_else(damaged)?)?,
            described: None,
        })
    });
    let tags = item["RepoTags"].as_array().into_iter().flatten();
    Ok(ArchivedImage {
        directory: directory.to_owned(),
        tags: tags.filter_map(Value::as_str).map(str::to_owned).collect(),
        id,
        config,
        layers: layers.collect::<Result<_>>()?,
        manifest: None,
    })
}

/// A name in a directory, which leads out of it by links only, as git-annex makes them: what is read by them has to have
/// the right digest.
fn plain(path: &str) -> Result<Utf8PathBuf> {
    let path = Utf8Path::new(path);
    let is_plain =
        |part: camino::Utf8Component<'_>| matches!(part, camino::Utf8Component::Normal(_));
    if path.as_str().is_empty() || !path.components().all(is_plain) {
        fail!(
            Kind::Invalid,
            "manifest.json names \"{path}\", which is not a file of the directory"
        );
    }
    Ok(path.to_owned())
}
