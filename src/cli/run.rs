use std::process::ExitCode;

use super::{Call, ONLY_ROOT, require_root};
use crate::deployment::{ContainerName, Paths};
use crate::error::{Error, Kind, Result};
use crate::{fail, systemd};

const FAILURE_LINES: u32 = 10;

/// Start a container's service
#[derive(Debug, clap::Args)]
pub struct Run {
    /// Installed container
    #[arg(value_name = "NAME")]
    name: String,
}

/// Stop a container's service
#[derive(Debug, clap::Args)]
pub struct Stop {
    /// Installed container
    #[arg(value_name = "NAME")]
    name: String,
}

impl Run {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let name = installed(call, &self.name)?;
        let unit = name.unit();
        systemd::Manager::system()?.start(&unit).map_err(|error| {
            match systemd::journal_tail(&unit, FAILURE_LINES) {
                tail if tail.is_empty() => error,
                tail => Error::new(
                    error.kind(),
                    format!("{error}\nlast lines of {unit}:\n{tail}"),
                ),
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Stop {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let name = installed(call, &self.name)?;
        systemd::Manager::system()?.stop(&name.unit())?;
        Ok(ExitCode::SUCCESS)
    }
}

fn installed(call: &Call<'_>, name: &str) -> Result<ContainerName> {
    let name: ContainerName = name.parse()?;
    require_root(ONLY_ROOT)?;
    if Paths::new(call.config, &name).current()?.is_none() {
        fail!(Kind::NotFound, "The container '{name}' doesn't exist");
    }
    Ok(name)
}
