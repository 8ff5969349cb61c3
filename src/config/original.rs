//! The configuration file of the original: `/etc/atomic.conf` (or `ATOMIC_CONF`), YAML. A host that is
//! taken over goes on with what it says, as far as it means something here.

use camino::Utf8PathBuf;
use serde::Deserialize;

use crate::error::{Error, Kind, Result};
use crate::fail;

/// The keys that mean something here; all others are passed over.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Original {
    pub ostree_repository: Option<Utf8PathBuf>,
    pub checkout_path: Option<Utf8PathBuf>,
    pub runtime: Option<String>,
    pub registry_confdir: Option<Utf8PathBuf>,
    pub default_signer: Option<String>,
    pub gnupg_homedir: Option<Utf8PathBuf>,
    pub http_proxy: Option<String>,
    pub https_proxy: Option<String>,
    pub no_proxy: Option<String>,
}

const CONFIG_FILE: &str = "/etc/atomic.conf";

impl Original {
    /// Read the file, if there is one.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is not a YAML mapping of texts.
    pub fn load(path: Option<String>) -> Result<Self> {
        let path = path.unwrap_or_else(|| CONFIG_FILE.into());
        match std::fs::read_to_string(&path) {
            Ok(text) => parse(&text).map_err(|error| error.within(&path)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => fail!(Kind::Failed, "cannot read {path}: {error}"),
        }
    }

    /// What skopeo should find in its environment: the proxies, unless ours names others.
    pub fn proxies(&self, is_set: impl Fn(&str) -> bool) -> Vec<(String, String)> {
        [
            ("http_proxy", &self.http_proxy),
            ("https_proxy", &self.https_proxy),
            ("no_proxy", &self.no_proxy),
        ]
        .into_iter()
        .filter(|(name, _)| !is_set(name) && !is_set(&name.to_uppercase()))
        .filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)))
        .collect()
    }
}

fn parse(text: &str) -> Result<Original> {
    let only_comments = text.lines().all(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line == "---"
    });
    if only_comments {
        return Ok(Original::default());
    }
    serde_saphyr::from_str(text).map_err(|error| {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        Error::new(Kind::Invalid, format!("not a valid configuration: {first}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_originals_file_is_read_and_what_means_nothing_here_is_passed_over() {
        let text = "# Atomic CLI configuration file\ndefault_scanner: openscap\ndefault_docker: docker\n\
                    checkout_path: /srv/atomic\nostree_repository:\nruntime: '/usr/bin/crun'\n\
                    http_proxy: http://proxy:3128\nno_proxy: localhost\ndefault_signer:\n";
        let original = parse(text).unwrap();
        assert_eq!(original.checkout_path.as_deref().unwrap(), "/srv/atomic");
        assert_eq!(original.ostree_repository, None);
        assert_eq!(original.runtime.as_deref(), Some("/usr/bin/crun"));
        assert_eq!(
            original.proxies(|name| name == "NO_PROXY"),
            [("http_proxy".to_owned(), "http://proxy:3128".to_owned())]
        );
        assert_eq!(parse("# nothing\n---\n").unwrap(), Original::default());
        assert!(parse("checkout_path: [1").is_err());
        assert!(parse("- a list").is_err());
    }
}
