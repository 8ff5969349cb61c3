//! One layer of an image that lives in a registry: set up, replaced, taken away, without the image being pulled.
//!
//! - [`image`]: the change as data
//! - [`pack`], `walk`: a directory as a layer
//! - `index`: an image of several platforms
//! - [`unpack`]: a layer as a directory
//!
//! An update uploads one layer, one config and one manifest of each platform; all other layers stay where they are. The
//! commit point is one PUT, of the tag: until then nothing that anybody pulls is another. Before it the tag is looked at
//! again, and after it once more: whoever else has moved it meanwhile is told of, not overruled.

pub mod image;
mod index;
pub mod pack;
mod unpack;
mod walk;

use std::path::PathBuf;
use std::rc::Rc;
use std::str::FromStr;

use jiff::Timestamp;

use crate::config::Config;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::image::digest::Hashing;
use crate::image::{Digest, Name, Reference, Transport};
use crate::registry::{Access, Blob, Registry, Uploaded};
use crate::safefs::{self, Lock, Mode};
use image::{Compression, Described, Image, Layer, LayerName};
use index::{Entry, Source};
use pack::{Content, Owner, Packed, pack};
pub use unpack::{Unpacked, unpack};

/// Where a changed image is put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Beside the one that is changed.
    Tag(String),
    /// In another repository of the same registry.
    Name(Name),
}

impl FromStr for Destination {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.contains(['/', ':', '@']) {
            let reference: Reference = text.parse()?;
            let (Transport::Registry { .. }, Some(name)) = (reference.transport, reference.name)
            else {
                fail!(Kind::Usage, "\"{text}\" is not on a registry");
            };
            if name.digest().is_some() {
                fail!(
                    Kind::Usage,
                    "\"{text}\" is a digest, which cannot be changed"
                );
            }
            return Ok(Self::Name(name));
        }
        // Whatever is a tag makes a name.
        format!("x:{text}").parse::<Name>().map_err(|_| {
            Error::new(
                Kind::Usage,
                format!("\"{text}\" is neither a tag nor the name of an image"),
            )
        })?;
        Ok(Self::Tag(text.to_owned()))
    }
}

/// What is to become of the layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<'a> {
    /// There is one: an empty directory, if there is none yet.
    SetUp {
        /// Also where the destination has one that is not empty.
        anew: bool,
    },
    /// It has this content; one that is not there yet is set up.
    Update {
        /// What is in it.
        content: Content<'a>,
        /// How it is stored.
        compression: Compression,
        /// Who owns it, if not who owns the files.
        owner: Owner,
    },
    /// There is none.
    Remove,
}

/// What is wanted.
#[derive(Debug)]
pub struct Request<'a> {
    /// The image.
    pub image: &'a Name,
    /// Where it goes; nothing: see [`Injection::prepare`].
    pub destination: Option<&'a Destination>,
    /// Which layer.
    pub layer: &'a LayerName,
    /// What becomes of it.
    pub change: Change<'a>,
    /// How to reach the registry. The platform, if there is one, is the only one of an index that is changed.
    pub access: &'a Access,
}

/// What takes a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A layer is made of files.
    Pack,
    /// A blob goes from one repository to another.
    Copy,
    /// A layer is uploaded.
    Upload,
    /// A layer is read.
    Fetch,
}

/// Hears how far it is.
pub trait Progress {
    /// Something begins that is known to have so many bytes, or is not known.
    fn begin(&mut self, what: Work, bytes: Option<u64>);
    /// So many more of them.
    fn advance(&mut self, bytes: u64);
    /// It ends.
    fn end(&mut self);
}

/// Something that is to be in the repository of the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// `layer`, `config` or `manifest`
    pub what: &'static str,
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// How it came there; nothing before it did.
    pub uploaded: Option<Uploaded>,
}

/// A change that is ready to be made.
pub struct Injection {
    source: Rc<Registry>,
    destination: Rc<Registry>,
    tag: String,
    /// What the tag names now.
    before: Option<Digest>,
    packed: Option<Packed>,
    /// Whether the new layer is part of what is put there.
    is_layer_new: bool,
    /// What stays as it is, where that is in another repository.
    old_blobs: Vec<Digest>,
    old_manifests: Vec<(Vec<u8>, String)>,
    configs: Vec<Vec<u8>>,
    manifests: Vec<(Vec<u8>, String)>,
    top: (Vec<u8>, String),
    lock: PathBuf,
    /// Attestations of images that are others now.
    dropped: usize,
}

impl Injection {
    /// Read the image, and make what is needed. Nothing is changed in the registry.
    ///
    /// Without a destination it is the tag that was read, if that image has the layer already; else the tag of the
    /// layer's name, so that an image without it is never put out of the way.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no such image, or no such layer to remove.
    pub fn prepare(
        config: &Config,
        request: &Request<'_>,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        let registry = Rc::new(Registry::open(request.image, request.access)?);
        let source = Source::read(&registry, request.image, request.access.platform.as_ref())?;
        let has_layer = source.images().any(|image| has(image, request.layer));
        let (destination, tag) = destination(request, &registry, has_layer)?;
        if !registry.is_beside(&destination) {
            fail!(
                Kind::Usage,
                "the destination is on another registry: copy the image there first, as with \"skopeo copy --all\""
            );
        }
        let is_elsewhere = destination.repository() != registry.repository();
        let is_tag = request.image.digest().is_none() && request.image.tag() == Some(tag.as_str());
        let is_here = is_tag && !is_elsewhere;
        let old = if is_here {
            Some(source.top.clone())
        } else {
            destination.manifest(&tag)?
        };
        let packed = make_layer(config, request, &source, progress)?;
        if let (Change::SetUp { anew: false }, Some(old), false) = (&request.change, &old, is_here)
        {
            // What others see there is not put out of the way by nothing.
            let old = Source::of(&destination, old.clone(), None)?;
            let is_full = |image: &Image| {
                let found = image.find(request.layer);
                let made = packed.as_ref().map(|packed| packed.described.diff_id);
                found.is_some_and(|found| Some(found.described.diff_id) != made)
            };
            if old.images().any(is_full) {
                fail!(
                    Kind::Exists,
                    "{}:{tag} has a layer \"{}\" already: \"inject update\" replaces it, --force begins anew",
                    destination.shown(),
                    request.layer
                );
            }
        }
        let epoch = source_date_epoch()?;
        let mut is_layer_new = false;
        let changed = source.change(&mut |image| {
            let found = image.find(request.layer);
            match (&request.change, &packed) {
                (Change::Remove, _) => Ok(image.remove(request.layer)),
                (Change::SetUp { .. }, _) if found.is_some() => Ok(false),
                (_, Some(packed)) => {
                    let diff_id = packed.described.diff_id;
                    if found.is_some_and(|found| found.described.diff_id == diff_id) {
                        return Ok(false);
                    }
                    is_layer_new = true;
                    let compression = match request.change {
                        Change::Update { compression, .. } => compression,
                        _ => Compression::default(),
                    };
                    let created = when(epoch, packed.newest, &image.config().created);
                    image.set(request.layer, &packed.described, compression, &created)?;
                    Ok(true)
                }
                (_, None) => Ok(false),
            }
        })?;
        let (old_blobs, old_manifests) = if is_elsewhere {
            (changed.old_blobs, changed.old_manifests)
        } else {
            (Vec::new(), Vec::new())
        };
        Ok(Self {
            before: old.map(|old| old.digest),
            lock: lock_of(config, &destination, &tag)?,
            source: registry,
            destination,
            tag,
            packed,
            is_layer_new,
            old_blobs,
            old_manifests,
            configs: changed.configs,
            manifests: changed.manifests,
            top: changed.top,
            dropped: changed.dropped,
        })
    }

    /// The image that it becomes.
    pub fn name(&self) -> String {
        format!("{}:{}", self.destination.shown(), self.tag)
    }

    /// The digest that the tag is going to name.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.top.0)
    }

    /// Whether the tag names another one now.
    pub fn changes(&self) -> bool {
        self.before != Some(self.digest())
    }

    /// Attestations that go, because they are of images that are others now.
    pub fn dropped(&self) -> usize {
        self.dropped
    }

    /// Paths that the layer cannot have.
    pub fn left_out(&self) -> &[String] {
        self.packed
            .as_ref()
            .map_or(&[], |packed| packed.left_out.as_slice())
    }

    /// Permission bits that the image's own root gets by the layer.
    pub fn root_mode(&self) -> Option<u32> {
        self.packed.as_ref()?.root_mode
    }

    /// The layer that was made for it, if one was.
    pub fn layer(&self) -> Option<&Described> {
        self.packed.as_ref().map(|packed| &packed.described)
    }

    /// All that is to be in the destination's repository, as far as it is new.
    pub fn parts(&self) -> Vec<Part> {
        let part = |what, bytes: &[u8]| Part {
            what,
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            uploaded: None,
        };
        let mut out = Vec::new();
        if !self.changes() {
            return out;
        }
        if let (Some(layer), true) = (self.layer(), self.is_layer_new) {
            out.push(Part {
                what: "layer",
                digest: layer.digest,
                size: layer.size,
                uploaded: None,
            });
        }
        out.extend(self.configs.iter().map(|bytes| part("config", bytes)));
        out.extend(
            self.manifests
                .iter()
                .map(|(bytes, _)| part("manifest", bytes)),
        );
        out.push(part("manifest", &self.top.0));
        out
    }

    /// Make the change.
    ///
    /// # Errors
    /// [`Kind::Failed`] if somebody else has moved the tag since [`Self::prepare`]; then it stays as they left it. If
    /// anything fails, the tag names what it named before.
    pub fn apply(self, progress: &mut dyn Progress) -> Result<Vec<Part>> {
        let mut parts = self.parts();
        if parts.is_empty() {
            return Ok(parts);
        }
        let mut put = |digest: Digest, uploaded: Uploaded| {
            for part in parts.iter_mut().filter(|part| part.digest == digest) {
                part.uploaded = Some(uploaded);
            }
        };
        for digest in &self.old_blobs {
            self.carry(*digest, progress)?;
        }
        for (manifest, media_type) in &self.old_manifests {
            self.destination.put_manifest(None, manifest, media_type)?;
        }
        if let (Some(packed), true) = (&self.packed, self.is_layer_new) {
            let blob = Blob {
                digest: packed.described.digest,
                file: &packed.file,
                size: packed.described.size,
            };
            progress.begin(Work::Upload, Some(blob.size));
            let uploaded = self
                .destination
                .upload(&blob, &mut |bytes| progress.advance(bytes))?;
            progress.end();
            put(blob.digest, uploaded);
        }
        for config in &self.configs {
            let uploaded = self.upload_bytes(config)?;
            put(Digest::of(config), uploaded);
        }
        for (manifest, media_type) in &self.manifests {
            let digest = self.destination.put_manifest(None, manifest, media_type)?;
            put(digest, Uploaded::Sent);
        }
        self.commit()?;
        put(self.digest(), Uploaded::Sent);
        Ok(parts)
    }

    /// Move the tag, if it is where it was.
    fn commit(&self) -> Result<()> {
        // Two of this host come one after the other; against others there is the look before and after.
        let _lock = Lock::take(&self.lock, Mode::Exclusive, &self.name())?;
        let found = self.destination.digest_of(&self.tag)?;
        if found != self.before {
            return Err(self.overtaken(found));
        }
        let (bytes, media_type) = &self.top;
        let put = self
            .destination
            .put_manifest(Some(&self.tag), bytes, media_type);
        let found = self.destination.digest_of(&self.tag)?;
        match put {
            // The answer may have been lost, and not what it was about.
            Err(error) if found == self.before => Err(error),
            _ if found == Some(self.digest()) => Ok(()),
            _ => Err(self.overtaken(found)),
        }
    }

    fn overtaken(&self, found: Option<Digest>) -> Error {
        let now = match found {
            Some(digest) => format!("it is {digest} now"),
            None => "it is gone".into(),
        };
        Error::new(
            Kind::Failed,
            format!(
                "{} was changed by somebody else meanwhile ({now}) and stays as they left it: run this again for what it is now",
                self.name()
            ),
        )
    }

    /// Have a blob of the source's repository in the destination's.
    fn carry(&self, digest: Digest, progress: &mut dyn Progress) -> Result<()> {
        if self.destination.mount(digest, self.source.repository())? {
            return Ok(());
        }
        let failed = || format!("cannot copy the blob {digest}");
        let file = tempfile::tempfile().context(failed)?;
        let mut blob = Hashing::new(self.source.blob(digest)?);
        std::io::copy(&mut blob, &mut &file).context(failed)?;
        let (found, size, _) = blob.finish();
        if found != digest {
            fail!(
                Kind::Invalid,
                "the blob {digest} of {} does not have that digest",
                self.source.shown()
            );
        }
        let blob = Blob {
            digest,
            file: &file,
            size,
        };
        progress.begin(Work::Copy, Some(size));
        self.destination
            .upload(&blob, &mut |bytes| progress.advance(bytes))?;
        progress.end();
        Ok(())
    }

    fn upload_bytes(&self, bytes: &[u8]) -> Result<Uploaded> {
        use std::io::Write as _;
        let failed = || "cannot write a temporary file".into();
        let mut file = tempfile::tempfile().context(failed)?;
        file.write_all(bytes).context(failed)?;
        let blob = Blob {
            digest: Digest::of(bytes),
            file: &file,
            size: bytes.len() as u64,
        };
        self.destination.upload(&blob, &mut |_| ())
    }
}

/// The injected layers of an image, for each of its platforms.
pub fn list(image: &Name, access: &Access) -> Result<Vec<(Option<String>, Vec<Layer>)>> {
    let registry = Registry::open(image, access)?;
    let source = Source::read(&registry, image, access.platform.as_ref())?;
    let entries = source.entries.iter().filter_map(|entry| match entry {
        Entry::Image {
            platform, image, ..
        } => Some((platform.clone(), image.injected())),
        Entry::Other(_) => None,
    });
    Ok(entries.collect())
}

fn has(image: &Image, layer: &LayerName) -> bool {
    image.find(layer).is_some()
}

fn make_layer(
    config: &Config,
    request: &Request<'_>,
    source: &Source,
    progress: &mut dyn Progress,
) -> Result<Option<Packed>> {
    let has_all = source.images().all(|image| has(image, request.layer));
    let empty = Content::Empty(request.layer);
    let (content, compression, owner) = match &request.change {
        Change::Update {
            content,
            compression,
            owner,
        } => (content, *compression, *owner),
        Change::SetUp { .. } if !has_all => (&empty, Compression::default(), None),
        Change::SetUp { .. } => return Ok(None),
        Change::Remove => {
            if !source.images().any(|image| has(image, request.layer)) {
                fail!(
                    Kind::NotFound,
                    "{} has no layer \"{}\"",
                    request.image,
                    request.layer
                );
            }
            return Ok(None);
        }
    };
    progress.begin(Work::Pack, None);
    let packed = pack(
        content,
        compression,
        owner,
        &config.interrupt,
        &mut |bytes| progress.advance(bytes),
    );
    progress.end();
    packed.map(Some)
}

/// The repository and the tag that are meant.
fn destination(
    request: &Request<'_>,
    source: &Rc<Registry>,
    has_layer: bool,
) -> Result<(Rc<Registry>, String)> {
    let tag = match (request.destination, request.image.tag()) {
        (Some(Destination::Name(name)), _) => {
            let mut name = name.clone();
            if name.registry().is_none()
                && let Some(registry) = request.image.registry()
            {
                name = format!("{registry}/{name}").parse()?;
            }
            let tag = name.tag().unwrap_or("latest").to_owned();
            if name.without_tag() == request.image.without_tag() {
                return Ok((source.clone(), tag));
            }
            return Ok((Rc::new(Registry::open(&name, request.access)?), tag));
        }
        (Some(Destination::Tag(tag)), _) => tag,
        (None, _) if request.image.digest().is_some() => fail!(
            Kind::Usage,
            "{} names a digest, which cannot be changed: --dest says where the changed image goes",
            request.image
        ),
        (None, Some(tag)) if has_layer => tag,
        (None, _) => request.layer.as_str(),
    };
    Ok((source.clone(), tag.to_owned()))
}

/// The time that builds are to say it is. Source: reproducible-builds.org, `SOURCE_DATE_EPOCH`.
fn source_date_epoch() -> Result<Option<i64>> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => {
            let bad = || format!("SOURCE_DATE_EPOCH is \"{text}\"");
            text.parse().kind(Kind::Usage, bad).map(Some)
        }
        Err(_) => Ok(None),
    }
}

/// When a layer is said to have been made: when the newest of its files was changed, or its image if that is later. So
/// the same image and the same files are the same image again.
fn when(epoch: Option<i64>, newest: i64, image: &str) -> String {
    let image = image.parse::<Timestamp>().ok();
    let seconds = epoch.unwrap_or_else(|| newest.max(image.map_or(0, Timestamp::as_second)));
    let time = Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Where a person's injectors of this host meet, whatever store they use.
fn lock_of(config: &Config, destination: &Registry, tag: &str) -> Result<PathBuf> {
    let runtime = || std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty());
    let directory = if rustix::process::geteuid().is_root() {
        PathBuf::from("/run/lock/atomic-rs-inject")
    } else if let Some(runtime) = runtime() {
        PathBuf::from(runtime).join("atomic-rs-inject")
    } else {
        config.checkouts.join(".inject").into()
    };
    std::fs::create_dir_all(directory.parent().unwrap_or(&directory))
        .context(|| format!("cannot create {}", directory.display()))?;
    safefs::make_private_dir(&directory)?;
    let name = Digest::of(format!("{}:{tag}", destination.shown()).as_bytes());
    Ok(directory.join(name.hex()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_a_tag_or_a_name() {
        let tag = |text: &str| Destination::Tag(text.into());
        for (text, wanted) in [
            ("cvmfs", tag("cvmfs")),
            ("1.2_3-4", tag("1.2_3-4")),
            ("app:1", Destination::Name("app:1".parse().unwrap())),
            (
                "docker://h:1/a",
                Destination::Name("h:1/a".parse().unwrap()),
            ),
        ] {
            assert_eq!(text.parse::<Destination>().unwrap(), wanted, "{text}");
        }
        let digest = format!("a@sha256:{}", "0".repeat(64));
        for bad in ["", "-x", "a b", digest.as_str()] {
            assert!(bad.parse::<Destination>().is_err(), "{bad}");
        }
    }
}
