//! `atomic-rs inject`: one layer of an image in a registry.

use std::process::ExitCode;

use camino::{Utf8Path, Utf8PathBuf};
use clap::Subcommand;
use serde_json::{Value, json};

use super::Call;
use super::args::{SourceArgs, WOULD_CHANGE};
use crate::error::{Error, Kind, Result};
use crate::fail;
use crate::image::{Name, Transport};
use crate::inject::image::{Compression, Layer, LayerName};
use crate::inject::pack::{Content, Owner};
use crate::inject::{self, Change, Destination, Injection, Part, Request};
use crate::registry::{Access, Uploaded};

/// Set up, replace or remove one layer of an image in a registry, without pulling the image
#[derive(Debug, clap::Args)]
pub struct InjectVerbs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Init(Init),
    Prepare(Prepare),
    Update(Box<Update>),
    List(List),
    Remove(Remove),
}

/// Which layer of which image.
#[derive(Debug, Clone, clap::Args)]
struct LayerArgs {
    /// The image: NAME, docker://NAME or, for plain HTTP, http:NAME
    image: String,
    /// The layer's name, which is that of its labels: NAME_injection_tar and NAME_injection_gz
    #[arg(long, default_value = "cvmfs")]
    name: LayerName,
}

/// Where the changed image goes, and what is said of it.
#[derive(Debug, Clone, clap::Args)]
struct OutputArgs {
    /// A tag beside the image, or another name on the same registry
    /// [default: the tag that was read if that image has the layer, else the layer's name]
    #[arg(long, value_name = "TAG|NAME")]
    dest: Option<Destination>,
    /// Print what would be uploaded, and change nothing; the exit status is 3 if there is something
    #[arg(long)]
    dry_run: bool,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: SourceArgs,
}

/// Add the layer to an image: a directory of its name at the top, with nothing in it
#[derive(Debug, clap::Args)]
struct Init {
    #[command(flatten)]
    layer: LayerArgs,
    /// Begin anew where the destination has a layer of the name with something in it
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Unpack the layer to a directory, to be changed there; where there is no such layer, begin one
#[derive(Debug, clap::Args)]
struct Prepare {
    #[command(flatten)]
    layer: LayerArgs,
    /// The directory, which is not there or empty
    #[arg(long, value_name = "DIRECTORY")]
    dir: Utf8PathBuf,
    /// Replace the directory if it is not empty
    #[arg(long)]
    force: bool,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: SourceArgs,
}

/// Have the layer be what is in a directory or an archive; an image without it gets it
///
/// Uploads the layer, the config and the manifest; all other layers stay where they are, and nothing is uploaded if the
/// content is what the image has.
#[derive(Debug, clap::Args)]
struct Update {
    #[command(flatten)]
    layer: LayerArgs,
    /// The directory: what is in it is seen at the top of the image; a name that begins with .wh. takes away what layers
    /// below have
    #[arg(
        long,
        value_name = "DIRECTORY",
        required_unless_present = "tar",
        conflicts_with = "tar"
    )]
    dir: Option<Utf8PathBuf>,
    /// The archive, which may be compressed by gzip, zstd, xz or bzip2
    #[arg(long, value_name = "FILE")]
    tar: Option<Utf8PathBuf>,
    /// How the layer is stored: gzip or, for images of the OCI's form, zstd
    #[arg(long, value_name = "HOW", default_value = "gzip")]
    compression: Compression,
    /// Who owns the files of the directory in the image
    /// [default: for root who owns them here, else 0:0]
    #[arg(long, value_name = "UID:GID", conflicts_with = "tar", value_parser = parse_owner)]
    owner: Option<(u32, u32)>,
    #[command(flatten)]
    output: OutputArgs,
}

/// List the layers of an image that were injected
#[derive(Debug, clap::Args)]
struct List {
    /// The image: NAME, docker://NAME or, for plain HTTP, http:NAME
    image: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: SourceArgs,
}

/// Take the layer away
#[derive(Debug, clap::Args)]
struct Remove {
    #[command(flatten)]
    layer: LayerArgs,
    #[command(flatten)]
    output: OutputArgs,
}

fn parse_owner(text: &str) -> Result<(u32, u32)> {
    let numbers = text
        .split_once(':')
        .and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)));
    // The last id means nobody in particular to the kernel.
    let numbers = numbers.filter(|(uid, gid)| *uid != u32::MAX && *gid != u32::MAX);
    numbers.ok_or_else(|| Error::new(Kind::Usage, format!("\"{text}\" is not UID:GID")))
}

impl InjectVerbs {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        match self.verb {
            Verb::Init(verb) => {
                let change = Change::SetUp { anew: verb.force };
                verb.output.change(call, &verb.layer, change)
            }
            Verb::Remove(verb) => verb.output.change(call, &verb.layer, Change::Remove),
            Verb::Update(verb) => verb.run(call),
            Verb::Prepare(verb) => verb.run(call),
            Verb::List(verb) => verb.run(call),
        }
    }
}

/// The name of an image on a registry, and how to reach it.
fn on_registry(text: &str, source: &SourceArgs) -> Result<(Name, Access)> {
    let reference = source.reference(text)?;
    match (&reference.transport, &reference.name) {
        (Transport::Registry { .. }, Some(name)) => {
            Ok((name.clone(), source.access_to(&reference)))
        }
        _ => fail!(
            Kind::Usage,
            "\"{text}\" is not an image on a registry, and only there a layer is replaced"
        ),
    }
}

impl OutputArgs {
    fn change(
        &self,
        call: &mut Call<'_>,
        layer: &LayerArgs,
        change: Change<'_>,
    ) -> Result<ExitCode> {
        let (image, access) = on_registry(&layer.image, &self.registry)?;
        let mut meter = call.meter();
        let request = Request {
            image: &image,
            destination: self.dest.as_ref(),
            layer: &layer.name,
            change,
            access: &access,
        };
        let injection = Injection::prepare(call.config, &request, &mut meter)?;
        for path in injection.left_out() {
            call.out.note(format!(
                "{} is a socket and was left out",
                path.escape_debug()
            ));
        }
        if let Some(mode) = injection.root_mode() {
            call.out.note(format!(
                "the archive has an entry for its root: / of the image has the mode {mode:o} by it"
            ));
        }
        if injection.dropped() > 0 {
            call.out.note(format!(
                "{} attestations are about the images as they were and are not listed any more",
                injection.dropped()
            ));
        }
        let (name, digest, changes) = (injection.name(), injection.digest(), injection.changes());
        let described = injection.layer().cloned();
        let parts = if self.dry_run {
            injection.parts()
        } else {
            injection.apply(&mut meter)?
        };
        if self.json {
            let parts: Vec<Value> = parts.iter().map(show).collect();
            let described = described.map(|layer| {
                json!({"diff_id": layer.diff_id, "digest": layer.digest, "size": layer.size})
            });
            call.out.json(&json!({
                "version": 1, "image": name, "digest": digest, "changed": changes,
                "layer": described, "parts": parts,
            }))?;
        } else if changes {
            for part in &parts {
                call.out.line(format!(
                    "{:<9} {} {:>12} {}",
                    part.what,
                    part.digest,
                    part.size,
                    part.uploaded.map_or("", word)
                ))?;
            }
            let what = if self.dry_run { "would be" } else { "is" };
            call.out.line(format!("{name} {what} {digest}"))?;
        } else {
            call.out.line(format!("{name} is up to date: {digest}"))?;
        }
        Ok(if self.dry_run && changes {
            ExitCode::from(WOULD_CHANGE)
        } else {
            ExitCode::SUCCESS
        })
    }
}

fn show(part: &Part) -> Value {
    json!({
        "what": part.what, "digest": part.digest, "size": part.size,
        "uploaded": part.uploaded.map(word),
    })
}

fn word(uploaded: Uploaded) -> &'static str {
    match uploaded {
        Uploaded::Present => "present",
        Uploaded::Mounted => "mounted",
        Uploaded::Sent => "sent",
    }
}

impl Update {
    fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let content = match (&self.dir, &self.tar) {
            (Some(path), _) => Content::Directory(checked(path, Utf8Path::is_dir, "directory")?),
            (None, Some(path)) => Content::Tar(checked(path, Utf8Path::is_file, "regular file")?),
            (None, None) => fail!(Kind::Usage, "--dir or --tar is missing"),
        };
        let is_root = rustix::process::geteuid().is_root();
        let owner: Owner = self.owner.or((!is_root).then_some((0, 0)));
        let change = Change::Update {
            content,
            compression: self.compression,
            owner,
        };
        self.output.change(call, &self.layer, change)
    }
}

fn checked<'p>(
    path: &'p Utf8Path,
    is_it: impl Fn(&Utf8Path) -> bool,
    what: &str,
) -> Result<&'p Utf8Path> {
    if !is_it(path) {
        fail!(Kind::NotFound, "there is no {what} {path}");
    }
    Ok(path)
}

impl Prepare {
    fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let (image, access) = on_registry(&self.layer.image, &self.registry)?;
        let unpacked = inject::unpack(
            call.config,
            (&image, &access),
            &self.layer.name,
            &self.dir,
            self.force,
            &mut call.meter(),
        )?;
        if unpacked.left_out > 0 {
            call.out.note(format!(
                "{} entries of the layer could not be made (devices need root) and were left out: an update from {} would lose them",
                unpacked.left_out, self.dir
            ));
        }
        if self.json {
            call.out.json(&json!({
                "version": 1, "directory": self.dir, "left_out": unpacked.left_out,
                "layer": unpacked.layer.as_ref().map(describe),
            }))?;
            return Ok(ExitCode::SUCCESS);
        }
        call.out.line(match &unpacked.layer {
            Some(layer) => format!("{} has layer {}", self.dir, layer.described.diff_id),
            None => format!(
                "{} is a beginning: the image has no layer \"{}\" yet",
                self.dir, self.layer.name
            ),
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

fn describe(layer: &Layer) -> Value {
    json!({
        "name": layer.name.as_str(),
        "index": layer.index,
        "diff_id": layer.described.diff_id,
        "digest": layer.described.digest,
        "size": layer.described.size,
    })
}

impl List {
    fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let (image, access) = on_registry(&self.image, &self.registry)?;
        let found = inject::list(&image, &access)?;
        if self.json {
            let images: Vec<Value> = found
                .iter()
                .map(|(platform, layers)| {
                    let layers: Vec<Value> = layers.iter().map(describe).collect();
                    json!({"platform": platform, "layers": layers})
                })
                .collect();
            call.out.json(&json!({"version": 1, "images": images}))?;
            return Ok(ExitCode::SUCCESS);
        }
        let rows: Vec<Vec<String>> = found
            .iter()
            .flat_map(|(platform, layers)| {
                let platform = platform.as_deref().unwrap_or("-");
                layers.iter().map(move |layer| {
                    vec![
                        layer.name.to_string(),
                        platform.to_owned(),
                        layer.described.diff_id.to_string(),
                        layer.described.size.to_string(),
                    ]
                })
            })
            .collect();
        if rows.is_empty() {
            call.out.note(format!("{image} has no injected layers"));
            return Ok(ExitCode::SUCCESS);
        }
        let columns = [("NAME", 0), ("PLATFORM", 0), ("DIFF ID", 0), ("SIZE", 0)];
        call.out.table(&columns, &rows, true, true, 0)?;
        Ok(ExitCode::SUCCESS)
    }
}
