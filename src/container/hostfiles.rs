//! A container's files on the host: what a change means for them.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;

use super::change::Outcome;
use super::effects::{FileChange, PackageChange};
use super::packages::{self, Making, PackageWish, Packaging, Source};
use super::update::{Fetch, Update, current_image, update};
use crate::config::Config;
use crate::deployment::{ContainerName, Info, Paths, Slot, installed};
use crate::error::{Kind, Result};
use crate::fail;
use crate::hostfiles::package::{Format, Manager};
use crate::hostfiles::{
    Comparison, Kind as FileKind, Record, Request, Rules, State, Wanted, attributes, compare,
    wanted,
};
use crate::image::ImageConfig;
use crate::pull::Silent;
use crate::safefs::{Files, Root};
use crate::store::{ImageTree, Store};
use crate::transaction::{Host, Plan, Step};

/// What a change means for a container's files on the host, and for the package they may come in.
#[derive(Debug, Clone, Default)]
pub struct HostChange {
    /// File by file.
    pub compared: Comparison,
    /// The package.
    pub package: Packaging,
}

/// A deployment whose files are to be on the host.
pub struct Wish<'a> {
    /// The container.
    pub name: &'a ContainerName,
    /// Where the deployment will be.
    pub slot: Slot,
    /// The files of its image.
    pub files: &'a dyn Files,
    /// Whether and how they come in a package.
    pub package: Package<'a>,
}

/// Where a deployment's package comes from.
pub enum Package<'a> {
    /// It is to be made, if there shall be one, by what the image says of itself.
    New(PackageWish, &'a ImageConfig),
    /// The deployment has its package already, or has none.
    Ready,
}

/// Decide what becomes of the host files when `info` is deployed; it gets the new record. `before` is the
/// deployment in use.
pub fn plan(
    config: &Config,
    wish: &Wish<'_>,
    info: &mut Info,
    before: Option<(&Info, Slot)>,
) -> Result<HostChange> {
    if !config.is_system {
        return Ok(HostChange::default());
    }
    let options = info.options.clone().unwrap_or_default();
    let rules = Rules::new(config, &options.allow_host_paths);
    let record = match before {
        Some((info, slot)) => packages::record(wish.name, info, slot)?,
        None => Record::new(),
    };
    let source = match wish.package {
        Package::New(said, image) => {
            let last = before.and_then(|(info, _)| info.rpm_installed.as_deref());
            let last = last.and_then(Format::of_file);
            Source::choose(config, said, last, (image, wish.files))?
        }
        Package::Ready => Source::of_deployment(config, wish, info)?,
    };
    let wanted = match &source {
        Source::Own(_, _, contents) | Source::OwnReady(contents) => {
            packages::check_own(contents, &rules, options.allow_package_scripts)?
        }
        Source::Plain | Source::Ours(_) => wanted(
            wish.files,
            &Request {
                rename: &info.rename_installed_files,
                templates: &info.installed_files_template,
                use_links: info.use_links,
                values: &info.values,
                rules: &rules,
            },
        )?,
    };
    check_owners(config, wish.name, &wanted)?;
    let mut compared = compare(&wanted, &record)?;
    if matches!(wish.package, Package::Ready) && !matches!(source, Source::Plain) {
        // They are in the package all the same: what is there is on record as changed.
        for file in &wanted.files {
            if compared.foreign.contains(&file.target) {
                let target = file.target.to_string();
                compared.record.insert(target, file.checksum.clone());
            }
        }
    }
    info.installed_files = compared.record.keys().cloned().collect();
    info.installed_files_checksum.clone_from(&compared.record);
    let none = attributes::Record::new();
    let last = before.map_or(&none, |(info, _)| &info.installed_files_attributes);
    info.installed_files_attributes = match source {
        Source::Plain => attributes::plain(&mut compared, last)?,
        // The package manager sees to them. Of the image's own package only that knows.
        Source::Ours(_) => attributes::of_package(&compared, last),
        Source::Own(..) | Source::OwnReady(_) => attributes::Record::new(),
    };
    let package = match wish.package {
        Package::Ready => packages::ready(config, wish.name, (info, wish.slot), &compared, before)?,
        Package::New(_, image) => {
            let making = Making {
                name: wish.name,
                slot: wish.slot,
                config: image,
                files: wish.files,
            };
            packages::plan(config, source, &making, info, &compared, before)?
        }
    };
    Ok(HostChange { compared, package })
}

/// Refuse what belongs to another container, or to this one's own books.
fn check_owners(config: &Config, name: &ContainerName, wanted: &Wanted) -> Result<()> {
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
    Ok(())
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

/// Decide what becomes of the host files when their container goes. `before` is the deployment in use;
/// its `info` may be unreadable.
pub fn removal(
    config: &Config,
    name: &ContainerName,
    before: (Option<&Info>, Slot),
) -> Result<HostChange> {
    if !config.is_system {
        return Ok(HostChange::default());
    }
    let (info, slot) = match before {
        (Some(info), slot) => (info, slot),
        (None, slot) => {
            // Without a record nothing is known but the package.
            let from = packages::guess(config, name, slot);
            return Ok(HostChange {
                package: Packaging {
                    from: from.filter(|from| Manager::new(from.format).is_ok()),
                    ..Packaging::default()
                },
                ..HostChange::default()
            });
        }
    };
    // What cannot be asked cannot be removed either, and must not keep the container.
    let (record, known) = match packages::record(name, info, slot) {
        Ok(record) => (record, Some((info, slot))),
        Err(error) => {
            tracing::warn!(%error, "the package stays");
            (info.installed_files_checksum.clone(), None)
        }
    };
    let compared = compare(&Wanted::default(), &record)?;
    let package = packages::removal(name, &compared, known);
    Ok(HostChange { compared, package })
}

/// The steps of a decision. They come before the switch, which is the commit point, and after the new
/// deployment is in place. `slot`: where the new files come from.
pub fn steps(plan: &mut Plan, slot: Option<Slot>, change: &HostChange) {
    let HostChange { compared, package } = change;
    let was_packaged = package.from.is_some();
    package_stage(plan, package);
    let remove = |plan: &mut Plan, target: &Utf8PathBuf| {
        plan.switch.push(Step::RemoveFile {
            target: target.clone(),
        });
        plan.close.push(Step::DropFile {
            target: target.clone(),
        });
    };
    let change_package = |plan: &mut Plan| {
        if was_packaged || package.to.is_some() {
            plan.switch.push(Step::ChangePackage {
                from: package.from.clone(),
                to: package.to.clone(),
                keep: package.keep.clone(),
            });
        }
    };
    if let Some(to) = &package.to {
        if !was_packaged {
            // Plain files give way to the same in the package.
            let ours = compared.same.iter().chain(&compared.replace);
            let ours = ours.filter(|file| file.payload.kind != FileKind::Dir);
            for target in ours.map(|file| &file.target).chain(&compared.remove) {
                remove(plan, target);
            }
        }
        change_package(plan);
        if was_packaged && to.format == Format::Deb {
            // dpkg leaves configuration files that a new version has no more.
            let config = |path: &&Utf8PathBuf| path.starts_with("/etc");
            for target in compared.remove.iter().filter(config) {
                remove(plan, target);
            }
        }
    } else {
        change_package(plan);
        for (path, owner) in &compared.make_dirs {
            plan.stage.push(Step::MakeDirectory {
                path: path.clone(),
                owner: *owner,
            });
        }
        if was_packaged {
            // The package took them away.
            let made: Vec<&Utf8PathBuf> = compared.make_dirs.iter().map(|(path, _)| path).collect();
            for (path, owner) in &compared.dirs {
                if let (Some(owner), false) = (owner, made.contains(&path)) {
                    plan.switch.push(Step::MakeDirectory {
                        path: path.clone(),
                        owner: *owner,
                    });
                }
            }
        }
        for change in &compared.change_dirs {
            plan.switch.push(Step::ChangeDirectory {
                path: change.path.clone(),
                from: change.from,
                to: change.to,
            });
        }
        place_steps(plan, slot, compared, was_packaged);
        if !was_packaged {
            for target in &compared.remove {
                remove(plan, target);
            }
        }
    }
    for path in &compared.remove_dirs {
        plan.close.push(Step::RemoveEmptyDir { path: path.clone() });
    }
}

/// The steps that prepare a package, and the change of packages.
fn package_stage(plan: &mut Plan, package: &Packaging) {
    let formats = [&package.from, &package.to];
    let formats = formats.map(|shipment| shipment.as_ref().map(|shipment| shipment.format));
    // After all that takes the same lock, and before the service is stopped.
    let lock = |plan: &mut Plan| {
        if formats.contains(&Some(Format::Deb)) {
            plan.stage.push(Step::LockPackages {
                format: Format::Deb,
            });
        }
    };
    let built = package.built.as_ref().map(|spool| spool.path());
    let (Some(to), Some(built)) = (&package.to, built) else {
        lock(plan);
        return;
    };
    plan.stage.push(Step::StagePackage {
        shipment: to.clone(),
        built: built.to_owned(),
    });
    if !package.fetch.is_empty() {
        plan.stage.push(Step::FetchPackages {
            format: to.format,
            wants: package.fetch.clone(),
        });
    }
    lock(plan);
    plan.stage.push(Step::CheckPackage {
        shipment: to.clone(),
    });
}

/// The steps that put plain files into place. `all`: nothing is there, what is wanted as it was neither.
fn place_steps(plan: &mut Plan, slot: Option<Slot>, compared: &Comparison, all: bool) {
    let new = compared.create.iter().map(|file| (file, false));
    let changed = compared.replace.iter().map(|file| (file, !all));
    let same = compared
        .same
        .iter()
        .filter(|_| all)
        .map(|file| (file, false));
    for (file, replaces) in new.chain(changed).chain(same) {
        if file.payload.kind == FileKind::Dir {
            continue;
        }
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

/// What an update would change on the host beside the container itself.
#[derive(Debug, Clone, Default, Serialize)]
pub struct HostDiff {
    /// The image's files.
    pub files: Vec<FileChange>,
    /// The package they come in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub package: Option<PackageChange>,
}

/// What an update of `name` to what the store has would change on the host.
///
/// # Errors
/// What would make the update fail.
pub fn host_diff(host: &Host<'_>, name: &ContainerName) -> Result<HostDiff> {
    let request = Update {
        fetch: Fetch::Never,
        dry: true,
        ..Update::new(name.clone())
    };
    Ok(match update(host, &request, &mut Silent)? {
        Outcome::Change(change) => {
            let paths = Paths::new(host.config(), name);
            let mut files = change.effects.files;
            // The unit names the deployment, and so is another one every time.
            files.retain(|file| file.path != paths.unit() && file.path != paths.tmpfiles());
            HostDiff {
                files,
                package: change.effects.package,
            }
        }
        _ => HostDiff::default(),
    })
}

/// Which host files are not what was installed.
pub fn verify(info: &Info) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for (path, recorded) in &info.installed_files_checksum {
        // The original's records say of directories and links nothing else than that they are there.
        let says_nothing = recorded == "0" && info.options.is_none();
        let path = Utf8PathBuf::from(path);
        let state = State::of(&path)?;
        if state == State::Missing {
            problems.push(format!("{path} is missing on the host"));
        } else if !says_nothing && !state.is_as_recorded(recorded) {
            problems.push(format!("{path} on the host is not what was installed"));
        } else if let Some(recorded) = info.installed_files_attributes.get(path.as_str())
            && let Some(difference) = attributes::differs(&path, recorded)?
        {
            problems.push(format!("{path} on the host {difference}"));
        }
    }
    Ok(problems)
}
