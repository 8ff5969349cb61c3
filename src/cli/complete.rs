//! Answers to a shell that asks what a word may become: verbs and options from the definition of the
//! command line, containers and images from the host. The shell's part is what "completion" prints.

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use clap::{Arg, Command};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, ValueCompleter};
use clap_complete::env::Shells;

use crate::config::Config;
use crate::deployment;
use crate::interrupt::Interrupt;
use crate::store::images::image_names;

/// The variable that asks, and names the shell.
pub const VARIABLE: &str = "ATOMIC_RS_COMPLETE";

/// Answer, if that is what we were called for.
pub fn answer(words: &[OsString]) -> Option<ExitCode> {
    let shell = std::env::var(VARIABLE).ok()?;
    let shells = Shells::builtins();
    let completer = shells.completer(&shell)?;
    let words = words.iter().skip_while(|word| *word != "--").skip(1);
    let words: Vec<OsString> = words.cloned().collect();
    let (_, before) = words.split_last()?;
    let mut command = with_names(super::definition(), before);
    command.build();
    let here = std::env::current_dir().ok();
    // Whoever pressed a key wants no message: no answer says that there is none.
    let answered =
        completer.write_complete(&mut command, words, here.as_deref(), &mut std::io::stdout());
    Some(if answered.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Which names an argument takes, by how it is shown in the help text.
#[derive(Debug, Clone)]
struct Names {
    containers: bool,
    images: bool,
    /// Where a name is followed by a command: the words before the one to complete.
    before: Option<Vec<OsString>>,
}

fn with_names(command: Command, before: &[OsString]) -> Command {
    command
        .mut_args(|arg| match names(&arg, before) {
            Some(names) => arg.add(ArgValueCompleter::new(names)),
            None => arg,
        })
        .mut_subcommands(|verb| with_names(verb, before))
}

fn names(arg: &Arg, before: &[OsString]) -> Option<Names> {
    let shown = arg.get_value_names()?.first()?.as_str();
    let name = shown.trim_end_matches(" [COMMAND]");
    let (containers, images) = match name {
        "NAME" => (true, false),
        "IMAGE" => (false, true),
        "NAME|IMAGE" => (true, true),
        _ => return None,
    };
    Some(Names {
        containers,
        images,
        before: arg.is_trailing_var_arg_set().then(|| before.to_owned()),
    })
}

impl ValueCompleter for Names {
    fn complete(&self, current: &OsStr) -> Vec<CompletionCandidate> {
        let Some(config) = Interrupt::listen()
            .and_then(Config::load)
            .ok()
            .filter(|_| current.to_str().is_some())
        else {
            return Vec::new();
        };
        let mut names: Vec<String> = Vec::new();
        if self.containers {
            let installed = deployment::installed(&config).unwrap_or_default();
            names.extend(installed.iter().map(ToString::to_string));
        }
        if self.images {
            names.extend(image_names(&config));
        }
        // A name is there already, and this word belongs to the command after it.
        let before = self.before.as_deref().unwrap_or_default();
        if names.iter().any(|name| before.contains(&name.into())) {
            return Vec::new();
        }
        let current = current.to_string_lossy();
        names
            .into_iter()
            .filter(|name| name.starts_with(&*current))
            .map(CompletionCandidate::new)
            .collect()
    }
}
