//! A container's files on the host: what a change means for them.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};

use super::update::current_image;
use crate::config::Config;
use crate::deployment::{ContainerName, Info, Paths, Slot, installed};
use crate::error::{Kind, Result};
use crate::fail;
use crate::hostfiles::{Comparison, Record, Request, Rules, State, Wanted, compare, wanted};
use crate::safefs::{Files, Root};
use crate::store::{ImageTree, Store};
use crate::transaction::{Plan, Step};

/// Decide what becomes of the host files when `info` is deployed; it gets the new record. `files`: those
/// of its image; `before`: what is on record.
pub fn plan(
    config: &Config,
    name: &ContainerName,
    files: &dyn Files,
    info: &mut Info,
    before: &Record,
) -> Result<Comparison> {
    if !config.is_system {
        return Ok(Comparison::default());
    }
    let opened = info
        .options
        .as_ref()
        .map(|options| options.allow_host_paths.as_slice());
    let rules = Rules::new(config, opened.unwrap_or_default());
    let wanted = wanted(
        files,
        &Request {
            rename: &info.rename_installed_files,
            templates: &info.installed_files_template,
            use_links: info.use_links,
            values: &info.values,
            rules: &rules,
        },
    )?;
    let paths = Paths::new(config, name);
    let all = if wanted.files.is_empty() {
        BTreeMap::new()
    } else {
        owners(config)?
    };
    for file in &wanted.files {
        let target = &file.target;
        if *target == paths.unit() || *target == paths.tmpfiles() {
            fail!(
                Kind::Invalid,
                "the image wants to write {target}, which is the container's own"
            );
        }
        // Directories are for everybody.
        if let Some(other) = all.get(target.as_str())
            && other != name
            && State::of(target)? != State::There("0".into())
        {
            fail!(
                Kind::Exists,
                "the image wants to write {target}, which belongs to the container {other}"
            );
        }
    }
    let compared = compare(&wanted, before)?;
    info.installed_files = compared.record.keys().cloned().collect();
    info.installed_files_checksum.clone_from(&compared.record);
    Ok(compared)
}

/// The files of a deployment that is in place: from the store, which knows all there is to know about
/// them, or from the deployment itself where the store has them no more.
pub fn files_of(config: &Config, info: &Info, deployment: &Utf8Path) -> Result<Box<dyn Files>> {
    if info.remote.is_none()
        && let Some(store) = Store::open_existing(config)?
        && let Ok(image) = current_image(&store, info)
        && let Ok(commit) = store.image_tree(&image)
    {
        return Ok(Box::new(ImageTree::open(store.repo(), &commit)?));
    }
    Ok(Box::new(Root::open(
        deployment.join("rootfs").as_std_path(),
    )?))
}

/// Decide what becomes of the host files when their container goes.
pub fn removal(config: &Config, before: &Record) -> Result<Comparison> {
    if !config.is_system {
        return Ok(Comparison::default());
    }
    compare(&Wanted::default(), before)
}

/// The steps of a decision. They come before the switch, which is the commit point. `slot`: where the
/// new files come from.
pub fn steps(plan: &mut Plan, slot: Option<Slot>, compared: &Comparison) {
    for (path, owner) in &compared.make_dirs {
        plan.stage.push(Step::MakeDirectory {
            path: path.clone(),
            owner: *owner,
        });
    }
    let new = compared.create.iter().map(|file| (file, false));
    let changed = compared.replace.iter().map(|file| (file, true));
    for (file, replaces) in new.chain(changed) {
        let target = file.target.clone();
        if let Some(slot) = slot {
            plan.stage.push(Step::StageHostFile {
                slot,
                target: target.clone(),
                payload: file.payload.clone(),
            });
        }
        plan.switch.push(Step::PlaceFile {
            target: target.clone(),
            replaces,
        });
        if replaces {
            plan.close.push(Step::DropFile { target });
        }
    }
    for target in &compared.remove {
        let target = target.clone();
        plan.switch.push(Step::RemoveFile {
            target: target.clone(),
        });
        plan.close.push(Step::DropFile { target });
    }
    for path in &compared.remove_dirs {
        plan.close.push(Step::RemoveEmptyDir { path: path.clone() });
    }
}

/// The container that put a file on the host.
pub fn owner(config: &Config, path: &Utf8Path) -> Result<Option<ContainerName>> {
    Ok(owners(config)?.remove(path.as_str()))
}

/// Every path that a container put on the host, and which one did.
fn owners(config: &Config) -> Result<BTreeMap<String, ContainerName>> {
    let mut all = BTreeMap::new();
    for name in installed(config)? {
        let paths = Paths::new(config, &name);
        let Ok(Some(slot)) = paths.current() else {
            continue;
        };
        // A broken container hides no other.
        if let Ok(info) = Info::read(&paths.slot(slot)) {
            let files = info.installed_files_checksum.into_keys();
            all.extend(files.map(|path| (path, name.clone())));
        }
    }
    Ok(all)
}

/// Which host files are not what was installed.
pub fn verify(info: &Info) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for (path, recorded) in &info.installed_files_checksum {
        let path = Utf8PathBuf::from(path);
        let state = State::of(&path)?;
        if state == State::Missing {
            problems.push(format!("{path} is missing on the host"));
        } else if !state.is_as_recorded(recorded) {
            problems.push(format!("{path} on the host is not what was installed"));
        }
    }
    Ok(problems)
}
