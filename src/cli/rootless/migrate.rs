use std::process::ExitCode;

use camino::Utf8PathBuf;
use serde_json::json;

use super::super::Call;
use crate::error::{Kind, Result};
use crate::fail;
use crate::rootless::migrate::{self, Outcome};
use crate::store::Store;

/// Bring in what udocker has: images, containers and logins; nothing there is changed
#[derive(Debug, clap::Args)]
pub struct Migrate {
    /// udocker's directory, if not $UDOCKER_DIR or ~/.udocker
    directory: Option<Utf8PathBuf>,
    /// Print what became of each thing as JSON
    #[arg(long)]
    json: bool,
}

impl Migrate {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let directory = match self.directory {
            Some(directory) => directory,
            None => usual()?,
        };
        let store = Store::open(call.config)?;
        let mut failed = 0;
        let mut documents = Vec::new();
        let (config, out) = (call.config, &mut call.out);
        migrate::migrate(config, &store, &directory, |item| {
            let (word, reason) = match &item.outcome {
                Outcome::Moved => ("brought in", None),
                Outcome::There => ("here already", None),
                Outcome::Failed(error) => ("failed", Some(error.to_string())),
            };
            failed += usize::from(reason.is_some());
            if self.json {
                documents.push(json!({
                    "kind": item.kind, "name": item.name, "outcome": word, "reason": reason,
                }));
                return Ok(());
            }
            let line = format!("{} {}: {word}", item.kind, item.name);
            match reason {
                Some(reason) => {
                    out.note(format!("{line}: {reason}"));
                    Ok(())
                }
                None => out.line(line),
            }
        })?;
        if self.json {
            call.out.json(&documents.into())?;
        }
        if failed > 0 {
            fail!(Kind::Failed, "{failed} could not be brought in");
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn usual() -> Result<Utf8PathBuf> {
    let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let below_home = || Some(Utf8PathBuf::from(env("HOME")?).join(".udocker"));
    match env("UDOCKER_DIR")
        .map(Utf8PathBuf::from)
        .or_else(below_home)
    {
        Some(directory) => Ok(directory),
        None => fail!(Kind::Usage, "name udocker's directory"),
    }
}
