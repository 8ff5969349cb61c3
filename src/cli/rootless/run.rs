use std::process::ExitCode;

use camino::{Utf8Path, Utf8PathBuf};

use super::super::Call;
use super::super::args::SourceArgs;
use super::super::process::{EnvArgs, ProcessArgs};
use super::detach;
use super::manage::new;
use crate::error::{Error, Kind, Result};
use crate::fail;
use crate::rootless::engine::SETUP_FAILED;
use crate::rootless::{self, Container, Cpus, Home, Mode, Name, Wishes, create};
use crate::runtime::mounts::{Volume, parse_volume};

/// Run a command in a container, or in a new one of an image
#[allow(clippy::struct_excessive_bools)] // one flag each
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: that of the command, or 128 and the number of the signal that ended it; 125 if the container could not be set up, 126 if the command cannot be executed, 127 if there is none of that name."
)]
pub struct Run {
    /// A container, by id or name, or an image, of which one is created; what follows is the command
    #[arg(
        required = true,
        value_name = "CONTAINER|IMAGE [COMMAND]",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    words: Vec<String>,
    /// A name for the new container
    #[arg(long)]
    name: Option<Name>,
    /// Remove the container afterwards, also one that was there before
    #[arg(long)]
    rm: bool,
    /// Run in the background and print the container's id; "logs" and "stop" are for it
    #[arg(short, long)]
    detach: bool,
    #[command(flatten)]
    process: ProcessArgs,
    #[command(flatten)]
    whom: Whom,
    /// The host's name inside
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Let the container have a device of the host, or a directory of them
    #[arg(long, value_name = "/dev/NAME")]
    device: Vec<Utf8PathBuf>,
    /// Mount your home directory in the container, at the same place
    #[arg(long)]
    bindhome: bool,
    /// Have the host's users and groups: its /etc/passwd and /etc/group
    #[arg(long)]
    hostauth: bool,
    /// Run on these processors only, as in 0,2-3
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<Cpus>,
    /// How a new container runs: N, R1, P1, P2, F1 to F4, or S1
    /// [default: N]
    #[arg(long, value_name = "MODE")]
    mode: Option<Mode>,
    /// In modes P1 and P2: run programs that are told of some of the host's files in place of their own
    #[arg(long)]
    allow_leaky: bool,
    #[command(flatten)]
    source: SourceArgs,
}

/// Whom a command runs as, and where.
#[derive(Debug, Clone, clap::Args)]
struct Whom {
    /// Have the environment that this command has itself
    #[arg(long)]
    hostenv: bool,
    /// Whom to run as: user[:group], names or numbers of the container
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Where to start
    #[arg(short, long, value_name = "DIRECTORY")]
    workdir: Option<String>,
}

impl Whom {
    fn wishes(&self, env: &EnvArgs, command: &[String]) -> Result<Wishes> {
        Ok(Wishes {
            command: command.to_vec(),
            env: env.list()?,
            host_env: self.hostenv,
            user: self.user.clone(),
            workdir: self.workdir.clone(),
            ..Wishes::default()
        })
    }
}

/// Run one more command in a container that runs
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: as that of \"run\".")]
pub struct Exec {
    /// A container, by id or name, and the command
    #[arg(
        required = true,
        num_args = 2..,
        value_names = ["CONTAINER", "COMMAND"],
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    words: Vec<String>,
    #[command(flatten)]
    process: EnvArgs,
    #[command(flatten)]
    whom: Whom,
}

impl Exec {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let Some((first, command)) = self.words.split_first() else {
            fail!(Kind::Usage, "a container is missing");
        };
        let wishes = Wishes {
            // The command is the whole of it.
            entrypoint: Some(Vec::new()),
            ..self.whom.wishes(&self.process, command)?
        };
        let container = Home::of(call.config).require(first).map_err(set_up)?;
        let _held = call.config.interrupt.hold();
        let code = rootless::exec(call.config, &container, wishes);
        code.map(ExitCode::from).map_err(set_up)
    }
}

impl Run {
    pub fn run(mut self, call: &mut Call<'_>) -> Result<ExitCode> {
        let words = std::mem::take(&mut self.words);
        let Some((first, command)) = words.split_first() else {
            fail!(Kind::Usage, "a container or an image is missing");
        };
        if first.starts_with('-') {
            fail!(Kind::Usage, "there is no option \"{first}\"");
        }
        let in_background = detach::container();
        let first = in_background.as_deref().unwrap_or(first);
        if in_background.is_some() {
            (self.name, self.mode) = (None, None);
        }
        let container = self.container(call, first).map_err(set_up)?;
        let wishes = self
            .wishes(command, container.record.mode)
            .map_err(set_up)?;
        if self.detach && in_background.is_none() {
            detach::detach(&container).map_err(set_up)?;
            call.out.line(&container.record.id)?;
            return Ok(ExitCode::SUCCESS);
        }
        let code = {
            if let Some(cpus) = &self.cpuset_cpus {
                cpus.apply().map_err(set_up)?;
            }
            // From here on signals are the command's.
            let _held = call.config.interrupt.hold();
            rootless::run(call.config, &container, wishes)
        };
        if self.rm
            && let Err(error) = create::remove(call.config, &container)
        {
            // How the command ended matters more.
            call.out.note(error.to_string());
        }
        code.map(ExitCode::from).map_err(set_up)
    }

    fn container(&self, call: &mut Call<'_>, text: &str) -> Result<Container> {
        if let Some(found) = Home::of(call.config).find(text)? {
            let is_new = [
                (self.name.is_some(), "--name"),
                (self.mode.is_some(), "--mode"),
            ];
            if let Some((_, option)) = is_new.iter().find(|(is_given, _)| *is_given) {
                fail!(
                    Kind::Usage,
                    "\"{text}\" is a container, and {option} is for new ones"
                );
            }
            return Ok(found);
        }
        new(
            call,
            &self.source,
            text,
            self.name.as_ref(),
            false,
            self.mode.unwrap_or(Mode::N),
        )
    }

    fn volumes(&self, mode: Mode) -> Result<Vec<Volume>> {
        let mut out = self.process.volumes()?;
        for Volume { destination, .. } in &out {
            let is_below = |path: &str| Utf8Path::new(destination).starts_with(path);
            if destination == "/dev" || ["/proc", "/sys"].into_iter().any(is_below) {
                fail!(
                    Kind::Usage,
                    "{destination}: /proc, /sys and /dev of a container are the kernel's"
                );
            }
        }
        if self.hostauth {
            out.extend(["/etc/passwd", "/etc/group"].map(|path| Volume {
                source: path.into(),
                destination: path.into(),
                // Where nothing can be, the host's rights keep them.
                read_only: !mode.mounts_nothing(),
            }));
        }
        if self.bindhome {
            let Some(home) = std::env::var("HOME")
                .ok()
                .filter(|home| home.starts_with('/'))
            else {
                fail!(Kind::Usage, "--bindhome wants HOME to say where that is");
            };
            out.push(parse_volume(&format!("{home}:{home}"))?);
        }
        Ok(out)
    }

    fn wishes(&self, command: &[String], mode: Mode) -> Result<Wishes> {
        for device in &self.device {
            // By its one name: what leads out of there is no device.
            let found = device.canonicalize_utf8();
            let is_device = found.is_ok_and(|found| found == *device && found.starts_with("/dev/"));
            if !is_device {
                fail!(Kind::NotFound, "there is no device {device}");
            }
        }
        Ok(Wishes {
            entrypoint: self.process.entrypoint()?,
            volumes: self.volumes(mode)?,
            devices: self.device.clone(),
            hostname: self.hostname.clone(),
            allow_leaky: self.allow_leaky,
            ..self.whom.wishes(&self.process.env, command)?
        })
    }
}

/// What is not the command's own doing has an exit code of its own.
fn set_up(error: Error) -> Error {
    match error.kind() {
        Kind::Child(_) | Kind::Usage | Kind::Interrupted(_) => error,
        _ => Error::new(Kind::Child(SETUP_FAILED), error.to_string()),
    }
}
