//! Updating many containers: one that is bad never stops the rest.

use serde::Serialize;

use super::change::{self, Outcome};
use super::update::{self, Fetch, Update};
use crate::config::Config;
use crate::deployment::{ContainerName, Info, Ledger, Paths, installed};
use crate::error::{Kind, Result};
use crate::pull::Progress;
use crate::store::Store;
use crate::transaction::Host;
use crate::transport::Access;

/// A label by which an image asks to be kept current.
const LABEL: &str = "atomic.auto-update";

/// What became of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Status {
    /// It was not the newest and now is.
    #[serde(rename = "updated-now")]
    UpdatedNow,
    /// It would be updated, if this were no dry run.
    #[serde(rename = "would-update")]
    WouldUpdate,
    /// It was the newest already.
    #[serde(rename = "updated")]
    Updated,
    /// There is a newer one, which is not deployed for a reason.
    #[serde(rename = "skipped")]
    Skipped,
    /// It could not be updated.
    #[serde(rename = "failed")]
    Failed,
}

impl Status {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::UpdatedNow => "Updated now",
            Self::WouldUpdate => "Would update",
            Self::Updated => "Updated",
            Self::Skipped => "Skipped",
            Self::Failed => "Failed",
        }
    }
}

/// One container's row of the summary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The container.
    pub name: String,
    /// Its image id before.
    pub before: String,
    /// Its image id after.
    pub after: String,
    /// The newest image id that is known.
    pub latest: Option<String>,
    /// What became of it.
    pub status: Status,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// How long it did not serve, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outage_ms: Option<u128>,
}

/// How many containers are updated.
#[derive(Debug, Clone)]
pub struct How {
    /// Change nothing.
    pub dry: bool,
    /// When the registry is asked.
    pub fetch: Fetch,
    /// How.
    pub access: Access,
}

/// Update `names` one after the other. `begin` hears each name before its turn.
///
/// # Errors
/// Only [`Kind::Interrupted`]: everything else is a row.
pub fn update_all(
    host: &Host<'_>,
    names: &[ContainerName],
    how: &How,
    progress: &mut dyn Progress,
    mut begin: impl FnMut(&ContainerName),
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for name in names {
        begin(name);
        let before = revision(host.config(), name);
        let request = Update {
            unattended: true,
            dry: how.dry,
            fetch: how.fetch,
            access: how.access.clone(),
            ..Update::new(name.clone())
        };
        let mut row = Row {
            name: name.to_string(),
            before: before.clone(),
            after: String::new(),
            latest: None,
            status: Status::Failed,
            detail: None,
            outage_ms: None,
        };
        let result = one(host, &request, progress, &mut row);
        row.after = revision(host.config(), name);
        match result {
            Ok(status) => row.status = status,
            Err(error) if matches!(error.kind(), Kind::Interrupted(_)) => return Err(error),
            Err(error) => row.detail = Some(error.to_string()),
        }
        if row.latest.is_none() {
            row.latest = latest(host.config(), name);
        }
        rows.push(row);
    }
    Ok(rows)
}

fn one(
    host: &Host<'_>,
    request: &Update,
    progress: &mut dyn Progress,
    row: &mut Row,
) -> Result<Status> {
    match update::update(host, request, progress)? {
        Outcome::Nothing(_) => Ok(Status::Updated),
        Outcome::Skipped(why) => {
            row.detail = Some(why);
            Ok(Status::Skipped)
        }
        Outcome::Preview(preview) => {
            row.latest = preview.effects.to_image.map(|image| image.id);
            Ok(Status::WouldUpdate)
        }
        Outcome::Change(change) => {
            row.latest = change
                .effects
                .to_image
                .as_ref()
                .map(|image| image.id.clone());
            if request.dry {
                return Ok(Status::WouldUpdate);
            }
            let report = change.apply(host)?;
            row.outage_ms = report.outage.map(|outage| outage.as_millis());
            Ok(Status::UpdatedNow)
        }
    }
}

fn revision(config: &Config, name: &ContainerName) -> String {
    let paths = Paths::new(config, name);
    paths
        .current()
        .ok()
        .flatten()
        .and_then(|slot| Info::read(&paths.slot(slot)).ok())
        .map(|info| info.revision)
        .unwrap_or_default()
}

/// What the store has under the container's image name.
fn latest(config: &Config, name: &ContainerName) -> Option<String> {
    let paths = Paths::new(config, name);
    let info = Info::read(&paths.slot(paths.current().ok()??)).ok()?;
    let store = Store::open_existing(config).ok()??;
    store.image(&info.image).ok()?.map(|image| image.id())
}

/// The containers that are to be kept current without being named: what was said of the container
/// comes before its image's label, and that before the configuration.
pub fn opted_in(config: &Config) -> Result<Vec<ContainerName>> {
    let mut names = installed(config)?;
    let store = Store::open_existing(config)?;
    names.retain(|name| {
        let paths = Paths::new(config, name);
        let policy = Ledger::load(&paths).map(|ledger| ledger.policy);
        match policy {
            Ok(policy) => policy
                .auto_update
                .or_else(|| labelled(config, store.as_ref(), name))
                .unwrap_or(config.auto_update),
            Err(error) => {
                tracing::warn!(%name, %error, "left out");
                false
            }
        }
    });
    Ok(names)
}

fn labelled(config: &Config, store: Option<&Store>, name: &ContainerName) -> Option<bool> {
    let paths = Paths::new(config, name);
    let info = Info::read(&paths.slot(paths.current().ok()??)).ok()?;
    let store = store?;
    let image = update::current_image(store, &info).ok()?;
    let config = store.image_config(&image).ok()?;
    match config.label(LABEL)?.to_lowercase().as_str() {
        "true" | "yes" | "on" | "1" | "registry" => Some(true),
        "false" | "no" | "off" | "0" | "disabled" => Some(false),
        _ => None,
    }
}

/// Decide about a container's updates: `decide` changes the policy it is given.
pub fn decide(
    host: &Host<'_>,
    name: &ContainerName,
    decide: impl FnOnce(&mut crate::deployment::Policy),
) -> Result<()> {
    let (_lock, _) = change::lock_installed(host, name)?;
    let paths = Paths::new(host.config(), name);
    let mut ledger = Ledger::load(&paths)?;
    decide(&mut ledger.policy);
    ledger.save(&paths)
}
