//! Bringing in what udocker has: its images, its containers, and what it knows of registries. Nothing of it is
//! changed.
//!
//! # Format
//! Source: udocker's own files, as 1.3 and those before it write them.
//! - `repos/NAME/TAG/` with a file `TAG`: an image; `manifest` and links to what it names, or `ancestry` (ids, the
//!   topmost first), links `ID.layer`, and `container.json` or `ID.json`; `PROTECT` where it is protected
//! - `containers/ID/`: `ROOT`, `container.json` (the image's config), `imagerepo.name`, `execmode`, `PROTECT`; names
//!   are links beside it
//! - `keystore`: `{"URL": {"auth": base64 of USER:PASSWORD}}`

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};

use super::container::Mode;
use super::create::{Adopt, adopt};
use super::home::{Home, Name};
use crate::config::Config;
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::image::{self, Platform, Reference};
use crate::pull::{self, Remote, Silent};
use crate::safefs;
use crate::store::Store;
use crate::store::export::Scratch;
use crate::transport::Access;

/// What became of one thing.
#[derive(Debug)]
pub enum Outcome {
    /// It is here now.
    Moved,
    /// It was here already.
    There,
    /// It is not.
    Failed(crate::error::Error),
}

/// An image, a container, or a registry's credentials, by the name it has there.
#[derive(Debug)]
pub struct Item {
    /// `image`, `container` or `login`
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// Bring in all that is below udocker's directory.
///
/// # Errors
/// [`Kind::NotFound`] if it is no such directory. What cannot be brought in is in the items.
pub fn migrate(
    config: &Config,
    store: &Store,
    from: &Utf8Path,
    mut tell: impl FnMut(Item) -> Result<()>,
) -> Result<()> {
    if !from.join("repos").is_dir() || !from.join("containers").is_dir() {
        fail!(Kind::NotFound, "{from} is not a directory of udocker's");
    }
    let mut one = |kind, name: String, outcome: Result<Outcome>| {
        config.interrupt.check()?;
        tell(Item {
            kind,
            name,
            outcome: outcome.unwrap_or_else(Outcome::Failed),
        })
    };
    for (name, path) in images(&from.join("repos"))? {
        let outcome = bring_image(config, store, from, &name, &path);
        one("image", name, outcome)?;
    }
    for (id, names) in containers(&from.join("containers"))? {
        let outcome = bring_container(config, &from.join("containers").join(&id), &id, &names);
        let name = if names.is_empty() {
            id
        } else {
            format!("{id} {}", names.join(" "))
        };
        one("container", name, outcome)?;
    }
    for (registry, auth) in keystore(&from.join("keystore"))? {
        one("login", registry.clone(), keep_login(&registry, &auth))?;
    }
    Ok(())
}

/// Directories with a file `TAG`, by the names that these stand for.
fn images(repos: &Utf8Path) -> Result<BTreeMap<String, Utf8PathBuf>> {
    let mut out = BTreeMap::new();
    let mut todo = vec![repos.to_owned()];
    while let Some(directory) = todo.pop() {
        if directory.join("TAG").is_file() {
            let below = directory.strip_prefix(repos).unwrap_or(&directory);
            if let (Some(name), Some(tag)) = (below.parent(), below.file_name()) {
                out.insert(format!("{name}:{tag}"), directory);
            }
            continue;
        }
        for entry in read_dir(&directory)? {
            // Links lead to layers.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                todo.push(entry.into_path());
            }
        }
    }
    Ok(out)
}

fn read_dir(path: &Utf8Path) -> Result<Vec<camino::Utf8DirEntry>> {
    let failed = || format!("cannot list {path}");
    let entries = path.read_dir_utf8().context(failed)?;
    entries.map(|entry| entry.context(failed)).collect()
}

fn json_of(path: &Utf8Path) -> Result<Value> {
    let text = std::fs::read(path).context(|| format!("cannot read {path}"))?;
    serde_json::from_slice(&text).kind(Kind::Invalid, || format!("{path} is damaged"))
}

fn bring_image(
    config: &Config,
    store: &Store,
    from: &Utf8Path,
    spec: &str,
    path: &Utf8Path,
) -> Result<Outcome> {
    let reference: Reference = format!("docker://{spec}").parse()?;
    let Some(name) = &reference.name else {
        fail!(Kind::Invalid, "{spec} is not the name of an image");
    };
    let outcome = if store.image(&name.to_string())?.is_some() {
        Outcome::There
    } else {
        if path.join("manifest").is_file() {
            from_manifest(config, store, from, path, &reference, name)?;
        } else {
            from_ancestry(config, store, path, name)?;
        }
        Outcome::Moved
    };
    if path.join("PROTECT").exists() {
        Home::of(config).protect_image(&name.to_string(), true)?;
    }
    Ok(outcome)
}

/// By way of a directory as skopeo writes it, with links to the blobs.
fn from_manifest(
    config: &Config,
    store: &Store,
    from: &Utf8Path,
    path: &Utf8Path,
    reference: &Reference,
    name: &image::Name,
) -> Result<()> {
    let manifest = json_of(&path.join("manifest"))?;
    let layers = manifest["layers"].as_array();
    let (Some(layers), true) = (layers, manifest["config"].is_object()) else {
        fail!(
            Kind::Invalid,
            "its manifest is of a form that registries of old have: pull it again"
        );
    };
    let scratch = Scratch::new(store)?;
    let directory = scratch.path().join("image");
    let failed = || format!("cannot write {directory}");
    std::fs::create_dir(&directory).context(failed)?;
    for blob in layers.iter().chain([&manifest["config"]]) {
        let digest: image::Digest = blob["digest"].as_str().unwrap_or_default().parse()?;
        let file = from.join("layers").join(digest.to_string());
        let file = camino::absolute_utf8(&file).context(failed)?;
        let link = directory.join(digest.hex());
        if !link.exists() {
            std::os::unix::fs::symlink(&file, &link).context(failed)?;
        }
    }
    std::fs::copy(path.join("manifest"), directory.join("manifest.json")).context(failed)?;
    std::fs::write(
        directory.join("version"),
        "Directory Transport Version: 1.1\n",
    )
    .context(failed)?;
    let local: Reference = format!("dir:{directory}").parse()?;
    let remote = Remote::open(config, &local, &Access::default())?;
    remote.fetch_as(config, store, name, reference.to_string(), &mut Silent)?;
    Ok(())
}

fn from_ancestry(
    config: &Config,
    store: &Store,
    path: &Utf8Path,
    name: &image::Name,
) -> Result<()> {
    let ancestry = json_of(&path.join("ancestry"))?;
    let ids = ancestry.as_array().into_iter().flatten();
    let ids = ids.filter_map(Value::as_str);
    // What is no file name is not of udocker's making.
    let ids: Vec<&str> = ids.filter(|id| !id.contains('/')).collect();
    let layers: Vec<Utf8PathBuf> = ids
        .iter()
        .rev()
        .map(|id| path.join(format!("{id}.layer")))
        .filter(|file| file.exists())
        .collect();
    if layers.is_empty() {
        fail!(Kind::Invalid, "it has no layers");
    }
    let own = path.join("container.json");
    let mut image = match ids.first() {
        Some(top) if !own.exists() => json_of(&path.join(format!("{top}.json")))?,
        _ => json_of(&own)?,
    };
    if !image.is_object() {
        fail!(Kind::Invalid, "its config is damaged");
    }
    let host = Platform::host();
    for (key, value) in [("os", host.os), ("architecture", host.architecture)] {
        if !image[key].is_string() {
            image[key] = value.into();
        }
    }
    pull::import_layers(config, store, &layers, image, name).map(|_| ())
}

/// Ids and their names.
fn containers(path: &Utf8Path) -> Result<BTreeMap<String, Vec<String>>> {
    let mut out: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in read_dir(path)? {
        let name = entry.file_name().to_owned();
        match entry.path().read_link_utf8() {
            Ok(target) => {
                let id = target.file_name().unwrap_or_default().to_owned();
                if path.join(&id).join("container.json").is_file() {
                    out.entry(id).or_default().push(name);
                }
            }
            Err(_) if entry.path().join("container.json").is_file() => {
                out.entry(name).or_default();
            }
            Err(_) => {}
        }
    }
    for names in out.values_mut() {
        names.sort();
    }
    Ok(out)
}

fn bring_container(
    config: &Config,
    path: &Utf8Path,
    id: &str,
    names: &[String],
) -> Result<Outcome> {
    let home = Home::of(config);
    let text = |file: &str| std::fs::read_to_string(path.join(file)).unwrap_or_default();
    let mode = text("execmode");
    let is_there = home.container(id).is_dir();
    let is_changed = |file: &str| {
        let entries = path.join(file).read_dir_utf8();
        entries.is_ok_and(|mut entries| entries.next().is_some())
    };
    if !is_there && (mode.starts_with('F') || is_changed(".bind_orig_files")) {
        fail!(
            Kind::Refused,
            "its files are changed for mode {}: have udocker undo that by \"setup --execmode=P1 {id}\"",
            mode.trim()
        );
    }
    // What is theirs if nobody asks is ours if nobody asks.
    let mode = match mode.trim().parse() {
        Ok(Mode::P1) | Err(_) => Mode::N,
        Ok(mode) => mode,
    };
    let names: Vec<Name> = names
        .iter()
        .map(|name| name.parse())
        .collect::<Result<_>>()?;
    if !is_there {
        adopt(
            config,
            &Adopt {
                id: Some(id),
                files: &path.join("ROOT"),
                lent: false,
                image: text("imagerepo.name").trim().to_owned(),
                config: json_of(&path.join("container.json"))?,
                name: names.first(),
                mode,
                protected: path.join("PROTECT").exists(),
            },
        )?;
    }
    let _turn = home.turn()?;
    // Also those that an earlier try did not come to.
    for name in &names {
        if home.id_of(name).as_deref() != Some(id) {
            home.add_name(id, name)?;
        }
    }
    Ok(if is_there {
        Outcome::There
    } else {
        Outcome::Moved
    })
}

/// Registries and what they are told, in base64.
pub fn keystore(path: &Utf8Path) -> Result<Vec<(String, String)>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let value = json_of(path)?;
    let entries = value.as_object().into_iter().flatten();
    Ok(entries
        .filter_map(|(url, entry)| {
            let auth = entry["auth"].as_str().filter(|auth| !auth.is_empty())?;
            let host = url.split_once("://").map_or(url.as_str(), |(_, host)| host);
            let host = host.split('/').next().unwrap_or(host);
            let is_hub = host == "docker.io" || host.ends_with(".docker.io");
            let host = if is_hub { "docker.io" } else { host };
            Some((host.to_owned(), auth.to_owned()))
        })
        .collect())
}

/// Keep credentials where skopeo and podman look for them, unless they know some of that registry.
/// Source: containers-auth.json(5).
fn keep_login(registry: &str, auth: &str) -> Result<Outcome> {
    let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let config = env("XDG_CONFIG_HOME").or_else(|| Some(env("HOME")? + "/.config"));
    let Some(config) = config else {
        fail!(Kind::Failed, "there is no home directory for auth.json");
    };
    let path = Utf8PathBuf::from(config).join("containers/auth.json");
    let mut all = if path.exists() {
        json_of(&path)?
    } else {
        json!({})
    };
    if all["auths"][registry].is_object() {
        return Ok(Outcome::There);
    }
    let is_fit = all.is_object() && (all["auths"].is_null() || all["auths"].is_object());
    if !is_fit {
        fail!(Kind::Invalid, "{path} is damaged");
    }
    all["auths"][registry] = json!({"auth": auth});
    let parent = path.parent().unwrap_or(&path);
    std::fs::create_dir_all(parent).context(|| format!("cannot create {parent}"))?;
    let text = serde_json::to_vec_pretty(&all).context(|| format!("cannot write {path}"))?;
    safefs::replace_file(path.as_std_path(), &text, 0o600)?;
    Ok(Outcome::Moved)
}
