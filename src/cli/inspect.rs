use std::process::ExitCode;

use super::Call;
use crate::container;
use crate::deployment::{ContainerName, in_use};
use crate::error::{Context as _, Kind, Result};
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

/// Tell which container put a file on the host; exit 1 if none did
#[derive(Debug, clap::Args)]
pub struct WhichContainer {
    /// A path of the host
    #[arg(value_name = "PATH")]
    path: camino::Utf8PathBuf,
}

impl WhichContainer {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let path = camino::absolute_utf8(&self.path)
            .kind(Kind::Invalid, || format!("{} is not a path", self.path))?;
        let Some(name) = container::hostfiles::owner(call.config, &path)? else {
            fail!(Kind::NotFound, "no container put {path} there");
        };
        call.out.line(name.as_str())?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Inspect {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        if let Ok(name) = self.name.parse::<ContainerName>()
            && in_use(call.config, &name)?.is_some()
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
