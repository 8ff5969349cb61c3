//! The command line of virt-bootstrap, by the symbolic link of that name: its options and exit codes. What it could
//! not do and ours can is under `atomic-rs bootstrap`.

use std::ffi::OsString;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use camino::Utf8PathBuf;
use clap::Parser;

use super::args::SourceArgs;
use super::ask::ask_unseen;
use super::bootstrap::{IdArgs, make};
use super::{Call, Output};
use crate::bootstrap::password::Secret;
use crate::bootstrap::{Backing, Disk, FileSystem, Form, Progress, Request};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::interrupt::Interrupt;
use crate::transport::Credentials;

/// The name by which the program is this command line.
pub const NAME: &str = "virt-bootstrap";

/// As large as the original's.
const SIZE: u64 = 5 << 30;

/// Make a root filesystem of an image or an archive.
#[allow(clippy::struct_excessive_bools)] // they are flags
#[derive(Debug, Parser)]
#[command(name = NAME, version = crate::VERSION, disable_help_subcommand = true)]
struct Words {
    /// docker://NAME, or an archive as file:///PATH or PATH
    #[arg(value_name = "URI")]
    source: String,
    /// The directory to make, or the one for disk images
    #[arg(value_name = "DEST")]
    destination: Utf8PathBuf,
    /// dir or qcow2
    #[arg(short, long, value_name = "FORMAT", default_value = "dir", value_parser = ["dir", "qcow2"])]
    format: String,
    /// Where root's password comes from: file:PATH, fd:NUMBER or env:NAME
    #[arg(long, value_name = "SELECTOR")]
    root_password: Option<Secret>,
    /// Do not keep the image for another time
    #[arg(long)]
    no_cache: bool,
    #[command(flatten)]
    ids: IdArgs,
    /// Whom the registry knows
    #[arg(short, long)]
    username: Option<String>,
    /// The password of that user; asked for if it is missing
    #[arg(short, long)]
    password: Option<String>,
    /// Plain HTTP, and certificates that nobody has signed
    #[arg(long)]
    not_secure: bool,
    /// Say everything
    #[arg(short, long)]
    debug: bool,
    /// Say only what is wrong
    #[arg(short, long)]
    quiet: bool,
    /// Say only how far it is
    #[arg(long)]
    status_only: bool,
}

/// Run the command line.
pub fn main(words: &[OsString]) -> ExitCode {
    let words = match Words::try_parse_from(words) {
        Ok(words) => words,
        Err(error) => {
            // Help is no error.
            let code = if error.use_stderr() { 2 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    super::set_up_logging(words.debug);
    match words.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say!("{NAME}: {error}");
            ExitCode::from(match error.kind() {
                Kind::Interrupted(_) => error.exit_code(),
                _ => 1,
            })
        }
    }
}

impl Words {
    fn run(self) -> Result<()> {
        let config = Config::load(Interrupt::listen()?)?;
        let mut out = Output::default();
        let mut call = Call {
            config: &config,
            out: &mut out,
            assumeyes: false,
            progress: None,
        };
        let registry = SourceArgs::of(self.credentials()?, self.not_secure);
        let disk = Disk {
            size: SIZE,
            file_system: FileSystem::Ext3,
            is_compressed: false,
        };
        let form = match self.format.as_str() {
            "qcow2" => Form::Qcow2 {
                disk,
                flat: false,
                backing: Backing::Absolute,
            },
            _ => Form::Directory,
        };
        let ids = self.ids.ids()?;
        if form == Form::Directory
            && ids.is_empty()
            && !rustix::process::geteuid().is_root()
            && !self.quiet
        {
            call.out
                .note("All extracted files will be owned by the current unprivileged user.");
        }
        let request = Request {
            destination: self.destination.clone(),
            form,
            ids,
            owners: None,
            root_password: self.root_password.as_ref().map(Secret::read).transpose()?,
            // A directory with something in it is written over there, which loses what is neither old nor new.
            force: false,
        };
        let mut status = Status::default();
        let mut bar = call.meter().quiet(self.quiet);
        let progress: &mut dyn Progress = if self.status_only {
            &mut status
        } else {
            &mut bar
        };
        let made = make(
            &mut call,
            &self.source,
            &registry,
            &request,
            self.no_cache,
            progress,
        );
        made.map(|_| ())
            .map_err(|error| config.interrupt.explain(error))
    }

    fn credentials(&self) -> Result<Option<Credentials>> {
        let Some(user) = &self.username else {
            return Ok(None);
        };
        let password = match &self.password {
            Some(password) => password.clone(),
            None => ask_password()?,
        };
        format!("{user}:{password}").parse().map(Some)
    }
}

fn ask_password() -> Result<String> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::new(Kind::Usage, "--username needs --password"));
    }
    ask_unseen("Password: ")
}

/// One line that is written again and again, as the original's `--status-only`.
#[derive(Default)]
struct Status {
    total: u64,
    done: u64,
    text: String,
    /// Hundredths of a percent.
    shown: u64,
}

impl Status {
    fn show(&mut self) {
        // Exact to a hundredth of a percent is enough.
        let hundredths = self.done.saturating_mul(10_000) / self.total.max(1);
        let hundredths = hundredths.min(10_000);
        let (whole, part) = (hundredths / 100, hundredths % 100);
        let line = format!("Status: {}, Progress: {whole}.{part:02}%", self.text);
        self.shown = hundredths;
        if let Ok(size) = rustix::termios::tcgetwinsize(std::io::stderr()) {
            let width = usize::from(size.ws_col).max(1) - 1;
            let end = if hundredths == 10_000 { "\n" } else { "" };
            let line: String = format!("{line:<width$}").chars().take(width).collect();
            let _ = write!(std::io::stderr().lock(), "\r{line}{end}");
        } else {
            // No terminal: a line each.
            say!("{line}");
        }
    }
}

impl Progress for Status {
    fn begin(&mut self, bytes: u64) {
        self.total = bytes;
        self.text = "Extracting container layers".into();
        self.show();
    }

    fn layer(&mut self, number: usize, of: usize) {
        self.text = format!("Extracting layer ({number}/{of})");
        self.show();
    }

    fn advance(&mut self, bytes: u64) {
        self.done += bytes;
        // A percent more is worth a line.
        let hundredths = self.done.saturating_mul(10_000) / self.total.max(1);
        if hundredths >= self.shown + 100 && std::io::stderr().is_terminal() {
            self.show();
        }
    }

    fn end(&mut self) {
        self.done = self.total;
        self.text = "Download and extract completed!".into();
        self.show();
    }
}
