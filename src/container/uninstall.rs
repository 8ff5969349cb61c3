//! `uninstall`: everything of a container goes, except data.

use std::cell::Cell;

use camino::Utf8PathBuf;

use super::change::{self, Change};
use super::effects::Effects;
use super::hostfiles;
use crate::deployment::{ContainerName, Info, Paths, Slot};
use crate::error::Result;
use crate::store::Store;
use crate::systemd::tmpfiles;
use crate::transaction::{Host, Plan, Step};

/// An uninstallation and what it leaves.
pub struct Uninstalled {
    /// The change.
    pub change: Change,
    /// Directories with data that stay.
    pub kept: Vec<Utf8PathBuf>,
    /// An administrator's drop-ins that stay.
    pub drop_ins: Option<Utf8PathBuf>,
}

/// Compute the removal of a container; `purge`: its data too. A broken container can be
/// uninstalled as well.
pub fn uninstall(host: &Host<'_>, name: &ContainerName, purge: bool) -> Result<Uninstalled> {
    let config = host.config();
    let (lock, from) = change::lock_installed(host, name)?;
    let paths = Paths::new(config, name);
    let unit = name.unit();
    let mut plan = Plan::new("uninstall", name, Some(from), None);
    change::note_unit(host, &mut plan)?;

    let slots: Vec<Slot> = [Slot::Zero, Slot::One]
        .into_iter()
        .filter(|slot| paths.slot(*slot).exists())
        .collect();
    let mut data: Vec<Utf8PathBuf> = Vec::new();
    for slot in &slots {
        // A broken info hides nothing but the data directories, which stay.
        match Info::read(&paths.slot(*slot)) {
            Ok(info) => {
                data.extend(info.persistent.into_iter().map(Utf8PathBuf::from));
            }
            Err(error) => tracing::warn!(%error, "cannot tell where the data of {name} are"),
        }
    }
    data.retain(|path| path.starts_with(config.state_directory.join(name.as_str())));
    data.sort();
    data.dedup();

    let old_tmpfiles = std::fs::read_to_string(paths.tmpfiles()).unwrap_or_default();
    change::stop_steps(config, &paths, &mut plan, &old_tmpfiles);
    if paths.unit().exists() {
        plan.stop.push(Step::Disable { unit });
    }
    change::unit_file_steps(&paths, &mut plan, None, None);
    let info = Info::read(&paths.slot(from)).ok();
    let files = hostfiles::removal(config, name, (info.as_ref(), from))?;
    hostfiles::steps(&mut plan, None, &files);
    for slot in &slots {
        plan.switch.push(Step::RemoveDeployment { slot: *slot });
        plan.close.push(Step::DropDeployment { slot: *slot });
    }
    plan.switch.push(Step::Switch {
        from: Some(from),
        to: None,
    });
    plan.prove.push(Step::Reload);
    let store = Store::open_existing(config)?;
    for slot in [Slot::Zero, Slot::One] {
        let name = change::pin(name, slot);
        let from = match &store {
            Some(store) => store.resolve(&name)?,
            None => None,
        };
        if from.is_some() {
            plan.close.push(Step::SetRef {
                name,
                from,
                to: None,
            });
        }
    }
    drop(store);
    if !config.is_system {
        plan.close.push(Step::SweepOwners);
    }
    plan.close.push(Step::RemoveTree {
        path: paths.ledger(),
    });
    let volatile = tmpfiles::lines_below(&old_tmpfiles, &config.run_directory);
    let mut directories = tmpfiles::directories(&volatile);
    // Below before above.
    directories.sort_by(|a, b| b.cmp(a));
    let own = config.run_directory.join("atomic-rs").join(name.as_str());
    for path in directories {
        if !path.starts_with(&own) {
            plan.close.push(Step::RemoveEmptyDir { path });
        }
    }
    if own.exists() {
        plan.close.push(Step::RemoveTree { path: own });
        plan.close.push(Step::RemoveEmptyDir {
            path: config.run_directory.join("atomic-rs"),
        });
    }
    let kept = if purge {
        for path in &data {
            plan.close.push(Step::RemoveTree { path: path.clone() });
        }
        let state = config.state_directory.join(name.as_str());
        if !data.is_empty() {
            plan.close.push(Step::RemoveTree {
                path: state.join(".atomic-rs"),
            });
            plan.close.push(Step::RemoveEmptyDir { path: state });
        }
        Vec::new()
    } else {
        data.into_iter().filter(|path| path.exists()).collect()
    };
    let mut effects = Effects {
        complete: true,
        ..Effects::default()
    };
    effects.file(paths.unit(), None);
    effects.file(paths.tmpfiles(), None);
    effects.host_files(&files);
    let drop_ins = Utf8PathBuf::from(format!("{}.d", paths.unit()));
    Ok(Uninstalled {
        change: Change {
            plan,
            effects,
            notes: files.compared.notes,
            _package: None,
            store: Cell::default(),
            _lock: lock,
        },
        kept,
        drop_ins: drop_ins.exists().then_some(drop_ins),
    })
}
