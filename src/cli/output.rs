//! Results on stdout, everything else on stderr; tables, confirmation, progress.

use std::io::{BufRead as _, Write as _};

use serde_json::Value;

use crate::error::{Error, Kind, Result};

/// Where words go.
#[derive(Debug, Default)]
pub struct Output {}

impl Output {
    /// One line of result.
    pub fn line(&mut self, text: impl AsRef<str>) -> Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", text.as_ref()).map_err(closed)
    }

    /// A JSON document.
    pub fn json(&mut self, value: &Value) -> Result<()> {
        self.line(serde_json::to_string_pretty(value).unwrap_or_default())
    }

    /// A remark, on stderr.
    pub fn note(&mut self, text: impl AsRef<str>) {
        say!("{}", text.as_ref());
    }

    /// A table: columns of a heading and a width; cells are cut to it unless `whole`, where the
    /// longest decides.
    pub fn table(
        &mut self,
        columns: &[(&str, usize)],
        rows: &[Vec<String>],
        heading: bool,
        whole: bool,
        indent: usize,
    ) -> Result<()> {
        let width = |index: usize| {
            let (title, width) = columns[index];
            let longest = if whole {
                rows.iter().map(|row| row[index].chars().count()).max()
            } else {
                None
            };
            width.max(longest.unwrap_or(0)).max(title.len())
        };
        let widths: Vec<usize> = (0..columns.len()).map(width).collect();
        // Written at once: a write for each of many rows would be what takes the time.
        let mut text = String::new();
        let mut add = |cells: &mut dyn Iterator<Item = &str>| {
            let mut line = " ".repeat(indent);
            for (cell, width) in cells.zip(&widths) {
                let cut: String = cell.chars().take(*width).collect();
                let padding = width - cut.chars().count();
                line.push_str(&cut);
                line.push_str(&" ".repeat(padding + 1));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        };
        if heading {
            add(&mut columns.iter().map(|(title, _)| *title));
        }
        for row in rows {
            add(&mut row.iter().map(String::as_str));
        }
        match text.strip_suffix('\n') {
            Some(lines) => self.line(lines),
            None => Ok(()),
        }
    }

    /// Ask; anything but yes is a refusal.
    pub fn confirm(&mut self, refusal: &str) -> Result<()> {
        print!("Confirm (y/N) ");
        std::io::stdout().flush().map_err(closed)?;
        let mut answer = String::new();
        std::io::stdin()
            .lock()
            .read_line(&mut answer)
            .map_err(closed)?;
        if matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
            return Ok(());
        }
        Err(Error::new(Kind::Refused, refusal))
    }
}

/// A reader that closed its end (`| head`) wants no more.
#[allow(clippy::needless_pass_by_value)]
fn closed(error: std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::BrokenPipe => Kind::Closed,
        _ => Kind::Failed,
    };
    Error::new(kind, format!("cannot write the output: {error}"))
}
