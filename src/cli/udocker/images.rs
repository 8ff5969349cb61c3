//! Commands on images.

use std::collections::BTreeMap;

use serde_json::Value;

use super::grammar::{Opt, Takes, Words};
use super::{Call, Code, failed};
use crate::error::{Context as _, Kind, Result};
use crate::image::{Digest, Manifest, Name, Platform, Reference, Transport};
use crate::pull::{Progress, Remote};
use crate::rootless;
use crate::store::Store;
use crate::store::images::StoredImage;
use crate::transport::{self, Access};

pub const PULL: [Opt; 4] = [
    (&["--platform"], Takes::Value),
    (&["--registry"], Takes::Value),
    (&["--index"], Takes::Value),
    (&["--httpproxy"], Takes::Value),
];
pub const IMAGES: [Opt; 4] = [
    (&["-l"], Takes::Nothing),
    (&["-p"], Takes::Nothing),
    (&["--no-trunc"], Takes::Nothing),
    (&["--all"], Takes::Nothing),
];
pub const REMOVE: [Opt; 1] = [(&["-f", "--force"], Takes::Nothing)];
pub const INSPECT: [Opt; 1] = [(&["-p"], Takes::Nothing)];

/// The name that an image's name stands for in the store.
pub fn parse(spec: &str) -> Result<Name> {
    let reference: Reference = format!("docker://{spec}").parse()?;
    reference.fallback_name()
}

/// The stored image of a name.
pub fn find(store: &Store, spec: &str) -> Result<Option<StoredImage>> {
    match parse(spec) {
        Ok(name) => store.image(&name.to_string()),
        Err(_) => Ok(None),
    }
}

/// The stored image of a name, for the platform that is asked for.
pub fn stored(store: &Store, spec: &str, words: &Words) -> Result<Option<StoredImage>> {
    let found = find(store, spec)?;
    let Some(wanted) = platform(words)? else {
        return Ok(found);
    };
    let Some(image) = found else {
        return Ok(None);
    };
    let is = store.image_config(&image)?.platform();
    Ok(is.is_some_and(|is| is.matches(&wanted)).then_some(image))
}

pub fn platform(words: &Words) -> Result<Option<Platform>> {
    words.value("--platform").map(str::parse).transpose()
}

/// How people know an image: without the registry and the directory that are the usual ones.
pub fn familiar(name: &str) -> String {
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    name.strip_prefix("library/").unwrap_or(name).to_owned()
}

/// Says what is fetched.
struct Said<'c>(&'c Call);

impl Progress for Said<'_> {
    fn begin(&mut self, _: usize, _: usize, _: u64) {}
    fn layer(&mut self, digest: Digest, _: u64) {
        // Nobody who reads it is no reason to stop.
        let _ = self.0.info(format!("Info: downloading layer {digest}"));
    }
    fn advance(&mut self, _: u64) {}
    fn end(&mut self) {}
}

/// Where an image is read from, and whether that is by way of another registry than its name says.
fn source(call: &Call, spec: &str, words: &Words) -> Result<(Reference, bool)> {
    let mut reference: Reference = format!("docker://{spec}").parse()?;
    let registry = call.registry(words);
    let is_elsewhere = reference.is_unqualified() && registry.is_some();
    let mut insecure = call.insecure;
    if let (true, Some(registry)) = (is_elsewhere, registry) {
        insecure |= registry.starts_with("http://");
        let host = registry
            .split_once("://")
            .map_or(registry, |(_, host)| host);
        let host = host.split('/').next().unwrap_or(host);
        reference = format!("docker://{host}/{spec}").parse()?;
    }
    if insecure {
        reference.transport = Transport::Registry { insecure: true };
    }
    Ok((reference, is_elsewhere))
}

fn access(call: &Call, words: &Words, reference: &Reference) -> Result<Access> {
    Ok(Access {
        credentials: call.kept_credentials(reference)?,
        tls_verify: call.insecure.then_some(false),
        platform: platform(words)?,
        ..Access::default()
    })
}

/// Fetch an image.
pub fn fetch(call: &Call, store: &Store, spec: &str, words: &Words) -> Result<StoredImage> {
    let (reference, is_elsewhere) = source(call, spec, words)?;
    let mut config = call.config.clone();
    if let Some(proxy) = call.proxy(words) {
        for name in ["HTTP_PROXY", "HTTPS_PROXY"] {
            config.skopeo.env.push((name.into(), proxy.into()));
        }
    }
    let remote = Remote::open(&config, &reference, &access(call, words, &reference)?)?;
    let mut said = Said(call);
    let pulled = if is_elsewhere {
        let name = parse(spec)?;
        remote.fetch_as(&config, store, &name, reference.to_string(), &mut said)?
    } else {
        remote.fetch(&config, store, &mut said)?
    };
    Ok(pulled.image)
}

pub fn pull(call: &mut Call, words: &Words) -> Code {
    let Some(spec) = words.one().filter(|spec| parse(spec).is_ok()) else {
        return failed("must specify image:tag or repository/image:tag");
    };
    let store = Store::open(&call.config)?;
    match fetch(call, &store, spec, words) {
        Ok(_) => Ok(0),
        Err(error) if matches!(error.kind(), Kind::Transport | Kind::NotFound) => {
            say!("Error: manifest not found or not authorized");
            failed(&format!("no files downloaded: {error}"))
        }
        Err(error) => Err(error),
    }
}

pub fn list(call: &mut Call, words: &Words) -> Code {
    call.info("REPOSITORY")?;
    let Some(store) = Store::open_existing(&call.config)? else {
        return Ok(0);
    };
    let protected = call.home().protected_images()?;
    for image in store.inventory()?.images {
        let sign = if protected.contains(&image.name) {
            'P'
        } else {
            '.'
        };
        let name = familiar(&image.name);
        if words.has("-p") {
            let platform = store
                .image_config(&image)?
                .platform()
                .unwrap_or_else(Platform::host);
            call.result(format!("{:<18.18} {sign} {name}", platform.to_string()))?;
        } else {
            call.result(format!("{name}    {sign}"))?;
        }
        if words.has("-l") {
            call.result(format!(" {}", image.id()))?;
            if let Some(Manifest::Image { layers, .. }) = &image.manifest {
                for layer in layers {
                    call.result(format!(
                        "    /{} ({} MB)",
                        layer.digest,
                        layer.size / 1_000_000
                    ))?;
                }
            }
        }
    }
    Ok(0)
}

pub fn remove(call: &mut Call, words: &Words) -> Code {
    let Some(spec) = words.one() else {
        return failed("must specify image:tag or repository/image:tag");
    };
    let store = Store::open(&call.config)?;
    let Some(image) = find(&store, spec)? else {
        return failed("deleting image");
    };
    if call.home().protected_images()?.contains(&image.name) {
        return failed("image repository is protected");
    }
    call.info(format!("Info: deleting image: {}", familiar(&image.name)))?;
    store.delete_image(&image)?;
    drop(store);
    Store::open_exclusive(&call.config)?.prune(|_| ())?;
    Ok(0)
}

pub fn tag(call: &mut Call, words: &Words) -> Code {
    let [from, to] = words.rest.as_slice() else {
        return failed("must specify image:tag or repository/image:tag");
    };
    let Ok(name) = parse(to) else {
        return failed("target name is invalid");
    };
    let store = Store::open(&call.config)?;
    if store.image(&name.to_string())?.is_some() {
        return failed("target already exists");
    }
    let Some(image) = find(&store, from)? else {
        return failed("source does not exist");
    };
    if call.home().protected_images()?.contains(&image.name) {
        return failed("source repository is protected");
    }
    store.tag(&image, &name)?;
    Ok(0)
}

pub fn protect(call: &Call, spec: &str, protected: bool) -> Code {
    let store = Store::open(&call.config)?;
    let Some(image) = find(&store, spec)? else {
        return failed(if protected {
            "protect image failed"
        } else {
            "unprotect image failed"
        });
    };
    call.home().protect_image(&image.name, protected)?;
    Ok(0)
}

pub fn verify(call: &mut Call, words: &Words) -> Code {
    let spec = words.one().unwrap_or_default();
    let store = Store::open(&call.config)?;
    let Some(image) = find(&store, spec)? else {
        return failed("selecting image and tag");
    };
    call.info(format!("Info: verifying: {}", familiar(&image.name)))?;
    call.info("Info: loading structure")?;
    call.info("Info: verifying layers")?;
    let findings = store.verify_image(&image)?;
    let damage = findings.lines();
    if !damage.is_empty() {
        for line in &damage {
            say!("Error: {line}");
        }
        return failed("image verification failure");
    }
    for layer in image.manifest.iter().flat_map(Manifest::layer_digests) {
        call.info(format!("Info: layer ok: {layer}"))?;
    }
    call.info("Info: image Ok")?;
    Ok(0)
}

pub fn manifest(call: &mut Call, words: &Words) -> Code {
    let [verb, spec] = words.rest.as_slice() else {
        return failed("must specify image:tag or repository/image:tag");
    };
    if verb != "inspect" {
        return super::syntax(std::slice::from_ref(verb));
    }
    let (reference, _) = source(call, spec, words)?;
    let text =
        transport::raw_manifest(&call.config, &reference, &access(call, words, &reference)?)?;
    let value: Value = serde_json::from_slice(&text).kind(Kind::Invalid, || {
        "the registry's answer is no manifest".into()
    })?;
    call.result(pretty(value)?)?;
    Ok(0)
}

/// With keys in order, indented by four.
fn pretty(value: Value) -> Result<String> {
    use serde::Serialize as _;
    let mut out = Vec::new();
    let form = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut writer = serde_json::Serializer::with_formatter(&mut out, form);
    sorted(value)
        .serialize(&mut writer)
        .context(|| "cannot write JSON".into())?;
    String::from_utf8(out).context(|| "cannot write JSON".into())
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let map: BTreeMap<String, Value> = map.into_iter().collect();
            Value::Object(
                map.into_iter()
                    .map(|(key, value)| (key, sorted(value)))
                    .collect(),
            )
        }
        Value::Array(list) => list.into_iter().map(sorted).collect(),
        other => other,
    }
}

pub fn inspect(call: &mut Call, words: &Words) -> Code {
    let Some(text) = words.one() else {
        return failed("must specify image:tag or repository/image:tag");
    };
    if let Some(container) = call.container(text)? {
        if words.has("-p") {
            // Whoever asks means to find the files there.
            if let Err(error) = rootless::own_files(&call.config, &container) {
                say!("Warning: the container's files are not there: {error}");
            }
            call.result(container.root().as_str())?;
        } else {
            call.result(pretty(container.record.config)?)?;
        }
        return Ok(0);
    }
    let store = Store::open(&call.config)?;
    let Some(image) = find(&store, text)? else {
        return failed(&format!("image not found {text}"));
    };
    let digest = image.manifest.as_ref().and_then(Manifest::config_digest);
    let config = digest
        .map(|digest| store.image_config_text(digest))
        .transpose()?
        .flatten();
    let value = serde_json::from_slice(&config.unwrap_or_default()).unwrap_or_default();
    call.result(pretty(value)?)?;
    Ok(0)
}
