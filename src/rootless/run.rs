//! Commands in containers.

use std::process::Stdio;

use super::container::{Container, Mode};
use super::home::Home;
use super::process::{Process, Wishes};
use super::{create, engine, fake, files};
use crate::config::Config;
use crate::error::{Kind, Result};
use crate::fail;
use crate::runtime::Runtime;

/// By this variable the program knows that it is the one in the background, and of which container.
pub const DETACHED: &str = "ATOMIC_RS_DETACHED";

/// Run a command in a container and return its exit code.
///
/// # Errors
/// [`Kind::Child`] with the exit code that says what could not be set up.
pub fn run(config: &Config, container: &Container, wishes: Wishes) -> Result<u8> {
    let allow_leaky = wishes.allow_leaky;
    let (process, runtime) = prepare(config, container, wishes)?;
    let home = Home::of(config);
    prepare_files(config, container)?;
    match container.record.mode {
        Mode::N | Mode::R1 => {}
        mode if mode.is_traced() => {
            return engine::proot::run(&home, container, &process, allow_leaky);
        }
        _ => return engine::fakechroot::run(container, &process),
    }
    engine::run(&home, container, process, runtime.as_ref())
}

/// Have a container's files be what its mode needs: while something runs in it, they are.
pub fn prepare_files(config: &Config, container: &Container) -> Result<()> {
    if !container.holders()?.is_empty() {
        return Ok(());
    }
    if container.record.mode.mounts_nothing() {
        files::make(config, container)?;
    }
    if container.record.mode.is_fake() || fake::is_changed(container) {
        let _still = create::stopped(container)?;
        fake::ensure(container)?;
    }
    Ok(())
}

/// Run one more command in a container that runs, and return its exit code.
///
/// # Errors
/// Those of [`run`]; [`Kind::Refused`] if it does not run.
pub fn exec(config: &Config, container: &Container, wishes: Wishes) -> Result<u8> {
    let allow_leaky = wishes.allow_leaky;
    let (process, runtime) = prepare(config, container, wishes)?;
    if container.record.mode.mounts_nothing() {
        container.require_running()?;
        if container.record.mode.is_fake() {
            return engine::fakechroot::run(container, &process);
        }
        return engine::proot::run(&Home::of(config), container, &process, allow_leaky);
    }
    engine::exec(container, process, runtime.as_ref())
}

/// Write the files of a container as a tar archive: with the owners that they have inside.
///
/// # Errors
/// [`Kind::Child`] with the exit code of tar.
pub fn export(config: &Config, container: &Container, to: Stdio) -> Result<()> {
    if fake::is_changed(container) {
        let _still = create::stopped(container)?;
        fake::undo(container)?;
    }
    let words = [
        "tar",
        "--create",
        "--one-file-system",
        "--sparse",
        "--numeric-owner",
        // The same files are the same archive.
        "--sort=name",
        "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime",
        "--xattrs",
        "--xattrs-include=security.capability",
        ".",
    ];
    let words = words.map(str::to_owned).to_vec();
    match engine::run_of_host(&Home::of(config), container, words, to)? {
        0 => Ok(()),
        code => fail!(Kind::Child(code), "the archive is not complete"),
    }
}

fn prepare(
    config: &Config,
    container: &Container,
    wishes: Wishes,
) -> Result<(Process, Option<Runtime>)> {
    if config.is_system {
        fail!(
            Kind::Permission,
            "this is for people without root: root has \"atomic-rs install\" and \"atomic-rs run\""
        );
    }
    let host: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name != DETACHED)
        .collect();
    let image = container.image_config()?;
    let process = Process::new(&image.config, wishes, &container.record.id, &host)?;
    let runtime = match container.record.mode {
        Mode::R1 => Some(Runtime::find(config.runtime.as_deref())?),
        _ => None,
    };
    Ok((process, runtime))
}
