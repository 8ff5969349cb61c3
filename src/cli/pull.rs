use std::process::ExitCode;

use super::Call;
use super::args::{ChangeArgs, SourceArgs};
use crate::error::Result;
use crate::store::Store;
use crate::transaction::Host;

const IMAGE_FORMS: &str = "\
The image to pull:
  NAME, docker://NAME             from a registry: [REGISTRY/]REPOSITORY[:TAG][@DIGEST]
  http:NAME                       the same without verified TLS
  dockertar:/PATH                 from an archive of \"docker save\"
  docker-archive:PATH[:NAME]      one image of such an archive
  oci:/PATH[:TAG], oci:./PATH     from an OCI layout (\"oci:\" and a name means a registry)
  oci-archive:PATH[:TAG]          from an archive of a layout
  dir:PATH                        from a directory of skopeo's
  docker:NAME                     from the docker daemon
  containers-storage:NAME         from podman's store";

/// Bring an image into the store
#[derive(Debug, clap::Args)]
pub struct Pull {
    /// The image to pull
    #[arg(long_help = IMAGE_FORMS)]
    image: String,
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    source: SourceArgs,
}

impl Pull {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let reference = self.source.reference(&self.image)?;
        if self.change.is_dry() {
            let store = Store::open(call.config)?;
            let outcome = self.source.preview(call, &store, &reference, None)?;
            return self.change.finish(call, &Host::new(call.config), &outcome);
        }
        let pulled = self
            .source
            .open_and_pull(call, &reference)
            .map_err(|error| error.within("Failed"))?;
        super::export::tell_pulled(call, &pulled, self.change.is_json())?;
        Ok(ExitCode::SUCCESS)
    }
}
