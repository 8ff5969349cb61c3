//! Are images as they were pulled, and as the registry has them?

use std::process::ExitCode;

use serde_json::json;

use super::Call;
use super::args::SourceArgs;
use crate::error::{Error, Kind, Result};
use crate::fail;
use crate::image::short_id;
use crate::pull::Remote;
use crate::store::Store;
use crate::store::images::StoredImage;
use crate::store::verify::{Findings, MAX_SHOWN};

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
                self.newest(call, image)?
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
    fn newest(&self, call: &mut Call<'_>, image: &StoredImage) -> Result<Option<String>> {
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
            Ok(remote) => Ok(Some(remote.digest().hex())),
            Err(error) if matches!(error.kind(), Kind::Interrupted(_)) => Err(error),
            Err(error) => {
                call.out.note(error.to_string());
                Ok(None)
            }
        }
    }
}
