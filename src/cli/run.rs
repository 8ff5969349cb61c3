use std::process::ExitCode;

use super::{Call, ONLY_ROOT, require_root};
use crate::deployment::{ContainerName, Paths};
use crate::error::{Kind, Result};
use crate::{fail, systemd};

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
        systemd::Manager::connect(call.config.is_system)?
            .start(&unit, None, &call.config.interrupt)
            .map_err(|error| systemd::with_journal(error, &unit))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Stop {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let name = installed(call, &self.name)?;
        systemd::Manager::connect(call.config.is_system)?.stop(&name.unit())?;
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
