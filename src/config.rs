//! Where things are: defaults < configuration file < environment < flags, as one value passed down.
//! Below the defaults' place there is [`original`]'s file, of hosts that are taken over.
//!
//! The configuration file is `/etc/atomic-rs.toml` (or `ATOMIC_RS_CONFIG`):
//!
//! ```toml
//! ostree_repository = "/ostree/repo"
//! checkout_path = "/var/lib/containers/atomic"
//! runtime = "/usr/bin/crun"
//! stop_timeout = 10
//! ```

mod original;

use std::path::PathBuf;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;

use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::interrupt::Interrupt;

/// A program as the configuration has it.
#[derive(Debug, Clone, Default)]
pub struct Program {
    /// Its name, found in PATH, or its path.
    pub path: String,
    /// Options that every call of it begins with.
    pub options: Vec<String>,
    /// What it finds in its environment beside ours.
    pub env: Vec<(String, String)>,
    /// How long a registry may keep it waiting; nothing: for ever.
    pub patience: Option<Duration>,
}

/// Everything that depends on the host rather than on the call.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the checkouts are; "C" in the documentation.
    pub checkouts: Utf8PathBuf,
    /// The repository, if it was configured; else see [`crate::store::Store::open`].
    pub repository: Option<Utf8PathBuf>,
    /// The configured OCI runtime.
    pub runtime: Option<String>,
    /// The skopeo to run.
    pub skopeo: Program,
    /// The signature policy, if it is not where containers-policy.json(5) says.
    pub trust_policy: Option<PathBuf>,
    /// Where it is configured where signatures are: see containers-registries.d(5).
    pub registries_d: Utf8PathBuf,
    /// The key that signs where none is named.
    pub default_signer: Option<String>,
    /// Where the keys are, if not where GPG looks.
    pub gnupg_home: Option<Utf8PathBuf>,
    /// Where packages put containers; these are only looked at.
    pub preinstalled: Utf8PathBuf,
    /// Where unit files go.
    pub units: Utf8PathBuf,
    /// Where tmpfiles.d files go.
    pub tmpfiles: Utf8PathBuf,
    /// The value of `$RUN_DIRECTORY`.
    pub run_directory: Utf8PathBuf,
    /// The value of `$STATE_DIRECTORY`.
    pub state_directory: Utf8PathBuf,
    /// The value of `$CONF_DIRECTORY`.
    pub conf_directory: Utf8PathBuf,
    /// Where an administrator's templates are.
    pub templates: Utf8PathBuf,
    /// Seconds between the stop signal and SIGKILL, unless the image or the call says otherwise.
    pub stop_timeout: u32,
    /// Seconds a new version must stay healthy to count, unless the call says otherwise.
    pub watch: u32,
    /// Whether `auto-update` cares for containers of which nobody said anything.
    pub auto_update: bool,
    /// When unattended updates may happen; nothing: always. See [`crate::container::Window`].
    pub update_window: Option<String>,
    /// Whether layers are kept in the store as they came, too: twice the space, and exports with the
    /// registry's own digest.
    pub keep_blobs: bool,
    /// The format of packages with host files, `rpm` or `deb`; nothing: the host's own.
    pub package_format: Option<String>,
    /// The key of GPG's that signs rpms.
    pub package_signer: Option<String>,
    /// The file contexts that labels come from; nothing: the host's policy, where `SELinux` is on.
    pub selinux_file_contexts: Option<Utf8PathBuf>,
    /// Most bytes one layer may unpack to.
    pub max_layer_bytes: u64,
    /// So many bytes of files may wait in memory for being written during a pull.
    pub import_memory_bytes: usize,
    /// Where containers of people without root are, if not beside the store; see [`crate::rootless`].
    pub rootless: Option<Utf8PathBuf>,
    /// True for root: the system's store, whose files keep their owners.
    pub is_system: bool,
    /// Whether we were asked to end.
    pub interrupt: Interrupt,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    ostree_repository: Option<Utf8PathBuf>,
    checkout_path: Option<Utf8PathBuf>,
    runtime: Option<String>,
    stop_timeout: Option<u32>,
    watch: Option<u32>,
    registry_timeout: Option<u32>,
    auto_update: Option<bool>,
    keep_blobs: Option<bool>,
    default_signer: Option<String>,
    update_window: Option<String>,
    package_format: Option<String>,
    package_signer: Option<String>,
    selinux_file_contexts: Option<Utf8PathBuf>,
    max_layer_bytes: Option<u64>,
    import_memory_bytes: Option<usize>,
}

const CONFIG_FILE: &str = "/etc/atomic-rs.toml";
const DEFAULT_CHECKOUTS: &str = "/var/lib/containers/atomic";
const DEFAULT_STOP_TIMEOUT: u32 = 10;
const DEFAULT_WATCH: u32 = 15;
/// skopeo asks again for a minute where there were too many questions.
const DEFAULT_REGISTRY_TIMEOUT: u32 = 120;
const DEFAULT_MAX_LAYER_BYTES: u64 = 64 << 30;
const DEFAULT_IMPORT_MEMORY_BYTES: usize = 48 << 20;

/// A user's repository is where the checkouts are, for they are hard links to it. Who moved only the checkouts
/// before it was so has one where it always was.
fn users_repository(checkouts: &Utf8Path, data: &Utf8Path) -> Utf8PathBuf {
    let (own, usual) = (checkouts.join("repo"), data.join("atomic/repo"));
    if usual.is_dir() && !own.is_dir() {
        usual
    } else {
        own
    }
}

impl Config {
    /// The configuration for whoever runs us: root has the system's store, everyone else their
    /// own below `XDG_DATA_HOME`.
    pub fn load(interrupt: Interrupt) -> Result<Self> {
        Self::load_as(interrupt, rustix::process::geteuid().is_root())
    }

    /// That of an ordinary user, who may be root of a user namespace now.
    pub fn of_user(interrupt: Interrupt) -> Result<Self> {
        Self::load_as(interrupt, false)
    }

    fn load_as(interrupt: Interrupt, is_system: bool) -> Result<Self> {
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let path = env("ATOMIC_RS_CONFIG").unwrap_or_else(|| CONFIG_FILE.into());
        let file = match std::fs::read_to_string(&path) {
            Ok(text) => parse_file(&text).map_err(|error| error.within(&path))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => File::default(),
            Err(error) => fail!(Kind::Failed, "cannot read {path}: {error}"),
        };
        let original = match original::Original::load(env("ATOMIC_CONF")) {
            Ok(original) => original,
            // It is the system's; a user who may not read it goes on without.
            Err(error) if !is_system => {
                tracing::warn!(%error, "passed over");
                original::Original::default()
            }
            Err(error) => return Err(error),
        };
        let path_of = |name: &str| env(name).map(Utf8PathBuf::from);
        let home = path_of("HOME").unwrap_or_else(|| "/".into());
        let data = path_of("XDG_DATA_HOME")
            .unwrap_or_else(|| home.join(".local/share"))
            .join("containers");
        let checkouts = path_of("ATOMIC_OSTREE_CHECKOUT_PATH")
            .or(file.checkout_path.filter(|_| is_system))
            .or(original.checkout_path.clone().filter(|_| is_system))
            .unwrap_or_else(|| {
                if is_system {
                    DEFAULT_CHECKOUTS.into()
                } else {
                    data.join("atomic")
                }
            });
        let repository = path_of("ATOMIC_OSTREE_REPO")
            .or(file.ostree_repository.filter(|_| is_system))
            .or(original.ostree_repository.clone().filter(|_| is_system))
            .or_else(|| (!is_system).then(|| users_repository(&checkouts, &data)));
        let places = if is_system {
            Places::of_system()
        } else {
            let uid = rustix::process::geteuid().as_raw();
            let runtime =
                path_of("XDG_RUNTIME_DIR").unwrap_or_else(|| format!("/run/user/{uid}").into());
            let config_home = path_of("XDG_CONFIG_HOME")
                .map(|path| absolute(&path))
                .transpose()?;
            Places::of_user(
                &absolute(&home)?,
                config_home.as_deref(),
                &absolute(&runtime)?,
            )
        };
        Ok(Self {
            checkouts: absolute(&checkouts)?,
            repository: repository.as_deref().map(absolute).transpose()?,
            runtime: env("RUNC_PATH")
                .or(file.runtime)
                .or(original.runtime.clone().filter(|_| is_system)),
            skopeo: skopeo(
                &original,
                file.registry_timeout.unwrap_or(DEFAULT_REGISTRY_TIMEOUT),
                env,
            ),
            trust_policy: env("TRUST_POLICY").map(PathBuf::from),
            registries_d: original
                .registry_confdir
                .clone()
                .unwrap_or_else(|| "/etc/containers/registries.d".into()),
            default_signer: file.default_signer.or(original.default_signer.clone()),
            gnupg_home: original.gnupg_homedir.clone(),
            preinstalled: "/usr/lib/containers/atomic".into(),
            units: places.units,
            tmpfiles: places.tmpfiles,
            run_directory: places.run,
            state_directory: places.state,
            conf_directory: places.conf,
            rootless: None,
            is_system,
            interrupt,
            templates: "/etc/atomic-rs/templates".into(),
            stop_timeout: file.stop_timeout.unwrap_or(DEFAULT_STOP_TIMEOUT),
            watch: file.watch.unwrap_or(DEFAULT_WATCH),
            auto_update: file.auto_update.unwrap_or(false),
            keep_blobs: file.keep_blobs.unwrap_or(false),
            update_window: file.update_window,
            package_format: file.package_format,
            package_signer: file.package_signer,
            selinux_file_contexts: file.selinux_file_contexts,
            max_layer_bytes: file.max_layer_bytes.unwrap_or(DEFAULT_MAX_LAYER_BYTES),
            import_memory_bytes: file
                .import_memory_bytes
                .unwrap_or(DEFAULT_IMPORT_MEMORY_BYTES),
        })
    }
}

/// skopeo, told whatever it would not find out by itself.
fn skopeo(
    original: &original::Original,
    patience: u32,
    env: impl Fn(&str) -> Option<String>,
) -> Program {
    let mut options = Vec::new();
    if let Some(policy) = env("TRUST_POLICY") {
        options.push(format!("--policy={policy}"));
    }
    if let Some(directory) = &original.registry_confdir {
        options.push(format!("--registries.d={directory}"));
    }
    Program {
        path: env("SKOPEO_PATH").unwrap_or_else(|| "skopeo".into()),
        options,
        env: original.proxies(|name| env(name).is_some()),
        patience: (patience > 0).then(|| Duration::from_secs(patience.into())),
    }
}

/// Where a container's files outside of its checkout are.
struct Places {
    units: Utf8PathBuf,
    tmpfiles: Utf8PathBuf,
    run: Utf8PathBuf,
    state: Utf8PathBuf,
    conf: Utf8PathBuf,
}

impl Places {
    fn of_system() -> Self {
        Self {
            units: "/etc/systemd/system".into(),
            tmpfiles: "/etc/tmpfiles.d".into(),
            run: "/run".into(),
            state: "/var/lib".into(),
            conf: "/etc".into(),
        }
    }

    /// The original kept tmpfiles where nobody read them at boot; this is where
    /// `systemd-tmpfiles --user` does.
    fn of_user(home: &Utf8Path, config_home: Option<&Utf8Path>, runtime: &Utf8Path) -> Self {
        let conf = config_home.map_or_else(|| home.join(".config"), Utf8Path::to_owned);
        Self {
            units: conf.join("systemd/user"),
            tmpfiles: conf.join("user-tmpfiles.d"),
            run: runtime.to_owned(),
            state: home.join(".data"),
            conf,
        }
    }
}

fn parse_file(text: &str) -> Result<File> {
    toml::from_str(text).kind(Kind::Invalid, || "not a valid configuration".into())
}

/// Paths end up in units, links and mount options, so they are absolute and free of what those
/// would misread.
fn absolute(path: &Utf8Path) -> Result<Utf8PathBuf> {
    let path = camino::absolute_utf8(path)
        .map_err(|error| Error::new(Kind::Failed, format!("cannot resolve {path}: {error}")))?;
    if path
        .as_str()
        .contains(|c: char| c.is_whitespace() || c.is_control() || ",:\"'\\%$".contains(c))
    {
        fail!(
            Kind::Invalid,
            "the path \"{path}\" has a character that mount options or unit files would misread"
        );
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_and_unknown_keys_are_refused() {
        let file = parse_file("checkout_path = '/x'\nstop_timeout = 5").unwrap();
        assert_eq!(file.checkout_path.unwrap(), "/x");
        assert_eq!(file.stop_timeout, Some(5));
        assert!(parse_file("chekout_path = '/x'").is_err());
    }

    #[test]
    fn paths_that_mount_options_would_misread_are_refused() {
        for bad in ["/a:b", "/a,b", "/a b", "/a%b", "/a\nb"] {
            assert!(absolute(Utf8Path::new(bad)).is_err(), "{bad}");
        }
        assert_eq!(absolute(Utf8Path::new("/a/./b")).unwrap(), "/a/b");
    }
}
