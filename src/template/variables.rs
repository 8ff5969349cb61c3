//! The variables of a container and which source wins.
//!
//! `--set` (kept across updates) > what the host says > the image's `defaultValues` > a generated
//! UUID; the forced ones always win.

use std::collections::BTreeMap;

use super::dollar::Value;
use crate::error::{Error, Kind, Result};
use crate::fail;

/// Nobody can set these.
pub const FORCED: [&str; 10] = [
    "DESTDIR",
    "NAME",
    "EXEC_START",
    "EXEC_STOP",
    "EXEC_STARTPRE",
    "EXEC_STOPPOST",
    "HOST_UID",
    "HOST_GID",
    "IMAGE_ID",
    "IMAGE_NAME",
];

/// Values made by this program in the syntax of where they are meant to stand.
const RAW: [&str; 5] = [
    "EXEC_START",
    "EXEC_STOP",
    "EXEC_STARTPRE",
    "EXEC_STOPPOST",
    "ALL_PROCESS_CAPABILITIES",
];

/// Given by the host unless `--set` says otherwise.
const HOST: [&str; 8] = [
    "RUN_DIRECTORY",
    "STATE_DIRECTORY",
    "CONF_DIRECTORY",
    "PIDFILE",
    "UUID",
    "ALL_PROCESS_CAPABILITIES",
    "RUNTIME",
    "ATOMIC",
];

/// True if this variable has a value without anybody's saying so.
pub fn is_given(name: &str) -> bool {
    FORCED.contains(&name) || HOST.contains(&name)
}

/// Names and values.
pub type Map = BTreeMap<String, String>;

/// All variables of one deployment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Variables {
    values: Map,
    user: Map,
}

impl Variables {
    /// Merge the sources; `user` is what `--set` said, now and before.
    pub fn new(defaults: &Map, host: &Map, user: &Map, forced: &Map) -> Self {
        let mut values = defaults.clone();
        for source in [host, user, forced] {
            values.extend(source.iter().map(|(k, v)| (k.clone(), v.clone())));
        }
        values
            .entry("UUID".into())
            .or_insert_with(|| uuid::Uuid::new_v4().to_string());
        Self {
            values,
            user: user.clone(),
        }
    }

    /// For `substitute`.
    pub fn look_up(&self, name: &str) -> Option<Value<'_>> {
        let value = self.values.get(name)?;
        let own = RAW.contains(&name) && !self.user.contains_key(name);
        Some(if own {
            Value::Raw(value)
        } else {
            Value::Text(value)
        })
    }

    /// The same, with those of `raw` that nobody set since pasted as they are: programs of old
    /// stored values already escaped.
    pub fn look_up_stored(&self, name: &str, raw: &Map) -> Option<Value<'_>> {
        match self.values.get(name) {
            Some(value) if raw.get(name) == Some(value) => Some(Value::Raw(value)),
            _ => self.look_up(name),
        }
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// Force one more variable.
    pub fn force(&mut self, name: &str, value: String) {
        self.values.insert(name.to_owned(), value);
    }

    /// The merged view.
    pub fn values(&self) -> &Map {
        &self.values
    }
}

/// Read `NAME=VALUE`.
pub fn parse_setting(text: &str) -> Result<(String, String)> {
    let Some((name, value)) = text.split_once('=') else {
        fail!(
            Kind::Usage,
            "Invalid value '{text}'.  Expected form NAME=VALUE"
        );
    };
    let valid = !name.is_empty()
        && name
            .bytes()
            .enumerate()
            .all(|(i, c)| c.is_ascii_alphabetic() || c == b'_' || (i > 0 && c.is_ascii_digit()));
    if !valid {
        return Err(Error::new(
            Kind::Usage,
            format!("Invalid value '{text}'.  Expected form NAME=VALUE"),
        ));
    }
    if FORCED.contains(&name) {
        fail!(Kind::Usage, "the variable {name} cannot be set");
    }
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> Map {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn precedence() {
        let variables = Variables::new(
            &map(&[
                ("A", "image"),
                ("B", "image"),
                ("UUID", "fixed"),
                ("RUN_DIRECTORY", "x"),
            ]),
            &map(&[("RUN_DIRECTORY", "/run")]),
            &map(&[("B", "user"), ("NAME", "user")]),
            &map(&[("NAME", "n")]),
        );
        assert_eq!(variables.get("A"), Some("image"));
        assert_eq!(variables.get("B"), Some("user"));
        assert_eq!(variables.get("RUN_DIRECTORY"), Some("/run"));
        assert_eq!(variables.get("NAME"), Some("n"));
        assert_eq!(variables.get("UUID"), Some("fixed"));
        let empty = Map::new();
        let generated = Variables::new(&empty, &empty, &empty, &empty);
        assert_eq!(generated.get("UUID").unwrap().len(), 36);
    }

    #[test]
    fn settings_have_the_form_name_value() {
        let secret = "0a  -";
        assert_eq!(
            parse_setting(&format!("A={secret}")).unwrap(),
            ("A".to_owned(), secret.to_owned())
        );
        assert_eq!(parse_setting("A=b=c").unwrap().1, "b=c");
        for bad in ["A", "=x", "1A=x", "A B=x", "NAME=x", ""] {
            assert!(parse_setting(bad).is_err(), "{bad}");
        }
    }
}
