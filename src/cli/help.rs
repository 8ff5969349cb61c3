//! Help of the program and of images.

use std::process::ExitCode;

use super::Call;
use super::image::find;
use crate::command::{Child, find_program};
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::safefs::Files as _;
use crate::store::ImageTree;

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
