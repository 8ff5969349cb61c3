use std::process::ExitCode;

use clap_complete::env::Shells;

use super::{Output, complete};
use crate::error::{Context as _, Kind, Result};
use crate::fail;

/// Print a completion script for a shell; containers and images are completed, too
#[derive(Debug, clap::Args)]
pub struct Completion {
    /// Shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

const PROGRAM: &str = "atomic-rs";
/// The one that comes with the crate does not know that names have colons.
const BASH: &str = include_str!("completion.bash");

impl Completion {
    pub fn run(&self, out: &mut Output) -> Result<ExitCode> {
        if self.shell == clap_complete::Shell::Bash {
            out.line(BASH.trim_end())?;
            return Ok(ExitCode::SUCCESS);
        }
        let name = self.shell.to_string();
        let shells = Shells::builtins();
        let Some(shell) = shells.completer(&name) else {
            fail!(Kind::Usage, "there is no completion for {name}");
        };
        let mut script = Vec::new();
        shell
            .write_registration(complete::VARIABLE, PROGRAM, PROGRAM, PROGRAM, &mut script)
            .context(|| "cannot make the script".into())?;
        out.line(String::from_utf8_lossy(&script).trim_end())?;
        Ok(ExitCode::SUCCESS)
    }
}
