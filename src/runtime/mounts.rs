//! What a container sees beyond its read-only root: the usual kernel file systems, overlays where
//! services write, declared volumes, binds; and the directories of the host these need.

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::spec::{Input, Writable};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::fail;
use crate::image::refname;

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

/// A directory (or fifo) systemd-tmpfiles makes for the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Directory {
    /// `d` is kept, `D` is emptied at every start; `p` is a fifo and `f` a file.
    pub kind: char,
    /// Where.
    pub path: Utf8PathBuf,
    /// Octal, four digits; `-` leaves an existing one as it is.
    pub mode: String,
    /// Owner; `-` likewise.
    pub uid: String,
    /// Group; `-` likewise.
    pub gid: String,
}

/// The owner layer of an ordinary user's container: what is laid over the checkout so that not all
/// of it is root's. Only directories can be laid over; files at the very root stay root's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerDirs {
    /// Where it is.
    pub path: Utf8PathBuf,
    /// Its directories, relative.
    pub dirs: Vec<String>,
}

impl OwnerDirs {
    /// The lower layers of an overlay over a directory of the container.
    fn lower(&self, rootfs: &Utf8Path, path: &str) -> String {
        let path = path.trim_matches('/');
        format!("lowerdir={}/{path}:{rootfs}/{path}", self.path)
    }

    fn has(&self, path: &str) -> bool {
        self.dirs.iter().any(|dir| dir == path.trim_matches('/'))
    }
}

/// Lay the owner layer over the directories of a configuration that no writable overlay has it for.
pub fn show_owners(config: &mut Value, owners: &OwnerDirs, rootfs: &Utf8Path) {
    let Some(mounts) = config["mounts"].as_array_mut() else {
        return;
    };
    let tops = owners.dirs.iter().filter(|dir| !dir.contains('/'));
    let overlays: Vec<Value> = tops
        .filter(|dir| !["proc", "sys", "dev"].contains(&dir.as_str()))
        .map(|dir| format!("/{dir}"))
        .filter(|path| {
            !mounts
                .iter()
                .any(|mount| mount["type"] == "overlay" && mount["destination"] == path.as_str())
        })
        .map(|path| {
            json!({"destination": path, "type": "overlay", "source": "overlay",
                   "options": [owners.lower(rootfs, &path), "userxattr", "nodev", "ro"]})
        })
        .collect();
    // Before everything else: what is mounted below stays on top.
    mounts.splice(0..0, overlays);
}

/// What every container mounts of the kernel's file systems.
pub fn base_mounts() -> Vec<Value> {
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

pub(super) fn tmpfs(destination: &str, mode: &str) -> Value {
    json!({"destination": destination, "type": "tmpfs", "source": "tmpfs",
           "options": ["nosuid", "nodev", mode]})
}

/// A bind mount.
pub fn bind(source: &str, destination: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": options})
}

/// Where a container's own directories are below `RUN_DIRECTORY` or `STATE_DIRECTORY`.
pub(super) fn run_base(input: &Input<'_>) -> Utf8PathBuf {
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

pub(super) fn directory(kind: char, path: Utf8PathBuf, mode: u32, uid: u32, gid: u32) -> Directory {
    Directory {
        kind,
        path,
        mode: format!("{mode:04o}"),
        uid: uid.to_string(),
        gid: gid.to_string(),
    }
}

pub(super) fn overlays(
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
                match input.owners {
                    Some(owners) if owners.has(path) => owners.lower(input.rootfs, path),
                    _ => format!("lowerdir={}{path}", input.rootfs),
                },
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

pub(super) fn declared_volumes(
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
    if destination == "/" {
        fail!(
            Kind::Usage,
            "\"{text}\": a volume cannot be the container's root"
        );
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
