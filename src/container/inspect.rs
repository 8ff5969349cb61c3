//! Everything known about a container or an image, as JSON.

use serde_json::{Value, json};

use super::{change, list, update};
use crate::config::Config;
use crate::deployment::{ContainerName, Info, Ledger, Paths, Slot, in_use};
use crate::error::Result;
use crate::store::Store;
use crate::store::images::StoredImage;
use crate::systemd::Manager;

/// A container: shape version 1. `--set` values are not shown.
pub fn container(config: &Config, name: &ContainerName) -> Result<Value> {
    let paths = Paths::new(config, name);
    let current = paths.current()?;
    let in_use = in_use(config, name)?;
    if in_use.is_none() {
        change::require(config, name)?;
    }
    let status = Manager::connect(config.is_system)
        .and_then(|manager| manager.status(&name.unit()))
        .ok();
    let row = list::row(config, name, status.as_ref());
    let mut deployments = Vec::new();
    let host_files: Vec<String> = in_use
        .iter()
        .filter_map(|path| Info::read(path).ok())
        .flat_map(|info| info.installed_files_checksum.into_keys())
        .collect();
    let slots = [Slot::Zero, Slot::One].map(|slot| (Some(slot), paths.slot(slot)));
    // What a package brought has no slot.
    let packaged = in_use
        .filter(|_| current.is_none())
        .map(|path| (None, path));
    for (slot, path) in slots.into_iter().chain(packaged) {
        if !path.exists() {
            continue;
        }
        deployments.push(match Info::read(&path) {
            Ok(info) => json!({
                "slot": slot,
                "current": slot == current,
                "path": path,
                "image": info.image,
                "image_id": info.revision,
                "created": list::local_time(info.created),
                "source": info.source,
                "runtime": info.runtime,
                "remote": info.remote,
                "persistent": info.persistent,
                "package": info.package.map(|package| json!({
                    "name": package.name,
                    "version": package.version,
                    "file": info.rpm_installed,
                })),
                "settings": info.user_values.map(|values| values.into_keys().collect::<Vec<_>>()),
            }),
            Err(error) => json!({"slot": slot, "path": path, "problem": error.to_string()}),
        });
    }
    Ok(json!({
        "version": 1,
        "kind": "container",
        "name": name,
        "state": row.state,
        "unit": {
            "name": name.unit(),
            "file": paths.unit(),
            "active": status.as_ref().map(|status| &status.active),
            "sub": status.as_ref().map(|status| &status.sub),
        },
        "command": row.command,
        "host_files": host_files,
        "deployments": deployments,
    }))
}

/// The image the deployment in use was made from.
pub fn image_of(config: &Config, store: &Store, name: &ContainerName) -> Result<StoredImage> {
    let slot = change::require(config, name)?;
    let info = Info::read(&Paths::new(config, name).slot(slot))?;
    update::current_image(store, &info)
}

/// What became of a container's deployments.
pub fn history(config: &Config, name: &ContainerName) -> Result<Ledger> {
    change::require(config, name)?;
    Ledger::load(&Paths::new(config, name))
}

/// An image: shape version 1.
pub fn image(store: &Store, image: &StoredImage) -> Result<Value> {
    let config = store.image_config(image)?;
    let (compressed, uncompressed) = store.image_size(image)?;
    let layers = image
        .manifest
        .as_ref()
        .map(crate::image::Manifest::layer_digests);
    Ok(json!({
        "version": 1,
        "kind": "image",
        "name": image.name,
        "id": image.id(),
        "pulled": list::local_time(image.created),
        "commit": image.commit,
        "architecture": config.architecture,
        "labels": config.config.labels,
        "entrypoint": config.config.entrypoint,
        "cmd": config.config.cmd,
        "env": config.config.env,
        "user": config.config.user,
        "volumes": config.config.volumes.keys().collect::<Vec<_>>(),
        "exposed_ports": config.config.exposed_ports.keys().collect::<Vec<_>>(),
        "size": compressed,
        "uncompressed_size": uncompressed,
        "layers": layers,
    }))
}
