//! Commands in containers.

use std::process::Stdio;

use super::container::{Container, Mode};
use super::home::Home;
use super::nvidia::Driver;
use super::process::{Process, Wishes};
use super::tree::Tree;
use super::{create, engine, fake, files};
use crate::command::Child;
use crate::config::Config;
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::image::config::RunConfig;
use crate::runtime::{Runtime, userns};
use crate::safefs::Lock;

/// By this variable the program knows that it is the one in the background, and of which container.
pub const DETACHED: &str = "ATOMIC_RS_DETACHED";

/// Run a command in a container and return its exit code.
///
/// # Errors
/// [`Kind::Child`] with the exit code that says what could not be set up.
pub fn run(config: &Config, container: &Container, wishes: Wishes) -> Result<u8> {
    let allow_leaky = wishes.allow_leaky;
    let mut container = container.clone();
    prepare_files(config, &mut container)?;
    let container = &container;
    let (process, runtime) = prepare(config, container, wishes)?;
    // That may have taken long.
    config.interrupt.check()?;
    start(config, container, process, runtime.as_ref(), allow_leaky)
}

fn start(
    config: &Config,
    container: &Container,
    process: Process,
    runtime: Option<&Runtime>,
    allow_leaky: bool,
) -> Result<u8> {
    let home = Home::of(config);
    match container.record.mode {
        Mode::N | Mode::R1 => engine::run(&home, container, process, runtime),
        mode if mode.is_traced() => engine::proot::run(&home, container, &process, allow_leaky),
        Mode::S1 => engine::singularity::run(container, &process),
        _ => engine::fakechroot::run(container, &process),
    }
}

/// Have a container's files be what its mode needs: while something runs in it, they are.
pub fn prepare_files(config: &Config, container: &mut Container) -> Result<()> {
    *container = container.reloaded()?;
    if !container.holders()?.is_empty() {
        return Ok(());
    }
    let mode = container.record.mode;
    if mode.mounts_nothing() || container.record.own_files {
        files::make(config, container)?;
    }
    if mode.is_fake() || fake::is_changed(container) {
        let _still = create::stopped(container)?;
        *container = container.reloaded()?;
        fake::ensure(container)?;
    }
    Ok(())
}

/// Have a container's files be its own, in its `ROOT`, whatever its mode.
pub fn own_files(config: &Config, container: &Container) -> Result<()> {
    if container.record.own_files || !container.holders()?.is_empty() {
        return Ok(());
    }
    files::make(config, &mut container.clone())
}

/// Have a container run in another mode from now on; if its files cannot be what that needs, in the one before.
///
/// # Errors
/// [`Kind::Refused`] if it is protected, or something runs in it.
pub fn set_mode(config: &Config, container: &mut Container, mode: Mode) -> Result<()> {
    let change = |container: &mut Container, mode: Mode| -> Result<Mode> {
        let _still = create::stopped(container)?;
        *container = container.reloaded()?;
        container.check_unprotected()?;
        let before = std::mem::replace(&mut container.record.mode, mode);
        if let Some(path) = container.files()
            && mode.mounts_nothing()
            && !before.mounts_nothing()
        {
            // Programs in namespaces may have given some of them to other users.
            files::fix(&path)?;
        }
        container.save()?;
        Ok(before)
    };
    let before = change(container, mode)?;
    prepare_files(config, container).inspect_err(|_| {
        if let Err(error) = change(container, before) {
            tracing::warn!(%error, "the mode stays {mode}");
        }
    })
}

/// Have a container see the host's NVIDIA driver from now on, or not any more.
///
/// # Errors
/// [`Kind::NotFound`] if the host has none; [`Kind::Refused`] if the container is protected, or something runs in it.
pub fn set_nvidia(container: &mut Container, sees: bool) -> Result<()> {
    if sees {
        Driver::find()?;
    }
    let _still = create::stopped(container)?;
    *container = container.reloaded()?;
    container.check_unprotected()?;
    container.record.nvidia = sees;
    container.save()
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
        return start(config, container, process, None, allow_leaky);
    }
    engine::exec(container, process, runtime.as_ref())
}

/// Write the files of a container as a tar archive: with the owners that they have inside.
///
/// `below`: a name of the directory that they are in there.
///
/// # Errors
/// [`Kind::Child`] with the exit code of tar.
pub fn export(
    config: &Config,
    container: &Container,
    to: Stdio,
    below: Option<&str>,
) -> Result<()> {
    let held = if fake::is_changed(container) {
        let held = create::stopped(container)?;
        fake::undo(container)?;
        held
    } else {
        container.turn()?
    };
    let container = container.reloaded()?;
    files::finish(&container)?;
    export_held(config, &container, to, held, below)
}

/// The same, with the container's turn held until it is on record that its files are being read.
pub(super) fn export_held(
    config: &Config,
    container: &Container,
    to: Stdio,
    held: Lock,
    below: Option<&str>,
) -> Result<()> {
    let mut options: Vec<String> = [
        "--create",
        "--one-file-system",
        "--sparse",
        "--numeric-owner",
        // The same files are the same archive.
        "--sort=name",
        "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime",
        "--xattrs",
        "--xattrs-include=security.capability",
    ]
    .map(str::to_owned)
    .into();
    if let Some(below) = below {
        // Names, and those that hard links lead to; not what symbolic ones say.
        options.push(format!("--transform=flags=rhS;s,^[.],{below},"));
    }
    if let Some(files) = container.files()
        && !userns::are_allowed()
    {
        // All of them are the user's own.
        let mut tar = Child::new("tar")
            .args(&options)
            .args(["--owner=0", "--group=0", "--directory", files.as_str(), "."])
            .into_command();
        let status = tar.stdout(to).status();
        drop(held);
        return match status.context(|| "cannot run tar".into())?.code() {
            Some(0) => Ok(()),
            _ => fail!(Kind::Failed, "the archive is not complete"),
        };
    }
    let words = std::iter::once("tar".to_owned()).chain(options);
    let words = words.chain([".".to_owned()]).collect();
    match engine::run_of_host(&Home::of(config), container, words, to, held)? {
        0 => Ok(()),
        code => fail!(Kind::Child(code), "the archive is not complete"),
    }
}

fn prepare(
    config: &Config,
    container: &Container,
    mut wishes: Wishes,
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
    let mut image = container.image_config()?;
    if wishes.without_metadata {
        image.config = RunConfig::default();
    }
    if container.record.nvidia {
        let driver = Driver::find()?;
        let shared = || Tree::of(&Home::of(config), &container.record.tree).checkout();
        let files = container.files().unwrap_or_else(shared);
        // What the person binds to the same place counts.
        let own = driver
            .volumes(&files, !container.record.mode.mounts_nothing())?
            .into_iter();
        let own = own.filter(|volume| {
            let mut asked = wishes.volumes.iter();
            !asked.any(|other| other.destination == volume.destination)
        });
        let own: Vec<_> = own.collect();
        wishes.volumes.extend(own);
        wishes.devices.extend_from_slice(driver.devices());
    }
    let process = Process::new(&image.config, wishes, &container.record.id, &host)?;
    let runtime = match container.record.mode {
        Mode::R1 => Some(Runtime::find(config.runtime.as_deref())?),
        _ => None,
    };
    Ok((process, runtime))
}
