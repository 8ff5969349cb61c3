use std::process::ExitCode;

use crate::error::Result;
use crate::rootless::engine::{enter, init, outer};

/// The stage that mounts a container's root: the program calls itself for this
#[derive(Debug, clap::Args)]
pub struct Outer {
    number: i32,
    namespaces: Vec<i32>,
}

/// Process 1 of a container: the program calls itself for this
#[derive(Debug, clap::Args)]
pub struct Init {
    number: i32,
    line: i32,
}

/// One more process of a container: the program calls itself for this
#[derive(Debug, clap::Args)]
pub struct Enter {
    number: i32,
    namespaces: Vec<i32>,
}

impl Enter {
    pub fn run(&self) -> Result<ExitCode> {
        enter::main(self.number, &self.namespaces).map(ExitCode::from)
    }
}

impl Outer {
    pub fn run(&self) -> Result<ExitCode> {
        outer::main(self.number, &self.namespaces).map(ExitCode::from)
    }
}

impl Init {
    pub fn run(&self) -> Result<ExitCode> {
        init::main(self.number, self.line).map(ExitCode::from)
    }
}
