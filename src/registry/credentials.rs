//! Who we are to a registry: the files that podman, skopeo, buildah and docker keep, and the helpers they name.
//!
//! Sources: containers-auth.json(5); docker's documentation of `config.json` and of credential helpers.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};

use super::access::{Access, Credentials};
use crate::command::Child;
use crate::error::{Context as _, Kind, Result};
use crate::{fail, safefs};

/// What is shown to a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// A user name and password.
    Basic(Credentials),
    /// A token that gets tokens.
    Identity(Token),
}

/// A secret of a registry's own making.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub(super) String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// The name that docker's own registry has in docker's files.
const HUB_OF_DOCKER: &str = "index.docker.io";
/// The user name by which a helper says that it gives an identity token.
const IS_TOKEN: &str = "<token>";

/// The credentials for a repository, from the most particular place that has some: what the caller says, then the
/// files.
///
/// # Errors
/// [`Kind::NotFound`] if a file that the caller names does not exist.
pub fn find(access: &Access, host: &str, repository: &str) -> Result<Option<Login>> {
    if let Some(credentials) = &access.credentials {
        return Ok(Some(Login::Basic(credentials.clone())));
    }
    let named = named_file(access)?;
    let is_named = named.is_some();
    for path in named.map_or_else(usual_files, |path| vec![path]) {
        let file = match read(&path) {
            // What one may not even look at is somebody else's.
            Err(error) if !is_named && error.kind() == Kind::Permission => None,
            read => read?,
        };
        let Some(file) = file else {
            continue;
        };
        if let Some(found) = find_in(&file, host, repository)? {
            tracing::debug!(path = %path.display(), host, "credentials");
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Keep credentials where podman and skopeo look for them, or with the helper that is configured there.
pub fn keep(access: &Access, host: &str, credentials: &Credentials) -> Result<PathBuf> {
    let path = named_file(access)?.unwrap_or_else(own_file);
    let mut file = read(&path)?.unwrap_or_else(|| json!({}));
    if let Some(helper) = file["credHelpers"][host].as_str() {
        let secret = json!({
            "ServerURL": host, "Username": credentials.user(), "Secret": credentials.password(),
        });
        ask_helper(helper, "store", secret.to_string().as_bytes())?;
        return Ok(path);
    }
    if !file["auths"].is_object() {
        file["auths"] = json!({});
    }
    file["auths"][host] = json!({"auth": credentials.encoded()});
    write(&path, &file)?;
    Ok(path)
}

/// Forget the credentials of a host, or of all.
///
/// # Errors
/// [`Kind::NotFound`] if there are none.
pub fn forget(access: &Access, host: Option<&str>) -> Result<()> {
    let path = named_file(access)?.unwrap_or_else(own_file);
    let mut file = read(&path)?.unwrap_or_else(|| json!({}));
    if let Some(host) = host
        && let Some(helper) = file["credHelpers"][host].as_str()
    {
        ask_helper(helper, "erase", host.as_bytes())?;
        return Ok(());
    }
    let auths = file.get_mut("auths").and_then(Value::as_object_mut);
    let is_gone = match (auths, host) {
        (None, _) => false,
        (Some(auths), None) => {
            auths.clear();
            true
        }
        (Some(auths), Some(host)) => auths.shift_remove(host).is_some(),
    };
    if !is_gone {
        fail!(
            Kind::NotFound,
            "there are no credentials for {} in {}",
            host.unwrap_or("anybody"),
            path.display()
        );
    }
    write(&path, &file)
}

fn write(path: &Path, file: &Value) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    if let Some(parent) = path.parent() {
        use std::os::unix::fs::DirBuilderExt as _;
        // Only the last one is ours alone: others have theirs beside it.
        if let Some(above) = parent.parent() {
            std::fs::create_dir_all(above).context(failed)?;
        }
        match std::fs::DirBuilder::new().mode(0o700).create(parent) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made.context(failed)?,
        }
    }
    let text = serde_json::to_string_pretty(file).context(failed)?;
    safefs::replace_file(path, text.as_bytes(), 0o600)
}

/// The file that the caller or the environment names.
fn named_file(access: &Access) -> Result<Option<PathBuf>> {
    if let Some(path) = &access.authfile {
        if !path.exists() {
            fail!(
                Kind::NotFound,
                "the credentials file {} does not exist",
                path.display()
            );
        }
        return Ok(Some(path.clone()));
    }
    Ok(env("REGISTRY_AUTH_FILE").map(PathBuf::from))
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Where a person's configuration is.
fn config_home() -> Option<PathBuf> {
    let named = env("XDG_CONFIG_HOME").map(PathBuf::from);
    named.or_else(|| Some(PathBuf::from(env("HOME")?).join(".config")))
}

/// The file that is written to. For a person without a runtime directory it is one that lasts: skopeo and podman look
/// there as well.
fn own_file() -> PathBuf {
    const NAME: &str = "containers/auth.json";
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return "/run/containers/0/auth.json".into();
    }
    let home = env("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .or_else(config_home);
    home.map_or_else(
        || PathBuf::from(format!("/run/containers/{}/auth.json", uid.as_raw())),
        |home| home.join(NAME),
    )
}

fn usual_files() -> Vec<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    let mut files = vec![
        own_file(),
        PathBuf::from(format!("/run/containers/{uid}/auth.json")),
    ];
    files.extend(config_home().map(|home| home.join("containers/auth.json")));
    let docker = env("DOCKER_CONFIG").map(PathBuf::from);
    let docker = docker.or_else(|| Some(PathBuf::from(env("HOME")?).join(".docker")));
    files.extend(docker.map(|directory| directory.join("config.json")));
    files.dedup();
    files
}

fn read(path: &Path) -> Result<Option<Value>> {
    let failed = || format!("cannot read the credentials in {}", path.display());
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .kind(Kind::Invalid, failed)
            .map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(error).kind(Kind::Permission, failed)
        }
        Err(error) => Err(error).context(failed),
    }
}

/// What a file says of a repository.
fn find_in(file: &Value, host: &str, repository: &str) -> Result<Option<Login>> {
    let helper = file["credHelpers"][host].as_str();
    if let Some(helper) = helper {
        return from_helper(helper, host);
    }
    if let Some(auths) = file["auths"].as_object()
        && let Some(found) = find_entry(auths, host, repository)
    {
        return Ok(Some(found));
    }
    match file["credsStore"].as_str() {
        Some(helper) => from_helper(helper, host),
        None => Ok(None),
    }
}

/// `host/a/b`, then `host/a`, then `host`; at last what docker writes, with a scheme and a path.
fn find_entry(auths: &Map<String, Value>, host: &str, repository: &str) -> Option<Login> {
    let whole = format!("{host}/{repository}");
    let mut key = whole.trim_end_matches('/');
    loop {
        if let Some(found) = auths.get(key).and_then(login_of) {
            return Some(found);
        }
        match key.rsplit_once('/') {
            Some((above, _)) => key = above,
            None => break,
        }
    }
    let wanted = host_of(host);
    let mut others = auths.iter().filter(|(key, _)| {
        // A path of another repository is not for this one.
        let is_hosts = key.contains("://") || !key.contains('/');
        is_hosts && host_of(key) == wanted
    });
    others.find_map(|(_, entry)| login_of(entry))
}

/// The host of a key as docker writes it: `https://index.docker.io/v1/`.
fn host_of(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    match rest.split('/').next().unwrap_or(rest) {
        HUB_OF_DOCKER | "registry-1.docker.io" => super::place::HUB,
        host => host,
    }
}

fn login_of(entry: &Value) -> Option<Login> {
    if let Some(token) = entry["identitytoken"]
        .as_str()
        .filter(|token| !token.is_empty())
    {
        return Some(Login::Identity(Token(token.to_owned())));
    }
    let text = BASE64.decode(entry["auth"].as_str()?).ok()?;
    let text = String::from_utf8(text).ok()?;
    // Some programs end it with a NUL byte.
    let (user, password) = text.trim_end_matches('\0').split_once(':')?;
    Some(Login::Basic(Credentials::new(user, password)))
}

/// What a helper has; a helper that has nothing, or is not there, is none.
fn from_helper(helper: &str, host: &str) -> Result<Option<Login>> {
    // docker's helpers know its registry by this name.
    let server = match host {
        super::place::HUB => "https://index.docker.io/v1/",
        host => host,
    };
    let said = match ask_helper(helper, "get", server.as_bytes()) {
        Ok(said) => said,
        Err(error) => {
            tracing::debug!(%error, "no credentials");
            return Ok(None);
        }
    };
    let said: Value = serde_json::from_slice(&said).kind(Kind::Invalid, || {
        format!("the credential helper {helper} does not answer with JSON")
    })?;
    let text = |name: &str| said[name].as_str().unwrap_or_default().to_owned();
    Ok(Some(match text("Username") {
        user if user == IS_TOKEN => Login::Identity(Token(text("Secret"))),
        user => Login::Basic(Credentials::new(user, text("Secret"))),
    }))
}

fn ask_helper(helper: &str, what: &str, input: &[u8]) -> Result<Vec<u8>> {
    if helper.contains('/') {
        fail!(
            Kind::Invalid,
            "\"{helper}\" is not the name of a credential helper"
        );
    }
    let child = Child::new(format!("docker-credential-{helper}"));
    child.arg(what).input(input).run()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(found: Option<Login>) -> Option<String> {
        match found? {
            Login::Basic(credentials) => Some(credentials.user().to_owned()),
            Login::Identity(_) => Some(IS_TOKEN.into()),
        }
    }

    #[test]
    fn the_most_particular_entry_counts() {
        let entry = |user: &str| json!({"auth": BASE64.encode(format!("{user}:p:w"))});
        let file = json!({"auths": {
            "reg:5000": entry("host"),
            "reg:5000/team": entry("team"),
            "reg:5000/team/app": entry("app"),
            "https://index.docker.io/v1/": entry("hub"),
            "token.example": {"identitytoken": "abc"},
            "other.example/team": entry("team"),
        }});
        for (host, repository, found) in [
            ("reg:5000", "team/app", Some("app")),
            ("reg:5000", "team/app/below", Some("app")),
            ("reg:5000", "team/apple", Some("team")),
            ("reg:5000", "x", Some("host")),
            ("reg:5000", "", Some("host")),
            ("reg:5001", "team/app", None),
            ("docker.io", "library/busybox", Some("hub")),
            ("token.example", "x", Some(IS_TOKEN)),
            ("other.example", "team/x", Some("team")),
            ("other.example", "x", None),
        ] {
            let login = find_in(&file, host, repository).unwrap();
            assert_eq!(user(login).as_deref(), found, "{host}/{repository}");
        }
        let Some(Login::Basic(found)) = find_in(&file, "reg:5000", "").unwrap() else {
            panic!("no credentials");
        };
        assert_eq!(found.password(), "p:w");
    }

    #[test]
    fn what_is_kept_is_found_and_forgotten_and_nothing_else_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.json");
        std::fs::write(&path, r#"{"other": 1, "auths": {"a": {"auth": "dTpw"}}}"#).unwrap();
        let access = Access {
            authfile: Some(path.clone()),
            ..Access::default()
        };
        keep(&access, "b:1", &Credentials::new("me", "secret")).unwrap();
        assert_eq!(
            user(find(&access, "b:1", "x").unwrap()).as_deref(),
            Some("me")
        );
        assert_eq!(user(find(&access, "a", "x").unwrap()).as_deref(), Some("u"));
        forget(&access, Some("b:1")).unwrap();
        assert!(forget(&access, Some("b:1")).is_err());
        assert!(find(&access, "b:1", "x").unwrap().is_none());
        let left: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(left, json!({"other": 1, "auths": {"a": {"auth": "dTpw"}}}));
    }
}
