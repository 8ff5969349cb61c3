//! `rollback`: the other deployment is still there; switch to it.

use std::cell::Cell;

use super::change::{self, Change};
use super::effects::{Effects, ImageMark};
use super::hostfiles::{self, Package, Wish};
use crate::deployment::{ContainerName, Info, Paths, read_config};
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::transaction::{Host, Plan, Subject};

/// Compute the return to the previous deployment.
pub fn rollback(host: &Host<'_>, name: &ContainerName) -> Result<Change> {
    let config = host.config();
    let (lock, from) = change::lock_installed(host, name)?;
    let paths = Paths::new(config, name);
    let to = from.other();
    let target = paths.slot(to);
    if !target.is_dir() {
        fail!(
            Kind::NotFound,
            "Error: Cannot find a previous deployment to rollback located at {target}"
        );
    }
    let read = |path: &camino::Utf8Path| match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(|| format!("cannot read {path}")),
    };
    let unit_text = read(&paths.unit_copy(&target))?;
    let tmpfiles_text = read(&paths.tmpfiles_copy(&target))?;
    // Old deployments may have no info that can be read; their unit is what counts.
    let info = Info::read(&target).unwrap_or_else(|error| {
        tracing::debug!(%error, "info");
        Info {
            has_container_service: true,
            ..Info::default()
        }
    });
    let has_service = info.has_container_service;
    if has_service && unit_text.is_none() {
        fail!(
            Kind::NotFound,
            "Error: Cannot find systemd service file for previous version. {} is missing",
            paths.unit_copy(&target)
        );
    }
    let mut plan = Plan::new("rollback", name, Some(from), Some(to));
    plan.subject = Some(Subject {
        image: info.image.clone(),
        revision: info.revision.clone(),
        replaces: Info::read(&paths.slot(from)).ok().map(|info| info.revision),
        auto_update: None,
        host_files: 0,
        package: info.package.as_ref().map(|package| package.version.clone()),
    });
    change::unit_file_steps(
        &paths,
        &mut plan,
        unit_text.as_deref(),
        tmpfiles_text.as_deref(),
    );
    let mut effects = Effects {
        from_image: Info::read(&paths.slot(from))
            .ok()
            .as_ref()
            .map(ImageMark::of),
        to_image: Some(ImageMark::of(&info)),
        complete: true,
        ..Effects::default()
    };
    let config = |slot| read_config(&paths.slot(slot));
    if let Some(after) = config(to) {
        effects.compare_configs(config(from).as_ref(), &after);
    }
    effects.file(paths.unit(), unit_text.as_deref());
    effects.file(paths.tmpfiles(), tmpfiles_text.as_deref());
    // Old deployments may have no record; then their files are found as those of anybody else.
    let mut target_info = info.clone();
    let before = Info::read(&paths.slot(from)).ok();
    let tree = hostfiles::files_of(host.config(), &info, &target)?;
    let files = hostfiles::plan(
        host.config(),
        &Wish {
            name,
            slot: to,
            files: tree.as_ref(),
            package: Package::Ready,
        },
        &mut target_info,
        before.as_ref().map(|info| (info, from)),
    )?;
    effects.host_files(&files);
    if let Some(subject) = &mut plan.subject {
        subject.host_files = target_info.installed_files.len();
    }
    hostfiles::steps(&mut plan, Some(to), &files);
    if target_info != info {
        change::rewrite_info(&mut plan, &target, &target_info);
    }
    change::switch_steps(
        host,
        &paths,
        &mut plan,
        Some(&info).filter(|_| unit_text.is_some()),
        tmpfiles_text.is_some(),
    )?;
    Ok(Change {
        plan,
        effects,
        notes: [format!(
            "Rolling back container {name} to the checkout at {target}"
        )]
        .into_iter()
        .chain(files.compared.notes)
        .collect(),
        _package: None,
        store: Cell::default(),
        _lock: lock,
    })
}
