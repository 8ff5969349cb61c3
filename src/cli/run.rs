use std::process::ExitCode;

use serde_json::json;

use super::Call;
use super::args::{ChangeArgs, SetArgs, SourceArgs};
use crate::command::Child;
use crate::container::run::{self, Exec, Once};
use crate::deployment::ContainerName;
use crate::error::{Error, Kind, Result};
use crate::runtime::spec::{RunOptions, Writable};
use crate::store::Store;
use crate::transaction::Host;
use crate::{fail, systemd};

/// Start a container's service, run a command in it, or run an image's command once
#[derive(Debug, clap::Args)]
#[command(
    after_help = "With the name of an installed container: without COMMAND its service is started, with one the command runs inside. With an image: its command, or COMMAND, runs in a throwaway deployment."
)]
pub struct Run {
    /// Installed container, or an image; what follows is the command to run
    #[arg(
        required = true,
        value_name = "NAME|IMAGE [COMMAND]",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    words: Vec<String>,
    /// Return at once; only for a command in a running container
    #[arg(short, long)]
    detach: bool,
    /// OCI runtime for an image [default: runc, or crun where there is no runc]
    #[arg(long, value_name = "PATH")]
    runtime: Option<String>,
    #[arg(short, long, hide = true)]
    name: Option<String>,
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    set: SetArgs,
    #[command(flatten)]
    source: SourceArgs,
}

/// Run a command in a running or stopped container
#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    /// Installed container and the command to run in it
    #[arg(
        required = true,
        num_args = 2..,
        value_names = ["NAME", "COMMAND"],
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    words: Vec<String>,
    /// Return at once; only in a running container
    #[arg(short, long)]
    detach: bool,
}

/// Stop a container's service
#[derive(Debug, clap::Args)]
pub struct Stop {
    /// Installed container
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Tell whether a container runs; the exit status is that of "systemctl status": 0 it runs, 3 it does
/// not, 4 there is none of that name
#[derive(Debug, clap::Args)]
pub struct Status {
    /// Installed container
    #[arg(value_name = "NAME")]
    name: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Show what a container wrote
#[derive(Debug, clap::Args)]
pub struct Logs {
    /// Installed container
    #[arg(value_name = "NAME")]
    name: String,
    /// Go on showing what it writes
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines
    #[arg(short = 'n', long, value_name = "LINES")]
    lines: Option<u32>,
    /// Only what was written since then: a time as in systemd.time(7)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
}

const NOT_RUNNING: u8 = 3;
const NO_SUCH: u8 = 4;

impl Run {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let Some((first, command)) = self.words.split_first() else {
            fail!(Kind::Usage, "a container or an image is missing");
        };
        if self.name.is_some() {
            fail!(Kind::Usage, "--name is not supported by this backend");
        }
        let values = self.set.values()?;
        let step = |what: String| match &command.join(" ") {
            words if words.is_empty() => what,
            words => format!("{what}: {words}"),
        };
        if let Some(name) = run::installed(call.config, first)? {
            if command.is_empty() {
                return start(call, &name, &self.change);
            }
            let steps = [step(format!("run a command in {name}"))];
            if let Some(code) = self.change.told(call, "run", &steps)? {
                return Ok(code);
            }
            let request = Exec {
                name,
                command: command.to_vec(),
                detach: self.detach,
            };
            return Ok(passed_on(run::exec(&Host::new(call.config), &request)?));
        }
        // Neither qualified nor tagged nor stored: rather a container's name that is misspelt.
        let looks_like_image = first.contains(['/', ':', '@']);
        if !looks_like_image {
            let stored = match Store::open_existing(call.config)? {
                Some(store) => !store.find(first)?.is_empty(),
                None => false,
            };
            if !stored {
                fail!(Kind::NotFound, "The container '{first}' doesn't exist");
            }
        }
        if self.detach {
            fail!(
                Kind::Usage,
                "Cannot use --detach with not running containers"
            );
        }
        let reference = self.source.reference(first)?;
        let steps = [step(format!("run {reference} once"))];
        if let Some(code) = self.change.told(call, "run", &steps)? {
            return Ok(code);
        }
        let store = Store::open(call.config)?;
        let image = self.source.ensure(call, &store, &reference)?;
        let request = Once {
            name: None,
            image,
            values,
            options: RunOptions {
                command: command.to_vec(),
                writable: Writable::No,
                ..RunOptions::default()
            },
            runtime: self.runtime,
        };
        Ok(passed_on(run::once(call.config, store, &request)?))
    }
}

fn start(call: &mut Call<'_>, name: &ContainerName, change: &ChangeArgs) -> Result<ExitCode> {
    let unit = name.unit();
    let manager = systemd::Manager::connect(call.config.is_system)?;
    let steps: Vec<String> = (!manager.status(&unit)?.is_active())
        .then(|| format!("start {unit}"))
        .into_iter()
        .collect();
    if let Some(code) = change.told(call, "start", &steps)? {
        return Ok(code);
    }
    manager
        .start(&unit, None, &call.config.interrupt)
        .map_err(|error| systemd::with_journal(error, &unit, call.config.is_system))?;
    change.done(call, "start", &steps)
}

/// The exit code that a command's end becomes; a shell counts signals from 128.
pub fn passed_on(status: std::process::ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt as _;
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, signal) => 128 + signal.unwrap_or(0),
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

impl ExecArgs {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let Some((name, command)) = self.words.split_first() else {
            fail!(Kind::Usage, "a container is missing");
        };
        let request = Exec {
            name: installed(call, name)?,
            command: command.to_vec(),
            detach: self.detach,
        };
        Ok(passed_on(run::exec(&Host::new(call.config), &request)?))
    }
}

impl Stop {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let name = installed(call, &self.name)?;
        let unit = name.unit();
        let manager = systemd::Manager::connect(call.config.is_system)?;
        let steps: Vec<String> = manager
            .status(&unit)?
            .is_active()
            .then(|| format!("stop {unit}"))
            .into_iter()
            .collect();
        if let Some(code) = self.change.told(call, "stop", &steps)? {
            return Ok(code);
        }
        manager.stop(&unit)?;
        self.change.done(call, "stop", &steps)
    }
}

impl Status {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let Some(name) = run::installed(call.config, &self.name)? else {
            call.out
                .note(format!("The container '{}' doesn't exist", self.name));
            return Ok(ExitCode::from(NO_SUCH));
        };
        let row = run::status(&Host::new(call.config), &name)?;
        if self.json {
            let mut shown = json!(row);
            shown["version"] = 1.into();
            call.out.json(&shown)?;
        } else {
            for (key, value) in [
                ("container", &row.name),
                ("state", &row.state),
                ("image", &row.image_name),
                ("image id", &row.image_id),
                ("deployed", &row.created),
                ("command", &row.command),
            ] {
                call.out.line(format!("{key}: {value}"))?;
            }
            if let Some(problem) = &row.problem {
                call.out.line(format!("problem: {problem}"))?;
            }
        }
        Ok(if row.state == "running" {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(NOT_RUNNING)
        })
    }
}

impl Logs {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let name = installed(call, &self.name)?;
        let mut child = Child::new("journalctl").args([
            systemd::unit_option(call.config.is_system),
            &name.unit(),
            "--no-pager",
        ]);
        if self.follow {
            child = child.arg("--follow");
        }
        if let Some(lines) = self.lines {
            child = child.arg(format!("--lines={lines}"));
        }
        if let Some(since) = &self.since {
            child = child.arg(format!("--since={since}"));
        }
        Ok(passed_on(child.status()?))
    }
}

fn installed(call: &Call<'_>, text: &str) -> Result<ContainerName> {
    let name: ContainerName = text.parse()?;
    run::installed(call.config, name.as_str())?.ok_or_else(|| {
        Error::new(
            Kind::NotFound,
            format!("The container '{name}' doesn't exist"),
        )
    })
}
