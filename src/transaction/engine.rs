//! The one executor of plans.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;

use super::host::Host;
use super::plan::{Direction, Journal, Phase, Plan};
use super::step::Step;
use crate::deployment::{ContainerName, Entry, Ledger, Paths, Verdict};
use crate::error::{Error, Kind, Result};
use crate::image::short_id;
use crate::store::Store;
use crate::systemd::{
    self,
    journal::{self, Event},
};
use crate::{fault, safefs};

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The new state is in place.
    Forward,
    /// The old state is in place again.
    Back,
}

impl Applied {
    /// What became of an interrupted change, in words.
    pub fn told(self, verb: &str, name: &ContainerName) -> String {
        let end = match self {
            Self::Forward => "completed",
            Self::Back => "undone",
        };
        format!("the interrupted {verb} of {name} was {end}")
    }
}

/// How long a version that was not good may take to stop before it is killed: what was running
/// before waits for it.
const GRACE: Duration = Duration::from_secs(3);

/// What a change that was applied did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// From the stop of the old version to a new one that works; nothing if it did not run.
    pub outage: Option<Duration>,
}

/// Apply a plan. The caller holds the container's lock; of the store at most `store`, which is let go
/// of when what the plan takes from it is pinned and checked out.
///
/// # Errors
/// Whatever stopped it; then everything is as it was before, unless the message says otherwise.
pub fn apply(host: &Host<'_>, plan: &Plan, store: Option<Store>) -> Result<Report> {
    let _held = host.config().interrupt.hold();
    let paths = Paths::new(host.config(), &plan.name);
    let mut journal = Journal::new(plan.clone());
    let applied = apply_or_return(host, &paths, &mut journal, plan, store);
    host.packages().replace(None);
    applied
}

fn apply_or_return(
    host: &Host<'_>,
    paths: &Paths,
    journal: &mut Journal,
    plan: &Plan,
    store: Option<Store>,
) -> Result<Report> {
    match forward(host, paths, journal, store) {
        Ok(report) => Ok(report),
        Err(error) => {
            let failure = Failure::new(error, journal, host.config().is_system);
            if past_return(journal) {
                let kind = failure.error.kind();
                let text = format!(
                    "{}\nthe {} of {name} is done but for what is tidied up after it: run \"atomic-rs recover {name}\" when the cause is gone",
                    failure.error,
                    plan.verb,
                    name = plan.name
                );
                return Err(Error::new(kind, text));
            }
            match back(host, paths, journal, Some(&failure)) {
                Ok(()) => {
                    let is_return = failure.verdict == Verdict::Returned;
                    let error = failure.told(plan);
                    if is_return {
                        let text = error.to_string();
                        journal::note(Event::Returned, plan.name.as_str(), &plan.verb, &text);
                    }
                    Err(error)
                }
                Err(second) => Err(Error::new(
                    failure.error.kind(),
                    format!(
                        "{}\nand returning to the state before failed: {second}\nrun \"atomic-rs recover {}\" when the cause is gone",
                        failure.error, plan.name
                    ),
                )),
            }
        }
    }
}

/// Bring an interrupted change of `name` to an end. The caller holds the container's lock.
/// Returns what was done; nothing if there was nothing to do.
pub fn recover(host: &Host<'_>, name: &ContainerName) -> Result<Option<(String, Applied)>> {
    host.set_resuming(true);
    let recovered = recover_now(host, name);
    host.set_resuming(false);
    if let Ok(Some((verb, applied))) = &recovered {
        let event = match applied {
            Applied::Forward => Event::Completed,
            Applied::Back => Event::Undone,
        };
        journal::note(event, name.as_str(), verb, &applied.told(verb, name));
    }
    recovered
}

fn recover_now(host: &Host<'_>, name: &ContainerName) -> Result<Option<(String, Applied)>> {
    let paths = Paths::new(host.config(), name);
    let Some(mut journal) = Journal::load(&paths)? else {
        // Killed while the journal was first written: nothing had begun.
        safefs::sweep_beside(paths.journal().as_std_path())?;
        return Ok(None);
    };
    let verb = journal.plan.verb.clone();
    // What is made anew in its own place has no symlink to tell: there the journal decides.
    let in_place = journal.plan.from == journal.plan.to;
    let committed = if in_place {
        journal.phase >= Phase::Switch
    } else {
        paths.current()? == journal.plan.to
    };
    if journal.direction == Direction::Back || !committed {
        back(host, &paths, &mut journal, None)?;
        return Ok(Some((verb, Applied::Back)));
    }
    if in_place && journal.phase == Phase::Switch {
        let plan = journal.plan.clone();
        run(host, &paths, &plan, &plan.switch)?;
    }
    if host.is_offline() {
        // Its files are complete; what is left needs systemd.
        return Ok(None);
    }
    match resume(host, &paths, &mut journal, None) {
        Ok(_) => Ok(Some((verb, Applied::Forward))),
        Err(error) if past_return(&journal) => Err(error),
        Err(error) => {
            let failure = Failure::new(error, &journal, host.config().is_system);
            tracing::warn!(error = %failure.error, "the new deployment does not work");
            back(host, &paths, &mut journal, Some(&failure))?;
            Ok(Some((verb, Applied::Back)))
        }
    }
}

fn forward(
    host: &Host<'_>,
    paths: &Paths,
    journal: &mut Journal,
    mut store: Option<Store>,
) -> Result<Report> {
    let plan = journal.plan.clone();
    journal.save(paths)?;
    // Others may wait for it: package managers and watches take their time.
    let last_use = plan.stage.iter().rposition(Step::takes_from_store);
    for (number, step) in plan.stage.iter().enumerate() {
        store = store.filter(|_| last_use.is_some_and(|last| number <= last));
        host.config().interrupt.check()?;
        fault::point(format_args!("do: {step:?}"))?;
        step.apply(host, paths, &plan)?;
    }
    drop(store);
    sync(host, &plan.stage)?;
    // From the first renaming on it is quicker to finish than to return.
    host.config().interrupt.check()?;
    let stopped = plan.was_active.then(Instant::now);
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
        fault::point(format_args!("do: {step:?}"))?;
        step.apply(host, paths, &plan)?;
    }
    resume(host, paths, journal, stopped)
}

/// Everything behind the commit point. `stopped`: when the old version was.
fn resume(
    host: &Host<'_>,
    paths: &Paths,
    journal: &mut Journal,
    stopped: Option<Instant>,
) -> Result<Report> {
    let plan = journal.plan.clone();
    let mut report = Report::default();
    if journal.phase < Phase::Close {
        enter(journal, paths, Phase::Prove)?;
        run(host, paths, &plan, &plan.prove)?;
        report.outage = stopped
            .zip(host.serving())
            .map(|(from, to)| to.saturating_duration_since(from));
        let verdict = if plan.is_watched() {
            Verdict::Healthy
        } else {
            Verdict::Deployed
        };
        // A version that works is not given up for what is written about it.
        if let Err(error) = note(paths, &plan, verdict, None, report.outage) {
            tracing::warn!(%error, "the ledger is not written");
        }
        enter(journal, paths, Phase::Close)?;
    }
    run(host, paths, &plan, &plan.close)?;
    Journal::remove(paths)?;
    Ok(report)
}

/// Write down how a deployment ended.
fn note(
    paths: &Paths,
    plan: &Plan,
    verdict: Verdict,
    failure: Option<&Failure>,
    outage: Option<Duration>,
) -> Result<()> {
    let (Some(subject), Some(slot)) = (&plan.subject, plan.to) else {
        return Ok(());
    };
    let mut ledger = Ledger::load(paths)?;
    ledger.policy.auto_update = subject.auto_update.or(ledger.policy.auto_update);
    ledger.note(Entry {
        id: plan.id.clone(),
        time: crate::store::now(),
        verb: plan.verb.clone(),
        image: subject.image.clone(),
        revision: subject.revision.clone(),
        replaces: subject.replaces.clone(),
        slot,
        verdict,
        reason: failure.map(|failure| failure.error.to_string()),
        log: failure
            .map(|failure| failure.log.lines().map(str::to_owned).collect())
            .unwrap_or_default(),
        host_files: subject.host_files,
        package: subject.package.clone(),
        outage_ms: outage.map(|outage| u64::try_from(outage.as_millis()).unwrap_or(u64::MAX)),
    });
    ledger.save(paths)
}

/// Undo a change, whole or in part, and leave the unit as it was.
fn back(
    host: &Host<'_>,
    paths: &Paths,
    journal: &mut Journal,
    failure: Option<&Failure>,
) -> Result<()> {
    journal.direction = Direction::Back;
    match journal.save(paths) {
        // Before the switch there is no other way, written down or not.
        Err(error) if journal.phase < Phase::Switch => {
            tracing::warn!(%error, "the journal is not written");
        }
        saved => saved?,
    }
    let plan = journal.plan.clone();
    if let Some(failure) = failure
        && journal.phase >= Phase::Prove
        && let Err(error) = note(paths, &plan, failure.verdict, Some(failure), None)
    {
        // The return matters more than what is written about it.
        tracing::warn!(%error, "the ledger is not written");
    }
    // From here on the way back may use it: the link that is put back is a new one for a moment.
    safefs::sweep_beside(paths.journal().as_std_path())?;
    let unit = plan.name.unit();
    let stopped = journal.phase >= Phase::Stop;
    if journal.phase >= Phase::Switch {
        // The new version may be running (a reboot started it) or failing over and over: stop, then
        // start, never restart.
        let failed = failure.is_some_and(|failure| failure.verdict == Verdict::Returned);
        host.with_manager(|manager| {
            if failed {
                manager.stop_soon(&unit, GRACE)
            } else {
                manager.stop(&unit)
            }
        })?;
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
        Step::StartUnit { unit, limit: None }.apply(host, paths, &plan)
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
        fault::point(format_args!("do: {step:?}"))?;
        step.apply(host, paths, plan)?;
    }
    Ok(())
}

fn undo(host: &Host<'_>, paths: &Paths, plan: &Plan, steps: &[Step]) -> Result<()> {
    for step in steps.iter().rev() {
        tracing::debug!(%step, "undo");
        fault::point(format_args!("undo: {step:?}"))?;
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
        // Undone steps may have taken it away.
        if directory.is_dir() {
            safefs::fsync_dir(directory.as_std_path())?;
        }
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

/// Why a change did not come to its end.
struct Failure {
    error: Error,
    log: String,
    verdict: Verdict,
}

impl Failure {
    fn new(error: Error, journal: &Journal, is_system: bool) -> Self {
        // Only what systemd says of the started unit is the image's fault.
        let of_unit = error.kind() == Kind::Unit && journal.phase == Phase::Prove;
        Self {
            log: if of_unit {
                systemd::journal_tail(&journal.plan.name.unit(), systemd::FAILURE_LINES, is_system)
            } else {
                String::new()
            },
            verdict: if of_unit {
                Verdict::Returned
            } else {
                Verdict::Interrupted
            },
            error,
        }
    }

    /// The error of a change that was undone.
    fn told(self, plan: &Plan) -> Error {
        let mut text = self.error.to_string();
        if !self.log.is_empty() {
            let unit = plan.name.unit();
            text = format!("{text}\nlast lines of {unit}:\n{}", self.log);
        }
        if let Some(slot) = plan.from {
            let name = &plan.name;
            text = if plan.was_active {
                format!("{text}\ndeployment {slot} of {name} is running again")
            } else {
                format!("{text}\n{name} is at deployment {slot} again")
            };
        }
        if let Some(subject) = &plan.subject
            && self.verdict == Verdict::Returned
            && plan.from.is_some()
            && subject.replaces.as_ref() != Some(&subject.revision)
        {
            text = format!(
                "{text}\nthe image {} is on record as bad and is not deployed again without --force",
                short_id(&subject.revision)
            );
        }
        Error::new(self.error.kind(), text)
    }
}
