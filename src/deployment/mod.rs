//! One deployment on disk.
//!
//! # Format
//! `C/NAME` is a symlink to `C/NAME.0` or `C/NAME.1`. A deployment directory holds `rootfs/` (hard
//! links into the repository, or a symlink to a remote root file system), `config.json`, `info`
//! (see [`Info`]), `NAME.service`, and `tmpfiles-NAME.conf` if there is one. Names that start with a
//! dot are ours: `.NAME.S.next-ID` is a deployment being staged, `.NAME.S.old-ID` one that gave way.

mod info;
mod ledger;
pub mod owners;

use std::fmt;
use std::str::FromStr;

use camino::{Utf8Path, Utf8PathBuf};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::error::{Context as _, Error, Kind, Result};
use crate::{fail, safefs};

pub use info::{Info, Shipped};
pub use ledger::{Entry, Ledger, Policy, Verdict};

/// The name of a container: of its unit, its directories and its runtime state.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerName(String);

/// Unit file names stop at 255 bytes; ours get prefixes and suffixes.
const MAX_NAME: usize = 200;

impl ContainerName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of its unit.
    pub fn unit(&self) -> String {
        format!("{}.service", self.0)
    }
}

impl FromStr for ContainerName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let valid = text.len() <= MAX_NAME
            && text
                .bytes()
                .next()
                .is_some_and(|c| c.is_ascii_alphanumeric())
            && text
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || b"_.-".contains(&c));
        if valid {
            return Ok(Self(text.to_owned()));
        }
        let shown: String = text.chars().take(60).collect();
        Err(Error::new(
            Kind::Usage,
            format!(
                "\"{}\" is not a container name: a letter or digit, then letters, digits, . _ -, at most {MAX_NAME} in all",
                shown.escape_debug()
            ),
        ))
    }
}

impl TryFrom<String> for ContainerName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<ContainerName> for String {
    fn from(name: ContainerName) -> Self {
        name.0
    }
}

impl fmt::Display for ContainerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One of the two places a container's deployments take turns in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Slot {
    /// `NAME.0`
    #[serde(rename = "0")]
    Zero,
    /// `NAME.1`
    #[serde(rename = "1")]
    One,
}

impl Slot {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Zero => Self::One,
            Self::One => Self::Zero,
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zero => "0",
            Self::One => "1",
        })
    }
}

/// Where everything of one container is.
#[derive(Debug, Clone)]
pub struct Paths {
    checkouts: Utf8PathBuf,
    units: Utf8PathBuf,
    tmpfiles: Utf8PathBuf,
    name: ContainerName,
}

impl Paths {
    /// The paths of `name` on a host with this configuration.
    pub fn new(config: &Config, name: &ContainerName) -> Self {
        Self {
            checkouts: config.checkouts.clone(),
            units: config.units.clone(),
            tmpfiles: config.tmpfiles.clone(),
            name: name.clone(),
        }
    }

    /// The symlink to the current deployment.
    pub fn link(&self) -> Utf8PathBuf {
        self.checkouts.join(self.name.as_str())
    }

    /// A deployment directory.
    pub fn slot(&self, slot: Slot) -> Utf8PathBuf {
        self.checkouts.join(format!("{}.{slot}", self.name))
    }

    /// Where a deployment for `slot` is staged by the transaction `id`.
    pub fn staged(&self, slot: Slot, id: &str) -> Utf8PathBuf {
        self.checkouts
            .join(format!(".{}.{slot}.next-{id}", self.name))
    }

    /// Where the deployment that was in `slot` waits until the transaction `id` is closed.
    pub fn aside(&self, slot: Slot, id: &str) -> Utf8PathBuf {
        self.checkouts
            .join(format!(".{}.{slot}.old-{id}", self.name))
    }

    /// The installed unit file.
    pub fn unit(&self) -> Utf8PathBuf {
        self.units.join(self.name.unit())
    }

    /// The installed tmpfiles.d file.
    pub fn tmpfiles(&self) -> Utf8PathBuf {
        self.tmpfiles.join(format!("{}.conf", self.name))
    }

    /// The copy of the unit in a deployment directory.
    pub fn unit_copy(&self, deployment: &Utf8Path) -> Utf8PathBuf {
        deployment.join(self.name.unit())
    }

    /// The copy of the tmpfiles.d file in a deployment directory.
    pub fn tmpfiles_copy(&self, deployment: &Utf8Path) -> Utf8PathBuf {
        deployment.join(format!("tmpfiles-{}.conf", self.name))
    }

    /// The journal of a transaction under way.
    pub fn journal(&self) -> Utf8PathBuf {
        self.checkouts
            .join(".journal")
            .join(format!("{}.json", self.name))
    }

    /// What became of its deployments.
    pub fn ledger(&self) -> Utf8PathBuf {
        self.checkouts
            .join(".ledger")
            .join(format!("{}.json", self.name))
    }

    /// The container's lock file.
    pub fn lock(&self) -> Utf8PathBuf {
        self.checkouts.join(".locks").join(self.name.as_str())
    }

    /// The slot the symlink points to; nothing where there is no symlink.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it points elsewhere.
    pub fn current(&self) -> Result<Option<Slot>> {
        let link = self.link();
        let target = match std::fs::read_link(&link) {
            Ok(target) => target,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            // A directory: the deployment of another container, or nobody's.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => return Ok(None),
            Err(error) => fail!(
                Kind::Invalid,
                "{link} is not a link to a deployment: {error}"
            ),
        };
        let last = target.file_name().map(|name| name.to_string_lossy());
        for slot in [Slot::Zero, Slot::One] {
            if last.as_deref() == self.slot(slot).file_name() {
                return Ok(Some(slot));
            }
        }
        fail!(
            Kind::Invalid,
            "{link} points to {}, which is not one of its deployments",
            target.display()
        )
    }

    /// Take the container's lock.
    pub fn take_lock(&self) -> Result<safefs::Lock> {
        safefs::make_private_dir(self.checkouts.as_std_path())?;
        let path = self.lock();
        if let Some(parent) = path.parent() {
            safefs::make_private_dir(parent.as_std_path())?;
        }
        safefs::Lock::take(
            path.as_std_path(),
            safefs::Mode::Exclusive,
            &format!("the container {}", self.name),
        )
    }
}

/// The containers of a host: names with a symlink in C. A file system error is an error; odd
/// entries are not containers.
pub fn installed(config: &Config) -> Result<Vec<ContainerName>> {
    let entries = match std::fs::read_dir(&config.checkouts) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(error).context(|| format!("cannot list {}", config.checkouts));
        }
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.context(|| format!("cannot list {}", config.checkouts))?;
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        if let Some(name) = entry.file_name().to_str()
            && is_link
            && let Ok(name) = name.parse::<ContainerName>()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The `config.json` of a deployment, unless it is missing or broken.
pub fn read_config<T: DeserializeOwned>(deployment: &Utf8Path) -> Option<T> {
    let text = std::fs::read(deployment.join("config.json")).ok()?;
    serde_json::from_slice(&text).ok()
}

/// The directory of a container's deployment in use: in a slot, or where a package put it.
pub fn in_use(config: &Config, name: &ContainerName) -> Result<Option<Utf8PathBuf>> {
    let paths = Paths::new(config, name);
    if let Some(slot) = paths.current()? {
        return Ok(Some(paths.slot(slot)));
    }
    let packaged = config.preinstalled.join(name.as_str());
    Ok((config.is_system && packaged.join("info").is_file()).then_some(packaged))
}

/// The containers that packages brought, without those of the same name that were installed since.
pub fn preinstalled(config: &Config) -> Vec<ContainerName> {
    let entries = config.preinstalled.read_dir_utf8().into_iter().flatten();
    let mut names: Vec<ContainerName> = entries
        .flatten()
        .filter(|entry| entry.path().join("info").is_file())
        .filter_map(|entry| entry.file_name().parse().ok())
        .filter(|name| std::fs::symlink_metadata(Paths::new(config, name).link()).is_err())
        .collect();
    names.sort();
    names
}

/// Refuse a name whose directories would be those of another container: `a` beside `a.0`.
pub fn check_collision(config: &Config, name: &ContainerName) -> Result<()> {
    for other in installed(config)? {
        let deployment_of = |a: &ContainerName, b: &ContainerName| {
            [Slot::Zero, Slot::One]
                .iter()
                .any(|slot| format!("{a}.{slot}") == b.as_str())
        };
        if deployment_of(name, &other) || deployment_of(&other, name) {
            fail!(
                Kind::Exists,
                "the name \"{name}\" collides with the deployments of the container \"{other}\""
            );
        }
    }
    Ok(())
}

/// Whose journal a file is, by its name: also the one that is being written, or keeps room for that, `.NAME.json.new`.
pub fn journal_of(file: &str) -> Option<ContainerName> {
    let file = file.trim_start_matches('.').trim_end_matches(".new");
    file.strip_suffix(".json")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_as_files_units_and_arguments() {
        for good in ["a", "container.0", "A-b_c.d", "0"] {
            assert!(good.parse::<ContainerName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "../x",
            "-x",
            ".x",
            "a/b",
            "a b",
            "a\nb",
            "é",
            "a%b",
            &"x".repeat(300),
        ] {
            assert!(bad.parse::<ContainerName>().is_err(), "{bad:?}");
        }
    }
}
