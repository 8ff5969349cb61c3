//! `org.freedesktop.systemd1.Manager`. Source: org.freedesktop.systemd1(5).

use std::collections::HashMap;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;

use zbus::fdo::PropertiesProxy;
use zbus::{Connection, OwnedObjectPath, block_on, proxy};

use crate::error::{Error, Kind, Result};
use crate::fail;
use crate::interrupt::Interrupt;

/// How often a job under way is looked at for a limit or a signal.
const POLL: Duration = Duration::from_millis(50);
const ALREADY_SUBSCRIBED: &str = "org.freedesktop.systemd1.AlreadySubscribed";
/// The interface with the properties of services.
const SERVICE: &str = "org.freedesktop.systemd1.Service";

/// One row of `ListUnitsByNames`.
type UnitRow = (
    String,
    String,
    String,
    String,
    String,
    String,
    OwnedObjectPath,
    u32,
    String,
    OwnedObjectPath,
);

/// One link that enabling or disabling a unit made or removed: kind, link, target.
type Change = (String, String, String);

#[proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Systemd {
    async fn subscribe(&self) -> zbus::Result<()>;
    async fn reload(&self) -> zbus::Result<()>;
    async fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    async fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    async fn kill_unit(&self, name: &str, whom: &str, signal: i32) -> zbus::Result<()>;
    async fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    async fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    async fn enable_unit_files(
        &self,
        files: &[&str],
        runtime: bool,
        force: bool,
    ) -> zbus::Result<(bool, Vec<Change>)>;
    async fn reenable_unit_files(
        &self,
        files: &[&str],
        runtime: bool,
        force: bool,
    ) -> zbus::Result<(bool, Vec<Change>)>;
    async fn disable_unit_files(&self, files: &[&str], runtime: bool) -> zbus::Result<Vec<Change>>;
    async fn get_unit_file_state(&self, file: &str) -> zbus::Result<String>;
    async fn list_units_by_names(&self, names: &[&str]) -> zbus::Result<Vec<UnitRow>>;
    async fn list_units(&self) -> zbus::Result<Vec<UnitRow>>;

    #[zbus(signal)]
    fn job_removed(
        &self,
        id: u32,
        job: OwnedObjectPath,
        unit: String,
        result: String,
    ) -> zbus::Result<()>;
}

/// What a unit is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitStatus {
    /// `loaded`, `not-found`, …
    pub load: String,
    /// `active`, `inactive`, `failed`, `activating`, …
    pub active: String,
    /// `running`, `dead`, `auto-restart`, …
    pub sub: String,
}

impl UnitStatus {
    /// True if the unit runs or is about to.
    pub fn is_active(&self) -> bool {
        matches!(self.active.as_str(), "active" | "activating" | "reloading")
    }
}

/// How a service is doing beyond its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceState {
    /// What it is doing.
    pub status: UnitStatus,
    /// `simple`, `forking`, `oneshot`, …
    pub kind: String,
    /// `success`, `exit-code`, `signal`, `timeout`, …
    pub result: String,
    /// How often systemd restarted it by itself since it was last started.
    pub restarts: u32,
}

/// A connection to the service manager.
#[derive(Debug)]
pub struct Manager {
    proxy: SystemdProxy<'static>,
}

impl Manager {
    /// Connect to the system's manager, or to the one of the user who runs us.
    ///
    /// # Errors
    /// [`Kind::Systemd`] where there is no D-Bus or no systemd.
    pub fn connect(is_system: bool) -> Result<Self> {
        let connect = async {
            let connection = if is_system {
                Connection::system().await?
            } else {
                zbus::connection::Builder::address(session_address().as_str())
                    .build()
                    .await?
            };
            SystemdProxy::new(&connection).await
        };
        block_on(connect)
            .map(|proxy| Self { proxy })
            .map_err(|error| {
                let text = if is_system {
                    format!("cannot reach systemd over D-Bus: {error}")
                } else {
                    format!(
                        "cannot reach systemd --user over D-Bus: {error}\nlog in, or have root run \"loginctl enable-linger\" for you"
                    )
                };
                Error::new(Kind::Systemd, text)
            })
    }

    /// `daemon-reload`.
    pub fn reload(&self) -> Result<()> {
        block_on(self.proxy.reload()).map_err(|error| explain("daemon-reload", &error))
    }

    /// Start a unit and wait for the job to end, at most for `limit`.
    ///
    /// # Errors
    /// [`Kind::Systemd`] unless the job's result is `done`; [`Kind::Interrupted`].
    pub fn start(&self, unit: &str, limit: Option<Duration>, interrupt: &Interrupt) -> Result<()> {
        let begun = Instant::now();
        self.waiting(unit, "start", || {
            interrupt.check()?;
            match limit {
                Some(limit) if begun.elapsed() > limit => fail!(
                    Kind::Unit,
                    "{unit} did not start within {} seconds",
                    limit.as_secs()
                ),
                _ => Ok(()),
            }
        })
    }

    /// Stop a unit whose new version was not good; what does not stop within `grace` is killed.
    pub fn stop_soon(&self, unit: &str, grace: Duration) -> Result<()> {
        if self.status(unit)?.load == "not-found" {
            return Ok(());
        }
        let begun = Instant::now();
        let mut killed = false;
        self.waiting(unit, "stop", || {
            if !killed && begun.elapsed() > grace {
                killed = true;
                // What is gone by now needs no kill.
                let _ = block_on(self.proxy.kill_unit(
                    unit,
                    "all",
                    rustix::process::Signal::KILL.as_raw(),
                ));
            }
            Ok(())
        })
    }

    /// Run a job on a thread of its own and look `meanwhile` whether to go on waiting. Where that
    /// says no, the caller gets its error, and the job ends when another one takes its place.
    fn waiting(
        &self,
        unit: &str,
        verb: &'static str,
        mut meanwhile: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let (done, result) = mpsc::channel();
        let worker = Self {
            proxy: self.proxy.clone(),
        };
        let name = unit.to_owned();
        std::thread::spawn(move || {
            // Nobody may be waiting any more.
            let _ = done.send(worker.job(&name, verb));
        });
        loop {
            match result.recv_timeout(POLL) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) => meanwhile()?,
                Err(RecvTimeoutError::Disconnected) => {
                    fail!(Kind::Systemd, "the job to {verb} {unit} was lost")
                }
            }
        }
    }

    /// Stop a unit and wait for the job to end; a unit that is not loaded is stopped.
    pub fn stop(&self, unit: &str) -> Result<()> {
        if self.status(unit)?.load == "not-found" {
            return Ok(());
        }
        self.job(unit, "stop")
    }

    /// Without a subscription systemd sends no signals about jobs; once is enough.
    async fn subscribe(&self) -> zbus::Result<()> {
        match self.proxy.subscribe().await {
            Err(zbus::Error::MethodError(name, ..)) if name.as_str() == ALREADY_SUBSCRIBED => {
                Ok(())
            }
            result => result,
        }
    }

    fn job(&self, unit: &str, verb: &str) -> Result<()> {
        let run = async {
            self.subscribe().await?;
            let mut removed = self.proxy.receive_job_removed().await?;
            let job = match verb {
                "start" => self.proxy.start_unit(unit, "replace").await?,
                _ => self.proxy.stop_unit(unit, "replace").await?,
            };
            while let Some(signal) = removed.next().await {
                let args = signal.args()?;
                if args.job == job {
                    return Ok(Some(args.result.clone()));
                }
            }
            Ok::<_, zbus::Error>(None)
        };
        match block_on(run).map_err(|error| explain(&format!("{verb} {unit}"), &error))? {
            Some(result) if result == "done" => Ok(()),
            Some(result) => fail!(
                Kind::Unit,
                "systemd could not {verb} {unit}: the job ended as \"{result}\""
            ),
            None => fail!(
                Kind::Systemd,
                "systemd went away while it was to {verb} {unit}"
            ),
        }
    }

    /// How a service is doing.
    pub fn service(&self, unit: &str) -> Result<ServiceState> {
        let ask = async {
            let path = self.proxy.load_unit(unit).await?;
            let properties = PropertiesProxy::builder(self.proxy.inner().connection())
                .destination("org.freedesktop.systemd1")
                .path(path)
                .build()
                .await?;
            let name = SERVICE.try_into()?;
            Ok::<_, zbus::Error>(properties.get_all(name).await?)
        };
        let all = block_on(ask).map_err(|error| explain(&format!("look at {unit}"), &error))?;
        let text = |key: &str| {
            all.get(key)
                .and_then(|value| value.downcast_ref::<String>().ok())
                .unwrap_or_default()
        };
        Ok(ServiceState {
            status: self.status(unit)?,
            kind: text("Type"),
            result: text("Result"),
            restarts: all
                .get("NRestarts")
                .and_then(|value| value.downcast_ref::<u32>().ok())
                .unwrap_or(0),
        })
    }

    /// Forget that a unit failed, so that its start limit does not stand in the way.
    pub fn reset_failed(&self, unit: &str) {
        // A unit that is not loaded has nothing to forget.
        if let Err(error) = block_on(self.proxy.reset_failed_unit(unit)) {
            tracing::debug!(unit, %error, "reset-failed");
        }
    }

    /// `enable`.
    pub fn enable(&self, unit: &str) -> Result<()> {
        block_on(self.proxy.enable_unit_files(&[unit], false, false))
            .map(|_| ())
            .map_err(|error| explain(&format!("enable {unit}"), &error))
    }

    /// `reenable`: follow a changed `[Install]` section.
    pub fn reenable(&self, unit: &str) -> Result<()> {
        block_on(self.proxy.reenable_unit_files(&[unit], false, false))
            .map(|_| ())
            .map_err(|error| explain(&format!("reenable {unit}"), &error))
    }

    /// `disable`.
    pub fn disable(&self, unit: &str) -> Result<()> {
        match block_on(self.proxy.disable_unit_files(&[unit], false)) {
            Ok(_) => Ok(()),
            // A unit that is gone has no links: recovery may come here twice.
            Err(error) if error.to_string().contains("NoSuchUnit") => Ok(()),
            Err(error) => Err(explain(&format!("disable {unit}"), &error)),
        }
    }

    /// True if the unit is enabled.
    pub fn is_enabled(&self, unit: &str) -> bool {
        block_on(self.proxy.get_unit_file_state(unit)).is_ok_and(|state| state == "enabled")
    }

    /// What one unit is doing.
    pub fn status(&self, unit: &str) -> Result<UnitStatus> {
        let mut all = by_name(block_on(self.proxy.list_units_by_names(&[unit])))?;
        all.remove(unit)
            .ok_or_else(|| Error::new(Kind::Systemd, format!("systemd does not know {unit}")))
    }

    /// What all units are doing that systemd has in memory, in one round trip. One that is missing does
    /// nothing and has not failed; to ask by name would make systemd read its file.
    pub fn statuses(&self) -> Result<HashMap<String, UnitStatus>> {
        let rows = block_on(self.proxy.list_units());
        by_name(rows)
    }
}

fn by_name(rows: zbus::Result<Vec<UnitRow>>) -> Result<HashMap<String, UnitStatus>> {
    let rows = rows.map_err(|error| explain("list units", &error))?;
    let rows = rows.into_iter();
    Ok(rows
        .map(|(name, _, load, active, sub, ..)| (name, UnitStatus { load, active, sub }))
        .collect())
}

/// The bus of the user's own manager, also where nobody logged in set it up for us.
fn session_address() -> String {
    std::env::var("DBUS_SESSION_BUS_ADDRESS").unwrap_or_else(|_| {
        let runtime = std::env::var("XDG_RUNTIME_DIR")
            .unwrap_or_else(|_| format!("/run/user/{}", rustix::process::geteuid().as_raw()));
        format!("unix:path={runtime}/bus")
    })
}

fn explain(what: &str, error: &zbus::Error) -> Error {
    Error::new(Kind::Systemd, format!("systemd: {what}: {error}"))
}
