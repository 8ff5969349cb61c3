//! Calling skopeo: what every call is told, and what it is asked beside images.

use super::Access;
use crate::command::Child;
use crate::config::{Config, Program};
use crate::error::{Context as _, Error, Kind, Result};
use crate::image::{Name, Platform, Reference, Transport};

/// A child that runs skopeo.
pub(super) fn run_skopeo(skopeo: &Program) -> Child {
    furnish(skopeo, Child::new(&skopeo.path).args(&skopeo.options))
}

/// Give `child`, which runs skopeo in the end, its environment.
pub(super) fn furnish(skopeo: &Program, child: Child) -> Child {
    let env = skopeo.env.iter();
    env.fold(child, |child, (name, value)| child.env(name, value))
}

/// skopeo's options that come before its verb.
pub(super) fn global_options(platform: Option<&Platform>) -> Vec<String> {
    let mut options = Vec::new();
    if let Some(platform) = platform {
        options.push(format!("--override-os={}", platform.os));
        options.push(format!("--override-arch={}", platform.architecture));
        if !platform.variant.is_empty() {
            options.push(format!("--override-variant={}", platform.variant));
        }
    }
    options
}

/// Where the docker daemon is, if not at its usual socket; skopeo itself does not look there.
pub(super) fn daemon_host() -> Option<String> {
    std::env::var("DOCKER_HOST")
        .ok()
        .filter(|host| !host.is_empty())
}

/// The command that becomes the image proxy: its verb and options are appended.
pub(super) fn proxy_command(skopeo: &Program, reference: &Reference, access: &Access) -> Child {
    let options = global_options(access.platform.as_ref());
    match (&reference.transport, daemon_host()) {
        // The daemon's address is an option of the verb, so it comes last.
        (Transport::DockerDaemon, Some(host)) => {
            let script = "host=$1; shift; exec \"$@\" --daemon-host=\"$host\"";
            let shell = Child::new("/bin/sh").args(["-c", script, "sh", &host, &skopeo.path]);
            furnish(skopeo, shell.args(&skopeo.options).args(options))
        }
        _ => run_skopeo(skopeo).args(options),
    }
}

/// The names of the images in an archive of `docker save`: `RepoTags` of its `manifest.json`.
/// Nothing where there are none, or the archive cannot be read.
pub fn archive_names(skopeo: &Program, archive: &Reference) -> Vec<Name> {
    let asked = run_skopeo(skopeo)
        .arg("list-tags")
        .arg(archive.to_skopeo())
        .run();
    let tags = asked.ok().and_then(|stdout| {
        let mut value: serde_json::Value = serde_json::from_slice(&stdout).ok()?;
        serde_json::from_value::<Vec<String>>(value["Tags"].take()).ok()
    });
    // An image without a name is listed by its number: `@0`.
    tags.into_iter()
        .flatten()
        .filter_map(|tag| tag.parse().ok())
        .collect()
}

/// What a registry has under a name: a manifest, or an index of several.
pub fn raw_manifest(config: &Config, reference: &Reference, access: &Access) -> Result<Vec<u8>> {
    let options = access
        .platform
        .as_ref()
        .map(|_| global_options(access.platform.as_ref()));
    let mut child = run_skopeo(&config.skopeo).args(options.unwrap_or_default());
    child = child.args(["inspect", "--raw"]);
    if let Some(verify) = verifies(reference, access) {
        child = child.arg(format!("--tls-verify={verify}"));
    }
    let child = child.arg(reference.to_skopeo());
    child
        .run()
        .kind(Kind::Transport, || format!("cannot ask for {reference}"))
}

fn verifies(reference: &Reference, access: &Access) -> Option<bool> {
    match reference.transport {
        Transport::Registry { insecure: true } => Some(false),
        _ => access.tls_verify,
    }
}

/// Say which images an archive holds, where that is why it could not be opened.
pub(super) fn name_one_of(skopeo: &Program, reference: &Reference, error: Error) -> Error {
    let Transport::DockerArchive { path } = &reference.transport else {
        return error;
    };
    if !error.to_string().contains("expected 1 item, got") {
        return error;
    }
    let names: Vec<String> = archive_names(skopeo, reference)
        .iter()
        .map(ToString::to_string)
        .collect();
    let first = names.first().map_or("NAME", String::as_str);
    Error::new(
        Kind::Usage,
        format!(
            "the archive {path} holds several images: name one, as in docker-archive:{path}:{first}, or bring in all with \"atomic-rs images import\" (it has {})",
            names.join(", ")
        ),
    )
}
