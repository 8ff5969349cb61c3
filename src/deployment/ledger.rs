//! What became of every deployment of a container, and what was decided about its updates.
//!
//! # Format
//! `C/.ledger/NAME.json`, mode 0600: [`Ledger`] as JSON, `format` 1. Entries are in order of time,
//! oldest first; the oldest are dropped beyond 100.

use serde::{Deserialize, Serialize};

use super::{Paths, Slot};
use crate::error::{Context as _, Kind, Result};
use crate::{fail, safefs};

const FORMAT: u32 = 1;
/// More than anyone reads, little enough to rewrite each time.
const MAX_ENTRIES: usize = 100;

/// How a deployment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Put in place without being started: nothing is known yet.
    Deployed,
    /// It started and stayed healthy through the watch.
    Healthy,
    /// It did not, and the deployment before it was put back.
    Returned,
    /// The change was interrupted and undone; that says nothing about the image.
    Interrupted,
}

/// One deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The id of the change.
    pub id: String,
    /// When it ended, seconds since 1970.
    pub time: u64,
    /// `install`, `update`, `rollback`.
    pub verb: String,
    /// The image's name.
    pub image: String,
    /// The image id.
    pub revision: String,
    /// The image id it was to replace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<String>,
    /// Where.
    pub slot: Slot,
    /// How it ended.
    pub verdict: Verdict,
    /// Why it did not stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The last lines of the unit's journal then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
    /// From the stop of the old version to a serving new one, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outage_ms: Option<u64>,
    /// How many files of the image are on the host.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub host_files: usize,
    /// The version of the package they came in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde wants a reference
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// What is decided about a container's updates, whichever deployment is in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Policy {
    /// The container stays at its image.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// Whether `auto-update` cares for it; unset: the image's label or the configuration says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_update: Option<bool>,
}

/// The ledger of one container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    format: u32,
    /// What is decided about its updates.
    #[serde(default)]
    pub policy: Policy,
    /// Every deployment, oldest first.
    #[serde(default)]
    pub entries: Vec<Entry>,
}

impl Ledger {
    /// Read the ledger of a container; an empty one where there is none.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it cannot be understood.
    pub fn load(paths: &Paths) -> Result<Self> {
        let path = paths.ledger();
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self {
                    format: FORMAT,
                    ..Self::default()
                });
            }
            Err(error) => return Err(error).context(|| format!("cannot read {path}")),
        };
        let ledger: Self =
            serde_json::from_slice(&text).kind(Kind::Invalid, || format!("{path} is not valid"))?;
        if ledger.format != FORMAT {
            fail!(
                Kind::Invalid,
                "{path} has the format {}, which a newer atomic-rs wrote",
                ledger.format
            );
        }
        Ok(ledger)
    }

    /// Write it durably. The caller holds the container's lock.
    pub fn save(&self, paths: &Paths) -> Result<()> {
        let path = paths.ledger();
        if let Some(parent) = path.parent() {
            safefs::make_private_dir(parent.as_std_path())?;
        }
        let text = serde_json::to_vec_pretty(self).context(|| "cannot write the ledger".into())?;
        safefs::replace_file(path.as_std_path(), &text, 0o600)
    }

    /// Note how a deployment ended. Noting the same change again replaces what was noted, so that
    /// recovery may come here twice.
    pub fn note(&mut self, entry: Entry) {
        self.entries.retain(|other| other.id != entry.id);
        self.entries.push(entry);
        let surplus = self.entries.len().saturating_sub(MAX_ENTRIES);
        self.entries.drain(..surplus);
    }

    /// The entry by which an image is known as bad: the last word about it was that it did not
    /// stay. A failure to replace itself (new settings) says nothing about the image.
    pub fn failed(&self, revision: &str) -> Option<&Entry> {
        self.entries
            .iter()
            .rev()
            .filter(|entry| entry.revision == revision)
            .find(|entry| match entry.verdict {
                Verdict::Healthy => true,
                Verdict::Returned => entry.replaces.as_deref() != Some(revision),
                Verdict::Deployed | Verdict::Interrupted => false,
            })
            .filter(|entry| entry.verdict == Verdict::Returned)
    }

    /// The rollback by which a person left this image, unless it was deployed again since.
    pub fn left(&self, revision: &str) -> Option<&Entry> {
        let stayed = |entry: &&Entry| matches!(entry.verdict, Verdict::Deployed | Verdict::Healthy);
        self.entries
            .iter()
            .rev()
            .filter(stayed)
            .find(|entry| entry.revision == revision || entry.replaces.as_deref() == Some(revision))
            .filter(|entry| entry.verb == "rollback" && entry.revision != revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, verb: &str, revision: &str, replaces: &str, verdict: Verdict) -> Entry {
        Entry {
            id: id.into(),
            time: 0,
            verb: verb.into(),
            image: "i".into(),
            revision: revision.into(),
            replaces: Some(replaces.into()),
            slot: Slot::Zero,
            verdict,
            reason: None,
            log: Vec::new(),
            outage_ms: None,
            host_files: 0,
            package: None,
        }
    }

    #[test]
    fn the_last_word_about_an_image_counts() {
        let mut ledger = Ledger::default();
        ledger.note(entry("1", "update", "b", "a", Verdict::Returned));
        assert!(ledger.failed("b").is_some());
        ledger.note(entry("2", "update", "b", "a", Verdict::Interrupted));
        assert!(ledger.failed("b").is_some());
        ledger.note(entry("3", "update", "b", "a", Verdict::Healthy));
        assert!(ledger.failed("b").is_none());
        // New settings that fail do not make the image bad.
        ledger.note(entry("4", "update", "b", "b", Verdict::Returned));
        assert!(ledger.failed("b").is_none());
        // The same change noted twice is one.
        ledger.note(entry("4", "update", "b", "b", Verdict::Returned));
        assert_eq!(ledger.entries.len(), 4);
    }

    #[test]
    fn what_a_person_rolled_back_from_is_known_until_it_is_deployed_again() {
        let mut ledger = Ledger::default();
        ledger.note(entry("1", "update", "b", "a", Verdict::Healthy));
        assert!(ledger.left("b").is_none());
        ledger.note(entry("2", "rollback", "a", "b", Verdict::Healthy));
        assert!(ledger.left("b").is_some() && ledger.left("a").is_none());
        ledger.note(entry("3", "update", "b", "a", Verdict::Healthy));
        assert!(ledger.left("b").is_none());
    }
}
