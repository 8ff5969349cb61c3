use std::process::ExitCode;

use camino::Utf8PathBuf;
use clap::ValueEnum;

use super::Call;
use super::args::{ChangeArgs, SetArgs, SourceArgs, WatchArgs};
use super::process::ProcessArgs;
use crate::config::Config;
use crate::container::{self, Outcome, PackageWish, remote_rootfs, run};
use crate::deployment::{ContainerName, in_use};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::hostfiles::package::{Format, Mode};
use crate::pull::Remote;
use crate::runtime::Runtime;
use crate::runtime::spec::{RunOptions, Writable};
use crate::store::Store;
use crate::transaction::Host;

/// Install an image as a systemd service: enabled, not started
#[derive(Debug, clap::Args)]
#[command(after_help = "Everything after IMAGE is the command to run in place of the image's own.")]
pub struct Install {
    /// The image to install; its forms are those of "pull"
    #[arg(
        required = true,
        value_name = "IMAGE [COMMAND]",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    image: Vec<String>,
    /// Install as a service of the system (the default for root)
    #[arg(long)]
    system: bool,
    /// Install as a service of yours (the default for everyone but root). With a value: run as this
    /// user of the image, in place of the image's own
    #[arg(long, value_name = "USER[:GROUP]", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    user: Option<String>,
    /// Name of the container [default: from the image]
    #[arg(short, long)]
    name: Option<String>,
    #[command(flatten)]
    set: SetArgs,
    /// Use the root file system of this directory in place of a checkout
    #[arg(long, value_name = "DIR")]
    rootfs: Option<Utf8PathBuf>,
    /// OCI runtime [default: runc, or crun where there is no runc]
    #[arg(long, value_name = "PATH")]
    runtime: Option<String>,
    /// Whether "auto-update" keeps it current [default: what the image's label atomic.auto-update
    /// or the configuration says]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    auto_update: Option<bool>,
    /// How the image's files for the host are installed: in a package of the host's package manager
    /// ("yes"), as plain files ("no"), or in a package wherever there is a package manager ("auto").
    /// "build" installs nothing and makes a package of the whole container in the current directory,
    /// for machines without this program
    #[arg(
        long,
        value_name = "MODE",
        default_value = "auto",
        hide_default_value = true
    )]
    system_package: String,
    /// Format of the package, rpm or deb [default: the host's]
    #[arg(long, value_name = "FORMAT")]
    package_format: Option<Format>,
    /// Sign the rpm with this key of GPG's [default: what the configuration says]
    #[arg(long, value_name = "KEY")]
    sign_by: Option<String>,
    /// Let the image's own package (exports/container.rpm) run its scripts on this host
    #[arg(long)]
    allow_package_scripts: bool,
    /// Let the image put files at or below this path of the host, which is closed to images otherwise
    #[arg(long, value_name = "PATH")]
    allow_host_path: Vec<Utf8PathBuf>,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    source: SourceArgs,
}

/// How to run a container whose image brings no config.json of its own.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Options for images without their own config.json")]
struct RunArgs {
    #[command(flatten)]
    process: ProcessArgs,
    /// Add a capability to the default set
    #[arg(long, value_name = "CAP")]
    cap_add: Vec<String>,
    /// Take a capability from the default set
    #[arg(long, value_name = "CAP")]
    cap_drop: Vec<String>,
    /// Seconds between the stop signal and SIGKILL [default: 10]
    #[arg(long, value_name = "SECONDS")]
    stop_timeout: Option<u32>,
    /// What becomes of writes below /etc, /var, /usr/local, /opt, /srv, /home and /root
    #[arg(long, value_name = "HOW", value_enum, default_value_t = WritableArg::Ephemeral)]
    writable: WritableArg,
    /// Refuse writes everywhere but /tmp, /run and volumes
    #[arg(long, conflicts_with = "writable")]
    read_only: bool,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum WritableArg {
    /// Lost when the container stops
    #[default]
    Ephemeral,
    /// Kept in /var/lib/NAME
    Persist,
}

impl Install {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let Some((image, command)) = self.image.split_first() else {
            fail!(Kind::Usage, "an image is missing");
        };
        // "--user" alone is whose service it is, with a value whom the container runs as.
        let for_user = self.user.as_deref() == Some("");
        let is_root = call.config.is_system;
        if self.system && for_user {
            fail!(Kind::Usage, "--system and --user exclude each other");
        }
        if self.system && !is_root {
            return Err(Error::new(Kind::Permission, "Only root can use --system"));
        }
        if for_user && is_root {
            fail!(Kind::Failed, "--user does not work for privileged user");
        }
        let mode = match self.system_package.as_str() {
            "auto" => Some(Mode::Auto),
            "no" => Some(Mode::No),
            "yes" | "build" if !is_root => fail!(Kind::Usage, "Only --system can generate rpms"),
            "yes" => Some(Mode::Yes),
            "build" => None,
            _ => fail!(
                Kind::Usage,
                "Invalid --system-package mode.  Accepted values: 'auto', 'build', 'no', 'yes'"
            ),
        };
        if mode.is_none() && self.rootfs.is_some() {
            fail!(
                Kind::Usage,
                "--rootfs and --system-package=build exclude each other: a package holds the whole container"
            );
        }
        let values = self.set.values()?;
        let mut options = self.run.options(command)?;
        options.user = self.user.clone().filter(|user| !user.is_empty());
        options.health_cmd.clone_from(&self.watch.health_cmd);
        options.watch = self.watch.watch;
        options.allow_host_paths = self.allow_host_path;
        options.allow_package_scripts = self.allow_package_scripts;
        let reference = self.source.reference(image)?;
        let remote = self.rootfs.as_deref().map(remote_rootfs).transpose()?;
        let name: ContainerName = match &self.name {
            Some(name) => name.parse()?,
            None => reference
                .fallback_name()?
                .default_container_name()
                .parse()?,
        };
        // Known without the image, so said before anything is pulled.
        Runtime::find(self.runtime.as_deref().or(call.config.runtime.as_deref()))?;
        if mode.is_some() && in_use(call.config, &name)?.is_some() {
            return self
                .change
                .nothing(call, &format!("{name} already present"));
        }
        let mut config = call.config.clone();
        config.package_signer = self.sign_by.or(config.package_signer);
        let host = Host::new(&config);
        if mode.is_some() {
            host.manager()?;
        }
        let lock = match mode {
            Some(_) => Some(container::lock(&host, &name)?),
            None => None,
        };
        let store = Store::open(call.config)?;
        let stored = if self.change.is_dry() {
            let known = match &reference.name {
                Some(name) => store.image(&name.to_string())?,
                None => None,
            };
            let Some(image) = known else {
                let remote = Remote::open(call.config, &reference, &self.source.access())?;
                let preview = container::preview_fetch(&store, &remote)?;
                let outcome = Outcome::Preview(Box::new(preview));
                return self.change.finish(call, &host, &outcome);
            };
            image
        } else {
            self.source.ensure(call, &store, &reference)?
        };
        if run::is_once(&store, &stored)? {
            if self.change.is_dry() {
                call.out.line(format!(
                    "run {} once, which is what its label atomic.run says",
                    stored.name
                ))?;
                return Ok(self.change.exit_code());
            }
            let request = run::Once {
                name: Some(name),
                image: stored,
                values,
                options: RunOptions {
                    command: command.to_vec(),
                    writable: Writable::No,
                    ..RunOptions::default()
                },
                runtime: self.runtime,
            };
            let status = run::once(call.config, store, &request)?;
            return Ok(super::run::passed_on(status));
        }
        let request = container::Install {
            package: PackageWish {
                mode: mode.unwrap_or_default(),
                format: self.package_format,
            },
            name,
            image: stored,
            reference,
            values,
            options,
            runtime: self.runtime.clone(),
            auto_update: self.auto_update,
            remote,
        };
        let Some(lock) = lock else {
            return build(&self.change, call, &config, &store, &request);
        };
        let outcome = container::install(&host, lock, store, &request)?;
        self.change.finish(call, &host, &outcome)
    }
}

/// `--system-package=build`
fn build(
    change: &ChangeArgs,
    call: &mut Call<'_>,
    config: &Config,
    store: &Store,
    request: &container::Install,
) -> Result<ExitCode> {
    let built = container::build_package(config, store, request, change.is_dry())?;
    for note in &built.notes {
        call.out.note(note);
    }
    let directory = Utf8PathBuf::try_from(
        std::env::current_dir().context(|| "there is no current directory".into())?,
    )
    .map_err(|_| Error::new(Kind::Invalid, "the current directory is not UTF-8"))?;
    let target = directory.join(&built.file);
    let step = format!(
        "make the package {target} ({} {})",
        built.name, built.version
    );
    if let Some(code) = change.told(call, "install", std::slice::from_ref(&step))? {
        return Ok(code);
    }
    built.place(&target)?;
    if change.is_json() {
        return change.done(call, "install", &[step]);
    }
    call.out
        .line(format!("Generated {} {target}", built.format))?;
    Ok(ExitCode::SUCCESS)
}

impl RunArgs {
    fn options(&self, command: &[String]) -> Result<RunOptions> {
        // Said now rather than when the container is there already.
        crate::runtime::capabilities::with_changes(&self.cap_add, &self.cap_drop)?;
        Ok(RunOptions {
            env: self.process.env.list()?,
            volumes: self.process.volumes()?,
            entrypoint: self.process.entrypoint()?,
            command: command.to_vec(),
            user: None,
            cap_add: self.cap_add.clone(),
            cap_drop: self.cap_drop.clone(),
            stop_timeout: self.stop_timeout,
            writable: match (self.read_only, self.writable) {
                (true, _) => Writable::No,
                (false, WritableArg::Ephemeral) => Writable::Ephemeral,
                (false, WritableArg::Persist) => Writable::Persist,
            },
            ..RunOptions::default()
        })
    }
}
