//! Listing, finding, deleting and pruning images.

use std::collections::HashSet;

use camino::Utf8Path;
use glib::Variant;
use ostree::{Repo, RepoPruneFlags};

use super::import::{PLATFORM_KEY, SOURCE_KEY};
use super::objects::{self, NO_CANCEL, metadata_string};
use super::writers::threads;
use super::{DEPLOYMENT_PREFIX, ImageTree, LayerRoot, Store};
use crate::config::Config;
use crate::error::{Context as _, Error, Kind, Result};
use crate::image::refname::{
    self, IMAGE_PREFIX, KEPT_PREFIX, RefKind, SIDE_PREFIX, TREE_PREFIX, blob_ref, image_ref,
    kept_ref, side_ref, tree_ref,
};
use crate::image::{Digest, ImageConfig, Manifest};
use crate::safefs::Files as _;
use crate::{fail, fault};

/// Configs are small; larger ones are an attack.
pub const MAX_CONFIG_BYTES: u64 = 8 * 1024 * 1024;

/// So many refs are read sooner than a thread starts.
const FEW_REFS: usize = 32;

/// Beginning of the names of scratch layouts beside the repository.
pub const EXPORT_SCRATCH: &str = ".export-";

/// An image in the store.
#[derive(Debug, Clone)]
pub struct StoredImage {
    /// Its name with tag, as pulled.
    pub name: String,
    /// The commit of its ref.
    pub commit: String,
    /// When it was pulled, seconds since 1970.
    pub created: u64,
    /// The manifest, unless the image is flat: its commit's tree is the root file system.
    pub manifest: Option<Manifest>,
    /// The exact bytes of the manifest.
    pub manifest_text: Option<String>,
    /// The manifest digest, or what stands for it in old stores.
    pub digest: Option<Digest>,
    /// The full reference it was pulled by; old stores do not know.
    pub source: Option<String>,
    /// The platform that was asked for when it was pulled.
    pub platform: Option<String>,
}

/// A layer or config in the store.
#[derive(Debug, Clone)]
pub struct StoredBlob {
    /// Its digest.
    pub digest: Digest,
    /// The commit of its ref.
    pub commit: String,
}

/// One ref that could not be read, and why; listings show it and go on.
#[derive(Debug, Clone)]
pub struct BrokenRef {
    /// The ref.
    pub name: String,
    /// Why it cannot be used.
    pub why: String,
}

/// All images, blobs and broken refs of a store.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    /// By name.
    pub images: Vec<StoredImage>,
    /// By digest.
    pub blobs: Vec<StoredBlob>,
    /// Refs below `ociimage/` that are neither.
    pub broken: Vec<BrokenRef>,
}

/// The names of the images in the store, read without a lock and without opening it: good enough for
/// a shell's completion, which must not wait.
pub fn image_names(config: &Config) -> Vec<String> {
    let refs = super::repository_path(config).join("refs/heads");
    let entries = refs.join(IMAGE_PREFIX).read_dir_utf8();
    let mut names: Vec<String> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            match refname::classify(&format!("{IMAGE_PREFIX}{}", entry.file_name())) {
                RefKind::Image(name) => Some(name),
                RefKind::Blob(_) | RefKind::Unknown => None,
            }
        })
        .collect();
    names.sort();
    names
}

impl StoredImage {
    /// The id shown to people: 64 hexadecimal digits.
    pub fn id(&self) -> String {
        self.digest
            .map_or_else(|| self.commit.clone(), |digest| digest.hex())
    }
}

/// What a ref below `ociimage/` is.
enum Entry {
    Image(Box<StoredImage>),
    Blob(StoredBlob),
    Broken(BrokenRef),
}

/// Many refs, in several threads. They are read as the files they are, which takes half the time of asking
/// libostree for a list.
fn entries(repository: &Utf8Path, names: &[String]) -> Result<Vec<Entry>> {
    let read = |names: &[String]| -> Vec<Entry> {
        let entry = |name: &String| {
            entry(repository, name).unwrap_or_else(|error| {
                Some(Entry::Broken(BrokenRef {
                    name: name.clone(),
                    why: error.to_string(),
                }))
            })
        };
        names.iter().filter_map(entry).collect()
    };
    if names.len() <= FEW_REFS {
        return Ok(read(names));
    }
    let parts = names.chunks(names.len().div_ceil(threads()));
    std::thread::scope(|scope| {
        let threads: Vec<_> = parts.map(|part| scope.spawn(move || read(part))).collect();
        let mut out = Vec::new();
        for thread in threads {
            let Ok(part) = thread.join() else {
                fail!(Kind::Failed, "a thread that reads images died");
            };
            out.extend(part);
        }
        Ok(out)
    })
}

/// One ref; nothing if it has gone meanwhile.
fn entry(repository: &Utf8Path, name: &str) -> Result<Option<Entry>> {
    let heads = repository.join("refs/heads");
    let commit = match std::fs::read_to_string(heads.join(name)) {
        Ok(text) => text.trim_end().to_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context(|| "cannot read the ref".into()),
    };
    Ok(Some(match refname::classify(name) {
        RefKind::Blob(digest) => Entry::Blob(StoredBlob { digest, commit }),
        RefKind::Image(image) => {
            let objects = repository.join("objects");
            let found = objects::read_commit_metadata_and_time(&objects, &commit)?;
            Entry::Image(image_of(found, &image, &commit)?.into())
        }
        RefKind::Unknown => fail!(Kind::Invalid, "its name is not an encoded image name"),
    }))
}

fn load_image(repo: &Repo, name: &str, commit: &str) -> Result<StoredImage> {
    let found = objects::commit_metadata_and_time(repo, commit)?;
    image_of(found, name, commit)
}

/// An image by its commit's metadata and time.
fn image_of((metadata, created): (Variant, u64), name: &str, commit: &str) -> Result<StoredImage> {
    // Gone over once: each look at an entry costs more than the rest.
    let keys = ["docker.manifest", "docker.digest", SOURCE_KEY, PLATFORM_KEY];
    let [manifest_text, digest, source, platform] = objects::metadata_strings(&metadata, keys);
    let manifest = manifest_text
        .as_deref()
        .map(|text| Manifest::parse(text.as_bytes()))
        .transpose()?;
    let digest = digest
        .and_then(|text| text.parse().ok())
        .or_else(|| manifest.as_ref().and_then(Manifest::config_digest));
    Ok(StoredImage {
        name: name.to_owned(),
        commit: commit.to_owned(),
        created,
        manifest,
        manifest_text,
        digest,
        source,
        platform,
    })
}

impl Store {
    /// Everything below `ociimage/`.
    pub fn inventory(&self) -> Result<Inventory> {
        let heads = self.path.join("refs/heads");
        let directory = heads.join(IMAGE_PREFIX);
        let failed = || "cannot list the refs of the repository".into();
        let mut names = Vec::new();
        match directory.read_dir_utf8() {
            Ok(entries) => {
                for entry in entries {
                    names.push(format!(
                        "{IMAGE_PREFIX}{}",
                        entry.context(failed)?.file_name()
                    ));
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context(failed),
        }
        names.sort();
        let mut inventory = Inventory::default();
        for entry in entries(&self.path, &names)? {
            match entry {
                Entry::Image(image) => inventory.images.push(*image),
                Entry::Blob(blob) => inventory.blobs.push(blob),
                Entry::Broken(broken) => inventory.broken.push(broken),
            }
        }
        Ok(inventory)
    }

    /// The image stored under exactly this name.
    pub fn image(&self, name: &str) -> Result<Option<StoredImage>> {
        match self.resolve(&image_ref(name))? {
            Some(commit) => load_image(&self.repo, name, &commit).map(Some),
            None => Ok(None),
        }
    }

    /// The image that was stored as `name` in this commit, even if the name has moved on since.
    pub fn image_at(&self, name: &str, commit: &str) -> Result<StoredImage> {
        load_image(&self.repo, name, commit)
    }

    /// The images that `text` means: the one of that name, else all whose id starts with it.
    pub fn find(&self, text: &str) -> Result<Vec<StoredImage>> {
        // A name as the store has it comes first: "docker:dind" is one, and a reference too.
        if let Some(image) = self.image(text)? {
            return Ok(vec![image]);
        }
        if let Ok(reference) = text.parse::<crate::image::Reference>()
            && let Ok(name) = reference.fallback_name()
            && let Some(image) = self.image(&name.to_string())?
        {
            return Ok(vec![image]);
        }
        let text = text.strip_prefix("sha256:").unwrap_or(text);
        if text.len() < 4 || !text.bytes().all(|c| c.is_ascii_hexdigit()) {
            return Ok(Vec::new());
        }
        let images = self.inventory()?.images;
        Ok(images
            .into_iter()
            .filter(|image| image.id().starts_with(text))
            .collect())
    }

    /// The one image that `text` means.
    pub fn find_one(&self, text: &str) -> Result<StoredImage> {
        let mut found = self.find(text)?;
        let ids: HashSet<String> = found.iter().map(StoredImage::id).collect();
        if ids.len() > 1 {
            fail!(Kind::Invalid, "more images matching prefix `{text}`");
        }
        match found.pop() {
            Some(image) => Ok(image),
            None => fail!(Kind::NotFound, "Cannot find image {text}."),
        }
    }

    /// The config of an image; an empty one where the store has none (schema1, flat images, or
    /// pruned by the original `atomic`).
    pub fn image_config(&self, image: &StoredImage) -> Result<ImageConfig> {
        let Some(digest) = image.manifest.as_ref().and_then(Manifest::config_digest) else {
            let mut config = ImageConfig::default();
            if let Some(Manifest::Schema1 { labels, .. }) = &image.manifest {
                config.config.labels = labels.clone();
            }
            return Ok(config);
        };
        match self.image_config_text(digest)? {
            Some(bytes) => ImageConfig::parse(&bytes),
            None => Ok(ImageConfig::default()),
        }
    }

    /// The exact bytes of an image config.
    pub fn image_config_text(&self, digest: Digest) -> Result<Option<Vec<u8>>> {
        match self.resolve(&blob_ref(digest))? {
            Some(commit) => ImageTree::open(&self.repo, &commit)?.read("content", MAX_CONFIG_BYTES),
            None => Ok(None),
        }
    }

    /// Commits of an image's layers, base first.
    pub fn layer_commits(&self, manifest: &Manifest) -> Result<Vec<String>> {
        manifest
            .layer_digests()
            .into_iter()
            .map(|digest| {
                self.resolve(&blob_ref(digest))?.ok_or_else(|| {
                    Error::new(
                        Kind::NotFound,
                        format!(
                            "Layer not found: {}.  Please pull the image again",
                            digest.hex()
                        ),
                    )
                })
            })
            .collect()
    }

    /// The commit whose tree is the image's root file system, made now if an older program pulled
    /// the image.
    pub fn image_tree(&self, image: &StoredImage) -> Result<String> {
        let (Some(manifest), Some(digest)) = (&image.manifest, image.digest) else {
            return Ok(image.commit.clone());
        };
        if let Some(commit) = self.resolve(&tree_ref(digest))? {
            return Ok(commit);
        }
        let layers = self
            .layer_commits(manifest)?
            .iter()
            .map(|commit| LayerRoot::of_commit(&self.repo, commit))
            .collect::<Result<Vec<_>>>()?;
        let import = self.import(false)?;
        let commit = import.tree(digest, &layers)?;
        import.commit()?;
        Ok(commit)
    }

    /// Compressed and uncompressed size of an image's layers in bytes, as far as known.
    pub fn image_size(&self, image: &StoredImage) -> Result<(u64, u64)> {
        let mut sizes = (0, 0);
        for digest in image
            .manifest
            .as_ref()
            .map(Manifest::layer_digests)
            .unwrap_or_default()
        {
            let (packed, unpacked) = self.layer_size(digest)?;
            sizes.0 += packed;
            sizes.1 += unpacked;
        }
        Ok(sizes)
    }

    /// What a stored layer is when it is not compressed, where that is on record.
    pub fn diff_id(&self, commit: &str) -> Result<Option<Digest>> {
        let metadata = objects::commit_metadata(&self.repo, commit)?;
        let text = objects::metadata_string(&metadata, "docker.uncompressed_digest");
        Ok(text.and_then(|text| text.parse().ok()))
    }

    /// The same of one layer, which many images may have.
    pub fn layer_size(&self, digest: Digest) -> Result<(u64, u64)> {
        if let Some(known) = self.layer_sizes.borrow().get(&digest) {
            return Ok(*known);
        }
        let Some(commit) = self.resolve(&blob_ref(digest))? else {
            return Ok((0, 0));
        };
        let metadata = objects::commit_metadata(&self.repo, &commit)?;
        let number = |key| {
            let text = metadata_string(&metadata, key);
            text.and_then(|text| text.parse().ok()).unwrap_or(0)
        };
        let sizes = (number("docker.size"), number("docker.uncompressed_size"));
        self.layer_sizes.borrow_mut().insert(digest, sizes);
        Ok(sizes)
    }

    /// Give an image another name.
    pub fn tag(&self, image: &StoredImage, name: &crate::image::Name) -> Result<()> {
        self.set_ref(&image_ref(&name.to_string()), Some(&image.commit))
    }

    /// Remove an image's ref. Its layers stay until [`Self::prune`].
    pub fn delete_image(&self, image: &StoredImage) -> Result<()> {
        self.set_ref(&image_ref(&image.name), None)
    }

    /// Remove blobs and trees that no image and no deployment uses, then objects that no ref
    /// reaches. `removed` hears each ref that goes. Returns objects and bytes freed.
    pub fn prune(&self, mut removed: impl FnMut(&str)) -> Result<(u64, u64)> {
        self.sweep_exports()?;
        super::writers::sweep(&self.path.join("tmp"));
        for name in self.unused_refs()? {
            self.set_ref(&name, None)?;
            removed(&name);
        }
        self.delete_loose_commits()?;
        fault::point("prune objects")?;
        let (_, objects, bytes) = self
            .repo
            .prune(RepoPruneFlags::REFS_ONLY, -1, NO_CANCEL)
            .context(|| "cannot prune the repository".into())?;
        Ok((u64::try_from(objects).unwrap_or(0), bytes))
    }

    /// Objects that no ref reaches now, and their bytes: what killed pulls left.
    pub fn unreachable(&self) -> Result<(u64, u64)> {
        let flags = RepoPruneFlags::REFS_ONLY | RepoPruneFlags::NO_PRUNE;
        let (_, objects, bytes) = self
            .repo
            .prune(flags, -1, NO_CANCEL)
            .context(|| "cannot read the repository".into())?;
        Ok((u64::try_from(objects).unwrap_or(0), bytes))
    }

    fn sweep_exports(&self) -> Result<()> {
        // The lock is ours alone, so these are of exports that were killed.
        let parent = self.path.parent().unwrap_or(&self.path);
        for entry in parent.read_dir_utf8().into_iter().flatten().flatten() {
            if entry.file_name().starts_with(EXPORT_SCRATCH) {
                crate::safefs::remove_tree(entry.path().as_std_path())?;
            }
        }
        Ok(())
    }

    /// The refs that [`Self::prune`] would remove: blobs and trees that no image and no deployment
    /// uses.
    pub fn unused_refs(&self) -> Result<Vec<String>> {
        let mut used = HashSet::new();
        let inventory = self.inventory()?;
        for image in &inventory.images {
            keep(&mut used, image.manifest.as_ref(), image.digest);
        }
        let refs = self
            .repo
            .list_refs(None, NO_CANCEL)
            .context(|| "cannot list the refs of the repository".into())?;
        for (name, commit) in &refs {
            if name.starts_with(DEPLOYMENT_PREFIX) {
                let metadata = match objects::commit_metadata(&self.repo, commit) {
                    Ok(metadata) => metadata,
                    Err(error) => {
                        tracing::warn!(%name, %error, "what this deployment needs is not known");
                        continue;
                    }
                };
                let manifest = metadata_string(&metadata, "docker.manifest")
                    .and_then(|text| Manifest::parse(text.as_bytes()).ok());
                let digest =
                    metadata_string(&metadata, "docker.digest").and_then(|text| text.parse().ok());
                keep(&mut used, manifest.as_ref(), digest);
            }
        }
        let is_unused = |name: &String| match refname::classify(name) {
            RefKind::Blob(digest) => !used.contains(&blob_ref(digest)),
            RefKind::Unknown
                if [TREE_PREFIX, SIDE_PREFIX, KEPT_PREFIX]
                    .iter()
                    .any(|prefix| name.starts_with(prefix)) =>
            {
                !used.contains(name.as_str())
            }
            RefKind::Unknown => name.starts_with(IMAGE_PREFIX),
            RefKind::Image(_) => false,
        };
        let mut unused: Vec<String> = refs
            .keys()
            .map(ToString::to_string)
            .filter(is_unused)
            .collect();
        unused.sort();
        Ok(unused)
    }
}

impl Store {
    /// Delete commits of ours that no ref names, before anything below them goes: libostree prunes
    /// in no order, and a commit that a kill left without its tree would pass for damage.
    fn delete_loose_commits(&self) -> Result<()> {
        let refs = self
            .repo
            .list_refs(None, NO_CANCEL)
            .context(|| "cannot list the refs of the repository".into())?;
        let named: HashSet<&str> = refs.values().map(String::as_str).collect();
        let all = self
            .repo
            .list_commit_objects_starting_with(None, NO_CANCEL)
            .context(|| "cannot list the commits of the repository".into())?;
        for commit in &all {
            let ours = |metadata: glib::Variant| {
                ["docker.size", "docker.manifest", "atomic-rs.format"]
                    .iter()
                    .any(|key| objects::metadata_value(&metadata, key).is_some())
            };
            if !named.contains(commit.as_str())
                && objects::commit_metadata(&self.repo, commit).is_ok_and(ours)
            {
                self.repo
                    .delete_object(ostree::ObjectType::Commit, commit, NO_CANCEL)
                    .context(|| format!("cannot delete the commit {commit}"))?;
            }
        }
        Ok(())
    }
}

fn keep(used: &mut HashSet<String>, manifest: Option<&Manifest>, digest: Option<Digest>) {
    if let Some(digest) = digest {
        used.insert(tree_ref(digest));
    }
    if let Some(manifest) = manifest {
        used.extend(
            manifest
                .layer_digests()
                .into_iter()
                .chain(manifest.config_digest())
                .flat_map(|digest| [blob_ref(digest), side_ref(digest), kept_ref(digest)]),
        );
    }
}
