use std::io::IsTerminal as _;
use std::process::{ExitCode, Stdio};

use camino::Utf8PathBuf;

use super::super::Call;
use super::super::args::SourceArgs;
use crate::error::{Context as _, Error, Kind, Result};
use crate::rootless::{Home, Mode, Name, create, files};
use crate::store::Store;
use crate::{fail, rootless, safefs};

/// Create a container; its id is printed
#[derive(Debug, clap::Args)]
pub struct Create {
    /// The image: one that is in the store, or one to pull; its forms are those of "pull"
    image: String,
    /// A name for it
    #[arg(long)]
    name: Option<Name>,
    /// Take the name away from the container that has it
    #[arg(long, requires = "name")]
    force: bool,
    /// How it runs: N, R1, P1, P2, F1 to F4, or S1
    #[arg(long, value_name = "MODE", default_value_t = Mode::N)]
    mode: Mode,
    #[command(flatten)]
    source: SourceArgs,
}

/// Remove containers
#[derive(Debug, clap::Args)]
pub struct Rm {
    /// Containers, by id or name
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Write the files of a container as a tar archive
#[derive(Debug, clap::Args)]
pub struct Export {
    /// A container, by id or name
    container: String,
    /// Where to write it, in place of stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<Utf8PathBuf>,
}

/// Show how a container runs, or have it run otherwise from now on
#[derive(Debug, clap::Args)]
pub struct Setup {
    /// A container, by id or name
    container: String,
    /// How it is to run: N by namespaces of this program, R1 by runc or crun, P1 and P2 by PRoot, F1 to F4 by
    /// fakechroot, S1 by Apptainer
    #[arg(long, value_name = "MODE")]
    mode: Option<Mode>,
    /// Have all files of its own belong to you again, readable and writable
    #[arg(long)]
    fixperm: bool,
    /// Have it see the host's NVIDIA driver: libraries, programs and devices, read-only, as they are when something runs;
    /// with "=false" not any more
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    nvidia: Option<bool>,
}

/// Make a container with all that was written to another one; its id is printed
#[derive(Debug, clap::Args)]
pub struct Clone {
    /// The container to start from, by id or name; it must not be running
    container: String,
    /// A name for the new one
    #[arg(long)]
    name: Option<Name>,
}

/// Give a container one more name
#[derive(Debug, clap::Args)]
pub struct AddName {
    /// A container, by id or name
    container: String,
    /// The name
    name: Name,
}

/// Take a name away; the container stays
#[derive(Debug, clap::Args)]
pub struct RemoveName {
    /// The name
    name: Name,
}

/// Replace a name by another one
#[derive(Debug, clap::Args)]
pub struct Rename {
    /// The name it has
    old: Name,
    /// The name it gets
    new: Name,
}

/// Protect a container from being removed
#[derive(Debug, clap::Args)]
pub struct Protect {
    /// A container, by id or name
    container: String,
}

/// Undo "protect"
#[derive(Debug, clap::Args)]
pub struct Unprotect {
    /// A container, by id or name
    container: String,
}

impl Create {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let container = new(
            call,
            &self.source,
            &self.image,
            self.name.as_ref(),
            self.force,
            self.mode,
        )?;
        call.out.line(container.record.id)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A new container of an image, which is pulled if it is not in the store.
pub fn new(
    call: &mut Call<'_>,
    source: &SourceArgs,
    image: &str,
    name: Option<&Name>,
    force: bool,
    mode: Mode,
) -> Result<crate::rootless::Container> {
    let store = Store::open(call.config)?;
    let image = if let Some(image) = store.find(image)?.pop() {
        image
    } else {
        let reference = source.reference(image)?;
        let ensured = source.ensure(call, &store, &reference);
        ensured.map_err(|error| {
            if reference.is_unqualified() {
                error.within(format_args!(
                    "there is no container and no stored image \"{image}\""
                ))
            } else {
                error
            }
        })?
    };
    let image = &image;
    create::create(
        call.config,
        &store,
        &create::Create {
            image,
            name,
            force,
            mode,
        },
    )
}

impl Rm {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let home = Home::of(call.config);
        let mut failed: Option<Error> = None;
        for text in &self.containers {
            let found = home.require(text);
            if found.is_err() && create::remove_broken(&home, text)? {
                call.out.line(text)?;
                continue;
            }
            let removed = found.and_then(|container| {
                create::remove(call.config, &container)?;
                call.out.line(container.record.id)
            });
            if let Err(error) = removed {
                // The others are removed all the same.
                if let Some(before) = failed.replace(error) {
                    call.out.note(before.to_string());
                }
            }
        }
        failed.map_or(Ok(ExitCode::SUCCESS), Err)
    }
}

impl Export {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let container = Home::of(call.config).require(&self.container)?;
        let Some(path) = &self.output else {
            if std::io::stdout().is_terminal() {
                fail!(
                    Kind::Usage,
                    "an archive is not for a terminal: name a file with --output"
                );
            }
            rootless::export(call.config, &container, Stdio::inherit(), None)?;
            return Ok(ExitCode::SUCCESS);
        };
        if path.exists() {
            fail!(Kind::Exists, "{path} exists, and is not overwritten");
        }
        let file = std::fs::File::create_new(path).context(|| format!("cannot create {path}"))?;
        let written = rootless::export(call.config, &container, file.into(), None);
        if written.is_err() {
            safefs::remove_if_exists(path.as_std_path())?;
        }
        written.map(|()| ExitCode::SUCCESS)
    }
}

impl Setup {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let home = Home::of(call.config);
        let _turn = home.turn()?;
        let mut container = home.require(&self.container)?;
        if self.mode.is_none() && !self.fixperm && self.nvidia.is_none() {
            call.out.line(format!("mode: {}", container.record.mode))?;
            if container.record.nvidia {
                call.out.line("nvidia: yes")?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        if self.fixperm {
            container.check_unprotected()?;
            let _still = create::stopped(&container)?;
            files::fix(&container.written())?;
        }
        if let Some(sees) = self.nvidia {
            rootless::set_nvidia(&mut container, sees)?;
        }
        if let Some(mode) = self.mode {
            rootless::set_mode(call.config, &mut container, mode)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Clone {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let from = Home::of(call.config).require(&self.container)?;
        let made = create::clone(call.config, &from, self.name.as_ref())?;
        call.out.line(made.record.id)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl AddName {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let home = Home::of(call.config);
        let _turn = home.turn()?;
        let container = home.require(&self.container)?;
        container.check_unprotected()?;
        home.add_name(&container.record.id, &self.name)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl RemoveName {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let home = Home::of(call.config);
        let _turn = home.turn()?;
        home.remove_name(&self.name)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Rename {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let home = Home::of(call.config);
        let _turn = home.turn()?;
        let container = home.require(self.old.as_str())?;
        home.add_name(&container.record.id, &self.new)?;
        home.remove_name(&self.old)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Protect {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        set_protected(call, &self.container, true)
    }
}

impl Unprotect {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        set_protected(call, &self.container, false)
    }
}

fn set_protected(call: &Call<'_>, text: &str, protected: bool) -> Result<ExitCode> {
    let home = Home::of(call.config);
    let _turn = home.turn()?;
    let mut container = home.require(text)?.reloaded()?;
    container.record.protected = protected;
    container.save()?;
    Ok(ExitCode::SUCCESS)
}
