use std::process::ExitCode;

use super::args::{ChangeArgs, SetArgs, SourceArgs};
use super::{Call, ONLY_ROOT, require_root};
use crate::container::{self, Outcome};
use crate::deployment::{ContainerName, Info, Paths};
use crate::error::{Error, Kind, Result};
use crate::image::Reference;
use crate::store::Store;
use crate::transaction::Host;

/// Update a container to the newest image of its name, or to another image
#[derive(Debug, clap::Args)]
pub struct Update {
    /// Installed container
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    set: SetArgs,
    /// Move to another image
    #[arg(long, value_name = "IMAGE")]
    rebase: Option<String>,
    /// Pull the image first
    #[arg(long, overrides_with = "no_pull")]
    pull: bool,
    /// Use what the store has
    #[arg(long, overrides_with = "pull")]
    no_pull: bool,
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    source: SourceArgs,
}

impl Update {
    pub fn run(self, call: &mut Call<'_>, pulls: bool) -> Result<ExitCode> {
        let name: ContainerName = self.name.parse()?;
        let values = self.set.values()?;
        let rebase = self
            .rebase
            .as_deref()
            .map(|image| self.source.reference(image))
            .transpose()?;
        require_root(ONLY_ROOT)?;
        let paths = Paths::new(call.config, &name);
        let slot = paths.current()?.ok_or_else(|| {
            Error::new(
                Kind::NotFound,
                format!("System container '{name}' is not installed"),
            )
        })?;
        let host = Host::new(call.config);
        host.manager()?;
        if self.change.is_dry() {
            call.out
                .note("the registry is not asked: this compares with what the store has");
        }
        let pulls = (pulls || self.pull) && !self.no_pull && !self.change.is_dry();
        let store = Store::open(call.config)?;
        let image = match &rebase {
            Some(reference) if pulls => {
                let pulled = self.source.pull(call, &store, reference)?;
                Some((pulled.name.to_string(), reference.to_string()))
            }
            Some(reference) if self.change.is_dry() => {
                let known = match &reference.name {
                    Some(name) => store.image(&name.to_string())?,
                    None => None,
                };
                match known {
                    Some(image) => Some((image.name, reference.to_string())),
                    None => return self.change.would_pull(call, reference),
                }
            }
            Some(reference) => {
                let stored = self.source.ensure(call, &store, reference)?;
                Some((stored, reference.to_string()))
            }
            None => {
                if pulls {
                    let info = Info::read(&paths.slot(slot))?;
                    let source = info.source.as_deref().unwrap_or(&info.image);
                    let reference: Reference = self.source.reference(source)?;
                    self.source.pull(call, &store, &reference)?;
                }
                None
            }
        };
        drop(store);
        let request = container::Update {
            name,
            values,
            image,
        };
        match container::update(&host, &request)? {
            Outcome::Nothing(why) => self.change.nothing(call, &why),
            Outcome::Change(change) => self.change.show_or_apply(call, &host, &change),
        }
    }
}
