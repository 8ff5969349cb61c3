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
        let script = String::from_utf8_lossy(&script);
        // clap_complete's bash script takes the hyphen of our name for a step down in one place
        // and not in the other, so that no subcommand would ever be completed.
        let script = script.replace("atomic__subcmd__rs", "atomic__rs");
        out.line(script.trim_end())?;
        Ok(ExitCode::SUCCESS)
    }
}
