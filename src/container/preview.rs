//! What a change would mean, told before anything is fetched or changed.

use super::change::{self, Preview};
use super::effects::{self, Effects, Fetch, ImageMark};
use super::hostfiles::HostChange;
use super::render::Rendered;
use super::update::current_image;
use crate::deployment::{ContainerName, Info, Paths, Slot, read_config};
use crate::error::Result;
use crate::pull::Remote;
use crate::safefs::Lock;
use crate::store::Store;
use crate::store::images::StoredImage;
use crate::transaction::{Host, Plan};

/// What an update to a stored image means.
pub(super) fn compare(
    paths: &Paths,
    from: Slot,
    info: &Info,
    store: &Store,
    image: &StoredImage,
    rendered: &Rendered,
) -> Result<Effects> {
    let mut effects = marked(Some(info), image.name.clone(), image.id());
    effects.complete = true;
    let before = read_config(&paths.slot(from));
    effects.rendered(paths, before.as_ref(), rendered);
    if let Ok(old) = current_image(store, info) {
        effects.ports = effects::ports(&store.image_config(&old)?, &store.image_config(image)?);
    }
    Ok(effects)
}

/// What an installation means.
pub(super) fn install(paths: &Paths, image: &StoredImage, rendered: &Rendered) -> Effects {
    let mut effects = marked(None, image.name.clone(), image.id());
    effects.complete = true;
    effects.rendered(paths, None, rendered);
    effects
}

/// The update to an image that is not fetched: its steps are those of every update, and of its
/// texts only what its config says is known.
pub(super) fn update(
    host: &Host<'_>,
    lock: Lock,
    name: &ContainerName,
    from: Slot,
    info: &Info,
    store: &Store,
    remote: &Remote,
) -> Result<Preview> {
    let paths = Paths::new(host.config(), name);
    let mut effects = fetched(Some(info), store, remote)?;
    if let Ok(old) = current_image(store, info) {
        let (old, new) = (store.image_config(&old)?, remote.image_config()?);
        effects.ports = effects::ports(&old, &new);
        effects.environment = effects::image_environment(&old, &new);
    }
    let text = |path| std::fs::read_to_string(path).ok();
    let like_now = Rendered {
        config: String::new(),
        unit: text(paths.unit()),
        tmpfiles: text(paths.tmpfiles()),
        has_own_config: false,
        info: info.clone(),
        host_files: HostChange::default(),
        notes: Vec::new(),
    };
    let to = from.other();
    let plan = Plan::new("update", name, Some(from), Some(to));
    let tree = info.remote.is_none().then(String::new);
    let change = change::deploy(host, store, lock, plan, to, ("", tree), like_now)?;
    Ok(Preview {
        plan: Some(change.plan),
        effects,
    })
}

/// What fetching an image means.
pub(super) fn fetched(info: Option<&Info>, store: &Store, remote: &Remote) -> Result<Effects> {
    let mut effects = marked(info, remote.name().to_string(), remote.digest().hex());
    let missing = remote.missing(store)?;
    effects.fetch = Some(Fetch::new(remote.layers(), &missing, store.path())?);
    Ok(effects)
}

fn marked(info: Option<&Info>, name: String, id: String) -> Effects {
    Effects {
        from_image: info.map(ImageMark::of),
        to_image: Some(ImageMark { name, id }),
        ..Effects::default()
    }
}
