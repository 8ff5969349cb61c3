//! Images out of the store and into it: export, import, push.

use std::process::ExitCode;

use serde_json::json;

use super::Call;
use super::args::{ChangeArgs, SourceArgs};
use super::image::find;
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::image::{Digest, Platform, Reference, Transport};
use crate::pull::{self, Pulled, Remote};
use crate::store::Store;
use crate::store::export::Scratch;
use crate::store::images::StoredImage;
use crate::transport::{self, Access};

const TARGETS: &str = "\
Where the image goes:
  oci:DIR[:TAG]                 an OCI layout; one that exists gets the image as well
  oci-archive:FILE[:TAG]        an archive of a layout
  docker-archive:FILE[:NAME]    an archive as \"docker save\" writes it
  dir:DIR                       a directory as skopeo writes it";

/// Write an image as a layout or archive; layers have the very bytes they came with
#[derive(Debug, clap::Args)]
pub struct Export {
    /// Stored image
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Where it goes
    #[arg(value_name = "TARGET", long_help = TARGETS)]
    target: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Bring an image from a layout or archive into the store, under its own or another name
#[derive(Debug, clap::Args)]
pub struct Import {
    /// Where the image is; the forms are those of "pull", and tar:FILE is a plain archive of a root directory,
    /// which becomes an image of one layer with nothing to run, and needs a name
    #[arg(value_name = "SOURCE")]
    image: String,
    /// The name it gets [default: what the source says]
    #[arg(value_name = "NEW-NAME")]
    name: Option<String>,
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    source: SourceArgs,
}

/// Copy an image from the store to a registry
#[derive(Debug, clap::Args)]
pub struct Push {
    /// Stored image
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Where it goes [default: the image's own name]
    #[arg(value_name = "TARGET")]
    target: Option<String>,
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    source: SourceArgs,
}

impl Export {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let (store, image) = find(call, &self.image)?;
        let Some((transport, rest)) = self.target.split_once(':') else {
            fail!(
                Kind::Usage,
                "\"{}\" is not a target: expected oci:DIR, oci-archive:FILE, docker-archive:FILE or dir:DIR",
                self.target
            );
        };
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if transport != "docker-archive" && !tag.contains('/') => (path, tag),
            _ => (rest, "latest"),
        };
        let exported = match transport {
            "oci" => store.export(
                &image,
                &camino::absolute_utf8(path).context(|| path.into())?,
                tag,
            )?,
            "oci-archive" | "docker-archive" | "dir" => {
                let target = if transport == "docker-archive" && !rest.contains(':') {
                    // docker load wants a name.
                    format!("{}:{}", self.target, image.name)
                } else {
                    self.target.clone()
                };
                let scratch = Scratch::new(&store)?;
                let exported = store.export(&image, scratch.path(), "latest")?;
                transport::copy_layout(
                    call.config,
                    scratch.path(),
                    &target,
                    &Access::default(),
                    false,
                )?;
                exported
            }
            other => fail!(
                Kind::Usage,
                "the transport \"{other}\" is not one to export to"
            ),
        };
        // An archive of docker's has no manifest of a registry.
        let same = exported.same_digest && transport != "docker-archive";
        tell(call, &image, &self.target, exported.digest, same, self.json)
    }
}

impl Import {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        if let Some(archive) = self.image.strip_prefix("tar:") {
            return self.run_tar(call, archive);
        }
        let reference = self.source.reference(&self.image)?;
        let store = Store::open(call.config)?;
        let references = match &self.name {
            Some(_) => vec![reference.clone()],
            None => pull::all_in(call.config, &reference),
        };
        let step = |reference: &Reference| match &self.name {
            Some(name) => format!("bring in {reference} as {name}"),
            None => format!("bring in {reference}"),
        };
        let steps: Vec<String> = references.iter().map(step).collect();
        if let Some(code) = self.change.told(call, "import", &steps)? {
            return Ok(code);
        }
        if let Some(name) = &self.name {
            let name = self.source.reference(name)?.fallback_name()?;
            let remote = Remote::open(call.config, &reference, &self.source.access())?;
            let mut progress = call.meter();
            let source = reference.to_string();
            let pulled = remote.fetch_as(call.config, &store, &name, source, &mut progress)?;
            tell_pulled(call, &pulled, self.change.is_json())?;
            return Ok(ExitCode::SUCCESS);
        }
        for reference in &references {
            let pulled = self.source.pull(call, &store, reference, None)?;
            tell_pulled(call, &pulled, self.change.is_json())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Import {
    fn run_tar(&self, call: &mut Call<'_>, archive: &str) -> Result<ExitCode> {
        let Some(name) = &self.name else {
            fail!(
                Kind::Usage,
                "a plain archive has no name of an image: name one"
            );
        };
        let name = self.source.reference(name)?.fallback_name()?;
        if let Some(code) = self.change.told(
            call,
            "import",
            &[format!("bring in the archive {archive} as {name}")],
        )? {
            return Ok(code);
        }
        let archive = camino::absolute_utf8(archive).context(|| archive.to_owned())?;
        let store = Store::open(call.config)?;
        let platform = self.source.access().platform.unwrap_or_else(Platform::host);
        let image = pull::import_tar(call.config, &store, &archive, &name, &platform)?;
        if self.change.is_json() {
            call.out
                .json(&json!({"version": 1, "name": image.name, "digest": image.digest}))?;
        } else {
            call.out.line(format!("{name} {}", image.id()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Push {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let (store, image) = find(call, &self.image)?;
        let target = self
            .source
            .reference(self.target.as_deref().unwrap_or(&image.name))?;
        if target.is_unqualified() {
            fail!(
                Kind::Usage,
                "\"{target}\" does not say which registry: name one, as in registry.example.org/app:1"
            );
        }
        let step = format!("copy {} {} to {target}", image.name, image.id());
        if let Some(code) = self.change.told(call, "push", &[step])? {
            return Ok(code);
        }
        let json = self.change.is_json();
        let access = self.source.access_to(&target);
        if !store.keeps_manifest(&image)?
            && let Some(digest) = copied_from_source(call, &image, &target, &access)
        {
            return tell(call, &image, &target.to_string(), digest, true, json);
        }
        let scratch = Scratch::new(&store)?;
        let exported = store.export(&image, scratch.path(), "latest")?;
        transport::copy_layout(
            call.config,
            scratch.path(),
            &target.to_skopeo(),
            &access,
            exported.same_digest,
        )?;
        // Layers that go uncompressed into the copy are compressed on the way.
        tell(
            call,
            &image,
            &target.to_string(),
            exported.digest,
            exported.same_digest,
            json,
        )
    }
}

/// Copy the image from the registry it came from, if it still has these very bytes: the store has
/// them uncompressed. Returns the digest.
fn copied_from_source(
    call: &mut Call<'_>,
    image: &StoredImage,
    target: &Reference,
    access: &Access,
) -> Option<Digest> {
    let source: Reference = image.source.as_deref()?.parse().ok()?;
    let digest = image.digest?;
    if !matches!(source.transport, Transport::Registry { .. }) {
        return None;
    }
    match transport::copy_pinned(call.config, &source, digest, target, access) {
        Ok(()) => Some(digest),
        Err(error) => {
            call.out.note(format!(
                "{error}\nthe image is copied from the store instead, with another manifest"
            ));
            None
        }
    }
}

/// Say under which names an image is in the store now.
pub fn tell_pulled(call: &mut Call<'_>, pulled: &Pulled, json: bool) -> Result<()> {
    let also: Vec<String> = pulled.also.iter().map(ToString::to_string).collect();
    if json {
        return call.out.json(&json!({
            "version": 1, "name": pulled.image.name, "digest": pulled.digest, "also": also,
            "fetched_layers": pulled.fetched, "unchanged": pulled.unchanged,
        }));
    }
    let names = std::iter::once(&pulled.image.name);
    for name in names.chain(&also) {
        call.out.line(format!("{name} {}", pulled.digest))?;
    }
    Ok(())
}

fn tell(
    call: &mut Call<'_>,
    image: &StoredImage,
    target: &str,
    digest: Digest,
    same: bool,
    json: bool,
) -> Result<ExitCode> {
    if json {
        call.out.json(&json!({
            "version": 1, "name": image.name, "id": image.id(), "target": target,
            "digest": same.then_some(digest), "same_digest": same,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    call.out.line(format!("{} {target}", image.name))?;
    if same {
        call.out.line(format!("{digest}"))?;
    } else {
        call.out.note(
            "config and diff_ids are the image's; its manifest digest is another, because the layers are not kept compressed (keep_blobs in the configuration)",
        );
    }
    Ok(ExitCode::SUCCESS)
}
