use std::process::ExitCode;

use serde_json::json;

use super::Call;
use super::args::{ChangeArgs, SourceArgs};
use super::verify_image::VerifyImage;
use crate::container;
use crate::container::run::installed;
use crate::error::{Kind, Result};
use crate::fail;
use crate::store::verify::MAX_SHOWN;
use crate::transaction::Host;

/// Compare a container's deployment with what was deployed, file by file, or an image with its
/// registry; exit 1 if anything differs
#[derive(Debug, clap::Args)]
#[command(mut_arg("image", |arg| arg.value_name("NAME|IMAGE").help("Installed container, or a stored image")))]
pub struct Verify {
    #[command(flatten)]
    image: VerifyImage,
}

/// Make a container's deployment anew as it was deployed; damage in the store is healed from the
/// registry first
#[derive(Debug, clap::Args)]
pub struct Repair {
    /// Installed container
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    source: SourceArgs,
}

impl Verify {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let name = match self.image.name() {
            Some(name) => installed(call.config, name)?,
            None => None,
        };
        let Some(name) = name else {
            return self.image.run(call);
        };
        if self.image.has_image_options() {
            fail!(
                Kind::Usage,
                "--no-validate, --offline and --verbose are for images, and {name} is a container"
            );
        }
        let drift = container::verify(call.config, &name)?;
        if self.image.is_json() {
            call.out.json(&json!({
                "version": 1, "name": name, "problems": drift.problems,
                "relabelled": drift.relabelled,
            }))?;
        } else {
            let relabelled = drift.relabelled.iter();
            let relabelled = relabelled.map(|path| format!("{path} has another SELinux label"));
            let lines: Vec<String> = drift.problems.iter().cloned().chain(relabelled).collect();
            for line in lines.iter().take(MAX_SHOWN) {
                call.out.line(line)?;
            }
            if lines.len() > MAX_SHOWN {
                call.out
                    .line(format!("and {} more", lines.len() - MAX_SHOWN))?;
            }
        }
        if drift.is_none() {
            return Ok(ExitCode::SUCCESS);
        }
        if drift.problems.is_empty() {
            fail!(
                Kind::Invalid,
                "{name} is as it was deployed but for SELinux labels: files below a deployment have those of their paths in the image"
            );
        }
        fail!(
            Kind::Invalid,
            "{name} is not as it was deployed: \"atomic-rs repair {name}\" makes it so again, but for what somebody changed on the host"
        )
    }
}

impl Repair {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let name = self.name.parse()?;
        let host = Host::new(call.config);
        let change = container::repair(
            &host,
            &name,
            &self.source.access(),
            self.change.is_dry(),
            &mut call.meter(),
        )?;
        self.change.show_or_apply(call, &host, &change)
    }
}
