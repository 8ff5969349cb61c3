//! `atomic-rs bootstrap`, and what its other name shares with it.

use std::process::ExitCode;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;

use super::Call;
use super::args::SourceArgs;
use crate::bootstrap::ids::{Ids, Range};
use crate::bootstrap::password::Secret;
use crate::bootstrap::template::Template;
use crate::bootstrap::{
    self, Backing, Disk, FileSystem, Form, Made, Owners, Progress, Request, Source, namespace,
};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::image::Reference;
use crate::store::Store;
use crate::store::images::StoredImage;

const SOURCES: &str = "\
Where it comes from:
  docker://NAME and the other forms of \"pull\"   an image, which is pulled
  NAME                                          an image that is in the store
  file:///PATH.tar, PATH                        an archive, also one that is compressed
  virt-builder://TEMPLATE                       a template of virt-builder's, where that is installed";

/// Make a root filesystem of an image: a directory, or disk images of its layers
#[allow(clippy::struct_excessive_bools)] // they are flags
#[derive(Debug, clap::Args)]
pub struct Bootstrap {
    /// An image or an archive
    #[arg(long_help = SOURCES)]
    source: String,
    /// The directory to make; for disk images the one that they are in
    destination: Utf8PathBuf,
    /// dir: a directory; qcow2: layer-N.qcow2 for each layer, each over the one before; raw: disk.raw
    #[arg(short, long, value_name = "FORMAT", default_value = "dir", value_parser = ["dir", "qcow2", "raw"])]
    format: String,
    /// The size of a disk, in bytes or with K, M, G or T
    #[arg(long, value_name = "SIZE", default_value = "5G", value_parser = parse_size)]
    size: u64,
    /// The file system of a disk: ext4 or ext3
    #[arg(long = "fs", value_name = "TYPE", default_value = "ext4")]
    file_system: FileSystem,
    /// One qcow2 image in place of a chain
    #[arg(long)]
    flat: bool,
    /// Compress what is in qcow2 images: they are smaller, and slower to make and to read
    #[arg(long)]
    compress: bool,
    /// How a qcow2 image names the one below it: relative, so that they can be moved together, or absolute
    #[arg(long, value_name = "HOW", default_value = "relative")]
    backing: Backing,
    /// Replace the destination if it is not empty
    #[arg(long)]
    force: bool,
    /// Do not keep the image in the store if it was not there before
    #[arg(long)]
    no_cache: bool,
    /// Where root's password comes from: file:PATH, fd:NUMBER or env:NAME
    #[arg(long, value_name = "SELECTOR")]
    root_password: Option<Secret>,
    #[command(flatten)]
    ids: IdArgs,
    /// Whose the files of a directory are, without root: "mine"; "namespace": as in the image, by your range of subordinate
    /// ids; "recorded": yours, and an attribute says whose they would be (umoci and proot know it) [default: mine, with
    /// ranges of ids namespace]
    #[arg(long, value_name = "WHOSE")]
    owners: Option<Owners>,
    /// No progress
    #[arg(short, long)]
    quiet: bool,
    /// Print what was made as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: SourceArgs,
}

/// Make a directory, as root of a user namespace: the program calls itself for this
#[derive(Debug, clap::Args)]
pub struct Inside {}

impl Inside {
    pub fn run() -> ExitCode {
        let done = namespace::make_inside(std::io::stdin().lock(), std::io::stdout().lock());
        // What went wrong was told already.
        done.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
    }
}

/// Other owners than in the image.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct IdArgs {
    /// Users from START on become those from TARGET on; all ranges at once
    #[arg(long, value_name = "START:TARGET:COUNT")]
    uidmap: Vec<Range>,
    /// The same of groups
    #[arg(long, value_name = "START:TARGET:COUNT")]
    gidmap: Vec<Range>,
    /// The same of both
    #[arg(long, value_name = "START:TARGET:COUNT")]
    idmap: Vec<Range>,
}

impl IdArgs {
    pub fn ids(&self) -> Result<Ids> {
        let with = |own: &[Range]| [self.idmap.as_slice(), own].concat();
        Ids::new(with(&self.uidmap), with(&self.gidmap))
    }
}

/// Bytes, or with a letter their 1024th powers.
pub fn parse_size(text: &str) -> Result<u64> {
    let bad = || Error::new(Kind::Usage, format!("\"{text}\" is not a size"));
    let shift = match text.chars().last() {
        Some('K' | 'k') => 10,
        Some('M' | 'm') => 20,
        Some('G' | 'g') => 30,
        Some('T' | 't') => 40,
        _ => 0,
    };
    let number = if shift == 0 {
        text
    } else {
        &text[..text.len() - 1]
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    let size = number.checked_mul(1 << shift).ok_or_else(bad)?;
    // Smaller ones hold no file system worth the name, larger ones no file.
    if !(1 << 20..=1 << 50).contains(&size) {
        fail!(Kind::Usage, "a disk has from 1M to 1024T");
    }
    Ok(size)
}

/// A source as it is typed.
#[derive(Debug, PartialEq, Eq)]
pub enum Typed {
    /// An archive.
    Archive(Utf8PathBuf),
    /// An image of another place.
    Remote(String),
    /// A template of virt-builder's.
    Template(String),
    /// A name without more.
    Name(String),
}

/// # Errors
/// [`Kind::Usage`] for a scheme that is none.
pub fn parse_source(text: &str) -> Result<Typed> {
    if let Some(rest) = text.strip_prefix("file:") {
        // With two slashes there is a host between them, which is this one.
        let path = rest.strip_prefix("//").unwrap_or(rest);
        if path.is_empty() {
            fail!(Kind::Usage, "{text} names no file");
        }
        return Ok(Typed::Archive(path.into()));
    }
    if let Some(rest) = text.strip_prefix("docker://") {
        let name = rest.trim_matches('/');
        return Ok(Typed::Remote(format!("docker://{name}")));
    }
    if let Some(rest) = text.strip_prefix("virt-builder:") {
        let name = rest.trim_start_matches('/');
        if name.is_empty() || name.starts_with('-') {
            fail!(Kind::Usage, "{text} names no template");
        }
        return Ok(Typed::Template(name.to_owned()));
    }
    if text.starts_with(['/', '.']) || Utf8Path::new(text).is_file() {
        return Ok(Typed::Archive(text.into()));
    }
    // What has a colon and something before it may be a name with a tag or one with a transport.
    Ok(match text.split_once(':') {
        Some((transport, _)) if text.parse::<Reference>().is_ok() && is_transport(transport) => {
            Typed::Remote(text.to_owned())
        }
        _ => Typed::Name(text.to_owned()),
    })
}

fn is_transport(word: &str) -> bool {
    matches!(
        word,
        "http"
            | "https"
            | "docker"
            | "docker-archive"
            | "dockertar"
            | "oci"
            | "oci-archive"
            | "dir"
            | "docker-daemon"
            | "containers-storage"
    )
}

/// An image that is needed, and whether it was in the store before.
pub fn image(
    call: &mut Call<'_>,
    store: &Store,
    registry: &SourceArgs,
    typed: &Typed,
) -> Result<(StoredImage, bool)> {
    let text = match typed {
        Typed::Name(name) => {
            if let Some(image) = store.find(name)?.pop() {
                return Ok((image, true));
            }
            fail!(
                Kind::NotFound,
                "there is no file and no stored image \"{name}\": docker://{name} is one of a registry"
            );
        }
        Typed::Remote(text) => text,
        Typed::Archive(path) => fail!(Kind::Usage, "{path} is no image"),
        Typed::Template(name) => fail!(Kind::Usage, "virt-builder's {name} is no image"),
    };
    let reference = registry.reference(text)?;
    let before = crate::store::images::image_names(call.config);
    let pulled = registry.pull(call, store, &reference, None)?;
    let was_there = before.contains(&pulled.image.name);
    Ok((pulled.image, was_there))
}

/// Forget an image that was only needed for once.
pub fn forget(store: &Store, image: &StoredImage) -> Result<()> {
    store.delete_image(image)?;
    store.prune(|_| {}).map(|_| ())
}

impl Bootstrap {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let disk = Disk {
            size: self.size,
            file_system: self.file_system,
            is_compressed: self.compress,
        };
        let form = match self.format.as_str() {
            "qcow2" => Form::Qcow2 {
                disk,
                flat: self.flat,
                backing: self.backing,
            },
            "raw" => Form::Raw { disk },
            _ => Form::Directory,
        };
        for (flag, is_said) in [("--flat", self.flat), ("--compress", self.compress)] {
            if is_said && self.format != "qcow2" {
                fail!(Kind::Usage, "{flag} is for --format qcow2");
            }
        }
        let request = Request {
            destination: self.destination.clone(),
            form,
            ids: self.ids.ids()?,
            owners: self.owners,
            root_password: self.root_password.as_ref().map(Secret::read).transpose()?,
            force: self.force,
        };
        let mut meter = call.meter().quiet(self.quiet);
        let made = make(
            call,
            &self.source,
            &self.registry,
            &request,
            self.no_cache,
            &mut meter,
        )?;
        if made.left_out > 0 {
            call.out.note(format!(
                "{} entries of the image could not be made (devices need root) and were left out",
                made.left_out
            ));
        }
        if self.json {
            call.out.json(&json!({
                "version": 1,
                "paths": made.paths,
                "left_out": made.left_out,
            }))?;
        } else {
            for path in &made.paths {
                call.out.line(path)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Do what is requested, with the source that was typed.
pub fn make(
    call: &mut Call<'_>,
    source: &str,
    registry: &SourceArgs,
    request: &Request,
    no_cache: bool,
    progress: &mut dyn Progress,
) -> Result<Made> {
    match parse_source(source)? {
        Typed::Archive(path) => {
            if !path.is_file() {
                fail!(Kind::NotFound, "there is no file {path}");
            }
            bootstrap::make(call.config, &Source::Archive(path), request, progress)
        }
        Typed::Template(name) => {
            bootstrap::check(call.config, request)?;
            call.out.note(format!(
                "virt-builder makes a disk of {name}: this takes a while"
            ));
            let template = Template::build(&name)?;
            let source = Source::Archive(template.archive().to_owned());
            bootstrap::make(call.config, &source, request, progress)
        }
        typed => {
            bootstrap::check(call.config, request)?;
            let store = Store::open(call.config)?;
            let (image, was_there) = image(call, &store, registry, &typed)?;
            let source = Source::Image(&store, &image);
            let made = bootstrap::make(call.config, &source, request, progress);
            if no_cache && !was_there {
                drop(store);
                forget(&Store::open_exclusive(call.config)?, &image)
                    .context(|| "cannot forget the image".into())?;
            }
            made
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_apart() {
        let archive = |path: &str| Typed::Archive(path.into());
        for (text, wanted) in [
            ("file:///a/x.tar", archive("/a/x.tar")),
            ("file://rel/x.tar", archive("rel/x.tar")),
            ("file:x.tar", archive("x.tar")),
            ("./x.tar", archive("./x.tar")),
            ("docker://app:1", Typed::Remote("docker://app:1".into())),
            ("docker:///app/", Typed::Remote("docker://app".into())),
            (
                "http:host:5000/app",
                Typed::Remote("http:host:5000/app".into()),
            ),
            ("oci:/layout:tag", Typed::Remote("oci:/layout:tag".into())),
            (
                "virt-builder://fedora-40",
                Typed::Template("fedora-40".into()),
            ),
            (
                "virt-builder:/fedora-40",
                Typed::Template("fedora-40".into()),
            ),
            ("app:1", Typed::Name("app:1".into())),
            ("host:5000/app", Typed::Name("host:5000/app".into())),
        ] {
            assert_eq!(parse_source(text).unwrap(), wanted, "{text}");
        }
        assert!(parse_source("virt-builder://").is_err());
        assert!(parse_source("virt-builder:--run").is_err());
        assert!(parse_source("file://").is_err());
    }

    #[test]
    fn sizes_have_letters() {
        assert_eq!(parse_size("5G").unwrap(), 5 << 30);
        assert_eq!(parse_size("1048576").unwrap(), 1 << 20);
        for bad in ["", "G", "1", "-1G", "5GB", "99999999T", "1.5G"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
