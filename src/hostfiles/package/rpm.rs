//! rpm, by the crate of that name.

use std::path::Path;

use rpm::{
    BuildConfig, CompressionWithLevel, Dependency, FileOptions, FileVerifyFlags, PackageBuilder,
};

use super::scripts::Scripts;
use super::{Body, Comparator, Entry, Format, Package, Relation};
use crate::error::{Context as _, Error, Kind, Result};
use crate::image::Platform;

/// Packages are read once and kept for long; more than this costs much and gains little.
const GZIP_LEVEL: u32 = 6;

/// Write `package` as the file `at`.
pub(super) fn build(package: &Package, at: &Path) -> Result<()> {
    let failed = |error: rpm::Error| {
        Error::new(
            Kind::Invalid,
            format!("the package {} cannot be made: {error}", package.name),
        )
    };
    let built = assemble(package).and_then(|mut builder| builder.build());
    let mut file = std::fs::File::create_new(at)
        .map(std::io::BufWriter::new)
        .context(|| format!("cannot create {}", at.display()))?;
    built
        .and_then(|built| built.write(&mut file))
        .map_err(failed)?;
    std::io::Write::flush(&mut file).context(|| format!("cannot write {}", at.display()))
}

fn assemble(package: &Package) -> std::result::Result<PackageBuilder, rpm::Error> {
    let fields = &package.fields;
    let date = u32::try_from(package.date).unwrap_or(u32::MAX);
    let mut builder = PackageBuilder::new(
        &package.name,
        &word(&fields.version),
        &fields.license,
        architecture(&package.platform),
        &fields.summary,
    );
    builder
        .using_config(
            BuildConfig::v4()
                .compression(CompressionWithLevel::Gzip(GZIP_LEVEL))
                .source_date(date),
        )
        .release(word(&fields.release))
        .description(&fields.description)
        .group("Unspecified")
        // The machine it was made on is nobody's business, and would make every build another.
        .build_host("localhost");
    if let Some(url) = &fields.url {
        builder.url(url);
    }
    if let Some(maintainer) = &fields.maintainer {
        builder.packager(maintainer);
    }
    for relation in &fields.requires {
        builder.requires(dependency(relation));
    }
    for relation in &fields.provides {
        builder.provides(dependency(relation));
    }
    for relation in &fields.conflicts {
        builder.conflicts(dependency(relation));
    }
    for entry in &package.entries {
        add(&mut builder, entry, date)?;
    }
    let scripts = Scripts::new(package, Format::Rpm);
    if !scripts.after_install.is_empty() {
        builder.post_install_script(scripts.after_install);
    }
    if !scripts.before_removal.is_empty() {
        builder.pre_uninstall_script(scripts.before_removal);
    }
    if !scripts.after_removal.is_empty() {
        builder.post_uninstall_script(scripts.after_removal);
    }
    Ok(builder)
}

fn add(
    builder: &mut PackageBuilder,
    entry: &Entry,
    date: u32,
) -> std::result::Result<(), rpm::Error> {
    let path = entry.path.as_str();
    // Beyond the permission bits there is nothing in a mode of ours.
    let mode = u16::try_from(entry.mode & 0o7777).unwrap_or(0o644);
    let is_foreign = (entry.uid, entry.gid) != (0, 0);
    // Until the script gives it away a file is root's, and must not run as root for everybody.
    let mode = if is_foreign { mode & 0o1777 } else { mode };
    let mut options = match &entry.body {
        Body::Dir => FileOptions::dir(path).permissions(mode),
        Body::Link(target) => FileOptions::symlink(path, target),
        Body::Bytes(_) | Body::Copy(_) => FileOptions::new(path).permissions(mode),
    }
    .modified_at(date.into());
    if entry.is_config() {
        options = options.config().noreplace();
    }
    if is_foreign {
        // Given by the script, as a number.
        let given = FileVerifyFlags::USER | FileVerifyFlags::GROUP | FileVerifyFlags::MODE;
        options = options.verify(FileVerifyFlags::ALL_FLAGS & !given);
    }
    if let Some(text) = entry.capabilities.as_ref().filter(|_| !is_foreign) {
        options = options.caps(text.as_str())?;
    }
    match &entry.body {
        Body::Dir => builder.with_dir_entry(options)?,
        Body::Link(_) => builder.with_symlink(options)?,
        Body::Bytes(content) => builder.with_file_contents(content.clone(), options)?,
        Body::Copy(source) => builder.with_file(source, options)?,
    };
    Ok(())
}

fn dependency(relation: &Relation) -> Dependency {
    let name = relation.name.as_str();
    match &relation.version {
        None => Dependency::any(name),
        Some((comparator, version)) => match comparator {
            Comparator::Less => Dependency::less(name, version),
            Comparator::LessOrEqual => Dependency::less_eq(name, version),
            Comparator::Equal => Dependency::eq(name, version),
            Comparator::GreaterOrEqual => Dependency::greater_eq(name, version),
            Comparator::Greater => Dependency::greater(name, version),
        },
    }
}

/// A version or release of the letters that may be in one.
pub(super) fn word(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "._+~^".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect()
}

/// The architecture in rpm's words.
fn architecture(platform: &Platform) -> &str {
    match (platform.architecture.as_str(), platform.variant.as_str()) {
        ("amd64", _) => "x86_64",
        ("arm64", _) => "aarch64",
        ("386", _) => "i686",
        ("arm", "v5") => "armv5tel",
        ("arm", "v6") => "armv6hl",
        ("arm", _) => "armv7hl",
        ("mips64le", _) => "mips64el",
        (other, _) => other,
    }
}
