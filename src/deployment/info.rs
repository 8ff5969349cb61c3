//! The `info` file of a deployment.
//!
//! JSON with the keys the original `atomic` wrote; missing ones are tolerated, unknown ones kept.
//! Ours: `user-values`, `source`, `platform`, `options`, `persistent`, `health`, `owner-layer`,
//! `owned`, `package`, `package-mode`, `installed-files-attributes`.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Context as _, Kind, Result};
use crate::hostfiles::{attributes, package};
use crate::runtime::Health;
use crate::runtime::spec::{Owned, RunOptions};

/// What is known of a deployment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Info {
    /// The image's name.
    pub image: String,
    /// The image id: the manifest digest without `sha256:`.
    pub revision: String,
    /// The commit of the image's ref when it was deployed.
    pub ostree_commit: String,
    /// When, in seconds since 1970.
    pub created: u64,
    /// Every variable, merged.
    pub values: BTreeMap<String, String>,
    /// What `--set` said, now and before; absent on hosts taken over, where `values` is all there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_values: Option<BTreeMap<String, String>>,
    /// False if the image says `noContainerService`.
    pub has_container_service: bool,
    /// Files exported to the host.
    pub installed_files: Vec<String>,
    /// Their checksums.
    pub installed_files_checksum: BTreeMap<String, String>,
    /// Their modes, owners and extended attributes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub installed_files_attributes: attributes::Record,
    /// Which of them are templates.
    pub installed_files_template: Vec<String>,
    /// Renames applied to them.
    pub rename_installed_files: BTreeMap<String, String>,
    /// The file of the package they came in, beside this one: an rpm or a deb.
    pub rpm_installed: Option<String>,
    /// That package.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub package: Option<Shipped>,
    /// How they shall be installed, as it was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub package_mode: Option<package::Mode>,
    /// How they were installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_package: Option<String>,
    /// The remote root file system, as an absolute path.
    pub remote: Option<String>,
    /// Whether host files are hard links.
    pub use_links: bool,
    /// The OCI runtime.
    pub runtime: String,
    /// The full reference to pull again from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The platform that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// What the person said about running it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<RunOptions>,
    /// The owner layer of an ordinary user's container: see [`super::owners`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner_layer: Option<Utf8PathBuf>,
    /// Directories that other users of an ordinary user's container own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub owned: Vec<Owned>,
    /// The command that tells whether the container works.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// Directories whose data survive uninstall.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub persistent: Vec<String>,
    /// What newer or other programs wrote.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The package of a deployment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shipped {
    /// Its name.
    pub name: String,
    /// Its version, with its release.
    pub version: String,
    /// How many packages the container has had.
    pub serial: u64,
    /// The image brought it as it is.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub own: bool,
}

impl Info {
    /// Read the `info` of a deployment directory.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is missing or not JSON of that shape.
    pub fn read(deployment: &Utf8Path) -> Result<Self> {
        let path = deployment.join("info");
        let text = std::fs::read(&path).kind(Kind::Invalid, || format!("cannot read {path}"))?;
        Self::parse(&text, &path)
    }

    /// The same of what stands in the file `path`.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is not JSON of that shape.
    pub fn parse(text: &[u8], path: &Utf8Path) -> Result<Self> {
        let mut info: Self =
            serde_json::from_slice(text).kind(Kind::Invalid, || format!("{path} is not valid"))?;
        // Hosts of old have no such key; a container without unit is the exception there.
        if !String::from_utf8_lossy(text).contains("\"has-container-service\"") {
            info.has_container_service = true;
        }
        Ok(info)
    }

    /// The text of the file: indented by four, as the original wrote it.
    pub fn to_text(&self) -> String {
        let mut out = Vec::new();
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
        if let Err(error) = self.serialize(&mut serializer) {
            // Only maps with keys that are not strings can fail, and there are none.
            tracing::error!(%error, "info cannot be written as JSON");
        }
        out.push(b'\n');
        String::from_utf8(out).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_info_is_read_and_its_unknown_keys_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(dir.path()).unwrap();
        std::fs::write(
            path.join("info"),
            r#"{"image": "a:latest", "revision": "12", "remote": null, "values": {"A": "b"}, "strange": [1]}"#,
        )
        .unwrap();
        let info = Info::read(path).unwrap();
        assert_eq!(info.image, "a:latest");
        assert!(info.has_container_service);
        let text = info.to_text();
        assert!(text.contains("\"strange\": [\n        1\n    ]"), "{text}");
        assert_eq!(serde_json::from_str::<Info>(&text).unwrap(), info);
    }
}
