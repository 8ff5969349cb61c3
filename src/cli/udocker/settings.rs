//! udocker's settings: its configuration files, and its environment, which wins.
//!
//! Lines of the files are `key = value`, values as Python writes them; a section's head, which later versions
//! want, says nothing. Files are read as text: nothing in them is executed.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};

use crate::error::{Context as _, Error, Kind, Result};

/// What is set.
#[derive(Debug, Default)]
pub struct Settings(BTreeMap<String, String>);

/// Settings, and the variables that say the same.
const VARIABLES: [(&str, &str); 6] = [
    ("topdir", "UDOCKER_DIR"),
    ("verbose_level", "UDOCKER_LOGLEVEL"),
    ("default_execution_mode", "UDOCKER_DEFAULT_EXECUTION_MODE"),
    ("dockerio_registry_url", "UDOCKER_REGISTRY"),
    ("keystore", "UDOCKER_KEYSTORE"),
    ("use_runc_executable", "UDOCKER_USE_RUNC_EXECUTABLE"),
];

impl Settings {
    /// Those of the system, of the person, of the directory, and of the file that was named; later ones win.
    ///
    /// # Errors
    /// [`Kind::Child`] if the file that was named cannot be read.
    pub fn read(named: Option<&str>, directory: Option<&str>) -> Result<Self> {
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let own = env("HOME").map(|home| Utf8PathBuf::from(home).join(".udocker/udocker.conf"));
        let directory = directory.map(str::to_owned).or_else(|| env("UDOCKER_DIR"));
        let below = directory.map(|directory| Utf8PathBuf::from(directory).join("udocker.conf"));
        let mut out = Self::default();
        for path in [Some("/etc/udocker.conf".into()), own, below]
            .into_iter()
            .flatten()
        {
            match std::fs::read_to_string(&path) {
                Ok(text) => out.add(&text, &path),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => say!("Warning: {path} is not read: {error}"),
            }
        }
        if let Some(path) = named {
            let path = Utf8Path::new(path);
            let text = std::fs::read_to_string(path)
                .context(|| format!("cannot read the configuration {path}"))
                .map_err(|error| Error::new(Kind::Child(1), error.to_string()))?;
            out.add(&text, path);
        }
        for (key, variable) in VARIABLES {
            if let Some(value) = env(variable) {
                out.0.insert(key.to_owned(), value);
            }
        }
        Ok(out)
    }

    fn add(&mut self, text: &str, path: &Utf8Path) {
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with(['#', ';', '[']) {
                continue;
            }
            let Some((key, value)) = line.split_once('=') else {
                say!("Warning: {path} has a line that sets nothing: {line}");
                continue;
            };
            let key = key.trim().to_lowercase();
            let key = key.strip_prefix("udocker_").unwrap_or(&key);
            match literal(value) {
                Some(value) => self.0.insert(key.to_owned(), value),
                None => self.0.remove(key),
            };
        }
    }

    /// What is set, if it is something.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .get(key)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// Whether it is set to be so.
    pub fn is_on(&self, key: &str) -> bool {
        self.get(key)
            .is_some_and(|value| matches!(value, "True" | "true" | "1"))
    }

    /// The words of a list; nothing if it is none.
    pub fn list(&self, key: &str) -> Option<Vec<String>> {
        let text = self.get(key)?.strip_prefix(['[', '('])?;
        let (mut words, mut rest) = (Vec::new(), text);
        loop {
            rest = rest.trim_start_matches([' ', '\t', ',']);
            if rest.starts_with([']', ')']) {
                return Some(words);
            }
            let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
            let (word, after) = rest[1..].split_once(quote)?;
            words.push(word.to_owned());
            rest = after;
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

/// A value without its quotes; nothing if it is Python's nothing.
fn literal(text: &str) -> Option<String> {
    let text = text.trim();
    let quoted = ['"', '\''].into_iter().find_map(|quote| {
        let rest = text.strip_prefix(quote)?;
        // A comment may follow.
        rest.split_once(quote).map(|(inner, _)| inner)
    });
    match quoted {
        Some(inner) => Some(inner.to_owned()),
        None if text == "None" => None,
        None if text.starts_with(['[', '(']) => Some(text.to_owned()),
        None => Some(text.split(" #").next().unwrap_or(text).trim().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_literals_and_nothing_more() {
        let mut settings = Settings::default();
        let text = "# comment\n[DEFAULT]\nhttp_insecure = True\ntopdir='/x y' # why\nverbose_level = 5 # all\n\
            cmd = [\"/bin/sh\", '-c', \"a, b\"] # why\nlocation = None\nUDOCKER_DEFAULT_EXECUTION_MODE = P2\n\
            tmpdir = os.getenv('HOME')\n";
        settings.add(text, Utf8Path::new("test"));
        assert!(settings.is_on("http_insecure"));
        for (key, value) in [
            ("topdir", Some("/x y")),
            ("verbose_level", Some("5")),
            ("location", None),
            ("default_execution_mode", Some("P2")),
            ("tmpdir", Some("os.getenv('HOME')")),
        ] {
            assert_eq!(settings.get(key), value, "{key}");
        }
        assert_eq!(settings.list("cmd").unwrap(), ["/bin/sh", "-c", "a, b"]);
        assert_eq!(settings.list("topdir"), None);
    }
}
