//! Where a registry is: its host, how certificates are looked at, and what registries.conf says.
//!
//! Sources: containers-registries.conf(5), containers-certs.d(5).

use std::path::{Path, PathBuf};

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;

use super::access::Access;
use super::tls::Trust;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::image::Name;

/// The registry of names that name none.
pub const HUB: &str = "docker.io";
/// Where it answers.
const HUB_ADDRESS: &str = "registry-1.docker.io";
/// What its repositories are in, if the name says nothing.
const HUB_LIBRARY: &str = "library/";

/// Where a repository is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The host as names have it, by which credentials are kept.
    pub host: String,
    /// The host that answers, with its port.
    pub address: String,
    /// The repository.
    pub repository: String,
    /// Whether a certificate need not be valid, or there need not be one.
    pub insecure: bool,
}

#[derive(Debug, Default, Deserialize)]
struct Conf {
    #[serde(default)]
    registry: Vec<Entry>,
}

#[derive(Debug, Clone, Deserialize)]
struct Entry {
    prefix: Option<String>,
    location: Option<String>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
}

impl Entry {
    fn prefix(&self) -> &str {
        let prefix = self.prefix.as_deref().filter(|prefix| !prefix.is_empty());
        prefix.or(self.location.as_deref()).unwrap_or_default()
    }

    /// How much of `name` the prefix covers; nothing if it is for others.
    fn covers(&self, name: &str) -> Option<usize> {
        let prefix = self.prefix();
        if let Some(domain) = prefix.strip_prefix('*') {
            let host = name.split(['/', ':']).next().unwrap_or(name);
            return (domain.starts_with('.') && host.ends_with(domain)).then_some(host.len());
        }
        let rest = name.strip_prefix(prefix)?;
        let ends = rest.is_empty() || rest.starts_with(['/', ':', '@']);
        (!prefix.is_empty() && ends).then_some(prefix.len())
    }
}

impl Place {
    /// The place of an image that is to be changed: never that of a mirror.
    ///
    /// # Errors
    /// [`Kind::Refused`] if registries.conf blocks it.
    pub fn of(name: &Name, access: &Access) -> Result<Self> {
        let conf = Conf::load()?;
        Self::with(&conf, name.registry(), name.repository(), access)
    }

    /// A registry as such.
    pub fn of_host(host: &str, access: &Access) -> Result<Self> {
        Self::with(&Conf::load()?, Some(host), "", access)
    }

    fn with(conf: &Conf, host: Option<&str>, repository: &str, access: &Access) -> Result<Self> {
        let host = host.unwrap_or(HUB);
        let is_hub = host == HUB || host == "index.docker.io";
        let repository = if is_hub && !repository.is_empty() && !repository.contains('/') {
            format!("{HUB_LIBRARY}{repository}")
        } else {
            repository.to_owned()
        };
        let host = if is_hub { HUB } else { host };
        let name = format!("{host}/{repository}");
        let name = name.trim_end_matches('/');
        let found = conf
            .registry
            .iter()
            .filter_map(|entry| Some((entry.covers(name)?, entry)));
        // Of two that say the same the one that is read last.
        let found = found.max_by_key(|(length, _)| *length);
        let (mut address, mut path) = (host.to_owned(), repository.clone());
        let mut insecure = false;
        if let Some((length, entry)) = found {
            if entry.blocked {
                fail!(
                    Kind::Refused,
                    "the registry of {name} is blocked in registries.conf"
                );
            }
            insecure = entry.insecure;
            if let Some(location) = entry.location.as_deref().filter(|at| !at.is_empty()) {
                let moved = format!("{location}{}", &name[length..]);
                let (to, below) = moved.split_once('/').unwrap_or((&moved, ""));
                (address, path) = (to.to_owned(), below.to_owned());
            }
        }
        if address == HUB {
            HUB_ADDRESS.clone_into(&mut address);
        }
        Ok(Self {
            host: host.to_owned(),
            address,
            repository: path,
            insecure: access.tls_verify.map_or(insecure, |verify| !verify),
        })
    }

    /// Whom TLS is to trust, and what it shows.
    pub(super) fn trust(&self) -> Result<Trust> {
        let own = std::env::var("HOME").ok();
        let own = own.map(|home| PathBuf::from(home).join(".config/containers/certs.d"));
        let places = ["/etc/containers/certs.d", "/etc/docker/certs.d"];
        let places = own.into_iter().chain(places.map(PathBuf::from));
        let mut out = Trust {
            insecure: self.insecure,
            ..Trust::default()
        };
        for directory in places.map(|place| place.join(&self.address)) {
            let Ok(entries) = std::fs::read_dir(&directory) else {
                continue;
            };
            let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            paths.sort();
            for path in paths {
                match path.extension().and_then(|extension| extension.to_str()) {
                    Some("crt") => out.authorities.extend(certificates(&path)?),
                    Some("cert") if out.own.is_none() => {
                        let key = path.with_extension("key");
                        let text = read(&key)?;
                        let key = PrivateKeyDer::from_pem_slice(&text)
                            .map_err(|error| bad(&key, &error))?;
                        out.own = Some((certificates(&path)?, key));
                    }
                    _ => {}
                }
            }
        }
        Ok(out)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = read(path)?;
    CertificateDer::pem_slice_iter(&text)
        .map(|certificate| certificate.map_err(|error| bad(path, &error)))
        .collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).context(|| format!("cannot read {}", path.display()))
}

fn bad(path: &Path, error: &pem::Error) -> Error {
    Error::new(Kind::Invalid, format!("{}: {error}", path.display()))
}

impl Conf {
    /// All that is configured; what is read later counts more.
    fn load() -> Result<Self> {
        let mut out = Self::default();
        for path in Self::files() {
            let text = match std::fs::read_to_string(&path) {
                Ok(text) => text,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => {
                    return Err(error).context(|| format!("cannot read {}", path.display()));
                }
            };
            let conf: Self =
                toml::from_str(&text).kind(Kind::Invalid, || path.display().to_string())?;
            for entry in conf.registry {
                out.registry
                    .retain(|other| other.prefix() != entry.prefix());
                out.registry.push(entry);
            }
        }
        Ok(out)
    }

    fn files() -> Vec<PathBuf> {
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        if let Some(path) = env("CONTAINERS_REGISTRIES_CONF") {
            return vec![path.into()];
        }
        let own = env("XDG_CONFIG_HOME").map(PathBuf::from);
        let own = own.or_else(|| Some(PathBuf::from(env("HOME")?).join(".config")));
        let own = own.map(|home| home.join("containers"));
        let system = PathBuf::from("/etc/containers");
        let directory = own
            .filter(|own| own.join("registries.conf").exists())
            .unwrap_or(system);
        let mut files = vec![directory.join("registries.conf")];
        let more = std::fs::read_dir(directory.join("registries.conf.d"));
        let more = more.into_iter().flatten().flatten();
        let mut more: Vec<PathBuf> = more.map(|entry| entry.path()).collect();
        more.retain(|path| {
            path.extension()
                .is_some_and(|extension| extension == "conf")
        });
        more.sort();
        files.extend(more);
        files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(conf: &str, name: &str) -> Result<Place> {
        let conf: Conf = toml::from_str(conf).unwrap();
        let name: Name = name.parse().unwrap();
        Place::with(
            &conf,
            name.registry(),
            name.repository(),
            &Access::default(),
        )
    }

    #[test]
    fn names_without_a_registry_are_dockers() {
        for (name, address, repository) in [
            ("busybox", HUB_ADDRESS, "library/busybox"),
            ("team/app:1", HUB_ADDRESS, "team/app"),
            ("docker.io/busybox", HUB_ADDRESS, "library/busybox"),
            ("quay.io/a/b", "quay.io", "a/b"),
            ("localhost:5000/a", "localhost:5000", "a"),
        ] {
            let found = place("", name).unwrap();
            assert_eq!((&*found.address, &*found.repository), (address, repository));
        }
    }

    #[test]
    fn the_longest_prefix_of_the_configuration_counts() {
        let conf = r#"
            [[registry]]
            location = "old.example"
            insecure = true
            [[registry]]
            prefix = "old.example/team"
            location = "new.example:5000/moved"
            [[registry]]
            prefix = "*.bad.example"
            blocked = true
        "#;
        let found = place(conf, "old.example/x").unwrap();
        assert!(found.insecure);
        assert_eq!(
            (&*found.host, &*found.address),
            ("old.example", "old.example")
        );
        let found = place(conf, "old.example/team/app:1").unwrap();
        assert_eq!(
            (&*found.host, &*found.address, &*found.repository),
            ("old.example", "new.example:5000", "moved/app")
        );
        assert!(!found.insecure);
        assert!(place(conf, "a.bad.example/x").is_err());
        assert!(place(conf, "old.example/teams/x").unwrap().insecure);
    }
}
