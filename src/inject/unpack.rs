//! An injected layer as a directory, to be changed and put back.
//!
//! What is in it is data: a name that begins with `.wh.` hides something of the layers below, and becomes an empty file,
//! which is packed as the same whiteout again.

use std::io::{BufReader, Read as _};

use camino::Utf8Path;

use super::image::{Layer, LayerName};
use super::index::Source;
use super::{Progress, Work};
use crate::bootstrap::ids::Ids;
use crate::bootstrap::{Lay, NEW, Staged, check_destination};
use crate::config::Config;
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::image::digest::Hashing;
use crate::image::{Name, Platform};
use crate::pull;
use crate::registry::{Access, Registry};
use crate::store::tar::TarStream;

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// The layer; nothing if the image has none, and the directory is an empty beginning of one.
    pub layer: Option<Layer>,
    /// Entries that could not be made: devices, for those who may not.
    pub left_out: u64,
}

/// Have the layer of an image at `destination`, a directory that is not there or empty, unless `force` says that what is
/// there may go.
///
/// # Errors
/// [`Kind::Invalid`] if the layer is not what the image says; then there is no directory.
pub fn unpack(
    config: &Config,
    (image, access): (&Name, &Access),
    name: &LayerName,
    destination: &Utf8Path,
    force: bool,
    progress: &mut dyn Progress,
) -> Result<Unpacked> {
    let _held = config.interrupt.hold();
    check_destination(config, destination, force)?;
    let registry = Registry::open(image, access)?;
    let host = Platform::host();
    let platform = access.platform.as_ref().unwrap_or(&host);
    let source = Source::read(&registry, image, Some(platform))?;
    let layer = source.images().find_map(|image| image.find(name));
    let staged = Staged::new(destination)?;
    let inner = staged.path().join(NEW);
    let failed = || format!("cannot create {inner}");
    std::fs::create_dir(&inner).context(failed)?;
    let left_out = if let Some(layer) = &layer {
        fetch(config, &registry, layer, &inner, progress)?
    } else {
        std::fs::create_dir(inner.join(name.as_str())).context(failed)?;
        0
    };
    config.interrupt.check()?;
    staged.place(&inner, force)?;
    Ok(Unpacked { layer, left_out })
}

/// Lay the layer into a directory, and check it on both sides of its compression.
fn fetch(
    config: &Config,
    registry: &Registry,
    layer: &Layer,
    directory: &Utf8Path,
    progress: &mut dyn Progress,
) -> Result<u64> {
    let described = &layer.described;
    progress.begin(Work::Fetch, None);
    let ids = Ids::default();
    let is_root = rustix::process::geteuid().is_root();
    let mut lay = Lay::into(
        directory.as_std_path(),
        &ids,
        is_root,
        true,
        &config.interrupt,
    )?
    .literally();
    // Neither more bytes than the image says, nor more than a layer may have.
    let blob = registry.blob(described.digest)?.take(described.size);
    let mut blob = BufReader::new(Hashing::new(blob));
    let diff_id = pull::with_inflated(&mut blob, |input| {
        let input = input.take(config.max_layer_bytes);
        let mut archive = TarStream::new(Hashing::new(input));
        lay.archive(&mut archive, &mut |bytes| progress.advance(bytes))?;
        archive.drain()?;
        let (hashing, _) = archive.into_inner();
        Ok(hashing.finish().0)
    })
    .map_err(|error| error.within(format_args!("layer {}", described.digest)))?;
    std::io::copy(&mut blob, &mut std::io::sink())
        .kind(Kind::Transport, || format!("layer {}", described.digest))?;
    let (digest, _, _) = blob.into_inner().finish();
    if digest != described.digest || diff_id != described.diff_id {
        fail!(
            Kind::Invalid,
            "the layer {} of {} is not what the image says: {digest}, with {diff_id} in it",
            described.digest,
            registry.shown()
        );
    }
    progress.end();
    lay.finish()
}
