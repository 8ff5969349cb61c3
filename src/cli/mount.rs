use std::process::ExitCode;

use camino::Utf8PathBuf;

use super::Call;
use super::args::{ChangeArgs, SourceArgs};
use crate::container::mount;
use crate::container::run::installed;
use crate::error::{Kind, Result};
use crate::fail;
use crate::store::Store;

/// Mount the files of a container or an image: read-only, or with "-o rw" in a private layer
#[derive(Debug, clap::Args)]
#[command(after_help = "Without root the files are copied, and removed again by \"unmount\".")]
pub struct Mount {
    /// Mount options, separated by commas: ro, rw, nodev, nosuid, noexec, noatime and their opposites
    #[arg(short, long, value_name = "OPTIONS", value_delimiter = ',')]
    options: Vec<String>,
    /// Let the mount be seen in other mount namespaces
    #[arg(long)]
    shared: bool,
    /// Accepted for scripts written for the original, where it meant docker's running containers
    #[arg(long, hide = true)]
    live: bool,
    /// Installed container, or an image
    #[arg(value_name = "NAME|IMAGE")]
    source: String,
    /// An empty directory
    #[arg(value_name = "DIR")]
    directory: Utf8PathBuf,
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    registry: SourceArgs,
}

/// Undo "mount"
#[derive(Debug, clap::Args)]
pub struct Unmount {
    /// Where it is mounted
    #[arg(value_name = "DIR")]
    directory: Utf8PathBuf,
    #[command(flatten)]
    change: ChangeArgs,
}

impl Mount {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        if self.live {
            fail!(
                Kind::Usage,
                "Containers and images managed through OSTree do not support --live."
            );
        }
        let steps = [format!("mount {} on {}", self.source, self.directory)];
        if let Some(code) = self.change.told(call, "mount", &steps)? {
            return Ok(code);
        }
        let image = if installed(call.config, &self.source)?.is_some() {
            None
        } else {
            let store = Store::open(call.config)?;
            let image = if let Some(image) = store.find(&self.source)?.into_iter().next() {
                image
            } else {
                let reference = self.registry.reference(&self.source)?;
                self.registry.ensure(call, &store, &reference)?
            };
            Some((store, image))
        };
        let source = match &image {
            Some((_, image)) => image.name.clone(),
            None => self.source,
        };
        mount::mount(
            call.config,
            &mount::Mount {
                source,
                directory: self.directory,
                options: self.options,
                shared: self.shared,
            },
            image,
        )?;
        self.change.done(call, "mount", &steps)
    }
}

impl Unmount {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let steps = [format!("unmount {}", self.directory)];
        if let Some(code) = self.change.told(call, "unmount", &steps)? {
            return Ok(code);
        }
        mount::unmount(call.config, &self.directory)?;
        self.change.done(call, "unmount", &steps)
    }
}
