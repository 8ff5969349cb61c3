//! What an image wants on the host: its `exports/hostfs`, renamed and with its variables filled in.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use super::payload::Payload;
use super::{DIRECTORY, Rules};
use crate::error::{Kind as ErrorKind, Result};
use crate::fail;
use crate::image::Digest;
use crate::safefs::{Files, Node, Walked};
use crate::template::{Place, Value, substitute};

/// No host file is larger: it is read to be hashed.
pub(super) const MAX_BYTES: u64 = 1 << 30;
/// More files than any command or configuration needs.
const MAX_FILES: usize = 100_000;

/// What a host file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A directory.
    Dir,
    /// A file, with the content it has in the image.
    File,
    /// A file with this content: a template that was filled in.
    Text(String),
    /// A symbolic link and where it points.
    Link(String),
}

/// Mode, owner and group.
pub type Owner = (u32, u32, u32);

/// A file for the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFile {
    /// Where it goes.
    pub target: Utf8PathBuf,
    /// Its checksum as it goes on record.
    pub checksum: String,
    /// What it is made of.
    pub payload: Payload,
}

/// Everything an image wants on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// By target.
    pub files: Vec<HostFile>,
    /// Directories that may have to be made for them, with mode, owner and group in the image.
    pub parents: BTreeMap<Utf8PathBuf, Owner>,
}

/// Directories that every host has or that are its packages' in common, and so no one container's.
/// Source: FHS 3.0 and file-hierarchy(7).
const COMMON: [&str; 42] = [
    "/",
    "/etc",
    "/etc/default",
    "/etc/opt",
    "/etc/systemd",
    "/etc/systemd/system",
    "/etc/systemd/user",
    "/etc/udev",
    "/etc/xdg",
    "/home",
    "/mnt",
    "/opt",
    "/root",
    "/run",
    "/srv",
    "/tmp",
    "/usr",
    "/usr/bin",
    "/usr/include",
    "/usr/lib",
    "/usr/lib/systemd",
    "/usr/lib/systemd/system",
    "/usr/lib/systemd/user",
    "/usr/lib/udev",
    "/usr/lib64",
    "/usr/libexec",
    "/usr/local",
    "/usr/local/bin",
    "/usr/local/etc",
    "/usr/local/lib",
    "/usr/local/sbin",
    "/usr/local/share",
    "/usr/sbin",
    "/usr/share",
    "/usr/share/doc",
    "/usr/share/man",
    "/usr/src",
    "/var",
    "/var/cache",
    "/var/lib",
    "/var/log",
    "/var/spool",
];

impl Wanted {
    /// The directories above the files that are the container's alone, wherever it is installed: those that are
    /// called like it and lie in one of the [`COMMON`] ones, and what is below. Any other may be somebody else's,
    /// whose mode and owner are not the image's to say.
    pub fn own_dirs(&self, name: &str) -> BTreeMap<&Utf8Path, Owner> {
        let mut out = BTreeMap::new();
        for file in &self.files {
            let above = file.target.ancestors().skip(1);
            let own: Vec<_> = above
                .take_while(|dir| !COMMON.contains(&dir.as_str()))
                .collect();
            if own.last().is_none_or(|dir| dir.file_name() != Some(name)) {
                continue;
            }
            out.extend(own.into_iter().map(|dir| (dir, self.owner_of_dir(dir))));
        }
        out
    }

    /// Mode, owner and group of a directory that is made for a file.
    pub(super) fn owner_of_dir(&self, path: &Utf8Path) -> Owner {
        self.parents.get(path).copied().unwrap_or((0o755, 0, 0))
    }
}

/// What decides how the files are called and filled in.
pub struct Request<'a> {
    /// `renameFiles`: values are templates.
    pub rename: &'a BTreeMap<String, String>,
    /// `installedFilesTemplate`
    pub templates: &'a [String],
    /// Whether files below `/usr` may be hard links.
    pub use_links: bool,
    /// The variables.
    pub values: &'a BTreeMap<String, String>,
    /// Where files may go.
    pub rules: &'a Rules,
}

impl Request<'_> {
    fn fill_in(&self, file: &str, text: &str) -> Result<String> {
        substitute(file, text, Place::Plain, |name| {
            self.values.get(name).map(|value| Value::Text(value))
        })
    }
}

/// Read what is wanted.
///
/// # Errors
/// [`ErrorKind::Invalid`] for a target that is closed or odd, for two files with one target, and for
/// what is no file, directory or link. The message names the path.
pub fn wanted(files: &dyn Files, request: &Request<'_>) -> Result<Wanted> {
    let walked = files.walk(DIRECTORY)?;
    if walked.len() > MAX_FILES {
        fail!(
            ErrorKind::Invalid,
            "the image has {} files for the host, more than {MAX_FILES}",
            walked.len()
        );
    }
    let filled: BTreeSet<&str> = walked
        .iter()
        .filter_map(|entry| entry.path.rsplit_once('/'))
        .map(|(above, _)| above)
        .collect();
    let mut out = Wanted::default();
    let mut seen = BTreeSet::new();
    for entry in &walked {
        let target = rename(&entry.path, request)?;
        if entry.node == Node::Dir && filled.contains(entry.path.as_str()) {
            // Made only if something goes there that finds it missing.
            let owner = (entry.mode, entry.uid, entry.gid);
            out.parents.insert(target.into(), owner);
            continue;
        }
        let target = request.rules.place(&target)?;
        if !seen.insert(target.clone()) {
            fail!(
                ErrorKind::Invalid,
                "the image has two files for {target}: its renameFiles make them one"
            );
        }
        out.files.push(read(files, entry, target, request)?);
    }
    out.files.sort_by(|a, b| a.target.cmp(&b.target));
    Ok(out)
}

fn read(
    files: &dyn Files,
    entry: &Walked,
    target: Utf8PathBuf,
    request: &Request<'_>,
) -> Result<HostFile> {
    let source = format!("{DIRECTORY}/{}", entry.path);
    let original = format!("/{}", entry.path);
    let content = || -> Result<Vec<u8>> { Ok(files.read(&source, MAX_BYTES)?.unwrap_or_default()) };
    let is_template = request
        .templates
        .iter()
        .any(|path| *path == original || target == *path);
    let (kind, checksum) = match &entry.node {
        Node::Dir => (Kind::Dir, "0".to_owned()),
        Node::Link(to) => (Kind::Link(to.clone()), format!("link:{to}")),
        Node::File if is_template => {
            let Ok(text) = String::from_utf8(content()?) else {
                fail!(ErrorKind::Invalid, "the template {original} is not UTF-8");
            };
            let text = request.fill_in(&original, &text)?;
            let digest = Digest::of(text.as_bytes()).hex();
            (Kind::Text(text), digest)
        }
        Node::File => (Kind::File, Digest::of(&content()?).hex()),
        Node::Other => fail!(
            ErrorKind::Invalid,
            "the image wants to write {target}, which is a device, a socket or a name that is not UTF-8"
        ),
    };
    let may_link = request.use_links && target.starts_with("/usr") && kind == Kind::File;
    let mut xattrs = entry.xattrs.clone();
    xattrs.retain(|(name, _)| name == "security.capability" || name.starts_with("user."));
    Ok(HostFile {
        target,
        checksum,
        payload: Payload {
            source,
            kind,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            xattrs,
            may_link,
        },
    })
}

/// The path of a host file: each beginning of it is renamed in turn, so that directories can be.
fn rename(path: &str, request: &Request<'_>) -> Result<String> {
    let mut out = String::new();
    for part in path.split('/') {
        out.push('/');
        out.push_str(part);
        if let Some(to) = request.rename.get(&out) {
            out = request.fill_in("renameFiles", to)?;
        }
    }
    Ok(out)
}
