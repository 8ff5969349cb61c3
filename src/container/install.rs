//! `install`: from an image in the store to an enabled unit.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};

use super::change::{self, Outcome, Preview};
use super::hostfiles::{self, Package, Wish};
use super::packages::PackageWish;
use super::preview;
use super::render::{self, Source, Wishes};
use crate::config::Config;
use crate::deployment::owners::OwnerLayer;
use crate::deployment::{self, ContainerName, Paths, Slot, in_use};
use crate::error::{Error, Kind, Result};
use crate::fail;
use crate::image::{ImageConfig, Reference};
use crate::pull::Remote;
use crate::runtime::Runtime;
use crate::runtime::mounts;
use crate::runtime::spec::RunOptions;
use crate::safefs::{Files, Lock, Root};
use crate::store::images::StoredImage;
use crate::store::{ImageTree, Store};
use crate::transaction::{Host, Plan};

/// What fetching the image to be installed means: all that is known before it is here.
pub fn preview_fetch(store: &Store, remote: &Remote) -> Result<Preview> {
    Ok(Preview {
        plan: None,
        effects: preview::fetched(None, store, remote)?,
    })
}

/// What to install and how.
#[derive(Debug, Clone)]
pub struct Install {
    /// The container's name.
    pub name: ContainerName,
    /// The stored image.
    pub image: StoredImage,
    /// Where it was pulled from.
    pub reference: Reference,
    /// `--set`
    pub values: BTreeMap<String, String>,
    /// How to run it.
    pub options: RunOptions,
    /// `--runtime`
    pub runtime: Option<String>,
    /// Whether `auto-update` cares for it.
    pub auto_update: Option<bool>,
    /// Whether and how host files come in a package.
    pub package: PackageWish,
    /// `--rootfs`, resolved by [`remote_rootfs`].
    pub remote: Option<Utf8PathBuf>,
}

/// Compute the installation of an image that is in the store. `lock`: the container's, see [`super::lock`].
///
/// # Errors
/// Everything that would make it fail later, as far as it can be known before.
pub fn install(host: &Host<'_>, lock: Lock, store: Store, request: &Install) -> Result<Outcome> {
    let config = host.config();
    let name = &request.name;
    let paths = Paths::new(config, name);
    if in_use(config, name)?.is_some() {
        return Ok(Outcome::Nothing(format!("{name} already present")));
    }
    deployment::check_collision(config, name)?;
    let runtime = Runtime::find(request.runtime.as_deref().or(config.runtime.as_deref()))?;
    for target in [paths.unit(), paths.tmpfiles(), paths.link()] {
        if std::fs::symlink_metadata(&target).is_ok() {
            fail!(Kind::Exists, "The file {target} already exists.");
        }
    }
    let unit = name.unit();
    if host.manager()?.status(&unit)?.load != "not-found" {
        fail!(
            Kind::Exists,
            "the unit {unit} already exists on this host: choose another --name"
        );
    }
    let image = &request.image;
    let slot = Slot::Zero;
    let prepared = Prepared::new(config, &store, image, request.remote.as_deref())?;
    let mut rendered = render::render(
        config,
        &runtime,
        name,
        &paths.slot(slot),
        &prepared.source(image, Some(request.reference.to_string())),
        &Wishes {
            values: &request.values,
            options: &request.options,
            uuid: None,
            inherited: None,
            once: false,
            elsewhere: false,
        },
    )?;
    if !rendered.info.persistent.is_empty() {
        mounts::check_state_directory(config, name.as_str())?;
    }
    rendered.info.package_mode = Some(request.package.mode);
    rendered.host_files = hostfiles::plan(
        config,
        &Wish {
            name,
            slot,
            files: prepared.files(),
            package: Package::New(request.package, prepared.config()),
        },
        &mut rendered.info,
        None,
    )?;
    let plan = Plan::new("install", name, None, Some(slot));
    let mut effects = preview::install(&paths, image, &rendered);
    effects.host_files(&rendered.host_files);
    let mut change = change::deploy(
        host,
        &store,
        lock,
        plan,
        slot,
        (&image.commit, prepared.commit.clone()),
        rendered,
    )?;
    change.effects = effects;
    change.store.set(Some(store));
    if let Some(subject) = &mut change.plan.subject {
        subject.auto_update = request.auto_update;
    }
    Ok(Outcome::Change(Box::new(change)))
}

/// An image with its files open for reading.
pub(super) struct Prepared {
    /// The tree to check out; nothing for a remote root file system.
    pub commit: Option<String>,
    files: Box<dyn Files>,
    config: ImageConfig,
    id: String,
    remote: Option<Utf8PathBuf>,
    owners: Option<OwnerLayer>,
}

impl Prepared {
    pub fn new(
        host: &Config,
        store: &Store,
        image: &StoredImage,
        remote: Option<&Utf8Path>,
    ) -> Result<Self> {
        let config = store.image_config(image)?;
        if let Some(remote) = remote {
            return Ok(Self {
                commit: None,
                files: Box::new(Root::open(remote.as_std_path())?),
                config,
                id: image.id(),
                remote: Some(remote.to_owned()),
                owners: None,
            });
        }
        let commit = store.image_tree(image)?;
        Ok(Self {
            owners: OwnerLayer::of(host, store, &commit)?,
            files: Box::new(ImageTree::open(store.repo(), &commit)?),
            commit: Some(commit),
            config,
            id: image.id(),
            remote: None,
        })
    }

    /// Its files.
    pub fn files(&self) -> &dyn Files {
        self.files.as_ref()
    }

    /// What the image says of itself.
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    pub fn source<'a>(&'a self, image: &'a StoredImage, reference: Option<String>) -> Source<'a> {
        Source {
            image: &image.name,
            id: self.id.as_str(),
            commit: &image.commit,
            config: &self.config,
            files: self.files.as_ref(),
            reference,
            platform: image.platform.clone(),
            remote: self.remote.clone(),
            owners: self.owners.as_ref().map(|owners| &owners.dirs),
        }
    }
}

/// The root file system that `--rootfs DIR` means: `DIR/rootfs` if there is one, else DIR itself if
/// it looks like a root.
pub fn remote_rootfs(directory: &Utf8Path) -> Result<Utf8PathBuf> {
    let resolved = directory.canonicalize_utf8().map_err(|error| {
        Error::new(
            Kind::NotFound,
            format!("the remote rootfs {directory} cannot be used: {error}"),
        )
    })?;
    let inner = resolved.join("rootfs");
    let found = if inner.is_dir() {
        // A deployment's own rootfs may be a link; the container needs the real place.
        inner.canonicalize_utf8().unwrap_or(inner)
    } else if resolved.join("usr").is_dir() {
        resolved
    } else {
        fail!(
            Kind::Invalid,
            "--remote was specified but the given location does not contain a rootfs"
        )
    };
    crate::runtime::mounts::check_container_path(found.as_str())?;
    Ok(found)
}
