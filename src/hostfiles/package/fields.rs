//! What a package says of itself: from the labels of its image.

use camino::Utf8Path;

use super::{Format, Relation};
use crate::error::{Error, Kind, Result};
use crate::fail;
use crate::image::ImageConfig;

/// Texts and relations of a package.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields {
    /// Version, as the image says it; the formats have their own rules for its letters.
    pub version: String,
    /// What tells two packages of one version apart, in order.
    pub release: String,
    /// One line.
    pub summary: String,
    /// Several.
    pub description: String,
    /// An SPDX expression, or whatever the image says.
    pub license: String,
    /// Where to read more.
    pub url: Option<String>,
    /// Who is responsible for it.
    pub maintainer: Option<String>,
    /// What it needs.
    pub requires: Vec<Relation>,
    /// What it counts as.
    pub provides: Vec<Relation>,
    /// What it cannot stand.
    pub conflicts: Vec<Relation>,
}

impl Fields {
    /// Read the labels `atomic.version`, `atomic.release`, `atomic.summary`, `atomic.description`,
    /// `atomic.license`, `atomic.url`, `atomic.requires`, `atomic.provides` and `atomic.conflicts`, in
    /// any case; where there is none, what OCI has for the purpose. `serial` orders packages that have
    /// no release of their own; `id` is that of the image.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a relation that cannot be understood.
    pub fn of_image(
        config: &ImageConfig,
        container: &str,
        serial: &str,
        image: (&str, &str),
    ) -> Result<Self> {
        let labels = &config.config.labels;
        let label = |name: &str, standard: &str| {
            let ours = format!("atomic.{name}");
            let own = labels.iter().find(|(key, _)| key.to_lowercase() == ours);
            let standard = labels.get_key_value(&format!("org.opencontainers.image.{standard}"));
            own.or(standard)
                .map(|(_, value)| one_line(value))
                .filter(|value| !value.is_empty())
        };
        let relations = |name: &str| match label(name, "") {
            Some(text) => parse_relations(&format!("atomic.{name}"), &text),
            None => Ok(Vec::new()),
        };
        let (image_name, id) = image;
        let about = format!("Made from the image {image_name}\nsha256:{id}");
        Ok(Self {
            version: label("version", "").unwrap_or_else(|| "1".into()),
            release: label("release", "").unwrap_or_else(|| format!("{serial}.{id}")),
            summary: label("summary", "title")
                .unwrap_or_else(|| format!("the system container {container}")),
            description: match label("description", "description") {
                Some(text) => format!("{text}\n{about}"),
                None => about,
            },
            license: label("license", "licenses").unwrap_or_else(|| "unknown".into()),
            url: label("url", "url"),
            maintainer: label("maintainer", "authors"),
            requires: relations("requires")?,
            provides: relations("provides")?,
            conflicts: relations("conflicts")?,
        })
    }
}

fn one_line(text: &str) -> String {
    let words: Vec<&str> = text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty())
        .collect();
    words.join(" ")
}

/// Relations separated by commas.
fn parse_relations(label: &str, text: &str) -> Result<Vec<Relation>> {
    text.split(',')
        .filter(|part| !part.trim().is_empty())
        .map(|part| {
            part.parse()
                .map_err(|error: Error| error.within(format_args!("the image's label {label}")))
        })
        .collect()
}

/// The name of a container's package: `atomic-container-NAME`. Debian knows small letters only, and no
/// underscores.
pub fn name(format: Format, container: &str) -> String {
    let name = format!("atomic-container-{container}");
    match format {
        Format::Rpm => name,
        Format::Deb => name.to_lowercase().replace('_', "-"),
    }
}

/// The date of a package, in seconds since 1970: `SOURCE_DATE_EPOCH` if it is set, else when the image
/// was built. See <https://reproducible-builds.org/specs/source-date-epoch/>.
///
/// # Errors
/// [`Kind::Usage`] if the variable is no number.
pub fn package_date(config: &ImageConfig) -> Result<u64> {
    if let Ok(text) = std::env::var("SOURCE_DATE_EPOCH")
        && !text.is_empty()
    {
        return match text.parse::<u32>() {
            Ok(seconds) => Ok(seconds.into()),
            Err(_) => fail!(
                Kind::Usage,
                "SOURCE_DATE_EPOCH is \"{text}\", which is no number of seconds"
            ),
        };
    }
    let built = config.created.parse::<jiff::Timestamp>().ok();
    let seconds = built.and_then(|time| u32::try_from(time.as_second()).ok());
    Ok(seconds.unwrap_or_default().into())
}

/// The name of the package whose file a program is, where it is known to be the same everywhere.
pub fn package_of_program(path: &str) -> Option<Relation> {
    let name = Utf8Path::new(path).file_name()?;
    matches!(name, "runc" | "crun" | "youki" | "kata-runtime").then(|| Relation::any(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_found_in_any_case_and_ocis_help_out() {
        let config = ImageConfig::parse(
            br#"{"created": "2024-01-02T03:04:05Z", "config": {"Labels": {"Atomic.Version": "2.4", "atomic.summary": "one\n two",
                "org.opencontainers.image.licenses": "MIT", "org.opencontainers.image.version": "22.04"}}}"#,
        )
        .unwrap();
        let fields = Fields::of_image(&config, "web", "3", ("app:1", "ab12")).unwrap();
        assert_eq!(
            (
                fields.version.as_str(),
                fields.release.as_str(),
                fields.summary.as_str(),
                fields.license.as_str()
            ),
            ("2.4", "3.ab12", "one two", "MIT")
        );
        // A version that came from a base image says nothing of this one.
        let plain =
            Fields::of_image(&ImageConfig::default(), "web", "3", ("app:1", "ab12")).unwrap();
        assert_eq!(plain.version, "1");
        assert!(plain.description.contains("sha256:ab12"));
    }

    #[test]
    fn names_suit_their_format() {
        assert_eq!(name(Format::Rpm, "My_App"), "atomic-container-My_App");
        assert_eq!(name(Format::Deb, "My_App"), "atomic-container-my-app");
    }
}
