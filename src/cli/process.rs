//! Arguments of verbs that run something in a container.

use camino::Utf8PathBuf;
use clap::Args;

use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::runtime::mounts::{Volume, parse_volume};

/// The environment of what is run.
#[derive(Debug, Clone, Default, Args)]
pub struct EnvArgs {
    /// Set an environment variable; NAME alone takes its value from here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read environment variables from a file of NAME=VALUE lines
    #[arg(long, value_name = "FILE")]
    env_file: Vec<Utf8PathBuf>,
}

/// What is run, and what it sees of the host.
#[derive(Debug, Clone, Default, Args)]
pub struct ProcessArgs {
    #[command(flatten)]
    pub env: EnvArgs,
    /// Mount a host path in the container
    #[arg(short = 'v', long, value_name = "SRC:DST[:ro|:rw]")]
    volume: Vec<String>,
    /// Run this in place of the image's entrypoint: a program, or a JSON array of words
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
}

impl EnvArgs {
    /// `NAME=VALUE`; those of the command line come last, and so win.
    pub fn list(&self) -> Result<Vec<String>> {
        let mut env = Vec::new();
        for file in &self.env_file {
            let text = std::fs::read_to_string(file).context(|| format!("cannot read {file}"))?;
            for line in text.lines().map(str::trim) {
                if !line.is_empty() && !line.starts_with('#') {
                    env.extend(variable(line)?);
                }
            }
        }
        for text in &self.env {
            env.extend(variable(text)?);
        }
        Ok(env)
    }
}

impl ProcessArgs {
    /// Binds.
    pub fn volumes(&self) -> Result<Vec<Volume>> {
        self.volume.iter().map(|text| parse_volume(text)).collect()
    }

    /// The words in place of the image's entrypoint; none at all if it is to go.
    pub fn entrypoint(&self) -> Result<Option<Vec<String>>> {
        Ok(match self.entrypoint.as_deref() {
            None => None,
            Some("") => Some(Vec::new()),
            Some(text) if text.starts_with('[') => {
                Some(serde_json::from_str(text).kind(Kind::Usage, || {
                    "--entrypoint is not a JSON array of words".into()
                })?)
            }
            Some(program) => Some(vec![program.to_owned()]),
        })
    }
}

/// `NAME=VALUE`, or `NAME` with the value it has here; nothing if it has none.
fn variable(text: &str) -> Result<Option<String>> {
    let name = text.split('=').next().unwrap_or_default();
    if name.is_empty() || name.contains(char::is_whitespace) || text.contains('\0') {
        fail!(
            Kind::Usage,
            "\"{text}\" is not an environment variable: expected NAME[=VALUE]"
        );
    }
    Ok(if text.contains('=') {
        Some(text.to_owned())
    } else {
        std::env::var(name)
            .ok()
            .map(|value| format!("{name}={value}"))
    })
}
