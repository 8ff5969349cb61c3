//! Reference in, stored image out: the one door through which images come.

mod layers;
mod tar;

use crate::config::Config;
use crate::error::{Kind, Result};
use crate::fail;
use crate::image::refname;
use crate::image::{
    Descriptor, Digest, ImageConfig, Manifest, Name, Platform, Reference, Transport,
};
use crate::store::images::{MAX_CONFIG_BYTES, StoredImage};
use crate::store::{self, LayerRoot, Recorded, Store};
use crate::transport::{self, Access, FetchedManifest, Source};
use layers::Wanted;
pub use tar::{import_layers, import_tar, with_inflated, with_unpacked};

/// Hears how a pull goes, from several threads in turn.
pub trait Progress: Send {
    /// `layers` layers of `bytes` bytes in all will be fetched; `present` are in the store already.
    fn begin(&mut self, layers: usize, present: usize, bytes: u64);
    /// A layer's turn.
    fn layer(&mut self, digest: Digest, bytes: u64);
    /// So many more bytes have arrived.
    fn advance(&mut self, bytes: u64);
    /// All layers are in.
    fn end(&mut self);
}

/// Says nothing.
pub struct Silent;

impl Progress for Silent {
    fn begin(&mut self, _: usize, _: usize, _: u64) {}
    fn layer(&mut self, _: Digest, _: u64) {}
    fn advance(&mut self, _: u64) {}
    fn end(&mut self) {}
}

/// What a pull did.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// The image as it is stored, whatever becomes of its name meanwhile.
    pub image: StoredImage,
    /// Further names its archive has for it, under which it is stored as well.
    pub also: Vec<Name>,
    /// The manifest digest.
    pub digest: Digest,
    /// What the image is made for, if that is not this machine.
    pub foreign: Option<Platform>,
    /// How many layers were fetched.
    pub fetched: usize,
    /// Entries of those layers that `OSTree` cannot hold.
    pub skipped: u64,
    /// The store already had this very image under this name.
    pub unchanged: bool,
}

/// What was brought into the store: as in [`Pulled`], and the commit of the image, or of its tree alone.
#[derive(Default)]
struct BroughtIn {
    commit: String,
    fetched: usize,
    skipped: u64,
    foreign: Option<Platform>,
}

/// An image at its source: known, and not fetched yet.
pub struct Remote {
    source: Source,
    fetched: FetchedManifest,
    config: Descriptor,
    layers: Vec<Descriptor>,
    name: Name,
    also: Vec<Name>,
    recorded: Recorded,
}

impl Remote {
    /// Ask the source what `reference` is; the host's policy is obeyed already here.
    ///
    /// # Errors
    /// [`Kind::Transport`], [`Kind::NotFound`] from the source, [`Kind::Policy`] if the host's
    /// policy rejects it.
    pub fn open(config: &Config, reference: &Reference, access: &Access) -> Result<Self> {
        let _held = config.interrupt.hold();
        let source = Source::open(&config.skopeo, reference, access, &config.interrupt)?;
        let mut names = stored_names(config, reference).into_iter();
        let name = match names.next() {
            Some(name) => name,
            None => reference.fallback_name()?,
        };
        let fetched = source.manifest()?;
        let Manifest::Image {
            config: image,
            layers,
            ..
        } = fetched.manifest.clone()
        else {
            fail!(Kind::Invalid, "\"{reference}\" is not an image manifest");
        };
        transport::enforce_policy(config, &source, &fetched)?;
        tracing::debug!("is open");
        if let Some(wanted) = &access.platform {
            let found = ImageConfig::parse(&source.read_blob(&image, MAX_CONFIG_BYTES)?)?;
            check_platform(&found, wanted)?;
        }
        Ok(Self {
            source,
            fetched,
            config: image,
            layers,
            name,
            also: names.collect(),
            recorded: Recorded {
                source: reference.to_string(),
                platform: access.platform.as_ref().map(ToString::to_string),
            },
        })
    }

    /// The name it is stored under.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The manifest digest.
    pub fn digest(&self) -> Digest {
        self.fetched.digest
    }

    /// The platform that was asked for.
    pub fn platform(&self) -> Option<&str> {
        self.recorded.platform.as_deref()
    }

    /// Its manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.fetched.manifest
    }

    /// Its layers, base first.
    pub fn layers(&self) -> &[Descriptor] {
        &self.layers
    }

    /// Its layers and config that are not in the store.
    pub fn missing(&self, store: &Store) -> Result<Vec<&Descriptor>> {
        store::missing_blobs(store, &self.fetched.manifest)
    }

    /// True if the store has this very image under its name, whole and not known to be damaged.
    pub fn is_stored(&self, store: &Store) -> Result<bool> {
        Ok(self.stored(store)?.is_some())
    }

    fn stored(&self, store: &Store) -> Result<Option<StoredImage>> {
        let found = store.image(&self.name.to_string())?.filter(|image| {
            image.digest == Some(self.fetched.digest) && image.platform == self.recorded.platform
        });
        let Some(image) = found else {
            return Ok(None);
        };
        let is_whole = self.missing(store)?.is_empty()
            && !store.is_image_marked(&self.name, self.fetched.digest)?;
        Ok(is_whole.then_some(image))
    }

    /// Its config, read from the source.
    pub fn image_config(&self) -> Result<ImageConfig> {
        ImageConfig::parse(&self.source.read_blob(&self.config, MAX_CONFIG_BYTES)?)
    }

    /// Bring it into the store under another name than its own, and with another reference on record.
    pub fn fetch_as(
        mut self,
        config: &Config,
        store: &Store,
        name: &Name,
        source: String,
        progress: &mut dyn Progress,
    ) -> Result<Pulled> {
        self.name = name.clone();
        self.also.clear();
        self.recorded.source = source;
        self.fetch(config, store, progress)
    }

    /// Bring what is missing or damaged of an image that is deployed into the store; no name is
    /// changed.
    pub fn heal(self, config: &Config, store: &Store, progress: &mut dyn Progress) -> Result<()> {
        let _held = config.interrupt.hold();
        self.bring_in(config, store, false, progress).map(drop)
    }

    /// Bring it into the store; only blobs that are missing are read.
    ///
    /// # Errors
    /// [`Kind::Transport`] from the source, [`Kind::Invalid`] if its bytes are not what their
    /// digests say. Nothing is stored then.
    pub fn fetch(
        self,
        config: &Config,
        store: &Store,
        progress: &mut dyn Progress,
    ) -> Result<Pulled> {
        let _held = config.interrupt.hold();
        let known = self.stored(store)?;
        let unchanged = known.is_some();
        let (image, new) = if let Some(image) = known {
            (image, BroughtIn::default())
        } else {
            let new = self.bring_in(config, store, true, progress)?;
            (store.image_at(&self.name.to_string(), &new.commit)?, new)
        };
        for name in &self.also {
            store.tag(&image, name)?;
        }
        Ok(Pulled {
            image,
            also: self.also,
            digest: self.fetched.digest,
            foreign: new.foreign,
            fetched: new.fetched,
            skipped: new.skipped,
            unchanged,
        })
    }

    /// Bring what is missing into the store, the image itself only if it `is_named`.
    fn bring_in(
        &self,
        config: &Config,
        store: &Store,
        is_named: bool,
        progress: &mut dyn Progress,
    ) -> Result<BroughtIn> {
        let (source, fetched, layers) = (&self.source, &self.fetched, &self.layers);
        let missing = self.missing(store)?;
        let is_missing = |blob: &Descriptor| missing.iter().any(|m| m.digest == blob.digest);
        let config_bytes = source.read_blob(&self.config, MAX_CONFIG_BYTES)?;
        let image_config = ImageConfig::parse(&config_bytes)?;
        let diff_ids = image_config.diff_ids(layers.len())?;
        let mut wanted: Vec<Wanted<'_>> = Vec::new();
        for (layer, diff_id) in layers.iter().zip(diff_ids) {
            let is_known = |known: &Wanted<'_>| known.layer.digest == layer.digest;
            if is_missing(layer) && !wanted.iter().any(is_known) {
                let diff_id = *diff_id;
                wanted.push(Wanted { layer, diff_id });
            }
        }
        let bytes = wanted.iter().map(|wanted| wanted.layer.size).sum();
        let present = layers.iter().filter(|layer| !is_missing(layer)).count();
        progress.begin(wanted.len(), present, bytes);
        let import = store.import(config.keep_blobs)?;
        tracing::debug!(layers = wanted.len(), bytes, "pull");
        let read = layers::fetch(
            &import,
            source,
            &wanted,
            config.import_memory_bytes,
            progress,
        )?;
        let mut imported: Vec<(Digest, LayerRoot)> = Vec::new();
        let mut skipped = 0;
        for (wanted, layer) in wanted.iter().zip(read) {
            import.layer(wanted.layer, &layer)?;
            skipped += layer.skipped;
            imported.push((wanted.layer.digest, layer.root));
        }
        let mut roots: Vec<LayerRoot> = Vec::with_capacity(layers.len());
        for (number, layer) in layers.iter().enumerate() {
            if let Some((_, root)) = imported.iter().find(|(digest, _)| *digest == layer.digest) {
                roots.push(root.clone());
                continue;
            }
            let Some(commit) = store.resolve(&refname::blob_ref(layer.digest))? else {
                fail!(
                    Kind::NotFound,
                    "the layer {} was removed from the store meanwhile: pull the image again",
                    layer.digest
                );
            };
            // A config that somebody else wrote may claim what it likes of a layer that is here.
            if let (Some(known), Some(claimed)) = (store.diff_id(&commit)?, diff_ids.get(number))
                && known != *claimed
            {
                fail!(
                    Kind::Invalid,
                    "the layer {} unpacks to {known}, but the image config says {claimed}",
                    layer.digest
                );
            }
            roots.push(LayerRoot::of_commit(store.repo(), &commit)?);
        }
        progress.end();
        if is_missing(&self.config) {
            import.config(self.config.digest, &config_bytes)?;
        }
        let commit = if is_named {
            let (name, recorded) = (&self.name, &self.recorded);
            import.image(name, recorded, &fetched.bytes, fetched.digest, &roots)?
        } else {
            import.tree(fetched.digest, &roots)?
        };
        import.commit()?;
        Ok(BroughtIn {
            commit,
            fetched: wanted.len(),
            skipped,
            foreign: image_config.foreign_platform(),
        })
    }
}

/// Bring the image at `reference` into the store: [`Remote::open`] and [`Remote::fetch`].
pub fn pull(
    config: &Config,
    store: &Store,
    reference: &Reference,
    access: &Access,
    progress: &mut dyn Progress,
) -> Result<Pulled> {
    Remote::open(config, reference, access)?.fetch(config, store, progress)
}

/// Refuse an image for another platform than was asked for: one that is not in an index is what it
/// is, whatever skopeo is told.
fn check_platform(config: &ImageConfig, wanted: &Platform) -> Result<()> {
    match config.platform() {
        Some(found) if !found.matches(wanted) => fail!(
            Kind::NotFound,
            "the image is not made for {wanted}, only for {found}"
        ),
        _ => Ok(()),
    }
}

/// The names an image is stored under, where its archive has some and none was typed.
fn stored_names(config: &Config, reference: &Reference) -> Vec<Name> {
    match (&reference.transport, &reference.name) {
        (Transport::DockerArchive { .. }, None) => {
            transport::archive_names(&config.skopeo, reference)
        }
        (_, name) => name.iter().cloned().collect(),
    }
}

/// The images of an archive of `docker save`, one reference for each of its names; any other
/// reference, and an archive without names, stands for itself.
pub fn all_in(config: &Config, reference: &Reference) -> Vec<Reference> {
    let names = stored_names(config, reference);
    if names.is_empty() {
        return vec![reference.clone()];
    }
    names
        .into_iter()
        .map(|name| Reference {
            transport: reference.transport.clone(),
            name: Some(name),
        })
        .collect()
}
