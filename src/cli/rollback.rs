use std::process::ExitCode;

use super::Call;
use super::args::ChangeArgs;
use crate::container;
use crate::deployment::ContainerName;
use crate::error::Result;
use crate::transaction::Host;

/// Put the previous deployment of a container back in place
#[derive(Debug, clap::Args)]
pub struct Rollback {
    /// Installed container
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    change: ChangeArgs,
}

impl Rollback {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let name: ContainerName = self.name.parse()?;
        let host = Host::new(call.config);
        let change = container::rollback(&host, &name)?;
        call.out
            .note(format!("Attempting to roll back system container: {name}"));
        self.change.show_or_apply(call, &host, &change)
    }
}
