//! The one executor of plans.

use std::collections::BTreeSet;

use camino::Utf8PathBuf;

use super::plan::{Direction, Journal, Phase, Plan};
use super::step::{Host, Step};
use crate::deployment::{ContainerName, Paths};
use crate::error::{Error, Kind, Result};
use crate::safefs;
use crate::systemd;

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The new state is in place.
    Forward,
    /// The old state is in place again.
    Back,
}

/// Apply a plan. The caller holds the container's lock and no lock of the store.
///
/// # Errors
/// Whatever stopped it; then everything is as it was before, unless the message says otherwise.
pub fn apply(host: &Host<'_>, plan: &Plan) -> Result<()> {
    let _held = host.config().interrupt.hold();
    let paths = Paths::new(host.config(), &plan.name);
    let mut journal = Journal::new(plan.clone());
    match forward(host, &paths, &mut journal) {
        Ok(()) => Ok(()),
        Err(error) => {
            let error = with_unit_log(error, &journal);
            if past_return(&journal) {
                return Err(error);
            }
            match back(host, &paths, &mut journal) {
                Ok(()) => Err(said(error, plan)),
                Err(second) => Err(Error::new(
                    error.kind(),
                    format!(
                        "{error}\nand returning to the state before failed: {second}\nrun \"atomic-rs recover {}\" when the cause is gone",
                        plan.name
                    ),
                )),
            }
        }
    }
}

/// Bring an interrupted change of `name` to an end. The caller holds the container's lock.
/// Returns what was done; nothing if there was nothing to do.
pub fn recover(host: &Host<'_>, name: &ContainerName) -> Result<Option<(String, Applied)>> {
    let paths = Paths::new(host.config(), name);
    let Some(mut journal) = Journal::load(&paths)? else {
        // Killed while the journal was first written: nothing had begun.
        safefs::sweep_beside(paths.journal().as_std_path())?;
        return Ok(None);
    };
    let verb = journal.plan.verb.clone();
    let committed = paths.current()? == journal.plan.to;
    if journal.direction == Direction::Back || !committed {
        back(host, &paths, &mut journal)?;
        return Ok(Some((verb, Applied::Back)));
    }
    if host.is_offline() {
        // Its files are complete; what is left needs systemd.
        return Ok(None);
    }
    match resume(host, &paths, &mut journal) {
        Ok(()) => Ok(Some((verb, Applied::Forward))),
        Err(error) if past_return(&journal) => Err(error),
        Err(error) => {
            tracing::warn!(%error, "the new deployment does not work");
            back(host, &paths, &mut journal)?;
            Ok(Some((verb, Applied::Back)))
        }
    }
}

fn forward(host: &Host<'_>, paths: &Paths, journal: &mut Journal) -> Result<()> {
    let plan = journal.plan.clone();
    journal.save(paths)?;
    for step in &plan.stage {
        host.config().interrupt.check()?;
        step.apply(host, paths, &plan)?;
    }
    sync(host, &plan.stage)?;
    // From the first renaming on it is quicker to finish than to return.
    host.config().interrupt.check()?;
    if !plan.stop.is_empty() {
        enter(journal, paths, Phase::Stop)?;
        run(host, paths, &plan, &plan.stop)?;
    }
    enter(journal, paths, Phase::Switch)?;
    for step in &plan.switch {
        // What the symlink promises must be on disk before it is.
        if matches!(step, Step::Switch { .. }) {
            sync_directories(host, &plan.switch)?;
        }
        step.apply(host, paths, &plan)?;
    }
    resume(host, paths, journal)
}

/// Everything behind the commit point.
fn resume(host: &Host<'_>, paths: &Paths, journal: &mut Journal) -> Result<()> {
    let plan = journal.plan.clone();
    if journal.phase < Phase::Close {
        enter(journal, paths, Phase::Prove)?;
        run(host, paths, &plan, &plan.prove)?;
        enter(journal, paths, Phase::Close)?;
    }
    run(host, paths, &plan, &plan.close)?;
    Journal::remove(paths)
}

/// Undo a change, whole or in part, and leave the unit as it was.
fn back(host: &Host<'_>, paths: &Paths, journal: &mut Journal) -> Result<()> {
    journal.direction = Direction::Back;
    journal.save(paths)?;
    let plan = journal.plan.clone();
    let unit = plan.name.unit();
    let stopped = journal.phase >= Phase::Stop;
    if journal.phase >= Phase::Switch {
        // The new version may be running (a reboot started it) or failing over and over: stop, then
        // start, never restart.
        Step::StopUnit { unit: unit.clone() }.apply(host, paths, &plan)?;
    }
    if journal.phase >= Phase::Prove {
        undo(host, paths, &plan, &plan.prove)?;
    }
    if journal.phase >= Phase::Switch {
        undo(host, paths, &plan, &plan.switch)?;
        sync_directories(host, &plan.switch)?;
        // Said before the staged files go: a second undo could not tell old from new without them.
        enter(journal, paths, Phase::Stop)?;
    }
    if host.is_offline() {
        // Units cannot be enabled or started yet; the journal stays until they can. What systemd
        // read at boot may be what was just replaced, and it is reached without D-Bus.
        systemd::reload_without_bus();
        return Ok(());
    }
    if stopped {
        Step::Reload.apply(host, paths, &plan)?;
        if plan.from.is_some() && plan.was_enabled {
            Step::Reenable { unit: unit.clone() }.apply(host, paths, &plan)?;
        }
        undo(host, paths, &plan, &plan.stop)?;
    }
    let restarted = if plan.was_active && stopped {
        let file = paths.tmpfiles();
        if file.exists()
            && let Err(error) = (Step::CreateTmpfiles { file }).apply(host, paths, &plan)
        {
            // It ran with them before; if it does need them, its start says so.
            tracing::warn!(%error, "cannot create what its tmpfiles say");
        }
        Step::StartUnit { unit }.apply(host, paths, &plan)
    } else {
        Ok(())
    };
    undo(host, paths, &plan, &plan.stage)?;
    Journal::remove(paths)?;
    restarted
}

/// True if there is no old state to return to any more, or none that is better.
fn past_return(journal: &Journal) -> bool {
    journal.phase == Phase::Close || (journal.phase == Phase::Prove && journal.plan.to.is_none())
}

fn enter(journal: &mut Journal, paths: &Paths, phase: Phase) -> Result<()> {
    journal.phase = phase;
    journal.save(paths)
}

fn run(host: &Host<'_>, paths: &Paths, plan: &Plan, steps: &[Step]) -> Result<()> {
    for step in steps {
        tracing::debug!(%step, "apply");
        step.apply(host, paths, plan)?;
    }
    Ok(())
}

fn undo(host: &Host<'_>, paths: &Paths, plan: &Plan, steps: &[Step]) -> Result<()> {
    for step in steps.iter().rev() {
        tracing::debug!(%step, "undo");
        step.undo(host, paths, plan)?;
    }
    Ok(())
}

/// One syncfs for each file system that staged files are on.
fn sync(host: &Host<'_>, steps: &[Step]) -> Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let mut devices = BTreeSet::new();
    for directory in directories(host, steps) {
        if let Ok(meta) = std::fs::metadata(&directory)
            && devices.insert(meta.dev())
        {
            safefs::sync_file_system(directory.as_std_path())?;
        }
    }
    Ok(())
}

fn sync_directories(host: &Host<'_>, steps: &[Step]) -> Result<()> {
    for directory in directories(host, steps) {
        safefs::fsync_dir(directory.as_std_path())?;
    }
    Ok(())
}

fn directories(host: &Host<'_>, steps: &[Step]) -> BTreeSet<Utf8PathBuf> {
    steps
        .iter()
        .filter_map(|step| step.touches().map(Utf8PathBuf::from))
        .chain([host.config().checkouts.clone()])
        .collect()
}

fn with_unit_log(error: Error, journal: &Journal) -> Error {
    if error.kind() != Kind::Systemd || journal.phase != Phase::Prove {
        return error;
    }
    systemd::with_journal(error, &journal.plan.name.unit())
}

fn said(error: Error, plan: &Plan) -> Error {
    match plan.from {
        Some(slot) if plan.was_active => Error::new(
            error.kind(),
            format!(
                "{error}\ndeployment {slot} of {} is running again",
                plan.name
            ),
        ),
        Some(slot) => Error::new(
            error.kind(),
            format!("{error}\n{} is at deployment {slot} again", plan.name),
        ),
        None => error,
    }
}
