use std::process::ExitCode;

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
pub struct Completion {
    /// Shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

impl Completion {
    pub fn run(&self) -> ExitCode {
        clap_complete::generate(
            self.shell,
            &mut super::definition(),
            "atomic-rs",
            &mut std::io::stdout(),
        );
        ExitCode::SUCCESS
    }
}
