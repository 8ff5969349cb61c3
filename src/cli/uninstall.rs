use std::process::ExitCode;

use super::Call;
use super::args::ChangeArgs;
use crate::container;
use crate::deployment::ContainerName;
use crate::error::{Kind, Result};
use crate::fail;
use crate::transaction::Host;

/// Remove a container; its data stay unless --purge is given
#[derive(Debug, clap::Args)]
pub struct Uninstall {
    /// Installed container
    #[arg(value_name = "NAME")]
    name: String,
    /// Delete the container's volumes and persistent writes as well
    #[arg(long)]
    purge: bool,
    #[arg(short = 'n', long = "name", hide = true, value_name = "OTHER")]
    other: Option<String>,
    #[command(flatten)]
    change: ChangeArgs,
}

impl Uninstall {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        if let Some(other) = &self.other {
            fail!(
                Kind::Usage,
                "System containers do not support --name. Please use atomic-rs uninstall {other}"
            );
        }
        let name: ContainerName = self.name.parse()?;
        let host = Host::new(call.config);
        remove(call, &host, &name, self.purge, &self.change)
    }
}

/// Uninstall one container and say what stays.
pub fn remove(
    call: &mut Call<'_>,
    host: &Host<'_>,
    name: &ContainerName,
    purge: bool,
    args: &ChangeArgs,
) -> Result<ExitCode> {
    let uninstalled = container::uninstall(host, name, purge)?;
    let code = args.show_or_apply(call, host, &uninstalled.change)?;
    for path in &uninstalled.kept {
        call.out.note(format!("The data in {path} are kept."));
    }
    if let Some(path) = &uninstalled.drop_ins {
        call.out.note(format!("The drop-ins in {path} are kept."));
    }
    Ok(code)
}
