//! Plans and their journal.
//!
//! # Format of the journal
//! `C/.journal/NAME.json`, mode 0600 (it holds `--set` values): [`Journal`] as JSON, `format` 1.

use std::io::ErrorKind;

use camino::Utf8Path;
use serde::{Deserialize, Serialize};

use super::step::Step;
use crate::deployment::{ContainerName, Paths, Slot};
use crate::error::{Context as _, Kind, Result};
use crate::{fail, safefs};

const FORMAT: u32 = 1;

/// Which image a change brings, for the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The image's name.
    pub image: String,
    /// Its id.
    pub revision: String,
    /// The id of the image it replaces.
    pub replaces: Option<String>,
    /// What was said about unattended updates, if anything.
    #[serde(default)]
    pub auto_update: Option<bool>,
    /// How many files of the image are on the host afterwards.
    #[serde(default)]
    pub host_files: usize,
    /// The version of the package they come in.
    #[serde(default)]
    pub package: Option<String>,
}

/// A change to one container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Distinguishes this change's files from those of others.
    pub id: String,
    /// `install`, `update`, `rollback`, `uninstall`.
    pub verb: String,
    /// The container.
    pub name: ContainerName,
    /// The deployment in use before.
    pub from: Option<Slot>,
    /// The deployment in use after.
    pub to: Option<Slot>,
    /// What is deployed; nothing for an uninstallation.
    #[serde(default)]
    pub subject: Option<Subject>,
    /// Whether the unit ran before; then it runs afterwards, whichever way this ends.
    pub was_active: bool,
    /// Whether the unit was enabled before.
    pub was_enabled: bool,
    /// Steps before anything visible happens.
    pub stage: Vec<Step>,
    /// The outage begins.
    pub stop: Vec<Step>,
    /// Renames; the last one is the commit point.
    pub switch: Vec<Step>,
    /// Make the new state work; a failure here returns to the old one.
    pub prove: Vec<Step>,
    /// Drop what is no longer needed.
    pub close: Vec<Step>,
}

/// How far a change has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// New files are written beside the old ones.
    Stage,
    /// The unit is stopped.
    Stop,
    /// Files are renamed into place, the symlink last.
    Switch,
    /// The unit is started and looked at.
    Prove,
    /// Leftovers are removed.
    Close,
}

/// Where a change is going.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To the new state.
    Forward,
    /// Back to the old one.
    Back,
}

/// A plan under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Journal {
    format: u32,
    /// How far it has come.
    pub phase: Phase,
    /// Where it is going.
    pub direction: Direction,
    /// What it is.
    pub plan: Plan,
}

impl Plan {
    /// An empty plan with a fresh id.
    pub fn new(verb: &str, name: &ContainerName, from: Option<Slot>, to: Option<Slot>) -> Self {
        let id = uuid::Uuid::new_v4().simple().to_string();
        Self {
            id: id[..8].to_owned(),
            verb: verb.to_owned(),
            name: name.clone(),
            from,
            to,
            subject: None,
            was_active: false,
            was_enabled: false,
            stage: Vec::new(),
            stop: Vec::new(),
            switch: Vec::new(),
            prove: Vec::new(),
            close: Vec::new(),
        }
    }

    /// True if the new version is started and looked at.
    pub fn is_watched(&self) -> bool {
        self.prove
            .iter()
            .any(|step| matches!(step, Step::StartUnit { .. }))
    }

    /// All steps in order.
    pub fn steps(&self) -> impl DoubleEndedIterator<Item = &Step> {
        self.stage
            .iter()
            .chain(&self.stop)
            .chain(&self.switch)
            .chain(&self.prove)
            .chain(&self.close)
    }
}

/// By how much its text grows at the most.
const WORDS: usize = 64;

impl Journal {
    /// The journal of a change that is about to begin.
    pub fn new(plan: Plan) -> Self {
        Self {
            format: FORMAT,
            phase: Phase::Stage,
            direction: Direction::Forward,
            plan,
        }
    }

    /// Write it durably.
    pub fn save(&self, paths: &Paths) -> Result<()> {
        let path = paths.journal();
        if let Some(parent) = path.parent() {
            safefs::make_private_dir(parent.as_std_path())?;
        }
        let text = serde_json::to_vec(self).context(|| "cannot write the journal".into())?;
        safefs::replace_file(path.as_std_path(), &text, 0o600)?;
        // On a disk that gets full meanwhile, a way back must be found that is written down.
        safefs::keep_room(path.as_std_path(), text.len() + WORDS);
        Ok(())
    }

    /// Read the journal of a container, if a change was interrupted.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is there and cannot be understood.
    pub fn load(paths: &Paths) -> Result<Option<Self>> {
        let path = paths.journal();
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context(|| format!("cannot read {path}")),
        };
        Self::parse(&text, &path).map(Some)
    }

    /// Read what stands in the file `path`.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it cannot be understood.
    pub fn parse(text: &[u8], path: &Utf8Path) -> Result<Self> {
        let journal: Self =
            serde_json::from_slice(text).kind(Kind::Invalid, || format!("{path} is not valid"))?;
        if journal.format != FORMAT {
            fail!(
                Kind::Invalid,
                "{path} has the format {}, which a newer atomic-rs wrote: recover with that one",
                journal.format
            );
        }
        Ok(journal)
    }

    /// The change is over.
    pub fn remove(paths: &Paths) -> Result<()> {
        let path = paths.journal();
        safefs::remove_if_exists(path.as_std_path())?;
        safefs::sweep_beside(path.as_std_path())?;
        match path.parent() {
            Some(parent) => safefs::fsync_dir(parent.as_std_path()),
            None => Ok(()),
        }
    }
}
