//! Writing an image to a directory, and bringing one up to date.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write as _};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};

use super::{blob_path, open_regular, read_json, read_small, sum_up};
use crate::config::Config;
use crate::error::{Context as _, Kind, Result};
use crate::image::digest::Hashing;
use crate::image::manifest::OCI_MANIFEST;
use crate::image::{Descriptor, Digest, ImageConfig, Manifest, Name, Reference, Transport};
use crate::pull::Progress;
use crate::transport::{self, Access, Source};
use crate::{fail, safefs};

/// What this program notes beside the layout.
const NOTES: &str = "atomic-rs.json";
/// Tells git-annex to leave what is small to git, so that all but the layers is in every clone.
const ATTRIBUTES: &str = ".gitattributes";
const SMALL_IN_GIT: &str = "* annex.largefiles=largerthan=64kb\n";
const VERSION: u64 = 1;
const MAX_NOTES_BYTES: u64 = 8 * 1024 * 1024;
const MAX_CONFIG_BYTES: u64 = 4 * 1024 * 1024;
/// What the names of unfinished files begin with.
const STAGED: &str = ".atomic-rs-";
const PIECE: usize = 256 * 1024;

/// What a directory holds now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// The manifest's digest.
    pub digest: Digest,
    /// The digest of the config, by which docker knows the image.
    pub id: Digest,
    /// So many blobs were fetched.
    pub fetched: usize,
    /// So many files were written or removed.
    pub changed: usize,
}

/// What is saved.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// Where it is read.
    pub reference: &'a Reference,
    /// What it is called.
    pub name: Option<&'a Name>,
    /// Where it is to be had again.
    pub recorded: &'a str,
}

/// Save an image in `directory`, which is not there, empty, or holds an image that was saved before: then
/// only what is missing is fetched, and what is not needed any more goes.
///
/// # Errors
/// [`Kind::Exists`] if the directory holds something else.
pub fn save(
    config: &Config,
    origin: &Origin<'_>,
    access: &Access,
    directory: &Utf8Path,
    progress: &mut dyn Progress,
) -> Result<Saved> {
    let _held = config.interrupt.hold();
    let reference = origin.reference;
    check(directory)?;
    let source = Source::open(&config.skopeo, reference, access, &config.interrupt)?;
    let fetched = source.manifest()?;
    transport::enforce_policy(config, &source, &fetched)?;
    let Manifest::Image {
        config: image,
        layers,
        ..
    } = &fetched.manifest
    else {
        fail!(Kind::Invalid, "\"{reference}\" is not an image manifest");
    };
    let config_bytes = source.read_blob(image, MAX_CONFIG_BYTES)?;
    ImageConfig::parse(&config_bytes)?.diff_ids(layers.len())?;
    make_blobs(directory)?;
    let mut files = Files {
        directory,
        changed: 0,
    };
    if !directory.join(NOTES).exists() {
        // What is cut short is gone on with.
        files.write_notes(origin, &[])?;
    }
    let mut wanted: Vec<&Descriptor> = Vec::new();
    for layer in layers {
        if !is_there(directory, layer)? && !wanted.iter().any(|other| other.digest == layer.digest)
        {
            wanted.push(layer);
        }
    }
    let bytes = wanted.iter().map(|layer| layer.size).sum();
    progress.begin(wanted.len(), layers.len() - wanted.len(), bytes);
    for layer in &wanted {
        progress.layer(layer.digest, layer.size);
        fetch(&source, layer, directory, progress)?;
        files.changed += 1;
    }
    progress.end();
    files.put(&blob_path(image.digest), &config_bytes)?;
    files.put(&blob_path(fetched.digest), &fetched.bytes)?;
    // A digest is no name that docker could give it.
    let name = origin
        .name
        .and_then(|name| Some(format!("{}:{}", name.without_tag(), name.tag()?)));
    files.write_index(&fetched.bytes, fetched.digest, name.as_deref())?;
    files.write_docker_manifest(image.digest, layers, name.as_deref())?;
    files.write_notes(origin, layers)?;
    files.write_attributes()?;
    files.remove_others(&[&[fetched.digest, image.digest][..], &digests(layers)].concat())?;
    safefs::sync_file_system(directory.as_std_path())?;
    Ok(Saved {
        digest: fetched.digest,
        id: image.digest,
        fetched: wanted.len(),
        changed: files.changed,
    })
}

/// Where a directory's image came from, and what it is called.
pub fn recorded_source(directory: &Utf8Path) -> Result<(String, Option<Name>)> {
    let path = directory.join(NOTES);
    if !path.exists() {
        fail!(
            Kind::NotFound,
            "{directory} does not say where its image came from: save it again by its name"
        );
    }
    let notes = read_json(&path, MAX_NOTES_BYTES)?;
    match (notes["version"].as_u64(), notes["source"].as_str()) {
        (Some(VERSION), Some(source)) => {
            let name = notes["name"].as_str().map(str::parse).transpose()?;
            Ok((source.to_owned(), name))
        }
        _ => fail!(
            Kind::Invalid,
            "{path} is damaged, or of a later version of this program"
        ),
    }
}

fn check(directory: &Utf8Path) -> Result<()> {
    let entries = match directory.read_dir_utf8() {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context(|| format!("cannot list {directory}")),
    };
    // What version control keeps beside it is no image.
    let mut entries = entries
        .flatten()
        .filter(|entry| !matches!(entry.file_name(), ".git" | ".gitattributes" | ".datalad"));
    if entries.next().is_some() && !directory.join(NOTES).exists() {
        fail!(
            Kind::Exists,
            "Directory {directory} is not empty, and was not written by \"archive save\""
        );
    }
    Ok(())
}

/// The directories of blobs, which are no links: what is in them may be removed.
fn make_blobs(directory: &Utf8Path) -> Result<()> {
    std::fs::create_dir_all(directory).context(|| format!("cannot create {directory}"))?;
    for path in [directory.join("blobs"), directory.join("blobs/sha256")] {
        match std::fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => fail!(Kind::Refused, "{path} is not a directory"),
            Err(_) => std::fs::create_dir(&path).context(|| format!("cannot create {path}"))?,
        }
    }
    Ok(())
}

/// Whether a blob is there and what it should be; git-annex has links in place of files.
fn is_there(directory: &Utf8Path, blob: &Descriptor) -> Result<bool> {
    let path = directory.join(blob_path(blob.digest));
    let Ok(file) = open_regular(&path) else {
        return Ok(false);
    };
    if file.metadata().is_ok_and(|found| found.len() != blob.size) {
        return Ok(false);
    }
    Ok(sum_up(file, &path)?.0 == blob.digest)
}

fn digests(layers: &[Descriptor]) -> Vec<Digest> {
    layers.iter().map(|layer| layer.digest).collect()
}

/// Fetch a blob to its place: whole and right, or not at all.
fn fetch(
    source: &Source,
    blob: &Descriptor,
    directory: &Utf8Path,
    progress: &mut dyn Progress,
) -> Result<()> {
    let path = directory.join(blob_path(blob.digest));
    let parent = path.parent().unwrap_or(directory);
    let failed = || format!("cannot write {path}");
    let mut staged = stage(parent).context(failed)?;
    let mut reader = source.blob(blob)?;
    let mut hashing = Hashing::new((&mut reader).take(blob.size.saturating_add(1)));
    let mut piece = vec![0; PIECE];
    let read = loop {
        match hashing.read(&mut piece) {
            Ok(0) => break Ok(()),
            Ok(n) => {
                staged.write_all(&piece[..n]).context(failed)?;
                progress.advance(n as u64);
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
    };
    let (digest, size, _) = hashing.finish();
    // skopeo knows best why a stream ended early.
    reader.finish()?;
    read.kind(Kind::Transport, || {
        format!("cannot read the blob {}", blob.digest)
    })?;
    if (digest, size) != (blob.digest, blob.size) {
        fail!(
            Kind::Invalid,
            "the blob {} is damaged: its bytes have the digest {digest}",
            blob.digest
        );
    }
    publish(staged, &path)
}

fn stage(parent: &Utf8Path) -> std::io::Result<tempfile::NamedTempFile> {
    tempfile::Builder::new().prefix(STAGED).tempfile_in(parent)
}

fn publish(staged: tempfile::NamedTempFile, path: &Utf8Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let failed = || format!("cannot write {path}");
    let mode = std::fs::Permissions::from_mode(0o644);
    staged.as_file().set_permissions(mode).context(failed)?;
    // In place of a link of git-annex's as well.
    staged.persist(path).context(failed)?;
    Ok(())
}

/// Small files, which are only written if they are not what they should be.
struct Files<'d> {
    directory: &'d Utf8Path,
    changed: usize,
}

impl Files<'_> {
    fn put(&mut self, path: &Utf8Path, bytes: &[u8]) -> Result<()> {
        let path = self.directory.join(path);
        let limit = bytes.len() as u64;
        if read_small(&path, limit).is_ok_and(|found| found == bytes) {
            return Ok(());
        }
        self.changed += 1;
        let failed = || format!("cannot write {path}");
        let parent = path.parent().unwrap_or(self.directory);
        let mut staged = stage(parent).context(failed)?;
        staged.write_all(bytes).context(failed)?;
        publish(staged, &path)
    }

    fn json(&mut self, name: &str, value: &Value) -> Result<()> {
        let text =
            serde_json::to_string_pretty(value).context(|| format!("cannot write {name}"))?;
        self.put(Utf8Path::new(name), (text + "\n").as_bytes())
    }

    fn write_index(&mut self, manifest: &[u8], digest: Digest, name: Option<&str>) -> Result<()> {
        let value: Value = serde_json::from_slice(manifest)
            .kind(Kind::Invalid, || "the manifest is not valid".into())?;
        let kind = value["mediaType"].as_str().unwrap_or(OCI_MANIFEST);
        let mut entry = json!({"mediaType": kind, "digest": digest, "size": manifest.len()});
        if let Some(name) = name {
            // What a layout calls a tag, and what containerd and docker call a name.
            let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
            entry["annotations"] = json!({
                "io.containerd.image.name": name,
                "org.opencontainers.image.ref.name": tag,
            });
        }
        self.json(
            "index.json",
            &json!({"schemaVersion": 2, "manifests": [entry]}),
        )?;
        self.put(
            Utf8Path::new("oci-layout"),
            json!({"imageLayoutVersion": "1.0.0"})
                .to_string()
                .as_bytes(),
        )
    }

    /// Unless somebody has others there.
    fn write_attributes(&mut self) -> Result<()> {
        if self.directory.join(ATTRIBUTES).exists() {
            return Ok(());
        }
        self.put(Utf8Path::new(ATTRIBUTES), SMALL_IN_GIT.as_bytes())
    }

    fn write_docker_manifest(
        &mut self,
        image: Digest,
        layers: &[Descriptor],
        name: Option<&str>,
    ) -> Result<()> {
        let layers: Vec<Utf8PathBuf> = layers.iter().map(|layer| blob_path(layer.digest)).collect();
        let tags: Vec<&str> = name.into_iter().collect();
        let item = json!({"Config": blob_path(image), "RepoTags": tags, "Layers": layers});
        self.json("manifest.json", &json!([item]))
    }

    fn write_notes(&mut self, origin: &Origin<'_>, layers: &[Descriptor]) -> Result<()> {
        let reference = origin.reference;
        let mut urls = BTreeMap::new();
        if let (Transport::Registry { insecure }, Some(name)) =
            (&reference.transport, &reference.name)
        {
            let scheme = if *insecure { "http" } else { "https" };
            let registry = match name.registry() {
                None | Some("docker.io") => "registry-1.docker.io",
                Some(registry) => registry,
            };
            for layer in layers {
                let url = format!(
                    "{scheme}://{registry}/v2/{}/blobs/{}",
                    name.repository(),
                    layer.digest
                );
                urls.insert(layer.digest.to_string(), vec![url]);
            }
        }
        self.json(
            NOTES,
            &json!({"version": VERSION, "source": origin.recorded, "name": origin.name.map(ToString::to_string), "urls": urls}),
        )
    }

    /// Remove blobs of images that were here before, and what killed ones left.
    fn remove_others(&mut self, kept: &[Digest]) -> Result<()> {
        let kept: BTreeSet<String> = kept.iter().map(Digest::hex).collect();
        let blobs = self.directory.join("blobs/sha256");
        let entries = blobs
            .read_dir_utf8()
            .context(|| format!("cannot list {blobs}"))?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let is_ours = Digest::from_hex(name).is_some() || name.starts_with(STAGED);
            if is_ours && !kept.contains(name) {
                safefs::remove_if_exists(entry.path().as_std_path())?;
                self.changed += 1;
            }
        }
        Ok(())
    }
}
