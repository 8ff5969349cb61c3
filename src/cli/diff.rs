use std::process::ExitCode;

use serde_json::json;

use super::Call;
use crate::container::run::installed;
use crate::container::{HostDiff, effects, host_diff, image_of};
use crate::error::{Kind, Result};
use crate::fail;
use crate::store::Store;
use crate::store::diff::{Change, Difference};
use crate::store::images::StoredImage;
use crate::transaction::Host;

/// Show which files differ between two images or containers
#[derive(Debug, clap::Args)]
#[command(
    after_help = "With one container: between its deployment and what the store has under its image's name, which is what \"update --no-pull\" would change."
)]
pub struct Diff {
    /// Installed container or stored image
    #[arg(value_name = "NAME|IMAGE")]
    first: String,
    /// What it is compared with
    #[arg(value_name = "NAME|IMAGE")]
    second: Option<String>,
    /// Only the paths
    #[arg(long)]
    names_only: bool,
    /// Only what the images say of themselves: ports, variables, labels, command
    #[arg(long, conflicts_with = "names_only")]
    metadata: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Diff {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let Some(store) = Store::open_existing(call.config)? else {
            fail!(Kind::NotFound, "there are no images");
        };
        let first = resolve(call, &store, &self.first)?;
        let second = match &self.second {
            Some(second) => resolve(call, &store, second)?,
            None => store.find_one(&first.name)?,
        };
        let files = if self.metadata {
            Vec::new()
        } else {
            store.diff(&store.image_tree(&first)?, &store.image_tree(&second)?)?
        };
        let config =
            effects::compare_images(&store.image_config(&first)?, &store.image_config(&second)?);
        // Only what runs here means something for this host.
        let container = installed(call.config, &self.first)?.filter(|_| self.second.is_none());
        drop(store);
        let on_host = match container {
            Some(name) if !self.metadata => host_diff(&Host::new(call.config), &name)
                .unwrap_or_else(|error| {
                    call.out.note(format!("an update would fail: {error}"));
                    HostDiff::default()
                }),
            _ => HostDiff::default(),
        };
        if self.json {
            let mark = |image: &StoredImage| json!({"name": image.name, "id": image.id()});
            call.out.json(&json!({
                "version": 1,
                "from": mark(&first),
                "to": mark(&second),
                "files": files,
                "host": on_host,
                "config": config,
            }))?;
            return Ok(ExitCode::SUCCESS);
        }
        for difference in &files {
            call.out.line(if self.names_only {
                difference.path.clone()
            } else {
                line(difference)
            })?;
        }
        for file in &on_host.files {
            call.out.line(if self.names_only {
                format!("host:{}", file.path)
            } else {
                format!("host: {} {}", file.change, file.path)
            })?;
        }
        if !self.names_only {
            if let Some(to) = on_host.package.and_then(|package| package.to) {
                call.out.line(format!("package: {to}"))?;
            }
            for line in config.lines() {
                call.out.line(line)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn line(difference: &Difference) -> String {
    let sign = match difference.change {
        Change::Added => '+',
        Change::Changed => '~',
        Change::Removed => '-',
    };
    if difference.what.is_empty() {
        return format!("{sign} {}", difference.path);
    }
    format!(
        "{sign} {} ({})",
        difference.path,
        difference.what.join(", ")
    )
}

fn resolve(call: &Call<'_>, store: &Store, text: &str) -> Result<StoredImage> {
    match installed(call.config, text)? {
        Some(name) => image_of(call.config, store, &name),
        None => store.find_one(text),
    }
}
