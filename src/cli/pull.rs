use std::process::ExitCode;

use super::Call;
use super::args::SourceArgs;
use crate::error::Result;
use crate::store::Store;

/// Bring an image into the store
#[derive(Debug, clap::Args)]
pub struct Pull {
    #[command(flatten)]
    source: SourceArgs,
    /// Image: NAME, <http:NAME>, docker-archive:PATH, <oci:/PATH>[:TAG], oci-archive:PATH, dir:PATH, containers-storage:NAME, docker:NAME
    image: String,
}

impl Pull {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let reference = self.source.reference(&self.image)?;
        let store = Store::open(call.config)?;
        let pulled = self
            .source
            .pull(call, &store, &reference)
            .map_err(|error| error.within("Failed"))?;
        call.out
            .line(format!("{} {}", pulled.name, pulled.digest))?;
        Ok(ExitCode::SUCCESS)
    }
}
