//! What a package says of others: names, versions, how they compare.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Format;
use crate::error::{Error, Kind, Result};
use crate::fail;

/// How a version is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Comparator {
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `=`
    Equal,
    /// `>=`
    GreaterOrEqual,
    /// `>`
    Greater,
}

impl Comparator {
    fn of(sign: &str) -> Option<Self> {
        Some(match sign {
            "<" | "<<" => Self::Less,
            "<=" => Self::LessOrEqual,
            "=" | "==" => Self::Equal,
            ">=" => Self::GreaterOrEqual,
            ">" | ">>" => Self::Greater,
            _ => return None,
        })
    }

    /// In the words of `dpkg --compare-versions`.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Less => "lt",
            Self::LessOrEqual => "le",
            Self::Equal => "eq",
            Self::GreaterOrEqual => "ge",
            Self::Greater => "gt",
        }
    }

    fn sign(self) -> &'static str {
        match self {
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Equal => "=",
            Self::GreaterOrEqual => ">=",
            Self::Greater => ">",
        }
    }
}

/// Another package, or what one provides, maybe in some versions only. It becomes a word of the host's
/// package managers, so nothing but names and versions passes for one: no option, no macro, no address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relation {
    /// Its name.
    pub name: String,
    /// Its versions; nothing: all.
    pub version: Option<(Comparator, String)>,
}

/// `NAME`, or `NAME >= VERSION`.
impl FromStr for Relation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let at = text.find(['<', '>', '=', ' ']).unwrap_or(text.len());
        let (name, rest) = text.split_at(at);
        let rest = rest.trim();
        let digits = rest.trim_start_matches(['<', '>', '=']);
        let version = digits.trim();
        let comparator = Comparator::of(&rest[..rest.len() - digits.len()]);
        let understood = match comparator {
            Some(_) => is_name(name) && is_version(version),
            None => is_name(name) && rest.is_empty(),
        };
        if !understood {
            fail!(
                Kind::Invalid,
                "\"{}\" is not NAME or NAME >= VERSION",
                text.escape_debug()
            );
        }
        Ok(Self {
            name: name.to_owned(),
            version: comparator.map(|comparator| (comparator, version.to_owned())),
        })
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match &self.version {
            None => Ok(()),
            Some((comparator, version)) => write!(f, " {} {version}", comparator.sign()),
        }
    }
}

impl Relation {
    /// A package by its name alone.
    pub fn any(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: None,
        }
    }

    /// As a field of Debian's has it: `NAME (>= VERSION)`.
    pub(super) fn as_deb(&self) -> String {
        match &self.version {
            None => self.name.clone(),
            Some((comparator, version)) => {
                let sign = match comparator {
                    Comparator::Less => "<<",
                    Comparator::Greater => ">>",
                    other => other.sign(),
                };
                format!("{} ({sign} {version})", self.name)
            }
        }
    }

    /// Refuse what the format has no such name for, and what would make accounts.
    pub(super) fn check(&self, format: Format) -> Result<()> {
        let name = &self.name;
        let possible = match format {
            Format::Rpm => !name.starts_with("user(") && !name.starts_with("group("),
            // Source: Debian policy 5.6.1.
            Format::Deb => name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c)),
        };
        if !possible {
            fail!(
                Kind::Invalid,
                "\"{name}\" is no name for a relation of a {format}"
            );
        }
        Ok(())
    }
}

/// True for the name of a package, of a file, or of what a package provides.
pub(super) fn is_name(text: &str) -> bool {
    let first = text.chars().next();
    first.is_some_and(|c| c.is_ascii_alphanumeric() || "/_".contains(c))
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "+-._~:()/".contains(c))
        && !text.contains("://")
        && ![".rpm", ".deb"].iter().any(|end| text.ends_with(end))
}

/// True for a version, with or without an epoch and a release.
pub(super) fn is_version(text: &str) -> bool {
    let first = text.chars().next();
    first.is_some_and(|c| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "+-._~:^".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relations_are_names_with_or_without_versions() {
        for (text, shown) in [
            ("a", "a"),
            ("b>=1.2 ", "b >= 1.2"),
            ("libc.so.6(GLIBC_2.4)", "libc.so.6(GLIBC_2.4)"),
            ("d = 1:3-4", "d = 1:3-4"),
            ("/bin/sh", "/bin/sh"),
            ("e << 4", "e < 4"),
        ] {
            assert_eq!(text.parse::<Relation>().unwrap().to_string(), shown);
        }
        for bad in [
            "",
            "a b",
            "a >=",
            ">= 1",
            "a => 1",
            "a$(x)",
            "a >= 1 2",
            "--eval=%(touch /x)",
            "-y",
            "%{x}",
            "https://evil.example/x",
            "/tmp/evil.rpm",
            "a >= -x",
            "a\nb",
        ] {
            assert!(bad.parse::<Relation>().is_err(), "{bad}");
        }
        assert!(Relation::any("libc.so.6(X)").check(Format::Deb).is_err());
        assert!(Relation::any("user(x)").check(Format::Rpm).is_err());
        assert_eq!("a > 1".parse::<Relation>().unwrap().as_deb(), "a (>> 1)");
    }
}
