use std::process::ExitCode;

use super::Call;
use crate::container;
use crate::deployment::{ContainerName, Paths};
use crate::error::Result;
use crate::fail;
use crate::store::Store;

/// Print all that is known about a container or an image, as JSON
#[derive(Debug, clap::Args)]
pub struct Inspect {
    /// Container, image, or the beginning of an image id (at least 4 digits)
    #[arg(value_name = "NAME|IMAGE")]
    name: String,
}

/// Print all that is known about a container, as JSON
#[derive(Debug, clap::Args)]
pub struct InspectContainer {
    /// Installed container
    #[arg(value_name = "NAME")]
    name: String,
}

impl InspectContainer {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let name: ContainerName = self.name.parse()?;
        call.out
            .json(&container::inspect::container(call.config, &name)?)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Inspect {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        if let Ok(name) = self.name.parse::<ContainerName>()
            && Paths::new(call.config, &name).current()?.is_some()
        {
            let value = container::inspect::container(call.config, &name)?;
            call.out.json(&value)?;
            return Ok(ExitCode::SUCCESS);
        }
        let Some(store) = Store::open_existing(call.config)? else {
            fail!(
                crate::error::Kind::NotFound,
                "there is no container and no image \"{}\"",
                self.name
            );
        };
        let image = store
            .find_one(&self.name)
            .map_err(|error| match error.kind() {
                crate::error::Kind::NotFound => crate::error::Error::new(
                    error.kind(),
                    format!("there is no container and no image \"{}\"", self.name),
                ),
                _ => error,
            })?;
        let value = container::inspect::image(&store, &image)?;
        call.out.json(&value)?;
        Ok(ExitCode::SUCCESS)
    }
}
