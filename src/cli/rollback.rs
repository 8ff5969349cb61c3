use std::process::ExitCode;

use super::args::ChangeArgs;
use super::{Call, require_root};
use crate::container;
use crate::deployment::ContainerName;
use crate::error::Result;
use crate::transaction::Host;

/// Put the previous deployment of a container back in place
#[derive(Debug, clap::Args)]
pub struct Rollback {
    #[command(flatten)]
    change: ChangeArgs,
    /// Installed container
    #[arg(value_name = "NAME")]
    name: String,
}

impl Rollback {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let name: ContainerName = self.name.parse()?;
        require_root()?;
        let host = Host::new(call.config);
        call.out
            .note(format!("Attempting to roll back system container: {name}"));
        let change = container::rollback(&host, &name)?;
        self.change.show_or_apply(call, &host, &change)
    }
}
