//! Commands on archives of images.

use std::io::Write as _;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;

use super::grammar::{Opt, Takes, Words};
use super::images::{familiar, find, parse, platform};
use super::{Call, Code, containers, failed};
use crate::command::Child;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::image::{Manifest, Name, Platform, Reference};
use crate::pull::{self, Remote};
use crate::rootless::create;
use crate::store::Store;
use crate::store::export::Scratch;
use crate::transport::Access;

pub const LOAD: [Opt; 1] = [(&["--input", "-i"], Takes::Value)];
pub const SAVE: [Opt; 1] = [(&["--output", "-o"], Takes::Value)];
pub const IMPORT: [Opt; 5] = [
    (&["--mv"], Takes::Nothing),
    (&["--tocontainer"], Takes::Nothing),
    (&["--clone"], Takes::Nothing),
    (&["--name"], Takes::Value),
    (&["--platform"], Takes::Value),
];

/// A file of what comes on stdin, for those who want to go over it more than once.
struct Spool {
    path: Utf8PathBuf,
    _file: Option<tempfile::NamedTempFile>,
}

impl Spool {
    fn of(call: &Call, path: Option<&str>) -> Result<Self> {
        if let Some(path) = path.filter(|path| *path != "-") {
            return Ok(Self {
                path: camino::absolute_utf8(path).context(|| path.to_owned())?,
                _file: None,
            });
        }
        let failed = || "cannot keep what comes on stdin".into();
        std::fs::create_dir_all(&call.config.checkouts).context(failed)?;
        let mut file = tempfile::NamedTempFile::new_in(&call.config.checkouts).context(failed)?;
        std::io::copy(&mut std::io::stdin().lock(), &mut file).context(failed)?;
        let path = Utf8PathBuf::from_path_buf(file.path().to_owned());
        let path = path.map_err(|_| Error::new(Kind::Failed, failed()))?;
        Ok(Self {
            path,
            _file: Some(file),
        })
    }
}

pub fn load(call: &mut Call, words: &Words) -> Code {
    // A dash is stdin, wherever it is.
    let rest: Vec<&String> = words.rest.iter().filter(|word| *word != "-").collect();
    let wanted = match rest.as_slice() {
        [] => None,
        [name] => Some(name.as_str()),
        _ => return failed("load failed: there is more than one name"),
    };
    let spool = Spool::of(call, words.value("--input"))?;
    if !spool.path.is_file() {
        return failed(&format!("load failed: {} is not a file", spool.path));
    }
    let store = Store::open(&call.config)?;
    let references = in_archive(&spool.path, wanted)?;
    for (reference, name) in references {
        let loaded = (|| {
            let remote = Remote::open(&call.config, &reference, &Access::default())?;
            let name = match name {
                Some(name) => name,
                None => remote.name().clone(),
            };
            if store.image(&name.to_string())?.is_some() {
                call.info(format!(
                    "Info: repository and tag already exist {} {}",
                    familiar(&name.without_tag()),
                    name.tag().unwrap_or_default()
                ))?;
                fail!(Kind::Exists, "it exists");
            }
            for layer in remote.layers() {
                call.info(format!("Info: adding layer: {}", layer.digest))?;
            }
            remote.fetch_as(
                &call.config,
                &store,
                &name,
                reference.to_string(),
                &mut pull::Silent,
            )?;
            Ok(name)
        })();
        match loaded {
            Ok(name) => call.result(familiar(&name.to_string()))?,
            Err(error) => return failed(&format!("load failed: {error}")),
        }
    }
    Ok(0)
}

/// The images of an archive, with the names that they get if those are not their own.
fn in_archive(path: &Utf8Path, wanted: Option<&str>) -> Result<Vec<(Reference, Option<Name>)>> {
    let wanted = wanted.map(parse).transpose()?;
    let names = Child::new("tar")
        .args(["--force-local", "--list", "--file", path.as_str()])
        .run()?;
    let names = String::from_utf8_lossy(&names);
    let has = |name: &str| {
        names
            .lines()
            .any(|line| line.trim_start_matches("./") == name)
    };
    // Archives of today's docker are both.
    if has("manifest.json") {
        let text = member(path, "manifest.json")?;
        let tags = text.as_array().into_iter().flatten();
        let tags = tags.flat_map(|image| image["RepoTags"].as_array().into_iter().flatten());
        let mut out = Vec::new();
        for tag in tags.filter_map(Value::as_str) {
            let reference = format!("docker-archive:{path}:{tag}").parse()?;
            out.push((
                reference,
                Some(wanted.clone().map_or_else(|| parse(tag), Ok)?),
            ));
        }
        if out.is_empty() {
            let name = wanted.map_or_else(unnamed, Ok)?;
            out.push((format!("docker-archive:{path}").parse()?, Some(name)));
        }
        return Ok(out);
    }
    if !has("oci-layout") {
        fail!(Kind::Invalid, "this is no archive of images");
    }
    let index = member(path, "index.json")?;
    let mut out = Vec::new();
    for entry in index["manifests"].as_array().into_iter().flatten() {
        let notes = &entry["annotations"];
        let tag = notes["org.opencontainers.image.ref.name"].as_str();
        let full = notes["io.containerd.image.name"].as_str();
        let full = full.or_else(|| tag.filter(|tag| tag.contains([':', '/'])));
        let name = match (&wanted, full, tag) {
            (Some(wanted), ..) => wanted.clone(),
            (None, Some(full), _) => parse(full)?,
            (None, None, Some(tag)) => {
                let base = unnamed()?;
                parse(&format!("{}:{tag}", base.without_tag()))?
            }
            (None, None, None) => unnamed()?,
        };
        let reference = match tag {
            Some(tag) => format!("oci-archive:{path}:{tag}"),
            None => format!("oci-archive:{path}"),
        };
        out.push((reference.parse()?, Some(name)));
    }
    Ok(out)
}

/// For an image that nobody named.
fn unnamed() -> Result<Name> {
    parse(&uuid::Uuid::new_v4().simple().to_string()[..16])
}

fn member(path: &Utf8Path, name: &str) -> Result<Value> {
    let read = |name: &str| {
        let child = Child::new("tar").args([
            "--force-local",
            "--extract",
            "--to-stdout",
            "--file",
            path.as_str(),
        ]);
        child.arg(name).run()
    };
    let text = read(name).or_else(|_| read(&format!("./{name}")))?;
    serde_json::from_slice(&text).kind(Kind::Invalid, || {
        format!("{name} of the archive is damaged")
    })
}

pub fn save(call: &mut Call, words: &Words) -> Code {
    if words.rest.is_empty() {
        return failed("must specify image:tag or repository/image:tag");
    }
    let output = words.value("--output").filter(|path| *path != "-");
    if let Some(path) = output
        && Utf8Path::new(path).exists()
    {
        return failed(&format!("output file already exists: {path}"));
    }
    let store = Store::open(&call.config)?;
    let mut images = Vec::new();
    for spec in &words.rest {
        match find(&store, spec)? {
            Some(image) => images.push(image),
            None => return failed(&format!("save image failed: {spec}")),
        }
    }
    let Some(path) = output else {
        let mut out = std::io::stdout().lock();
        store.write_docker_archive(&images, &mut out)?;
        out.flush().context(|| "cannot write the archive".into())?;
        return Ok(0);
    };
    let written = std::fs::File::create(path)
        .context(|| format!("cannot create {path}"))
        .and_then(|file| store.write_docker_archive(&images, file));
    if written.is_err() {
        crate::safefs::remove_if_exists(Utf8Path::new(path).as_std_path())?;
    }
    written?;
    Ok(0)
}

pub fn import(call: &mut Call, words: &Words) -> Code {
    let is_container = words.has("--tocontainer");
    let (tar, spec) = match words.rest.as_slice() {
        [tar, spec] => (tar.as_str(), spec.as_str()),
        [tar] if is_container || words.has("--clone") => (tar.as_str(), "imported:unknown"),
        // What comes on stdin needs no word.
        [spec] if !is_container => ("-", spec.as_str()),
        _ => return failed("must specify tar filename"),
    };
    let spool = Spool::of(call, Some(tar))?;
    if !spool.path.is_file() {
        return failed("tar file does not exist");
    }
    let store = Store::open(&call.config)?;
    if words.has("--clone") {
        return import_clone(call, words, &store, &spool.path);
    }
    let name = parse(spec)?;
    if !is_container && store.image(&name.to_string())?.is_some() {
        call.info(format!(
            "Info: tag already exists in repo: {}",
            name.tag().unwrap_or_default()
        ))?;
        return failed("importing");
    }
    let platform = platform(words)?.unwrap_or_else(Platform::host);
    // A container needs no image of that name, and there may be one.
    let image_name = if is_container {
        unnamed()?
    } else {
        name.clone()
    };
    let image = pull::import_tar(&call.config, &store, &spool.path, &image_name, &platform)?;
    if words.has("--mv") && tar != "-" {
        crate::safefs::remove_if_exists(spool.path.as_std_path())?;
    }
    if !is_container {
        for layer in image.manifest.iter().flat_map(Manifest::layer_digests) {
            call.result(format!("Info: added layer {}", layer.hex()))?;
        }
        return Ok(0);
    }
    let named = crate::store::images::StoredImage {
        name: name.to_string(),
        ..image.clone()
    };
    let container_name = words
        .value("--name")
        .map(containers::parse_name)
        .transpose()?;
    let made = create::create(
        &call.config,
        &store,
        &create::Create {
            image: &named,
            name: container_name.as_ref(),
            force: false,
            mode: call.mode(words)?,
        },
    );
    // The container stands on its own.
    store.delete_image(&image)?;
    call.result(made?.record.id)?;
    Ok(0)
}

/// Where a container's files are in an archive of all of it.
pub const ROOT: &str = "ROOT";

/// A small file of an archive, whose end is not here.
pub fn small_file(name: &str, bytes: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 512;
    let mut header = tar::Header::new_ustar();
    // It is a short one.
    let _ = header.set_path(name);
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    let mut out = header.as_bytes().to_vec();
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
    out
}

/// A container of an archive of all of one.
fn import_clone(call: &Call, words: &Words, store: &Store, archive: &Utf8Path) -> Code {
    let name = words
        .value("--name")
        .map(containers::parse_name)
        .transpose()?;
    let scratch = Scratch::new(store)?;
    let path = scratch.path();
    Child::new("tar")
        .args([
            "--extract",
            "--force-local",
            "--no-same-owner",
            "--preserve-permissions",
        ])
        .args(["--delay-directory-restore", "--file", archive.as_str()])
        .args(["--directory", path.as_str()])
        .run()?;
    let text = std::fs::read(path.join("container.json"));
    let config = text
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok());
    let (Some(config), true) = (config, path.join(ROOT).is_dir()) else {
        return failed("importing: this is no archive of a container");
    };
    let image = std::fs::read_to_string(path.join("imagerepo.name")).unwrap_or_default();
    let made = create::adopt(
        &call.config,
        &create::Adopt {
            id: None,
            files: &path.join(ROOT),
            lent: false,
            image: image.trim().to_owned(),
            config,
            name: name.as_ref(),
            mode: call.mode(words)?,
            protected: false,
        },
    )?;
    call.result(made.record.id)?;
    Ok(0)
}
