//! The `config.json` of a container whose image brings none, from its OCI image config.
//!
//! Root is read-only; where services expect to write, an overlay whose lower layer is the
//! deployment takes the writes, so that they never reach the store. Sources: OCI runtime
//! specification 1.0.2 `config.md`, OCI image specification 1.1 `conversion.md`.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::mounts::{self, Directory, OwnerDirs, Volume, bind, directory, run_base, tmpfs};
use super::{capabilities, default_seccomp, find_user};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::fail;
use crate::image::ImageConfig;
use crate::safefs::Files;
use crate::template::{self, Template};

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// A label by which an image asks for `Type=notify`.
const NOTIFY_LABEL: &str = "atomic.service.type";

/// What becomes of writes to the usual places of a plain image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Writable {
    /// Kept until the container stops.
    #[default]
    Ephemeral,
    /// Kept in `STATE_DIRECTORY/NAME`, across updates and uninstall.
    Persist,
    /// Refused.
    No,
}

/// What the person who installs the container says about running it; kept across updates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunOptions {
    /// `KEY=value`, later ones win.
    pub env: Vec<String>,
    /// Binds.
    pub volumes: Vec<Volume>,
    /// In place of the image's entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// In place of the image's default arguments.
    pub command: Vec<String>,
    /// `user[:group]` in place of the image's.
    pub user: Option<String>,
    /// Where it starts, in place of the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Capabilities beyond the default set.
    pub cap_add: Vec<String>,
    /// Capabilities taken from the default set.
    pub cap_drop: Vec<String>,
    /// Seconds.
    pub stop_timeout: Option<u32>,
    /// Writes to the usual places.
    pub writable: Writable,
    /// A shell command that tells from inside whether the container works, in place of the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_cmd: Option<String>,
    /// Paths of the host that are closed to images and that a person opened for this one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_host_paths: Vec<Utf8PathBuf>,
    /// A person let the image's own package run its scripts.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_package_scripts: bool,
    /// Seconds a new version must stay healthy to count; 0: no watch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watch: Option<u32>,
}

/// A directory that another user of an ordinary user's container owns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owned {
    /// `uid:gid` in the container.
    pub owner: String,
    /// Octal.
    pub mode: String,
    /// Where.
    pub path: Utf8PathBuf,
}

/// A generated container.
#[derive(Debug, Clone)]
pub struct Generated {
    /// The text of `config.json`.
    pub config: String,
    /// What tmpfiles makes.
    pub directories: Vec<Directory>,
    /// Directories whose data survive uninstall.
    pub persistent: Vec<Utf8PathBuf>,
    /// Directories that another user of the container owns.
    pub owned: Vec<Owned>,
    /// The fifo that takes the container's output.
    pub output: Utf8PathBuf,
    /// The signal that asks the container to stop.
    pub stop_signal: String,
    /// The image asks for `Type=notify`.
    pub notify: bool,
}

/// Everything a generated configuration depends on.
pub struct Input<'a> {
    /// Directories of the host.
    pub host: &'a Config,
    /// The container's name.
    pub name: &'a str,
    /// The image's own configuration.
    pub image: &'a ImageConfig,
    /// The image's files.
    pub files: &'a dyn Files,
    /// Where the root file system will be, absolute.
    pub rootfs: &'a Utf8Path,
    /// `root.path` as written: `rootfs`, or absolute for a remote one.
    pub root_path: &'a str,
    /// Who owns what, for an ordinary user's container.
    pub owners: Option<&'a OwnerDirs>,
    /// Run this where image and options name no command.
    pub fallback_command: Option<&'a str>,
    /// What the person said.
    pub options: &'a RunOptions,
}

/// Generate `config.json` and all that goes with it.
pub fn generate(input: &Input<'_>) -> Result<Generated> {
    let run = &input.image.config;
    let options = input.options;
    let user = find_user(input.files, options.user.as_deref().unwrap_or(&run.user))?;
    let capabilities = capabilities::with_changes(&options.cap_add, &options.cap_drop)?;
    let mut mounts = mounts::base_mounts();
    let output = run_base(input).join("output");
    let mut directories = vec![
        // Closed to others: upper layers below hold what the container's root writes.
        directory('D', run_base(input), 0o700, 0, 0),
        directory('p', output.clone(), 0o600, 0, 0),
    ];
    let mut persistent = Vec::new();
    mounts::overlays(input, &mut mounts, &mut directories, &mut persistent)?;
    mounts.push(tmpfs("/tmp", "mode=1777"));
    mounts.push(tmpfs("/run", "mode=755"));
    mounts::declared_volumes(input, &mut mounts, &mut directories, &mut persistent)?;
    for volume in &options.volumes {
        let access = if volume.read_only { "ro" } else { "rw" };
        mounts.push(bind(
            volume.source.as_str(),
            &volume.destination,
            &["rbind", "rprivate", access],
        ));
    }
    for file in ["/etc/resolv.conf", "/etc/hosts"] {
        let hidden = options.volumes.iter().any(|v| v.destination == file);
        if !hidden && std::path::Path::new(file).exists() {
            mounts.push(bind(file, file, &["bind", "rprivate", "ro"]));
        }
    }
    let owned = if input.host.is_system {
        Vec::new()
    } else {
        hand_over(&mut directories)
    };
    let mut seen = BTreeSet::new();
    directories.retain(|directory| seen.insert(directory.path.clone()));
    let values = json!({
        "terminal": false,
        "user": user,
        "args": command(input)?,
        "env": environment(&run.env, &options.env, &user.home),
        "cwd": match options.workdir.as_deref().unwrap_or(&run.working_dir) {
            "" => "/",
            workdir => workdir,
        },
        "capabilities": capabilities,
        "rootfs": input.root_path,
        "mounts": mounts,
        // Relative: the runtime puts it below the unit's own cgroup, wherever its slice is.
        "cgroups_path": cgroups_path(input.name),
        "seccomp": default_seccomp(&capabilities),
    });
    let rendered = template::render(Template::Config, &input.host.templates, &values)?;
    // Parsed again: a template of the administrator's may have a slip, and files read better laid out.
    let parsed: Value = serde_json::from_str(&rendered).map_err(|error| {
        Error::new(
            Kind::Invalid,
            format!("the template config.json.tera gives invalid JSON: {error}"),
        )
    })?;
    Ok(Generated {
        config: to_text(&parsed),
        directories,
        persistent,
        owned,
        output,
        stop_signal: stop_signal(&run.stop_signal)?,
        notify: input.image.label(NOTIFY_LABEL) == Some("notify"),
    })
}

/// An ordinary user makes directories as their own; those of other users of the container are given
/// away from inside its user namespace.
fn hand_over(directories: &mut [Directory]) -> Vec<Owned> {
    let mut owned = Vec::new();
    for directory in directories {
        if directory.uid == "0" && directory.gid == "0" {
            directory.uid = rustix::process::geteuid().as_raw().to_string();
            directory.gid = rustix::process::getegid().as_raw().to_string();
            continue;
        }
        let unsaid = || "-".to_owned();
        owned.push(Owned {
            owner: format!("{}:{}", directory.uid, directory.gid),
            mode: std::mem::replace(&mut directory.mode, unsaid()),
            path: directory.path.clone(),
        });
        directory.uid = unsaid();
        directory.gid = unsaid();
    }
    owned
}

/// `linux.cgroupsPath` of a container under one of our units.
pub fn cgroups_path(name: &str) -> String {
    format!("{name}.service/payload")
}

/// JSON as it is written to `config.json`: its keys in order, so that the same settings are the same text.
pub fn to_text(value: &Value) -> String {
    let mut sorted = value.clone();
    sorted.sort_all_objects();
    let mut text = serde_json::to_string_pretty(&sorted).unwrap_or_default();
    text.push('\n');
    text
}

fn command(input: &Input<'_>) -> Result<Vec<String>> {
    let run = &input.image.config;
    let options = input.options;
    let entrypoint = options.entrypoint.as_ref().unwrap_or(&run.entrypoint);
    let mut args = entrypoint.clone();
    if !options.command.is_empty() {
        args.extend(options.command.iter().cloned());
    } else if options.entrypoint.is_none() {
        // The image's arguments belong to the image's entrypoint.
        args.extend(run.cmd.iter().cloned());
    }
    if args.is_empty() {
        args.extend(input.fallback_command.map(str::to_owned));
    }
    if args.is_empty() {
        fail!(
            Kind::Invalid,
            "the image has neither entrypoint nor command: name a command after the image"
        );
    }
    Ok(args)
}

fn environment(image: &[String], options: &[String], home: &str) -> Vec<String> {
    let mut order: Vec<String> = Vec::new();
    let mut values: BTreeMap<String, String> = BTreeMap::new();
    let home = format!("HOME={home}");
    let defaults = [DEFAULT_PATH.to_owned(), home];
    for entry in defaults.iter().chain(image).chain(options) {
        let key = entry.split('=').next().unwrap_or_default().to_owned();
        if values.insert(key.clone(), entry.clone()).is_none() {
            order.push(key);
        }
    }
    order
        .into_iter()
        .filter_map(|key| values.remove(&key))
        .collect()
}

fn stop_signal(text: &str) -> Result<String> {
    if text.is_empty() {
        return Ok("SIGTERM".into());
    }
    let plain = text
        .bytes()
        .all(|c| c.is_ascii_alphanumeric() || c == b'+' || c == b'-');
    if !plain || text.len() > 16 {
        fail!(
            Kind::Invalid,
            "the image has an odd stop signal: \"{text}\""
        );
    }
    let upper = text.to_uppercase();
    if upper.starts_with("SIG") || upper.bytes().all(|c| c.is_ascii_digit()) {
        Ok(upper)
    } else {
        Ok(format!("SIG{upper}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_environment_wins_and_order_is_kept() {
        let texts = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let env = environment(
            &texts(&["A=1", "PATH=/bin"]),
            &texts(&["A=2", "B=3"]),
            "/root",
        );
        assert_eq!(env, ["PATH=/bin", "HOME=/root", "A=2", "B=3"]);
    }

    #[test]
    fn stop_signals_are_normalised() {
        for (text, signal) in [
            ("", "SIGTERM"),
            ("quit", "SIGQUIT"),
            ("SIGINT", "SIGINT"),
            ("9", "9"),
        ] {
            assert_eq!(stop_signal(text).unwrap(), signal);
        }
        assert!(stop_signal("TERM\nExecStart=/x").is_err());
    }
}
