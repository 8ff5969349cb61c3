//! Words in, words out. A verb is arguments, one call into the library, and print.

// Doc comments of arguments are the help text, where backticks would be shown.
#![allow(clippy::doc_markdown)]

mod archive;
mod args;
mod ask;
mod bootstrap;
mod complete;
mod completion;
mod containers;
mod diff;
mod export;
mod help;
mod image;
mod images;
mod inject;
mod inspect;
mod install;
mod mount;
mod output;
mod owners;
mod process;
mod progress;
mod pull;
mod recover;
mod rollback;
mod rootless;
mod run;
mod stages;
mod trust;
mod udocker;
mod uninstall;
mod update;
mod verify;
mod verify_image;
mod virt_bootstrap;

use std::ffi::OsString;
use std::fs::File;
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::interrupt::Interrupt;

pub use output::Output;
use progress::Meter;

/// OCI images as systemd services, without a container engine.
///
/// An image is pulled into an OSTree store, checked out as hard links, and handed to systemd as an
/// ordinary unit that runs it under runc or crun. Updates switch between two deployments and return
/// to the old one if the new one does not start and stay healthy.
#[allow(clippy::struct_excessive_bools)] // one flag each
#[derive(Debug, Parser)]
#[command(
    name = "atomic-rs",
    disable_version_flag = true,
    disable_help_subcommand = true,
    infer_long_args = true,
    after_long_help = AFTER_HELP,
    arg_required_else_help = true
)]
struct Cli {
    /// Print the version
    #[arg(short = 'v', long, action = clap::ArgAction::SetTrue)]
    version: bool,
    /// Say on stderr what is decided and run
    #[arg(long, global = true)]
    debug: bool,
    /// Write progress to this file descriptor, as JSON, an object a line
    #[arg(long, global = true, value_name = "FD", value_parser = inherited)]
    progress_fd: Option<Inherited>,
    /// Do not ask for confirmation
    #[arg(short = 'y', long, global = true)]
    assumeyes: bool,
    /// Accepted for scripts written for the original, where it concerned docker
    #[arg(short = 'i', long, hide = true)]
    ignore: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// What the manual page of the program says beyond its options.
const AFTER_HELP: &str = "\
Files:
  /var/lib/containers/atomic    deployments (NAME -> NAME.0 or NAME.1) and, below .storage, the store
  /etc/systemd/system           units
  /etc/tmpfiles.d               directories of containers
  /var/lib/NAME                 volumes and persistent writes of a container
  /etc/atomic-rs.toml           checkout_path, ostree_repository, runtime, stop_timeout, watch, registry_timeout, auto_update,
                                update_window, keep_blobs, max_layer_bytes, import_memory_bytes, default_signer
  /etc/atomic.conf              what the original's file says counts where this one is silent
  /etc/atomic-rs/templates      service.tera, config.json.tera, tmpfiles.tera in place of the built-in ones

Environment:
  ATOMIC_OSTREE_CHECKOUT_PATH, ATOMIC_OSTREE_REPO   in place of the configured paths
  RUNC_PATH, SKOPEO_PATH                            the programs to run
  ATOMIC_RS_CONFIG, ATOMIC_CONF                     other configuration files
  TRUST_POLICY                                      another signature policy than policy.json
  DOCKER_HOST                                       where the docker daemon is
  ATOMIC_RS_LOG                                     error, warn, info, debug or trace

Exit status:
  0 done; 1 an error; 2 wrong words or a refused confirmation; 3 a dry run that would change
  something; 130 and 143 interrupted";

#[derive(Debug, Subcommand)]
enum Verb {
    Pull(pull::Pull),
    Install(Box<install::Install>),
    Update(update::Update),
    AutoUpdate(update::AutoUpdate),
    Rollback(rollback::Rollback),
    History(update::History),
    Pin(update::Pin),
    Unpin(update::Unpin),
    Diff(diff::Diff),
    Verify(verify::Verify),
    Repair(verify::Repair),
    Uninstall(uninstall::Uninstall),
    Run(run::Run),
    Exec(run::ExecArgs),
    Stop(run::Stop),
    Status(run::Status),
    Logs(run::Logs),
    Sign(trust::Sign),
    Trust(trust::Trust),
    Mount(mount::Mount),
    #[command(visible_alias = "umount")]
    Unmount(mount::Unmount),
    Containers(containers::Containers),
    Images(images::Images),
    Push(export::Push),
    Inspect(inspect::Inspect),
    WhichContainer(inspect::WhichContainer),
    #[command(hide = true)]
    Info(image::ImageInfo),
    #[command(hide = true)]
    Version(image::Version),
    #[command(hide = true)]
    Help(help::HelpOf),
    #[command(hide = true)]
    OwnerLayer(owners::OwnerLayer),
    #[command(hide = true)]
    BootstrapInside(bootstrap::Inside),
    #[command(hide = true)]
    ContainerOuter(stages::Outer),
    #[command(hide = true)]
    ContainerInit(stages::Init),
    #[command(hide = true)]
    ContainerEnter(stages::Enter),
    Rootless(rootless::Rootless),
    Bootstrap(bootstrap::Bootstrap),
    Archive(archive::ArchiveVerbs),
    Inject(inject::InjectVerbs),
    Recover(recover::Recover),
    Completion(completion::Completion),
}

/// A descriptor that we were started with.
type Inherited = std::sync::Arc<File>;

fn inherited(text: &str) -> Result<Inherited> {
    let bad = || {
        Error::new(
            Kind::Usage,
            format!("\"{text}\" is no open file descriptor"),
        )
    };
    let file = match text.parse().map_err(|_| bad())? {
        1 => std::io::stdout().as_fd().try_clone_to_owned(),
        2 => std::io::stderr().as_fd().try_clone_to_owned(),
        number => crate::safefs::inherited(number),
    };
    Ok(File::from(file.map_err(|_| bad())?).into())
}

/// What every verb gets.
struct Call<'a> {
    config: &'a Config,
    out: &'a mut Output,
    assumeyes: bool,
    /// Where programs read how far it is.
    progress: Option<Inherited>,
}

impl Call<'_> {
    /// To show how far something is.
    fn meter(&self) -> Meter {
        Meter::new(
            self.progress
                .as_ref()
                .and_then(|file| file.try_clone().ok()),
        )
    }
}

/// The definition of the command line, for manuals and completions.
pub fn definition() -> clap::Command {
    Cli::command()
}

/// Run the program with these words.
pub fn main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words: Vec<OsString> = words.into_iter().collect();
    if let Some(code) = complete::answer(&words) {
        return code;
    }
    let called = words.first().and_then(|word| Path::new(word).file_name());
    if called.is_some_and(|name| name == udocker::NAME) {
        return udocker::main(&words);
    }
    if called.is_some_and(|name| name == virt_bootstrap::NAME) {
        return virt_bootstrap::main(&words);
    }
    let is_original = called.is_some_and(|name| name == "atomic");
    let cli = match Cli::command().try_get_matches_from(words) {
        Ok(matches) => match Cli::from_arg_matches(&matches) {
            Ok(cli) => cli,
            Err(error) => return usage(&error),
        },
        Err(error) => return usage(&error),
    };
    if cli.version {
        let printed = Output::default().line(format!("atomic-rs {}", crate::VERSION));
        return printed.map_or_else(|error| report(&error, ""), |()| ExitCode::SUCCESS);
    }
    set_up_logging(cli.debug);
    let Some(verb) = cli.verb else {
        say!("atomic-rs: a command is missing\nTry 'atomic-rs --help' for more information.");
        return ExitCode::from(2);
    };
    let word = verb.word();
    match run(verb, cli.assumeyes, cli.progress_fd, is_original) {
        Ok(code) => code,
        Err(error) => report(&error, word),
    }
}

fn report(error: &Error, word: &str) -> ExitCode {
    if error.kind() != Kind::Closed {
        say!("{error}");
        if error.kind() == Kind::Permission {
            say!("Some operations for '{word}' require root access.");
        }
    }
    ExitCode::from(error.exit_code())
}

fn run(
    verb: Verb,
    assumeyes: bool,
    progress: Option<Inherited>,
    is_original: bool,
) -> Result<ExitCode> {
    let mut out = Output::default();
    // The only verbs that need nothing of the host.
    match verb {
        Verb::Completion(verb) => return verb.run(&mut out),
        Verb::OwnerLayer(verb) => return verb.run(),
        Verb::BootstrapInside(_) => return Ok(bootstrap::Inside::run()),
        Verb::ContainerOuter(verb) => return verb.run(),
        Verb::ContainerInit(verb) => return verb.run(),
        Verb::ContainerEnter(verb) => return verb.run(),
        _ => {}
    }
    let interrupt = match verb {
        Verb::Rootless(_) => Interrupt::listen_unless_ignored()?,
        _ => Interrupt::listen()?,
    };
    let config = Config::load(interrupt)?;
    let mut call = Call {
        config: &config,
        out: &mut out,
        assumeyes,
        progress,
    };
    let result = match verb {
        Verb::Pull(verb) => verb.run(&mut call),
        Verb::Install(verb) => verb.run(&mut call),
        Verb::Update(verb) if is_original => verb.run_as_original(&mut call),
        Verb::Update(verb) => verb.run(&mut call, true),
        Verb::AutoUpdate(verb) => verb.run(&mut call),
        Verb::Rollback(verb) => verb.run(&mut call),
        Verb::History(verb) => verb.run(&mut call),
        Verb::Pin(verb) => verb.run(&mut call),
        Verb::Unpin(verb) => verb.run(&mut call),
        Verb::Diff(verb) => verb.run(&mut call),
        Verb::Verify(verb) => verb.run(&mut call),
        Verb::Repair(verb) => verb.run(&mut call),
        Verb::Uninstall(verb) => verb.run(&mut call),
        Verb::Run(verb) => verb.run(&mut call),
        Verb::Exec(verb) => verb.run(&mut call),
        Verb::Stop(verb) => verb.run(&mut call),
        Verb::Status(verb) => verb.run(&mut call),
        Verb::Logs(verb) => verb.run(&mut call),
        Verb::Sign(verb) => verb.run(&mut call),
        Verb::Trust(verb) => verb.run(&mut call),
        Verb::Mount(verb) => verb.run(&mut call),
        Verb::Unmount(verb) => verb.run(&mut call),
        Verb::Containers(verb) => verb.run(&mut call),
        Verb::Images(verb) => verb.run(&mut call),
        Verb::Push(verb) => verb.run(&mut call),
        Verb::Inspect(verb) => verb.run(&mut call),
        Verb::WhichContainer(verb) => verb.run(&mut call),
        Verb::Info(verb) => verb.run(&mut call),
        Verb::Version(verb) => verb.run(&mut call),
        Verb::Help(verb) => verb.run(&mut call),
        Verb::Recover(verb) => verb.run(&mut call),
        Verb::Completion(verb) => verb.run(call.out),
        Verb::OwnerLayer(verb) => verb.run(),
        Verb::BootstrapInside(_) => Ok(bootstrap::Inside::run()),
        Verb::ContainerOuter(verb) => verb.run(),
        Verb::ContainerInit(verb) => verb.run(),
        Verb::ContainerEnter(verb) => verb.run(),
        Verb::Rootless(verb) => verb.run(&mut call),
        Verb::Bootstrap(verb) => verb.run(&mut call),
        Verb::Archive(verb) => verb.run(&mut call),
        Verb::Inject(verb) => verb.run(&mut call),
    };
    result.map_err(|error| config.interrupt.explain(error))
}

impl Verb {
    fn word(&self) -> &'static str {
        match self {
            Self::Pull(_) => "pull",
            Self::Install(_) => "install",
            Self::Update(_) => "update",
            Self::AutoUpdate(_) => "auto-update",
            Self::Rollback(_) => "rollback",
            Self::History(_) => "history",
            Self::Pin(_) => "pin",
            Self::Unpin(_) => "unpin",
            Self::Diff(_) => "diff",
            Self::Verify(_) => "verify",
            Self::Repair(_) => "repair",
            Self::Uninstall(_) => "uninstall",
            Self::Run(_) => "run",
            Self::Exec(_) => "exec",
            Self::Stop(_) => "stop",
            Self::Status(_) => "status",
            Self::Logs(_) => "logs",
            Self::Sign(_) => "sign",
            Self::Trust(_) => "trust",
            Self::Mount(_) => "mount",
            Self::Unmount(_) => "unmount",
            Self::Containers(_) => "containers",
            Self::Images(_) => "images",
            Self::Push(_) => "push",
            Self::Inspect(_) => "inspect",
            Self::WhichContainer(_) => "which-container",
            Self::Info(_) => "info",
            Self::Version(_) => "version",
            Self::Help(_) => "help",
            Self::OwnerLayer(_) => crate::deployment::owners::VERB,
            Self::BootstrapInside(_) => crate::bootstrap::namespace::VERB,
            Self::ContainerOuter(_) => crate::rootless::engine::OUTER_VERB,
            Self::ContainerInit(_) => crate::rootless::engine::INIT_VERB,
            Self::ContainerEnter(_) => crate::rootless::engine::ENTER_VERB,
            Self::Rootless(_) => "rootless",
            Self::Bootstrap(_) => "bootstrap",
            Self::Archive(_) => "archive",
            Self::Inject(_) => "inject",
            Self::Recover(_) => "recover",
            Self::Completion(_) => "completion",
        }
    }
}

fn usage(error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        let printed = Output::default().line(error.to_string().trim_end());
        return printed.map_or_else(|error| report(&error, ""), |()| ExitCode::SUCCESS);
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        say!("{}", error.to_string().trim_end());
        return ExitCode::from(2);
    }
    let text = error.to_string();
    // clap explains at length; scripts of the original expect two lines.
    let message: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .filter(|line| !line.is_empty() && !line.starts_with("tip:"))
        .collect();
    let message = message.join(" ");
    say!(
        "atomic-rs: {}\nTry 'atomic-rs --help' for more information.",
        message.strip_prefix("error: ").unwrap_or(&message)
    );
    ExitCode::from(2)
}

fn set_up_logging(debug: bool) {
    let level = if debug {
        "atomic_rs=debug"
    } else {
        "atomic_rs=warn"
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("ATOMIC_RS_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .init();
}
