//! What is only said: help, version, settings.

use std::fmt::Write as _;

use super::grammar::Words;
use super::{Call, Code};
use crate::cli::Output;
use crate::command::find_program;
use crate::rootless::Mode;
use crate::rootless::engine::fakechroot::find as library;
use crate::rootless::engine::singularity::find as singularity;

/// Print, with exit code 0.
pub fn say(text: &str) -> Code {
    Output::default().line(text.trim_end())?;
    Ok(0)
}

/// The release whose command line this is.
const RELEASE: &str = "1.3.17";

pub fn version() -> String {
    format!(
        "version: {RELEASE}\ntarball: none, atomic-rs {} needs none\ntarball_release: none",
        crate::VERSION
    )
}

pub const HELP: &str = "\
Usage:
  udocker [general options] COMMAND [options] [arguments]

Images:
  search [--list-tags] [-a] EXPRESSION      look for images in a registry, or for the tags of one
  pull [--platform=OS/ARCH] IMAGE           fetch an image
  images [-l] [-p]                          list images
  rmi [-f] IMAGE                            delete an image
  tag IMAGE NEW-IMAGE                       give an image another name
  inspect [-p] IMAGE|CONTAINER              show metadata, or where a container's root is
  manifest inspect IMAGE                    show what the registry says of an image
  verify IMAGE                              check an image
  load [-i FILE] [NAME]                     bring in the images of an archive
  save [-o FILE] IMAGE...                   write images as an archive
  import [--tocontainer] [--clone] TAR IMAGE   make an image, or a container, of a tar archive
  protect, unprotect IMAGE|CONTAINER        keep from being deleted
  login, logout [--registry=HOST]           credentials of a registry

Containers:
  create [--name=NAME] [--force] IMAGE      make a container
  run [options] CONTAINER|IMAGE [COMMAND]   run a command in a container, or in a new one of an image
  ps [-m] [-s] [-p]                         list containers
  rm [-f] CONTAINER...                      delete containers
  name CONTAINER NAME; rmname NAME; rename NAME NEW-NAME
  clone [--name=NAME] CONTAINER             make a container like another one
  export [-o FILE] [--clone] CONTAINER      write a container's files as an archive
  setup [--execmode=MODE] [--fixperm] CONTAINER   show or change how a container runs

Others:
  mkrepo DIRECTORY; showconf; install; version; help

General options:
  -D, --debug; -q, --quiet; -h, --help; -V, --version
  --insecure         speak to registries without TLS
  --repo=DIRECTORY   where images and containers are
  --allow-root       accepted; containers of root are other ones

\"udocker COMMAND --help\" says more of run and setup. The containers are those of \"atomic-rs rootless\".
";

const RUN: &str = "\
Usage:
  udocker run [options] CONTAINER|IMAGE [COMMAND [WORDS]]

Options:
  --rm                          delete the container afterwards
  --name=NAME                   a name for the new container
  --execmode=MODE               how the new container runs
  -v, --volume=HOST[:INSIDE[:ro]]   let it see a file or directory of the host
  --novol=PATH                  not this one
  -e, --env=NAME[=VALUE]        set a variable; without a value that of the host
  --env-file=FILE               set the variables of a file
  --hostenv                     set all variables of the host
  -u, --user=USER[:GROUP]       whom to run as
  -w, --workdir=DIRECTORY       where to start
  --entrypoint=COMMAND          in place of the image's
  --hostauth, --containerauth   users of the host, or of the container (as without)
  --bindhome                    let it see your home directory
  --cpuset-cpus=LIST            on these processors
  --device=/dev/NAME            let it have a device
  --dri                         let it have /dev/dri
  --nometa                      ignore what the image says
  --nosysdirs                   accepted; /proc, /sys and /dev are always there
  --pull=missing|never|always|reuse   when the image is fetched
  --platform=OS/ARCH            of the image
  --allow-leaky                 put up with an engine that does not hide all of the host
  -i, -t, -a, --nobanner, --kernel, --dns, --dns-search, --publish, --netcoop   accepted
";

const SETUP: &str = "\
Usage:
  udocker setup [--execmode=MODE] [--fixperm] [--force] CONTAINER

Modes: N namespaces of this program; R1 runc or crun; P1, P2 PRoot; F1 to F4 fakechroot; S1 Apptainer.
Without options: how the container runs.
";

/// The help of a command.
pub fn of(command: &str) -> &'static str {
    match command {
        "run" => RUN,
        "setup" => SETUP,
        _ => HELP,
    }
}

/// The settings.
pub fn settings(call: &Call) -> String {
    let config = &call.config;
    let home = call.home();
    let topdir = call
        .repo
        .clone()
        .unwrap_or_else(|| config.checkouts.clone());
    let all = [
        ("verbose_level", (call.level as u8).to_string()),
        ("topdir", topdir.to_string()),
        ("reposdir", config.checkouts.to_string()),
        ("containersdir", home.containers().to_string()),
        ("layersdir", config.checkouts.to_string()),
        (
            "default_execution_mode",
            call.mode(&Words::default())
                .map_or_else(|error| error.to_string(), |mode| mode.to_string()),
        ),
        ("http_insecure", call.insecure.to_string()),
        ("skopeo", config.skopeo.path.clone()),
    ];
    let line = "-".repeat(80);
    let mut out = format!("{line}\n");
    for (name, value) in &all {
        let _ = writeln!(out, "{name} = {value}");
    }
    for (name, value) in call.settings.iter() {
        if !all.iter().any(|(known, _)| *known == name) {
            let _ = writeln!(out, "{name} = {value}");
        }
    }
    out + &line
}

/// What there is in place of what the original installs.
pub fn found() -> String {
    let mut out = format!(
        "Info: udocker command line interface {RELEASE} by atomic-rs {}\n",
        crate::VERSION
    );
    let has = |program: &str| find_program(program).is_some();
    for mode in Mode::ALL {
        let (needs, is_there) = match mode {
            Mode::N => ("user namespaces", has("unshare")),
            Mode::R1 => ("runc or crun", has("runc") || has("crun")),
            Mode::P1 | Mode::P2 => ("proot", has("proot")),
            Mode::S1 => ("apptainer or singularity", singularity().is_some()),
            Mode::F1 | Mode::F2 | Mode::F3 | Mode::F4 => ("libfakechroot.so", library().is_some()),
        };
        let is_there = if is_there { "found" } else { "not found" };
        let _ = writeln!(out, "Info: mode {mode}: {needs}: {is_there}");
    }
    out + "Info: installation of udockertools successful: nothing has to be installed"
}
