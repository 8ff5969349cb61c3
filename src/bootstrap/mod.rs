//! An image as a root filesystem: a directory, or disk images without a boot loader.
//!
//! - [`ids`]: other owners than in the image
//! - `owners`: whose files are where root does not make them
//! - [`namespace`]: files of the caller's subordinate ids
//! - [`password`]: that of root
//! - `lay`: the layers, one after the other, into a directory
//! - `directory`: beside its place, and renamed when it is whole
//! - `disk`, `mounted`: a file system for them, and an image of it after each layer
//! - `script`, `model`: the same without a mount, for those who may not
//! - `extents`: what of a file system cannot have changed
//! - `superblock`: whether a file system has a journal
//! - `qcow2`: the format of these
//! - [`template`]: files of virt-builder's templates

mod directory;
mod disk;
mod extents;
pub mod ids;
mod lay;
mod model;
mod mounted;
pub mod namespace;
mod owners;
pub mod password;
mod qcow2;
mod script;
mod superblock;
pub mod template;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::image::Digest;
use crate::pull;
use crate::store::Store;
use crate::store::images::StoredImage;
use crate::store::tar::TarStream;
pub(crate) use directory::{Staged, check as check_destination};
pub use disk::{Backing, FileSystem};
use ids::Ids;
pub(crate) use lay::Lay;
use lay::Target;
pub use owners::Owners;

/// In a staged directory, what is made.
pub(crate) const NEW: &str = "new";

/// Where the files come from.
pub enum Source<'s> {
    /// The layers of an image that is in this store.
    Image(&'s Store, &'s StoredImage),
    /// An archive, however it is compressed, as one layer.
    Archive(Utf8PathBuf),
}

/// What is made of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// A directory.
    Directory,
    /// `layer-N.qcow2` for each layer, each over the one before; with `flat` one of all.
    Qcow2 {
        /// The file system on it.
        disk: Disk,
        /// One image in place of a chain.
        flat: bool,
        /// How an image names the one below it.
        backing: Backing,
    },
    /// `disk.raw`
    Raw {
        /// The file system on it.
        disk: Disk,
    },
}

/// What disk images are like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Bytes.
    pub size: u64,
    /// The file system.
    pub file_system: FileSystem,
    /// Whether clusters of qcow2 images are compressed.
    pub is_compressed: bool,
}

/// What is wanted.
#[derive(Debug)]
pub struct Request {
    /// Where to.
    pub destination: Utf8PathBuf,
    /// In what form.
    pub form: Form,
    /// Other owners.
    pub ids: Ids,
    /// Whose the files of a directory are where root does not make it; nothing: the caller's, or the ids' if there are some.
    pub owners: Option<Owners>,
    /// A password for root.
    pub root_password: Option<String>,
    /// Replace what is there.
    pub force: bool,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The directory, or the disk images, base first.
    pub paths: Vec<Utf8PathBuf>,
    /// Entries that could not be made.
    pub left_out: u64,
}

/// Hears how far it is.
pub trait Progress {
    /// So many bytes of files are to be written.
    fn begin(&mut self, bytes: u64);
    /// A layer begins, the first one is 1.
    fn layer(&mut self, number: usize, of: usize);
    /// So many more bytes are written.
    fn advance(&mut self, bytes: u64);
    /// All are.
    fn end(&mut self);
}

/// The layers of a source.
enum Layers<'s> {
    Stored(&'s Store, Vec<Digest>),
    Archive(&'s Utf8Path),
}

impl<'s> Layers<'s> {
    fn of(source: &'s Source<'s>) -> Result<Self> {
        match source {
            Source::Archive(path) => Ok(Self::Archive(path)),
            Source::Image(store, image) => {
                let Some(manifest) = &image.manifest else {
                    fail!(
                        Kind::Invalid,
                        "{} was stored by an older program: pull it again",
                        image.name
                    );
                };
                Ok(Self::Stored(store, manifest.layer_digests()))
            }
        }
    }

    fn count(&self) -> usize {
        match self {
            Self::Stored(_, digests) => digests.len(),
            Self::Archive(_) => 1,
        }
    }

    fn bytes(&self) -> Result<u64> {
        match self {
            Self::Stored(store, digests) => {
                let sizes = digests.iter().map(|digest| store.layer_size(*digest));
                sizes.map(|size| size.map(|(_, unpacked)| unpacked)).sum()
            }
            Self::Archive(path) => {
                let found = std::fs::metadata(path).context(|| format!("cannot read {path}"))?;
                Ok(found.len())
            }
        }
    }

    /// Lay one of them; the first one is 0.
    fn lay<T: Target>(
        &self,
        number: usize,
        lay: &mut Lay<'_, T>,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        progress.layer(number + 1, self.count());
        let mut advance = |bytes| progress.advance(bytes);
        match self {
            Self::Archive(path) => {
                let entries = pull::with_unpacked(path, |input| {
                    lay.archive(&mut TarStream::new(input), &mut advance)
                })?;
                if entries == 0 {
                    // Whatever was to write it has failed.
                    fail!(Kind::Invalid, "{path}: the archive has nothing in it");
                }
                Ok(())
            }
            Self::Stored(store, digests) => {
                let digest = digests[number];
                let mut stream = store.layer_stream(digest)?;
                lay.stored(store, &mut stream, &mut advance)
                    .map_err(|error| error.within(format_args!("layer {digest}")))
            }
        }
    }
}

/// Whether there can be such a thing: for those who would fetch something first.
///
/// # Errors
/// Those of [`make`] that are known without a source.
pub fn check(config: &Config, request: &Request) -> Result<()> {
    owners::of(request)?;
    directory::check(config, &request.destination, request.force)
}

/// Make it: all of it, or nothing.
pub fn make(
    config: &Config,
    source: &Source<'_>,
    request: &Request,
    progress: &mut dyn Progress,
) -> Result<Made> {
    let _held = config.interrupt.hold();
    let owners = owners::of(request)?;
    directory::check(config, &request.destination, request.force)?;
    if owners == Some(Owners::Namespace) {
        return namespace::make(config, source, request, progress);
    }
    let layers = Layers::of(source)?;
    let staged = Staged::new(&request.destination)?;
    let inner = staged.path().join(NEW);
    std::fs::create_dir(&inner).context(|| format!("cannot create {inner}"))?;
    progress.begin(layers.bytes()?);
    let (names, left_out) = match &request.form {
        Form::Directory => {
            let is_recorded = owners == Some(Owners::Recorded);
            let left_out = fill(config, &layers, request, is_recorded, &inner, progress)?;
            (vec![Utf8PathBuf::new()], left_out)
        }
        form => disk::make(config, &layers, request, form, &inner, progress)?,
    };
    progress.end();
    config.interrupt.check()?;
    staged.place(&inner, request.force)?;
    let destination = camino::absolute_utf8(&request.destination);
    let destination = destination.context(|| request.destination.to_string())?;
    let paths = names.into_iter().map(|name| match name.as_str() {
        "" => destination.clone(),
        _ => destination.join(name),
    });
    Ok(Made {
        paths: paths.collect(),
        left_out,
    })
}

/// All layers into one directory, and root's password; how many entries could not be made.
fn fill(
    config: &Config,
    layers: &Layers<'_>,
    request: &Request,
    is_recorded: bool,
    directory: &Utf8Path,
    progress: &mut dyn Progress,
) -> Result<u64> {
    let is_root = rustix::process::geteuid().is_root();
    let mut lay = Lay::into(
        directory.as_std_path(),
        &request.ids,
        is_root,
        true,
        &config.interrupt,
    )?;
    if is_recorded {
        lay = lay.recording_owners();
    }
    for number in 0..layers.count() {
        layers.lay(number, &mut lay, progress)?;
    }
    set_password(request, directory)?;
    lay.finish()
}

fn set_password(request: &Request, root: &Utf8Path) -> Result<()> {
    match &request.root_password {
        Some(password) => password::set(root.as_std_path(), &password::hash(password)?),
        None => Ok(()),
    }
}
