//! Whom to trust for which images: `policy.json` and `registries.d`, edited.
//!
//! Shapes: containers-policy.json(5), containers-registries.d(5). What this program does not know in
//! these files stays as it is.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::policy::policy_path;
use crate::config::Config;
use crate::error::{Context as _, Error, Kind, Result};
use crate::image::{Name, Reference, Transport};
use crate::{fail, safefs};

/// What is asked of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// A signature by one of the keys in these files.
    SignedBy(Vec<PathBuf>),
    /// Nothing.
    AcceptAnything,
    /// It is never accepted.
    Reject,
}

/// One line of `trust show`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// `docker`, `atomic`, `dir`, …; empty for the default.
    pub transport: String,
    /// A registry, a repository or an image; `*` for the default and for a whole transport.
    pub scope: String,
    /// `signedBy`, `insecureAcceptAnything`, `reject`.
    pub kind: String,
    /// Files with keys.
    pub keys: Vec<String>,
}

/// The policy file, for reading and editing.
pub struct Policy {
    path: PathBuf,
    value: Value,
}

impl Policy {
    /// Read the policy of the host, or of the user who has one; an empty one where there is none.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is not JSON.
    pub fn load(config: &Config) -> Result<Self> {
        let path = policy_path(config);
        let value = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .kind(Kind::Invalid, || format!("{} is not valid", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => json!({}),
            Err(error) => {
                return Err(error).context(|| format!("cannot read {}", path.display()));
            }
        };
        Ok(Self { path, value })
    }

    /// The same without a look at what the file says by now.
    pub fn empty(config: &Config) -> Self {
        Self {
            path: policy_path(config),
            value: json!({}),
        }
    }

    /// The whole file.
    pub fn raw(&self) -> &Value {
        &self.value
    }

    /// Its rules: the default first.
    pub fn rules(&self) -> Vec<Rule> {
        let mut rules = vec![rule("", "*", &self.value["default"])];
        for (transport, scopes) in self.value["transports"].as_object().into_iter().flatten() {
            for (scope, requirements) in scopes.as_object().into_iter().flatten() {
                let scope = if scope.is_empty() { "*" } else { scope };
                rules.push(rule(transport, scope, requirements));
            }
        }
        rules
    }

    /// The rule for one image: that of the most specific scope. Source: containers-policy.json(5).
    pub fn rule_for(&self, reference: &Reference) -> Rule {
        let text = reference.to_skopeo();
        let transport = text.split(':').next().unwrap_or_default();
        let scopes = &self.value["transports"][transport];
        let names = match (&reference.transport, &reference.name) {
            (Transport::Registry { .. }, Some(name)) => scopes_of(name),
            (Transport::OciLayout { path } | Transport::Dir { path }, _) => {
                let path = path
                    .rsplit_once(':')
                    .map_or(path.as_str(), |(path, _)| path);
                let path = camino::absolute_utf8(path).unwrap_or_else(|_| path.into());
                path.ancestors()
                    .filter(|above| *above != "/")
                    .map(ToString::to_string)
                    .collect()
            }
            _ => Vec::new(),
        };
        let found = names
            .iter()
            .map(String::as_str)
            .chain([""])
            .find_map(|scope| Some((scope, scopes.get(scope)?)));
        match found {
            Some((scope, requirements)) => {
                let scope = if scope.is_empty() { "*" } else { scope };
                rule(transport, scope, requirements)
            }
            None => rule("", "*", &self.value["default"]),
        }
    }

    /// What is asked of images for which there is no rule.
    pub fn set_default(&mut self, trust: &Trust) -> Result<()> {
        let value = requirements(trust)?;
        self.object()?.insert("default".into(), value);
        Ok(())
    }

    /// Ask this of the images of a scope.
    pub fn add(&mut self, transport: &str, scope: &str, trust: &Trust) -> Result<()> {
        let value = requirements(trust)?;
        let policy = self.object()?;
        // A file without a default is one that skopeo does not read.
        policy
            .entry("default")
            .or_insert_with(|| json!([{"type": "insecureAcceptAnything"}]));
        let transports = policy.entry("transports").or_insert_with(|| json!({}));
        let scopes = &mut transports[transport];
        if !scopes.is_object() {
            *scopes = json!({});
        }
        scopes[scope] = value;
        Ok(())
    }

    /// Ask nothing special of a scope any more.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if nothing was.
    pub fn delete(&mut self, transport: &str, scope: &str) -> Result<()> {
        let scopes = self.value["transports"][transport].as_object_mut();
        if scopes.and_then(|scopes| scopes.remove(scope)).is_none() {
            fail!(
                Kind::NotFound,
                "there is no trust for {scope} in {}",
                self.path.display()
            );
        }
        Ok(())
    }

    /// Ask nothing of any image, as a fresh host does.
    pub fn reset(&mut self) {
        self.value = json!({"default": [{"type": "insecureAcceptAnything"}]});
    }

    /// Write it in one step.
    pub fn save(&self) -> Result<()> {
        if let Some(parent) = self.path.parent() {
            std::fs::create_dir_all(parent)
                .context(|| format!("cannot create {}", parent.display()))?;
        }
        let mut text =
            serde_json::to_vec_pretty(&self.value).context(|| "cannot write JSON".into())?;
        text.push(b'\n');
        safefs::replace_file(&self.path, &text, 0o644)
    }

    fn object(&mut self) -> Result<&mut Map<String, Value>> {
        let path = self.path.display().to_string();
        self.value
            .as_object_mut()
            .ok_or_else(|| Error::new(Kind::Invalid, format!("{path} is not a JSON object")))
    }
}

/// The scopes an image in a registry belongs to, the most specific first.
fn scopes_of(name: &Name) -> Vec<String> {
    // Short names mean docker's registry, and its official images are in a repository.
    let host = name.registry().unwrap_or("docker.io");
    let official = host == "docker.io" && !name.repository().contains('/');
    let below = if official { "library/" } else { "" };
    let repository = format!("{host}/{below}{}", name.repository());
    let mut scopes = Vec::new();
    match (name.tag(), name.digest()) {
        (_, Some(digest)) => scopes.push(format!("{repository}@{digest}")),
        (Some(tag), None) => scopes.push(format!("{repository}:{tag}")),
        (None, None) => {}
    }
    let mut above = Some(repository.as_str());
    while let Some(scope) = above {
        scopes.push(scope.to_owned());
        above = scope.rsplit_once('/').map(|(above, _)| above);
    }
    let host = host.split(':').next().unwrap_or(host);
    let mut domain = host.split_once('.').map(|(_, domain)| domain);
    while let Some(parent) = domain {
        scopes.push(format!("*.{parent}"));
        domain = parent.split_once('.').map(|(_, domain)| domain);
    }
    scopes
}

fn rule(transport: &str, scope: &str, requirements: &Value) -> Rule {
    let first = &requirements[0];
    let mut keys: Vec<String> = Vec::new();
    for requirement in requirements.as_array().into_iter().flatten() {
        keys.extend(requirement["keyPath"].as_str().map(str::to_owned));
        if requirement["keyData"].is_string() {
            keys.push("(in the policy)".into());
        }
    }
    Rule {
        transport: transport.to_owned(),
        scope: scope.to_owned(),
        kind: first["type"].as_str().unwrap_or("reject").to_owned(),
        keys,
    }
}

fn requirements(trust: &Trust) -> Result<Value> {
    Ok(match trust {
        Trust::AcceptAnything => json!([{"type": "insecureAcceptAnything"}]),
        Trust::Reject => json!([{"type": "reject"}]),
        Trust::SignedBy(keys) => {
            if keys.is_empty() {
                fail!(
                    Kind::Usage,
                    "At least one public key must be defined for type signedBy"
                );
            }
            let mut list = Vec::new();
            for key in keys {
                let path = std::fs::canonicalize(key)
                    .kind(Kind::NotFound, || format!("the key file {}", key.display()))?;
                list.push(json!({"type": "signedBy", "keyType": "GPGKeys", "keyPath": path}));
            }
            list.into()
        }
    })
}

/// Say where the signatures of a scope are: a URL, `file:///…` for a local directory.
pub fn set_sigstore(config: &Config, scope: &str, url: &str) -> Result<()> {
    let plain = |text: &str| {
        !text.contains(|c: char| c.is_control() || c.is_whitespace() || "'\"#{}".contains(c))
    };
    if !plain(scope) || !plain(url) || !url.contains("://") {
        fail!(
            Kind::Usage,
            "\"{url}\" is not where signatures can be: expected https://… or file:///…"
        );
    }
    let directory = &config.registries_d;
    let path = sigstore_file(config, scope);
    std::fs::create_dir_all(directory).context(|| format!("cannot create {directory}"))?;
    let text = format!("docker:\n  {scope}:\n    sigstore: {url}\n    sigstore-staging: {url}\n");
    safefs::replace_file(&path, text.as_bytes(), 0o644)
}

/// Forget where the signatures of a scope are, if it was said by [`set_sigstore`].
pub fn delete_sigstore(config: &Config, scope: &str) -> Result<()> {
    safefs::remove_if_exists(&sigstore_file(config, scope))
}

/// One file of registries.d, as far as it says where signatures are.
#[derive(Default, Deserialize)]
#[serde(default)]
struct RegistriesFile {
    docker: BTreeMap<String, Place>,
    #[serde(rename = "default-docker")]
    default_docker: Place,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Place {
    sigstore: Option<String>,
    /// The name that newer versions use.
    lookaside: Option<String>,
}

/// Where signatures are, as all files of registries.d together say: by scope, `*` for every other.
pub fn sigstores(config: &Config) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let files = match std::fs::read_dir(&config.registries_d) {
        Ok(files) => files,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error).context(|| format!("cannot list {}", config.registries_d)),
    };
    for file in files.flatten() {
        let path = file.path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text =
            std::fs::read_to_string(&path).context(|| format!("cannot read {}", path.display()))?;
        let Ok(file) = serde_saphyr::from_str::<RegistriesFile>(&text) else {
            tracing::warn!("{} is not valid", path.display());
            continue;
        };
        let others = ("*".to_owned(), file.default_docker);
        for (scope, place) in file.docker.into_iter().chain([others]) {
            if let Some(url) = place.lookaside.or(place.sigstore) {
                found.insert(scope, url);
            }
        }
    }
    Ok(found)
}

fn sigstore_file(config: &Config, scope: &str) -> PathBuf {
    let name: String = scope
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || ".-".contains(c) {
                c
            } else {
                '-'
            }
        })
        .collect();
    config
        .registries_d
        .as_std_path()
        .join(format!("{name}.yaml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_scope_decides() {
        let of = |text: &str| scopes_of(&text.parse().unwrap());
        assert_eq!(
            of("r.example.org:5000/a/b:1"),
            [
                "r.example.org:5000/a/b:1",
                "r.example.org:5000/a/b",
                "r.example.org:5000/a",
                "r.example.org:5000",
                "*.example.org",
                "*.org",
            ]
        );
        assert_eq!(
            of("busybox")[..2],
            [
                "docker.io/library/busybox:latest",
                "docker.io/library/busybox"
            ]
        );
        let policy = Policy {
            path: PathBuf::new(),
            value: json!({
                "default": [{"type": "reject"}],
                "transports": {"docker": {"a.b/c": [{"type": "insecureAcceptAnything"}],
                                          "a.b": [{"type": "signedBy", "keyPath": "/k"}]},
                               "oci": {"": [{"type": "insecureAcceptAnything"}],
                                       "/srv": [{"type": "reject"}]}}}),
        };
        for (image, kind, scope) in [
            ("a.b/c:1", "insecureAcceptAnything", "a.b/c"),
            ("a.b/c/d", "insecureAcceptAnything", "a.b/c"),
            ("http:a.b/d", "signedBy", "a.b"),
            ("c.d/e", "reject", "*"),
            ("oci:/opt/x", "insecureAcceptAnything", "*"),
            ("oci:/srv/x:1", "reject", "/srv"),
            ("dir:/srv/x", "reject", "*"),
        ] {
            let rule = policy.rule_for(&image.parse().unwrap());
            assert_eq!(
                (rule.kind.as_str(), rule.scope.as_str()),
                (kind, scope),
                "{image}"
            );
        }
    }
}
