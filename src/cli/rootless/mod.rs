//! `atomic-rs rootless`: containers of people without root.

mod detach;
mod list;
mod manage;
mod migrate;
mod run;

use std::process::ExitCode;

use clap::Subcommand;

use super::Call;
use crate::error::{Kind, Result};
use crate::fail;

/// Containers without root and without services: create, run, remove
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Images are those of \"atomic-rs pull\" and \"atomic-rs images list\" (\"atomic-rs images import tar:FILE NAME\" makes one of a root file system). A container keeps what is written to it until it is removed; creating and removing one copies nothing."
)]
pub struct Rootless {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Create(manage::Create),
    Run(Box<run::Run>),
    Exec(run::Exec),
    Stop(detach::Stop),
    Logs(detach::Logs),
    Ps(list::Ps),
    Inspect(list::Inspect),
    Rm(manage::Rm),
    Clone(manage::Clone),
    Export(manage::Export),
    Setup(manage::Setup),
    Name(manage::AddName),
    Rmname(manage::RemoveName),
    Rename(manage::Rename),
    Protect(manage::Protect),
    Unprotect(manage::Unprotect),
    Migrate(migrate::Migrate),
}

impl Rootless {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        if call.config.is_system {
            fail!(
                Kind::Permission,
                "\"rootless\" is for people without root: root has \"atomic-rs install\" and \"atomic-rs run\""
            );
        }
        match self.verb {
            Verb::Create(verb) => verb.run(call),
            Verb::Run(verb) => verb.run(call),
            Verb::Exec(verb) => verb.run(call),
            Verb::Stop(verb) => verb.run(call),
            Verb::Logs(verb) => verb.run(call),
            Verb::Ps(verb) => verb.run(call),
            Verb::Inspect(verb) => verb.run(call),
            Verb::Rm(verb) => verb.run(call),
            Verb::Clone(verb) => verb.run(call),
            Verb::Export(verb) => verb.run(call),
            Verb::Setup(verb) => verb.run(call),
            Verb::Name(verb) => verb.run(call),
            Verb::Rmname(verb) => verb.run(call),
            Verb::Rename(verb) => verb.run(call),
            Verb::Protect(verb) => verb.run(call),
            Verb::Unprotect(verb) => verb.run(call),
            Verb::Migrate(verb) => verb.run(call),
        }
    }
}
