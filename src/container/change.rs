//! What install, update, rollback and uninstall have in common.

use std::cell::Cell;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};

use crate::config::Config;
use crate::deployment::{self, ContainerName, Info, Paths, Slot, read_config};
use crate::error::{Error, Kind, Result};
use crate::safefs::Lock;
use crate::store::{DEPLOYMENT_PREFIX, Store};
use crate::systemd::tmpfiles;
use crate::transaction::{
    self, Applied, DeployFile, Host, Plan, Report, Step, Subject, TMPFILES_SETUP,
};

use super::effects::Effects;
use super::hostfiles;
use super::render::Rendered;
use super::spool::Spool;

/// A computed change, not applied yet. It holds the container's lock, so that what was computed
/// stays true, and until its image is pinned that of the store, so that nobody prunes it.
pub struct Change {
    /// What will happen.
    pub plan: Plan,
    /// What it means.
    pub effects: Effects,
    /// What a person should know.
    pub notes: Vec<String>,
    /// The file of its new package, until that is part of the deployment.
    pub(super) _package: Option<Arc<Spool>>,
    /// Where its new deployment comes from, for the one time that it is applied.
    pub(super) store: Cell<Option<Store>>,
    pub(super) _lock: Lock,
}

/// A change that cannot be applied yet: its image is not fetched.
pub struct Preview {
    /// Its steps, as far as they are known.
    pub plan: Option<Plan>,
    /// What it means.
    pub effects: Effects,
}

/// What a verb found out.
pub enum Outcome {
    /// There is nothing to do, and why.
    Nothing(String),
    /// There is something to do, and it is not done for this reason.
    Skipped(String),
    /// A dry run found an image that would have to be fetched first.
    Preview(Box<Preview>),
    /// There is a change to apply.
    Change(Box<Change>),
}

impl Change {
    /// It is only shown: whoever wants to prune need not wait for who reads that.
    pub fn let_go(&self) {
        drop(self.store.take());
    }

    /// Apply it.
    pub fn apply(&self, host: &Host<'_>) -> Result<Report> {
        transaction::apply(host, &self.plan, self.store.take())
    }
}

/// Lock a container and end what an interrupted command left. Who needs the store as well takes this lock first.
pub fn lock(host: &Host<'_>, name: &ContainerName) -> Result<Lock> {
    let lock = Paths::new(host.config(), name).take_lock()?;
    if let Some((verb, applied)) = transaction::recover(host, name)? {
        report(name, &verb, applied);
    }
    Ok(lock)
}

/// A container whose change was interrupted, the verb, and what became of it.
pub type Recovered = (ContainerName, Result<(String, Applied)>);

/// The same for a container that must be installed; nothing is left where it is not. Returns the
/// slot in use.
pub(super) fn lock_installed(host: &Host<'_>, name: &ContainerName) -> Result<(Lock, Slot)> {
    if !Paths::new(host.config(), name).journal().exists() {
        require(host.config(), name)?;
    }
    let lock = lock(host, name)?;
    let slot = require(host.config(), name)?;
    Ok((lock, slot))
}

/// The containers whose change was interrupted, or is under way.
pub fn interrupted(config: &Config) -> Result<Vec<ContainerName>> {
    let journals = config.checkouts.join(".journal");
    let mut names: Vec<ContainerName> = Vec::new();
    match std::fs::read_dir(&journals) {
        Ok(entries) => {
            for entry in entries.flatten() {
                let file = entry.file_name();
                let name = file.to_str().and_then(deployment::journal_of);
                names.extend(name);
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(Error::new(
                Kind::Failed,
                format!("cannot list {journals}: {error}"),
            ));
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// Bring every interrupted change of a host to an end. Returns what was done; one container's
/// trouble does not keep the others waiting.
pub fn recover_all(host: &Host<'_>, only: Option<&ContainerName>) -> Result<Vec<Recovered>> {
    let mut done = Vec::new();
    for name in interrupted(host.config())? {
        if only.is_some_and(|only| *only != name) {
            continue;
        }
        let _lock = Paths::new(host.config(), &name).take_lock()?;
        match transaction::recover(host, &name) {
            Ok(None) => {}
            Ok(Some(applied)) => done.push((name, Ok(applied))),
            Err(error) => done.push((name, Err(error))),
        }
    }
    Ok(done)
}

fn report(name: &ContainerName, verb: &str, applied: Applied) {
    match applied {
        Applied::Forward => tracing::warn!("the interrupted {verb} of {name} was completed"),
        Applied::Back => tracing::warn!("the interrupted {verb} of {name} was undone"),
    }
}

/// Refuse a container that is not installed. Returns the slot in use.
pub(super) fn require(config: &Config, name: &ContainerName) -> Result<Slot> {
    Paths::new(config, name).current()?.ok_or_else(|| {
        if config.preinstalled.join(name.as_str()).is_dir() {
            return Error::new(
                Kind::Exists,
                format!(
                    "Cannot update a preinstalled container: {name} belongs to a package, whose manager verifies, updates and removes it"
                ),
            );
        }
        Error::new(
            Kind::NotFound,
            format!("System container '{name}' is not installed"),
        )
    })
}

/// The ref that keeps what a deployment needs.
pub(super) fn pin(name: &ContainerName, slot: Slot) -> String {
    format!(
        "{DEPLOYMENT_PREFIX}{}/{slot}",
        crate::image::refname::encode(name.as_str())
    )
}

/// The rest of a change whose deployment is rendered: install and update end alike. `image`: the
/// commit of the image; `tree`: that of its files, unless they are elsewhere.
pub(super) fn deploy(
    host: &Host<'_>,
    store: &Store,
    lock: Lock,
    mut plan: Plan,
    slot: Slot,
    (image, tree): (&str, Option<String>),
    rendered: Rendered,
) -> Result<Change> {
    let paths = Paths::new(host.config(), &plan.name);
    plan.subject = Some(Subject {
        image: rendered.info.image.clone(),
        revision: rendered.info.revision.clone(),
        replaces: match plan.from {
            Some(from) => Info::read(&paths.slot(from)).ok().map(|info| info.revision),
            None => None,
        },
        auto_update: None,
        host_files: rendered.info.installed_files.len(),
        package: rendered
            .info
            .package
            .as_ref()
            .map(|package| package.version.clone()),
    });
    pin_steps(store, &mut plan, slot, image)?;
    deploy_steps(&paths, &mut plan, slot, tree, &rendered);
    hostfiles::steps(&mut plan, Some(slot), &rendered.host_files);
    switch_steps(
        host,
        &paths,
        &mut plan,
        Some(&rendered.info).filter(|_| rendered.unit.is_some()),
        rendered.tmpfiles.is_some(),
    )?;
    Ok(Change {
        plan,
        effects: Effects::default(),
        notes: [rendered.notes, rendered.host_files.compared.notes].concat(),
        _package: rendered.host_files.package.built,
        store: Cell::default(),
        _lock: lock,
    })
}

/// Refuse to touch a running service that could not be put back: its pieces must be there.
pub(super) fn check_return(paths: &Paths, from: Slot) -> Result<()> {
    let current = paths.slot(from);
    let missing = |what: &str| {
        Error::new(
            Kind::Invalid,
            format!("the deployment in use could not be put back if the new one fails: {what}"),
        )
    };
    if !current.join("rootfs").is_dir() {
        return Err(missing(&format!("{current}/rootfs is not there")));
    }
    if read_config::<serde_json::Value>(&current).is_none() {
        return Err(missing(&format!(
            "{current}/config.json is missing or broken"
        )));
    }
    let package = Info::read(&current)
        .ok()
        .and_then(|info| info.rpm_installed);
    if let Some(file) = package
        && !current.join(&file).is_file()
    {
        return Err(missing(&format!(
            "its package {current}/{file} is not there"
        )));
    }
    if !paths.unit().is_file() {
        return Err(missing(&format!("{} is not there", paths.unit())));
    }
    Ok(())
}

/// The steps that keep what a new deployment needs: a temporary ref while it is under way, so that
/// the slot's own still protects the deployment to return to, and the slot's when all is well.
fn pin_steps(store: &Store, plan: &mut Plan, slot: Slot, commit: &str) -> Result<()> {
    let own = pin(&plan.name, slot);
    let next = format!("{own}.next");
    let commit = Some(commit.to_owned());
    plan.stage.push(Step::SetRef {
        name: next.clone(),
        from: None,
        to: commit.clone(),
    });
    plan.close.push(Step::SetRef {
        from: store.resolve(&own)?,
        name: own,
        to: commit.clone(),
    });
    plan.close.push(Step::SetRef {
        name: next,
        from: commit,
        to: None,
    });
    Ok(())
}

/// The steps that bring a rendered deployment to `slot`, up to and including the switch.
fn deploy_steps(
    paths: &Paths,
    plan: &mut Plan,
    slot: Slot,
    commit: Option<String>,
    rendered: &Rendered,
) {
    let file = |name: String, content: &str, mode| DeployFile {
        name,
        content: content.to_owned(),
        mode,
    };
    let mut files = vec![
        // Both hold --set values, which are secrets.
        file("config.json".into(), &rendered.config, 0o600),
        file("info".into(), &rendered.info.to_text(), 0o600),
    ];
    if let Some(unit) = &rendered.unit {
        files.push(file(plan.name.unit(), unit, 0o600));
    }
    if let Some(text) = &rendered.tmpfiles {
        files.push(file(format!("tmpfiles-{}.conf", plan.name), text, 0o600));
    }
    plan.stage.push(Step::Deploy {
        slot,
        commit: commit.clone(),
        remote: rendered.info.remote.clone().map(Into::into),
        files,
    });
    owner_steps(plan, slot, &rendered.info, commit);
    plan.switch.push(Step::PlaceDeployment { slot });
    plan.close.push(Step::DropDeployment { slot });
    unit_file_steps(
        paths,
        plan,
        rendered.unit.as_deref(),
        rendered.tmpfiles.as_deref(),
    );
}

/// The steps that give a deployment that is in place another `info`.
pub(super) fn rewrite_info(plan: &mut Plan, deployment: &Utf8Path, info: &Info) {
    write_steps(plan, deployment.join("info"), info.to_text(), 0o600);
}

/// The steps that give a file new content, whether there is one or not.
fn write_steps(plan: &mut Plan, target: Utf8PathBuf, content: String, mode: u32) {
    let replaces = target.exists();
    plan.stage.push(Step::StageFile {
        target: target.clone(),
        content,
        mode,
    });
    plan.switch.push(Step::PlaceFile {
        target: target.clone(),
        replaces,
    });
    if replaces {
        plan.close.push(Step::DropFile { target });
    }
}

/// The steps that make the owner layer a deployment needs, if it needs one.
pub(super) fn owner_steps(plan: &mut Plan, slot: Slot, info: &Info, commit: Option<String>) {
    if let (Some(commit), Some(path)) = (commit, info.owner_layer.clone()) {
        plan.stage.push(Step::MakeOwners { slot, commit, path });
    }
}

/// The steps that give the unit and the tmpfiles.d file their new content, or remove them.
pub(super) fn unit_file_steps(
    paths: &Paths,
    plan: &mut Plan,
    unit: Option<&str>,
    tmpfiles: Option<&str>,
) {
    for (target, content) in [(paths.unit(), unit), (paths.tmpfiles(), tmpfiles)] {
        if let Some(content) = content {
            // Anyone can read units over D-Bus anyway, and systemd warns of closed ones.
            write_steps(plan, target, content.to_owned(), 0o644);
        } else if target.exists() {
            plan.switch.push(Step::RemoveFile {
                target: target.clone(),
            });
            plan.close.push(Step::DropFile { target });
        }
    }
}

/// Note what the unit is doing, and add the steps from the beginning of the outage to the proof of
/// a plan whose files are staged: every verb but uninstall ends like this. `service`: the new
/// deployment, if it has a unit.
pub(super) fn switch_steps(
    host: &Host<'_>,
    paths: &Paths,
    plan: &mut Plan,
    service: Option<&Info>,
    has_tmpfiles: bool,
) -> Result<()> {
    if plan.from.is_some() {
        note_unit(host, plan)?;
        let old_tmpfiles = std::fs::read_to_string(paths.tmpfiles()).unwrap_or_default();
        stop_steps(host.config(), paths, plan, &old_tmpfiles);
    }
    plan.switch.push(Step::Switch {
        from: plan.from,
        to: plan.to,
    });
    prove_steps(host.config(), paths, plan, service, has_tmpfiles);
    if !host.config().is_system && has_tmpfiles && !makes_its_directories(paths, plan) {
        let manager = host.manager()?;
        if !manager.is_enabled(TMPFILES_SETUP) {
            plan.prove.insert(0, Step::EnableTmpfiles);
        }
    }
    Ok(())
}

/// True if the new unit runs systemd-tmpfiles before its container, as ours do.
fn makes_its_directories(paths: &Paths, plan: &Plan) -> bool {
    plan.stage.iter().any(|step| {
        matches!(step, Step::StageFile { target, content, .. }
            if *target == paths.unit() && content.lines().any(|line|
                line.starts_with("ExecStartPre=") && line.contains("systemd-tmpfiles")))
    })
}

/// Note whether the unit is running and enabled: so it will be afterwards.
pub(super) fn note_unit(host: &Host<'_>, plan: &mut Plan) -> Result<()> {
    let unit = plan.name.unit();
    let manager = host.manager()?;
    plan.was_active = manager.status(&unit)?.is_active();
    plan.was_enabled = manager.is_enabled(&unit);
    Ok(())
}

/// The steps that begin the outage.
pub(super) fn stop_steps(host: &Config, paths: &Paths, plan: &mut Plan, old_tmpfiles: &str) {
    if plan.was_active {
        plan.stop.push(Step::StopUnit {
            unit: plan.name.unit(),
        });
    }
    let lines = tmpfiles::lines_below(old_tmpfiles, &host.run_directory);
    if !lines.is_empty() && paths.tmpfiles().exists() {
        plan.stop.push(Step::RemoveVolatile { lines });
    }
}

/// The steps that make the new state work.
fn prove_steps(
    config: &Config,
    paths: &Paths,
    plan: &mut Plan,
    service: Option<&Info>,
    has_tmpfiles: bool,
) {
    let unit = plan.name.unit();
    plan.prove.push(Step::Reload);
    if has_tmpfiles {
        plan.prove.push(Step::CreateTmpfiles {
            file: paths.tmpfiles(),
        });
    }
    let Some(info) = service else {
        return;
    };
    match plan.from {
        None => plan.prove.push(Step::Enable { unit: unit.clone() }),
        // Its [Install] section may have changed; an administrator's "disable" stays.
        Some(_) if plan.was_enabled => plan.prove.push(Step::Reenable { unit: unit.clone() }),
        Some(_) => {}
    }
    if plan.was_active {
        let said = info.options.as_ref().and_then(|options| options.watch);
        let seconds = said.unwrap_or(config.watch);
        plan.prove.push(Step::StartUnit {
            unit: unit.clone(),
            limit: (seconds > 0).then_some(seconds),
        });
        if seconds > 0 {
            plan.prove.push(Step::Watch {
                unit,
                seconds,
                health: info.health.clone(),
                runtime: info.runtime.clone(),
            });
        }
    }
}
