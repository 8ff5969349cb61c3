//! Images as one archive in the form of `docker save`, for whoever reads no OCI layouts.
//!
//! # Format
//! `CONFIG.json` and `LAYER.tar` for each config and layer, named by their digests; `manifest.json`, a list of
//! `{Config, RepoTags, Layers}`; `repositories`, tags to topmost layers. Layers may be compressed, as they came.
//! Source: Docker image specification 1.2.

use std::collections::BTreeSet;
use std::io::Write;

use camino::Utf8Path;
use serde_json::{Map, Value, json};
use tar::{Builder, Header};

use super::Store;
use super::export::Scratch;
use super::images::StoredImage;
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::image::{Digest, Manifest};

impl Store {
    /// Write images as one archive.
    ///
    /// # Errors
    /// Those of [`Store::export`].
    pub fn write_docker_archive(&self, images: &[StoredImage], out: impl Write) -> Result<()> {
        let scratch = Scratch::new(self)?;
        let blobs = scratch.path().join("blobs/sha256");
        let mut archive = Builder::new(out);
        let mut entries: Vec<Value> = Vec::new();
        let mut repositories = Map::new();
        let mut written: BTreeSet<String> = BTreeSet::new();
        for image in images {
            let exported = self.export(image, scratch.path(), "latest")?;
            let path = blobs.join(exported.digest.hex());
            let text = std::fs::read(&path).context(|| format!("cannot read {path}"))?;
            let Manifest::Image { config, layers, .. } = Manifest::parse(&text)? else {
                fail!(
                    Kind::Invalid,
                    "the image {} is of a kind that cannot be saved",
                    image.name
                );
            };
            let config_name = format!("{}.json", config.digest.hex());
            let mut names = Vec::new();
            for layer in &layers {
                names.push(format!("{}.tar", layer.digest.hex()));
            }
            let digests =
                std::iter::once(config.digest).chain(layers.iter().map(|layer| layer.digest));
            for (name, digest) in std::iter::once(&config_name).chain(&names).zip(digests) {
                if written.insert(name.clone()) {
                    append(&mut archive, name, &blobs, digest)?;
                }
            }
            if let (Some((repository, tag)), Some(top)) =
                (image.name.rsplit_once(':'), layers.last())
            {
                repositories
                    .entry(repository.to_owned())
                    .or_insert_with(|| json!({}))[tag] = top.digest.hex().into();
            }
            entries.push(json!({"Config": config_name, "RepoTags": [image.name], "Layers": names}));
        }
        for (name, value) in [
            ("manifest.json", Value::from(entries)),
            ("repositories", repositories.into()),
        ] {
            let text = value.to_string();
            let failed = || format!("cannot write {name}");
            archive
                .append_data(&mut header(text.len() as u64), name, text.as_bytes())
                .context(failed)?;
        }
        let done = archive.into_inner().and_then(|mut out| out.flush());
        done.kind(Kind::Failed, || "cannot write the archive".into())
    }
}

/// Who, when and how may: the same for all, so that the same images are the same archive.
fn header(size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header
}

fn append(
    archive: &mut Builder<impl Write>,
    name: &str,
    blobs: &Utf8Path,
    digest: Digest,
) -> Result<()> {
    let path = blobs.join(digest.hex());
    let failed = || format!("cannot write {name}");
    let file = std::fs::File::open(&path).context(failed)?;
    let size = file.metadata().context(failed)?.len();
    // A header of an old archive has room for eight gigabytes; the crate writes larger ones as GNU tar does.
    let mut header = header(0);
    header.set_size(size);
    archive.append_data(&mut header, name, file).context(failed)
}
