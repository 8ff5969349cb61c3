//! An image of a plain tar archive: of one layer, and with nothing to run.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read};
use std::process::Stdio;

use camino::Utf8Path;
use serde_json::json;

use super::{Remote, Silent};
use crate::command::Child;
use crate::config::Config;
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::image::digest::Hashing;
use crate::image::{Digest, Name, Platform, Reference};
use crate::store::Store;
use crate::store::export::Scratch;
use crate::store::gunzip::Gunzip;
use crate::store::images::StoredImage;
use crate::transport::Access;

/// What a layer is called in an OCI layout.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Bring an archive into the store, as an image of this name. It may be compressed by gzip, zstd, xz or bzip2.
///
/// # Errors
/// [`Kind::Invalid`] if it is no archive.
pub fn import_tar(
    config: &Config,
    store: &Store,
    archive: &Utf8Path,
    name: &Name,
    platform: &Platform,
) -> Result<StoredImage> {
    let scratch = Scratch::new(store)?;
    // A layout is named by its directory, and that of the scratch is no name of an image.
    let layout = scratch.path().join("image");
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).context(|| format!("cannot create {blobs}"))?;
    let put = |bytes: &[u8]| -> Result<Digest> {
        let digest = Digest::of(bytes);
        let path = blobs.join(digest.hex());
        std::fs::write(&path, bytes).context(|| format!("cannot write {path}"))?;
        Ok(digest)
    };
    let staged = blobs.join("layer");
    let (layer, size) = unpack(archive, &staged)?;
    std::fs::rename(&staged, blobs.join(layer.hex())).context(|| "cannot keep the layer".into())?;
    let mut image = json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer]},
    });
    if !platform.variant.is_empty() {
        image["variant"] = platform.variant.clone().into();
    }
    let image = image.to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": put(image.as_bytes())?, "size": image.len()},
        "layers": [{"mediaType": LAYER, "digest": layer, "size": size}],
    });
    let manifest = manifest.to_string();
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{"mediaType": MANIFEST, "digest": put(manifest.as_bytes())?, "size": manifest.len()}],
    });
    for (file, text) in [
        ("index.json", index.to_string()),
        (
            "oci-layout",
            json!({"imageLayoutVersion": "1.0.0"}).to_string(),
        ),
    ] {
        let path = layout.join(file);
        std::fs::write(&path, text).context(|| format!("cannot write {path}"))?;
    }
    let reference: Reference = format!("oci:{layout}").parse()?;
    let remote = Remote::open(config, &reference, &Access::default())?;
    // There is no other way to get it again than this archive.
    let source = format!("oci:{archive}");
    remote.fetch_as(config, store, name, source, &mut Silent)?;
    store.find_one(&name.to_string())
}

/// Write what an archive is when it is not compressed: its digest and size.
fn unpack(archive: &Utf8Path, to: &Utf8Path) -> Result<(Digest, u64)> {
    let failed = || format!("cannot read {archive}");
    let mut input = BufReader::new(File::open(archive).context(failed)?);
    let mut head = [0; 6];
    let begins = input.fill_buf().context(failed)?;
    let length = begins.len().min(head.len());
    head[..length].copy_from_slice(&begins[..length]);
    let mut running = None;
    let mut by = |program: &str| -> Result<Box<dyn Read>> {
        let mut command = Child::new(program)
            .args(["-dc", "--", archive.as_str()])
            .into_command();
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .context(|| format!("cannot run {program}"))?;
        let stdout = child.stdout.take();
        running = Some(child);
        Ok(match stdout {
            Some(stdout) => Box::new(stdout),
            None => Box::new(std::io::empty()),
        })
    };
    let input: Box<dyn Read> = match head {
        [0x1f, 0x8b, ..] => Box::new(Gunzip::new(input)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(zstd::stream::read::Decoder::with_buffer(input).context(failed)?)
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0] => by("xz")?,
        [b'B', b'Z', b'h', ..] => by("bzip2")?,
        _ => Box::new(input),
    };
    let mut hashing = Hashing::new(input);
    let mut out = File::create_new(to).context(|| format!("cannot create {to}"))?;
    let copied = std::io::copy(&mut hashing, &mut out);
    copied.kind(Kind::Invalid, || format!("cannot unpack {archive}"))?;
    if let Some(mut child) = running {
        let status = child.wait().context(failed)?;
        if !status.success() {
            fail!(Kind::Invalid, "cannot unpack {archive}: {status}");
        }
    }
    let (digest, size, _) = hashing.finish();
    Ok((digest, size))
}
