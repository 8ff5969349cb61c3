//! What a change means, beyond its steps: what is fetched, and what differs afterwards.

use std::collections::BTreeSet;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;
use serde_json::Value;

use super::hostfiles::HostChange;
use super::render::Rendered;
use crate::deployment::{Info, Paths};
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::image::{Descriptor, ImageConfig, short_id};
use crate::transaction::Shipment;

/// Images unpack to about so many times their compressed size; only downloads show how many.
const USUAL_RATIO: u64 = 3;

/// What a change means. Shape version 1 of `--json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Effects {
    /// The image in use before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_image: Option<ImageMark>,
    /// The image in use after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_image: Option<ImageMark>,
    /// What will be downloaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fetch: Option<Fetch>,
    /// Files of the host, but for the container's own directory.
    pub files: Vec<FileChange>,
    /// The package they come in, if it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub package: Option<PackageChange>,
    /// Exposed ports.
    pub ports: Delta,
    /// Capabilities of the main process.
    pub capabilities: Delta,
    /// Environment variables, by name: values may be secrets.
    pub environment: Delta,
    /// The command, if it changes: before and after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<(String, String)>,
    /// False if something is in layers that are not here yet, so that only the image's config and
    /// what is installed could be compared.
    pub complete: bool,
}

/// An image by name and id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageMark {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
}

impl ImageMark {
    /// The image of a deployment.
    pub(super) fn of(info: &Info) -> Self {
        Self {
            name: info.image.clone(),
            id: info.revision.clone(),
        }
    }
}

/// What a change downloads and needs. Sizes are in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Fetch {
    /// Layers that will be fetched.
    pub layers: Vec<Layer>,
    /// Layers that are in the store already.
    pub present: usize,
    /// Compressed bytes to fetch.
    pub bytes: u64,
    /// Bytes they will take in the store, estimated: only the download shows how many.
    pub estimated_store_bytes: u64,
    /// Bytes free there.
    pub free_bytes: u64,
    /// Inodes free there.
    pub free_inodes: u64,
}

/// A layer to fetch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Layer {
    /// Its digest.
    pub digest: String,
    /// Its compressed size in bytes.
    pub size: u64,
}

/// What becomes of the container's package. Packages are `NAME VERSION`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PackageChange {
    /// The one before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The one after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// What it needs and is installed for it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fetched: Vec<String>,
}

/// What becomes of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileChange {
    /// The file.
    pub path: Utf8PathBuf,
    /// `added`, `changed`, `removed`.
    pub change: &'static str,
}

/// How a set of words differs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Delta {
    /// New ones.
    pub added: Vec<String>,
    /// Ones that have another value.
    pub changed: Vec<String>,
    /// Ones that go.
    pub removed: Vec<String>,
}

impl Delta {
    /// Compare words of the form `KEY` or `KEY=value`.
    fn between(before: &[String], after: &[String]) -> Self {
        let key = |word: &String| word.split('=').next().unwrap_or_default().to_owned();
        let old: BTreeSet<&String> = before.iter().collect();
        let keys = |words: &[String]| words.iter().map(key).collect::<BTreeSet<_>>();
        let (old_keys, new_keys) = (keys(before), keys(after));
        let mut delta = Self {
            added: new_keys.difference(&old_keys).cloned().collect(),
            removed: old_keys.difference(&new_keys).cloned().collect(),
            changed: Vec::new(),
        };
        for word in after {
            let name = key(word);
            if old_keys.contains(&name) && !old.contains(word) && !delta.changed.contains(&name) {
                delta.changed.push(name);
            }
        }
        delta
    }

    /// As a line of text; nothing if nothing differs.
    fn line(&self, what: &str) -> Option<String> {
        let words: Vec<String> = [
            ("+", &self.added),
            ("~", &self.changed),
            ("-", &self.removed),
        ]
        .into_iter()
        .flat_map(|(sign, words)| words.iter().map(move |word| format!("{sign}{word}")))
        .collect();
        (!words.is_empty()).then(|| format!("{what}: {}", words.join(" ")))
    }
}

impl Fetch {
    /// What fetching `missing` of `layers` takes.
    pub fn new(layers: &[Descriptor], missing: &[&Descriptor], store: &Utf8Path) -> Result<Self> {
        let wanted: Vec<&Descriptor> = missing
            .iter()
            .filter(|one| layers.iter().any(|layer| layer.digest == one.digest))
            .copied()
            .collect();
        let bytes = wanted.iter().map(|layer| layer.size).sum();
        let space = rustix::fs::statvfs(store.as_std_path())
            .context(|| format!("cannot ask for the free space of {store}"))?;
        Ok(Self {
            layers: wanted
                .iter()
                .map(|layer| Layer {
                    digest: layer.digest.to_string(),
                    size: layer.size,
                })
                .collect(),
            present: layers.len().saturating_sub(wanted.len()),
            bytes,
            estimated_store_bytes: bytes.saturating_mul(USUAL_RATIO),
            free_bytes: space.f_bavail.saturating_mul(space.f_frsize),
            free_inodes: space.f_favail,
        })
    }

    /// Refuse what cannot fit, before anything is downloaded.
    ///
    /// # Errors
    /// [`Kind::Failed`] if not even the compressed bytes fit.
    pub fn check_space(&self) -> Result<()> {
        if self.bytes > self.free_bytes {
            fail!(
                Kind::Failed,
                "the image has {} bytes to fetch and the store {} free: make room (atomic-rs images prune) first",
                self.bytes,
                self.free_bytes
            );
        }
        if !self.layers.is_empty() && self.free_inodes == 0 {
            fail!(Kind::Failed, "the store has no free inodes");
        }
        Ok(())
    }
}

/// Compare what two image configs expose.
pub fn ports(before: &ImageConfig, after: &ImageConfig) -> Delta {
    let words = |config: &ImageConfig| -> Vec<String> {
        config.config.exposed_ports.keys().cloned().collect()
    };
    Delta::between(&words(before), &words(after))
}

/// Compare the environment that two image configs set.
pub fn image_environment(before: &ImageConfig, after: &ImageConfig) -> Delta {
    Delta::between(&before.config.env, &after.config.env)
}

/// How two images differ in what they say of themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ImageDelta {
    /// Exposed ports.
    pub ports: Delta,
    /// Environment variables, by name.
    pub environment: Delta,
    /// Labels, by name.
    pub labels: Delta,
    /// Volumes.
    pub volumes: Delta,
    /// Entrypoint and arguments, before and after, if they differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<(String, String)>,
    /// User, before and after, if it differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<(String, String)>,
}

/// Compare what two images say of themselves.
pub fn compare_images(before: &ImageConfig, after: &ImageConfig) -> ImageDelta {
    let labels = |config: &ImageConfig| -> Vec<String> {
        let pairs = config.config.labels.iter();
        pairs.map(|(key, value)| format!("{key}={value}")).collect()
    };
    let volumes =
        |config: &ImageConfig| -> Vec<String> { config.config.volumes.keys().cloned().collect() };
    let command = |config: &ImageConfig| {
        let run = &config.config;
        [run.entrypoint.as_slice(), &run.cmd].concat().join(" ")
    };
    let pair = |a: String, b: String| (a != b).then_some((a, b));
    ImageDelta {
        ports: ports(before, after),
        environment: image_environment(before, after),
        labels: Delta::between(&labels(before), &labels(after)),
        volumes: Delta::between(&volumes(before), &volumes(after)),
        command: pair(command(before), command(after)),
        user: pair(before.config.user.clone(), after.config.user.clone()),
    }
}

impl ImageDelta {
    /// As lines of text.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = [
            ("ports", &self.ports),
            ("environment", &self.environment),
            ("labels", &self.labels),
            ("volumes", &self.volumes),
        ]
        .into_iter()
        .filter_map(|(what, delta)| delta.line(what))
        .collect();
        for (what, pair) in [("command", &self.command), ("user", &self.user)] {
            if let Some((before, after)) = pair {
                lines.push(format!("{what}: {before} -> {after}"));
            }
        }
        lines
    }
}

impl Effects {
    /// Compare two `config.json`; the one before may be missing or broken.
    pub fn compare_configs(&mut self, before: Option<&Value>, after: &Value) {
        let nothing = Value::Null;
        let before_or = before.unwrap_or(&nothing);
        let words = |config: &Value, pointer: &str| -> Vec<String> {
            config
                .pointer(pointer)
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|word| word.as_str().map(str::to_owned))
                .collect()
        };
        let delta =
            |pointer: &str| Delta::between(&words(before_or, pointer), &words(after, pointer));
        self.environment = delta("/process/env");
        self.capabilities = delta("/process/capabilities/bounding");
        let args = |config: &Value| words(config, "/process/args").join(" ");
        let (old, new) = (args(before_or), args(after));
        if before.is_some() && old != new {
            self.command = Some((old, new));
        }
    }

    /// What a rendered deployment changes.
    pub(super) fn rendered(&mut self, paths: &Paths, before: Option<&Value>, new: &Rendered) {
        if let Ok(after) = serde_json::from_str(&new.config) {
            self.compare_configs(before, &after);
        }
        self.file(paths.unit(), new.unit.as_deref());
        self.file(paths.tmpfiles(), new.tmpfiles.as_deref());
    }

    /// Note what becomes of a file whose new text is known.
    pub fn file(&mut self, path: Utf8PathBuf, after: Option<&str>) {
        let before = std::fs::read(&path).ok();
        let change = match (&before, after) {
            (None, Some(_)) => "added",
            (Some(_), None) => "removed",
            (Some(before), Some(after)) if before != after.as_bytes() => "changed",
            _ => return,
        };
        self.files.push(FileChange { path, change });
    }

    /// Note what becomes of the image's files on the host.
    pub fn host_files(&mut self, change: &HostChange) {
        let HostChange { compared, package } = change;
        let mark = |shipment: &Shipment| format!("{} {}", shipment.name, shipment.version);
        let (from, to) = (
            package.from.as_ref().map(mark),
            package.to.as_ref().map(mark),
        );
        if from != to {
            self.package = Some(PackageChange {
                from,
                to,
                fetched: package.fetch.iter().map(ToString::to_string).collect(),
            });
        }
        let of = |path: &Utf8PathBuf, change| FileChange {
            path: path.clone(),
            change,
        };
        let dirs = compared.make_dirs.iter().map(|(path, _)| of(path, "added"));
        let dir_changes = compared.change_dirs.iter();
        let dir_changes = dir_changes.map(|change| of(&change.path, "changed"));
        let new = compared.create.iter().map(|file| of(&file.target, "added"));
        let changed = compared.replace.iter();
        let changed = changed.map(|file| of(&file.target, "changed"));
        let gone = compared.remove.iter().map(|path| of(path, "removed"));
        self.files.extend(
            dirs.chain(dir_changes)
                .chain(new)
                .chain(changed)
                .chain(gone),
        );
    }

    /// As lines of text.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mark = |mark: &ImageMark| format!("{} {}", mark.name, short_id(&mark.id));
        match (&self.from_image, &self.to_image) {
            (Some(from), Some(to)) if from != to => {
                lines.push(format!("image: {} -> {}", mark(from), mark(to)));
            }
            (None, Some(to)) => lines.push(format!("image: {}", mark(to))),
            _ => {}
        }
        if let Some(fetch) = &self.fetch {
            lines.push(format!(
                "fetch: {} layers, {} bytes; {} are in the store",
                fetch.layers.len(),
                fetch.bytes,
                fetch.present
            ));
            lines.push(format!(
                "space: about {} bytes once unpacked; {} bytes and {} inodes are free",
                fetch.estimated_store_bytes, fetch.free_bytes, fetch.free_inodes
            ));
        }
        for (what, delta) in [
            ("ports", &self.ports),
            ("capabilities", &self.capabilities),
            ("environment", &self.environment),
        ] {
            lines.extend(delta.line(what));
        }
        if let Some((before, after)) = &self.command {
            lines.push(format!("command: {before} -> {after}"));
        }
        if let Some(package) = &self.package {
            let nothing = || "none".to_owned();
            lines.push(match (&package.from, &package.to) {
                (None, Some(to)) => format!("package: {to}"),
                (from, to) => format!(
                    "package: {} -> {}",
                    from.clone().unwrap_or_else(nothing),
                    to.clone().unwrap_or_else(nothing)
                ),
            });
            if !package.fetched.is_empty() {
                lines.push(format!(
                    "packages fetched for it: {}",
                    package.fetched.join(", ")
                ));
            }
        }
        for file in &self.files {
            lines.push(format!("{}: {}", file.change, file.path));
        }
        if !self.complete {
            lines.push(
                "unit, tmpfiles and config.json are rendered from the image once it is fetched"
                    .into(),
            );
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_compared_by_key() {
        let words = |list: &[&str]| list.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let delta = Delta::between(&words(&["A=1", "B=2", "C=3"]), &words(&["A=1", "B=3", "D"]));
        assert_eq!(
            (delta.added, delta.changed, delta.removed),
            (words(&["D"]), words(&["B"]), words(&["C"]))
        );
    }

    #[test]
    fn configs_are_compared_and_values_are_not_shown() {
        let config = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let mut effects = Effects::default();
        effects.compare_configs(
            Some(&config(r#"{"process":{"args":["a"],"env":["S=old"]}}"#)),
            &config(
                r#"{"process":{"args":["b"],"env":["S=secret"],"capabilities":{"bounding":["CAP_X"]}}}"#,
            ),
        );
        let text = effects.lines().join("\n");
        assert!(
            text.contains("environment: ~S") && !text.contains("secret"),
            "{text}"
        );
        assert!(text.contains("capabilities: +CAP_X") && text.contains("command: a -> b"));
    }
}
