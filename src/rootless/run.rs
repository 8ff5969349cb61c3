//! Commands in containers.

use std::process::Stdio;

use super::container::{Container, Mode};
use super::engine;
use super::home::Home;
use super::process::{Process, Wishes};
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
    let (process, runtime) = prepare(config, container, wishes)?;
    engine::run(&Home::of(config), container, process, runtime.as_ref())
}

/// Run one more command in a container that runs, and return its exit code.
///
/// # Errors
/// Those of [`run`]; [`Kind::Refused`] if it does not run.
pub fn exec(config: &Config, container: &Container, wishes: Wishes) -> Result<u8> {
    let (process, runtime) = prepare(config, container, wishes)?;
    engine::exec(container, process, runtime.as_ref())
}

/// Write the files of a container as a tar archive: with the owners that they have inside.
///
/// # Errors
/// [`Kind::Child`] with the exit code of tar.
pub fn export(config: &Config, container: &Container, to: Stdio) -> Result<()> {
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
        Mode::N => None,
        Mode::R1 => Some(Runtime::find(config.runtime.as_deref())?),
    };
    Ok((process, runtime))
}
