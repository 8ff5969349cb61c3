//! The container's package, forward and back.

use camino::Utf8PathBuf;

use super::files::exists;
use super::host::Host;
use super::plan::Plan;
use super::spot::{Spot, passed_over};
use super::step::Shipment;
use crate::deployment::Paths;
use crate::error::Result;
use crate::hostfiles::package::Manager;

/// Bring the container's package from one version to another, or to none. Files that somebody changed
/// wait beside themselves while the package manager is at work.
pub(super) fn change_package(
    host: &Host<'_>,
    paths: &Paths,
    plan: &Plan,
    (from, to): (Option<&Shipment>, Option<&Shipment>),
    keep: &[Utf8PathBuf],
) -> Result<()> {
    if host.is_resuming() {
        settle(paths, [from, to]);
    }
    aside(host, paths, plan, keep, Way::Aside)?;
    let changed = to_version(host, paths, from, to);
    let released = aside(host, paths, plan, keep, Way::Back);
    // What the commit point promises must be on disk before it is; package managers do not see to that
    // for every file.
    rustix::fs::sync();
    changed.and(released)
}

/// The way back. After a kill the package manager may have been anywhere in between, and what it brought
/// of the new version is known to nobody: so that is brought to its end first.
pub(super) fn return_package(
    host: &Host<'_>,
    paths: &Paths,
    plan: &Plan,
    (from, to): (Option<&Shipment>, Option<&Shipment>),
    keep: &[Utf8PathBuf],
) -> Result<()> {
    if host.is_resuming()
        && let Some(new) = to
        && !exists(&paths.staged(new.slot, &plan.id))
    {
        settle(paths, [from, to]);
        aside(host, paths, plan, keep, Way::Aside)?;
        if let Err(error) = to_version(host, paths, from, to) {
            tracing::warn!(%error, "the new package is given up");
        }
    }
    change_package(host, paths, plan, (to, from), keep)
}

fn to_version(
    host: &Host<'_>,
    paths: &Paths,
    from: Option<&Shipment>,
    to: Option<&Shipment>,
) -> Result<()> {
    let lock = host.packages().borrow();
    let is_same =
        |old: &&Shipment| to.is_some_and(|new| (&new.name, new.format) == (&old.name, old.format));
    if let Some(old) = from.filter(|old| !is_same(old)) {
        Manager::new(old.format)?.remove(&old.name, lock.as_ref())?;
    }
    match to {
        Some(new) => {
            let file = paths.slot(new.slot).join(&new.file);
            Manager::new(new.format)?.install(&new.name, &file, lock.as_ref())
        }
        None => Ok(()),
    }
}

/// Let a package manager that was begun come to its end.
fn settle(paths: &Paths, shipments: [Option<&Shipment>; 2]) {
    for shipment in shipments.into_iter().flatten() {
        let file = paths.slot(shipment.slot).join(&shipment.file);
        let settled = Manager::new(shipment.format).and_then(|manager| manager.settle(&file));
        if let Err(error) = settled {
            tracing::warn!(%error, "the package manager may be at work");
        }
    }
}

/// Where a file goes that a package manager must not see.
#[derive(Debug, Clone, Copy)]
enum Way {
    Aside,
    Back,
}

/// Move files that somebody changed out of a package manager's way, or back. What is behind a link that
/// somebody put in the way is nobody's business.
fn aside(
    host: &Host<'_>,
    paths: &Paths,
    plan: &Plan,
    keep: &[Utf8PathBuf],
    way: Way,
) -> Result<()> {
    let mut all = Ok(());
    for target in keep {
        let done = Spot::open(host, paths, target, &plan.id).and_then(|spot| match way {
            Way::Aside => spot.keep(),
            Way::Back => spot.release(),
        });
        all = all.and(passed_over(done));
    }
    all
}
