//! `update`: the other slot gets a new deployment, and the switch is proved by starting it.

use std::collections::BTreeMap;

use camino::Utf8PathBuf;

use super::change::{self, Outcome};
use super::effects::Fetch as Fetching;
use super::hostfiles::{self, Package, Wish};
use super::install::Prepared;
use super::packages::PackageWish;
use super::preview;
use super::render::{self, Wishes};
use crate::deployment::{ContainerName, Info, Ledger, Paths};
use crate::error::{Error, Kind, Result};
use crate::fail;
use crate::hostfiles::package::Mode;
use crate::image::{Reference, short_id};
use crate::pull::{Progress, Remote};
use crate::runtime::spec::RunOptions;
use crate::runtime::{Runtime, mounts};
use crate::store::Store;
use crate::store::images::StoredImage;
use crate::transaction::{Host, Plan};
use crate::transport::Access;

/// When the registry is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetch {
    /// Always: the newest image of the name.
    Always,
    /// Only for an image that is not in the store.
    Missing,
    /// Never.
    Never,
}

/// What to change.
#[allow(clippy::struct_excessive_bools)] // one wish each
#[derive(Debug, Clone)]
pub struct Update {
    /// The container.
    pub name: ContainerName,
    /// `--set`
    pub values: BTreeMap<String, String>,
    /// The image to move to; nothing: the name the container has.
    pub rebase: Option<Reference>,
    /// When the registry is asked.
    pub fetch: Fetch,
    /// How.
    pub access: Access,
    /// Deploy an image that is on record as bad, and leave a deployment that cannot be put back.
    pub force: bool,
    /// Nobody asked for this container in particular: what a person pinned or rolled back from
    /// stays as it is.
    pub unattended: bool,
    /// Change nothing, not even the store.
    pub dry: bool,
    /// A new health command, kept from now on.
    pub health_cmd: Option<String>,
    /// A new length of the watch, kept from now on.
    pub watch: Option<u32>,
    /// Further paths of the host that are open to the image, kept from now on.
    pub allow_host_paths: Vec<Utf8PathBuf>,
    /// Another way to install host files, kept from now on.
    pub system_package: Option<Mode>,
    /// The image's own package may run its scripts, from now on.
    pub allow_package_scripts: bool,
}

impl Update {
    /// Bring a container to the newest image of its name.
    pub fn new(name: ContainerName) -> Self {
        Self {
            name,
            values: BTreeMap::new(),
            rebase: None,
            fetch: Fetch::Always,
            access: Access::default(),
            force: false,
            unattended: false,
            dry: false,
            health_cmd: None,
            watch: None,
            allow_host_paths: Vec::new(),
            system_package: None,
            allow_package_scripts: false,
        }
    }
}

/// Compute the update of a container; the image is fetched, unless this is a dry run.
pub fn update(host: &Host<'_>, request: &Update, progress: &mut dyn Progress) -> Result<Outcome> {
    let config = host.config();
    let name = &request.name;
    let (lock, from) = change::lock_installed(host, name)?;
    let paths = Paths::new(config, name);
    let info = Info::read(&paths.slot(from))?;
    let ledger = Ledger::load(&paths)?;
    let store = Store::open(config)?;

    let moves = request.rebase.is_some() || !ledger.policy.pinned || request.force;
    if !moves && request.unattended {
        return Ok(Outcome::Skipped(format!(
            "{name} is pinned: \"atomic-rs unpin {name}\" lets it move"
        )));
    }
    let target = if moves {
        find_target(host, request, &info, &ledger, &store, progress)?
    } else {
        Target::Stored(Box::new(current_image(&store, &info)?), info.source.clone())
    };
    let (image, reference) = match target {
        Target::Skip(why) => return Ok(Outcome::Skipped(why)),
        Target::Remote(remote) => {
            let preview = preview::update(host, lock, name, from, &info, &store, &remote)?;
            return Ok(Outcome::Preview(Box::new(preview)));
        }
        Target::Stored(image, reference) => (image, reference),
    };

    let mut options = info.options.clone().unwrap_or_default();
    let mut values = info.user_values.clone().unwrap_or_default();
    values.extend(request.values.clone());
    let renamed = image.name != info.image;
    if image.id() == info.revision && !renamed && !changes_settings(request, &info, &options) {
        return Ok(Outcome::Nothing(if moves {
            "Latest version already installed.".into()
        } else {
            format!("{name} is pinned to {} {}", info.image, info.revision)
        }));
    }
    if let Some(why) = verdict(request, &ledger, &info, &image.id()) {
        return Ok(Outcome::Skipped(why));
    }
    options.health_cmd = request.health_cmd.clone().or(options.health_cmd);
    options.watch = request.watch.or(options.watch);
    options
        .allow_host_paths
        .extend(request.allow_host_paths.iter().cloned());

    options.allow_package_scripts |= request.allow_package_scripts;

    let to = from.other();
    let runtime = Runtime::find(Some(info.runtime.as_str()).filter(|path| !path.is_empty()))?;
    let prepared = Prepared::new(
        config,
        &store,
        &image,
        info.remote.as_deref().map(Into::into),
    )?;
    let mut rendered = render::render(
        config,
        &runtime,
        name,
        &paths.slot(to),
        &prepared.source(&image, reference),
        &Wishes {
            values: &values,
            options: &options,
            uuid: info.values.get("UUID").map(String::as_str),
            inherited: info.user_values.is_none().then_some(&info.values),
            once: false,
            elsewhere: false,
        },
    )?;
    keep_on_record(&mut rendered.info, &info);
    let mode = request.system_package.unwrap_or(mode_of(&info));
    rendered.info.package_mode = Some(mode);
    rendered.host_files = hostfiles::plan(
        config,
        &Wish {
            name,
            slot: to,
            files: prepared.files(),
            package: Package::New(PackageWish { mode, format: None }, prepared.config()),
        },
        &mut rendered.info,
        Some((&info, from)),
    )?;
    if info.persistent.is_empty() && !rendered.info.persistent.is_empty() {
        mounts::check_state_directory(config, name.as_str())?;
    }
    let mut effects = preview::compare(&paths, from, &info, &store, &image, &rendered)?;
    effects.host_files(&rendered.host_files);
    let plan = Plan::new("update", name, Some(from), Some(to));
    let mut change = change::deploy(
        host,
        &store,
        lock,
        plan,
        to,
        (&image.commit, prepared.commit.clone()),
        rendered,
    )?;
    change.effects = effects;
    change.store.set(Some(store));
    if change.plan.was_active && !request.force {
        change::check_return(&paths, from).map_err(|error| {
            Error::new(
                error.kind(),
                format!("{error}\nrepair it (atomic-rs repair {name}), or use --force"),
            )
        })?;
    }
    Ok(Outcome::Change(Box::new(change)))
}

enum Target {
    /// In the store, and where to pull it again from.
    Stored(Box<StoredImage>, Option<String>),
    /// Not fetched, because nothing may change.
    Remote(Box<Remote>),
    /// Not to be deployed.
    Skip(String),
}

fn find_target(
    host: &Host<'_>,
    request: &Update,
    info: &Info,
    ledger: &Ledger,
    store: &Store,
    progress: &mut dyn Progress,
) -> Result<Target> {
    let config = host.config();
    let source = match &request.rebase {
        Some(reference) => reference.clone(),
        None => info.source.as_deref().unwrap_or(&info.image).parse()?,
    };
    let typed = source.to_string();
    let known = match (&request.rebase, &source.name) {
        // What an archive holds is known by the name it got when it was pulled.
        (None, _) => store.image(&info.image)?,
        (Some(_), Some(name)) => store.image(&name.to_string())?,
        (Some(_), None) => None,
    };
    let usable = known.filter(|image| {
        let layers = image.manifest.as_ref();
        layers.is_none_or(|manifest| store.layer_commits(manifest).is_ok())
    });
    let asks = match request.fetch {
        Fetch::Always => true,
        Fetch::Missing => usable.is_none(),
        Fetch::Never => false,
    };
    if !asks {
        return match usable {
            Some(image) => Ok(Target::Stored(Box::new(image), Some(typed))),
            None => fail!(
                Kind::NotFound,
                "the image {typed} is not in the store, or some of its layers are not: pull it first"
            ),
        };
    }
    let before = info
        .platform
        .as_deref()
        .filter(|_| request.rebase.is_none());
    let access = request.access.clone().or_platform(before)?;
    let remote = Remote::open(config, &source, &access)?;
    let id = remote.digest().hex();
    if let Some(why) = verdict(request, ledger, info, &id) {
        return Ok(Target::Skip(why));
    }
    if request.dry {
        return Ok(match store.image(&remote.name().to_string())? {
            Some(image) if image.id() == id && remote.missing(store)?.is_empty() => {
                Target::Stored(Box::new(image), Some(typed))
            }
            _ => Target::Remote(Box::new(remote)),
        });
    }
    Fetching::new(remote.layers(), &remote.missing(store)?, store.path())?.check_space()?;
    let pulled = remote.fetch(config, store, progress)?;
    Ok(Target::Stored(Box::new(pulled.image), Some(typed)))
}

/// Why an image is not to be deployed, if it is not.
fn verdict(request: &Update, ledger: &Ledger, info: &Info, id: &str) -> Option<String> {
    if request.force || id == info.revision {
        return None;
    }
    let name = &request.name;
    let short = short_id(id);
    if let Some(entry) = ledger.failed(id) {
        let reason = entry.reason.as_deref().unwrap_or("it did not stay");
        return Some(format!(
            "{name}: the image {short} failed on {} and is not deployed again: {reason}\n\"atomic-rs history {name}\" tells more; --force deploys it",
            super::list::local_time(entry.time)
        ));
    }
    if request.unattended && ledger.left(id).is_some() {
        return Some(format!(
            "{name} was rolled back from the image {short}: \"atomic-rs update {name}\" deploys it again"
        ));
    }
    None
}

fn changes_settings(request: &Update, info: &Info, options: &RunOptions) -> bool {
    let before = info.user_values.as_ref().unwrap_or(&info.values);
    let same_values = request
        .values
        .iter()
        .all(|(key, value)| before.get(key) == Some(value));
    let same_health = request.health_cmd.is_none() || request.health_cmd == options.health_cmd;
    let same_watch = request.watch.is_none() || request.watch == options.watch;
    let same_mode = request
        .system_package
        .is_none_or(|mode| mode == mode_of(info));
    let opens = |path: &Utf8PathBuf| !options.allow_host_paths.contains(path);
    let opens_more = request.allow_host_paths.iter().any(opens)
        || (request.allow_package_scripts && !options.allow_package_scripts);
    !same_values || !same_health || !same_watch || !same_mode || opens_more
}

/// How a container's host files are installed. What older versions and other programs installed goes on
/// as it is.
fn mode_of(info: &Info) -> Mode {
    info.package_mode.unwrap_or(match info.rpm_installed {
        Some(_) => Mode::Yes,
        None => Mode::No,
    })
}

/// The image a deployment was made from, whatever its name means in the store by now.
pub(super) fn current_image(store: &Store, info: &Info) -> Result<StoredImage> {
    match store.image(&info.image)? {
        Some(image) if image.id() == info.revision => Ok(image),
        _ => store.image_at(&info.image, &info.ostree_commit),
    }
}

/// What others wrote stays on record.
fn keep_on_record(new: &mut Info, old: &Info) {
    new.other.clone_from(&old.other);
}
