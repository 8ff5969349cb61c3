//! What a person types to name an image, read by syntax alone (no name service, no disk).
//!
//! Two grammars meet here: the prefixes of the original `atomic` and the transports of skopeo.
//!
//! | typed | source |
//! |---|---|
//! | `NAME`, `docker://NAME`, `oci:NAME`, `https:NAME` | registry |
//! | `http:NAME` | registry, TLS not verified |
//! | `docker:NAME`, `docker-daemon:NAME` | local docker daemon |
//! | `dockertar:/PATH`, `docker-archive:PATH[:NAME]` | archive of `docker save` |
//! | `oci:PATH[:TAG]` where PATH starts with `/` or `.` | OCI layout |
//! | `oci-archive:PATH[:TAG]` | tar of an OCI layout |
//! | `dir:PATH`, `containers-storage:NAME` | skopeo's |
//!
//! NAME is `[registry/][repository/]name[:tag][@sha256:hex]`; the first component is a registry
//! when it contains `.` or `:` or is `localhost`.

use std::fmt;
use std::str::FromStr;

use super::digest::Digest;
use crate::error::{Error, Kind, Result};
use crate::fail;

/// Where an image is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// A registry. `insecure`: plain HTTP or an unverified certificate is accepted.
    Registry {
        /// The `http:` prefix was used.
        insecure: bool,
    },
    /// The docker daemon of this host.
    DockerDaemon,
    /// A `docker save` archive.
    DockerArchive {
        /// Where it is.
        path: String,
    },
    /// An OCI image layout directory.
    OciLayout {
        /// Where it is.
        path: String,
    },
    /// A tar archive of an OCI image layout.
    OciArchive {
        /// Where it is.
        path: String,
    },
    /// skopeo's directory form.
    Dir {
        /// Where it is.
        path: String,
    },
    /// The store of podman, buildah and CRI-O.
    ContainersStorage,
}

/// The name of an image: as typed, with the default tag made explicit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    registry: Option<String>,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// An image as named on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Where to read it.
    pub transport: Transport,
    /// Its name, unless only the archive or layout itself knows it.
    pub name: Option<Name>,
}

impl Name {
    /// The registry host and port, if the name has one.
    pub fn registry(&self) -> Option<&str> {
        self.registry.as_deref()
    }

    /// The repository path without the registry: `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.path
    }

    /// The tag, unless the name is a digest alone.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the name is pinned to one.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Registry and repository without tag and digest.
    pub fn without_tag(&self) -> String {
        match &self.registry {
            Some(registry) => format!("{registry}/{}", self.path),
            None => self.path.clone(),
        }
    }

    /// The name a container of this image gets: the last component, with the tag unless it is `latest`.
    pub fn default_container_name(&self) -> String {
        let last = self.path.rsplit('/').next().unwrap_or(&self.path);
        match &self.tag {
            Some(tag) if tag != "latest" && self.digest.is_none() => format!("{last}-{tag}"),
            _ => last.to_owned(),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.without_tag())?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// More than any registry takes, in bytes.
const MAX_NAME: usize = 512;
/// What a digest adds.
const PINNED: usize = "@sha256:".len() + 64;

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            Error::new(
                Kind::Invalid,
                format!("\"{text}\" is not an image name: {why}"),
            )
        };
        let too_long = || bad("longer than 512 characters");
        if text.len() > MAX_NAME + PINNED {
            return Err(too_long());
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let (registry, rest) = match rest.split_once('/') {
            Some((first, after)) if is_registry(first) => (Some(first.to_owned()), after),
            _ => (None, rest),
        };
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) => (path, Some(tag.to_owned())),
            None => (rest, None),
        };
        if let Some(registry) = &registry
            && !registry
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || b".-:[]".contains(&c))
        {
            return Err(bad("the registry has odd characters"));
        }
        if path.is_empty() || !path.split('/').all(is_path_component) {
            return Err(bad(
                "a repository is lower-case letters, digits and . _ - between slashes",
            ));
        }
        if let Some(tag) = &tag
            && !is_tag(tag)
        {
            return Err(bad(
                "a tag is at most 128 letters, digits, . _ - and starts with a letter, digit or _",
            ));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag,
        };
        // With all that it says when it is written, or it could not be read again.
        let parts = [registry.as_deref(), Some(path), tag.as_deref()];
        if parts
            .into_iter()
            .flatten()
            .map(|part| part.len() + 1)
            .sum::<usize>()
            > MAX_NAME
        {
            return Err(too_long());
        }
        Ok(Self {
            registry,
            path: path.to_owned(),
            tag,
            digest,
        })
    }
}

fn is_registry(component: &str) -> bool {
    component == "localhost" || component.contains(['.', ':'])
}

fn is_path_component(component: &str) -> bool {
    let edge = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    component
        .bytes()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"._-".contains(&c))
        && edge(component.bytes().next())
        && edge(component.bytes().last())
        && !component.contains("..")
}

fn is_tag(tag: &str) -> bool {
    tag.len() <= 128
        && tag
            .bytes()
            .next()
            .is_some_and(|c| c.is_ascii_alphanumeric() || c == b'_')
        && tag
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"_.-".contains(&c))
}

impl Reference {
    /// The text skopeo understands for this reference.
    pub fn to_skopeo(&self) -> String {
        let name = self.name.as_ref();
        let with_tag = |prefix: &str, path: &str| match name {
            Some(name) => format!("{prefix}{path}:{name}"),
            None => format!("{prefix}{path}"),
        };
        match &self.transport {
            // skopeo refuses a tag beside a digest; the digest decides.
            Transport::Registry { .. } => match name {
                Some(name) => match name.digest {
                    Some(digest) => format!("docker://{}@{digest}", name.without_tag()),
                    None => format!("docker://{name}"),
                },
                None => "docker://".to_owned(),
            },
            Transport::DockerDaemon => with_tag("docker-daemon", ""),
            Transport::DockerArchive { path } => with_tag("docker-archive:", path),
            Transport::OciLayout { path } => format!("oci:{path}"),
            Transport::OciArchive { path } => format!("oci-archive:{path}"),
            Transport::Dir { path } => format!("dir:{path}"),
            Transport::ContainersStorage => with_tag("containers-storage", ""),
        }
    }

    /// True if this names an image on a registry without saying which.
    pub fn is_unqualified(&self) -> bool {
        matches!(self.transport, Transport::Registry { .. })
            && self
                .name
                .as_ref()
                .is_some_and(|name| name.registry.is_none())
    }

    /// The same reference pinned to `digest`, so that what is read next is what was inspected.
    #[must_use]
    pub fn pinned_to(&self, digest: Digest) -> Self {
        let mut pinned = self.clone();
        if let (Transport::Registry { .. }, Some(name)) = (&self.transport, &mut pinned.name) {
            name.digest = Some(digest);
        }
        pinned
    }

    /// The name under which a store keeps the image when the source itself has none: the tag of a
    /// layout (`oci:/srv/app:1` is `app:1`) or the file name of an archive without `.tar`.
    pub fn fallback_name(&self) -> Result<Name> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let (Transport::DockerArchive { path }
        | Transport::OciLayout { path }
        | Transport::OciArchive { path }
        | Transport::Dir { path }) = &self.transport
        else {
            fail!(Kind::Invalid, "the reference \"{self}\" has no image name");
        };
        let (path, tag) = match path.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (path.as_str(), None),
        };
        // A layout's own ref name may be a whole image name: `oci:/srv/layout:registry/app:1`.
        let stem = path
            .rsplit('/')
            .find(|part| !part.is_empty() && *part != ".");
        let stem = stem
            .unwrap_or("image")
            .trim_end_matches(".tar")
            .to_lowercase();
        match tag {
            Some(tag) if is_tag(tag) => format!("{stem}:{tag}").parse(),
            _ => stem.parse(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.transport, &self.name) {
            (Transport::Registry { insecure: true }, Some(name)) => write!(f, "http:{name}"),
            (Transport::Registry { insecure: false }, Some(name)) => write!(f, "docker://{name}"),
            _ => f.write_str(&self.to_skopeo()),
        }
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let registry = |rest: &str, insecure| {
            Ok(Self {
                transport: Transport::Registry { insecure },
                name: Some(rest.trim_start_matches("//").parse()?),
            })
        };
        let at_path = |path: &str, make: fn(String) -> Transport| {
            if path.is_empty() {
                fail!(Kind::Invalid, "\"{text}\" names no path");
            }
            Ok(Self {
                transport: make(path.to_owned()),
                name: None,
            })
        };
        let Some((prefix, rest)) = text.split_once(':') else {
            return registry(text, false);
        };
        match prefix {
            "oci" if rest.starts_with(['/', '.']) && !rest.starts_with("//") => {
                at_path(rest, |path| Transport::OciLayout { path })
            }
            "oci" | "https" => registry(rest, false),
            "http" => registry(rest, true),
            "docker" if rest.starts_with("//") => registry(rest, false),
            "docker" | "docker-daemon" => Ok(Self {
                transport: Transport::DockerDaemon,
                name: Some(rest.parse()?),
            }),
            // `dockertar:///abs` and `dockertar:/abs` mean the same file.
            // skopeo takes what follows a colon for a name.
            "dockertar" if rest.contains(':') => fail!(
                Kind::Invalid,
                "\"{text}\" has a colon in its path: docker-archive:PATH:NAME names an image in an archive"
            ),
            "dockertar" => at_path(
                &match rest.trim_start_matches('/') {
                    "" => String::new(),
                    path if rest.starts_with('/') => format!("/{path}"),
                    path => path.to_owned(),
                },
                |path| Transport::DockerArchive { path },
            ),
            "docker-archive" => match rest.split_once(':') {
                Some((path, name)) => Ok(Self {
                    transport: Transport::DockerArchive {
                        path: path.to_owned(),
                    },
                    name: Some(name.parse()?),
                }),
                None => at_path(rest, |path| Transport::DockerArchive { path }),
            },
            "oci-archive" => at_path(rest, |path| Transport::OciArchive { path }),
            "dir" => at_path(rest, |path| Transport::Dir { path }),
            "containers-storage" => Ok(Self {
                transport: Transport::ContainersStorage,
                name: Some(rest.parse()?),
            }),
            _ => registry(text, false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_by_syntax_alone() {
        // (typed, registry, repository, tag)
        for (text, registry, path, tag) in [
            (
                "docker.io/library/busybox",
                Some("docker.io"),
                "library/busybox",
                "latest",
            ),
            ("docker.io/busybox:2.1", Some("docker.io"), "busybox", "2.1"),
            (
                "docker.io:5000/busybox",
                Some("docker.io:5000"),
                "busybox",
                "latest",
            ),
            ("busybox", None, "busybox", "latest"),
            ("library/busybox", None, "library/busybox", "latest"),
            (
                "registry.access.redhat.com/rhel7",
                Some("registry.access.redhat.com"),
                "rhel7",
                "latest",
            ),
            ("a.b/c/d/e:1", Some("a.b"), "c/d/e", "1"),
            ("localhost/x", Some("localhost"), "x", "latest"),
            ("cafe:12", None, "cafe", "12"),
        ] {
            let name: Name = text.parse().unwrap();
            assert_eq!(name.registry(), registry, "{text}");
            assert_eq!(name.repository(), path, "{text}");
            assert_eq!(name.tag(), Some(tag), "{text}");
        }
    }

    #[test]
    fn prefixes_choose_the_transport() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (text, skopeo) in [
            ("busybox", "docker://busybox:latest".to_owned()),
            ("oci:busybox", "docker://busybox:latest".into()),
            ("docker://a.b/c:1", "docker://a.b/c:1".into()),
            ("http:a.b:5000/c", "docker://a.b:5000/c:latest".into()),
            ("localhost:5000/c:2", "docker://localhost:5000/c:2".into()),
            ("docker:busybox", "docker-daemon:busybox:latest".into()),
            ("docker:busybox:1", "docker-daemon:busybox:1".into()),
            ("dockertar:/tmp/x.tar", "docker-archive:/tmp/x.tar".into()),
            ("dockertar:///tmp/x", "docker-archive:/tmp/x".into()),
            (
                "docker-archive:x.tar:app:1",
                "docker-archive:x.tar:app:1".into(),
            ),
            ("oci:/srv/app:1", "oci:/srv/app:1".into()),
            ("oci:./app", "oci:./app".into()),
            ("oci-archive:x.tar", "oci-archive:x.tar".into()),
            ("dir:/x", "dir:/x".into()),
            (
                "containers-storage:a.b/c:1",
                "containers-storage:a.b/c:1".into(),
            ),
            (
                &format!("a.b/c:1@{digest}"),
                format!("docker://a.b/c@{digest}"),
            ),
            (&format!("c@{digest}"), format!("docker://c@{digest}")),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_skopeo(), skopeo, "{text}");
            // What is shown can be typed again and means the same.
            let shown: Reference = reference.to_string().parse().unwrap();
            assert_eq!(shown, reference, "{text}");
        }
        let reference: Reference = "http:a.b/c".parse().unwrap();
        assert_eq!(reference.transport, Transport::Registry { insecure: true });
        // A name that merely contains "http:" is not insecure, and is not a name either.
        assert!("a.b/http:c/d".parse::<Reference>().is_err());
    }

    #[test]
    fn default_names_and_fallbacks() {
        for (text, container) in [
            ("a.b/c/app:latest", "app"),
            ("app:1.2", "app-1.2"),
            ("a.b:5000/app", "app"),
        ] {
            let name: Name = text.parse().unwrap();
            assert_eq!(name.default_container_name(), container);
        }
        for (text, name) in [
            ("oci:/srv/app:1", "app:1"),
            ("oci:/srv/app", "app:latest"),
            ("dockertar:/tmp/Thing.tar", "thing:latest"),
            ("docker-archive:/tmp/x.tar:a/b:3", "a/b:3"),
            ("dir:./x/", "x:latest"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.fallback_name().unwrap().to_string(), name);
        }
    }

    #[test]
    fn hostile_names_are_refused() {
        for text in [
            "",
            "UPPER",
            "a//b",
            "-a",
            "a/../b",
            "a:",
            "a:-x",
            "a@sha256:12",
            "a b",
            "a\nb",
            "é",
            "docker.io/",
            "a.b/c:1:2",
            &"x".repeat(600),
            "oci-archive:",
            "dockertar:/",
            "dockertar:/tmp/x:1",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }
}
