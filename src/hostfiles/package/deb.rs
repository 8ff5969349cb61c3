//! deb: an ar archive of a tar archive with what is said and one with what is brought. Source: deb(5).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use camino::Utf8Path;
use flate2::Compression;
use flate2::write::GzEncoder;
use md5::{Digest as _, Md5};
use tar::{EntryType, Header};

use super::scripts::Scripts;
use super::{Body, Entry, Format, Package, Relation};
use crate::error::{Context as _, Result};
use crate::image::Platform;

const GZIP_LEVEL: u32 = 6;

/// Write `package` as the file `at`.
pub(super) fn build(package: &Package, at: &Path) -> Result<()> {
    write(package, at).context(|| format!("the package {} cannot be made", package.name))
}

fn write(package: &Package, at: &Path) -> io::Result<()> {
    let mut data = Archive::new(package.date)?;
    let mut sums = String::new();
    let mut bytes = 0;
    let mut parents: BTreeSet<&Utf8Path> = BTreeSet::new();
    let documents = documents(package)?;
    let sorted: BTreeMap<&Utf8Path, &Entry> = package
        .entries
        .iter()
        .chain(&documents)
        .map(|entry| (entry.path.as_path(), entry))
        .collect();
    let mut first_of: HashMap<(u64, u64), (&Utf8Path, String)> = HashMap::new();
    for (path, entry) in &sorted {
        // Every directory on the way is in the archive, and before what is in it.
        for above in path
            .ancestors()
            .skip(1)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
        {
            if parents.insert(above) && !sorted.contains_key(above) {
                data.directory(above, 0o755, (0, 0))?;
            }
        }
        let owner = (entry.uid, entry.gid);
        match &entry.body {
            Body::Dir => {
                parents.insert(path);
                data.directory(path, entry.mode, owner)?;
            }
            Body::Link(target) => data.link(path, target.as_ref(), EntryType::Symlink, entry)?,
            Body::Bytes(content) => {
                let size = content.len() as u64;
                bytes += size;
                let sum = data.file(path, (entry.mode, size), owner, content.as_slice())?;
                sums += &format!("{sum}  {}\n", below_root(path));
            }
            Body::Copy(source) => {
                let source = File::open(source)?;
                let found = source.metadata()?;
                let inode = (found.dev(), found.ino());
                let sum = if let Some((first, sum)) = first_of.get(&inode) {
                    let first = format!("./{}", below_root(first));
                    data.link(path, first.as_ref(), EntryType::Link, entry)?;
                    sum.clone()
                } else {
                    bytes += found.len();
                    let size = (entry.mode, found.len());
                    let sum = data.file(path, size, owner, BufReader::new(source))?;
                    first_of.insert(inode, (path, sum.clone()));
                    sum
                };
                sums += &format!("{sum}  {}\n", below_root(path));
            }
        }
    }
    let mut control = Archive::new(package.date)?;
    control.directory("/".into(), 0o755, (0, 0))?;
    let conffiles: String = sorted
        .values()
        .filter(|entry| entry.is_config())
        .map(|entry| format!("{}\n", entry.path))
        .collect();
    let scripts = Scripts::new(package, Format::Deb);
    let script = |text: String| {
        if text.is_empty() {
            text
        } else {
            format!("#!/bin/sh\nset -e\n{text}")
        }
    };
    for (name, content, mode) in [
        ("conffiles", conffiles, 0o644),
        ("control", control_text(package, bytes), 0o644),
        ("md5sums", sums, 0o644),
        ("postinst", script(scripts.after_install), 0o755),
        ("postrm", script(scripts.after_removal), 0o755),
        ("prerm", script(scripts.before_removal), 0o755),
    ] {
        if !content.is_empty() {
            let path = Utf8Path::new("/").join(name);
            control.file(
                &path,
                (mode, content.len() as u64),
                (0, 0),
                content.as_bytes(),
            )?;
        }
    }
    let mut out = ar::Builder::new(File::create_new(at)?);
    for (name, mut content) in [
        ("debian-binary", content_of(b"2.0\n")?),
        ("control.tar.gz", control.finish()?),
        ("data.tar.gz", data.finish()?),
    ] {
        let mut header = ar::Header::new(name.into(), content.metadata()?.len());
        header.set_mtime(package.date);
        header.set_mode(0o100_644);
        content.rewind()?;
        out.append(&header, content)?;
    }
    out.into_inner()?.flush()
}

/// What Debian's policy (12.5, 12.7) wants every package to have.
fn documents(package: &Package) -> io::Result<[Entry; 2]> {
    let fields = &package.fields;
    let directory = Utf8Path::new("/usr/share/doc").join(&package.name);
    let copyright = format!(
        "{}

License: {}
",
        fields.description, fields.license
    );
    let date = i64::try_from(package.date)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map(|time| time.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string())
        .unwrap_or_default();
    let changelog = format!(
        "{} ({}) unstable; urgency=medium

  * Made from its image.

 -- {}  {date}
",
        package.name,
        version(&fields.version, &fields.release),
        maintainer(fields.maintainer.as_deref()),
    );
    let mut packed = flate2::GzBuilder::new().write(Vec::new(), Compression::best());
    packed.write_all(changelog.as_bytes())?;
    let mut changelog = Entry::text(directory.join("changelog.Debian.gz"), "", 0o644);
    changelog.body = Body::Bytes(packed.finish()?);
    Ok([
        Entry::text(directory.join("copyright"), &copyright, 0o644),
        changelog,
    ])
}

fn content_of(bytes: &[u8]) -> io::Result<File> {
    let mut file = tempfile::tempfile()?;
    file.write_all(bytes)?;
    Ok(file)
}

/// A tar archive under way.
struct Archive {
    tar: tar::Builder<GzEncoder<File>>,
    date: u64,
}

impl Archive {
    fn new(date: u64) -> io::Result<Self> {
        let out = GzEncoder::new(tempfile::tempfile()?, Compression::new(GZIP_LEVEL));
        Ok(Self {
            tar: tar::Builder::new(out),
            date,
        })
    }

    fn header(&self, kind: EntryType, mode: u32, (uid, gid): (u32, u32)) -> io::Result<Header> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(uid.into());
        header.set_gid(gid.into());
        header.set_mtime(self.date);
        header.set_size(0);
        // dpkg goes by names first; other owners have none here.
        if uid == 0 {
            header.set_username("root")?;
        }
        if gid == 0 {
            header.set_groupname("root")?;
        }
        Ok(header)
    }

    fn directory(&mut self, path: &Utf8Path, mode: u32, owner: (u32, u32)) -> io::Result<()> {
        let mut header = self.header(EntryType::Directory, mode, owner)?;
        let name = match below_root(path) {
            "" => "./".to_owned(),
            name => format!("./{name}/"),
        };
        self.tar.append_data(&mut header, name, io::empty())
    }

    fn link(
        &mut self,
        path: &Utf8Path,
        target: &Path,
        kind: EntryType,
        entry: &Entry,
    ) -> io::Result<()> {
        let mut header = self.header(kind, entry.mode, (entry.uid, entry.gid))?;
        self.tar
            .append_link(&mut header, format!("./{}", below_root(path)), target)
    }

    /// Returns the MD5 sum of the content.
    fn file(
        &mut self,
        path: &Utf8Path,
        (mode, size): (u32, u64),
        owner: (u32, u32),
        content: impl Read,
    ) -> io::Result<String> {
        let mut header = self.header(EntryType::Regular, mode, owner)?;
        header.set_size(size);
        let mut summing = Summing {
            inner: content,
            sum: Md5::new(),
        };
        let name = format!("./{}", below_root(path));
        self.tar.append_data(&mut header, name, &mut summing)?;
        let sum = summing.sum.finalize();
        Ok(sum.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn finish(self) -> io::Result<File> {
        self.tar.into_inner()?.finish()
    }
}

/// What is read through it is summed up.
struct Summing<R> {
    inner: R,
    sum: Md5,
}

impl<R: Read> Read for Summing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.sum.update(&buffer[..count]);
        Ok(count)
    }
}

fn below_root(path: &Utf8Path) -> &str {
    path.as_str().trim_start_matches('/')
}

/// Source: deb-control(5).
fn control_text(package: &Package, bytes: u64) -> String {
    let fields = &package.fields;
    let mut out = format!(
        "Package: {}\nVersion: {}\nArchitecture: {}\nMaintainer: {}\nInstalled-Size: {}\n",
        package.name,
        version(&fields.version, &fields.release),
        architecture(&package.platform),
        maintainer(fields.maintainer.as_deref()),
        bytes.div_ceil(1024).max(1),
    );
    let requires = package.needs(Format::Deb);
    for (field, relations) in [
        ("Depends", &requires),
        ("Provides", &fields.provides),
        ("Conflicts", &fields.conflicts),
    ] {
        if !relations.is_empty() {
            let list: Vec<String> = relations.iter().map(Relation::as_deb).collect();
            out += &format!("{field}: {}\n", list.join(", "));
        }
    }
    out += "Section: misc\nPriority: optional\n";
    if let Some(url) = &fields.url {
        out += &format!("Homepage: {url}\n");
    }
    out += &format!("Description: {}\n", fields.summary);
    for line in fields.description.lines() {
        out += &format!(" {line}\n");
    }
    out
}

/// `NAME <ADDRESS>`, which the field has to be.
fn maintainer(said: Option<&str>) -> String {
    match said {
        Some(said) if said.contains('<') && said.ends_with('>') => said.to_owned(),
        Some(said) if said.contains('@') && !said.contains(' ') => format!("{said} <{said}>"),
        Some(said) => format!("{} <root@localhost>", said.replace(['<', '>', ','], "")),
        // Source: dch(1).
        None => match (std::env::var("DEBFULLNAME"), std::env::var("DEBEMAIL")) {
            (Ok(name), Ok(address)) => format!("{name} <{address}>"),
            _ => "root <root@localhost>".into(),
        },
    }
}

/// `VERSION-RELEASE` of the letters that may be in one. Source: deb-version(7).
pub(super) fn version(version: &str, release: &str) -> String {
    let word = |text: &str| -> String {
        text.chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || ".+~".contains(c) {
                    c
                } else {
                    '+'
                }
            })
            .collect()
    };
    let mut upstream = word(version);
    if !upstream.starts_with(|c: char| c.is_ascii_digit()) {
        let digits = upstream.strip_prefix('v').unwrap_or_default();
        upstream = if digits.starts_with(|c: char| c.is_ascii_digit()) {
            digits.to_owned()
        } else {
            format!("0~{upstream}")
        };
    }
    format!("{upstream}-{}", word(release))
}

/// The architecture in Debian's words.
fn architecture(platform: &Platform) -> &str {
    match (platform.architecture.as_str(), platform.variant.as_str()) {
        ("386", _) => "i386",
        ("arm", "v5" | "v6") => "armel",
        ("arm", _) => "armhf",
        ("ppc64le", _) => "ppc64el",
        ("mips64le", _) => "mips64el",
        (other, _) => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_begin_with_a_digit() {
        assert_eq!(version("1.2", "3.ab"), "1.2-3.ab");
        assert_eq!(version("v1.2-rc1", "3_4"), "1.2+rc1-3+4");
        assert_eq!(version("stable", "1"), "0~stable-1");
    }
}
