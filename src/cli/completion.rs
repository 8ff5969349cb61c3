use std::process::ExitCode;

use super::Output;
use crate::error::Result;

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
pub struct Completion {
    /// Shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

impl Completion {
    pub fn run(&self, out: &mut Output) -> Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(
            self.shell,
            &mut super::definition(),
            "atomic-rs",
            &mut script,
        );
        out.line(String::from_utf8_lossy(&script).trim_end())?;
        Ok(ExitCode::SUCCESS)
    }
}
