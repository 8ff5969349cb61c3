//! Is a deployment still what was deployed, and making it so again.

use std::cell::Cell;
use std::collections::HashSet;

use camino::{Utf8Path, Utf8PathBuf};

use super::change::{self, Change};
use super::effects::Effects;
use super::hostfiles::{self, Package, Wish};
use super::packages::Packaging;
use super::update::current_image;
use crate::config::Config;
use crate::deployment::{ContainerName, Info, Paths, Slot, read_config};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::hostfiles::package::Format;
use crate::image::Reference;
use crate::pull::{Progress, Remote};
use crate::store::Store;
use crate::store::verify::Drift;
use crate::transaction::{DeployFile, Host, Plan, Step};
use crate::transport::Access;

/// How the deployment in use differs from what was deployed.
///
/// Every file of the deployment is read, so a large one takes its time.
pub fn verify(config: &Config, name: &ContainerName) -> Result<Drift> {
    let slot = change::require(config, name)?;
    let paths = Paths::new(config, name);
    let deployment = paths.slot(slot);
    let info = Info::read(&deployment)?;
    let mut problems = Vec::new();
    for (installed, copy) in [
        (paths.unit(), paths.unit_copy(&deployment)),
        (paths.tmpfiles(), paths.tmpfiles_copy(&deployment)),
    ] {
        let read = |path: &Utf8PathBuf| std::fs::read(path).ok();
        if read(&installed) != read(&copy) {
            problems.push(format!("{installed} is not what was installed"));
        }
    }
    problems.extend(hostfiles::verify(&info)?);
    if info.remote.is_some() {
        // What is elsewhere is not ours to judge.
        return Ok(Drift {
            problems,
            ..Drift::default()
        });
    }
    let store = Store::open(config)?;
    let image = current_image(&store, &info)?;
    let tree = store.image_tree(&image)?;
    let rootfs = deployment.join("rootfs");
    let mut drift = store.verify_deployment(&tree, &rootfs, &mount_points(&deployment))?;
    drift.problems.splice(0..0, problems);
    Ok(drift)
}

/// Compute the repair of the deployment in use: its image is healed from where it was pulled, if it
/// is damaged, and the same deployment is made anew in the same slot. `dry`: the store is not healed.
pub fn repair(
    host: &Host<'_>,
    name: &ContainerName,
    access: &Access,
    dry: bool,
    progress: &mut dyn Progress,
) -> Result<Change> {
    let config = host.config();
    let (lock, slot) = change::lock_installed(host, name)?;
    let paths = Paths::new(config, name);
    let deployment = paths.slot(slot);
    let info = Info::read(&deployment)?;
    if info.remote.is_some() {
        fail!(
            Kind::Invalid,
            "the root file system of {name} is elsewhere: there is nothing to repair"
        );
    }
    let store = Store::open(config)?;
    let image = current_image(&store, &info)?;
    let mut notes = Vec::new();
    let damaged = !store.verify_image(&image)?.is_good();
    if damaged && dry {
        notes.push(format!(
            "the store's copy of {} is damaged and healed from where it came first",
            info.image
        ));
    } else if damaged {
        let recorded = info.source.clone().unwrap_or_else(|| info.image.clone());
        let source: Reference = info.source.as_deref().unwrap_or(&info.image).parse()?;
        let source = match image.digest {
            Some(digest) => source.pinned_to(digest),
            None => source,
        };
        let access = access.clone().or_platform(info.platform.as_deref())?;
        let remote = Remote::open(config, &source, &access)?;
        if remote.digest().hex() != info.revision {
            fail!(
                Kind::NotFound,
                "the store's copy of the image is damaged, and {source} is another one by now: update {name}, or roll it back"
            );
        }
        // The name may mean a newer image by now, and goes on meaning it.
        let moved = store
            .image(&info.image)?
            .is_some_and(|image| image.id() != info.revision);
        if moved {
            remote.heal(config, &store, progress)?;
        } else {
            remote.fetch_as(config, &store, &info.image.parse()?, recorded, progress)?;
        }
        let healed = store.verify_image(&current_image(&store, &info)?)?;
        if !healed.is_good() {
            return Err(Error::new(
                Kind::Invalid,
                format!("the image is still damaged: {}", healed.lines().join("; ")),
            ));
        }
    }
    let image = current_image(&store, &info)?;
    let commit = store.image_tree(&image)?;
    let mut plan = Plan::new("repair", name, Some(slot), Some(slot));
    let mut files = deployment_files(&paths, slot)?;
    let found = files.clone();
    let text = |name: &str| {
        found
            .iter()
            .find(|file| file.name == name)
            .map(|file| file.content.clone())
    };
    let valid = text("config.json")
        .is_some_and(|text| serde_json::from_str::<serde_json::Value>(&text).is_ok());
    if !valid {
        fail!(
            Kind::Invalid,
            "{deployment}/config.json is missing or broken: \"atomic-rs update --force {name}\" makes another deployment"
        );
    }
    // Where a copy is missing, what is installed is as good.
    let installed = |path: Utf8PathBuf| std::fs::read_to_string(path).ok();
    let unit = text(&name.unit()).or_else(|| installed(paths.unit()));
    let tmpfiles = text(&format!("tmpfiles-{name}.conf")).or_else(|| installed(paths.tmpfiles()));
    if info.has_container_service && unit.is_none() {
        fail!(Kind::NotFound, "the unit of {name} is nowhere to be found");
    }
    for (name, text) in [
        (name.unit(), &unit),
        (format!("tmpfiles-{name}.conf"), &tmpfiles),
    ] {
        if let Some(text) = text
            && !files.iter().any(|file| file.name == name)
        {
            files.push(DeployFile {
                name,
                content: text.clone(),
                mode: 0o600,
            });
        }
    }
    // What is missing on the host comes back; what somebody changed stays.
    let mut fresh = info.clone();
    let tree = hostfiles::files_of(config, &info, &deployment)?;
    let wish = Wish {
        name,
        slot,
        files: tree.as_ref(),
        package: Package::Ready,
    };
    let mut on_host = hostfiles::plan(config, &wish, &mut fresh, Some((&info, slot)))?;
    if fresh != info
        && let Some(file) = files.iter_mut().find(|file| file.name == "info")
    {
        file.content = fresh.to_text();
    }
    notes.extend(on_host.compared.notes.iter().cloned());
    let mut effects = Effects {
        complete: true,
        ..Effects::default()
    };
    effects.host_files(&on_host);
    effects.file(paths.unit(), unit.as_deref());
    effects.file(paths.tmpfiles(), tmpfiles.as_deref());
    plan.stage.push(Step::Deploy {
        slot,
        commit: Some(commit.clone()),
        remote: None,
        files,
    });
    change::owner_steps(&mut plan, slot, &info, Some(commit));
    if let Some(shipment) = on_host.package.to.clone() {
        plan.stage.push(Step::StagePackage {
            built: deployment.join(&shipment.file),
            shipment,
        });
        if on_host.compared.create.is_empty() && on_host.compared.make_dirs.is_empty() {
            on_host.package = Packaging::default();
        }
    }
    plan.switch.push(Step::PlaceDeployment { slot });
    hostfiles::steps(&mut plan, Some(slot), &on_host);
    plan.close.push(Step::DropDeployment { slot });
    change::unit_file_steps(&paths, &mut plan, unit.as_deref(), tmpfiles.as_deref());
    change::switch_steps(
        host,
        &paths,
        &mut plan,
        Some(&info).filter(|_| unit.is_some()),
        tmpfiles.is_some(),
    )?;
    Ok(Change {
        plan,
        effects,
        notes,
        _package: None,
        store: Cell::new(Some(store)),
        _lock: lock,
    })
}

/// Where a deployment's `config.json` mounts something, with all directories above.
fn mount_points(deployment: &Utf8Path) -> HashSet<String> {
    let config: serde_json::Value = read_config(deployment).unwrap_or_default();
    config["mounts"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|mount| mount["destination"].as_str())
        .flat_map(|path| Utf8Path::new(path).ancestors())
        .map(|path| path.as_str().trim_start_matches('/').to_owned())
        .collect()
}

/// Everything of a deployment but its root file system.
fn deployment_files(paths: &Paths, slot: Slot) -> Result<Vec<DeployFile>> {
    let deployment = paths.slot(slot);
    let entries = deployment
        .read_dir_utf8()
        .context(|| format!("cannot list {deployment}"))?;
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.context(|| format!("cannot list {deployment}"))?;
        let is_package = Format::of_file(entry.file_name()).is_some();
        if is_package || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let content = std::fs::read_to_string(entry.path())
            .context(|| format!("cannot read {}", entry.path()))?;
        files.push(DeployFile {
            name: entry.file_name().to_owned(),
            content,
            mode: 0o600,
        });
    }
    Ok(files)
}
