//! Packages of host files, and of whole containers, for the host's own package manager.
//!
//! A [`Package`] is data; [`Package::build`] writes it as an rpm or a deb. Both are reproducible: the same
//! image, settings and [`Package::date`] give the same bytes.
//!
//! # What a package has beside its files
//! Everything below `/etc` is a configuration file. What the format cannot carry, its script does after
//! the files are in place: numeric owners in an rpm (which knows names only), file capabilities in a deb.

mod deb;
mod fields;
mod foreign;
mod frontend;
mod manager;
mod relation;
mod rpm;
mod scripts;

use std::fmt;
use std::path::{Path, PathBuf};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use super::payload::Payload;
use super::wanted::{HostFile, Kind, MAX_BYTES, Owner};
use crate::error::{Kind as ErrorKind, Result};
use crate::fail;
use crate::image::Platform;
use crate::runtime::capabilities;
use crate::safefs::{Files, Node, Walked};

pub use fields::{Fields, name, package_date, package_of_program};
pub use foreign::Contents;
pub use frontend::FrontendLock;
pub use manager::Manager;
pub use relation::{Comparator, Relation};

/// The formats of packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// RPM, version 4.
    Rpm,
    /// Debian's, version 2.0.
    Deb,
}

impl Format {
    /// How file names end.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Rpm => "rpm",
            Self::Deb => "deb",
        }
    }

    /// The format of a file, by its name.
    pub fn of_file(name: &str) -> Option<Self> {
        let end = Utf8Path::new(name).extension()?;
        [Self::Rpm, Self::Deb]
            .into_iter()
            .find(|format| format.extension() == end)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.extension())
    }
}

impl std::str::FromStr for Format {
    type Err = crate::error::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "rpm" => Ok(Self::Rpm),
            "deb" => Ok(Self::Deb),
            _ => fail!(
                ErrorKind::Usage,
                "\"{text}\" is no format of packages: expected rpm or deb"
            ),
        }
    }
}

/// How an image's files for the host are installed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// In a package, where the host's package manager can take one and there is anything to put into it.
    #[default]
    Auto,
    /// In a package.
    Yes,
    /// As plain files.
    No,
}

impl std::str::FromStr for Mode {
    type Err = crate::error::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "yes" => Ok(Self::Yes),
            "no" => Ok(Self::No),
            _ => fail!(
                ErrorKind::Usage,
                "\"{text}\" is no way to install host files: expected auto, yes or no"
            ),
        }
    }
}

/// What an entry of a package is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A directory.
    Dir,
    /// A symbolic link and where it points.
    Link(String),
    /// A file with this content.
    Bytes(Vec<u8>),
    /// A file with the content of this one.
    Copy(PathBuf),
}

/// A file, directory or link of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it goes: absolute.
    pub path: Utf8PathBuf,
    /// What it is.
    pub body: Body,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// File capabilities, as in `setcap`.
    pub capabilities: Option<String>,
}

impl Entry {
    /// A directory.
    pub fn dir(path: &Utf8Path, (mode, uid, gid): Owner) -> Self {
        Self {
            path: path.to_owned(),
            body: Body::Dir,
            mode,
            uid,
            gid,
            capabilities: None,
        }
    }

    /// A file of root's with this text.
    pub fn text(path: impl Into<Utf8PathBuf>, text: &str, mode: u32) -> Self {
        Self {
            path: path.into(),
            body: Body::Bytes(text.as_bytes().to_vec()),
            mode,
            uid: 0,
            gid: 0,
            capabilities: None,
        }
    }

    /// A host file. `files`: those of its image.
    pub fn of_host_file(file: &HostFile, files: &dyn Files) -> Result<Self> {
        let Payload { source, kind, .. } = &file.payload;
        let body = match kind {
            Kind::Dir => Body::Dir,
            Kind::Link(target) => Body::Link(target.clone()),
            Kind::Text(text) => Body::Bytes(text.as_bytes().to_vec()),
            Kind::File => match files.read(source, MAX_BYTES)? {
                Some(content) => Body::Bytes(content),
                None => fail!(ErrorKind::Invalid, "the image's {source} cannot be read"),
            },
        };
        Ok(Self {
            path: file.target.clone(),
            body,
            mode: file.payload.mode,
            uid: file.payload.uid,
            gid: file.payload.gid,
            capabilities: capability(&file.payload.xattrs),
        })
    }

    /// An entry of an image that is checked out in `root`, for the same path below `target`. Nothing: a
    /// device, a fifo or a socket, which a container gets from its runtime.
    pub fn of_image(entry: &Walked, root: &Path, target: &Utf8Path) -> Option<Self> {
        let body = match &entry.node {
            Node::Dir => Body::Dir,
            Node::File => Body::Copy(root.join(&entry.path)),
            Node::Link(to) => Body::Link(to.clone()),
            Node::Other => return None,
        };
        Some(Self {
            path: target.join(&entry.path),
            body,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            capabilities: capability(&entry.xattrs),
        })
    }

    fn is_config(&self) -> bool {
        self.path.starts_with("/etc") && matches!(self.body, Body::Bytes(_) | Body::Copy(_))
    }
}

fn capability(xattrs: &[(String, Vec<u8>)]) -> Option<String> {
    xattrs
        .iter()
        .find(|(name, _)| name == "security.capability")
        .and_then(|(_, value)| capabilities::of_file(value))
}

/// A package to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Its name: see [`name`].
    pub name: String,
    /// What it says of itself.
    pub fields: Fields,
    /// The machines it is for.
    pub platform: Platform,
    /// Seconds since 1970, of the package and of all in it.
    pub date: u64,
    /// Everything in it.
    pub entries: Vec<Entry>,
    /// The service it brings, to be enabled: its unit.
    pub service: Option<String>,
    /// The tmpfiles.d file it brings, by name.
    pub tmpfiles: Option<String>,
    /// The directory of its container, which goes with all that a runtime made in it.
    pub container: Option<Utf8PathBuf>,
}

impl Package {
    /// Write it as the file `at`, which must not exist.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for what the format has no place for.
    pub fn build(&self, format: Format, at: &Path) -> Result<()> {
        for entry in &self.entries {
            if entry.path.as_str().contains('\n') {
                fail!(
                    ErrorKind::Invalid,
                    "a package cannot hold \"{}\"",
                    entry.path.as_str().escape_debug()
                );
            }
        }
        let fields = &self.fields;
        for relation in [&fields.requires, &fields.provides, &fields.conflicts]
            .into_iter()
            .flatten()
        {
            relation.check(format)?;
        }
        match format {
            Format::Rpm => rpm::build(self, at),
            Format::Deb => deb::build(self, at),
        }
    }

    /// What it needs: what it says, and what its scripts call.
    pub fn needs(&self, format: Format) -> Vec<Relation> {
        let mut out = self.fields.requires.clone();
        let has = |entry: &Entry| entry.capabilities.is_some();
        if format == Format::Deb && self.entries.iter().any(has) {
            out.push(Relation::any("libcap2-bin"));
        }
        out
    }

    /// Its version as the format writes it.
    pub fn version(&self, format: Format) -> String {
        let Fields {
            version, release, ..
        } = &self.fields;
        match format {
            Format::Rpm => format!("{}-{}", rpm::word(version), rpm::word(release)),
            Format::Deb => deb::version(version, release),
        }
    }
}
