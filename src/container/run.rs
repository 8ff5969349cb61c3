//! Commands in containers: inside a running one, in a stopped one, or in a throwaway deployment of
//! an image.
//!
//! # Format
//! `C/.run/ID/` is the bundle of one command: `config.json`, `lock` (held while it runs), and for a
//! throwaway deployment `lower/` (hard links into the repository), `upper/`, `work/` and `rootfs/`,
//! where the overlay of these is mounted. That mount is in a namespace of its own, so that a kill
//! leaves no mount behind; what else it leaves is swept by the next command.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::process::ExitStatus;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};

use super::change;
use super::install::Prepared;
use super::render::{self, Wishes};
use crate::command::Child;
use crate::config::Config;
use crate::deployment::{ContainerName, Info, Paths, in_use};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::runtime::Runtime;
use crate::runtime::spec::{Owned, RunOptions};
use crate::runtime::userns::Mapping;
use crate::safefs::{self, Lock, Mode};
use crate::store::Store;
use crate::store::images::StoredImage;
use crate::systemd::tmpfiles;
use crate::transaction::Host;

/// A label by which an image says that it is a command and no service.
const ONCE_LABEL: &str = "atomic.run";

/// How long a detached command may take to be started.
const START_LIMIT: Duration = Duration::from_mins(1);

/// A command to run in an installed container.
#[derive(Debug, Clone)]
pub struct Exec {
    /// The container.
    pub name: ContainerName,
    /// The command.
    pub command: Vec<String>,
    /// Return at once; only where the container runs.
    pub detach: bool,
}

/// A command to run in a throwaway deployment.
#[derive(Debug, Clone)]
pub struct Once {
    /// The name it gets as `$NAME`; nothing: a unique one.
    pub name: Option<ContainerName>,
    /// The stored image.
    pub image: StoredImage,
    /// `--set`
    pub values: BTreeMap<String, String>,
    /// What of the image's own is another: its command, and what else an image without a configuration of its own takes.
    pub options: RunOptions,
    /// `--runtime`
    pub runtime: Option<String>,
}

/// True if an image says that it is a command and no service.
pub fn is_once(store: &Store, image: &StoredImage) -> Result<bool> {
    Ok(store.image_config(image)?.label(ONCE_LABEL) == Some("once"))
}

/// Run a command in an installed container and return how it ended.
///
/// # Errors
/// [`Kind::Usage`] for a detached command in a container that does not run.
pub fn exec(host: &Host<'_>, request: &Exec) -> Result<ExitStatus> {
    let config = host.config();
    let name = &request.name;
    let deployment = in_use(config, name)?.ok_or_else(|| {
        Error::new(
            Kind::NotFound,
            format!("The container '{name}' doesn't exist"),
        )
    })?;
    let paths = Paths::new(config, name);
    let info = Info::read(&deployment)?;
    let runtime = Runtime::find(Some(info.runtime.as_str()).filter(|path| !path.is_empty()))?;
    let status = host.manager()?.status(&name.unit())?;
    if matches!(status.active.as_str(), "activating" | "deactivating") {
        fail!(
            Kind::Unit,
            "{name} is {}: try again when that is done",
            status.active
        );
    }
    if status.is_active() {
        let mut child = Child::new(runtime.path()).arg("exec");
        if request.detach {
            // Not on our output, which it would hold open.
            let finished = child
                .args(["--detach", name.as_str()])
                .args(&request.command)
                .output_within(START_LIMIT)?;
            if !finished.status.success() {
                let said = String::from_utf8_lossy(&finished.stdout);
                fail!(Kind::Failed, "{}", said.trim());
            }
            return Ok(finished.status);
        }
        if is_terminal() {
            child = child.arg("--tty");
        }
        return child.arg(name.as_str()).args(&request.command).status();
    }
    if request.detach {
        fail!(
            Kind::Usage,
            "Cannot use --detach with not running containers"
        );
    }
    let text = std::fs::read(deployment.join("config.json"))
        .context(|| format!("cannot read {deployment}/config.json"))?;
    let mut spec: Value = serde_json::from_slice(&text).kind(Kind::Invalid, || {
        format!("{deployment}/config.json is not valid")
    })?;
    let rootfs = deployment.join("rootfs");
    let rootfs = rootfs.canonicalize_utf8().unwrap_or(rootfs);
    spec["root"] = json!({"path": rootfs, "readonly": true});
    let bundle = Bundle::new(config)?;
    fit(&mut spec, &request.command);
    bundle.write(&spec)?;
    let _alone = alone(config, name)?;
    make_directories(config, &paths, name, &info)?;
    let _held = config.interrupt.hold();
    Child::new(runtime.path())
        .args(["run", "--bundle", bundle.path.as_str(), &bundle.container])
        .status_held(&config.interrupt, grace(config), || {
            bundle.kill(&runtime);
        })
}

/// In a user's container the directories of a run are made anew, so there is one at a time.
fn alone(config: &Config, name: &ContainerName) -> Result<Option<Lock>> {
    if config.is_system {
        return Ok(None);
    }
    let path = config.checkouts.join(format!(".locks/.exec-{name}"));
    let what = format!("{name} for a command while it is stopped");
    Lock::take(path.as_std_path(), Mode::Exclusive, &what).map(Some)
}

/// Make the directories that the service's own start would make.
fn make_directories(
    config: &Config,
    paths: &Paths,
    name: &ContainerName,
    info: &Info,
) -> Result<()> {
    if !paths.tmpfiles().exists() {
        return Ok(());
    }
    if config.is_system {
        return tmpfiles::create(&paths.tmpfiles());
    }
    let mapping = Mapping::of_user();
    let run = config.run_directory.join("atomic-rs").join(name.as_str());
    mapping.remove_tree(&run)?;
    tmpfiles::create(&paths.tmpfiles())?;
    for Owned { owner, mode, path } in info.owned.iter().filter(|_| mapping.has_range()) {
        mapping.run_as_root("chown", &[owner, path.as_str()], &[])?;
        mapping.run_as_root("chmod", &[mode, path.as_str()], &[])?;
    }
    Ok(())
}

/// Run a command in a throwaway deployment of an image and return how it ended. The store is let go of when the image
/// is checked out.
pub fn once(config: &Config, store: Store, request: &Once) -> Result<ExitStatus> {
    if !config.is_system {
        fail!(
            Kind::Permission,
            "Only root can run an image that is not installed"
        );
    }
    let image = &request.image;
    let runtime = Runtime::find(request.runtime.as_deref().or(config.runtime.as_deref()))?;
    let bundle = Bundle::new(config)?;
    let name = match &request.name {
        Some(name) => name.clone(),
        None => bundle.container.parse()?,
    };
    let prepared = Prepared::new(config, &store, image, None)?;
    let rendered = render::render(
        config,
        &runtime,
        &name,
        &bundle.path,
        &prepared.source(image, None),
        &Wishes {
            values: &request.values,
            options: &request.options,
            uuid: None,
            inherited: None,
            once: true,
            elsewhere: false,
        },
    )?;
    let mut spec: Value = serde_json::from_str(&rendered.config)
        .kind(Kind::Invalid, || "the configuration is not valid".into())?;
    let own_config = rendered.has_own_config;
    fit(
        &mut spec,
        if own_config {
            &request.options.command
        } else {
            &[]
        },
    );
    spec["root"] = json!({"path": "rootfs", "readonly": false});
    bundle.write(&spec)?;
    if let Some(commit) = &prepared.commit {
        store.check_out_as(commit, &bundle.path, "lower")?;
    }
    drop(prepared);
    drop(store);
    for directory in ["upper", "work", "rootfs"] {
        let path = bundle.path.join(directory);
        std::fs::create_dir(&path).context(|| format!("cannot create {path}"))?;
    }
    let _held = config.interrupt.hold();
    let text = rendered.tmpfiles.unwrap_or_default();
    tmpfiles::create_text(&text)?;
    let options = format!(
        "lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work",
        bundle.path
    );
    let status = Child::new("unshare")
        .args(["--mount", "--", "sh", "-c"])
        .arg("mount -t overlay overlay -o \"$1\" \"$2\" && shift 2 && exec \"$@\"")
        .args(["sh", options.as_str(), bundle.path.join("rootfs").as_str()])
        .args([runtime.path(), "run", "--bundle", bundle.path.as_str()])
        .arg(&bundle.container)
        .status_held(&config.interrupt, grace(config), || {
            bundle.kill(&runtime);
        });
    // Only what bears this run's name: a service of the same image may use the rest.
    let own: String = tmpfiles::lines_below(&text, &config.run_directory)
        .lines()
        .filter(|line| line.contains(name.as_str()))
        .flat_map(|line| [line, "\n"])
        .collect();
    tmpfiles::remove(&own)?;
    for path in tmpfiles::directories(&own).iter().rev() {
        // Others may use it as well.
        let _ = std::fs::remove_dir(path);
    }
    status
}

/// How long a command may take to end when it is asked to.
fn grace(config: &Config) -> Duration {
    Duration::from_secs(config.stop_timeout.into())
}

/// Fit a configuration to a command at a terminal instead of a service.
fn fit(spec: &mut Value, command: &[String]) {
    if !command.is_empty() {
        spec["process"]["args"] = json!(command);
    }
    spec["process"]["terminal"] = is_terminal().into();
    // The unit's cgroup is the unit's.
    if let Some(linux) = spec["linux"].as_object_mut() {
        linux.remove("cgroupsPath");
    }
}

fn is_terminal() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

/// A bundle that goes when it is dropped; those of killed commands go when the next one is made.
pub(super) struct Bundle {
    pub(super) path: Utf8PathBuf,
    /// The runtime's id.
    container: String,
    lock: Option<Lock>,
}

impl Bundle {
    pub(super) fn new(config: &Config) -> Result<Self> {
        let _turn = sweep_in_turn(config)?;
        let id = uuid::Uuid::new_v4().simple().to_string();
        let container = format!("run-{}", &id[..12]);
        let path = runs(config).join(&container);
        safefs::make_private_dir(runs(config).as_std_path())?;
        safefs::make_private_dir(path.as_std_path())?;
        let lock = Lock::take(path.join("lock").as_std_path(), Mode::Exclusive, &container)?;
        Ok(Self {
            path,
            container,
            lock: Some(lock),
        })
    }

    fn kill(&self, runtime: &Runtime) {
        // What is gone needs no kill; its end is seen by whoever waits.
        let _ = Child::new(runtime.path())
            .args(["kill", &self.container, "KILL"])
            .output();
    }

    fn write(&self, spec: &Value) -> Result<()> {
        let text =
            serde_json::to_vec_pretty(spec).context(|| "cannot write the configuration".into())?;
        let path = self.path.join("config.json");
        safefs::write_new_file(path.as_std_path(), &text, 0o600)
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if let Err(error) = clear(&self.path, &self.container) {
            tracing::warn!(%error, "the next command sweeps it");
        }
        self.lock.take();
    }
}

fn runs(config: &Config) -> Utf8PathBuf {
    config.checkouts.join(".run")
}

/// Remove what killed commands left.
pub fn sweep(config: &Config) -> Result<()> {
    if runs(config).is_dir() {
        sweep_in_turn(config)?;
    }
    Ok(())
}

/// While the returned lock is held no other command makes or sweeps a bundle: a bundle without a
/// lock of its own is one whose maker died.
fn sweep_in_turn(config: &Config) -> Result<Lock> {
    safefs::make_private_dir(config.checkouts.join(".locks").as_std_path())?;
    let turn = Lock::take(
        config.checkouts.join(".locks/.run").as_std_path(),
        Mode::Exclusive,
        "the throwaway deployments",
    )?;
    sweep_now(config)?;
    Ok(turn)
}

fn sweep_now(config: &Config) -> Result<()> {
    let Ok(entries) = runs(config).read_dir_utf8() else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let lock = path.join("lock");
        // Whose lock is held is at work.
        if lock.exists() && Lock::try_take(lock.as_std_path())?.is_none() {
            continue;
        }
        clear(path, entry.file_name())?;
    }
    Ok(())
}

fn clear(path: &Utf8Path, container: &str) -> Result<()> {
    for runtime in ["runc", "crun"] {
        if let Ok(runtime) = Runtime::find(Some(runtime)) {
            // Mostly there is nothing to delete.
            let _ = Child::new(runtime.path())
                .args(["delete", "--force", container])
                .output();
        }
    }
    safefs::remove_tree(path.as_std_path())
}

/// The container `name` if it is there, by us or by a package.
pub fn installed(config: &Config, name: &str) -> Result<Option<ContainerName>> {
    let Ok(name) = name.parse::<ContainerName>() else {
        return Ok(None);
    };
    Ok(in_use(config, &name)?.map(|_| name))
}

/// What a container is doing: its row and its unit's state.
pub fn status(host: &Host<'_>, name: &ContainerName) -> Result<super::list::Row> {
    if in_use(host.config(), name)?.is_none() {
        change::require(host.config(), name)?;
    }
    let status = host.manager()?.status(&name.unit())?;
    Ok(super::list::row(host.config(), name, Some(&status)))
}
