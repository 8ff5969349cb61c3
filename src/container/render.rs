//! From an image and what was said about it to the texts of a deployment: `config.json`, unit,
//! tmpfiles, `info`. Nothing here changes the host.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};

use super::exports::{ExportedText, Exports};
use super::hostfiles::HostChange;
use super::unit::{UnitInput, for_users_manager, our_unit};
use crate::config::Config;
use crate::deployment::{ContainerName, Info, Paths};
use crate::error::{Error, Kind, Result};
use crate::fail;
use crate::image::ImageConfig;
use crate::runtime::mounts::{self, Directory, OwnerDirs};
use crate::runtime::spec::{self, Input, RunOptions};
use crate::runtime::userns::Mapping;
use crate::runtime::{Health, Runtime, capabilities};
use crate::safefs::Files;
use crate::store::now;
use crate::systemd::tmpfiles;
use crate::template::{self, Place, Template, Variables, substitute};

/// What a deployment is made from.
pub struct Source<'a> {
    /// The image's name.
    pub image: &'a str,
    /// Its id.
    pub id: &'a str,
    /// The commit of its ref.
    pub commit: &'a str,
    /// Its config.
    pub config: &'a ImageConfig,
    /// Its files.
    pub files: &'a dyn Files,
    /// The full reference to pull it again from.
    pub reference: Option<String>,
    /// The platform to ask for then.
    pub platform: Option<String>,
    /// A root file system outside the store.
    pub remote: Option<Utf8PathBuf>,
    /// Who owns what, for an ordinary user's container.
    pub owners: Option<&'a OwnerDirs>,
}

/// What the person said, now and before.
pub struct Wishes<'a> {
    /// `--set`
    pub values: &'a BTreeMap<String, String>,
    /// How to run it.
    pub options: &'a RunOptions,
    /// Generated once, kept across updates.
    pub uuid: Option<&'a str>,
    /// Values of a host taken over, whose own `--set` values cannot be told from defaults.
    pub inherited: Option<&'a BTreeMap<String, String>>,
    /// A command that runs once, rather than a service.
    pub once: bool,
    /// For another host, of which nothing is known.
    pub elsewhere: bool,
}

/// The texts of a deployment.
#[derive(Debug, Clone)]
pub struct Rendered {
    /// `config.json`
    pub config: String,
    /// The unit, unless the image says it has no service.
    pub unit: Option<String>,
    /// The tmpfiles.d file, if anything is to be made.
    pub tmpfiles: Option<String>,
    /// The image brought its own `config.json`.
    pub has_own_config: bool,
    /// `info`
    pub info: Info,
    /// What becomes of the image's files on the host; filled in by whoever knows what is there.
    pub host_files: HostChange,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Render everything for a deployment in `destdir`.
pub fn render(
    host: &Config,
    runtime: &Runtime,
    name: &ContainerName,
    destdir: &Utf8Path,
    source: &Source<'_>,
    wishes: &Wishes<'_>,
) -> Result<Rendered> {
    let paths = Paths::new(host, name);
    let exports = Exports::read(source.files, source.image)?;
    let variables = variables(host, runtime, name, destdir, source, &exports, wishes);
    let rootfs = source
        .remote
        .clone()
        .unwrap_or_else(|| destdir.join("rootfs"));
    let root_path = source
        .remote
        .as_ref()
        .map_or("rootfs", |path| path.as_str())
        .to_owned();

    let mut own_config = match &exports.config {
        Some(text) => Some(render_config(text, &variables, wishes.inherited)?),
        None => None,
    };
    if own_config == Some(json!({})) {
        own_config = None;
    }
    let generated = match own_config {
        Some(_) => None,
        None => Some(spec::generate(&Input {
            host,
            name: name.as_str(),
            image: source.config,
            files: source.files,
            rootfs: &rootfs,
            root_path: &root_path,
            owners: source.owners,
            fallback_command: exports.present.then_some("run.sh"),
            options: wishes.options,
        })?),
    };
    // A user's systemd takes a process for the unit's main one only if it is in the unit's cgroup.
    let in_units_cgroup = (exports.service.is_none() || !host.is_system) && !wishes.once;
    let mapping = (!host.is_system).then(Mapping::of_user);
    let mut notes = Vec::new();
    let mut fit = |config: &mut Value| -> Result<()> {
        if let Some(mapping) = &mapping {
            notes.extend(mapping.fit(config)?);
        }
        if let Some(owners) = source.owners {
            mounts::show_owners(config, owners, &rootfs);
        }
        Ok(())
    };
    let (config, directories) = match (own_config, &generated) {
        (Some(mut config), _) => {
            if !wishes.once {
                adjust_config(&mut config, name, source.remote.as_deref(), in_units_cgroup)?;
            }
            fit(&mut config)?;
            let made = std::fs::read_to_string(paths.tmpfiles()).unwrap_or_default();
            let missing = if wishes.elsewhere {
                // Directories of the container's own; what else it binds is the host's.
                let own = [&host.run_directory, &host.state_directory];
                bind_sources(&config, |path| own.iter().any(|dir| path.starts_with(dir)))
            } else {
                // Also what is only there because it was made for the deployment before.
                let made = tmpfiles::directories(&made);
                bind_sources(&config, |path| {
                    !path.exists() || made.iter().any(|dir| dir == path)
                })
            };
            (spec::to_text(&config), missing)
        }
        (None, Some(generated)) => {
            let mut config = parse_config(&generated.config)?;
            fit(&mut config)?;
            (spec::to_text(&config), generated.directories.clone())
        }
        (None, None) => fail!(Kind::Failed, "no configuration was made"),
    };

    let tmpfiles = tmpfiles_text(
        host,
        name,
        &exports,
        &variables,
        &directories,
        generated.is_some(),
    )?;
    let has_service = !exports.manifest.no_container_service && !wishes.once;
    let unit = if !has_service {
        None
    } else if let Some(text) = &exports.service {
        let unit = expand(text, Place::Unit, &variables)?;
        Some(if host.is_system {
            unit
        } else {
            for_users_manager(&unit)
        })
    } else {
        let unit = UnitInput {
            runtime,
            name,
            destdir,
            pidfile: variables.get("PIDFILE").unwrap_or_default(),
            tmpfiles: tmpfiles.is_some().then(|| paths.tmpfiles()),
            mapping: mapping.as_ref(),
        };
        Some(our_unit(host, source, wishes, generated.as_ref(), &unit)?)
    };
    if exports.has_host_files && !host.is_system {
        notes.push(format!(
            "the image {} has files for the host (exports/hostfs), which only root can install",
            source.image
        ));
    }
    Ok(Rendered {
        config,
        unit,
        tmpfiles,
        has_own_config: generated.is_none(),
        info: Info {
            image: source.image.to_owned(),
            revision: source.id.to_owned(),
            ostree_commit: source.commit.to_owned(),
            created: now(),
            values: variables.values().clone(),
            // Where they cannot be told from the image's defaults they never can be.
            user_values: wishes.inherited.is_none().then(|| wishes.values.clone()),
            has_container_service: has_service,
            installed_files_template: exports.manifest.installed_files_template.clone(),
            rename_installed_files: exports.manifest.rename_files.clone(),
            use_links: exports.manifest.use_links.unwrap_or(true),
            system_package: Some("no".into()),
            remote: source.remote.as_ref().map(ToString::to_string),
            runtime: runtime.path().to_owned(),
            source: source.reference.clone(),
            platform: source.platform.clone(),
            options: Some(wishes.options.clone()),
            owner_layer: source.owners.map(|owners| owners.path.clone()),
            owned: generated
                .iter()
                .flat_map(|generated| generated.owned.clone())
                .collect(),
            health: Health::of(source.config, wishes.options),
            persistent: generated
                .iter()
                .flat_map(|generated| &generated.persistent)
                .map(ToString::to_string)
                .collect(),
            ..Info::default()
        },
        host_files: HostChange::default(),
        notes,
    })
}

fn variables(
    host: &Config,
    runtime: &Runtime,
    name: &ContainerName,
    destdir: &Utf8Path,
    source: &Source<'_>,
    exports: &Exports,
    wishes: &Wishes<'_>,
) -> Variables {
    let text = |value: &str| value.to_owned();
    let program = std::env::current_exe().map_or_else(
        |_| text("atomic-rs"),
        |path| path.to_string_lossy().into_owned(),
    );
    let pidfile = host.run_directory.join(format!("container-{name}.pid"));
    let mut host_values: BTreeMap<String, String> = [
        ("RUN_DIRECTORY", host.run_directory.to_string()),
        ("STATE_DIRECTORY", host.state_directory.to_string()),
        ("CONF_DIRECTORY", host.conf_directory.to_string()),
        ("PIDFILE", pidfile.to_string()),
        (
            "ALL_PROCESS_CAPABILITIES",
            capabilities::all_as_json_items(),
        ),
        ("RUNTIME", text(runtime.path())),
        ("ATOMIC", program),
    ]
    .into_iter()
    .map(|(key, value)| (text(key), value))
    .collect();
    if let Some(uuid) = wishes.uuid {
        host_values.insert(text("UUID"), text(uuid));
    }
    let forced: BTreeMap<String, String> = [
        ("DESTDIR", destdir.to_string()),
        ("NAME", name.to_string()),
        ("HOST_UID", rustix::process::getuid().as_raw().to_string()),
        ("HOST_GID", rustix::process::getgid().as_raw().to_string()),
        ("IMAGE_ID", text(source.id)),
        ("IMAGE_NAME", text(source.image)),
    ]
    .into_iter()
    .map(|(key, value)| (text(key), value))
    .collect();
    // What an older program stored cannot be told apart from the image's defaults; it counts more
    // than the new image's, as it always did, except where the host knows better.
    let mut defaults = exports.manifest.default_values.clone();
    if let Some(inherited) = wishes.inherited {
        defaults.extend(inherited.clone());
    }
    let mut variables = Variables::new(&defaults, &host_values, wishes.values, &forced);
    let pidfile = variables.get("PIDFILE").unwrap_or_default().to_owned();
    let detached = exports.service.as_ref().is_some_and(|service| {
        let uses = |name: &str| template::dollar::variables(&service.text).contains(name);
        uses("EXEC_STOPPOST") && uses("PIDFILE")
    });
    if exports.service.is_some() {
        for (key, value) in runtime.directives(name.as_str(), &pidfile, detached, host.is_system) {
            variables.force(key, value);
        }
    }
    variables
}

fn expand(text: &ExportedText, place: Place, variables: &Variables) -> Result<String> {
    if !text.is_template {
        return Ok(text.text.clone());
    }
    substitute(text.file, &text.text, place, |name| variables.look_up(name))
}

/// An image's own `config.json`. Values of a host taken over may be escaped already: they are
/// pasted as they are if that gives JSON.
fn render_config(
    text: &ExportedText,
    variables: &Variables,
    inherited: Option<&BTreeMap<String, String>>,
) -> Result<Value> {
    if let (Some(stored), true) = (inherited, text.is_template) {
        let pasted = substitute(text.file, &text.text, Place::Json, |name| {
            variables.look_up_stored(name, stored)
        })?;
        if let Ok(config) = serde_json::from_str(&pasted) {
            return Ok(config);
        }
    }
    parse_config(&expand(text, Place::Json, variables)?)
}

fn parse_config(text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| {
        Error::new(
            Kind::Invalid,
            format!("Invalid configuration file.  config.json is not valid JSON: {error}"),
        )
    })
}

/// Check what an image says about its root, and fit it to where it will run.
fn adjust_config(
    config: &mut Value,
    name: &ContainerName,
    remote: Option<&Utf8Path>,
    in_units_cgroup: bool,
) -> Result<()> {
    let Some(object) = config.as_object_mut() else {
        fail!(
            Kind::Invalid,
            "Invalid configuration file.  It is not a JSON object"
        );
    };
    let root = object.entry("root").or_insert_with(|| json!({}));
    if root["readonly"] != true {
        fail!(
            Kind::Invalid,
            "Invalid configuration file.  Only readonly images are supported"
        );
    }
    match remote {
        Some(path) => root["path"] = path.as_str().into(),
        None if root["path"] != "rootfs" => fail!(
            Kind::Invalid,
            "Invalid configuration file.  Path must be 'rootfs'"
        ),
        None => {}
    }
    if in_units_cgroup {
        let linux = object.entry("linux").or_insert_with(|| json!({}));
        if let Some(linux) = linux.as_object_mut() {
            linux
                .entry("cgroupsPath")
                .or_insert_with(|| spec::cgroups_path(name.as_str()).into());
        }
    }
    Ok(())
}

/// Directories for those bind mounts of an image's own config whose source is `wanted`.
fn bind_sources(config: &Value, wanted: impl Fn(&Utf8Path) -> bool) -> Vec<Directory> {
    let mut out: Vec<Directory> = Vec::new();
    for mount in config["mounts"].as_array().into_iter().flatten() {
        let source = mount["source"].as_str().unwrap_or_default();
        let is_bind = mount["type"] == "bind"
            || mount["options"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|option| option == "bind" || option == "rbind");
        if is_bind
            && mounts::check_container_path(source).is_ok()
            && wanted(Utf8Path::new(source))
            && !out.iter().any(|directory| directory.path == source)
        {
            out.push(Directory {
                kind: 'd',
                path: source.into(),
                mode: "0700".into(),
                uid: rustix::process::getuid().as_raw().to_string(),
                gid: rustix::process::getgid().as_raw().to_string(),
            });
        }
    }
    out
}

fn tmpfiles_text(
    host: &Config,
    name: &ContainerName,
    exports: &Exports,
    variables: &Variables,
    directories: &[Directory],
    generated: bool,
) -> Result<Option<String>> {
    let own = match &exports.tmpfiles {
        Some(text) => Some(expand(text, Place::Tmpfiles, variables)?),
        None => None,
    };
    // An image that brings its own tmpfiles makes what its own config binds.
    let wanted = own.is_none() || generated;
    let ours = if directories.is_empty() || !wanted {
        None
    } else {
        let values = json!({"name": name, "directories": directories});
        Some(template::render(
            Template::Tmpfiles,
            &host.templates,
            &values,
        )?)
    };
    Ok(match (own, ours) {
        (Some(own), Some(ours)) => Some(format!("{}\n{ours}", own.trim_end())),
        (own, ours) => own.or(ours),
    })
}
