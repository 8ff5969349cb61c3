//! Listing containers: one broken container never hides another, and all states come in one
//! round trip.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::deployment::{ContainerName, Info, in_use, installed, preinstalled, read_config};
use crate::error::{Error, Kind, Result};
use crate::systemd::{Manager, UnitStatus};

/// One row of `containers list`, in the shape of its `--json`.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The container's name.
    pub id: String,
    /// The image id.
    pub image_id: String,
    /// The image's name.
    pub image_name: String,
    /// The container's name.
    pub name: String,
    /// The command, its words joined by spaces.
    pub command: String,
    /// When it was deployed: local time `YYYY-MM-DD HH:MM`.
    pub created: String,
    /// `running`, `inactive`, `failed`, `no service`, or `broken`.
    pub state: String,
    /// `ostree`
    pub backend: &'static str,
    /// The OCI runtime's path.
    pub runtime: String,
    /// Kept for programs that read the original's output; always false.
    pub vulnerable: bool,
    /// False only for inactive ones.
    pub running: bool,
    /// What is wrong with a broken one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// All containers of a host.
pub fn list(config: &Config) -> Result<Vec<Row>> {
    let mut names = installed(config)?;
    if config.is_system {
        names.extend(preinstalled(config));
    }
    if names.is_empty() {
        return Ok(Vec::new());
    }
    // systemd answers while the files are read.
    let (states, found) = std::thread::scope(|scope| {
        let asked = || Manager::connect(config.is_system)?.statuses();
        let states = scope.spawn(asked);
        let read = |names: &[ContainerName]| -> Vec<Found> {
            let found = names.iter().map(|name| Found::read(config, name));
            found.collect()
        };
        // Most of it is configurations, which are long.
        let (ours, theirs) = names.split_at(names.len() / 2);
        let second = scope.spawn(move || read(theirs));
        let mut found = read(ours);
        found.extend(second.join().unwrap_or_else(|_| read(theirs)));
        let died = |_| {
            Err(Error::new(
                Kind::Failed,
                "the thread that asks systemd died",
            ))
        };
        (states.join().unwrap_or_else(died), found)
    });
    let states = states.unwrap_or_else(|error| {
        tracing::warn!(%error, "the states of the containers are not known");
        HashMap::new()
    });
    let found = names.iter().zip(found);
    Ok(found
        .map(|(name, found)| found.row(name, states.get(&name.unit())))
        .collect())
}

/// One container.
pub fn row(config: &Config, name: &ContainerName, status: Option<&UnitStatus>) -> Row {
    Found::read(config, name).row(name, status)
}

/// What the deployment in use says.
#[derive(Default)]
struct Found {
    info: Info,
    command: String,
    problem: Option<String>,
}

impl Found {
    fn read(config: &Config, name: &ContainerName) -> Self {
        let read = || -> Result<Self> {
            let deployment = in_use(config, name)?.unwrap_or_default();
            Ok(Self {
                info: Info::read(&deployment)?,
                command: command(&deployment),
                problem: None,
            })
        };
        read().unwrap_or_else(|error| Self {
            problem: Some(error.to_string()),
            ..Self::default()
        })
    }

    fn row(self, name: &ContainerName, status: Option<&UnitStatus>) -> Row {
        let state = if self.problem.is_some() {
            "broken"
        } else if !self.info.has_container_service {
            "no service"
        } else {
            match status.map(|status| status.active.as_str()) {
                Some("active" | "reloading") => "running",
                Some("failed") => "failed",
                _ => "inactive",
            }
        };
        Row {
            id: name.to_string(),
            image_id: self.info.revision,
            image_name: self.info.image,
            name: name.to_string(),
            command: self.command,
            created: local_time(self.info.created),
            state: state.to_owned(),
            backend: "ostree",
            runtime: self.info.runtime,
            vulnerable: false,
            running: state != "inactive",
            problem: self.problem,
        }
    }
}

/// The part of a `config.json` that is listed; the rest is passed over.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    process: Process,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Process {
    args: Vec<String>,
}

fn command(deployment: &camino::Utf8Path) -> String {
    let spec: Spec = read_config(deployment).unwrap_or_default();
    spec.process.args.join(" ")
}

/// Seconds since 1970 as local time, `YYYY-MM-DD HH:MM`.
pub fn local_time(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map(|time| {
            time.to_zoned(jiff::tz::TimeZone::system())
                .strftime("%Y-%m-%d %H:%M")
                .to_string()
        })
        .unwrap_or_default()
}
