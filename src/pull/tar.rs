//! Images of plain tar archives.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};

use super::{Remote, Silent};
use crate::command::Child;
use crate::config::Config;
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::image::digest::Hashing;
use crate::image::manifest::OCI_MANIFEST;
use crate::image::{Digest, Name, Platform, Reference};
use crate::store::Store;
use crate::store::export::Scratch;
use crate::store::gunzip::Gunzip;
use crate::store::images::StoredImage;
use crate::store::layer::ZSTD_WINDOW_LOG_MAX;
use crate::transport::Access;

/// So much may follow an archive in its file.
const MAX_PADDING: u64 = 16 << 20;
/// What a layer is called in an OCI layout.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// Bring an archive into the store, as an image of this name, of one layer, and with nothing to run. It may be
/// compressed by gzip, zstd, xz or bzip2.
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
    let mut image = json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "config": {},
    });
    if !platform.variant.is_empty() {
        image["variant"] = platform.variant.clone().into();
    }
    import_layers(config, store, &[archive.to_owned()], image, name)
}

/// The same of several archives, base first, with the config of their image, whose layers need not be named in it.
pub fn import_layers(
    config: &Config,
    store: &Store,
    archives: &[Utf8PathBuf],
    mut image: Value,
    name: &Name,
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
    let mut layers = Vec::new();
    for archive in archives {
        let staged = blobs.join("layer");
        let (digest, size) = unpack(archive, &staged)?;
        std::fs::rename(&staged, blobs.join(digest.hex()))
            .context(|| "cannot keep the layer".into())?;
        layers.push(json!({"mediaType": LAYER, "digest": digest, "size": size}));
    }
    let diff_ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
    if !image.is_object() {
        fail!(Kind::Invalid, "the image config is not valid");
    }
    image["rootfs"] = json!({"type": "layers", "diff_ids": diff_ids});
    // It would have to speak of these very layers.
    if let Some(fields) = image.as_object_mut() {
        fields.remove("history");
    }
    let image = image.to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": CONFIG, "digest": put(image.as_bytes())?, "size": image.len()},
        "layers": layers,
    });
    let manifest = manifest.to_string();
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{"mediaType": OCI_MANIFEST, "digest": put(manifest.as_bytes())?, "size": manifest.len()}],
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
    // There is no other way to get it again than these archives.
    let source = archives.first().map_or("", |first| first.as_str());
    let source = format!("oci:{source}");
    let pulled = remote.fetch_as(config, store, name, source, &mut Silent)?;
    Ok(pulled.image)
}

/// Write what an archive is when it is not compressed: its digest and size.
fn unpack(archive: &Utf8Path, to: &Utf8Path) -> Result<(Digest, u64)> {
    with_unpacked(archive, |input| {
        let mut hashing = Hashing::new(input);
        let mut out = File::create_new(to).context(|| format!("cannot create {to}"))?;
        let copied = std::io::copy(&mut hashing, &mut out);
        copied.kind(Kind::Invalid, || format!("cannot unpack {archive}"))?;
        let (digest, size, _) = hashing.finish();
        Ok((digest, size))
    })
}

/// Read a stream as what it is when it is not compressed: by gzip or zstd, as its first bytes say.
pub fn with_inflated<T>(
    input: &mut dyn BufRead,
    what: impl FnOnce(&mut dyn Read) -> Result<T>,
) -> Result<T> {
    let failed = || "cannot read the archive".into();
    match input.fill_buf().context(failed)? {
        [0x1f, 0x8b, ..] => what(&mut Gunzip::new(input)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input).context(failed)?;
            decoder
                .window_log_max(ZSTD_WINDOW_LOG_MAX)
                .context(failed)?;
            what(&mut decoder)
        }
        _ => {
            let mut input = input;
            what(&mut input)
        }
    }
}

/// Read a file as what it is when it is not compressed: by gzip, zstd, xz or bzip2, as its first bytes say.
pub fn with_unpacked<T>(
    archive: &Utf8Path,
    what: impl FnOnce(&mut dyn Read) -> Result<T>,
) -> Result<T> {
    let failed = || format!("cannot read {archive}");
    let mut input = BufReader::new(File::open(archive).context(failed)?);
    let mut head = [0; 6];
    let begins = input.fill_buf().context(failed)?;
    let length = begins.len().min(head.len());
    head[..length].copy_from_slice(&begins[..length]);
    let program = match head {
        [0xfd, b'7', b'z', b'X', b'Z', 0] => "xz",
        [b'B', b'Z', b'h', ..] => "bzip2",
        _ => return with_inflated(&mut input, what),
    };
    let mut command = Child::new(program)
        .args(["-dc", "--", archive.as_str()])
        .into_command();
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context(|| format!("cannot run {program}"))?;
    let done = match child.stdout.take() {
        Some(mut stdout) => what(&mut stdout).and_then(|done| {
            // An archive ends before its file does, and the program would not end before both.
            let rest = (&mut stdout).take(MAX_PADDING);
            std::io::copy(&mut { rest }, &mut std::io::sink()).context(failed)?;
            Ok(done)
        }),
        None => fail!(Kind::Failed, "cannot run {program}"),
    };
    let done = match done {
        Ok(done) => done,
        Err(error) => {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
    };
    let status = child.wait().context(failed)?;
    if !status.success() {
        fail!(Kind::Invalid, "cannot unpack {archive}: {status}");
    }
    Ok(done)
}
