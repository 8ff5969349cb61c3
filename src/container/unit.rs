//! Units: our own, and those of images fitted to a user's manager.

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;

use super::render::{Source, Wishes};
use crate::command::find_program;
use crate::config::Config;
use crate::deployment::ContainerName;
use crate::error::Result;
use crate::runtime::Runtime;
use crate::runtime::spec::{self, Generated};
use crate::runtime::userns::Mapping;
use crate::systemd::tmpfiles;
use crate::template::{self, Template};

/// A user's manager has no multi-user.target; what the image wants there starts by default.
pub(super) fn for_users_manager(unit: &str) -> String {
    let lines = unit.lines().map(|line| match line.split_once('=') {
        Some((key, targets)) if matches!(key.trim(), "WantedBy" | "RequiredBy") => {
            format!(
                "{key}={}\n",
                targets.replace("multi-user.target", "default.target")
            )
        }
        _ => format!("{line}\n"),
    });
    lines.collect()
}

/// What a unit of ours depends on beside the image.
pub(super) struct UnitInput<'a> {
    pub runtime: &'a Runtime,
    pub name: &'a ContainerName,
    pub destdir: &'a Utf8Path,
    pub pidfile: &'a str,
    pub tmpfiles: Option<Utf8PathBuf>,
    pub mapping: Option<&'a Mapping>,
}

/// The unit of a container whose image brings none.
pub(super) fn our_unit(
    host: &Config,
    source: &Source<'_>,
    wishes: &Wishes<'_>,
    generated: Option<&Generated>,
    unit: &UnitInput<'_>,
) -> Result<String> {
    let stop_signal = generated.map_or("SIGTERM", |generated| &generated.stop_signal);
    let description = source
        .config
        .label("org.opencontainers.image.title")
        .or_else(|| source.config.label("summary"))
        .map_or_else(
            || unit.name.to_string(),
            |title| format!("{} ({title})", unit.name),
        );
    // Where the container's other users own files, only root of its namespace can clean up.
    let run = host
        .run_directory
        .join("atomic-rs")
        .join(unit.name.as_str());
    let as_root = unit.mapping.map(|mapping| {
        let words: Vec<String> = mapping
            .as_root()
            .iter()
            .map(|word| {
                find_program(word).map_or_else(
                    || (*word).to_owned(),
                    |path| path.to_string_lossy().into_owned(),
                )
            })
            .collect();
        words.join(" ")
    });
    let owned: Vec<&spec::Owned> = generated
        .map(|generated| generated.owned.as_slice())
        .unwrap_or_default()
        .iter()
        .filter(|_| unit.mapping.is_some_and(Mapping::has_range))
        .collect();
    let values = json!({
        "user": unit.mapping.is_some(),
        "as_root": as_root,
        "run": run,
        "owned": owned,
        "name": unit.name,
        "description": description,
        "destdir": unit.destdir,
        "runtime": unit.runtime.path(),
        "runtime_options": unit.runtime.unit_options(),
        "pidfile": unit.pidfile,
        "notify": generated.is_some_and(|generated| generated.notify),
        "tmpfiles": unit.tmpfiles,
        "output": generated.map(|generated| &generated.output),
        "systemd_tmpfiles": tmpfiles::program(),
        "stop_signal": stop_signal,
        "stop_timeout": wishes.options.stop_timeout.unwrap_or(host.stop_timeout),
    });
    template::render(Template::Service, &host.templates, &values)
}
