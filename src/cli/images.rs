use std::collections::HashSet;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use super::args::{ChangeArgs, ListArgs};
use super::containers::parse_filters;
use super::{Call, export, help, image, verify_image};
use crate::container::list::local_time;
use crate::deployment::{Info, Paths, Slot, installed};
use crate::error::{Kind, Result};
use crate::fail;
use crate::image::short_id;
use crate::store::Store;
use crate::store::images::{Inventory, StoredImage};

/// Commands for images in the store
#[derive(Debug, clap::Args)]
pub struct Images {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    List(List),
    Delete(Delete),
    Prune(Prune),
    Tag(image::Tag),
    Info(image::ImageInfo),
    Help(help::Help),
    Version(image::Version),
    Verify(verify_image::VerifyImage),
    Update(image::UpdateImage),
    Export(export::Export),
    Import(export::Import),
}

/// List images
#[derive(Debug, clap::Args)]
struct List {
    /// Layers and configs as well
    #[arg(short, long)]
    all: bool,
    /// Only rows where a column contains a text: repo, tag, id, created, size or type; several
    /// filters must all match
    #[arg(short, long, value_name = "COLUMN=TEXT")]
    filter: Vec<String>,
    #[command(flatten)]
    show: ListArgs,
}

/// Delete images; their layers stay until "images prune"
#[derive(Debug, clap::Args)]
struct Delete {
    /// Delete images that containers were made from as well
    #[arg(short, long)]
    force: bool,
    /// All of them
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    change: ChangeArgs,
    #[arg(long, hide = true)]
    storage: Option<String>,
    /// Names, or beginnings of ids (at least 4 digits)
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
}

/// Remove layers that no image and no container uses
#[derive(Debug, clap::Args)]
struct Prune {
    #[command(flatten)]
    change: ChangeArgs,
}

const FILTERS: [&str; 9] = [
    "repo",
    "repository",
    "tag",
    "id",
    "image",
    "created",
    "size",
    "type",
    "is_dangling",
];

impl Images {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        match self.verb {
            Verb::List(verb) => verb.run(call),
            Verb::Delete(verb) => verb.run(call),
            Verb::Prune(verb) => verb.run(call),
            Verb::Tag(verb) => verb.run(call),
            Verb::Info(verb) => verb.run(call),
            Verb::Help(verb) => verb.run(call),
            Verb::Version(verb) => verb.run(call),
            Verb::Verify(verb) => verb.run(call),
            Verb::Update(verb) => verb.run(call),
            Verb::Export(verb) => verb.run(call),
            Verb::Import(verb) => verb.run(call),
        }
    }
}

struct Row {
    repo: String,
    tag: String,
    id: String,
    created: String,
    size: String,
    used: bool,
}

impl List {
    fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let filters = parse_filters(&self.filter, &FILTERS)?;
        let mut rows = match Store::open_existing(call.config)? {
            Some(store) => self.rows(call, &store)?,
            None => Vec::new(),
        };
        rows.retain(|row| filters.iter().all(|filter| matches(row, filter)));
        if self.show.quiet {
            for row in &rows {
                call.out.line(short(&row.id, self.show.no_trunc))?;
            }
        } else if self.show.json {
            let rows: Vec<_> = rows
                .iter()
                .map(|row| {
                    json!({"repo": row.repo, "tag": row.tag, "is_dangling": false,
                           "used": row.used, "vulnerable": false, "id": row.id, "type": "image",
                           "created": row.created, "virtual_size": row.size,
                           "backend": "ostree", "vuln_info": {}})
                })
                .collect();
            call.out.json(&rows.into())?;
        } else if !rows.is_empty() {
            let cells: Vec<Vec<String>> = rows
                .iter()
                .map(|row| {
                    vec![
                        if row.used { "> " } else { "  " }.to_owned(),
                        row.repo.clone(),
                        row.tag.clone(),
                        short(&row.id, self.show.no_trunc).to_owned(),
                        row.created.clone(),
                        row.size.clone(),
                        "ostree".to_owned(),
                    ]
                })
                .collect();
            let longest = |index: usize| {
                cells
                    .iter()
                    .map(|row| row[index].chars().count())
                    .max()
                    .unwrap_or(0)
            };
            let columns = [
                ("", 2),
                ("REPOSITORY", longest(1)),
                ("TAG", longest(2)),
                ("IMAGE ID", if self.show.no_trunc { 65 } else { 14 }),
                ("CREATED", 18),
                ("VIRTUAL SIZE", 14),
                ("TYPE", 10),
            ];
            call.out.table(
                &columns,
                &cells,
                !self.show.noheading,
                self.show.no_trunc,
                0,
            )?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn rows(&self, call: &mut Call<'_>, store: &Store) -> Result<Vec<Row>> {
        let Inventory {
            images,
            blobs,
            broken,
        } = store.inventory()?;
        for broken in broken {
            call.out.note(format!("{}: {}", broken.name, broken.why));
        }
        let used = images_in_use(call)?;
        let mut rows = Vec::new();
        for image in &images {
            let (repo, tag) = split_name(&image.name);
            let size = store.image_size(image)?.0;
            rows.push(Row {
                repo,
                tag,
                id: image.id(),
                created: local_time(image.created),
                size: human_size(size),
                used: is_used(&used, image),
            });
        }
        if self.all {
            for blob in blobs {
                rows.push(Row {
                    repo: "<none>".into(),
                    tag: "<none>".into(),
                    id: blob.digest.hex(),
                    created: crate::store::objects::commit_timestamp(store.repo(), &blob.commit)
                        .map(local_time)
                        .unwrap_or_default(),
                    size: String::new(),
                    used: false,
                });
            }
        }
        Ok(rows)
    }
}

fn matches(row: &Row, (key, value): &(String, String)) -> bool {
    let field = match key.as_str() {
        "repo" | "repository" => row.repo.as_str(),
        "tag" => &row.tag,
        "id" | "image" => &row.id,
        "created" => &row.created,
        "size" => &row.size,
        "is_dangling" => "false",
        _ => "ostree",
    };
    field.to_lowercase().contains(&value.to_lowercase())
}

fn short(id: &str, whole: bool) -> &str {
    if whole { id } else { short_id(id) }
}

fn split_name(name: &str) -> (String, String) {
    if let Some((repo, digest)) = name.split_once('@') {
        let repo = repo
            .rsplit_once(':')
            .filter(|(_, tag)| !tag.contains('/'))
            .map_or(repo, |(repo, _)| repo);
        return (repo.to_owned(), digest.to_owned());
    }
    match name.rsplit_once(':') {
        Some((repo, tag)) if !tag.contains('/') => (repo.to_owned(), tag.to_owned()),
        _ => (name.to_owned(), "latest".to_owned()),
    }
}

/// Base 1000, two decimals: `1.85 KB`; empty if unknown.
fn human_size(bytes: u64) -> String {
    if bytes == 0 {
        return String::new();
    }
    #[allow(clippy::cast_precision_loss)] // two decimals
    let mut value = bytes as f64;
    for unit in ["B", "KB", "MB", "GB"] {
        if value < 1000.0 {
            return format!("{value:.2} {unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.2} TB")
}

/// Names and ids of the images that deployments were made from.
fn images_in_use(call: &Call<'_>) -> Result<HashSet<(String, String)>> {
    let mut used = HashSet::new();
    for name in installed(call.config)? {
        let paths = Paths::new(call.config, &name);
        for slot in [Slot::Zero, Slot::One] {
            // A broken container is reported by its own listing.
            if let Ok(info) = Info::read(&paths.slot(slot)) {
                used.insert((info.image, info.revision));
            }
        }
    }
    Ok(used)
}

fn is_used(used: &HashSet<(String, String)>, image: &StoredImage) -> bool {
    used.contains(&(image.name.clone(), image.id()))
}

impl Delete {
    fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        if self.all != self.images.is_empty() {
            fail!(
                Kind::Usage,
                "You must select --all or provide a list of images to delete."
            );
        }
        let Some(store) = Store::open_existing(call.config)? else {
            fail!(Kind::NotFound, "there are no images");
        };
        let mut images = Vec::new();
        if self.all {
            images = store.inventory()?.images;
        }
        for text in &self.images {
            let found = store.find(text)?;
            if found.is_empty() {
                fail!(
                    Kind::NotFound,
                    "Unable to find {text} in the ostree backend"
                );
            }
            images.extend(found);
        }
        let used = images_in_use(call)?;
        if !self.force
            && let Some(image) = images.iter().find(|image| is_used(&used, image))
        {
            fail!(
                Kind::Exists,
                "a container was made from the image {}: uninstall it first, or use --force (its deployments keep what they need)",
                image.name
            );
        }
        let steps: Vec<String> = images
            .iter()
            .map(|image| format!("delete {} {}", image.name, image.id()))
            .collect();
        if let Some(code) = self.change.told(call, "delete", &steps)? {
            return Ok(code);
        }
        call.out.line(if call.assumeyes {
            "The following images will be deleted."
        } else {
            "Do you wish to delete the following images?"
        })?;
        call.out.line("")?;
        let cells: Vec<Vec<String>> = images
            .iter()
            .map(|image| vec![image.name.clone(), "ostree".to_owned()])
            .collect();
        call.out
            .table(&[("IMAGE", 40), ("STORAGE", 10)], &cells, true, true, 3)?;
        call.out.line("")?;
        if !call.assumeyes {
            let names: Vec<&str> = images.iter().map(|image| image.name.as_str()).collect();
            call.out.confirm(&format!(
                "User aborted delete operation for {}",
                names.join(" ")
            ))?;
        }
        for image in &images {
            store.delete_image(image)?;
        }
        self.change.done(call, "delete", &steps)
    }
}

impl Prune {
    fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let Some(store) = Store::open_existing(call.config)? else {
            return Ok(ExitCode::SUCCESS);
        };
        if self.change.is_dry() {
            let unused = store.unused_refs()?;
            let mut steps: Vec<String> = unused
                .iter()
                .map(|name| format!("Deleting {name}"))
                .collect();
            let (objects, bytes) = store.unreachable()?;
            if objects > 0 {
                steps.push(format!(
                    "remove {objects} objects that nothing names, {}",
                    human_size(bytes)
                ));
            }
            let code = self.change.told(call, "prune", &steps)?;
            return Ok(code.unwrap_or(ExitCode::SUCCESS));
        }
        drop(store);
        crate::container::sweep(call.config)?;
        let store = Store::open_exclusive(call.config)?;
        let mut removed = Vec::new();
        let (objects, bytes) = store.prune(|name| removed.push(name.to_owned()))?;
        if self.change.is_json() {
            call.out.json(&json!({
                "version": 1, "removed_refs": removed, "objects": objects, "freed_bytes": bytes,
            }))?;
            return Ok(ExitCode::SUCCESS);
        }
        for name in removed {
            call.out.line(format!("Deleting {name}"))?;
        }
        if objects > 0 {
            call.out.note(format!(
                "{objects} objects removed, {} freed",
                human_size(bytes)
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_names_are_shown_as_before() {
        assert_eq!(human_size(1850), "1.85 KB");
        assert_eq!(human_size(252_330_000), "252.33 MB");
        assert_eq!(human_size(0), "");
        assert_eq!(
            split_name("a.b:5000/c:1"),
            ("a.b:5000/c".into(), "1".into())
        );
        assert_eq!(split_name("c@sha256:1"), ("c".into(), "sha256:1".into()));
    }
}
