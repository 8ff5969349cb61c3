//! Layers into a file system that is not mounted, for those who may not mount: by scripts for `debugfs`, one a layer. The
//! same layers give the same bytes.
//!
//! Source: debugfs(8) of e2fsprogs 1.47.

use std::collections::BTreeMap;
use std::io;

use camino::{Utf8Path, Utf8PathBuf};

use super::lay::{Content, Target};
use super::model::{Found, Model, Node, ROOT, Removal, join};
use super::password;
use crate::command::Child;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::safefs::entry_path::{normal, split};
use crate::safefs::{Device, Meta};

/// Where e2fsprogs' programs are for those who do not have them in PATH.
const SBIN: &str = "/usr/sbin";
/// The time that is now, in all that is written: 2020-01-01.
pub const TIME: &str = "1577836800";
pub const TIME_VARIABLE: &str = "E2FSPROGS_FAKE_TIME";
/// What directories get that an archive only implies.
const IMPLIED: u32 = 0o755;
/// debugfs reads no longer lines.
const MAX_LINE: usize = 8000;

const S_IFIFO: u32 = 0o01_0000;
const S_IFCHR: u32 = 0o02_0000;
const S_IFDIR: u32 = 0o04_0000;
const S_IFBLK: u32 = 0o06_0000;
const S_IFREG: u32 = 0o10_0000;
const S_IFLNK: u32 = 0o12_0000;

/// A program of e2fsprogs.
pub fn program(name: &str) -> String {
    let at = Utf8Path::new(SBIN).join(name);
    if at.is_file() {
        at.into_string()
    } else {
        name.to_owned()
    }
}

/// A file system, and what is to be done to it.
pub struct Script<'d> {
    image: &'d Utf8Path,
    /// For files that are in no other place.
    scratch: Utf8PathBuf,
    files: usize,
    model: Model,
    commands: Vec<u8>,
    /// What root's password would be in.
    shadow: Option<Meta>,
}

impl<'d> Script<'d> {
    /// For the file system in `image`, which is new; `scratch` is an empty directory.
    pub fn new(image: &'d Utf8Path, scratch: Utf8PathBuf) -> Result<Self> {
        let mut out = Self {
            image,
            scratch,
            files: 0,
            model: Model::with(b"lost+found"),
            commands: Vec::new(),
            shadow: None,
        };
        // An archive need not say what its root is like.
        let meta = plain(IMPLIED);
        out.settle(b"", S_IFDIR, &meta)?;
        Ok(out)
    }

    /// Have root's line of `etc/shadow` hold this hash; all else stays.
    ///
    /// # Errors
    /// [`Kind::NotFound`] without such a file or line.
    pub fn set_password(&mut self, hash: &str) -> Result<()> {
        let missing = || {
            let text = format!(
                "there is no /{}, where root's password would be, or it is a link",
                password::SHADOW
            );
            Error::new(Kind::NotFound, text)
        };
        let etc = self.model.child(ROOT, b"etc").ok_or_else(missing)?;
        let shadow = self.model.child(etc, b"shadow");
        let meta = self.shadow.clone().filter(|_| {
            shadow.is_some_and(|shadow| matches!(self.model.node(shadow), Node::Other))
        });
        let meta = meta.ok_or_else(missing)?;
        let copy = self.scratch_file();
        let dump = format!("dump \"/{}\" \"{copy}\"", password::SHADOW);
        let said = Child::new(program("debugfs"))
            .args(["-R", &dump, self.image.as_str()])
            .output()?;
        complaints(&said.stderr)?;
        let failed = || format!("cannot read /{}", password::SHADOW);
        let text = std::fs::read(&copy).context(failed)?;
        let text = password::replace(&text, hash)?;
        let mut input = text.as_slice();
        self.model.next_layer();
        self.file(
            password::SHADOW.as_bytes(),
            meta,
            Content::Stream(&mut input),
        )?;
        self.end_layer()
    }

    fn scratch_file(&mut self) -> Utf8PathBuf {
        self.files += 1;
        self.scratch.join(self.files.to_string())
    }

    fn command(&mut self, words: &[&[u8]]) -> Result<()> {
        let line = words.join(&b' ');
        if line.contains(&b'\n') || line.len() > MAX_LINE {
            fail!(
                Kind::Permission,
                "on a disk {} can only be made by root: its name has a line break or is too long",
                String::from_utf8_lossy(words.last().copied().unwrap_or_default()).escape_debug()
            );
        }
        self.commands.extend(line);
        self.commands.push(b'\n');
        Ok(())
    }

    /// Where a new entry goes: its directory and its name, which is free then.
    fn place(&mut self, path: &[u8]) -> Result<(Found, Vec<u8>)> {
        let path = normal(path)?;
        let Some((parent, name)) = split(&path) else {
            fail!(Kind::Invalid, "the root of a layer is no directory");
        };
        let parent = self.parent(parent)?;
        let gone = self.model.remove(&parent, name);
        self.remove(&gone)?;
        Ok((parent, name.to_vec()))
    }

    /// The directory at `path`, made if it is missing.
    fn parent(&mut self, path: &[u8]) -> Result<Found> {
        if let Some(found) = self.model.find_dir(path)? {
            return Ok(found);
        }
        let mut here = Found {
            id: ROOT,
            path: Vec::new(),
        };
        let mut begun = Vec::new();
        for part in path.split(|byte| *byte == b'/') {
            begun = join(&begun, part);
            if let Some(found) = self.model.find_dir(&begun)? {
                here = found;
                continue;
            }
            // A file, or a link that leads nowhere.
            let gone = self.model.remove(&here, part);
            self.remove(&gone)?;
            here = self.make_dir(&here, part)?;
            self.settle(&here.path.clone(), S_IFDIR, &plain(IMPLIED))?;
        }
        Ok(here)
    }

    fn make_dir(&mut self, above: &Found, name: &[u8]) -> Result<Found> {
        let found = Found {
            id: self.model.add(above.id, name, Node::Dir(BTreeMap::new())),
            path: join(&above.path, name),
        };
        self.command(&[b"mkdir", &quoted(&found.path)])?;
        Ok(found)
    }

    fn remove(&mut self, gone: &[Removal]) -> Result<()> {
        for removal in gone {
            match removal {
                Removal::File(path) => self.command(&[b"rm", &quoted(path)])?,
                Removal::Dir(path) => self.command(&[b"rmdir", &quoted(path)])?,
            }
        }
        Ok(())
    }

    /// Give an entry all that it is beside its content.
    fn settle(&mut self, path: &[u8], kind: u32, meta: &Meta) -> Result<()> {
        let name = quoted(path);
        let mut set = |field: &str, value: String| {
            let words: [&[u8]; 4] = [b"sif", &name, field.as_bytes(), value.as_bytes()];
            self.command(&words)
        };
        set("mode", format!("0{:o}", kind | (meta.mode & 0o7777)))?;
        set("uid", meta.uid.to_string())?;
        set("gid", meta.gid.to_string())?;
        let (seconds, nanoseconds) = meta.mtime;
        set("mtime", format!("@{seconds}"))?;
        // What does not fit 32 bits, and parts of a second. Source: ext4's "Inode Timestamps".
        let epoch = (seconds + (1 << 31)) >> 32 & 3;
        set(
            "mtime_extra",
            ((i64::from(nanoseconds) << 2) | epoch).to_string(),
        )
    }

    fn set_xattrs(&mut self, id: usize, path: &[u8], meta: &Meta) -> Result<()> {
        let names = meta.xattrs.iter().map(|(name, _)| name.clone()).collect();
        let name = quoted(path);
        for before in self.model.set_xattrs(id, names) {
            self.command(&[b"ea_rm", &name, &before])?;
        }
        for (key, value) in &meta.xattrs {
            let file = self.scratch_file();
            std::fs::write(&file, value).context(|| format!("cannot write {file}"))?;
            let file = quoted_host(file.as_str());
            self.command(&[b"ea_set", b"-f", &file, &name, key])?;
        }
        Ok(())
    }
}

impl Target for Script<'_> {
    fn dir(&mut self, path: &[u8], meta: &Meta) -> Result<()> {
        let path = normal(path)?;
        let found = match split(&path) {
            None => Found {
                id: ROOT,
                path: Vec::new(),
            },
            Some((parent, name)) => {
                let parent = self.parent(parent)?;
                match self.model.child(parent.id, name) {
                    Some(id) if matches!(self.model.node(id), Node::Dir(_)) => Found {
                        id,
                        path: join(&parent.path, name),
                    },
                    _ => {
                        let gone = self.model.remove(&parent, name);
                        self.remove(&gone)?;
                        self.make_dir(&parent, name)?
                    }
                }
            }
        };
        self.model.confirm(found.id);
        self.settle(&found.path, S_IFDIR, meta)?;
        self.set_xattrs(found.id, &found.path, meta)
    }

    fn file(&mut self, path: &[u8], meta: Meta, content: Content<'_>) -> Result<()> {
        let (parent, name) = self.place(path)?;
        let real = join(&parent.path, &name);
        let from = match content {
            Content::Stored(path) => path,
            Content::Stream(mut content) => {
                let at = self.scratch_file();
                let failed = || format!("cannot write {at}");
                let mut file = std::fs::File::create_new(&at).context(failed)?;
                io::copy(&mut content, &mut file).context(failed)?;
                at
            }
        };
        let id = self.model.add(parent.id, &name, Node::Other);
        self.command(&[b"write", &quoted_host(from.as_str()), &quoted(&real)])?;
        self.settle(&real, S_IFREG, &meta)?;
        self.set_xattrs(id, &real, &meta)?;
        if real == password::SHADOW.as_bytes() {
            self.shadow = Some(meta);
        }
        Ok(())
    }

    fn symlink(&mut self, path: &[u8], target: &[u8], meta: &Meta) -> Result<()> {
        let (parent, name) = self.place(path)?;
        let real = join(&parent.path, &name);
        let id = self
            .model
            .add(parent.id, &name, Node::Link(target.to_vec()));
        self.command(&[b"symlink", &quoted(&real), &quoted_host(target)])?;
        let meta = Meta {
            mode: 0o777,
            ..meta.clone()
        };
        self.settle(&real, S_IFLNK, &meta)?;
        self.set_xattrs(id, &real, &meta)
    }

    fn device(&mut self, path: &[u8], device: Device, meta: &Meta) -> Result<()> {
        let (parent, name) = self.place(path)?;
        let real = join(&parent.path, &name);
        let id = self.model.add(parent.id, &name, Node::Other);
        // What makes it takes no path.
        self.command(&[b"cd", &quoted(&parent.path)])?;
        let name = quoted_host(&name);
        let kind = match device {
            Device::Fifo => {
                self.command(&[b"mknod", &name, b"p"])?;
                S_IFIFO
            }
            Device::Char(major, minor) | Device::Block(major, minor) => {
                let is_char = matches!(device, Device::Char(..));
                let (word, kind): (&[u8], u32) = if is_char {
                    (b"c", S_IFCHR)
                } else {
                    (b"b", S_IFBLK)
                };
                let (major, minor) = (major.to_string(), minor.to_string());
                let words: [&[u8]; 5] = [b"mknod", &name, word, major.as_bytes(), minor.as_bytes()];
                self.command(&words)?;
                kind
            }
        };
        self.command(&[b"cd", b"/"])?;
        self.settle(&real, kind, meta)?;
        self.set_xattrs(id, &real, meta)
    }

    fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<()> {
        let (path, target) = (normal(path)?, normal(target)?);
        let missing = || {
            let shown = String::from_utf8_lossy(&target).escape_debug().to_string();
            let text = format!("a hard link to \"{shown}\", which is not there");
            Error::new(Kind::Invalid, text)
        };
        let (below, last) = split(&target).ok_or_else(missing)?;
        let from = self.model.find_dir(below)?.ok_or_else(missing)?;
        let id = self.model.child(from.id, last);
        let id = id.filter(|id| !matches!(self.model.node(*id), Node::Dir(_)));
        let id = id.ok_or_else(missing)?;
        if path == target {
            // It is its own link already.
            return Ok(());
        }
        let (parent, name) = self.place(&path)?;
        // What is replaced may have been it.
        if self.model.child(from.id, last) != Some(id) {
            return Err(missing());
        }
        let (old, new) = (join(&from.path, last), join(&parent.path, &name));
        self.model.link(parent.id, &name, id);
        self.command(&[b"ln", &quoted(&old), &quoted(&new)])?;
        // It does not count.
        let links = self.model.links(id).to_string();
        self.command(&[b"sif", &quoted(&new), b"links_count", links.as_bytes()])
    }

    fn white_out(&mut self, path: &[u8]) -> Result<()> {
        let path = normal(path)?;
        let Some((parent, name)) = split(&path) else {
            fail!(Kind::Invalid, "a whiteout of nothing");
        };
        let Some(parent) = self.model.find_dir(parent)? else {
            return Ok(());
        };
        let gone = self.model.white_out(&parent, name);
        self.remove(&gone)
    }

    fn make_opaque(&mut self, path: &[u8]) -> Result<()> {
        let Some(found) = self.model.find_dir(&normal(path)?)? else {
            return Ok(());
        };
        let gone = self.model.make_opaque(&found);
        self.remove(&gone)
    }

    /// Have it done.
    fn end_layer(&mut self) -> Result<()> {
        self.model.next_layer();
        let commands = std::mem::take(&mut self.commands);
        let script = self.scratch.join("script");
        std::fs::write(&script, commands).context(|| format!("cannot write {script}"))?;
        let said = Child::new(program("debugfs"))
            .env(TIME_VARIABLE, TIME)
            .args(["-w", "-f", script.as_str(), self.image.as_str()])
            .output()?;
        complaints(&said.stderr)?;
        for number in 1..=self.files {
            let file = self.scratch.join(number.to_string());
            crate::safefs::remove_if_exists(file.as_std_path())?;
        }
        self.files = 0;
        Ok(())
    }

    fn finish(self) -> Result<()> {
        Ok(())
    }
}

/// debugfs ends well whatever happens, but says what did.
fn complaints(stderr: &str) -> Result<()> {
    let mut lines = stderr.lines().map(str::trim);
    // Its version comes first.
    let complaint = lines.find(|line| !line.is_empty() && !line.starts_with("debugfs 1."));
    match complaint {
        None => Ok(()),
        Some(line) if line.contains("Could not allocate") => {
            fail!(Kind::Failed, "No space left on the disk: {line}")
        }
        Some(line) => fail!(Kind::Failed, "debugfs: {line}"),
    }
}

fn plain(mode: u32) -> Meta {
    Meta {
        mode,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        xattrs: Vec::new(),
    }
}

/// A path of the file system as one word.
fn quoted(path: &[u8]) -> Vec<u8> {
    quoted_host([b"/", path].concat())
}

/// Anything else as one word: in quotes, in which a quote stands twice.
fn quoted_host(word: impl AsRef<[u8]>) -> Vec<u8> {
    let mut out = vec![b'"'];
    for byte in word.as_ref() {
        if *byte == b'"' {
            out.push(b'"');
        }
        out.push(*byte);
    }
    out.push(b'"');
    out
}
