//! A container's package: whether its host files come in one, what is in it, and what a change does to
//! the one that is installed.

use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};

use super::hostfiles::Wish;
use super::spool::Spool;
use crate::command::{Child, find_program};
use crate::config::Config;
use crate::deployment::{ContainerName, Info, Paths, Shipped, Slot};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::hostfiles::package::{
    self, Contents, Entry, Fields, Format, Manager, Mode, Package, Relation,
};
use crate::hostfiles::{Comparison, Record, Rules, State, Wanted};
use crate::image::{ImageConfig, Platform};
use crate::safefs::Files;
use crate::transaction::Shipment;

/// An image's own package.
const OWN: &str = "exports/container.rpm";
/// No package is larger: it is held in memory.
const MAX_BYTES: u64 = 2 << 30;

/// How the file of a container's package is called in its deployment.
pub(super) fn file_name(name: &ContainerName, format: Format) -> String {
    format!("atomic-container-{name}.{}", format.extension())
}

/// The package of a deployment.
pub(super) fn shipment(name: &ContainerName, info: &Info, slot: Slot) -> Option<Shipment> {
    let file = info.rpm_installed.clone()?;
    // The original wrote rpms, and no more about them than the name of the file.
    let format = Format::of_file(&file).unwrap_or(Format::Rpm);
    let known = info.package.clone().unwrap_or_else(|| Shipped {
        name: package::name(format, name.as_str()),
        ..Shipped::default()
    });
    Some(Shipment {
        format,
        name: known.name,
        version: known.version,
        slot,
        file,
    })
}

/// The package of a deployment whose `info` cannot be read, by the file that lies there.
pub(super) fn guess(config: &Config, name: &ContainerName, slot: Slot) -> Option<Shipment> {
    let deployment = Paths::new(config, name).slot(slot);
    [Format::Rpm, Format::Deb].into_iter().find_map(|format| {
        let file = file_name(name, format);
        deployment.join(&file).exists().then(|| Shipment {
            format,
            name: package::name(format, name.as_str()),
            version: String::new(),
            slot,
            file,
        })
    })
}

/// What is on record of a deployment's host files, in our words.
pub(super) fn record(name: &ContainerName, info: &Info, slot: Slot) -> Result<Record> {
    let mut record = info.installed_files_checksum.clone();
    // The original wrote "0" for links as for directories.
    if info.options.is_none() {
        for (path, sum) in record.iter_mut().filter(|(_, sum)| *sum == "0") {
            if let State::There(found) = State::of(Utf8Path::new(path))?
                && found.starts_with("link:")
            {
                *sum = found;
            }
        }
    }
    let Some(package) = shipment(name, info, slot) else {
        return Ok(record);
    };
    let manager = Manager::new(package.format)?;
    // It kept no record either of files that came in a package: there it is the package manager's.
    if record.is_empty() && manager.installed(&package.name)?.is_some() {
        for (path, modified) in manager.files(&package.name)? {
            if let State::There(checksum) = State::of(&path)?
                && checksum != "0"
            {
                let known = if modified { String::new() } else { checksum };
                record.insert(path.into(), known);
            }
        }
    }
    Ok(record)
}

/// What is said about packages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PackageWish {
    /// Whether there shall be one.
    pub mode: Mode,
    /// Its format; nothing: the host's.
    pub format: Option<Format>,
}

/// What becomes of a container's package.
#[derive(Debug, Clone, Default)]
pub struct Packaging {
    /// The one that is installed.
    pub from: Option<Shipment>,
    /// The one that will be.
    pub to: Option<Shipment>,
    /// Packages it needs that have to be fetched.
    pub fetch: Vec<Relation>,
    /// Files of it that somebody changed: they stay as they are.
    pub keep: Vec<Utf8PathBuf>,
    /// Its file, until it is part of the deployment.
    pub(super) built: Option<Arc<Spool>>,
}

/// Where the host files of an image come from.
pub(super) enum Source {
    /// From its `exports/hostfs`, one by one.
    Plain,
    /// From there, in a package of ours.
    Ours(Manager),
    /// From a package of its own, which waits there.
    Own(Manager, Arc<Spool>, Box<Contents>),
    /// From a package of its own, which is part of the deployment.
    OwnReady(Box<Contents>),
}

impl Source {
    /// Decide for a new deployment of an image. `before`: what the container has.
    pub(super) fn choose(
        config: &Config,
        wish: PackageWish,
        before: Option<Format>,
        (image, files): (&ImageConfig, &dyn Files),
    ) -> Result<Self> {
        if wish.mode == Mode::No {
            return Ok(Self::Plain);
        }
        let format = wish.format.or(before).or(host_format(config)?);
        let Some(format) = format else {
            if wish.mode == Mode::Yes {
                fail!(
                    Kind::NotFound,
                    "this host has no package manager that could install host files: --system-package=no installs plain files"
                );
            }
            return Ok(Self::Plain);
        };
        // A package manager takes none for another machine, where plain files may be of use.
        let is_for_here = image
            .platform()
            .is_none_or(|platform| platform.matches(&Platform::host()));
        if wish.mode == Mode::Auto && !is_for_here {
            return Ok(Self::Plain);
        }
        if let Some(bytes) = own(files, format)? {
            let spool = Spool::new("own.rpm")?;
            let contents = write_own(&bytes, spool.path())?;
            let manager = Manager::new(format)?;
            return Ok(Self::Own(manager, Arc::new(spool), Box::new(contents)));
        }
        // Without anything to put into it there is no package.
        if files.walk(crate::hostfiles::DIRECTORY)?.is_empty() {
            return Ok(Self::Plain);
        }
        Ok(Self::Ours(Manager::new(format)?))
    }

    /// What the package of a deployment that is there holds, if it has one.
    pub(super) fn of_deployment(config: &Config, wish: &Wish<'_>, info: &Info) -> Result<Self> {
        let Some(shipment) = shipment(wish.name, info, wish.slot) else {
            return Ok(Self::Plain);
        };
        let manager = Manager::new(shipment.format)?;
        let paths = Paths::new(config, wish.name);
        let file = paths.slot(wish.slot).join(&shipment.file);
        if !file.exists() {
            fail!(
                Kind::NotFound,
                "the package of that deployment is gone: {file} is missing"
            );
        }
        if info.package.as_ref().is_some_and(|package| package.own) {
            let contents = Contents::read(&file).map_err(|error| error.within(&file))?;
            return Ok(Self::OwnReady(Box::new(contents)));
        }
        Ok(Self::Ours(manager))
    }
}

/// An image's own package.
pub(super) fn own(files: &dyn Files, format: Format) -> Result<Option<Vec<u8>>> {
    match format {
        Format::Rpm => files.read(OWN, MAX_BYTES),
        Format::Deb => Ok(None),
    }
}

/// The format of the packages of a host, by its configuration or by what it has.
pub(super) fn host_format(config: &Config) -> Result<Option<Format>> {
    match &config.package_format {
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|error: Error| error.within("package_format")),
        None => Ok(Manager::of_host()),
    }
}

/// What a package is made for.
pub(super) struct Making<'a> {
    pub name: &'a ContainerName,
    /// The deployment it will be part of.
    pub slot: Slot,
    pub config: &'a ImageConfig,
    pub files: &'a dyn Files,
}

/// Decide what becomes of the package. `info` is that of the new deployment and gets the new package;
/// `before` is that of the one in use.
///
/// # Errors
/// What stands in the way, as far as it can be known: another package's file, a conflict.
pub(super) fn plan(
    host: &Config,
    source: Source,
    making: &Making<'_>,
    info: &mut Info,
    compared: &Comparison,
    before: Option<(&Info, Slot)>,
) -> Result<Packaging> {
    let mut out = removal(making.name, compared, before);
    info.system_package = Some("no".into());
    (info.rpm_installed, info.package) = (None, None);
    let serial = 1 + before
        .and_then(|(info, _)| info.package.as_ref())
        .map_or(0, |package| package.serial);
    let (manager, built, shipped) = match source {
        Source::Plain | Source::OwnReady(_) => return Ok(out),
        Source::Own(manager, spool, contents) => {
            if let Some(path) = compared.foreign.first() {
                fail!(
                    Kind::Exists,
                    "the image's package would overwrite {path}, which exists and is not the container's"
                );
            }
            let shipped = Shipped {
                name: contents.name.clone(),
                version: contents.version.clone(),
                serial,
                own: true,
            };
            (manager, spool, shipped)
        }
        Source::Ours(manager) => {
            let format = manager.format();
            let package = of_host_files(making, info, compared, serial, format)?;
            let spool = Spool::new(&file_name(making.name, format))?;
            package.build(format, spool.path().as_std_path())?;
            if let (Format::Rpm, Some(key)) = (format, &host.package_signer) {
                sign(host, spool.path(), key)?;
            }
            let shipped = Shipped {
                version: package.version(format),
                name: package.name,
                serial,
                own: false,
            };
            (manager, Arc::new(spool), shipped)
        }
    };
    let name = &shipped.name;
    // Where it is missing on the disk a file may still be another package's.
    let new = compared.create.iter().map(|file| &file.target);
    let asked: Vec<&Utf8PathBuf> = compared.foreign.iter().chain(new).collect();
    let others = manager.owners(&asked)?;
    let last = out.from.as_ref().map(|from| from.name.clone());
    let other = others
        .iter()
        .find(|(_, owner)| owner != name && Some(owner) != last.as_ref());
    if let Some((path, other)) = other {
        fail!(
            Kind::Exists,
            "the image wants to write {path}, which belongs to the package {other}"
        );
    }
    if last.as_ref() != Some(name)
        && let Some(found) = manager.installed(name)?
    {
        fail!(
            Kind::Exists,
            "the package {name} {found} is installed on this host already, and not by {}",
            making.name
        );
    }
    out.fetch = manager.check(name, built.path())?;
    info.system_package = Some("yes".into());
    info.rpm_installed = Some(file_name(making.name, manager.format()));
    info.package = Some(shipped);
    out.to = shipment(making.name, info, making.slot);
    out.built = Some(built);
    Ok(out)
}

/// The return to a deployment that has its package, or has none.
pub(super) fn ready(
    config: &Config,
    name: &ContainerName,
    target: (&Info, Slot),
    compared: &Comparison,
    before: Option<(&Info, Slot)>,
) -> Result<Packaging> {
    let mut out = removal(name, compared, before);
    out.to = shipment(name, target.0, target.1);
    if let Some(to) = &out.to {
        let file = Paths::new(config, name).slot(to.slot).join(&to.file);
        let missing = Manager::new(to.format)?.check(&to.name, &file)?;
        if !missing.is_empty() {
            let list: Vec<String> = missing.iter().map(ToString::to_string).collect();
            fail!(
                Kind::Failed,
                "the package {} needs what is no longer on this host: {}",
                to.name,
                list.join(", ")
            );
        }
        // What it would overwrite is not the container's any more.
        out.keep.extend(compared.foreign.iter().cloned());
    }
    Ok(out)
}

/// The package goes.
pub(super) fn removal(
    name: &ContainerName,
    compared: &Comparison,
    before: Option<(&Info, Slot)>,
) -> Packaging {
    let modified = compared.modified.iter().map(|file| &file.target);
    Packaging {
        from: before.and_then(|(info, slot)| shipment(name, info, slot)),
        keep: modified.chain(&compared.kept).cloned().collect(),
        ..Packaging::default()
    }
}

/// The package of a container's host files.
fn of_host_files(
    making: &Making<'_>,
    info: &Info,
    compared: &Comparison,
    serial: u64,
    format: Format,
) -> Result<Package> {
    let mut entries: Vec<Entry> = compared
        .dirs
        .iter()
        .filter_map(|(path, owner)| Some(Entry::dir(path, (*owner)?)))
        .collect();
    let dirs: Vec<&Utf8PathBuf> = compared.dirs.iter().map(|(path, _)| path).collect();
    for file in compared
        .create
        .iter()
        .chain(&compared.replace)
        .chain(&compared.same)
        .chain(&compared.modified)
    {
        if !dirs.contains(&&file.target) {
            entries.push(Entry::of_host_file(file, making.files)?);
        }
    }
    Ok(Package {
        name: package::name(format, making.name.as_str()),
        fields: Fields::of_image(
            making.config,
            making.name.as_str(),
            &serial.to_string(),
            (&info.image, &info.revision),
        )?,
        platform: making.config.platform().unwrap_or_else(Platform::host),
        date: package::package_date(making.config)?,
        entries,
        service: None,
        tmpfiles: None,
        container: None,
    })
}

/// What an image's own package brings, checked like files of `exports/hostfs`, and whether it may do what
/// else it does.
pub(super) fn check_own(
    contents: &Contents,
    rules: &Rules,
    scripts_allowed: bool,
) -> Result<Wanted> {
    let wanted = contents
        .check(rules)
        .map_err(|error| error.within(format_args!("the image's {OWN}")))?;
    if let Some(what) = contents.reaches.first() {
        fail!(
            Kind::Invalid,
            "the image's package {} {what}, which an image must not do",
            contents.name
        );
    }
    if !scripts_allowed && !contents.scripts.is_empty() {
        fail!(
            Kind::Invalid,
            "the image's package {} runs scripts as root on this host ({}): --allow-package-scripts lets it",
            contents.name,
            contents.scripts.join(", ")
        );
    }
    Ok(wanted)
}

/// Sign an rpm with a key of GPG's, by rpm's own program.
pub(super) fn sign(host: &Config, file: &Utf8Path, key: &str) -> Result<()> {
    let define = |name: &str, value: &str| ["--define".to_owned(), format!("{name} {value}")];
    let mut child = Child::new("rpmsign")
        .arg("--addsign")
        .args(define("_gpg_name", key));
    if let Some(home) = &host.gnupg_home {
        child = child.args(define("_gpg_path", home.as_str()));
    }
    // Not every distribution's rpm knows where it is.
    if let Some(gpg) = find_program("gpg") {
        child = child.args(define("__gpg", &gpg.to_string_lossy()));
    }
    child.arg(file).run().map_err(|error| {
        Error::new(
            error.kind(),
            format!("the package cannot be signed with the key {key}: {error}"),
        )
    })?;
    Ok(())
}

/// Where an image's own package is written for [`Contents::read`] by whoever has no deployment.
pub(super) fn write_own(bytes: &[u8], at: &Utf8Path) -> Result<Contents> {
    std::fs::write(at, bytes).context(|| format!("cannot write {at}"))?;
    Contents::read(at).map_err(|error| error.within(format_args!("the image's {OWN}")))
}
