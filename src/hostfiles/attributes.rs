//! What a host file has beside its content: mode, owner, extended attributes.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use super::compare::Comparison;
use super::payload::{Payload, locate};
use super::wanted::{HostFile, Kind, Owner};
use crate::error::{Context as _, Result};
use crate::safefs;

const CAPABILITY: &str = "security.capability";

/// Mode, owner and extended attributes of a file. Links have no mode of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Permission bits in octal.
    pub mode: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// File capabilities and `user.*`, their values in hexadecimal.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub xattrs: BTreeMap<String, String>,
}

/// What was installed, path by path, as `info` has it.
pub type Record = BTreeMap<String, Attributes>;

/// A directory whose mode or owner changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirChange {
    /// The directory.
    pub path: Utf8PathBuf,
    /// What it has.
    pub from: Owner,
    /// What it will have.
    pub to: Owner,
}

impl Attributes {
    /// Those a file will have.
    fn wanted(payload: &Payload) -> Self {
        let xattrs = payload.xattrs.iter();
        Self {
            xattrs: xattrs.map(|(k, v)| (k.clone(), hex::encode(v))).collect(),
            ..Self::of_owner((
                match payload.kind {
                    Kind::Link(_) => 0o777,
                    _ => payload.mode,
                },
                payload.uid,
                payload.gid,
            ))
        }
    }

    fn of_owner((mode, uid, gid): Owner) -> Self {
        let mode = format!("{mode:04o}");
        Self {
            mode,
            uid,
            gid,
            xattrs: BTreeMap::new(),
        }
    }

    fn owner(&self) -> Owner {
        let mode = u32::from_str_radix(&self.mode, 8).unwrap_or(0o600);
        (mode & 0o7777, self.uid, self.gid)
    }

    /// Those of the file at `path`; nothing if there is none.
    fn of(path: &Utf8Path) -> Result<Option<Self>> {
        let Some(parent) = locate(path)? else {
            return Ok(None);
        };
        let at = parent.path();
        let Ok(found) = std::fs::symlink_metadata(&at) else {
            return Ok(None);
        };
        let failed = || format!("cannot read the attributes of {path}");
        let mut out = Self::of_owner((found.mode() & 0o7777, found.uid(), found.gid()));
        if found.is_file() {
            let xattrs = safefs::xattrs_of(&at).context(failed)?.into_iter();
            out.xattrs = xattrs.map(|(k, v)| (k, hex::encode(v))).collect();
        }
        Ok(Some(out))
    }

    /// What three sides come to: what was changed on the host stays so, the rest is as the image wants it.
    fn merge(wanted: &Self, recorded: &Self, found: &Self) -> Self {
        fn pick<'a, T: PartialEq + ?Sized>(wanted: &'a T, recorded: &T, found: &'a T) -> &'a T {
            if found == recorded { wanted } else { found }
        }
        let owner = |of: &Self| (of.uid, of.gid);
        let sides = [owner(wanted), owner(recorded), owner(found)];
        let (uid, gid) = *pick(&sides[0], &sides[1], &sides[2]);
        Self {
            mode: pick(&wanted.mode, &recorded.mode, &found.mode).clone(),
            uid,
            gid,
            xattrs: pick(&wanted.xattrs, &recorded.xattrs, &found.xattrs).clone(),
        }
    }

    fn give(self, payload: &mut Payload) {
        // The store's file has what the image wants.
        payload.may_link &= Self::wanted(payload) == self;
        (payload.mode, payload.uid, payload.gid) = self.owner();
        let values = self.xattrs.into_iter();
        payload.xattrs = values
            .filter_map(|(name, value)| Some((name, hex::decode(value).ok()?)))
            .collect();
    }

    /// How `found` differs from this, which is on record.
    fn difference(&self, found: &Self) -> Option<String> {
        if self.mode != found.mode {
            return Some(format!("has mode {} in place of {}", found.mode, self.mode));
        }
        if (self.uid, self.gid) != (found.uid, found.gid) {
            return Some(format!(
                "belongs to {}:{} in place of {}:{}",
                found.uid, found.gid, self.uid, self.gid
            ));
        }
        (self.xattrs != found.xattrs).then(|| "has other capabilities or attributes".to_owned())
    }
}

/// How the file at `path` differs from what is on record of it beside its content.
pub fn differs(path: &Utf8Path, recorded: &Attributes) -> Result<Option<String>> {
    Ok(Attributes::of(path)?.and_then(|found| recorded.difference(&found)))
}

/// Extend a decision on contents to all that files have beside it, for plain files: a changed mode of
/// the image's reaches the host, and one that somebody gave a file there stays. The answer goes on
/// record. Of what is not on record, as on hosts of old, nothing is known and nothing changed.
pub fn plain(compared: &mut Comparison, before: &Record) -> Result<Record> {
    let mut notes = Vec::new();
    let mut merged = |target: &Utf8Path,
                      wanted: &Attributes|
     -> Result<Option<(Attributes, bool)>> {
        let (Some(recorded), Some(found)) = (before.get(target.as_str()), Attributes::of(target)?)
        else {
            return Ok(None);
        };
        let merged = Attributes::merge(wanted, recorded, &found);
        if let Some(difference) = wanted.difference(&merged) {
            notes.push(format!("{target} {difference}, and stays so"));
        }
        let changes = merged != found;
        Ok(Some((merged, changes)))
    };
    let mut out = record(compared, before);
    let mut same: Vec<HostFile> = Vec::new();
    for mut file in std::mem::take(&mut compared.same) {
        if file.payload.kind == Kind::Dir {
            same.push(file);
            continue;
        }
        let wanted = Attributes::wanted(&file.payload);
        let changes = if let Some((merged, changes)) = merged(&file.target, &wanted)? {
            merged.give(&mut file.payload);
            changes
        } else {
            note_found(&mut out, &file.target)?;
            false
        };
        if changes {
            compared.replace.push(file);
        } else {
            same.push(file);
        }
    }
    compared.same = same;
    for file in &mut compared.replace {
        let wanted = Attributes::wanted(&file.payload);
        if let Some((merged, _)) = merged(&file.target, &wanted)? {
            merged.give(&mut file.payload);
        }
    }
    let made: Vec<&Utf8PathBuf> = compared.make_dirs.iter().map(|(path, _)| path).collect();
    for (path, owner) in &mut compared.dirs {
        let Some(owner) = owner.as_mut().filter(|_| !made.contains(&&*path)) else {
            continue;
        };
        let Some((merged, changes)) = merged(path, &Attributes::of_owner(*owner))? else {
            note_found(&mut out, path)?;
            continue;
        };
        *owner = merged.owner();
        if changes && let Some(found) = Attributes::of(path)? {
            compared.change_dirs.push(DirChange {
                path: path.clone(),
                from: found.owner(),
                to: *owner,
            });
        }
    }
    compared.notes.append(&mut notes);
    Ok(out)
}

/// Of what nothing was on record and nothing is written, what is there goes on record: what the image wants
/// another time is then told from what somebody changed.
fn note_found(record: &mut Record, path: &Utf8Path) -> Result<()> {
    if let Some(found) = Attributes::of(path)? {
        record.insert(path.to_string(), found);
    }
    Ok(())
}

/// What goes on record for a package of ours, which carries capabilities and no other attributes.
pub fn of_package(compared: &Comparison, before: &Record) -> Record {
    let mut out = record(compared, before);
    for attributes in out.values_mut() {
        attributes.xattrs.retain(|name, _| name == CAPABILITY);
    }
    out
}

/// What goes on record: what the image wants, and of what stays as it is what was on record before.
fn record(compared: &Comparison, before: &Record) -> Record {
    let stays = compared.modified.iter().map(|file| &file.target);
    let stays = stays.chain(&compared.kept);
    let mut out: Record = stays
        .filter_map(|path| before.get_key_value(path.as_str()))
        .map(|(path, recorded)| (path.clone(), recorded.clone()))
        .collect();
    let files = compared.create.iter().chain(&compared.replace);
    for file in files.chain(&compared.same) {
        out.insert(file.target.to_string(), Attributes::wanted(&file.payload));
    }
    for (path, owner) in &compared.dirs {
        let recorded = match owner {
            Some(owner) => Some(Attributes::of_owner(*owner)),
            None => before.get(path.as_str()).cloned(),
        };
        if let Some(recorded) = recorded {
            out.insert(path.to_string(), recorded);
        }
    }
    out
}
