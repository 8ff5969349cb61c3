//! The `config.json` of a container whose image brings none, from its OCI image config.
//!
//! Root is read-only; where services expect to write, an overlay whose lower layer is the
//! deployment takes the writes, so that they never reach the store. Sources: OCI runtime
//! specification 1.0.2 `config.md`, OCI image specification 1.1 `conversion.md`.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{capabilities, default_seccomp, find_user};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::fail;
use crate::image::{ImageConfig, refname};
use crate::safefs::Files;
use crate::template::{self, Template};

/// Where services of plain images expect to write.
const WRITABLE: [&str; 7] = [
    "/etc",
    "/var",
    "/usr/local",
    "/opt",
    "/srv",
    "/home",
    "/root",
];
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

/// A host path inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Absolute path on the host.
    pub source: Utf8PathBuf,
    /// Absolute path in the container.
    pub destination: String,
    /// Not writable.
    #[serde(default)]
    pub read_only: bool,
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
    /// Capabilities beyond the default set.
    pub cap_add: Vec<String>,
    /// Capabilities taken from the default set.
    pub cap_drop: Vec<String>,
    /// Seconds.
    pub stop_timeout: Option<u32>,
    /// Writes to the usual places.
    pub writable: Writable,
}

/// A directory (or fifo) systemd-tmpfiles makes for the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Directory {
    /// `d` is kept, `D` is emptied at every start; `p` is a fifo and `f` a file.
    pub kind: char,
    /// Where.
    pub path: Utf8PathBuf,
    /// Octal, four digits.
    pub mode: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
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
    let mut mounts = base_mounts();
    let output = run_base(input).join("output");
    let mut directories = vec![
        // Closed to others: upper layers below hold what the container's root writes.
        directory('D', run_base(input), 0o700, 0, 0),
        directory('p', output.clone(), 0o600, 0, 0),
    ];
    let mut persistent = Vec::new();
    overlays(input, &mut mounts, &mut directories, &mut persistent)?;
    mounts.push(tmpfs("/tmp", "mode=1777"));
    mounts.push(tmpfs("/run", "mode=755"));
    declared_volumes(input, &mut mounts, &mut directories, &mut persistent)?;
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
    let mut seen = BTreeSet::new();
    directories.retain(|directory| seen.insert(directory.path.clone()));
    let values = json!({
        "terminal": false,
        "user": user,
        "args": command(input)?,
        "env": environment(&run.env, &options.env, &user.home),
        "cwd": if run.working_dir.is_empty() { "/" } else { &run.working_dir },
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
        output,
        stop_signal: stop_signal(&run.stop_signal)?,
        notify: input.image.label(NOTIFY_LABEL) == Some("notify"),
    })
}

/// `linux.cgroupsPath` of a container under one of our units.
pub fn cgroups_path(name: &str) -> String {
    format!("{name}.service/payload")
}

/// JSON as it is written to `config.json`.
pub fn to_text(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
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

fn base_mounts() -> Vec<Value> {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        ),
    ]
}

fn tmpfs(destination: &str, mode: &str) -> Value {
    json!({"destination": destination, "type": "tmpfs", "source": "tmpfs",
           "options": ["nosuid", "nodev", mode]})
}

fn bind(source: &str, destination: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": options})
}

/// Where a container's own directories are below `RUN_DIRECTORY` or `STATE_DIRECTORY`.
fn run_base(input: &Input<'_>) -> Utf8PathBuf {
    input.host.run_directory.join("atomic-rs").join(input.name)
}

fn state_base(input: &Input<'_>) -> Utf8PathBuf {
    input.host.state_directory.join(input.name)
}

/// The file by which a directory in `STATE_DIRECTORY` is known as ours.
const MARKER: &str = ".atomic-rs";

fn marker(input: &Input<'_>) -> Directory {
    directory('f', state_base(input).join(MARKER), 0o600, 0, 0)
}

/// Refuse to keep data in a directory that belongs to somebody else, as `/var/lib/docker` would
/// for a container called docker.
pub fn check_state_directory(host: &Config, name: &str) -> Result<()> {
    let path = host.state_directory.join(name);
    let taken = path
        .read_dir_utf8()
        .is_ok_and(|mut entries| entries.next().is_some());
    if taken && !path.join(MARKER).exists() {
        fail!(
            Kind::Exists,
            "the container's data would be kept in {path}, which belongs to something else: choose another --name"
        );
    }
    Ok(())
}

fn directory(kind: char, path: Utf8PathBuf, mode: u32, uid: u32, gid: u32) -> Directory {
    Directory {
        kind,
        path,
        mode: format!("{mode:04o}"),
        uid,
        gid,
    }
}

fn overlays(
    input: &Input<'_>,
    mounts: &mut Vec<Value>,
    directories: &mut Vec<Directory>,
    persistent: &mut Vec<Utf8PathBuf>,
) -> Result<()> {
    let (base, kind) = match input.options.writable {
        Writable::No => return Ok(()),
        Writable::Ephemeral => (run_base(input).join("writable"), 'D'),
        Writable::Persist => (state_base(input).join("writable"), 'd'),
    };
    let mut any = false;
    for path in WRITABLE {
        if !input.files.is_plain_dir(path)? {
            continue;
        }
        let Some(stat) = input.files.stat(path)? else {
            continue;
        };
        if !any {
            any = true;
            directories.push(directory(kind, base.clone(), 0o700, 0, 0));
        }
        let own = base.join(path.trim_start_matches('/').replace('/', "-"));
        let (upper, work) = (own.join("upper"), own.join("work"));
        directories.push(directory(kind, own.clone(), 0o700, 0, 0));
        // The upper layer's root is what the container sees, so it carries the image's owner and mode.
        directories.push(directory(
            kind,
            upper.clone(),
            stat.mode,
            stat.uid,
            stat.gid,
        ));
        directories.push(directory(kind, work.clone(), 0o700, 0, 0));
        mounts.push(json!({
            "destination": path,
            "type": "overlay",
            "source": "overlay",
            "options": [
                format!("lowerdir={}{path}", input.rootfs),
                format!("upperdir={upper}"),
                format!("workdir={work}"),
            ],
        }));
    }
    if any && input.options.writable == Writable::Persist {
        directories.push(marker(input));
        persistent.push(base);
    }
    Ok(())
}

fn declared_volumes(
    input: &Input<'_>,
    mounts: &mut Vec<Value>,
    directories: &mut Vec<Directory>,
    persistent: &mut Vec<Utf8PathBuf>,
) -> Result<()> {
    let base = state_base(input).join("volumes");
    let mut any = false;
    for path in input.image.config.volumes.keys() {
        let path = path.trim_end_matches('/');
        if input
            .options
            .volumes
            .iter()
            .any(|v| v.destination.trim_end_matches('/') == path)
        {
            continue;
        }
        check_container_path(path).map_err(|error| error.within("the image declares a volume"))?;
        let (mode, uid, gid) = match input.files.stat(path)? {
            Some(stat) if stat.is_dir => (stat.mode, stat.uid, stat.gid),
            _ => (0o755, 0, 0),
        };
        if !any {
            any = true;
            directories.push(directory('d', base.clone(), 0o700, 0, 0));
            directories.push(marker(input));
        }
        // One component for each volume: in a volume within a volume, what the container makes of
        // the outer one would lead the host astray when the inner one is mounted.
        let source = base.join(refname::encode(path.trim_start_matches('/')));
        directories.push(directory('d', source.clone(), mode, uid, gid));
        mounts.push(bind(source.as_str(), path, &["rbind", "rprivate", "rw"]));
    }
    if any {
        persistent.push(base);
    }
    Ok(())
}

/// A mount point in the container: absolute, without `..`, and free of what tmpfiles.d would
/// misread.
pub fn check_container_path(path: &str) -> Result<()> {
    let plain = path.starts_with('/')
        && path.len() > 1
        && path.len() < 1024
        && !path.split('/').any(|part| part == ".." || part == ".")
        && !path.contains(|c: char| c.is_control() || c.is_whitespace() || "%\\\"'$:,".contains(c));
    if !plain {
        fail!(Kind::Invalid, "\"{path}\" is not a plain absolute path");
    }
    Ok(())
}

/// Read `SRC:DST[:ro|:rw]`.
pub fn parse_volume(text: &str) -> Result<Volume> {
    let form = || {
        Error::new(
            Kind::Usage,
            format!("\"{text}\" is not a volume: expected /SOURCE:/DESTINATION[:ro]"),
        )
    };
    let mut parts = text.split(':');
    let (Some(source), Some(destination)) = (parts.next(), parts.next()) else {
        return Err(form());
    };
    let read_only = match (parts.next(), parts.next()) {
        (None | Some("rw"), None) => false,
        (Some("ro"), None) => true,
        _ => return Err(form()),
    };
    if !source.starts_with('/') {
        return Err(form());
    }
    check_container_path(destination).map_err(|_| form())?;
    if !Utf8Path::new(source).exists() {
        fail!(Kind::NotFound, "the volume source {source} does not exist");
    }
    Ok(Volume {
        source: source.into(),
        destination: destination.to_owned(),
        read_only,
    })
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

    #[test]
    fn volumes_are_read_and_checked() {
        let volume = parse_volume("/tmp:/data:ro").unwrap();
        assert!(volume.read_only);
        assert_eq!(volume.destination, "/data");
        for bad in [
            "/tmp",
            "tmp:/x",
            "/tmp:x",
            "/tmp:/x:zz",
            "/tmp:/a/../b",
            "/no-such-path:/x",
            "/tmp:/",
        ] {
            assert!(parse_volume(bad).is_err(), "{bad}");
        }
    }
}
