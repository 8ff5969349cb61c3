//! Images out of the store, as OCI layouts whose layers have the bytes they came with.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write as _};

use camino::{Utf8Path, Utf8PathBuf};
use gio::prelude::*;
use ostree::Repo;
use serde_json::{Value, json};

use super::images::{EXPORT_SCRATCH, StoredImage};
use super::objects::{self, Checksum, NO_CANCEL, checksum};
use super::{ImageTree, Store, side};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::image::digest::Hashing;
use crate::image::manifest::OCI_MANIFEST;
use crate::image::refname::{blob_ref, kept_ref, side_ref};
use crate::image::{Digest, Manifest};
use crate::safefs::Files as _;

const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Side data stop at 64 MiB.
const MAX_SIDE_BYTES: u64 = 128 * 1024 * 1024;

/// What an export is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Its manifest digest.
    pub digest: Digest,
    /// True if that is the digest the image was pulled by.
    pub same_digest: bool,
}

/// Reads a layer's blob and, where it is wanted, writes it to the repository on the way.
pub(super) struct Keeper<R> {
    input: R,
    writer: Option<ostree::ContentWriter>,
}

impl<R: Read> Keeper<R> {
    pub(super) fn new(
        repo: &Repo,
        descriptor: &crate::image::Descriptor,
        input: R,
        keeps: bool,
    ) -> Result<Self> {
        let writer = if keeps {
            let writer = repo
                .write_regfile(None, 0, 0, 0o100_644, descriptor.size, None)
                .context(|| "cannot write to the repository".into())?;
            Some(writer)
        } else {
            None
        };
        Ok(Self { input, writer })
    }

    /// The stored blob.
    pub(super) fn finish(self) -> Result<Option<Checksum>> {
        let Some(writer) = self.writer else {
            return Ok(None);
        };
        let written = writer
            .finish(NO_CANCEL)
            .context(|| "cannot write to the repository".into())?;
        checksum(&written).map(Some)
    }
}

impl<R: Read> Read for Keeper<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buffer)?;
        if let Some(writer) = &self.writer {
            match writer.write_all(&buffer[..n], NO_CANCEL) {
                Ok((_, None)) => {}
                Ok((_, Some(error))) | Err(error) => {
                    return Err(io::Error::other(error.to_string()));
                }
            }
        }
        Ok(n)
    }
}

/// A layout on the store's file system that goes when it is dropped.
#[derive(Debug)]
pub struct Scratch(Utf8PathBuf);

impl Scratch {
    /// Make an empty directory for one.
    pub fn new(store: &Store) -> Result<Self> {
        let parent = store.path().parent().unwrap_or(Utf8Path::new("/"));
        let path = parent.join(format!("{EXPORT_SCRATCH}{}", uuid::Uuid::new_v4().simple()));
        crate::safefs::make_private_dir(path.as_std_path())?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Utf8Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = crate::safefs::remove_tree(self.0.as_std_path()) {
            tracing::warn!(%error, "the scratch layout is left");
        }
    }
}

impl Store {
    /// True if an export of the image has its very manifest: all its layers are kept as they came,
    /// and the manifest is one for a layout.
    pub fn keeps_manifest(&self, image: &StoredImage) -> Result<bool> {
        let Some(Manifest::Image { config, layers, .. }) = &image.manifest else {
            return Ok(false);
        };
        for layer in layers {
            if self.resolve(&kept_ref(layer.digest))?.is_none() {
                return Ok(false);
            }
        }
        Ok(config.media_type == OCI_CONFIG)
    }

    /// Write an image as an OCI layout to `directory`, which must not exist or be a layout already.
    ///
    /// Config and `diff_ids` are always those of the image; the manifest is the very one where all
    /// of its layers are kept as they came, else one that names the layers uncompressed.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if a layer was imported without its side data.
    pub fn export(&self, image: &StoredImage, directory: &Utf8Path, tag: &str) -> Result<Exported> {
        let (Some(manifest), Some(text)) = (&image.manifest, &image.manifest_text) else {
            fail!(
                Kind::Invalid,
                "the image {} has no manifest and cannot be exported",
                image.name
            );
        };
        let Manifest::Image { config, layers, .. } = manifest else {
            fail!(
                Kind::Invalid,
                "the image {} is of a kind that cannot be exported",
                image.name
            );
        };
        let blobs = directory.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).context(|| format!("cannot create {blobs}"))?;
        let put = |bytes: &[u8]| -> Result<Digest> {
            let digest = Digest::of(bytes);
            let path = blobs.join(digest.hex());
            crate::safefs::replace_file(path.as_std_path(), bytes, 0o644)?;
            Ok(digest)
        };
        let config_text = self.image_config_text(config.digest)?.ok_or_else(|| {
            Error::new(
                Kind::NotFound,
                format!(
                    "the config of the image {} is not in the store: pull it again",
                    image.name
                ),
            )
        })?;
        put(&config_text)?;
        let manifest_text = if self.keeps_manifest(image)? {
            for layer in layers {
                self.write_kept(layer.digest, &blobs)?;
            }
            text.clone()
        } else {
            let mut described: Vec<Value> = Vec::new();
            for layer in layers {
                let (digest, size) = self.write_layer(layer.digest, &blobs)?;
                described.push(json!({"mediaType": OCI_LAYER, "digest": digest, "size": size}));
            }
            let original: Value = serde_json::from_str(text).unwrap_or_default();
            let mut made = json!({
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": {"mediaType": OCI_CONFIG, "digest": config.digest,
                           "size": config_text.len()},
                "layers": described,
            });
            if original["annotations"].is_object() {
                made["annotations"] = original["annotations"].clone();
            }
            made.to_string()
        };
        let digest = put(manifest_text.as_bytes())?;
        crate::safefs::sync_file_system(directory.as_std_path())?;
        add_to_index(directory, digest, manifest_text.len(), tag)?;
        Ok(Exported {
            digest,
            same_digest: Some(digest) == image.digest,
        })
    }

    fn write_kept(&self, layer: Digest, blobs: &Utf8Path) -> Result<()> {
        let commit = self.resolve(&kept_ref(layer))?.unwrap_or_default();
        let (tree, _) = objects::commit_root(&self.repo, &commit)?;
        let tree = objects::read_dirtree(&self.repo, &tree)?;
        let Some(file) = tree.files.get("blob") else {
            fail!(Kind::Invalid, "the kept blob {layer} is damaged");
        };
        let name = crate::image::digest::hex(file);
        let (stream, _, _) = self
            .repo
            .load_file(&name, NO_CANCEL)
            .context(|| format!("cannot read the object {name}"))?;
        let path = blobs.join(format!(".{}", layer.hex()));
        let out = File::create(&path).context(|| format!("cannot create {path}"))?;
        let mut out = Hashing::new(BufWriter::new(out));
        if let Some(stream) = stream {
            io::copy(&mut stream.into_read(), &mut out)
                .and_then(|_| out.flush())
                .context(|| format!("cannot write {path}"))?;
        }
        let (digest, _, _) = out.finish();
        if digest != layer {
            fail!(Kind::Invalid, "the kept blob {layer} is damaged");
        }
        crate::safefs::rename(path.as_std_path(), blobs.join(layer.hex()).as_std_path())
    }

    /// What stood in a layer's archive and is not in its tree, if that is kept.
    pub(super) fn side_data(&self, layer: Digest) -> Result<Option<Vec<u8>>> {
        match self.resolve(&side_ref(layer))? {
            Some(commit) => ImageTree::open(&self.repo, &commit)?.read("side", MAX_SIDE_BYTES),
            None => Ok(None),
        }
    }

    /// Write a layer uncompressed; its digest, which is the image config's `diff_id`, and its size.
    fn write_layer(&self, layer: Digest, blobs: &Utf8Path) -> Result<(Digest, u64)> {
        let commit = self.resolve(&blob_ref(layer))?;
        let Some(commit) = commit else {
            fail!(
                Kind::NotFound,
                "Layer not found: {}.  Please pull the image again",
                layer.hex()
            );
        };
        let diff_id = self.diff_id(&commit)?;
        let Some(side) = self.side_data(layer)? else {
            fail!(
                Kind::NotFound,
                "the layer {layer} was imported without what an exact export needs: delete the image, prune, and pull it again"
            );
        };
        let path = blobs.join(format!(".{}", layer.hex()));
        let out = File::create(&path).context(|| format!("cannot create {path}"))?;
        let mut out = Hashing::new(BufWriter::with_capacity(256 * 1024, out));
        side::rebuild(&self.repo, side, &mut out)?;
        out.flush().context(|| format!("cannot write {path}"))?;
        let (digest, size, _) = out.finish();
        if diff_id.is_some_and(|diff_id| diff_id != digest) {
            fail!(
                Kind::Invalid,
                "the layer {layer} cannot be put together again: its files are damaged (atomic-rs images verify)"
            );
        }
        crate::safefs::rename(path.as_std_path(), blobs.join(digest.hex()).as_std_path())?;
        Ok((digest, size))
    }
}

/// Name a manifest in a layout's index, in place of one that has the tag already.
fn add_to_index(directory: &Utf8Path, digest: Digest, size: usize, tag: &str) -> Result<()> {
    const TAG: &str = "org.opencontainers.image.ref.name";
    let path = directory.join("index.json");
    let mut index: Value = match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .kind(Kind::Invalid, || format!("{path} is not an OCI index"))?,
        Err(_) => json!({"schemaVersion": 2, "manifests": []}),
    };
    let mut manifests = index["manifests"].as_array().cloned().unwrap_or_default();
    manifests.retain(|other| other["annotations"][TAG] != tag);
    manifests.push(json!({
        "mediaType": OCI_MANIFEST, "digest": digest, "size": size, "annotations": {TAG: tag},
    }));
    index["manifests"] = manifests.into();
    let layout = json!({"imageLayoutVersion": "1.0.0"}).to_string();
    crate::safefs::replace_file(
        directory.join("oci-layout").as_std_path(),
        layout.as_bytes(),
        0o644,
    )?;
    crate::safefs::replace_file(path.as_std_path(), index.to_string().as_bytes(), 0o644)
}
