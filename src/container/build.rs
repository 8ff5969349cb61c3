//! `--system-package=build`: a package of the whole container, for machines without this program.
//!
//! The package is what `atomic` calls a preinstalled container: the root file system, `config.json` and
//! `info` in `/usr/lib/containers/atomic/NAME`, a unit and a tmpfiles.d file below `/usr/lib`, and the
//! image's files for the host.

use std::collections::BTreeSet;
use std::path::Path;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;

use super::install::{Install, Prepared};
use super::packages::{self, host_format};
use super::render::{self, Rendered, Wishes};
use super::run::Bundle;
use crate::config::Config;
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::hostfiles::package::{self, Entry, Fields, Format, Package, package_of_program};
use crate::hostfiles::{Request, Rules, Wanted, wanted};
use crate::image::{Digest, Platform};
use crate::runtime::Runtime;
use crate::safefs::Files as _;
use crate::store::{ImageTree, Store};

/// A package that was built.
pub struct Built {
    /// How its file shall be called.
    pub file: String,
    /// Its format.
    pub format: Format,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What a person should know.
    pub notes: Vec<String>,
    /// It holds what not everybody may read.
    secret: bool,
    bundle: Option<Bundle>,
}

impl Built {
    /// Put its file at `target`, in place of one that is there.
    pub fn place(&self, target: &Utf8Path) -> Result<()> {
        let Some(bundle) = &self.bundle else {
            return Ok(());
        };
        let failed = || format!("cannot write {target}");
        let directory = target.parent().unwrap_or(Utf8Path::new("."));
        let mut source = std::fs::File::open(bundle.path.join(&self.file)).context(failed)?;
        let mut new = tempfile::NamedTempFile::new_in(directory).context(failed)?;
        std::io::copy(&mut source, &mut new).context(failed)?;
        let mode = if self.secret { 0o600 } else { 0o644 };
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        new.as_file().set_permissions(mode).context(failed)?;
        new.persist(target)
            .map_err(|error| error.error)
            .context(failed)?;
        Ok(())
    }
}

/// Where packages put things.
fn packaged(config: &Config) -> Config {
    Config {
        checkouts: config.preinstalled.clone(),
        units: "/usr/lib/systemd/system".into(),
        tmpfiles: "/usr/lib/tmpfiles.d".into(),
        ..config.clone()
    }
}

/// Build a package of an image that is in the store. `dry`: only say what it would be.
pub fn build_package(
    config: &Config,
    store: &Store,
    request: &Install,
    dry: bool,
) -> Result<Built> {
    let name = &request.name;
    let Some(format) = request.package.format.or(host_format(config)?) else {
        fail!(
            Kind::Usage,
            "this host has no packages: say the format with --package-format"
        );
    };
    let image = &request.image;
    let prepared = Prepared::new(config, store, image, None)?;
    let Some(commit) = prepared.commit.clone() else {
        fail!(Kind::Failed, "the image has no tree");
    };
    let there = packaged(config);
    let destdir = there.checkouts.join(name.as_str());
    let runtime = match &request.runtime {
        Some(path) => Runtime::find(Some(path))?,
        None => Runtime::find(config.runtime.as_deref())?.by_name(),
    };
    // The same package on every machine, and after every build.
    let uuid = stable_uuid(&image.id(), name.as_str());
    let rendered = render::render(
        &there,
        &runtime,
        name,
        &destdir,
        &prepared.source(image, Some(request.reference.to_string())),
        &Wishes {
            values: &request.values,
            options: &request.options,
            uuid: Some(&uuid),
            inherited: None,
            once: false,
            elsewhere: true,
        },
    )?;
    let image_config = prepared.config();
    let date = package::package_date(image_config)?;
    let mut fields = Fields::of_image(
        image_config,
        name.as_str(),
        &stamp(date),
        (&image.name, &image.id()),
    )?;
    if rendered.unit.is_some() {
        fields.requires.extend(package_of_program(runtime.path()));
    }
    let rules = Rules::new(config, &request.options.allow_host_paths);
    let host_files = wanted(
        prepared.files(),
        &Request {
            rename: &rendered.info.rename_installed_files,
            templates: &rendered.info.installed_files_template,
            use_links: false,
            values: &rendered.info.values,
            rules: &rules,
        },
    )?;
    let mut package = Package {
        name: package::name(format, name.as_str()),
        fields,
        platform: image_config.platform().unwrap_or_else(Platform::host),
        date,
        entries: Vec::new(),
        service: rendered.unit.is_some().then(|| name.unit()),
        tmpfiles: rendered.tmpfiles.is_some().then(|| format!("{name}.conf")),
        container: Some(destdir.clone()),
    };
    let mut built = Built {
        file: format!("atomic-container-{name}.{}", format.extension()),
        format,
        name: package.name.clone(),
        version: package.version(format),
        notes: rendered.notes.clone(),
        secret: false,
        bundle: None,
    };
    let own = packages::own(prepared.files(), format)?;
    if dry && own.is_none() {
        return Ok(built);
    }
    let bundle = Bundle::new(config)?;
    let target = bundle.path.join(&built.file);
    if let Some(own) = own {
        let contents = packages::write_own(&own, &target)?;
        (built.name, built.version) = (contents.name, contents.version);
        built.bundle = Some(bundle);
        return Ok(built);
    }
    if date == 0 {
        built.notes.push(
            "the image does not say when it was built, so later packages are not newer by their version: set SOURCE_DATE_EPOCH".into(),
        );
    }
    if !request.values.is_empty() {
        built.secret = true;
        built.notes.push(
            "the package holds the --set values, and so is for its owner alone to read".into(),
        );
    }
    store.check_out(&commit, &bundle.path)?;
    let tree = ImageTree::open(store.repo(), &commit)?;
    let root = bundle.path.join("rootfs");
    package.entries = entries(
        &there,
        request,
        &rendered,
        date,
        (&tree, root.as_std_path()),
    )?;
    let files = prepared.files();
    add_host_files(&mut package.entries, &host_files, name.as_str(), files)?;
    if format == Format::Rpm && rendered.unit.is_some() {
        // By convention nothing but a preset enables a service.
        let path = format!("/usr/lib/systemd/system-preset/85-{}.preset", package.name);
        let text = format!("enable {}\n", name.unit());
        package.entries.push(Entry::text(path, &text, 0o644));
    }
    package.build(format, target.as_std_path())?;
    if let (Format::Rpm, Some(key)) = (format, &config.package_signer) {
        packages::sign(config, &target, key)?;
    }
    built.bundle = Some(bundle);
    Ok(built)
}

/// The container itself.
fn entries(
    there: &Config,
    request: &Install,
    rendered: &Rendered,
    date: u64,
    (tree, root): (&ImageTree, &Path),
) -> Result<Vec<Entry>> {
    let name = &request.name;
    let paths = crate::deployment::Paths::new(there, name);
    let destdir = there.checkouts.join(name.as_str());
    let rootfs = destdir.join("rootfs");
    let open = (0o755, 0, 0);
    let mut out = vec![
        Entry::dir("/usr/lib/containers".into(), open),
        Entry::dir(&there.checkouts, open),
        // Set-user-ID programs of every image are below.
        Entry::dir(&destdir, (0o700, 0, 0)),
    ];
    let top = tree.stat("/")?;
    let top = top.map_or(open, |top| (top.mode, top.uid, top.gid));
    out.push(Entry::dir(&rootfs, top));
    for walked in tree.walk("/")? {
        out.extend(Entry::of_image(&walked, root, &rootfs));
    }
    out.extend(
        mount_points(&rendered.config, tree)?
            .iter()
            .map(|path| Entry::dir(&rootfs.join(path), open)),
    );
    let mut info = rendered.info.clone();
    info.created = date;
    info.system_package = Some("yes".into());
    // Both hold --set values, which are secrets.
    out.push(Entry::text(
        destdir.join("config.json"),
        &rendered.config,
        0o600,
    ));
    out.push(Entry::text(destdir.join("info"), &info.to_text(), 0o600));
    if let Some(unit) = &rendered.unit {
        out.push(Entry::text(paths.unit(), unit, 0o644));
    }
    if let Some(text) = &rendered.tmpfiles {
        out.push(Entry::text(paths.tmpfiles(), text, 0o644));
    }
    Ok(out)
}

/// Directories that something is mounted on and the image does not have: a runtime would make them, and
/// nobody would remove them.
fn mount_points(config: &str, tree: &ImageTree) -> Result<BTreeSet<Utf8PathBuf>> {
    let config: Value =
        serde_json::from_str(config).kind(Kind::Invalid, || "config.json is not valid".into())?;
    let mut out = BTreeSet::new();
    for mount in config["mounts"].as_array().into_iter().flatten() {
        let path = Utf8Path::new(mount["destination"].as_str().unwrap_or_default());
        // What is bound may be a file.
        if mount["type"] == "bind" || tree.stat(path.as_str())?.is_some() {
            continue;
        }
        for above in path.ancestors() {
            let inside = above.strip_prefix("/").unwrap_or(above);
            if inside.as_str().is_empty() || tree.stat(above.as_str())?.is_some() {
                break;
            }
            out.insert(inside.to_owned());
        }
    }
    Ok(out)
}

fn add_host_files(
    entries: &mut Vec<Entry>,
    wanted: &Wanted,
    name: &str,
    files: &dyn crate::safefs::Files,
) -> Result<()> {
    let known: BTreeSet<Utf8PathBuf> = entries.iter().map(|entry| entry.path.clone()).collect();
    for (path, owner) in wanted.own_dirs(name) {
        if !known.contains(path) {
            entries.push(Entry::dir(path, owner));
        }
    }
    for file in &wanted.files {
        if known.contains(&file.target) {
            fail!(
                Kind::Invalid,
                "the image wants to write {}, which is the container's own",
                file.target
            );
        }
        entries.push(Entry::of_host_file(file, files)?);
    }
    Ok(())
}

/// An id that tells apart containers of one image, and is no other tomorrow.
fn stable_uuid(image: &str, name: &str) -> String {
    let digest = Digest::of(format!("{image} {name}").as_bytes()).hex();
    let bytes = u128::from_str_radix(&digest[..32], 16).unwrap_or_default();
    uuid::Builder::from_random_bytes(bytes.to_be_bytes())
        .into_uuid()
        .to_string()
}

/// A date as part of a version: `YYYYMMDDhhmmss`, in UTC.
fn stamp(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map(|time| time.strftime("%Y%m%d%H%M%S").to_string())
        .unwrap_or_default()
}
