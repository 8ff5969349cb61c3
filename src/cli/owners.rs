use std::process::ExitCode;

use camino::Utf8PathBuf;

use crate::deployment::owners;
use crate::error::Result;

/// Write an owner layer, as root of a user namespace: the program calls itself for this
#[derive(Debug, clap::Args)]
pub struct OwnerLayer {
    target: Utf8PathBuf,
    rootfs: Utf8PathBuf,
}

impl OwnerLayer {
    pub fn run(&self) -> Result<ExitCode> {
        owners::write(&self.target, &self.rootfs, std::io::stdin().lock())?;
        Ok(ExitCode::SUCCESS)
    }
}
