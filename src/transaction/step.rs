//! Steps: data that can be shown, done, undone, and repeated after a crash.
//!
//! Every step finds out from the disk what is already done, so that doing it twice is doing it
//! once, and undoing what was not done is nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use super::files::{deploy, exists, point, rename};
use super::host::Host;
use super::package::PackageChange;
use super::plan::Plan;
use super::spot::{Spot, passed_over};
use crate::deployment::owners::{self, OwnerLayer};
use crate::deployment::{Paths, Slot};
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::hostfiles::Payload;
use crate::hostfiles::package::{Format, FrontendLock, Manager as PackageManager, Relation};
use crate::runtime::Health;
use crate::runtime::userns::{self, Mapping};
use crate::safefs;
use crate::store::Store;
use crate::systemd::{Manager, Watch, tmpfiles};

/// The unit of a user's manager that reads tmpfiles.d; nobody enables it by default.
pub const TMPFILES_SETUP: &str = "systemd-tmpfiles-setup.service";

/// A file of a deployment directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployFile {
    /// Its name there.
    pub name: String,
    /// Its text.
    pub content: String,
    /// Its mode.
    pub mode: u32,
}

/// A package as part of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shipment {
    /// Its format.
    pub format: Format,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The deployment.
    pub slot: Slot,
    /// Its file there.
    pub file: String,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// Stage a complete deployment beside its slot.
    Deploy {
        /// Where it will go.
        slot: Slot,
        /// The tree to check out; nothing for a remote root file system.
        commit: Option<String>,
        /// The remote root file system.
        remote: Option<Utf8PathBuf>,
        /// Everything but the root file system.
        files: Vec<DeployFile>,
    },
    /// Write the owner layer that an ordinary user's deployment needs, unless it is there.
    MakeOwners {
        /// The deployment, which is staged already.
        slot: Slot,
        /// The tree it is made from.
        commit: String,
        /// Where it is, as the deployment knows.
        path: Utf8PathBuf,
    },
    /// Move a ref of the store.
    SetRef {
        /// The ref.
        name: String,
        /// Where it points before.
        from: Option<String>,
        /// Where it points after.
        to: Option<String>,
    },
    /// Write a new version of a host file beside it.
    StageFile {
        /// The file.
        target: Utf8PathBuf,
        /// Its new text.
        content: String,
        /// Its mode.
        mode: u32,
    },
    /// Make a directory of the host, unless it is there.
    MakeDirectory {
        /// The directory.
        path: Utf8PathBuf,
        /// Mode, owner and group.
        owner: (u32, u32, u32),
    },
    /// Give a directory of the host another mode and owner.
    ChangeDirectory {
        /// The directory.
        path: Utf8PathBuf,
        /// Mode, owner and group before.
        from: (u32, u32, u32),
        /// Mode, owner and group after.
        to: (u32, u32, u32),
    },
    /// Write a file that the image brings for the host beside where it will go.
    StageHostFile {
        /// The deployment it comes from.
        slot: Slot,
        /// Where it will go.
        target: Utf8PathBuf,
        /// What it is made of.
        payload: Payload,
    },
    /// Have the host's resolver install packages that the container's needs.
    FetchPackages {
        /// Their format.
        format: Format,
        /// What is needed.
        wants: Vec<Relation>,
    },
    /// Make a built package part of the staged deployment.
    StagePackage {
        /// The package.
        shipment: Shipment,
        /// Where it is now.
        built: Utf8PathBuf,
    },
    /// Wait for whoever changes packages, and keep others from it until the change is over.
    LockPackages {
        /// Their format.
        format: Format,
    },
    /// See that the host's package manager will take a package.
    CheckPackage {
        /// The package.
        shipment: Shipment,
    },
    /// Install, change or remove the container's package.
    ChangePackage {
        /// The one before.
        from: Option<Shipment>,
        /// The one after.
        to: Option<Shipment>,
        /// Its files that somebody changed: they stay as they are.
        keep: Vec<Utf8PathBuf>,
    },
    /// Stop the unit.
    StopUnit {
        /// The unit.
        unit: String,
    },
    /// Empty what a tmpfiles.d text says, all of it volatile.
    RemoveVolatile {
        /// tmpfiles.d lines.
        lines: String,
    },
    /// Take the links of a unit's `[Install]` section away.
    Disable {
        /// The unit.
        unit: String,
    },
    /// Move the staged deployment into its slot; what was there waits aside.
    PlaceDeployment {
        /// The slot.
        slot: Slot,
    },
    /// Move the deployment in a slot aside.
    RemoveDeployment {
        /// The slot.
        slot: Slot,
    },
    /// Move the staged version of a host file into place.
    PlaceFile {
        /// The file.
        target: Utf8PathBuf,
        /// Whether there is one to replace.
        replaces: bool,
    },
    /// Move a host file aside.
    RemoveFile {
        /// The file.
        target: Utf8PathBuf,
    },
    /// Point `NAME` at another slot. This is the commit point of every plan.
    Switch {
        /// The slot before.
        from: Option<Slot>,
        /// The slot after.
        to: Option<Slot>,
    },
    /// Make systemd read its units again.
    Reload,
    /// Make the links of a unit's `[Install]` section.
    Enable {
        /// The unit.
        unit: String,
    },
    /// Follow a changed `[Install]` section.
    Reenable {
        /// The unit.
        unit: String,
    },
    /// Have the user's manager create what tmpfiles.d files say when it starts.
    EnableTmpfiles,
    /// Create what an installed tmpfiles.d file says.
    CreateTmpfiles {
        /// The file.
        file: Utf8PathBuf,
    },
    /// Start the unit.
    StartUnit {
        /// The unit.
        unit: String,
        /// Seconds it may take.
        #[serde(default)]
        limit: Option<u32>,
    },
    /// See that the unit stays healthy.
    Watch {
        /// The unit.
        unit: String,
        /// For how many seconds, counted from its start.
        seconds: u32,
        /// The command that tells from inside.
        health: Option<Health>,
        /// The runtime that runs the command.
        runtime: String,
    },
    /// Drop the deployment that gave way.
    DropDeployment {
        /// Its slot.
        slot: Slot,
    },
    /// Drop the version of a host file that gave way.
    DropFile {
        /// The file.
        target: Utf8PathBuf,
    },
    /// Remove the owner layers that no deployment needs any more.
    SweepOwners,
    /// Remove a directory of the container's own, with all below it.
    RemoveTree {
        /// The directory.
        path: Utf8PathBuf,
    },
    /// Remove a directory if it is empty.
    RemoveEmptyDir {
        /// The directory.
        path: Utf8PathBuf,
    },
}

impl Step {
    /// Do it, or what is left of it.
    pub fn apply(&self, host: &Host<'_>, paths: &Paths, plan: &Plan) -> Result<()> {
        let id = plan.id.as_str();
        let spot = |target: &Utf8Path| Spot::open(host, paths, target, id);
        match self {
            Self::Deploy {
                slot,
                commit,
                remote,
                files,
            } => deploy(
                host,
                &paths.staged(*slot, id),
                commit.as_deref(),
                remote.as_deref(),
                files,
            ),
            Self::MakeOwners { slot, commit, path } => {
                let config = host.config();
                let owners = OwnerLayer::of(config, &Store::open(config)?, commit)?;
                match owners {
                    Some(owners) => owners
                        .at(path)
                        .make(config, &paths.staged(*slot, id).join("rootfs")),
                    None => Ok(()),
                }
            }
            Self::SweepOwners => {
                // What is left is swept another time.
                if let Err(error) = owners::sweep(host.config(), Some(&plan.name)) {
                    tracing::warn!(%error, "owner layers are left");
                }
                Ok(())
            }
            Self::SetRef { name, to, .. } => {
                Store::open(host.config())?.set_ref(name, to.as_deref())
            }
            Self::StageFile {
                target,
                content,
                mode,
            } => {
                if let Some(parent) = target.parent() {
                    std::fs::create_dir_all(parent)
                        .context(|| format!("cannot create {parent}"))?;
                }
                let write = |at: &Path| safefs::write_new_file(at, content.as_bytes(), *mode);
                spot(target)?.stage(write)
            }
            Self::MakeDirectory { path, owner } => spot(path)?.make_directory(*owner),
            Self::ChangeDirectory { path, to, .. } => spot(path)?.change_directory(*to),
            Self::StageHostFile {
                slot,
                target,
                payload,
            } => {
                let fresh = paths.staged(*slot, id);
                let deployment = if exists(&fresh) {
                    fresh
                } else {
                    paths.slot(*slot)
                };
                let labels = host.labels()?.map(|labels| (labels, target.as_path()));
                spot(target)?.stage(|at| payload.write(&deployment.join("rootfs"), at, labels))
            }
            Self::FetchPackages { format, wants } => PackageManager::new(*format)?.fetch(wants),
            Self::StagePackage { shipment, built } => {
                let target = paths.staged(shipment.slot, id).join(&shipment.file);
                safefs::remove_if_exists(target.as_std_path())?;
                std::fs::copy(built, &target)
                    .map(|_| ())
                    .context(|| format!("cannot copy {built} to {target}"))
            }
            Self::LockPackages { format } => {
                if host.packages().borrow().is_none() {
                    let lock = (*format == Format::Deb).then(FrontendLock::take);
                    host.packages().replace(lock.transpose()?);
                }
                Ok(())
            }
            Self::CheckPackage { shipment } => {
                let file = paths.staged(shipment.slot, id).join(&shipment.file);
                let missing = PackageManager::new(shipment.format)?.check(&shipment.name, &file)?;
                if let Some(want) = missing.first() {
                    fail!(
                        Kind::Failed,
                        "the package {} needs {want}, which is not on this host",
                        shipment.name
                    );
                }
                Ok(())
            }
            Self::ChangePackage { from, to, keep } => PackageChange {
                host,
                paths,
                plan,
                keep,
            }
            .make(from.as_ref(), to.as_ref()),
            Self::StopUnit { unit } => host.with_manager(|manager| manager.stop(unit)),
            Self::RemoveVolatile { lines } => {
                let removed = if host.config().is_system {
                    tmpfiles::remove(lines)
                } else {
                    // What the container's other users own below is not ours to remove.
                    let own = host.config().run_directory.join("atomic-rs");
                    Mapping::of_user().remove_tree(&own.join(plan.name.as_str()))
                };
                if let Err(error) = removed {
                    tracing::warn!(%error, "volatile files are left");
                }
                Ok(())
            }
            Self::Disable { unit } => host.with_manager(|manager| manager.disable(unit)),
            Self::PlaceDeployment { slot } => {
                let (staged, target, aside) = (
                    paths.staged(*slot, id),
                    paths.slot(*slot),
                    paths.aside(*slot, id),
                );
                if !exists(&staged) {
                    return Ok(());
                }
                if exists(&target) && !exists(&aside) {
                    rename(&target, &aside)?;
                }
                rename(&staged, &target)
            }
            Self::RemoveDeployment { slot } => {
                let (target, aside) = (paths.slot(*slot), paths.aside(*slot, id));
                if exists(&target) {
                    rename(&target, &aside)?;
                }
                Ok(())
            }
            Self::PlaceFile { target, replaces } => spot(target)?.place(*replaces),
            Self::RemoveFile { target } => spot(target)?.set_aside(),
            Self::Switch { to, .. } => point(paths, *to),
            Self::Reload => host.with_manager(Manager::reload),
            Self::Enable { unit } => host.with_manager(|manager| manager.enable(unit)),
            Self::Reenable { unit } => host.with_manager(|manager| manager.reenable(unit)),
            Self::EnableTmpfiles => {
                // The container works all the same, until the next boot.
                let enabled = host.with_manager(|manager| manager.enable(TMPFILES_SETUP));
                if let Err(error) = enabled {
                    tracing::warn!(%error, "its directories will not be there after a reboot");
                }
                Ok(())
            }
            Self::CreateTmpfiles { file } => {
                // At early boot systemd-tmpfiles-setup.service does it, with all file systems there.
                if host.is_offline() {
                    Ok(())
                } else {
                    tmpfiles::create(file)
                }
            }
            Self::StartUnit { unit, limit } => host.with_manager(|manager| {
                host.note_start();
                manager.reset_failed(unit);
                let limit = limit.map(|seconds| Duration::from_secs(seconds.into()));
                manager.start(unit, limit, &host.config().interrupt)?;
                let watched = |step: &Self| matches!(step, Self::Watch { .. });
                if !plan.prove.iter().any(watched) {
                    host.note_serving();
                }
                Ok(())
            }),
            Self::Watch {
                unit,
                seconds,
                health,
                runtime,
            } => {
                let watch = Watch {
                    unit,
                    begun: host.started().unwrap_or_else(Instant::now),
                    length: Duration::from_secs((*seconds).into()),
                    retries: health.as_ref().map_or(0, |health| health.retries),
                };
                let mut run = health
                    .as_ref()
                    .map(|health| |limit| health.run(runtime, plan.name.as_str(), limit));
                host.with_manager(|manager| {
                    watch.run(
                        manager,
                        &host.config().interrupt,
                        run.as_mut()
                            .map(|run| run as &mut dyn FnMut(Duration) -> Result<()>),
                        || host.note_serving(),
                    )
                })
            }
            Self::DropDeployment { slot } => {
                safefs::remove_tree(paths.aside(*slot, id).as_std_path())
            }
            Self::DropFile { target } => {
                passed_over(spot(target).and_then(|spot| spot.drop_aside()))
            }
            Self::RemoveTree { path } => userns::remove_tree(path),
            Self::RemoveEmptyDir { path } => {
                // Not empty means that it is still somebody's.
                passed_over(spot(path).map(|spot| spot.remove_empty()))
            }
        }
    }

    /// Undo it, or what was done of it.
    pub fn undo(&self, host: &Host<'_>, paths: &Paths, plan: &Plan) -> Result<()> {
        let id = plan.id.as_str();
        let spot = |target: &Utf8Path| Spot::open(host, paths, target, id);
        match self {
            Self::Deploy { slot, .. } => safefs::remove_tree(paths.staged(*slot, id).as_std_path()),
            Self::SetRef { name, from, .. } => {
                Store::open(host.config())?.set_ref(name, from.as_deref())
            }
            Self::StageFile { target, .. } | Self::StageHostFile { target, .. } => {
                passed_over(spot(target).and_then(|spot| spot.drop_staged()))
            }
            Self::MakeDirectory { path, .. } => {
                // Not empty means that somebody else uses it by now.
                passed_over(spot(path).map(|spot| spot.remove_empty()))
            }
            Self::ChangeDirectory { path, from, .. } => {
                passed_over(spot(path).and_then(|spot| spot.change_directory(*from)))
            }
            Self::ChangePackage { from, to, keep } => PackageChange {
                host,
                paths,
                plan,
                keep,
            }
            .undo(from.as_ref(), to.as_ref()),
            Self::Disable { unit } if plan.was_enabled => {
                host.with_manager(|manager| manager.enable(unit))
            }
            Self::PlaceDeployment { slot } => {
                let (staged, target, aside) = (
                    paths.staged(*slot, id),
                    paths.slot(*slot),
                    paths.aside(*slot, id),
                );
                // Staged is gone only if it went into the slot.
                if !exists(&staged) && exists(&target) {
                    rename(&target, &staged)?;
                }
                if exists(&aside) {
                    rename(&aside, &target)?;
                }
                Ok(())
            }
            Self::RemoveDeployment { slot } => {
                let (target, aside) = (paths.slot(*slot), paths.aside(*slot, id));
                if exists(&aside) {
                    rename(&aside, &target)?;
                }
                Ok(())
            }
            Self::PlaceFile { target, replaces } => {
                passed_over(spot(target).and_then(|spot| spot.unplace(*replaces)))
            }
            Self::RemoveFile { target } => {
                passed_over(spot(target).and_then(|spot| spot.put_back()))
            }
            Self::Switch { from, .. } => point(paths, *from),
            Self::EnableTmpfiles => host.with_manager(|manager| manager.disable(TMPFILES_SETUP)),
            Self::Enable { unit } if !plan.was_enabled => {
                host.with_manager(|manager| manager.disable(unit))
            }
            // The engine reloads, re-enables and starts when everything is back in place.
            _ => Ok(()),
        }
    }

    /// Whether it needs the store as it was when the plan was made.
    pub fn takes_from_store(&self) -> bool {
        matches!(
            self,
            Self::SetRef { .. } | Self::Deploy { .. } | Self::MakeOwners { .. }
        )
    }

    /// The host files this step changes: their directories are synced at the end of its phase.
    pub fn touches(&self) -> Option<&Utf8Path> {
        match self {
            Self::StageFile { target, .. }
            | Self::StageHostFile { target, .. }
            | Self::PlaceFile { target, .. }
            | Self::RemoveFile { target } => target.parent(),
            // A mode is in the directory itself.
            Self::ChangeDirectory { path, .. } | Self::MakeDirectory { path, .. } => Some(path),
            _ => None,
        }
    }
}
