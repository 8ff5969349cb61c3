//! `update`: the other slot gets a new deployment, and the switch is proved by starting it.

use std::collections::BTreeMap;

use super::change::{self, Outcome};
use super::install::Prepared;
use super::render::{self, Wishes};
use crate::deployment::{ContainerName, Info, Paths};
use crate::error::Result;
use crate::runtime::{Runtime, mounts};
use crate::store::Store;
use crate::transaction::{Host, Plan};

/// What to change.
#[derive(Debug, Clone)]
pub struct Update {
    /// The container.
    pub name: ContainerName,
    /// `--set`
    pub values: BTreeMap<String, String>,
    /// The stored image to move to, and where it was pulled from; nothing: the same name as now.
    pub image: Option<(String, String)>,
}

/// Compute the update of a container to what the store has now.
pub fn update(host: &Host<'_>, request: &Update) -> Result<Outcome> {
    let config = host.config();
    let name = &request.name;
    let (lock, from) = change::lock_installed(host, name)?;
    let paths = Paths::new(config, name);
    let to = from.other();
    let current = paths.slot(from);
    let info = Info::read(&current)?;
    let store = Store::open(config)?;
    let (image_name, reference) = match &request.image {
        Some((image, reference)) => (image.clone(), Some(reference.clone())),
        None => (info.image.clone(), info.source.clone()),
    };
    let image = store.find_one(&image_name)?;
    let mut values = info.user_values.clone().unwrap_or_default();
    values.extend(request.values.clone());
    let before = info.user_values.as_ref().unwrap_or(&info.values);
    let same_values = request
        .values
        .iter()
        .all(|(key, value)| before.get(key) == Some(value));
    let renamed = image.name != info.image;
    if image.id() == info.revision && same_values && !renamed {
        return Ok(Outcome::Nothing("Latest version already installed.".into()));
    }
    let runtime = Runtime::find(Some(info.runtime.as_str()).filter(|path| !path.is_empty()))?;
    let options = info.options.clone().unwrap_or_default();
    let prepared = Prepared::new(&store, &image, info.remote.as_deref().map(Into::into))?;
    let mut rendered = render::render(
        config,
        &runtime,
        name,
        to,
        &prepared.source(&image, reference),
        &Wishes {
            values: &values,
            options: &options,
            uuid: info.values.get("UUID").map(String::as_str),
            inherited: info.user_values.is_none().then_some(&info.values),
        },
    )?;
    // Files that an older program installed on the host, and what others wrote, stay on record.
    let new = &mut rendered.info;
    new.installed_files.clone_from(&info.installed_files);
    new.installed_files_checksum = info.installed_files_checksum.clone();
    new.installed_files_template
        .clone_from(&info.installed_files_template);
    new.rename_installed_files = info.rename_installed_files.clone();
    new.rpm_installed.clone_from(&info.rpm_installed);
    new.other.clone_from(&info.other);
    if info.persistent.is_empty() && !new.persistent.is_empty() {
        mounts::check_state_directory(config, name.as_str())?;
    }
    let plan = Plan::new("update", name, Some(from), Some(to));
    change::deploy(
        host,
        &store,
        lock,
        plan,
        to,
        (&image, prepared.commit.clone()),
        rendered,
    )
}
