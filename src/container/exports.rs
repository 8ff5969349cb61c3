//! What an image brings under `/exports`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::error::{Context as _, Error, Kind, Result};
use crate::hostfiles::DIRECTORY as HOST_FILES;
use crate::safefs::Files;
use crate::store::images::StoredImage;
use crate::store::{ImageTree, Store};
use crate::template;

/// Templates and manifests are small.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// `exports/manifest.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExportsManifest {
    /// Variables and their defaults.
    pub default_values: BTreeMap<String, String>,
    /// Host files to substitute variables in.
    pub installed_files_template: Vec<String>,
    /// Host files to rename.
    pub rename_files: BTreeMap<String, String>,
    /// Whether host files may be hard links.
    pub use_links: Option<bool>,
    /// Only host files, no service.
    pub no_container_service: bool,
}

/// A text and whether variables are substituted in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedText {
    /// Its name, for messages.
    pub file: &'static str,
    /// Its content.
    pub text: String,
    /// False for `config.json` without `.template`.
    pub is_template: bool,
}

/// Everything under `/exports`.
#[derive(Debug, Clone, Default)]
pub struct Exports {
    /// There is such a directory.
    pub present: bool,
    /// The manifest, or its defaults.
    pub manifest: ExportsManifest,
    /// `config.json` or `config.json.template`.
    pub config: Option<ExportedText>,
    /// `service.template`.
    pub service: Option<ExportedText>,
    /// `tmpfiles.template`.
    pub tmpfiles: Option<ExportedText>,
    /// There are files for the host.
    pub has_host_files: bool,
}

impl Exports {
    /// Read `/exports` of the image called `image`.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a broken manifest or a text that is not UTF-8.
    pub fn read(files: &dyn Files, image: &str) -> Result<Self> {
        let is_dir = |path| Ok::<_, Error>(files.stat(path)?.is_some_and(|stat| stat.is_dir));
        if !is_dir("/exports")? {
            return Ok(Self::default());
        }
        let read = |file: &'static str| -> Result<Option<ExportedText>> {
            let Some(bytes) = files.read(&format!("/exports/{file}"), MAX_BYTES)? else {
                return Ok(None);
            };
            let text = String::from_utf8(bytes).kind(Kind::Invalid, || {
                format!("the image's exports/{file} is not UTF-8")
            })?;
            Ok(Some(ExportedText {
                file,
                text,
                is_template: file
                    .rsplit_once('.')
                    .is_some_and(|(_, end)| end == "template"),
            }))
        };
        let manifest = match read("manifest.json")? {
            None => ExportsManifest::default(),
            Some(found) => serde_json::from_str(&found.text).map_err(|error| {
                tracing::debug!(%error, "manifest.json");
                Error::new(
                    Kind::Invalid,
                    format!("Invalid manifest.json file in image: {image}."),
                )
            })?,
        };
        let config = match read("config.json")? {
            Some(found) => Some(found),
            None => read("config.json.template")?,
        };
        Ok(Self {
            present: true,
            manifest,
            config,
            service: read("service.template")?,
            tmpfiles: read("tmpfiles.template")?,
            has_host_files: is_dir("/exports/hostfs")?,
        })
    }
}

/// A variable of an image's templates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateVariable {
    /// Its name.
    pub name: String,
    /// Its value unless `--set` says otherwise.
    pub default: Option<String>,
    /// The host gives it.
    pub set_by_host: bool,
}

/// What an image brings for the host, by path, before anything is renamed; empty directories included.
pub fn exported_files(store: &Store, image: &StoredImage) -> Result<Vec<String>> {
    let tree = ImageTree::open(store.repo(), &store.image_tree(image)?)?;
    let walked = tree.walk(HOST_FILES)?;
    let filled: BTreeSet<&str> = walked
        .iter()
        .filter_map(|entry| entry.path.rsplit_once('/'))
        .map(|(above, _)| above)
        .collect();
    Ok(walked
        .iter()
        .filter(|entry| !filled.contains(entry.path.as_str()))
        .map(|entry| format!("/{}", entry.path))
        .collect())
}

/// The variables that an image's templates use, and where their values come from.
pub fn template_variables(store: &Store, image: &StoredImage) -> Result<Vec<TemplateVariable>> {
    let tree = ImageTree::open(store.repo(), &store.image_tree(image)?)?;
    let exports = Exports::read(&tree, &image.name)?;
    let mut names: BTreeSet<String> = exports.manifest.default_values.keys().cloned().collect();
    let templates = [&exports.config, &exports.service, &exports.tmpfiles];
    for text in templates.into_iter().flatten() {
        if text.is_template {
            names.extend(template::dollar::variables(&text.text));
        }
    }
    for target in exports.manifest.rename_files.values() {
        names.extend(template::dollar::variables(target));
    }
    for target in &exports.manifest.installed_files_template {
        // Renamed ones are found when they are installed.
        if let Some(text) = tree.read(&format!("{HOST_FILES}{target}"), MAX_BYTES)? {
            names.extend(template::dollar::variables(&String::from_utf8_lossy(&text)));
        }
    }
    Ok(names
        .into_iter()
        .map(|name| TemplateVariable {
            default: exports.manifest.default_values.get(&name).cloned(),
            set_by_host: template::variables::is_given(&name),
            name,
        })
        .collect())
}
