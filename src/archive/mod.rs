//! Images as directories that git, git-annex or `DataLad` track, and what is in such directories.
//!
//! - [`save()`]: from anywhere into a directory, and again when there is something new
//! - [`Archive`]: what a directory holds, in any of its forms
//! - [`verify()`]: whether it is what it says
//! - [`bring_in()`]: its image in the store, once
//! - [`Engine`]: or in that of podman or docker
//!
//! # Format
//! What [`save()`] writes is an OCI image layout with docker's `manifest.json` beside it:
//! - `oci-layout`, `index.json`, `blobs/sha256/HEX`: as the OCI image specification has them. The manifest, the config
//!   and the layers are byte for byte those of the registry. The manifest's tag is in the annotation
//!   `org.opencontainers.image.ref.name`.
//! - `manifest.json`: `[{"Config": "blobs/sha256/HEX", "RepoTags": ["NAME:TAG"], "Layers": ["blobs/sha256/HEX", …]}]`
//! - `atomic-rs.json`: `{"version": 1, "source": "docker://…", "name": "NAME:TAG", "urls": {"sha256:HEX": ["https://…"]}}`:
//!   where it came from, what it is called, and where each layer can be had again.

mod docker;
mod engine;
mod read;
mod save;
mod verify;

use camino::Utf8PathBuf;

use crate::config::Config;
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::image::digest::Hashing;
use crate::image::{Digest, Manifest, Name, Reference};
use crate::pull::{Remote, Silent};
use crate::store::Store;
use crate::store::export::Scratch;
use crate::store::images::StoredImage;
use crate::transport::Access;
pub use docker::{check_empty, unpack_docker};
pub use engine::{Command, Engine};
pub use read::{Archive, ArchivedImage, Choice, Layer};
pub use save::{Origin, Saved, recorded_source, save};
pub use verify::{Finding, verify};

/// Have an image of a directory in the store, by its id: what was brought in before is not read again.
///
/// # Errors
/// [`Kind::Invalid`] if anything of it does not have the digest that it should have.
pub fn bring_in(config: &Config, store: &Store, image: &ArchivedImage) -> Result<StoredImage> {
    let name: Name = format!("localhost/archive:{}", image.id.hex()).parse()?;
    bring_in_as(config, store, image, &name)
}

/// The same under another name.
pub fn bring_in_as(
    config: &Config,
    store: &Store,
    image: &ArchivedImage,
    name: &Name,
) -> Result<StoredImage> {
    if let Some(stored) = store.image(&name.to_string())? {
        let manifest = stored.manifest.as_ref();
        let is_this = manifest.and_then(Manifest::config_digest) == Some(image.id);
        if is_this && manifest.is_some_and(|manifest| store.layer_commits(manifest).is_ok()) {
            return Ok(stored);
        }
    }
    let scratch = Scratch::new(store)?;
    // A layout is named by its directory.
    let layout = scratch.path().join("image");
    image.write_layout(&layout)?;
    let reference: Reference = format!("oci:{layout}").parse()?;
    let remote = Remote::open(config, &reference, &Access::default())?;
    let source = format!("oci:{}", image.directory);
    let pulled = remote
        .fetch_as(config, store, name, source, &mut Silent)
        .map_err(|error| error.within(&image.directory))?;
    Ok(pulled.image)
}

/// Where a blob is in a directory.
fn blob_path(digest: Digest) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("blobs/sha256/{}", digest.hex()))
}

/// Open a file that somebody else's data set names: nothing that blocks, or has no end.
fn open_regular(path: &camino::Utf8Path) -> Result<std::fs::File> {
    use rustix::fs::{Mode, OFlags};
    let failed = || format!("cannot read {path}");
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path.as_std_path(), flags, Mode::empty());
    let file = std::fs::File::from(file.context(failed)?);
    if !file.metadata().context(failed)?.is_file() {
        fail!(Kind::Invalid, "{path} is no regular file");
    }
    Ok(file)
}

/// The digest and size of what is read.
fn sum_up(input: impl std::io::Read, path: &camino::Utf8Path) -> Result<(Digest, u64)> {
    let mut hashing = Hashing::new(input);
    std::io::copy(&mut hashing, &mut std::io::sink()).context(|| format!("cannot read {path}"))?;
    let (digest, size, _) = hashing.finish();
    Ok((digest, size))
}

fn read_json(path: &camino::Utf8Path, limit: u64) -> Result<serde_json::Value> {
    let bytes = read_small(path, limit)?;
    serde_json::from_slice(&bytes).kind(Kind::Invalid, || format!("{path} is damaged"))
}

fn read_small(path: &camino::Utf8Path, limit: u64) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let failed = || format!("cannot read {path}");
    let mut bytes = Vec::new();
    let file = open_regular(path)?;
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .context(failed)?;
    if bytes.len() as u64 > limit {
        fail!(Kind::Invalid, "{path} has more than {limit} bytes");
    }
    Ok(bytes)
}
