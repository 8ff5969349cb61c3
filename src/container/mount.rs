//! Looking at the files of an image or a container: read-only, or writable in a private layer.
//!
//! # Format
//! `C/.mounts/ID/info.json`: [`Mounted`] as JSON; beside it `lower/` (an image's checkout), `upper/`
//! and `work/` (of a writable one). A mount that a reboot ended is swept by the next mount or prune.

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::command::Child;
use crate::config::Config;
use crate::deployment::in_use;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::safefs::{self, Lock, Mode};
use crate::store::Store;
use crate::store::images::StoredImage;

/// Mount options that may be given; others could undo what protects the store.
const OPTIONS: [&str; 10] = [
    "ro", "rw", "nodev", "nosuid", "noexec", "dev", "suid", "exec", "noatime", "relatime",
];

/// What is mounted where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounted {
    /// Where.
    pub directory: Utf8PathBuf,
    /// The container or image.
    pub source: String,
    /// True for a copy of the files, which is what users without root get.
    pub copied: bool,
    /// The boot and the mount namespace in which it can be seen.
    #[serde(default)]
    pub seen_from: (String, String),
}

/// A request to mount.
#[derive(Debug, Clone)]
pub struct Mount {
    /// A container that is installed, or else the name of the image.
    pub source: String,
    /// An empty directory.
    pub directory: Utf8PathBuf,
    /// Mount options; `rw` gives a private upper layer.
    pub options: Vec<String>,
    /// Let the mount be seen in other mount namespaces.
    pub shared: bool,
}

/// Mount the files of a container, or of an image, which comes with the store that keeps it.
///
/// # Errors
/// [`Kind::Exists`] for a directory that is not empty, [`Kind::Usage`] for odd options.
pub fn mount(config: &Config, request: &Mount, image: Option<(Store, StoredImage)>) -> Result<()> {
    let directory = request.directory.canonicalize_utf8().map_err(|error| {
        Error::new(
            Kind::NotFound,
            format!("cannot mount on {}: {error}", request.directory),
        )
    })?;
    let mut entries = directory
        .read_dir_utf8()
        .context(|| format!("cannot list {directory}"))?;
    if entries.next().is_some() {
        fail!(Kind::Exists, "The destination path is not empty.");
    }
    check_plain(&directory)?;
    if let Some(bad) = request
        .options
        .iter()
        .find(|option| !OPTIONS.contains(&option.as_str()))
    {
        fail!(
            Kind::Usage,
            "the mount option \"{bad}\" is not one of {}",
            OPTIONS.join(", ")
        );
    }
    let _turn = sweep_in_turn(config)?;
    let id = uuid::Uuid::new_v4().simple().to_string();
    let record = mounts(config).join(&id[..12]);
    safefs::make_private_dir(mounts(config).as_std_path())?;
    safefs::make_private_dir(record.as_std_path())?;
    let done = bring(config, request, image, &directory, &record);
    if done.is_err() {
        if config.is_system {
            if is_mount_point(&directory) {
                umount(&directory)?;
            }
        } else {
            empty(&directory)?;
        }
        safefs::remove_tree(record.as_std_path())?;
    }
    done
}

fn bring(
    config: &Config,
    request: &Mount,
    image: Option<(Store, StoredImage)>,
    directory: &Utf8Path,
    record: &Utf8Path,
) -> Result<()> {
    let info = Mounted {
        directory: directory.to_owned(),
        source: request.source.clone(),
        copied: !config.is_system,
        seen_from: viewpoint(),
    };
    let text = serde_json::to_vec_pretty(&info).context(|| "cannot write JSON".into())?;
    safefs::write_new_file(record.join("info.json").as_std_path(), &text, 0o600)?;
    if !config.is_system {
        let (store, image) = if let Some(image) = image {
            image
        } else {
            let store = Store::open(config)?;
            let image = super::image_of(config, &store, &request.source.parse()?)?;
            (store, image)
        };
        let tree = store.image_tree(&image)?;
        return store.copy_out(&tree, directory);
    }
    let lower = if let Some((store, image)) = image {
        let tree = store.image_tree(&image)?;
        store.check_out_as(&tree, record, "lower")?;
        record.join("lower")
    } else if let Some(rootfs) = container_rootfs(config, &request.source)? {
        rootfs
    } else {
        fail!(
            Kind::NotFound,
            "The container '{}' doesn't exist",
            request.source
        );
    };
    let writable = request.options.iter().any(|option| option == "rw");
    let flags: Vec<&str> = request
        .options
        .iter()
        .map(String::as_str)
        .filter(|option| !matches!(*option, "rw" | "ro"))
        .collect();
    if writable {
        for name in ["upper", "work"] {
            let path = record.join(name);
            std::fs::create_dir(&path).context(|| format!("cannot create {path}"))?;
        }
        let mut options = format!("lowerdir={lower},upperdir={record}/upper,workdir={record}/work");
        for flag in flags {
            options.push(',');
            options.push_str(flag);
        }
        run(&[
            "-t",
            "overlay",
            "overlay",
            "-o",
            &options,
            directory.as_str(),
        ])?;
    } else {
        run(&["--bind", lower.as_str(), directory.as_str()])?;
        // A bind mount takes its options only when it is mounted again.
        let mut options = "remount,bind,ro".to_owned();
        for flag in flags {
            options.push(',');
            options.push_str(flag);
        }
        run(&["-o", &options, directory.as_str()])?;
    }
    let propagation = if request.shared {
        "--make-shared"
    } else {
        "--make-private"
    };
    run(&[propagation, directory.as_str()])
}

/// Undo [`mount`].
///
/// # Errors
/// [`Kind::NotFound`] for a directory on which nothing of ours is mounted.
pub fn unmount(config: &Config, directory: &Utf8Path) -> Result<()> {
    let directory = directory
        .canonicalize_utf8()
        .map_err(|error| Error::new(Kind::NotFound, format!("cannot use {directory}: {error}")))?;
    let _turn = Lock::take(
        lock_path(config)?.as_std_path(),
        Mode::Exclusive,
        "the mounts",
    )?;
    // The last one is on top.
    let found = records(config)
        .into_iter()
        .find(|(_, info)| info.directory == directory);
    let Some((record, info)) = found else {
        fail!(
            Kind::NotFound,
            "{directory} is not a mount of an image or a container"
        );
    };
    if info.copied {
        empty(&directory)?;
    } else if is_mount_point(&directory) {
        umount(&directory)?;
    }
    safefs::remove_tree(record.as_std_path())
}

/// Remove what mounts left that a reboot ended.
pub fn sweep(config: &Config) -> Result<()> {
    if mounts(config).is_dir() {
        sweep_in_turn(config)?;
    }
    Ok(())
}

fn sweep_in_turn(config: &Config) -> Result<Lock> {
    let turn = Lock::take(
        lock_path(config)?.as_std_path(),
        Mode::Exclusive,
        "the mounts",
    )?;
    for (record, info) in records(config) {
        let gone = if info.copied {
            !info.directory.exists()
        } else {
            // What lives in another namespace cannot be seen from here.
            let here = viewpoint();
            here.0 != info.seen_from.0
                || (here.1 == info.seen_from.1 && !is_mount_point(&info.directory))
        };
        if gone {
            safefs::remove_tree(record.as_std_path())?;
        }
    }
    Ok(turn)
}

fn lock_path(config: &Config) -> Result<Utf8PathBuf> {
    let locks = config.checkouts.join(".locks");
    safefs::make_private_dir(locks.as_std_path())?;
    Ok(locks.join(".mounts"))
}

fn mounts(config: &Config) -> Utf8PathBuf {
    config.checkouts.join(".mounts")
}

fn records(config: &Config) -> Vec<(Utf8PathBuf, Mounted)> {
    let entries = mounts(config).read_dir_utf8().into_iter().flatten();
    entries
        .flatten()
        .filter_map(|entry| {
            let text = std::fs::read(entry.path().join("info.json")).ok()?;
            Some((entry.path().to_owned(), serde_json::from_slice(&text).ok()?))
        })
        .collect()
}

fn container_rootfs(config: &Config, source: &str) -> Result<Option<Utf8PathBuf>> {
    let Some(name) = super::run::installed(config, source)? else {
        return Ok(None);
    };
    let rootfs = in_use(config, &name)?.map(|deployment| deployment.join("rootfs"));
    // A remote root file system is a link.
    Ok(rootfs.map(|path| path.canonicalize_utf8().unwrap_or(path)))
}

/// Overlay options split at commas and colons.
fn check_plain(path: &Utf8Path) -> Result<()> {
    if path
        .as_str()
        .contains(|c: char| c.is_control() || ",:\\".contains(c))
    {
        fail!(
            Kind::Invalid,
            "the path {path} has a character that mount options would misread"
        );
    }
    Ok(())
}

/// True if something is mounted right there. Source: proc(5), `mountinfo`, field 5.
fn is_mount_point(path: &Utf8Path) -> bool {
    let escaped = path.as_str().replace(' ', "\\040");
    std::fs::read_to_string("/proc/self/mountinfo").is_ok_and(|text| {
        text.lines()
            .any(|line| line.split(' ').nth(4) == Some(escaped.as_str()))
    })
}

/// This boot and this mount namespace.
fn viewpoint() -> (String, String) {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = std::fs::read_link("/proc/self/ns/mnt")
        .map(|link| link.to_string_lossy().into_owned())
        .unwrap_or_default();
    (boot.trim().to_owned(), namespace)
}

fn empty(directory: &Utf8Path) -> Result<()> {
    let entries = directory
        .read_dir_utf8()
        .context(|| format!("cannot list {directory}"))?;
    for entry in entries.flatten() {
        safefs::remove_tree(entry.path().as_std_path())?;
    }
    Ok(())
}

fn run(words: &[&str]) -> Result<()> {
    Child::new("mount").args(words).run().map(|_| ())
}

fn umount(directory: &Utf8Path) -> Result<()> {
    Child::new("umount")
        .arg(directory.as_str())
        .run()
        .map(|_| ())
}
