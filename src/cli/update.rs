use std::process::ExitCode;

use serde_json::json;

use super::Call;
use super::args::{ChangeArgs, SetArgs, SourceArgs, WatchArgs};
use crate::container::all::{self, How, Row, Status};
use crate::container::{self, Fetch, list};
use crate::deployment::ContainerName;
use crate::error::{Error, Kind, Result};
use crate::fail;
use crate::hostfiles::package::Mode;
use crate::image::short_id;
use crate::transaction::Host;

/// Update a container to the newest image of its name, or to another image
#[allow(clippy::struct_excessive_bools)] // one flag each
#[derive(Debug, clap::Args)]
pub struct Update {
    /// Installed container
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Every container; one that fails does not stop the rest
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    set: SetArgs,
    /// Move to another image
    #[arg(long, value_name = "IMAGE")]
    rebase: Option<String>,
    /// Pull the image first
    #[arg(long, overrides_with = "no_pull")]
    pull: bool,
    /// Use what the store has
    #[arg(long, overrides_with = "pull")]
    no_pull: bool,
    /// Deploy an image that failed before, move a pinned container, and go on where the deployment
    /// in use could not be put back
    #[arg(long)]
    force: bool,
    /// Let the image put files at or below this path of the host, which is closed to images otherwise;
    /// kept from now on
    #[arg(long, value_name = "PATH")]
    allow_host_path: Vec<camino::Utf8PathBuf>,
    /// How the image's files for the host are installed, auto, yes or no: see "install"; kept from now on
    #[arg(long, value_name = "MODE")]
    system_package: Option<Mode>,
    /// Let the image's own package run its scripts on this host; kept from now on
    #[arg(long)]
    allow_package_scripts: bool,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    source: SourceArgs,
}

impl Update {
    /// Called by the name of the original: what is not a container is an image.
    pub fn run_as_original(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let image = match &self.name {
            Some(name) => container::run::installed(call.config, name)?.is_none(),
            None => self.all && self.source.names_storage(),
        };
        if image {
            let not_for_images = self.rebase.is_some()
                || self.pull
                || self.no_pull
                || !self.set.values()?.is_empty()
                || !self.allow_host_path.is_empty()
                || self.system_package.is_some()
                || self.allow_package_scripts
                || self.watch.watch.is_some()
                || self.watch.health_cmd.is_some();
            if not_for_images {
                fail!(
                    Kind::Usage,
                    "there is no container of that name, and these options are for containers"
                );
            }
            let (name, force) = (self.name, self.force);
            let update = super::image::UpdateImage::of(name, force, self.change, self.source);
            return update.run(call);
        }
        self.run(call, true)
    }

    pub fn run(self, call: &mut Call<'_>, pulls: bool) -> Result<ExitCode> {
        let values = self.set.values()?;
        if self.all {
            if self.name.is_some() {
                fail!(
                    Kind::Usage,
                    "Incompatible options specified.  --all doesn't support a container name"
                );
            }
            if self.force || self.watch.watch.is_some() || self.watch.health_cmd.is_some() {
                fail!(
                    Kind::Usage,
                    "Incompatible options specified.  --all doesn't support --force, --watch or --health-cmd"
                );
            }
            if self.system_package.is_some() || self.allow_package_scripts {
                fail!(
                    Kind::Usage,
                    "Incompatible options specified.  --all doesn't support --system-package or --allow-package-scripts"
                );
            }
            if !values.is_empty() || self.rebase.is_some() {
                fail!(
                    Kind::Usage,
                    "Incompatible options specified.  --all doesn't support --set or --rebase"
                );
            }
        }
        let name: Option<ContainerName> = self.name.as_deref().map(str::parse).transpose()?;
        let rebase = self
            .rebase
            .as_deref()
            .map(|image| self.source.reference(image))
            .transpose()?;
        if !self.all && name.is_none() {
            fail!(
                Kind::Usage,
                "Too few arguments.  Please specify the container"
            );
        }
        let host = Host::new(call.config);
        host.manager()?;
        let fetch = match (pulls || self.pull) && !self.no_pull {
            true => Fetch::Always,
            // An image that is not here at all has to come from somewhere.
            false if rebase.is_some() && !self.no_pull => Fetch::Missing,
            false => Fetch::Never,
        };
        let Some(name) = name else {
            let names = crate::deployment::installed(call.config)?;
            let how = How {
                dry: self.change.is_dry(),
                fetch,
                access: self.source.access(),
            };
            return many(call, &host, &names, &how, &self.change);
        };
        let request = container::Update {
            values,
            rebase,
            fetch,
            access: self.source.access(),
            force: self.force,
            dry: self.change.is_dry(),
            health_cmd: self.watch.health_cmd,
            watch: self.watch.watch,
            allow_host_paths: self.allow_host_path,
            system_package: self.system_package,
            allow_package_scripts: self.allow_package_scripts,
            ..container::Update::new(name)
        };
        let outcome = container::update(&host, &request, &mut call.meter())?;
        self.change.finish(call, &host, &outcome)
    }
}

const COLUMNS: [(&str, usize); 5] = [
    ("Container", 15),
    ("Image ID before update", 32),
    ("Image ID after update", 32),
    ("Latest image ID", 32),
    ("Status", 12),
];

/// Update these containers and say what became of each.
pub fn many(
    call: &mut Call<'_>,
    host: &Host<'_>,
    names: &[ContainerName],
    how: &How,
    args: &ChangeArgs,
) -> Result<ExitCode> {
    let mut progress = call.meter();
    let json = args.is_json();
    let out = &mut *call.out;
    let rows = all::update_all(host, names, how, &mut progress, |name| {
        if !json {
            // A reader that went away is noticed at the summary.
            let _ = out.line(format!("Checking container {name}..."));
        }
    })?;
    if json {
        call.out.json(&json!({"version": 1, "containers": rows}))?;
    } else {
        summary(call, &rows)?;
    }
    let any = |status: Status| rows.iter().any(|row| row.status == status);
    if any(Status::Failed) {
        let failed: Vec<&str> = rows
            .iter()
            .filter(|row| row.status == Status::Failed)
            .map(|row| row.name.as_str())
            .collect();
        fail!(Kind::Failed, "not updated: {}", failed.join(" "));
    }
    if any(Status::WouldUpdate) {
        return Ok(args.exit_code());
    }
    Ok(ExitCode::SUCCESS)
}

fn summary(call: &mut Call<'_>, rows: &[Row]) -> Result<()> {
    for row in rows {
        if let Some(detail) = &row.detail {
            call.out.note(format!("{}: {detail}", row.name));
        }
    }
    call.out.line("")?;
    call.out.line("SUMMARY")?;
    call.out.line("")?;
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                row.name.clone(),
                row.before.clone(),
                row.after.clone(),
                row.latest.clone().unwrap_or_else(|| "<NOT FOUND>".into()),
                row.status.words().to_owned(),
            ]
        })
        .collect();
    call.out.table(&COLUMNS, &cells, true, false, 0)
}

/// Update the containers that opted in: by "install --auto-update", by the image's label
/// atomic.auto-update, or by the configuration
#[derive(Debug, clap::Args)]
pub struct AutoUpdate {
    /// Outside the maintenance window as well
    #[arg(long)]
    now: bool,
    /// Keep this container current from now on, and do nothing else
    #[arg(long, value_name = "NAME", conflicts_with_all = ["disable", "now"])]
    enable: Option<String>,
    /// Leave this container alone from now on, and do nothing else
    #[arg(long, value_name = "NAME", conflicts_with = "now")]
    disable: Option<String>,
    #[command(flatten)]
    change: ChangeArgs,
}

impl AutoUpdate {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let host = Host::new(call.config);
        if let Some(name) = self.enable.as_deref().or(self.disable.as_deref()) {
            let wanted = self.enable.is_some();
            container::history(call.config, &name.parse()?)?;
            let what = if wanted { "enable" } else { "disable" };
            let steps = [format!("{what} auto-update of {name}")];
            if let Some(code) = self.change.told(call, "auto-update", &steps)? {
                return Ok(code);
            }
            all::decide(&host, &name.parse()?, |policy| {
                policy.auto_update = Some(wanted);
            })?;
            return self.change.done(call, "auto-update", &steps);
        }
        if let Some(window) = &call.config.update_window {
            let window: container::Window = window
                .parse()
                .map_err(|error: Error| error.within("the setting update_window"))?;
            if !window.is_open() && !self.now && !self.change.is_dry() {
                return self
                    .change
                    .nothing(call, &format!("outside the maintenance window {window}"));
            }
        }
        let names = all::opted_in(call.config)?;
        if names.is_empty() {
            return self
                .change
                .nothing(call, "no container is kept current by auto-update");
        }
        host.manager()?;
        let code = many(
            call,
            &host,
            &names,
            &How {
                dry: self.change.is_dry(),
                fetch: Fetch::Always,
                access: crate::transport::Access::default(),
            },
            &self.change,
        )?;
        if !self.change.is_dry() {
            // What neither an image nor a deployment needs any more; both slots' pins stay.
            crate::container::sweep(call.config)?;
            crate::store::Store::open_exclusive(call.config)?.prune(|_| ())?;
        }
        Ok(code)
    }
}

/// Keep a container at its image until it is unpinned
#[derive(Debug, clap::Args)]
pub struct Pin {
    /// Installed container
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Let a pinned container move again
#[derive(Debug, clap::Args)]
pub struct Unpin {
    /// Installed container
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    change: ChangeArgs,
}

impl Pin {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        pin(call, &self.name, true, &self.change)
    }
}

impl Unpin {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        pin(call, &self.name, false, &self.change)
    }
}

fn pin(call: &mut Call<'_>, name: &str, pinned: bool, change: &ChangeArgs) -> Result<ExitCode> {
    let name: ContainerName = name.parse()?;
    let steps: Vec<String> = match (
        container::history(call.config, &name)?.policy.pinned,
        pinned,
    ) {
        (false, true) => vec![format!("pin {name}")],
        (true, false) => vec![format!("unpin {name}")],
        _ => Vec::new(),
    };
    let verb = if pinned { "pin" } else { "unpin" };
    if let Some(code) = change.told(call, verb, &steps)? {
        return Ok(code);
    }
    all::decide(&Host::new(call.config), &name, |policy| {
        policy.pinned = pinned;
    })?;
    change.done(call, verb, &steps)
}

/// Show every deployment of a container and how it ended
#[derive(Debug, clap::Args)]
pub struct History {
    /// Installed container
    #[arg(value_name = "NAME")]
    name: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const HISTORY: [(&str, usize); 8] = [
    ("WHEN", 16),
    ("CHANGE", 8),
    ("IMAGE ID", 12),
    ("IMAGE", 20),
    ("RESULT", 11),
    ("OUTAGE", 8),
    ("FILES", 5),
    ("PACKAGE", 20),
];

impl History {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let name: ContainerName = self.name.parse()?;
        let ledger = container::history(call.config, &name)?;
        if self.json {
            call.out.json(&json!({
                "version": 1,
                "name": name,
                "policy": ledger.policy,
                "deployments": ledger.entries,
            }))?;
            return Ok(ExitCode::SUCCESS);
        }
        let verdict = |entry: &crate::deployment::Entry| {
            serde_json::to_value(entry.verdict)
                .ok()
                .and_then(|value| value.as_str().map(str::to_owned))
                .unwrap_or_default()
        };
        let cells: Vec<Vec<String>> = ledger
            .entries
            .iter()
            .map(|entry| {
                vec![
                    list::local_time(entry.time),
                    entry.verb.clone(),
                    entry.revision.clone(),
                    entry.image.clone(),
                    verdict(entry),
                    entry
                        .outage_ms
                        .map(|ms| format!("{ms} ms"))
                        .unwrap_or_default(),
                    entry.host_files.to_string(),
                    entry.package.clone().unwrap_or_default(),
                ]
            })
            .collect();
        // Few images bring anything to the host.
        let shown = if ledger.entries.iter().any(|entry| entry.host_files > 0) {
            HISTORY.len()
        } else {
            HISTORY.len() - 2
        };
        let cells: Vec<Vec<String>> = cells
            .into_iter()
            .map(|row| row.into_iter().take(shown).collect())
            .collect();
        call.out.table(&HISTORY[..shown], &cells, true, false, 0)?;
        for entry in &ledger.entries {
            if let Some(reason) = &entry.reason {
                call.out.line(format!(
                    "\n{} {}: {reason}",
                    list::local_time(entry.time),
                    short_id(&entry.revision)
                ))?;
                for line in &entry.log {
                    call.out.line(format!("  {line}"))?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
