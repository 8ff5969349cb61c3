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

/// A change of the container's package.
pub(super) struct PackageChange<'a> {
    pub host: &'a Host<'a>,
    pub paths: &'a Paths,
    pub plan: &'a Plan,
    /// Files that somebody changed.
    pub keep: &'a [Utf8PathBuf],
}

impl PackageChange<'_> {
    /// Bring the package from one version to another, or to none. Files that somebody changed wait
    /// beside themselves while the package manager is at work.
    pub(super) fn make(&self, from: Option<&Shipment>, to: Option<&Shipment>) -> Result<()> {
        if self.host.is_resuming() {
            settle(self.paths, [from, to]);
        }
        self.move_kept(Way::Aside)?;
        let changed = to_version(self.host, self.paths, from, to);
        let released = self.move_kept(Way::Back);
        // What the commit point promises must be on disk before it is; package managers do not see to
        // that for every file.
        rustix::fs::sync();
        changed.and(released)
    }

    /// The way back. After a kill the package manager may have been anywhere in between, and what it
    /// brought of the new version is known to nobody: so that is brought to its end first.
    pub(super) fn undo(&self, from: Option<&Shipment>, to: Option<&Shipment>) -> Result<()> {
        if self.host.is_resuming()
            && let Some(new) = to
            && !exists(&self.paths.staged(new.slot, &self.plan.id))
        {
            settle(self.paths, [from, to]);
            self.move_kept(Way::Aside)?;
            if let Err(error) = to_version(self.host, self.paths, from, to) {
                tracing::warn!(%error, "the new package is given up");
            }
        }
        self.make(to, from)
    }

    /// Move files that somebody changed out of the package manager's way, or back. What is behind a
    /// link that somebody put in the way is nobody's business.
    fn move_kept(&self, way: Way) -> Result<()> {
        let mut all = Ok(());
        for target in self.keep {
            let spot = Spot::open(self.host, self.paths, target, &self.plan.id);
            let done = spot.and_then(|spot| match way {
                Way::Aside => spot.keep(),
                Way::Back => spot.release(),
            });
            all = all.and(passed_over(done));
        }
        all
    }
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
