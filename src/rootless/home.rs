//! Where containers are, by id and by name.
//!
//! # Format
//! `H/containers/ID/` is a container (see [`super::container`]), `H/containers/NAME` a symbolic link to ID,
//! `H/trees/` has what they share (see [`super::tree`]), and `H/lock` is held exclusively while any of
//! these comes, goes, or is called otherwise. Names that start with a dot are being made or removed.
//! `H/engines.json`: see [`super::engine`]; `H/protected-images.json`: a list of images' names.
//! H is `.rootless` among the checkouts of the store, or a directory that was named.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use camino::{Utf8Path, Utf8PathBuf};

use super::container::Container;
use crate::config::Config;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::safefs::{self, Lock, Mode};

/// Shorter beginnings of ids are no ids.
const MIN_ID: usize = 4;
/// File systems have no longer names.
const MAX_NAME: usize = 255;

/// A name of a container. There may be several for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let odd = |c: char| c.is_whitespace() || c.is_control() || "/.[]".contains(c);
        if text.is_empty() || text.len() > MAX_NAME || text.starts_with('-') || text.contains(odd) {
            let shown: String = text.chars().take(60).collect();
            fail!(
                Kind::Usage,
                "\"{}\" is not a container name: no blanks, none of / . [ ], at most {MAX_NAME} bytes",
                shown.escape_debug()
            );
        }
        if is_id(text) {
            fail!(
                Kind::Usage,
                "\"{text}\" is not a container name: it looks like an id"
            );
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether it may be the id of a container.
pub(super) fn is_id(text: &str) -> bool {
    uuid::Uuid::try_parse(text).is_ok()
}

/// The containers of one person.
#[derive(Debug, Clone)]
pub struct Home {
    path: Utf8PathBuf,
}

impl Home {
    /// Where this configuration has them.
    pub fn of(config: &Config) -> Self {
        let usual = || config.checkouts.join(".rootless");
        Self {
            path: config.rootless.clone().unwrap_or_else(usual),
        }
    }

    /// The directory of containers.
    pub fn containers(&self) -> Utf8PathBuf {
        self.path.join("containers")
    }

    /// The directory of what they share.
    pub fn trees(&self) -> Utf8PathBuf {
        self.path.join("trees")
    }

    /// What is known of engines.
    pub fn engines(&self) -> Utf8PathBuf {
        self.path.join("engines.json")
    }

    /// The names of images that are not to be deleted.
    pub fn protected_images(&self) -> Result<BTreeSet<String>> {
        let path = self.path.join("protected-images.json");
        match std::fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice(&text).kind(Kind::Invalid, || format!("{path} is damaged"))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeSet::new()),
            Err(error) => Err(error).context(|| format!("cannot read {path}")),
        }
    }

    /// Have an image be one of those, or not.
    pub fn protect_image(&self, name: &str, is_protected: bool) -> Result<()> {
        let _turn = self.turn()?;
        let mut all = self.protected_images()?;
        if is_protected {
            all.insert(name.to_owned());
        } else {
            all.remove(name);
        }
        let path = self.path.join("protected-images.json");
        let text = serde_json::to_vec_pretty(&all).context(|| format!("cannot write {path}"))?;
        safefs::replace_file(path.as_std_path(), &text, 0o600)
    }

    /// Where the container of this id is.
    pub fn container(&self, id: &str) -> Utf8PathBuf {
        self.containers().join(id)
    }

    /// While this is held nobody else creates, removes or renames; makes the directories first.
    pub fn turn(&self) -> Result<Lock> {
        for path in [self.path.clone(), self.containers(), self.trees()] {
            safefs::make_private_dir(path.as_std_path())?;
        }
        let path = self.path.join("lock");
        Lock::take(path.as_std_path(), Mode::Exclusive, "the containers")
    }

    /// All containers, the oldest first. What cannot be read is left out and said.
    pub fn list(&self) -> Result<Vec<Container>> {
        let mut out = Vec::new();
        for container in self.list_all()? {
            match container {
                Ok(container) => out.push(container),
                Err(error) => tracing::warn!(%error, "left out"),
            }
        }
        out.sort_by(|a, b| {
            let key = |c: &Container| (c.record.created, c.record.id.clone());
            key(a).cmp(&key(b))
        });
        Ok(out)
    }

    /// All containers in no order, with what cannot be read.
    pub fn list_all(&self) -> Result<Vec<Result<Container>>> {
        let ids = self.entries()?.into_iter().filter(|name| is_id(name));
        Ok(ids.map(|id| Container::open(self, &id)).collect())
    }

    fn entries(&self) -> Result<Vec<String>> {
        let path = self.containers();
        let entries = match path.read_dir_utf8() {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context(|| format!("cannot list {path}")),
        };
        entries
            .map(|entry| {
                let entry = entry.context(|| format!("cannot list {path}"))?;
                Ok(entry.file_name().to_owned())
            })
            .filter(|name: &Result<String>| !name.as_ref().is_ok_and(|name| name.starts_with('.')))
            .collect()
    }

    /// The container that `text` names: by name, id, or the unique beginning of an id.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if several ids begin so.
    pub fn find(&self, text: &str) -> Result<Option<Container>> {
        if let Ok(name) = text.parse::<Name>()
            && let Some(id) = self.id_of(&name)
        {
            return Container::open(self, &id).map(Some);
        }
        if is_id(text) {
            let is_there = self.container(text).is_dir();
            return is_there.then(|| Container::open(self, text)).transpose();
        }
        let is_beginning =
            text.len() >= MIN_ID && text.bytes().all(|c| c.is_ascii_hexdigit() || c == b'-');
        if !is_beginning {
            return Ok(None);
        }
        let mut ids = self.entries()?;
        ids.retain(|id| is_id(id) && id.starts_with(text));
        match ids.as_slice() {
            [] => Ok(None),
            [id] => Container::open(self, id).map(Some),
            _ => fail!(
                Kind::Invalid,
                "several containers have ids that begin with \"{text}\""
            ),
        }
    }

    /// The same where there has to be one.
    pub fn require(&self, text: &str) -> Result<Container> {
        let found = self.find(text)?;
        found.ok_or_else(|| {
            Error::new(
                Kind::NotFound,
                format!("there is no container \"{text}\": atomic-rs rootless ps lists them"),
            )
        })
    }

    /// The id that a name stands for.
    pub fn id_of(&self, name: &Name) -> Option<String> {
        let target = self
            .containers()
            .join(name.as_str())
            .read_link_utf8()
            .ok()?;
        let id = target.as_str();
        (is_id(id) && self.container(id).is_dir()).then(|| id.to_owned())
    }

    /// The names of a container, in order.
    pub fn names_of(&self, id: &str) -> Result<Vec<String>> {
        let mut names = self.entries()?;
        names.retain(|name| {
            let link = self.containers().join(name).read_link_utf8();
            link.is_ok_and(|target| target == id)
        });
        names.sort();
        Ok(names)
    }

    /// Give a container one more name; [`Self::turn`] must be held.
    ///
    /// # Errors
    /// [`Kind::Exists`] if the name is taken.
    pub fn add_name(&self, id: &str, name: &Name) -> Result<()> {
        if self.id_of(name).is_some() {
            fail!(Kind::Exists, "a container of the name \"{name}\" exists");
        }
        let path = self.containers().join(name.as_str());
        // A link that leads nowhere was left by a kill.
        safefs::replace_symlink(path.as_std_path(), Utf8Path::new(id).as_std_path())
    }

    /// Take a name away; [`Self::turn`] must be held.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if no container has it.
    pub fn remove_name(&self, name: &Name) -> Result<()> {
        if self.id_of(name).is_none() {
            fail!(Kind::NotFound, "no container has the name \"{name}\"");
        }
        safefs::remove_if_exists(self.containers().join(name.as_str()).as_std_path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_words_and_no_ids() {
        for good in ["web", "A1_x-y", "größe"] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        let long = "x".repeat(256);
        for bad in [
            "",
            "a b",
            "a/b",
            "..",
            "a.b",
            "[x]",
            "-a",
            "a\n",
            long.as_str(),
            "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        ] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }
}
