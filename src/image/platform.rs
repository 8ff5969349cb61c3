//! The platforms images are made for, in the words of Go, as the OCI image specification has them.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use crate::error::{Error, Kind, Result};
use crate::fail;

/// A platform an image is made for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// GOARCH: `amd64`, `arm64`, …
    pub architecture: String,
    /// GOOS: `linux`
    pub os: String,
    /// `v7`, `v8`, or empty.
    #[serde(default)]
    pub variant: String,
}

impl Platform {
    /// The platform of this machine.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "x86" => ("386", ""),
            "powerpc64" => ("ppc64le", ""),
            other => (other, ""),
        };
        Self {
            architecture: architecture.into(),
            os: "linux".into(),
            variant: variant.into(),
        }
    }

    /// True if what is made for this runs where `wanted` does.
    pub fn matches(&self, wanted: &Self) -> bool {
        self.os == wanted.os
            && self.architecture == wanted.architecture
            && (self.variant.is_empty()
                || wanted.variant.is_empty()
                || self.variant == wanted.variant)
    }
}

/// `OS/ARCHITECTURE[/VARIANT]`, or an architecture alone, in Go's words or the kernel's.
impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let plain = |part: &str| {
            !part.is_empty()
                && part.len() <= 32
                && part
                    .bytes()
                    .all(|c| c.is_ascii_alphanumeric() || c == b'_' || c == b'.')
        };
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [architecture] => ("linux", architecture, ""),
            [os, architecture] => (os, architecture, ""),
            [os, architecture, variant] if plain(variant) => (os, architecture, variant),
            _ => ("", "", ""),
        };
        if !plain(os) || !plain(architecture) {
            fail!(
                Kind::Usage,
                "\"{text}\" is not a platform: expected OS/ARCHITECTURE[/VARIANT], as in linux/arm64"
            );
        }
        let (architecture, variant) = match (architecture, variant) {
            ("x86_64", _) => ("amd64", variant),
            ("aarch64", _) => ("arm64", variant),
            ("armv7l" | "armhf", "") => ("arm", "v7"),
            ("i386" | "i686" | "x86", _) => ("386", variant),
            other => other,
        };
        Ok(Self {
            architecture: architecture.into(),
            os: os.into(),
            variant: variant.into(),
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_read_in_gos_words_and_the_kernels() {
        for (text, shown) in [
            ("linux/arm64", "linux/arm64"),
            ("linux/arm/v7", "linux/arm/v7"),
            ("aarch64", "linux/arm64"),
            ("x86_64", "linux/amd64"),
            ("armv7l", "linux/arm/v7"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), shown);
        }
        for bad in ["", "/", "a/b/c/d", "linux/", "a b", "linux/arm/", "--x"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_variant_counts_only_where_both_sides_name_one() {
        let platform = |text: &str| text.parse::<Platform>().unwrap();
        assert!(platform("linux/arm64/v8").matches(&platform("arm64")));
        assert!(!platform("linux/arm/v6").matches(&platform("linux/arm/v7")));
        assert!(!platform("linux/amd64").matches(&platform("arm64")));
        assert!(Platform::host().matches(&Platform::host()));
    }
}
