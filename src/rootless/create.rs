//! Containers come and go: nothing is copied, and a kill leaves none that is half made.

use std::path::Path;

use camino::Utf8Path;
use serde_json::Value;

use super::container::{Container, FORMAT, Mode, Record};
use super::files;
use super::home::{Home, Name, is_id};
use super::tree::Tree;
use crate::config::Config;
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::image::{ImageConfig, Manifest, Platform};
use crate::runtime::userns::Mapping;
use crate::safefs;
use crate::store::images::StoredImage;
use crate::store::{Store, now};

/// What a new container is made from and called.
#[derive(Debug)]
pub struct Create<'a> {
    /// A stored image.
    pub image: &'a StoredImage,
    /// Its name, if it gets one.
    pub name: Option<&'a Name>,
    /// Take the name away from another container.
    pub force: bool,
    /// How it runs.
    pub mode: Mode,
}

/// What a container is made from that needs no image.
#[derive(Debug)]
pub struct Adopt<'a> {
    /// Its id, if it has one already.
    pub id: Option<&'a str>,
    /// Its files.
    pub files: &'a Utf8Path,
    /// Whether they are only lent: the container is on them, and they stay when it goes.
    pub lent: bool,
    /// What image they are said to be of.
    pub image: String,
    /// That image's config.
    pub config: Value,
    /// Its name, if it gets one.
    pub name: Option<&'a Name>,
    /// How it runs.
    pub mode: Mode,
    /// It is not to be removed.
    pub protected: bool,
}

/// Create a container of files that are there, which are copied unless they are lent.
///
/// # Errors
/// [`Kind::Exists`] if the name is taken.
pub fn adopt(config: &Config, request: &Adopt<'_>) -> Result<Container> {
    let home = Home::of(config);
    let _turn = home.turn()?;
    sweep_staged(&home)?;
    if let Some(id) = request.id
        && (!is_id(id) || home.container(id).exists())
    {
        fail!(
            Kind::Exists,
            "\"{id}\" is no id, or that of a container that exists"
        );
    }
    let platform = ImageConfig::parse(request.config.to_string().as_bytes())?.platform();
    let new = || uuid::Uuid::new_v4().to_string();
    let record = Record {
        format: FORMAT,
        id: request.id.map_or_else(new, str::to_owned),
        image: request.image.clone(),
        image_id: String::new(),
        created: now(),
        platform: platform.unwrap_or_else(Platform::host).to_string(),
        mode: request.mode,
        protected: request.protected,
        nvidia: false,
        own_files: true,
        tree: String::new(),
        location: request.lent.then(|| request.files.to_owned()),
        config: request.config.clone(),
    };
    let from = if request.lent {
        Origin::Nothing
    } else {
        Origin::Files(request.files)
    };
    place(&home, record, from, request.name, false)
}

/// Create a container.
///
/// # Errors
/// [`Kind::Exists`] if the name is taken.
pub fn create(config: &Config, store: &Store, request: &Create<'_>) -> Result<Container> {
    let home = Home::of(config);
    let _turn = home.turn()?;
    sweep_staged(&home)?;
    let tree = Tree::make(config, &home, store, request.image)?;
    let text = config_text(store, request.image)?;
    let parsed = ImageConfig::parse(&text)?;
    let platform = parsed.platform().unwrap_or_else(Platform::host);
    let record = Record {
        format: FORMAT,
        id: uuid::Uuid::new_v4().to_string(),
        image: request.image.name.clone(),
        image_id: request.image.id(),
        created: now(),
        platform: platform.to_string(),
        mode: request.mode,
        protected: false,
        nvidia: false,
        own_files: false,
        tree: tree.name().to_owned(),
        location: None,
        config: serde_json::from_slice(&text)
            .kind(Kind::Invalid, || "the image config is not valid".into())?,
    };
    place(&home, record, Origin::Nothing, request.name, request.force)
}

/// A new container with all that was written to another one, which must not be running.
pub fn clone(config: &Config, from: &Container, name: Option<&Name>) -> Result<Container> {
    let home = Home::of(config);
    let _turn = home.turn()?;
    sweep_staged(&home)?;
    let _still = stopped(from)?;
    let from = &from.reloaded()?;
    files::finish(from)?;
    let record = Record {
        id: uuid::Uuid::new_v4().to_string(),
        created: now(),
        protected: false,
        ..from.record.clone()
    };
    place(&home, record, Origin::Container(from), name, false)
}

/// Remove a container, all its names, and what it shared with no other.
///
/// # Errors
/// [`Kind::Refused`] for one that is protected or running.
pub fn remove(config: &Config, container: &Container) -> Result<()> {
    let home = Home::of(config);
    let _turn = home.turn()?;
    container.check_unprotected()?;
    let id = &container.record.id;
    let staged = home.containers().join(format!(".{id}.gone"));
    {
        let _still = stopped(container)?;
        for name in home.names_of(id)? {
            home.remove_name(&name.parse()?)?;
        }
        // Gone at once; what takes time comes afterwards.
        safefs::rename(container.path.as_std_path(), staged.as_std_path())?;
    }
    remove_files(&staged)?;
    if let Err(error) = Tree::sweep(&home) {
        tracing::warn!(%error, "what the containers shared is not swept");
    }
    Ok(())
}

/// Remove what is left of a container that has no record any more; false if that is not so.
pub fn remove_broken(home: &Home, id: &str) -> Result<bool> {
    let path = home.container(id);
    if !is_id(id) || !path.is_dir() || path.join("container.json").exists() {
        return Ok(false);
    }
    let _turn = home.turn()?;
    for name in home.names_of(id)? {
        home.remove_name(&name.parse()?)?;
    }
    remove_files(&path)?;
    Ok(true)
}

/// Hold a container while nothing of it runs.
///
/// # Errors
/// [`Kind::Refused`] if something does.
pub fn stopped(container: &Container) -> Result<safefs::Lock> {
    let held = container.turn()?;
    container.sweep_traces()?;
    if !container.holders()?.is_empty() {
        fail!(
            Kind::Refused,
            "container {} is running",
            container.record.id
        );
    }
    Ok(held)
}

/// What a new container has from the beginning.
#[derive(Clone, Copy)]
enum Origin<'a> {
    Nothing,
    /// All that another one has.
    Container(&'a Container),
    /// These files.
    Files(&'a Utf8Path),
}

/// Make the directory of a container under another name and give it its own when it is whole.
fn place(
    home: &Home,
    record: Record,
    from: Origin<'_>,
    name: Option<&Name>,
    force: bool,
) -> Result<Container> {
    if let Some(name) = name
        && let Some(other) = home.id_of(name)
        && !force
    {
        fail!(
            Kind::Exists,
            "a container of the name \"{name}\" exists: {other}"
        );
    }
    let id = record.id.clone();
    let staged = home.containers().join(format!(".{id}.new"));
    safefs::make_private_dir(staged.as_std_path())?;
    for directory in ["ROOT", "work"] {
        let path = staged.join(directory);
        std::fs::create_dir(&path).context(|| format!("cannot create {path}"))?;
    }
    let upper = staged.join("upper");
    match from {
        Origin::Nothing => make_upper(&upper)?,
        Origin::Files(files) => {
            make_upper(&upper)?;
            let root = staged.join("ROOT");
            remove_empty(&root)?;
            files::copy(files, &root)?;
            files::open(&root)?;
        }
        Origin::Container(from) => {
            let written = from.path.join("upper");
            if written.is_dir() {
                copy(&written, &upper)?;
            } else {
                make_upper(&upper)?;
            }
            if let Some(files) = from.files() {
                let root = staged.join("ROOT");
                remove_empty(&root)?;
                copy(&files, &root)?;
                let fake = from.path.join("fake");
                if fake.is_dir() {
                    copy(&fake, &staged.join("fake"))?;
                }
            }
        }
    }
    let container = Container {
        path: staged.clone(),
        record,
    };
    container.save()?;
    if !matches!(from, Origin::Nothing) {
        safefs::sync_file_system(staged.as_std_path())?;
    }
    safefs::rename(staged.as_std_path(), home.container(&id).as_std_path())?;
    if let Some(name) = name {
        if force && home.id_of(name).is_some() {
            home.remove_name(name)?;
        }
        home.add_name(&id, name)?;
    }
    Container::open(home, &id)
}

/// Make the place for what will be written.
pub(super) fn make_upper(path: &Utf8Path) -> Result<()> {
    std::fs::create_dir(path).context(|| format!("cannot create {path}"))?;
    // It is what the container's users see as their root directory.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(path, mode).context(|| format!("cannot open {path}"))
}

/// Make way for a copy.
fn remove_empty(path: &Utf8Path) -> Result<()> {
    std::fs::remove_dir(path).context(|| format!("cannot replace {path}"))
}

/// Copy what belongs to the container's users, as they.
fn copy(from: &Utf8Path, to: &Utf8Path) -> Result<()> {
    let words = ["-a", "--reflink=auto", "--", from.as_str(), to.as_str()];
    Mapping::of_user().run_as_root("cp", &words, &[])
}

fn remove_files(path: &Utf8Path) -> Result<()> {
    let mapping = Mapping::of_user();
    // The kernel makes it for itself, and lets nobody in.
    let inner = path.join("work/work");
    if inner.is_dir() {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        // What cannot be opened, root of the namespace removes.
        let _ = std::fs::set_permissions(&inner, mode);
    }
    mapping.remove_tree(path)
}

/// What killed ones left; [`Home::turn`] is held.
fn sweep_staged(home: &Home) -> Result<()> {
    let path = home.containers();
    let entries = path
        .read_dir_utf8()
        .context(|| format!("cannot list {path}"))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let extension = Path::new(name).extension().and_then(|word| word.to_str());
        if name.starts_with('.')
            && matches!(extension, Some("new" | "gone"))
            && let Err(error) = remove_files(entry.path())
        {
            // That is no reason not to create another.
            tracing::warn!(%error, "left behind");
        }
    }
    Ok(())
}

fn config_text(store: &Store, image: &StoredImage) -> Result<Vec<u8>> {
    let digest = image.manifest.as_ref().and_then(Manifest::config_digest);
    let text = match digest {
        Some(digest) => store.image_config_text(digest)?,
        None => None,
    };
    // Images of old have none.
    Ok(text.unwrap_or_else(|| {
        Value::Object(serde_json::Map::new())
            .to_string()
            .into_bytes()
    }))
}
