//! The change itself, as data: an image's manifest and config with one layer more, another, or one less.
//!
//! A layer that was injected is known by two labels of the image's config, as CernVM-FS's `docker_injector` writes them:
//! `NAME_injection_tar` is its `diff_id` and `NAME_injection_gz` its digest. What counts is the `diff_id`: an image that was
//! copied with another compression still has its layer.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize as _;
use serde_json::{Map, Value, json};

use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::image::manifest::{DOCKER_MANIFEST, OCI_MANIFEST};
use crate::image::{Digest, ImageConfig};

const OF_TAR: &str = "_injection_tar";
const OF_BLOB: &str = "_injection_gz";
/// Who the original says wrote its layer, in the history.
const AUTHOR: &str = "cvmfs_shrinkwrap";
/// The only name that the original knows.
const ITS_NAME: &str = "cvmfs";

/// The name of a layer: lower-case letters, digits and `. _ -`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerName(String);

impl LayerName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn of_tar(&self) -> String {
        format!("{}{OF_TAR}", self.0)
    }

    fn of_blob(&self) -> String {
        format!("{}{OF_BLOB}", self.0)
    }
}

impl FromStr for LayerName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"._-".contains(&c);
        let begins = text
            .bytes()
            .next()
            .is_some_and(|c| c.is_ascii_alphanumeric());
        if !begins || text.len() > 64 || !text.bytes().all(plain) {
            fail!(
                Kind::Usage,
                "\"{text}\" is not the name of a layer: lower-case letters, digits and . _ -, at most 64"
            );
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for LayerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How the bytes of a layer are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compression {
    /// What everything reads.
    #[default]
    Gzip,
    /// Smaller and quicker, for images of the OCI's form.
    Zstd,
}

impl FromStr for Compression {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "gzip" => Ok(Self::Gzip),
            "zstd" => Ok(Self::Zstd),
            _ => fail!(Kind::Usage, "\"{text}\" is not a compression: gzip or zstd"),
        }
    }
}

/// A layer as manifest and config name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// The digest of the archive.
    pub diff_id: Digest,
    /// The digest of the blob.
    pub digest: Digest,
    /// The bytes of the blob.
    pub size: u64,
}

/// An injected layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Its name.
    pub name: LayerName,
    /// What it is.
    pub described: Described,
    /// Its place among the layers; the base is 0.
    pub index: usize,
}

/// Whose form an image has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Oci,
    Docker,
}

/// An image of one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    form: Form,
    manifest: Value,
    config: Value,
}

impl Image {
    /// Read one. `media_type`: what the registry says of the manifest, which itself may be silent.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if manifest and config do not fit each other.
    pub fn parse(manifest: &[u8], media_type: &str, config: &[u8]) -> Result<Self> {
        let manifest: Value = serde_json::from_slice(manifest)
            .kind(Kind::Invalid, || "the manifest is not valid".into())?;
        let config: Value = serde_json::from_slice(config)
            .kind(Kind::Invalid, || "the image config is not valid".into())?;
        let said = manifest["mediaType"].as_str().unwrap_or(media_type);
        let of_config = manifest["config"]["mediaType"].as_str().unwrap_or_default();
        let is_docker = said == DOCKER_MANIFEST
            || (said != OCI_MANIFEST && of_config.starts_with("application/vnd.docker."));
        let image = Self {
            form: if is_docker { Form::Docker } else { Form::Oci },
            manifest,
            config,
        };
        let (layers, ids) = (image.list("layers").len(), image.diff_ids().len());
        if layers != ids || !image.config.is_object() {
            fail!(
                Kind::Invalid,
                "the image config names {ids} layers and the manifest {layers}"
            );
        }
        Ok(image)
    }

    /// What its manifest is, for a registry.
    pub fn media_type(&self) -> &'static str {
        match self.form {
            Form::Oci => OCI_MANIFEST,
            Form::Docker => DOCKER_MANIFEST,
        }
    }

    /// Digests of all blobs that it names: layers, and the config as it came.
    pub fn blobs(&self) -> Vec<Digest> {
        let layers = self.list("layers").iter();
        let all = layers.chain(std::iter::once(&self.manifest["config"]));
        all.filter_map(|descriptor| digest_of(&descriptor["digest"]))
            .collect()
    }

    /// All injected layers.
    pub fn injected(&self) -> Vec<Layer> {
        self.names().filter_map(|name| self.find(&name)).collect()
    }

    /// All names that labels are of.
    fn names(&self) -> impl Iterator<Item = LayerName> {
        let labels = self.config["config"]["Labels"].as_object();
        let keys = labels.into_iter().flat_map(Map::keys);
        keys.filter_map(|key| key.strip_suffix(OF_TAR)?.parse().ok())
    }

    /// The injected layer of a name, if the image has it.
    pub fn find(&self, name: &LayerName) -> Option<Layer> {
        let diff_id = self.labelled(name)?;
        let index = self.place_of(name, diff_id)?;
        let descriptor = self.list("layers").get(index)?;
        Some(Layer {
            name: name.clone(),
            described: Described {
                diff_id,
                digest: digest_of(&descriptor["digest"])?,
                size: descriptor["size"].as_u64().unwrap_or_default(),
            },
            index,
        })
    }

    /// What the labels say that the layer of a name is.
    fn labelled(&self, name: &LayerName) -> Option<Digest> {
        digest_of(&self.config["config"]["Labels"][name.of_tar()])
    }

    /// Which of the layers is that of a name: several may have the same content. The history says whose each is; where
    /// it says nothing, the last ones are those of the names, in the order of these.
    fn place_of(&self, name: &LayerName, diff_id: Digest) -> Option<usize> {
        let is_same = |(_, other): &(usize, &Value)| digest_of(other) == Some(diff_id);
        let all: Vec<usize> = self
            .diff_ids()
            .iter()
            .enumerate()
            .filter(is_same)
            .map(|(index, _)| index)
            .collect();
        let mut rivals: Vec<LayerName> = self
            .names()
            .filter(|other| self.labelled(other) == Some(diff_id))
            .collect();
        rivals.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        let maker = |index: &usize| {
            let step = self.step_of(*index).and_then(|at| self.history().get(at));
            step.and_then(|step| step["created_by"].as_str())
        };
        let own = all
            .iter()
            .rev()
            .find(|index| maker(index) == Some(&made_by(name)));
        if let Some(own) = own {
            return Some(*own);
        }
        let is_others = |index: &usize| {
            let maker = maker(index);
            rivals
                .iter()
                .any(|other| other != name && maker == Some(&made_by(other)))
        };
        let free: Vec<usize> = all.into_iter().filter(|index| !is_others(index)).collect();
        let rank = rivals.iter().rev().position(|other| other == name)?;
        free.iter().rev().nth(rank).or(free.last()).copied()
    }

    /// What the image says of itself, as far as it can be read.
    pub fn config(&self) -> ImageConfig {
        ImageConfig::deserialize(&self.config).unwrap_or_default()
    }

    /// Have the layer `name` be this one: in its place if there is one, else on top. `created` is a time as history
    /// has it.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a compression that images of this form cannot have.
    pub fn set(
        &mut self,
        name: &LayerName,
        layer: &Described,
        compression: Compression,
        created: &str,
    ) -> Result<()> {
        let media_type = match (self.form, compression) {
            (Form::Oci, Compression::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Form::Oci, Compression::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (Form::Docker, Compression::Gzip) => {
                "application/vnd.docker.image.rootfs.diff.tar.gzip"
            }
            (Form::Docker, Compression::Zstd) => fail!(
                Kind::Invalid,
                "the image has docker's form, which knows no zstd: leave it gzip, or have \"skopeo copy --format oci\" change the form"
            ),
        };
        let descriptor = json!({
            "mediaType": media_type, "size": layer.size, "digest": layer.digest,
        });
        let step = json!({
            "created": created,
            "created_by": made_by(name),
            "comment": format!("layer {name}: {}", layer.diff_id),
        });
        self.forget_updates(name);
        if let Some(found) = self.find(name) {
            let at = self.step_of(found.index);
            if let Some(at) = at {
                self.history_mut()[at] = step;
            }
            self.list_mut("layers")[found.index] = descriptor;
            self.diff_ids_mut()[found.index] = json!(layer.diff_id);
        } else {
            // A history that tells of other layers than there are is not ours to mend.
            let is_told = self.tells_all();
            self.list_mut("layers").push(descriptor);
            self.diff_ids_mut().push(json!(layer.diff_id));
            if is_told {
                self.history_mut().push(step);
            }
        }
        self.label(&name.of_tar(), Some(layer.diff_id));
        self.label(&name.of_blob(), Some(layer.digest));
        Ok(())
    }

    /// Have no layer `name`; false if there is none.
    pub fn remove(&mut self, name: &LayerName) -> bool {
        let Some(found) = self.find(name) else {
            return false;
        };
        self.forget_updates(name);
        if let Some(at) = self.step_of(found.index) {
            self.history_mut().remove(at);
        }
        self.list_mut("layers").remove(found.index);
        self.diff_ids_mut().remove(found.index);
        self.label(&name.of_tar(), None);
        self.label(&name.of_blob(), None);
        true
    }

    /// The config's bytes, and then the manifest's, which names it.
    pub fn render(&mut self) -> Result<(Vec<u8>, Vec<u8>)> {
        let failed = || "cannot write the image".into();
        let config = serde_json::to_vec(&self.config).context(failed)?;
        let descriptor = &mut self.manifest["config"];
        descriptor["digest"] = json!(Digest::of(&config));
        descriptor["size"] = json!(config.len());
        if let Some(fields) = descriptor.as_object_mut() {
            // A copy of what it was.
            fields.shift_remove("data");
        }
        let manifest = serde_json::to_vec(&self.manifest).context(failed)?;
        Ok((config, manifest))
    }

    fn list(&self, field: &str) -> &[Value] {
        self.manifest[field].as_array().map_or(&[], Vec::as_slice)
    }

    fn list_mut(&mut self, field: &str) -> &mut Vec<Value> {
        array(&mut self.manifest[field])
    }

    fn diff_ids(&self) -> &[Value] {
        let ids = self.config["rootfs"]["diff_ids"].as_array();
        ids.map_or(&[], Vec::as_slice)
    }

    fn diff_ids_mut(&mut self) -> &mut Vec<Value> {
        array(&mut self.config["rootfs"]["diff_ids"])
    }

    fn history(&self) -> &[Value] {
        let history = self.config["history"].as_array();
        history.map_or(&[], Vec::as_slice)
    }

    fn history_mut(&mut self) -> &mut Vec<Value> {
        array(&mut self.config["history"])
    }

    /// Where in the history the steps are that made layers.
    fn steps(&self) -> Vec<usize> {
        let makes = |(at, step): (usize, &Value)| {
            (step["empty_layer"].as_bool() != Some(true)).then_some(at)
        };
        self.history()
            .iter()
            .enumerate()
            .filter_map(makes)
            .collect()
    }

    fn tells_all(&self) -> bool {
        self.steps().len() == self.diff_ids().len()
    }

    /// Where in the history it says what made a layer.
    fn step_of(&self, layer: usize) -> Option<usize> {
        self.tells_all().then(|| self.steps().get(layer).copied())?
    }

    /// The original adds a step for each update.
    fn forget_updates(&mut self, name: &LayerName) {
        if name.as_str() == ITS_NAME && self.config["history"].is_array() {
            self.history_mut().retain(|step| {
                step["author"] != AUTHOR || step["empty_layer"].as_bool() != Some(true)
            });
        }
    }

    /// In the config, and in the copy of it that docker's old builder left.
    fn label(&mut self, key: &str, value: Option<Digest>) {
        let Some(config) = self.config.as_object_mut() else {
            return;
        };
        if value.is_some() {
            let own = config.entry("config").or_insert(Value::Null);
            if own.is_null() {
                *own = json!({});
            }
        }
        for part in ["config", "container_config"] {
            let Some(part) = config.get_mut(part).and_then(Value::as_object_mut) else {
                continue;
            };
            if let Some(value) = value {
                let labels = part.entry("Labels").or_insert(Value::Null);
                if !labels.is_object() {
                    *labels = json!({});
                }
                labels[key] = json!(value);
            } else if let Some(labels) = part.get_mut("Labels").and_then(Value::as_object_mut) {
                labels.shift_remove(key);
                if labels.is_empty() {
                    part.shift_remove("Labels");
                }
            }
        }
    }
}

fn made_by(name: &LayerName) -> String {
    format!("atomic-rs inject {name}")
}

fn digest_of(value: &Value) -> Option<Digest> {
    value.as_str()?.parse().ok()
}

fn array(value: &mut Value) -> &mut Vec<Value> {
    if !value.is_array() {
        *value = json!([]);
    }
    match value {
        Value::Array(array) => array,
        _ => unreachable!("it was made one above"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREATED: &str = "2026-01-02T03:04:05Z";

    fn digest(c: char) -> Digest {
        Digest::from_hex(&c.to_string().repeat(64)).unwrap()
    }

    fn described(c: char) -> Described {
        Described {
            diff_id: digest(c),
            digest: digest('e'),
            size: 7,
        }
    }

    fn manifest(docker: bool) -> Value {
        let (kind, layer) = if docker {
            (
                DOCKER_MANIFEST,
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
            )
        } else {
            (OCI_MANIFEST, "application/vnd.oci.image.layer.v1.tar+gzip")
        };
        json!({"schemaVersion": 2, "mediaType": kind,
            "config": {"mediaType": "x", "digest": digest('c'), "size": 2, "data": "e30="},
            "layers": [{"mediaType": layer, "digest": digest('1'), "size": 1, "urls": ["u"]}],
            "annotations": {"kept": "yes"}})
    }

    fn image(docker: bool, config: Value) -> Image {
        let mut config = config;
        config["rootfs"] = json!({"type": "layers", "diff_ids": [digest('a')]});
        Image::parse(
            manifest(docker).to_string().as_bytes(),
            "",
            config.to_string().as_bytes(),
        )
        .unwrap()
    }

    fn name() -> LayerName {
        "cvmfs".parse().unwrap()
    }

    #[test]
    fn a_layer_is_set_replaced_and_removed_again() {
        let before = json!({
            "architecture": "amd64", "author": "d'Arc – ä\n", "config": {"Labels": {"mine": "1"}},
            "history": [{"created_by": "base"}, {"created_by": "ENV", "empty_layer": true}],
        });
        let mut image = image(true, before);
        let untouched = image.clone();
        image
            .set(&name(), &described('b'), Compression::Gzip, CREATED)
            .unwrap();
        assert_eq!(image.find(&name()).unwrap().described, described('b'));
        assert_eq!(image.config["config"]["Labels"]["mine"], "1");
        assert_eq!(image.config["author"], "d'Arc – ä\n");
        assert_eq!(image.history().len(), 3);
        image
            .set(&name(), &described('d'), Compression::Gzip, CREATED)
            .unwrap();
        // In the place of what was there, and the history does not grow.
        assert_eq!(image.history().len(), 3);
        assert_eq!(image.diff_ids(), [json!(digest('a')), json!(digest('d'))]);
        assert_eq!(image.injected().len(), 1);
        assert_eq!(
            image.list("layers")[1]["mediaType"],
            image.list("layers")[0]["mediaType"]
        );
        assert_eq!(image.list("layers")[0]["urls"], json!(["u"]));
        assert!(image.remove(&name()));
        assert!(!image.remove(&name()));
        assert_eq!(image, untouched);
    }

    #[test]
    fn images_without_labels_or_history_or_with_container_config_are_taken() {
        for config in [
            json!({}),
            json!({"config": null}),
            json!({"config": {"Labels": null}, "container_config": null}),
            json!({"config": {}, "container_config": {"Labels": null}}),
        ] {
            let mut image = image(false, config);
            image
                .set(&name(), &described('b'), Compression::Zstd, CREATED)
                .unwrap();
            assert_eq!(image.find(&name()).unwrap().index, 1);
            assert_eq!(image.history().len(), 0);
            let (config, manifest) = image.render().unwrap();
            let again = Image::parse(&manifest, "", &config).unwrap();
            assert_eq!(again.find(&name()), image.find(&name()));
            assert!(again.manifest["config"].get("data").is_none());
            assert_eq!(again.manifest["annotations"]["kept"], "yes");
            assert_eq!(
                again.list("layers")[1]["mediaType"],
                "application/vnd.oci.image.layer.v1.tar+zstd"
            );
        }
        let mut docker = image(true, json!({}));
        let refused = docker.set(&name(), &described('b'), Compression::Zstd, CREATED);
        assert!(refused.is_err());
    }

    #[test]
    fn what_the_original_made_is_understood_and_its_history_does_not_grow() {
        let both = json!({"Labels": {"cvmfs_injection_tar": digest('b'), "cvmfs_injection_gz": digest('9')}});
        let config = json!({
            "config": both, "container_config": both,
            "rootfs": {"diff_ids": [digest('a'), digest('b')]},
            "history": [
                {"created_by": "base"},
                {"created_by": "/bin/sh -c #(nop) ADD file:x in / ", "author": AUTHOR},
                {"created_by": "UPDATE file: from y to x in / ", "author": AUTHOR, "empty_layer": true},
                {"created_by": "UPDATE file: from x to z in / ", "author": AUTHOR, "empty_layer": true},
            ],
        });
        let mut manifest = manifest(true);
        // It was copied since, with another compression.
        let copied = json!({"mediaType": "y", "digest": digest('8'), "size": 3});
        manifest["layers"].as_array_mut().unwrap().push(copied);
        let mut image = Image::parse(
            manifest.to_string().as_bytes(),
            "",
            config.to_string().as_bytes(),
        )
        .unwrap();
        assert_eq!(image.find(&name()).unwrap().described.digest, digest('8'));
        image
            .set(&name(), &described('d'), Compression::Gzip, CREATED)
            .unwrap();
        assert_eq!(image.history().len(), 2);
        assert_eq!(image.diff_ids(), [json!(digest('a')), json!(digest('d'))]);
        let labels = &image.config["container_config"]["Labels"];
        assert_eq!(labels["cvmfs_injection_tar"], json!(digest('d')));
        assert_eq!(labels["cvmfs_injection_gz"], json!(digest('e')));
    }

    #[test]
    fn layers_of_the_same_content_keep_their_places() {
        for history in [json!([{"created_by": "base"}]), Value::Null] {
            let mut image = image(false, json!({"history": history}));
            let [a, b] = ["a", "b"].map(|name| name.parse::<LayerName>().unwrap());
            for name in [&a, &b] {
                image
                    .set(name, &described('b'), Compression::Gzip, CREATED)
                    .unwrap();
            }
            let places = |image: &Image| [&a, &b].map(|name| image.find(name).unwrap().index);
            assert_eq!(places(&image), [1, 2]);
            image
                .set(&a, &described('d'), Compression::Gzip, CREATED)
                .unwrap();
            assert_eq!(places(&image), [1, 2]);
            assert!(image.remove(&b));
            assert_eq!(image.find(&a).unwrap().described, described('d'));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let manifest = manifest(false).to_string();
        for config in ["{}", "[]", r#"{"rootfs": {"diff_ids": []}}"#, "x"] {
            assert!(Image::parse(manifest.as_bytes(), "", config.as_bytes()).is_err());
        }
        for bad in ["", "-x", "a/b", "A", "a b", &"x".repeat(65)] {
            assert!(bad.parse::<LayerName>().is_err(), "{bad}");
        }
    }
}
