//! Asking a person.

use std::io::Write as _;

use crate::error::{Context as _, Result};

/// A line of stdin.
pub fn ask(prompt: &str) -> Result<String> {
    // Who does not see it may know it.
    let _ = write!(std::io::stderr().lock(), "{prompt}");
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .context(|| "cannot read".into())?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

/// The same while a terminal does not show what is typed.
pub fn ask_unseen(prompt: &str) -> Result<String> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let stdin = std::io::stdin();
    let Ok(before) = tcgetattr(&stdin) else {
        return ask(prompt);
    };
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    let _ = tcsetattr(&stdin, OptionalActions::Flush, &silent);
    let said = ask(prompt);
    let _ = tcsetattr(&stdin, OptionalActions::Flush, &before);
    say!();
    said
}
