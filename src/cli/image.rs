//! Verbs on single images: tag, info, version, verify, update.

use std::process::ExitCode;

use serde_json::json;

use super::Call;
use super::args::{ChangeArgs, SourceArgs};
use crate::command::{Child, find_program};
use crate::container::{Outcome, template_variables};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::image::{Reference, Transport, short_id};
use crate::pull::Remote;
use crate::safefs::Files as _;
use crate::store::images::StoredImage;
use crate::store::verify::{Findings, MAX_SHOWN};
use crate::store::{ImageTree, Store};
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

/// Show the help that an image brings: its help.1 or README.md
#[derive(Debug, clap::Args)]
pub struct Help {
    /// Stored image
    #[arg(value_name = "IMAGE")]
    image: String,
    #[arg(long, hide = true)]
    storage: Option<String>,
}

/// Show the help of the program, of a verb, or that which an image brings
#[derive(Debug, clap::Args)]
pub struct HelpOf {
    /// Verb, or stored image
    #[arg(value_name = "VERB|IMAGE")]
    image: Option<String>,
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

#[allow(clippy::struct_excessive_bools)] // one flag each
/// Read every object of images again, and ask the registry whether it has a newer one; exit 1 if
/// anything is damaged or differs
#[derive(Debug, clap::Args)]
pub struct VerifyImage {
    /// Stored image
    #[arg(value_name = "IMAGE")]
    image: Option<String>,
    /// All of them
    #[arg(short, long)]
    all: bool,
    /// Do not read the objects
    #[arg(long)]
    no_validate: bool,
    /// Do not ask the registry
    #[arg(long)]
    offline: bool,
    /// Show images without differences as well
    #[arg(short, long)]
    verbose: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: SourceArgs,
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

/// No help is longer.
const MAX_HELP_BYTES: u64 = 1024 * 1024;

impl Help {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let (store, image) = find(call, &self.image)?;
        let files = ImageTree::open(store.repo(), &store.image_tree(&image)?)?;
        if let Some(page) = files.read("help.1", MAX_HELP_BYTES)? {
            if find_program("man").is_some() {
                let file = tempfile::NamedTempFile::new()
                    .and_then(|file| std::fs::write(file.path(), &page).map(|()| file))
                    .context(|| "cannot write a temporary file".into())?;
                let man = Child::new("man").arg("--local-file").arg(file.path());
                return Ok(super::run::passed_on(man.status()?));
            }
            return print_safely(call, &page);
        }
        if let Some(text) = files.read("README.md", MAX_HELP_BYTES)? {
            return print_safely(call, &text);
        }
        fail!(Kind::NotFound, "There is no help for {}.", self.image)
    }
}

impl HelpOf {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        if let Some(verb) = &self.image
            && let Some(command) = super::definition().find_subcommand_mut(verb)
        {
            let help = command.render_long_help().to_string();
            call.out.line(help.trim_end())?;
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(image) = self.image {
            return Help {
                image,
                storage: None,
            }
            .run(call);
        }
        let help = super::definition().render_help().to_string();
        call.out.line(help.trim_end())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Print an image's text without what would steer the terminal.
fn print_safely(call: &mut Call<'_>, text: &[u8]) -> Result<ExitCode> {
    let text: String = String::from_utf8_lossy(text)
        .chars()
        .filter(|c| !c.is_control() || matches!(c, '\n' | '\t'))
        .collect();
    call.out.line(text.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

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

impl VerifyImage {
    /// What is to be verified, unless it is all.
    pub fn name(&self) -> Option<&str> {
        self.image.as_deref().filter(|_| !self.all)
    }

    /// True if JSON is wanted.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// True if something is said that means nothing for containers.
    pub fn has_image_options(&self) -> bool {
        self.no_validate || self.offline || self.verbose
    }

    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        if self.all && self.image.is_some() {
            fail!(
                Kind::Usage,
                "Incompatible options specified.  --all doesn't support an image name"
            );
        }
        let Some(store) = Store::open_existing(call.config)? else {
            fail!(Kind::NotFound, "there are no images");
        };
        let images = match &self.image {
            Some(image) => vec![store.find_one(image)?],
            None if self.all => store.inventory()?.images,
            None => fail!(Kind::Usage, "Please specify the image name"),
        };
        let mut shown = Vec::new();
        let mut bad = Vec::new();
        for image in &images {
            let findings = if self.no_validate {
                Findings::default()
            } else {
                store.verify_image(image)?
            };
            let damage = findings.lines();
            if !findings.relabelled.is_empty() {
                call.out.note(format!(
                    "{}: {} files have another SELinux label than when they were stored",
                    image.name,
                    findings.relabelled.len()
                ));
            }
            for line in damage.iter().take(MAX_SHOWN) {
                call.out.note(format!("{}: {line}", image.name));
            }
            if damage.len() > MAX_SHOWN {
                call.out.note(format!(
                    "{}: and {} more",
                    image.name,
                    damage.len() - MAX_SHOWN
                ));
            }
            let remote = if self.offline {
                None
            } else {
                self.newest(call, image)
            };
            let differs = remote.as_ref().is_some_and(|id| *id != image.id());
            if differs || !damage.is_empty() || !findings.relabelled.is_empty() {
                bad.push(image.name.clone());
            }
            shown.push((image, damage, remote, differs, findings.relabelled));
        }
        if self.json {
            let rows: Vec<_> = shown
                .iter()
                .map(|(image, damage, remote, differs, relabelled)| {
                    json!({"name": image.name, "id": image.id(), "remote_id": remote,
                           "differs": differs, "damage": damage, "relabelled": relabelled})
                })
                .collect();
            call.out.json(&json!({"version": 1, "images": rows}))?;
        } else {
            let short = |id: &str| short_id(id).to_owned();
            let rows: Vec<Vec<String>> = shown
                .iter()
                .filter(|(_, damage, _, differs, relabelled)| {
                    self.verbose || *differs || !damage.is_empty() || !relabelled.is_empty()
                })
                .map(|(image, damage, remote, differs, relabelled)| {
                    vec![
                        image.name.clone(),
                        short(&image.id()),
                        remote.as_deref().map(short).unwrap_or_default(),
                        match (damage.is_empty(), differs) {
                            (false, _) => "DAMAGED",
                            (true, true) => "YES",
                            (true, false) if !relabelled.is_empty() => "LABELS",
                            (true, false) => "NO",
                        }
                        .to_owned(),
                    ]
                })
                .collect();
            if !rows.is_empty() {
                call.out.table(
                    &[
                        ("NAME", 20),
                        ("LOCAL VERSION", 13),
                        ("REMOTE VERSION", 14),
                        ("DIFFERS", 7),
                    ],
                    &rows,
                    true,
                    true,
                    0,
                )?;
            }
        }
        if bad.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        Err(Error::new(
            Kind::Invalid,
            format!(
                "not as in the registry: {}\n\"atomic-rs pull\" fetches what is damaged or newer",
                bad.join(" ")
            ),
        ))
    }

    /// The id the registry has for the same name; nothing where it cannot be asked.
    fn newest(&self, call: &mut Call<'_>, image: &StoredImage) -> Option<String> {
        let from = image.source.as_deref().unwrap_or(&image.name);
        let asked = self.source.reference(from).and_then(|reference| {
            if reference.is_unqualified() {
                fail!(
                    Kind::NotFound,
                    "Image {} not fully qualified: skipping",
                    image.name
                );
            }
            let access = self
                .source
                .access()
                .or_platform(image.platform.as_deref())?;
            Remote::open(call.config, &reference, &access)
        });
        match asked {
            Ok(remote) => Some(remote.digest().hex()),
            Err(error) => {
                call.out.note(error.to_string());
                None
            }
        }
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
