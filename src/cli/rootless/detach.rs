//! Runs in the background: as a transient unit of the user's manager, or where there is none, as a session of
//! their own.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use camino::Utf8Path;

use super::super::Call;
use crate::command::Child;
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::rootless::{Container, DETACHED, Home};

/// What is slower to start counts as running only later.
const START: Duration = Duration::from_secs(5);
/// Between two looks.
const POLL: Duration = Duration::from_millis(5);

/// Stop what runs in containers
#[derive(Debug, clap::Args)]
pub struct Stop {
    /// Containers, by id or name
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
    /// Seconds between SIGTERM and SIGKILL
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10)]
    time: u32,
}

/// Show what a container wrote that runs, or ran, in the background
#[derive(Debug, clap::Args)]
pub struct Logs {
    /// A container, by id or name
    container: String,
    /// Go on showing what it writes
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines
    #[arg(short = 'n', long, value_name = "LINES")]
    lines: Option<u32>,
}

/// The container that this process runs in the background, if that is what it is for.
pub fn container() -> Option<String> {
    std::env::var(DETACHED).ok()
}

/// Start this very command line once more, for a container that is there, and do not wait for it.
pub fn detach(container: &Container) -> Result<()> {
    let program = std::env::current_exe().context(|| "cannot find myself".into())?;
    let id = &container.record.id;
    let log = container.log();
    let words = || std::env::args_os().skip(1);
    let said = length(&log);
    let directory = std::env::current_dir().context(|| "there is no working directory".into())?;
    if has_manager() {
        let mut child = Child::new("systemd-run")
            .args([
                "--user",
                "--quiet",
                "--collect",
                "--property=KillMode=mixed",
            ])
            .arg(format!("--unit=atomic-rs-{id}-{}", std::process::id()))
            .arg(format!("--property=StandardOutput=append:{log}"))
            .arg(format!("--property=StandardError=append:{log}"))
            .arg(format!("--working-directory={}", directory.display()))
            .arg(format!("--setenv={DETACHED}={id}"));
        for (name, _) in std::env::vars_os() {
            if let Some(name) = name.to_str().filter(|name| is_plain(name)) {
                // By name alone: its value is not for everybody who can list processes.
                child = child.arg(format!("--setenv={name}"));
            }
        }
        // The manager would put variables of its own into the words.
        let words = words().map(|word| word.to_string_lossy().replace('$', "$$"));
        child.arg("--").arg(program).args(words).run()?;
        return await_start(container, said);
    }
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log)
        .context(|| format!("cannot write {log}"))?;
    let also = log.try_clone().context(|| "cannot write the log".into())?;
    let mut command = Child::surviving("setsid")
        .arg("--fork")
        .arg(program)
        .args(words())
        .into_command();
    let status = command.env(DETACHED, id).stdout(log).stderr(also).status();
    let status = status.context(|| "cannot run setsid".into())?;
    if !status.success() {
        fail!(Kind::Failed, "cannot run in the background");
    }
    await_start(container, said)
}

/// Wait until it runs, or has ended already, which its log tells; but not for ever. `said`: so long that was before.
fn await_start(container: &Container, said: u64) -> Result<()> {
    let is_started = || -> Result<bool> {
        let speaks = length(&container.log()) > said;
        Ok(speaks || !container.path.exists() || !container.holders()?.is_empty())
    };
    let begun = Instant::now();
    while begun.elapsed() < START && !is_started()? {
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn length(log: &Utf8Path) -> u64 {
    std::fs::metadata(log).map_or(0, |log| log.len())
}

fn is_plain(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == b'_')
        && bytes.all(|c| c.is_ascii_alphanumeric() || c == b'_')
        && name != DETACHED
}

/// Whether the user has a manager of systemd's.
fn has_manager() -> bool {
    let runtime = std::env::var("XDG_RUNTIME_DIR").unwrap_or_default();
    !runtime.is_empty() && Path::new(&runtime).join("systemd/private").exists()
}

impl Stop {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let home = Home::of(call.config);
        for text in &self.containers {
            let container = home.require(text)?;
            if !container.stop(Duration::from_secs(self.time.into()))? {
                call.out
                    .note(format!("container {} is not running", container.record.id));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Logs {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let container = Home::of(call.config).require(&self.container)?;
        let log = container.log();
        if !log.exists() {
            fail!(
                Kind::NotFound,
                "nothing of container {} ran in the background",
                container.record.id
            );
        }
        let lines = self
            .lines
            .map_or_else(|| "+1".to_owned(), |lines| lines.to_string());
        let mut child = Child::new("tail").arg(format!("--lines={lines}"));
        if !self.follow {
            let status = child.args(["--", log.as_str()]).status()?;
            return Ok(super::super::run::passed_on(status));
        }
        // It ends with the process that writes.
        for holder in container.holders()? {
            child = child.arg(format!("--pid={holder}"));
        }
        let is_running = !container.holders()?.is_empty();
        if is_running {
            child = child.args(["--follow", "--sleep-interval=0.1"]);
        }
        let status = child.args(["--", log.as_str()]).status()?;
        Ok(super::super::run::passed_on(status))
    }
}
