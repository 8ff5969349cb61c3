use std::process::ExitCode;

use super::super::Call;
use super::super::args::SourceArgs;
use crate::error::{Error, Result};
use crate::rootless::{Home, Mode, Name, create};
use crate::store::Store;

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
    /// How it runs
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
        let name = source.ensure(call, &store, &reference)?;
        store.find_one(&name)?
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
            let removed = home.require(text).and_then(|container| {
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
    let mut container = home.require(text)?;
    container.record.protected = protected;
    container.save()?;
    Ok(ExitCode::SUCCESS)
}
