use std::process::ExitCode;

use super::Call;
use super::args::ChangeArgs;
use crate::container;
use crate::deployment::ContainerName;
use crate::error::Result;
use crate::transaction::Host;

/// Bring changes that were interrupted to an end: completed if they were past the switch, undone
/// otherwise
#[derive(Debug, clap::Args)]
pub struct Recover {
    /// Change files only, while systemd is not up yet
    #[arg(long)]
    offline: bool,
    /// Only this container
    #[arg(value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    change: ChangeArgs,
}

impl Recover {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let only = self
            .name
            .as_deref()
            .map(str::parse::<ContainerName>)
            .transpose()?;
        let host = if self.offline {
            Host::offline(call.config)
        } else {
            Host::new(call.config)
        };
        let steps: Vec<String> = container::interrupted(call.config)?
            .iter()
            .filter(|name| only.as_ref().is_none_or(|only| only == *name))
            .map(|name| format!("end the interrupted change of {name}"))
            .collect();
        if let Some(code) = self.change.told(call, "recover", &steps)? {
            return Ok(code);
        }
        let mut code = ExitCode::SUCCESS;
        let mut told: Vec<String> = Vec::new();
        for (name, result) in container::recover_all(&host, only.as_ref())? {
            match result {
                Ok((verb, applied)) => told.push(applied.told(&verb, &name)),
                Err(error) => {
                    call.out.note(format!("{name}: {error}"));
                    code = ExitCode::FAILURE;
                }
            }
        }
        if self.change.is_json() {
            self.change.done(call, "recover", &told)?;
            return Ok(code);
        }
        for line in told {
            call.out.line(line)?;
        }
        Ok(code)
    }
}
