//! systemd-tmpfiles, executed.

use camino::{Utf8Path, Utf8PathBuf};

use crate::command::{Child, find_program};
use crate::error::Result;

/// Where the program is, for unit files.
pub fn program() -> String {
    find_program("systemd-tmpfiles").map_or_else(
        || "/usr/bin/systemd-tmpfiles".to_owned(),
        |path| path.to_string_lossy().into_owned(),
    )
}

/// Create what a tmpfiles.d file says.
pub fn create(file: &Utf8Path) -> Result<()> {
    Child::new("systemd-tmpfiles")
        .args(["--create", file.as_str()])
        .run()
        .map(|_| ())
}

/// Create what `text`, in tmpfiles.d(5) syntax, says.
pub fn create_text(text: &str) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    Child::new("systemd-tmpfiles")
        .args(["--create", "-"])
        .input(text.as_bytes())
        .run()
        .map(|_| ())
}

/// Remove what `text`, in tmpfiles.d(5) syntax, says.
pub fn remove(text: &str) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    Child::new("systemd-tmpfiles")
        .args(["--remove", "-"])
        .input(text.as_bytes())
        .run()
        .map(|_| ())
}

/// The lines of a tmpfiles.d file that speak of paths below `directory`: only there may a removal
/// happen that cannot be undone.
pub fn lines_below(text: &str, directory: &Utf8Path) -> String {
    let mut out = String::new();
    for line in text.lines() {
        if path_of(line).is_some_and(|path| path.starts_with(directory) && path != directory) {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// The directories that the lines of a tmpfiles.d file create.
pub fn directories(text: &str) -> Vec<Utf8PathBuf> {
    text.lines()
        .filter(|line| line.starts_with(['d', 'D']))
        .filter_map(path_of)
        .collect()
}

fn path_of(line: &str) -> Option<Utf8PathBuf> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let path = line.split_whitespace().nth(1)?.trim_matches('"');
    // A specifier or an escape could lead anywhere, `..` too.
    let plain = path.starts_with('/')
        && !path.contains(['%', '\\'])
        && !path.split('/').any(|part| part == "..");
    plain.then(|| path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_below_the_directory_are_kept() {
        let text = "# x\nd /run/a 0700\nD /var/lib/a\nd /run/../etc 0700\nd /run/%m 0700\nR /run/b/*\nd /run\n";
        assert_eq!(
            lines_below(text, "/run".into()),
            "d /run/a 0700\nR /run/b/*\n"
        );
        assert_eq!(directories(text), ["/run/a", "/var/lib/a", "/run"]);
    }
}
