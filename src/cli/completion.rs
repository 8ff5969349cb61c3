use std::process::ExitCode;

use crate::error::Result;

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
pub struct Completion {
    /// Shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

impl Completion {
    pub fn run(&self) -> Result<ExitCode> {
        clap_complete::generate(
            self.shell,
            &mut super::definition(),
            "atomic-rs",
            &mut std::io::stdout(),
        );
        Ok(ExitCode::SUCCESS)
    }
}
