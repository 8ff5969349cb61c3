//! What was installed, what is on the disk, what is wanted: three sides, one decision for each path.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Path, Utf8PathBuf};

use super::attributes::DirChange;
use super::payload::State;
use super::wanted::{HostFile, Kind, Owner, Wanted};
use crate::error::{Kind as ErrorKind, Result};
use crate::fail;

/// What was installed: paths and checksums, as `info` has them.
pub type Record = BTreeMap<String, String>;

/// The decisions.
#[derive(Debug, Clone, Default)]
pub struct Comparison {
    /// Directories to make, those above first.
    pub make_dirs: Vec<(Utf8PathBuf, Owner)>,
    /// Files where nothing is.
    pub create: Vec<HostFile>,
    /// Files that take the place of older ones of the container.
    pub replace: Vec<HostFile>,
    /// Files that are there as they are wanted.
    pub same: Vec<HostFile>,
    /// Files that are wanted and were modified on the host.
    pub modified: Vec<HostFile>,
    /// Files that are wanted, where somebody else's are.
    pub foreign: Vec<Utf8PathBuf>,
    /// Files that go.
    pub remove: Vec<Utf8PathBuf>,
    /// Files that are not wanted any more, and stay because they were modified.
    pub kept: Vec<Utf8PathBuf>,
    /// Directories that go if they are empty, those below first.
    pub remove_dirs: Vec<Utf8PathBuf>,
    /// Every directory on record afterwards; without mode and owner where the image says nothing of it any more.
    pub dirs: Vec<(Utf8PathBuf, Option<Owner>)>,
    /// Those of them whose mode or owner changes.
    pub change_dirs: Vec<DirChange>,
    /// What is installed afterwards.
    pub record: Record,
    /// What is left as it is, and why.
    pub notes: Vec<String>,
}

/// Decide. Nothing is changed; the disk is read.
pub fn compare(wanted: &Wanted, before: &Record) -> Result<Comparison> {
    let mut out = Comparison::default();
    let mut kept: BTreeSet<Utf8PathBuf> = BTreeSet::new();
    for file in &wanted.files {
        let path = &file.target;
        let state = State::of(path)?;
        let recorded = before.get(path.as_str());
        let new = &file.checksum;
        let is_ours = recorded.is_some_and(|recorded| state.is_as_recorded(recorded));
        let was_dir = recorded.is_some_and(|recorded| recorded == "0");
        let is_dir = file.payload.kind == Kind::Dir;
        if is_ours && was_dir != is_dir {
            fail!(
                ErrorKind::Exists,
                "the image turns {path} from a {} into a {}: remove it, or keep the image",
                if was_dir { "directory" } else { "file" },
                if is_dir { "directory" } else { "file" }
            );
        }
        match (&state, recorded) {
            (State::Missing, _) if file.payload.kind == Kind::Dir => {
                let payload = &file.payload;
                out.add_dir(path, (payload.mode, payload.uid, payload.gid), wanted)?;
            }
            (State::Missing, _) => {
                out.add_parents(path, wanted)?;
                out.record.insert(path.to_string(), new.clone());
                out.create.push(file.clone());
            }
            (State::There(found), Some(_)) if found == new => {
                out.record.insert(path.to_string(), new.clone());
                out.same.push(file.clone());
            }
            (_, Some(_)) if is_ours => {
                out.record.insert(path.to_string(), new.clone());
                out.replace.push(file.clone());
            }
            (_, Some(recorded)) => {
                out.notes.push(format!(
                    "{path} was modified on the host and stays as it is"
                ));
                out.record.insert(path.to_string(), recorded.clone());
                out.modified.push(file.clone());
            }
            (State::There(found), None) if found == "0" && file.payload.kind == Kind::Dir => {}
            (_, None) => {
                out.notes.push(format!("File {path} already exists"));
                out.foreign.push(path.clone());
            }
        }
        kept.extend(path.ancestors().map(Utf8Path::to_owned));
    }
    for (path, recorded) in before {
        let path = Utf8Path::new(path);
        if out.record.contains_key(path.as_str()) || wanted.files.iter().any(|f| f.target == path) {
            continue;
        }
        let state = State::of(path)?;
        let is_dir = matches!(&state, State::There(found) if found == "0");
        if kept.contains(path) && is_dir {
            out.record.insert(path.to_string(), recorded.clone());
        } else if is_dir && recorded == "0" {
            out.remove_dirs.push(path.to_owned());
        } else if state.is_as_recorded(recorded) {
            out.remove.push(path.to_owned());
        } else if state != State::Missing {
            out.notes.push(format!(
                "Will not delete {path} as it was manually modified."
            ));
            out.record.insert(path.to_string(), recorded.clone());
            out.kept.push(path.to_owned());
        }
    }
    // What stays keeps the directories above it.
    let stays: Vec<Utf8PathBuf> = out.record.keys().map(Into::into).collect();
    for dir in std::mem::take(&mut out.remove_dirs) {
        if stays.iter().any(|path| path.starts_with(&dir)) {
            out.record.insert(dir.to_string(), "0".into());
        } else {
            out.remove_dirs.push(dir);
        }
    }
    out.remove_dirs.sort_by(|a, b| b.cmp(a));
    out.dirs = out.owners_of_dirs(wanted)?;
    Ok(out)
}

impl Comparison {
    fn add_parents(&mut self, path: &Utf8Path, wanted: &Wanted) -> Result<()> {
        let mut above: Vec<&Utf8Path> = Vec::new();
        for dir in path.ancestors().skip(1) {
            if self.make_dirs.iter().any(|(made, _)| made == dir)
                || State::of(dir)? != State::Missing
            {
                break;
            }
            above.push(dir);
        }
        for dir in above.into_iter().rev() {
            let owner = wanted.owner_of_dir(dir);
            self.record.insert(dir.to_string(), "0".into());
            self.make_dirs.push((dir.to_owned(), owner));
        }
        Ok(())
    }

    fn owners_of_dirs(&self, wanted: &Wanted) -> Result<Vec<(Utf8PathBuf, Option<Owner>)>> {
        let mut dirs = Vec::new();
        for (path, _) in self.record.iter().filter(|(_, sum)| *sum == "0") {
            let path = Utf8Path::new(path);
            let made = self.make_dirs.iter().find(|(made, _)| made == path);
            // Hosts of old have links on record like directories.
            if made.is_none() && State::of(path)? != State::There("0".into()) {
                continue;
            }
            let of_file = || {
                let file = wanted.files.iter().find(|file| file.target == path)?;
                Some((file.payload.mode, file.payload.uid, file.payload.gid))
            };
            let owner = made
                .map(|(_, owner)| *owner)
                .or_else(|| wanted.parents.get(path).copied())
                .or_else(of_file);
            dirs.push((path.to_owned(), owner));
        }
        Ok(dirs)
    }

    fn add_dir(&mut self, path: &Utf8Path, owner: Owner, wanted: &Wanted) -> Result<()> {
        self.add_parents(path, wanted)?;
        self.record.insert(path.to_string(), "0".into());
        self.make_dirs.push((path.to_owned(), owner));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::payload::Payload;
    use super::*;
    use crate::image::Digest;

    fn sum(text: &str) -> String {
        Digest::of(text.as_bytes()).hex()
    }

    fn file(path: &Utf8Path, text: &str) -> HostFile {
        HostFile {
            target: path.to_owned(),
            checksum: sum(text),
            payload: Payload {
                source: "x".into(),
                kind: Kind::File,
                mode: 0o644,
                uid: 0,
                gid: 0,
                xattrs: Vec::new(),
                may_link: false,
            },
        }
    }

    /// Every combination of recorded, on disk and wanted, and what is decided.
    #[test]
    fn three_sides_give_one_decision() {
        let dir = tempfile::tempdir().unwrap();
        let dir = Utf8Path::from_path(dir.path()).unwrap();
        // (recorded, on disk, wanted) → (what happens, on record afterwards)
        for (number, (recorded, found, new, decision, after)) in [
            (None, None, Some("n"), "create", Some("n")),
            (None, Some("x"), Some("n"), "note", None),
            (Some("o"), Some("o"), Some("n"), "replace", Some("n")),
            (Some("o"), Some("o"), Some("o"), "nothing", Some("o")),
            (Some("o"), Some("x"), Some("n"), "note", Some("o")),
            (Some("o"), Some("n"), Some("n"), "nothing", Some("n")),
            (Some("o"), None, Some("n"), "create", Some("n")),
            (Some("o"), Some("o"), None, "remove", None),
            (Some("o"), Some("x"), None, "note", Some("o")),
            (Some("o"), None, None, "nothing", None),
        ]
        .into_iter()
        .enumerate()
        {
            let path = dir.join(number.to_string());
            if let Some(text) = found {
                std::fs::write(&path, text).unwrap();
            }
            let before = recorded
                .map(|text| (path.to_string(), sum(text)))
                .into_iter()
                .collect();
            let wanted = Wanted {
                files: new.map(|text| file(&path, text)).into_iter().collect(),
                parents: BTreeMap::new(),
            };
            let got = compare(&wanted, &before).unwrap();
            let said = match (&got.create[..], &got.replace[..], &got.remove[..]) {
                ([_], [], []) => "create",
                ([], [_], []) => "replace",
                ([], [], [_]) => "remove",
                _ if !got.notes.is_empty() => "note",
                _ => "nothing",
            };
            assert_eq!(said, decision, "case {number}");
            assert_eq!(
                got.record.get(path.as_str()),
                after.map(sum).as_ref(),
                "case {number}"
            );
        }
    }

    #[test]
    fn directories_are_made_on_the_way_and_go_when_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let dir = Utf8Path::from_path(dir.path()).unwrap();
        let path = dir.join("a/b/file");
        let wanted = Wanted {
            files: vec![file(&path, "x")],
            parents: [(dir.join("a/b"), (0o700, 1, 2))].into(),
        };
        let got = compare(&wanted, &Record::new()).unwrap();
        let made = [
            (dir.join("a"), (0o755, 0, 0)),
            (dir.join("a/b"), (0o700, 1, 2)),
        ];
        assert_eq!(got.make_dirs, made);
        std::fs::create_dir_all(dir.join("a/b")).unwrap();
        std::fs::write(&path, "x").unwrap();
        let gone = compare(&Wanted::default(), &got.record).unwrap();
        assert_eq!(gone.remove, std::slice::from_ref(&path));
        assert_eq!(gone.remove_dirs, [dir.join("a/b"), dir.join("a")]);
        // A modified file keeps its directories, and both stay on record.
        std::fs::write(&path, "y").unwrap();
        let kept = compare(&Wanted::default(), &got.record).unwrap();
        assert!(kept.remove_dirs.is_empty() && kept.remove.is_empty());
        assert!(kept.notes[0].contains("manually modified"));
    }
}
