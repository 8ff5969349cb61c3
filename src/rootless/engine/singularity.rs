//! Apptainer, or Singularity as it was: a program of the host's that runs a directory as a container.

use std::process::Command;

use camino::Utf8Path;

use super::root::HOST_FILES;
use super::{adopt, program};
use crate::command::find_program;
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::rootless::container::Container;
use crate::rootless::fake;
use crate::rootless::process::Process;
use crate::runtime::userns::Mapping;
use crate::safefs::Root;

/// What it is called, the newer name first.
const NAMES: [&str; 2] = ["apptainer", "singularity"];
/// Directories that it wants to be there.
const DIRECTORIES: [&str; 6] = ["var/tmp", "tmp", "proc", "dev", "sys", "root"];

/// The program, if there is one: `UDOCKER_USE_SINGULARITY_EXECUTABLE` names another.
pub fn find() -> Option<String> {
    let named = std::env::var("UDOCKER_USE_SINGULARITY_EXECUTABLE").ok();
    let named = named.filter(|named| !named.is_empty());
    let found = match &named {
        Some(named) => find_program(named),
        None => NAMES.into_iter().find_map(find_program),
    };
    found.map(|path| path.to_string_lossy().into_owned())
}

/// Run a process on a container's own files and return its exit code.
pub fn run(container: &Container, process: &Process) -> Result<u8> {
    let Some(path) = find() else {
        fail!(
            Kind::NotFound,
            "neither apptainer nor singularity is installed: mode S1 is by them"
        );
    };
    let command = |files: &Utf8Path| command(&path, process, files);
    adopt::run(container, command, adopt::wait_for)
}

fn command(path: &str, process: &Process, files: &Utf8Path) -> Result<Command> {
    let resolved = process.resolve(&Root::open(files.as_std_path())?)?;
    program::directory(process, files)?;
    let program = program::find(process, files, &resolved.env)?;
    for name in DIRECTORIES {
        if let Some(place) = fake::resolve(files, name) {
            std::fs::create_dir_all(&place).context(|| format!("cannot create {place}"))?;
        }
    }
    let mut command = Command::new(path);
    command.args(["--quiet", "exec", "--writable"]);
    let user = &resolved.user;
    if user.uid != 0 {
        fail!(
            Kind::Refused,
            "mode S1 runs nothing as user {}:{}, only as you or as root",
            user.uid,
            user.gid
        );
    }
    if Mapping::of_user().has_range() {
        command.arg("--fakeroot");
    }
    command.args(["--pwd", &process.cwd]);
    let is_bound = |inside: &str| {
        let mut all = process.volumes.iter();
        all.any(|volume| volume.destination == inside)
    };
    for file in HOST_FILES {
        if !is_bound(file) && Utf8Path::new(file).is_file() {
            command.args(["--bind", file]);
        }
    }
    for volume in &process.volumes {
        if volume.source.as_str().contains([':', ',']) {
            fail!(
                Kind::Refused,
                "mode S1 cannot bind {}: there is a colon or a comma in it",
                volume.source
            );
        }
        let how = if volume.read_only { ":ro" } else { "" };
        command
            .arg("--bind")
            .arg(format!("{}:{}{how}", volume.source, volume.destination));
    }
    if !is_bound("/root") {
        command.arg("--home").arg(format!("{files}/root:/root"));
    }
    for inside in ["/tmp", "/var/tmp"] {
        if !is_bound(inside) {
            command
                .arg("--bind")
                .arg(format!("{files}{inside}:{inside}"));
        }
    }
    // By both prefixes: which one it reads depends on its age.
    for (name, value) in resolved
        .env
        .iter()
        .filter_map(|entry| entry.split_once('='))
    {
        command.env(format!("SINGULARITYENV_{name}"), value);
        command.env(format!("APPTAINERENV_{name}"), value);
    }
    command.arg(files).arg(program.inside);
    command.args(process.args.iter().skip(1));
    Ok(command)
}
