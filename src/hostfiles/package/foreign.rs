//! Rpms that somebody else made: what is in one.

use std::os::unix::fs::PermissionsExt as _;

use camino::{Utf8Path, Utf8PathBuf};

use super::super::payload::Payload;
use super::super::rules::Rules;
use super::super::wanted::{HostFile, Kind as FileKind, Wanted};
use super::relation::{is_name, is_version};
use crate::command::Child;
use crate::error::{Error, Kind, Result};
use crate::fail;

/// An rpm that somebody else made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Its name.
    pub name: String,
    /// `VERSION-RELEASE`
    pub version: String,
    /// What is in it.
    pub wanted: Wanted,
    /// What it runs on the host, if anything.
    pub scripts: Vec<String>,
    /// What it does to other packages and accounts of the host, if anything.
    pub reaches: Vec<String>,
}

impl Contents {
    /// Look into `file`.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is no rpm, or has what no rpm of an image may have.
    pub fn read(file: &Utf8Path) -> Result<Self> {
        let failed =
            |error: rpm::Error| Error::new(Kind::Invalid, format!("it is no rpm: {error}"));
        let package = rpm::PackageMetadata::open(file.as_std_path()).map_err(failed)?;
        let name = package.get_name().map_err(failed)?.to_owned();
        let version = format!(
            "{}-{}",
            package.get_version().map_err(failed)?,
            package.get_release().map_err(failed)?
        );
        if !is_name(&name) || name.contains(['/', ':', '(']) || !is_version(&version) {
            fail!(Kind::Invalid, "its name or version is odd");
        }
        let mut wanted = Wanted::default();
        for entry in package.get_file_entries().map_err(failed)? {
            let Ok(target) = Utf8PathBuf::try_from(entry.path()) else {
                fail!(Kind::Invalid, "it has a path that is not UTF-8");
            };
            let mode = u32::from(entry.mode().permissions());
            let (kind, checksum) = match entry.mode().file_type() {
                rpm::FileType::Dir => {
                    wanted.parents.insert(target, (mode, 0, 0));
                    continue;
                }
                rpm::FileType::Regular => {
                    let digest = entry.digest().map(|digest| digest.as_hex().to_owned());
                    let Some(digest) = digest.filter(|digest| digest.len() == 64) else {
                        fail!(
                            Kind::Invalid,
                            "it has no SHA-256 digest of {target}: an older rpm built it"
                        );
                    };
                    (FileKind::File, digest)
                }
                rpm::FileType::SymbolicLink => {
                    let to = entry.linkto().unwrap_or_default();
                    (FileKind::Link(to.to_owned()), format!("link:{to}"))
                }
                _ => fail!(
                    Kind::Invalid,
                    "it wants to write {target}, which is a device or a socket"
                ),
            };
            wanted.files.push(HostFile {
                target,
                checksum,
                payload: Payload {
                    source: String::new(),
                    kind,
                    mode,
                    uid: 0,
                    gid: 0,
                    xattrs: Vec::new(),
                    may_link: false,
                },
            });
        }
        let accounts = package.get_provides().map_err(failed)?.into_iter();
        let accounts =
            accounts.filter(|one| one.name.starts_with("user(") || one.name.starts_with("group("));
        let replaced = package.get_obsoletes().map_err(failed)?.into_iter();
        Ok(Self {
            name,
            version,
            wanted,
            scripts: scripts(file)?,
            reaches: replaced
                .map(|one| format!("replaces the package {}", one.name))
                .chain(accounts.map(|one| format!("makes the account {}", one.name)))
                .collect(),
        })
    }

    /// Check what it brings like files of `exports/hostfs`: where it is, and that no directory of the host
    /// is changed. Returns it by its places.
    ///
    /// # Errors
    /// [`Kind::Invalid`], naming the path.
    pub fn check(&self, rules: &Rules) -> Result<Wanted> {
        let mut out = Wanted::default();
        for file in &self.wanted.files {
            let mut file = file.clone();
            file.target = rules.place(file.target.as_str())?;
            out.files.push(file);
        }
        for (path, owner) in &self.wanted.parents {
            match std::fs::metadata(path) {
                Ok(found) if found.is_dir() => {
                    if found.permissions().mode() & 0o7777 != owner.0 {
                        fail!(
                            Kind::Invalid,
                            "the image's package would change the mode of the directory {path}"
                        );
                    }
                    out.parents.insert(path.clone(), *owner);
                }
                _ => {
                    out.parents.insert(rules.place(path.as_str())?, *owner);
                }
            }
        }
        Ok(out)
    }
}

/// What an rpm runs, by rpm's own word: a program without a script counts, too.
fn scripts(file: &Utf8Path) -> Result<Vec<String>> {
    let said = Child::new("rpm")
        .args(["-qp", "--scripts", "--triggers", "--filetriggers"])
        .arg(file)
        .env("LC_ALL", "C.UTF-8")
        .run()?;
    let said = String::from_utf8_lossy(&said).into_owned();
    let lines = || said.lines().map(str::trim).filter(|line| !line.is_empty());
    let headings: Vec<String> = lines()
        .filter_map(|line| {
            line.split_once(" scriptlet ")
                .or(line.split_once(" program"))
        })
        .map(|(kind, _)| kind.to_owned())
        .collect();
    Ok(if headings.is_empty() && lines().next().is_some() {
        vec!["triggers".into()]
    } else {
        headings
    })
}
