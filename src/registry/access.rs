//! How to reach a registry, as a person says it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::image::Platform;

/// How to reach the source of an image.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// `USER[:PASSWORD]`
    pub credentials: Option<Credentials>,
    /// A credentials file in containers-auth.json(5) format.
    pub authfile: Option<PathBuf>,
    /// Whether certificates are verified; unset means registries.conf decides.
    pub tls_verify: Option<bool>,
    /// The platform wanted of an index; unset means this machine's.
    pub platform: Option<Platform>,
}

impl Access {
    /// The same, for a source that was reached before: with the platform that was asked for then,
    /// unless another one is asked for now.
    pub fn or_platform(mut self, before: Option<&str>) -> Result<Self> {
        if self.platform.is_none() {
            self.platform = before.map(str::parse).transpose()?;
        }
        Ok(self)
    }
}

/// A user name and password. Never shown, never logged, never on a command line.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    user: String,
    password: String,
}

impl Credentials {
    /// Of these two.
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self {
            user: user.into(),
            password: password.into(),
        }
    }

    /// From a file whose first line is `USER:PASSWORD`.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .context(|| format!("cannot read the credentials in {}", path.display()))?;
        let line = text.lines().next().unwrap_or_default();
        // What stands there is not for a message.
        line.parse().map_err(|_| {
            let path = path.display();
            Error::new(
                Kind::Usage,
                format!("the first line of {path} is not USER:PASSWORD"),
            )
        })
    }

    /// The user's name.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// `USER:PASSWORD` as basic authentication has it.
    pub fn encoded(&self) -> String {
        use base64::Engine as _;
        let plain = format!("{}:{}", self.user, self.password);
        base64::engine::general_purpose::STANDARD.encode(plain)
    }

    pub(super) fn password(&self) -> &str {
        &self.password
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl FromStr for Credentials {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (user, password) = text.split_once(':').unwrap_or((text, ""));
        if user.is_empty() {
            fail!(Kind::Usage, "credentials have the form USER[:PASSWORD]");
        }
        Ok(Self::new(user, password))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_never_shown() {
        let credentials: Credentials = "user:secret:with:colons".parse().unwrap();
        assert_eq!(credentials.password(), "secret:with:colons");
        assert_eq!(format!("{credentials:?}"), "***");
        assert!(":x".parse::<Credentials>().is_err());
    }
}
