use std::process::ExitCode;

use camino::{Utf8Path, Utf8PathBuf};
use clap::Subcommand;
use serde_json::{Value, json};

use super::Call;
use super::args::SourceArgs;
use super::process::EnvArgs;
use crate::archive::{self, Archive, ArchivedImage, Choice, Engine, Origin, Saved};
use crate::container::run::{self, Once};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::image::Name;
use crate::rootless::engine::SETUP_FAILED;
use crate::rootless::{self, Mode, Wishes, create};
use crate::runtime::mounts::{Volume, parse_volume};
use crate::runtime::spec::{RunOptions, Writable};
use crate::store::Store;
use crate::store::export::Scratch;

/// Images as directories that git, git-annex or DataLad track
#[derive(Debug, clap::Args)]
pub struct ArchiveVerbs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Save(Save),
    Update(Update),
    Verify(Verify),
    Info(Info),
    Load(Load),
    Run(Box<Run>),
}

/// Save an image in a directory, or bring one that was saved there up to date
///
/// The directory is an OCI image layout with docker's manifest.json; the layers are byte for byte those of the registry,
/// and where each can be had again is noted. Saving twice changes nothing.
#[derive(Debug, clap::Args)]
struct Save {
    /// The image: its forms are those of "pull", or one that is in the store
    image: String,
    /// The directory
    directory: Utf8PathBuf,
    /// Write what "docker save" does, unpacked: layers that are not compressed, in a directory that is not there or empty
    #[arg(long)]
    docker: bool,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: SourceArgs,
}

/// Save once more what a directory holds, from where it came
#[derive(Debug, clap::Args)]
struct Update {
    /// The directory
    directory: Utf8PathBuf,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: SourceArgs,
}

/// Read all of a directory and say what is not what it should be; then the exit status is 1
#[derive(Debug, clap::Args)]
struct Verify {
    /// The directory
    directory: Utf8PathBuf,
    /// Print findings as JSON
    #[arg(long)]
    json: bool,
}

/// Show what a directory holds
#[derive(Debug, clap::Args)]
struct Info {
    /// The directory
    directory: Utf8PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Which of several images.
#[derive(Debug, Clone, clap::Args)]
struct ChoiceArgs {
    /// The image of this name, where the directory holds several
    #[arg(long, value_name = "IMAGE:TAG")]
    repo_tag: Option<String>,
    /// The image whose id begins so
    #[arg(long, value_name = "PREFIX")]
    config: Option<String>,
}

impl ChoiceArgs {
    fn choice(&self) -> Choice {
        Choice {
            repo_tag: self.repo_tag.clone(),
            config: self.config.clone(),
        }
    }
}

/// Bring the image of a directory into the store, under its name there
#[derive(Debug, clap::Args)]
struct Load {
    #[command(flatten)]
    choice: ChoiceArgs,
    /// The directory
    directory: Utf8PathBuf,
}

/// Run a command in the image of a directory
///
/// The current directory is mounted on /tmp, where the command starts. The image is unpacked once into the store, every
/// digest checked; no daemon is asked. Directories of "archive save", of docker, podman and skopeo, and OCI layouts are
/// understood, also where git-annex has links in place of files.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: that of the command, or 128 and the number of the signal that ended it; 125 if it could not be set up."
)]
struct Run {
    #[command(flatten)]
    choice: ChoiceArgs,
    /// Mount a host path as well
    #[arg(short = 'v', long, value_name = "SRC:DST[:ro]")]
    volume: Vec<String>,
    /// Where to start
    #[arg(short, long, value_name = "DIRECTORY", default_value = "/tmp")]
    workdir: String,
    #[command(flatten)]
    env: EnvArgs,
    /// Have podman or docker run it, which get the image if they do not have it
    #[arg(long, value_name = "ENGINE", conflicts_with = "mode")]
    engine: Option<Engine>,
    /// Without root, how it runs: N, R1, P1, P2, F1 to F4, or S1
    /// [default: N]
    #[arg(long, value_name = "MODE")]
    mode: Option<Mode>,
    /// The directory, and the command; without one that of the image
    #[arg(
        required = true,
        value_name = "DIRECTORY [COMMAND]",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    words: Vec<String>,
}

impl ArchiveVerbs {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        match self.verb {
            Verb::Save(verb) => verb.run(call),
            Verb::Update(verb) => verb.run(call),
            Verb::Verify(verb) => verb.run(call),
            Verb::Info(verb) => verb.run(call),
            Verb::Load(verb) => verb.run(call),
            Verb::Run(verb) => verb.run(call),
        }
    }
}

impl Save {
    fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        if !self.docker {
            let saved = self.save(call, &self.directory)?;
            return tell(call, &saved, &self.directory, self.json);
        }
        archive::check_empty(&self.directory)?;
        // Everything is checked before anything is written.
        let scratch =
            tempfile::tempdir().context(|| "cannot create a temporary directory".into())?;
        let Some(path) = Utf8Path::from_path(scratch.path()) else {
            fail!(Kind::Invalid, "the temporary directory is not UTF-8");
        };
        let layout = path.join("image");
        let saved = self.save(call, &layout)?;
        archive::unpack_docker(call.config, &layout, &self.directory)?;
        tell(call, &saved, &self.directory, self.json)
    }

    fn save(&self, call: &Call<'_>, directory: &Utf8Path) -> Result<Saved> {
        // A name without more that is in the store is that one.
        if let Some(store) = Store::open_existing(call.config)?
            && let Some(image) = store.find(&self.image)?.pop()
        {
            let scratch = Scratch::new(&store)?;
            let layout = scratch.path().join("image");
            let name: Name = image.name.parse()?;
            store.export(&image, &layout, name.tag().unwrap_or("latest"))?;
            let usual = || format!("docker://{name}");
            let origin = Origin {
                reference: &format!("oci:{layout}").parse()?,
                name: Some(&name),
                recorded: &image.source.clone().unwrap_or_else(usual),
            };
            return save(call, &origin, &self.source, directory);
        }
        let reference = self.source.reference(&self.image)?;
        let origin = Origin {
            reference: &reference,
            name: reference.name.as_ref(),
            recorded: &reference.to_string(),
        };
        save(call, &origin, &self.source, directory)
    }
}

impl Update {
    fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let (source, name) = archive::recorded_source(&self.directory)?;
        let reference = self.source.reference(&source)?;
        let origin = Origin {
            reference: &reference,
            name: name.as_ref().or(reference.name.as_ref()),
            recorded: &source,
        };
        let saved = save(call, &origin, &self.source, &self.directory)?;
        tell(call, &saved, &self.directory, self.json)
    }
}

fn save(
    call: &Call<'_>,
    origin: &Origin<'_>,
    source: &SourceArgs,
    directory: &Utf8Path,
) -> Result<Saved> {
    let mut progress = call.meter();
    archive::save(
        call.config,
        origin,
        &source.access(),
        directory,
        &mut progress,
    )
}

fn tell(call: &mut Call<'_>, saved: &Saved, directory: &Utf8Path, json: bool) -> Result<ExitCode> {
    if json {
        call.out.json(&json!({
            "version": 1,
            "digest": saved.digest,
            "id": saved.id,
            "fetched": saved.fetched,
            "changed": saved.changed,
        }))?;
    } else if saved.changed == 0 {
        call.out
            .line(format!("{directory} is up to date: {}", saved.digest))?;
    } else {
        call.out
            .line(format!("Saved {} to {directory}", saved.digest))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Verify {
    fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let archive = Archive::open(&self.directory)?;
        let mut findings = Vec::new();
        for image in &archive.images {
            findings.extend(archive::verify(image)?);
        }
        if self.json {
            let list: Vec<Value> = findings
                .iter()
                .map(|finding| json!({"path": finding.path, "what": finding.what}))
                .collect();
            call.out
                .json(&json!({"version": 1, "images": archive.images.len(), "findings": list}))?;
        } else {
            for finding in &findings {
                call.out
                    .line(format!("{}: {}", finding.path, finding.what))?;
            }
        }
        if findings.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        fail!(Kind::Failed, "{} is damaged", self.directory);
    }
}

impl Info {
    fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let archive = Archive::open(&self.directory)?;
        let source = archive::recorded_source(&self.directory).ok();
        let source = source.map(|(source, _)| source);
        let images: Vec<Value> = archive.images.iter().map(describe).collect();
        if self.json {
            call.out
                .json(&json!({"version": 1, "source": source, "images": images}))?;
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(source) = source {
            call.out.line(format!("source: {source}"))?;
        }
        for image in &images {
            let tags = image["tags"].as_array().into_iter().flatten();
            let tags: Vec<&str> = tags.filter_map(Value::as_str).collect();
            call.out
                .line(format!("image:  {}", tags.join(" ").escape_debug()))?;
            call.out.line(format!(
                "id:     {}",
                image["id"].as_str().unwrap_or_default()
            ))?;
            for layer in image["layers"].as_array().into_iter().flatten() {
                let size = match layer["size"].as_u64() {
                    Some(size) => format!("{size} bytes"),
                    None => "not there".into(),
                };
                call.out.line(format!(
                    "layer:  {} {size}",
                    layer["path"].as_str().unwrap_or_default()
                ))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn describe(image: &ArchivedImage) -> Value {
    let layers = image.layers.iter().map(|layer| {
        let found = std::fs::metadata(image.directory.join(&layer.path));
        json!({
            "path": layer.path,
            "digest": layer.described.as_ref().map(|described| described.digest),
            "size": found.ok().map(|found| found.len()),
        })
    });
    json!({
        "tags": image.tags,
        "id": image.id,
        "manifest": image.manifest.as_ref().map(|manifest| manifest.digest),
        "layers": layers.collect::<Vec<_>>(),
    })
}

impl Load {
    fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let archive = Archive::open(&self.directory)?;
        let image = archive.choose(&self.choice.choice())?;
        let store = Store::open(call.config)?;
        let names = image.tags.iter().filter(|tag| tag.contains(':'));
        let names: Vec<Name> = names.map(|tag| tag.parse()).collect::<Result<_>>()?;
        let Some((first, others)) = names.split_first() else {
            let stored = archive::bring_in(call.config, &store, image)?;
            call.out.line(stored.name)?;
            return Ok(ExitCode::SUCCESS);
        };
        let stored = archive::bring_in_as(call.config, &store, image, first)?;
        call.out.line(&stored.name)?;
        for other in others {
            store.tag(&stored, other)?;
            call.out.line(other.to_string())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Run {
    fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let Some((directory, command)) = self.words.split_first() else {
            fail!(Kind::Usage, "a directory is missing");
        };
        if directory.starts_with('-') {
            fail!(Kind::Usage, "there is no option \"{directory}\"");
        }
        let volumes = self.volumes()?;
        let archive = Archive::open(Utf8Path::new(directory)).map_err(set_up)?;
        let image = archive.choose(&self.choice.choice()).map_err(set_up)?;
        if let Some(engine) = self.engine {
            engine.load(call.config, image).map_err(set_up)?;
            let command = archive::Command {
                words: command,
                env: self.env.list().map_err(set_up)?,
                volumes,
                workdir: &self.workdir,
            };
            let status = engine.run(image, &command).map_err(set_up)?;
            return Ok(super::run::passed_on(status));
        }
        let store = Store::open(call.config).map_err(set_up)?;
        let stored = archive::bring_in(call.config, &store, image).map_err(set_up)?;
        if call.config.is_system {
            let request = Once {
                name: None,
                image: stored,
                values: std::collections::BTreeMap::new(),
                options: RunOptions {
                    writable: Writable::No,
                    command: command.to_vec(),
                    env: self.env.list()?,
                    volumes,
                    workdir: Some(self.workdir.clone()),
                    ..RunOptions::default()
                },
                runtime: None,
            };
            let status = run::once(call.config, store, &request).map_err(set_up)?;
            return Ok(super::run::passed_on(status));
        }
        let wishes = Wishes {
            command: command.to_vec(),
            env: self.env.list().map_err(set_up)?,
            workdir: Some(self.workdir.clone()),
            volumes,
            ..Wishes::default()
        };
        let container = create::create(
            call.config,
            &store,
            &create::Create {
                image: &stored,
                name: None,
                force: false,
                mode: self.mode.unwrap_or(Mode::N),
            },
        )
        .map_err(set_up)?;
        drop(store);
        let code = {
            // From here on signals are the command's.
            let _held = call.config.interrupt.hold();
            rootless::run(call.config, &container, wishes)
        };
        if let Err(error) = create::remove(call.config, &container) {
            // How the command ended matters more.
            call.out.note(error.to_string());
        }
        code.map(ExitCode::from).map_err(set_up)
    }

    /// Those that are asked for, and the current directory, unless something else is wanted in its place.
    fn volumes(&self) -> Result<Vec<Volume>> {
        let mut out: Vec<Volume> = self
            .volume
            .iter()
            .map(|text| parse_volume(text))
            .collect::<Result<_>>()?;
        if !out.iter().any(|volume| volume.destination == "/tmp") {
            let here =
                std::env::current_dir().context(|| "there is no working directory".into())?;
            let here = Utf8PathBuf::from_path_buf(here);
            let Ok(here) = here else {
                fail!(Kind::Invalid, "the working directory's name is not UTF-8");
            };
            out.push(Volume {
                source: here,
                destination: "/tmp".into(),
                read_only: false,
            });
        }
        Ok(out)
    }
}

/// What is not the command's own doing has an exit code of its own.
fn set_up(error: Error) -> Error {
    match error.kind() {
        Kind::Child(_) | Kind::Usage | Kind::Interrupted(_) => error,
        _ => Error::new(Kind::Child(SETUP_FAILED), error.to_string()),
    }
}
