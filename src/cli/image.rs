//! Verbs on single images: tag, info, version, update.

use std::process::ExitCode;

use serde_json::json;

use super::Call;
use super::args::{ChangeArgs, SourceArgs};
use crate::container::{Outcome, exported_files, template_variables};
use crate::error::{Kind, Result};
use crate::fail;
use crate::image::{Reference, Transport, short_id};
use crate::store::Store;
use crate::store::images::StoredImage;
use crate::transaction::Host;
use crate::transport::trust::Policy;

/// Give an image another name
#[derive(Debug, clap::Args)]
pub struct Tag {
    /// Stored image
    #[arg(value_name = "IMAGE")]
    source: String,
    /// The name it gets as well
    #[arg(value_name = "NEW-NAME")]
    target: String,
    #[command(flatten)]
    change: ChangeArgs,
    #[arg(long, hide = true)]
    storage: Option<String>,
}

/// Show an image's labels and the variables of its templates
#[derive(Debug, clap::Args)]
pub struct ImageInfo {
    /// Stored image
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[arg(long, hide = true)]
    storage: Option<String>,
}

/// Show the version of an image, by its labels or its id
#[derive(Debug, clap::Args)]
pub struct Version {
    /// Stored image
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[arg(long, hide = true)]
    storage: Option<String>,
}

/// Pull images again
#[derive(Debug, clap::Args)]
pub struct UpdateImage {
    /// Stored image
    #[arg(value_name = "IMAGE")]
    image: Option<String>,
    /// All of them
    #[arg(short, long)]
    all: bool,
    #[arg(short, long, hide = true)]
    force: bool,
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    source: SourceArgs,
}

impl Tag {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let target: Reference = self.target.parse()?;
        let name = target.fallback_name()?;
        let (store, image) = find(call, &self.source)?;
        let known = store.image(&name.to_string())?;
        let steps: Vec<String> = match known {
            Some(known) if known.commit == image.commit => Vec::new(),
            Some(known) => vec![format!("name {} {name}, not {}", image.id(), known.id())],
            None => vec![format!("name {} {name}", image.id())],
        };
        if let Some(code) = self.change.told(call, "tag", &steps)? {
            return Ok(code);
        }
        store.tag(&image, &name)?;
        self.change.done(call, "tag", &steps)
    }
}

impl ImageInfo {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let (store, image) = find(call, &self.image)?;
        let config = store.image_config(&image)?;
        let variables = template_variables(&store, &image)?;
        let host_files = exported_files(&store, &image)?;
        let from = image.source.as_deref().unwrap_or(&image.name);
        // A policy that cannot be read is no reason to hide the rest.
        let trust = Policy::load(call.config)
            .and_then(|policy| Ok(policy.rule_for(&from.parse()?)))
            .map_err(|error| call.out.note(error.to_string()))
            .ok();
        if self.json {
            call.out.json(&json!({
                "version": 1,
                "name": image.name,
                "id": image.id(),
                "labels": config.config.labels,
                "host_files": host_files,
                "policy": trust.map(|trust| json!({
                    "type": trust.kind, "transport": trust.transport,
                    "scope": trust.scope, "keys": trust.keys,
                })),
                "variables": variables.iter().map(|variable| json!({
                    "name": variable.name,
                    "default": variable.default,
                    "set_by_host": variable.set_by_host,
                })).collect::<Vec<_>>(),
            }))?;
            return Ok(ExitCode::SUCCESS);
        }
        call.out.line(format!("Image Name: {}", image.name))?;
        for (key, value) in &config.config.labels {
            call.out.line(format!("{key}: {value}"))?;
        }
        let (with, without): (Vec<_>, Vec<_>) = variables
            .iter()
            .partition(|variable| variable.default.is_some() || variable.set_by_host);
        for (heading, variables) in [
            (
                "Template variables with default value, but overridable with --set:",
                with,
            ),
            (
                "Template variables that has no default value, and must be set with --set:",
                without,
            ),
        ] {
            if variables.is_empty() {
                continue;
            }
            call.out.line("\n")?;
            call.out.line(heading)?;
            for variable in variables {
                let value = match &variable.default {
                    _ if variable.set_by_host => "{SET_BY_OS}",
                    Some(value) => value,
                    None => "{DEF_VALUE}",
                };
                call.out.line(format!("{}: {value}", variable.name))?;
            }
        }
        if !host_files.is_empty() {
            call.out.line("\nFiles for the host:")?;
            for path in &host_files {
                call.out.line(path)?;
            }
        }
        if let Some(trust) = trust {
            let words: Vec<String> = [trust.kind].into_iter().chain(trust.keys).collect();
            call.out
                .line(format!("\nSignature policy: {}", words.join(" ")))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What a dry run says of an image that the registry has a newer one of.
const NOT_UPDATED: &str = "Not updated";

impl Version {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let (store, image) = find(call, &self.image)?;
        let version = version(&store, &image)?;
        let tags: Vec<String> = store
            .inventory()?
            .images
            .into_iter()
            .filter(|other| other.id() == image.id() && other.name != image.name)
            .map(|other| other.name)
            .collect();
        if self.json {
            call.out.json(&json!({
                "version": 1, "name": image.name, "image_version": version,
                "id": image.id(), "tags": tags,
            }))?;
            return Ok(ExitCode::SUCCESS);
        }
        let id = image.id();
        let mut rows = vec![vec![image.name.clone(), version, short_id(&id).to_owned()]];
        rows.extend(
            tags.into_iter()
                .map(|tag| vec![format!("  Tag: {tag}"), String::new(), String::new()]),
        );
        call.out.table(
            &[("IMAGE NAME", 12), ("VERSION", 9), ("IMAGE ID", 12)],
            &rows,
            true,
            true,
            0,
        )?;
        Ok(ExitCode::SUCCESS)
    }
}

impl UpdateImage {
    /// What "update" of the original means where no container is named.
    pub fn of(image: Option<String>, force: bool, change: ChangeArgs, source: SourceArgs) -> Self {
        Self {
            all: image.is_none(),
            image,
            force,
            change,
            source,
        }
    }

    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        if self.force {
            fail!(Kind::Usage, "--force is not supported by ostree images");
        }
        if self.all == self.image.is_some() {
            fail!(Kind::Usage, "Please specify the image name, or --all");
        }
        let store = Store::open(call.config)?;
        if let Some(image) = &self.image {
            let known = if store.find(image)?.is_empty() {
                None
            } else {
                Some(store.find_one(image)?)
            };
            // A stored image goes the way it came, unless another way is typed.
            let typed_way = image.parse().is_ok_and(|reference: Reference| {
                reference.transport != (Transport::Registry { insecure: false })
            });
            let source = known
                .as_ref()
                .map(|known| known.source.as_deref().unwrap_or(&known.name))
                .filter(|_| !typed_way);
            let platform = known.as_ref().and_then(|known| known.platform.as_deref());
            let reference = self.source.reference(source.unwrap_or(image))?;
            if self.change.is_dry() {
                let outcome = self.source.preview(call, &store, &reference, platform)?;
                return self.change.finish(call, &Host::new(call.config), &outcome);
            }
            let pulled = self.source.pull(call, &store, &reference, platform)?;
            super::export::tell_pulled(call, &pulled, self.change.is_json())?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut rows = Vec::new();
        let mut failed = Vec::new();
        for image in store.inventory()?.images {
            let by_name = self.source.reference(&image.name);
            let from = image.source.as_deref().unwrap_or(&image.name);
            let reference = match (by_name, self.source.reference(from)) {
                (Ok(name), Ok(reference)) if !name.is_unqualified() => reference,
                _ => {
                    call.out.note(format!(
                        "Image {} not fully qualified: skipping",
                        image.name
                    ));
                    continue;
                }
            };
            if !self.change.is_json() {
                call.out.line(format!("Checking image {}...", image.name))?;
            }
            let platform = image.platform.as_deref();
            let pulled = if self.change.is_dry() {
                let outcome = self.source.preview(call, &store, &reference, platform);
                outcome.map(|outcome| matches!(outcome, Outcome::Nothing(_)))
            } else {
                let pulled = self.source.pull(call, &store, &reference, platform);
                pulled.map(|pulled| pulled.unchanged)
            };
            let status = match pulled {
                Ok(true) => "Updated",
                Ok(false) if self.change.is_dry() => NOT_UPDATED,
                Ok(false) => "Updated now",
                Err(error) if matches!(error.kind(), Kind::Interrupted(_)) => return Err(error),
                Err(error) => {
                    call.out.note(error.to_string());
                    failed.push(image.name.clone());
                    "Could not pull"
                }
            };
            let after = store
                .image(&image.name)?
                .map(|image| image.id())
                .unwrap_or_default();
            rows.push(vec![
                image.name.clone(),
                image.id(),
                after,
                status.to_owned(),
            ]);
        }
        if self.change.is_json() {
            let images: Vec<_> = rows
                .iter()
                .map(|row| {
                    json!({"name": row[0], "id_before": row[1], "id_after": row[2],
                           "status": row[3]})
                })
                .collect();
            call.out.json(&json!({"version": 1, "images": images}))?;
        } else {
            call.out.line("")?;
            call.out.line("SUMMARY")?;
            call.out.line("")?;
            let columns = [
                ("Image", 50),
                ("Image ID before update", 32),
                ("Image ID after update", 32),
                ("Status", 14),
            ];
            call.out.table(&columns, &rows, true, false, 0)?;
        }
        if !failed.is_empty() {
            fail!(Kind::Failed, "not updated: {}", failed.join(" "));
        }
        Ok(if rows.iter().any(|row| row[3] == NOT_UPDATED) {
            self.change.exit_code()
        } else {
            ExitCode::SUCCESS
        })
    }
}

/// The store and the one image that `name` means.
pub fn find(call: &Call<'_>, name: &str) -> Result<(Store, StoredImage)> {
    let Some(store) = Store::open_existing(call.config)? else {
        fail!(Kind::NotFound, "Cannot find image {name}.");
    };
    let image = store.find_one(name)?;
    Ok((store, image))
}

/// `Version-Release` by the labels, else the id.
fn version(store: &Store, image: &StoredImage) -> Result<String> {
    let config = store.image_config(image)?;
    let label = |name: &str| {
        [name.to_owned(), name.to_lowercase(), name.to_uppercase()]
            .iter()
            .find_map(|key| config.label(key).map(str::to_owned))
    };
    Ok(match (label("Version"), label("Release")) {
        (Some(version), Some(release)) => format!("{version}-{release}"),
        (Some(version), None) => version,
        _ => image.id(),
    })
}
