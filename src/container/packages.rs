//! A container's package: whether its host files come in one, what is in it, and what a change does to
//! the one that is installed.

use std::path::PathBuf;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use tempfile::TempPath;

use super::hostfiles::Wish;
use crate::command::{Child, find_program};
use crate::config::Config;
use crate::deployment::{ContainerName, Info, Paths, Shipped, Slot};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::hostfiles::package::{
    self, Contents, Entry, Fields, Format, Manager, Mode, Package, Relation, look_into_rpm,
};
use crate::hostfiles::{Comparison, Record, State, Wanted};
use crate::image::{ImageConfig, Platform};
use crate::safefs::Files;
use crate::transaction::Shipment;

/// An image's own package.
const OWN: &str = "exports/container.rpm";
/// No package is larger: it is held in memory.
const MAX_BYTES: u64 = 2 << 30;

/// The package of a deployment.
fn shipment(name: &ContainerName, info: &Info, slot: Slot) -> Option<Shipment> {
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

/// What is on record of a deployment's host files. The original kept no record of those that came in a
/// package: there it is the package manager's.
pub(super) fn record(name: &ContainerName, info: &Info, slot: Slot) -> Result<Record> {
    let record = &info.installed_files_checksum;
    let Some(package) = shipment(name, info, slot) else {
        return Ok(record.clone());
    };
    let manager = Manager::new(package.format)?;
    if !record.is_empty() {
        return Ok(record.clone());
    }
    if manager.installed(&package.name)?.is_none() {
        return Ok(Record::new());
    }
    let mut found = Record::new();
    for (path, modified) in manager.files(&package.name)? {
        if let State::There(checksum) = State::of(&path)?
            && checksum != "0"
        {
            let known = if modified { String::new() } else { checksum };
            found.insert(path.into(), known);
        }
    }
    Ok(found)
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
    pub(super) built: Option<Arc<TempPath>>,
}

/// Where the host files of an image come from.
pub(super) enum Source {
    /// From its `exports/hostfs`, one by one.
    Plain,
    /// From there, in a package of ours.
    Ours(Manager),
    /// From a package of its own; its file, unless that is part of the deployment.
    Own(Manager, Option<Arc<TempPath>>, Box<Contents>),
}

impl Source {
    /// Decide. `has_files`: there is anything below `exports/hostfs`.
    pub(super) fn choose(
        config: &Config,
        wish: PackageWish,
        before: Option<Format>,
        files: &dyn Files,
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
        if let Some(bytes) = own(files, format)? {
            let path = new_file("rpm")?;
            std::fs::write(&path, bytes).context(|| format!("cannot write {}", path.display()))?;
            let contents = look_into_rpm(utf8(&path)?)
                .map_err(|error| error.within(format_args!("the image's {OWN}")))?;
            let manager = Manager::new(format)?;
            return Ok(Self::Own(manager, Some(Arc::new(path)), Box::new(contents)));
        }
        // Without anything to put into it there is no package.
        if files.walk(crate::hostfiles::DIRECTORY)?.is_empty() {
            return Ok(Self::Plain);
        }
        Ok(Self::Ours(Manager::new(format)?))
    }
}

impl Source {
    /// What the package of a deployment that is there holds, if it has one.
    pub(super) fn of_deployment(config: &Config, wish: &Wish<'_>, info: &Info) -> Result<Self> {
        let Some(shipment) = shipment(wish.name, info, wish.slot) else {
            return Ok(Self::Plain);
        };
        let manager = Manager::new(shipment.format)?;
        if shipment.name == package::name(shipment.format, wish.name.as_str()) {
            return Ok(Self::Ours(manager));
        }
        let file = Paths::new(config, wish.name)
            .slot(wish.slot)
            .join(shipment.file);
        let contents = look_into_rpm(&file)?;
        Ok(Self::Own(manager, None, Box::new(contents)))
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
    let (manager, own) = match source {
        Source::Plain => return Ok(out),
        Source::Ours(manager) => (manager, None),
        Source::Own(manager, path, contents) => (manager, path.map(|path| (path, contents))),
    };
    let format = manager.format();
    let serial = 1 + before
        .and_then(|(info, _)| info.package.as_ref())
        .map_or(0, |package| package.serial);
    let (built, name, version, requires) = if let Some((path, contents)) = own {
        let Contents {
            name,
            version,
            requires,
            ..
        } = *contents;
        (path, name, version, requires)
    } else {
        let package = of_host_files(making, info, compared, serial, format)?;
        let path = new_file(format.extension())?;
        let file: PathBuf = path.to_path_buf();
        std::fs::remove_file(&file).context(|| format!("cannot replace {}", file.display()))?;
        package.build(format, &file)?;
        if let (Format::Rpm, Some(key)) = (format, &host.package_signer) {
            sign(host, utf8(&path)?, key)?;
        }
        let version = package.version(format);
        (
            Arc::new(path),
            package.name,
            version,
            package.fields.requires,
        )
    };
    for path in &compared.foreign {
        if let Some(other) = manager.owner(path)?.filter(|other| *other != name) {
            fail!(
                Kind::Exists,
                "the image wants to write {path}, which belongs to the package {other}"
            );
        }
    }
    let is_ours = out.from.as_ref().is_some_and(|from| from.name == name);
    if !is_ours && let Some(found) = manager.installed(&name)? {
        fail!(
            Kind::Exists,
            "the package {name} {found} is installed on this host already, and not by {}",
            making.name
        );
    }
    let file = utf8(&built)?;
    out.fetch = manager.missing(&requires)?;
    manager.check(&name, file, out.fetch.is_empty())?;
    info.system_package = Some("yes".into());
    info.rpm_installed = Some(format!(
        "atomic-container-{}.{}",
        making.name,
        format.extension()
    ));
    info.package = Some(Shipped {
        name,
        version,
        serial,
    });
    out.to = shipment(making.name, info, making.slot);
    out.built = Some(built);
    Ok(out)
}

/// The return to a deployment that has its package, or has none.
pub(super) fn ready(
    name: &ContainerName,
    target: (&Info, Slot),
    compared: &Comparison,
    before: Option<(&Info, Slot)>,
) -> Packaging {
    let mut out = removal(name, compared, before);
    out.to = shipment(name, target.0, target.1);
    if out.to.is_some() {
        // What it would overwrite is not the container's any more.
        out.keep.extend(compared.foreign.iter().cloned());
    }
    out
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
        .map(|(path, owner)| Entry::dir(path, *owner))
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

/// What an image's own package brings, checked like files of `exports/hostfs`.
pub(super) fn check_own(
    contents: &Contents,
    rules: &crate::hostfiles::Rules,
    scripts_allowed: bool,
) -> Result<Wanted> {
    for file in &contents.wanted.files {
        rules.place(file.target.as_str())?;
    }
    if !scripts_allowed && !contents.scripts.is_empty() {
        fail!(
            Kind::Invalid,
            "the image's package {} runs scripts as root on this host ({}): --allow-package-scripts lets it",
            contents.name,
            contents.scripts.join(", ")
        );
    }
    Ok(contents.wanted.clone())
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

/// A temporary file: not in the checkouts, which a dry run must not touch.
fn new_file(extension: &str) -> Result<TempPath> {
    let directory = std::env::var_os("TMPDIR").map_or_else(|| "/var/tmp".into(), PathBuf::from);
    tempfile::Builder::new()
        .prefix("atomic-rs-")
        .suffix(&format!(".{extension}"))
        .tempfile_in(&directory)
        .context(|| format!("cannot create a file in {}", directory.display()))
        .map(tempfile::NamedTempFile::into_temp_path)
}

fn utf8(path: &TempPath) -> Result<&Utf8Path> {
    Utf8Path::from_path(path).ok_or_else(|| {
        Error::new(
            Kind::Invalid,
            "the directory for temporary files is not UTF-8",
        )
    })
}
