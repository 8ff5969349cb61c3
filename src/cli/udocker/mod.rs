//! The command line of udocker, by the symbolic link `udocker`: its grammar, messages and exit codes, on our
//! store and our containers.
//!
//! What its messages say is in part what scripts look for: those are kept to the letter, with the spelling and
//! the stream that they have there.

mod archives;
mod containers;
mod grammar;
mod images;
mod registry;
mod run;
mod settings;
mod text;

use std::ffi::OsString;
use std::process::ExitCode;

use base64::Engine as _;
use camino::{Utf8Path, Utf8PathBuf};

use crate::config::Config;
use crate::error::{Context as _, Error, Kind, Result};
use crate::image::Reference;
use crate::interrupt::Interrupt;
use crate::registry::{Access, Credentials, credentials};
use crate::rootless::{Container, Home, Mode, migrate};
use grammar::{Opt, Takes, Words};
use settings::Settings;

/// The name by which the program is this command line.
pub const NAME: &str = "udocker";

/// Failures of setting a run up.
const SET_UP_FAILED: u8 = 2;

/// What is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Results = 1,
    Infos = 3,
    All = 5,
}

const GENERAL: [Opt; 8] = [
    (&["--debug", "-D"], Takes::Nothing),
    (&["--quiet", "-q"], Takes::Nothing),
    (&["--insecure"], Takes::Nothing),
    (&["--repo"], Takes::Value),
    (&["--allow-root"], Takes::Nothing),
    (&["--config"], Takes::Value),
    (&["--help", "-h"], Takes::Nothing),
    (&["--version", "-V"], Takes::Nothing),
];

/// What every command gets.
struct Call {
    config: Config,
    level: Level,
    /// Registries are spoken to without TLS.
    insecure: bool,
    /// udocker's directory, where one was named.
    repo: Option<Utf8PathBuf>,
    settings: Settings,
}

/// How a command ends: its exit code.
type Code = Result<u8>;

/// Run the command line.
pub fn main(words: &[OsString]) -> ExitCode {
    let words = words.iter().skip(1);
    // Words that are empty count as not typed.
    let words: Vec<String> = words
        .map(|word| word.to_string_lossy().into_owned())
        .filter(|word| !word.is_empty())
        .collect();
    match command_line(&words) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            if error.kind() == Kind::Closed {
                return ExitCode::FAILURE;
            }
            say!("Error: {error}");
            ExitCode::from(match error.kind() {
                Kind::Child(code) => code,
                Kind::Interrupted(_) => error.exit_code(),
                _ => 1,
            })
        }
    }
}

fn command_line(words: &[String]) -> Code {
    let general = match Words::read(&GENERAL, words) {
        Ok(general) => general,
        Err(unknown) => return syntax(&unknown),
    };
    let settings = Settings::read(general.value("--config"), general.value("--repo"))?;
    let level = level(&general, &settings);
    super::set_up_logging(level == Level::All);
    let Some((command, words)) = general.rest.split_first() else {
        if general.has("--version") {
            return text::say(&text::version());
        }
        return text::say(text::HELP);
    };
    if general.has("--help") || command == "help" {
        return text::say(text::of(words.first().unwrap_or(command)));
    }
    if general.has("--version") || command == "version" {
        return text::say(&text::version());
    }
    let Some(options) = options_of(command) else {
        say!("Error: invalid command: {command}\n");
        return Ok(1);
    };
    if words
        .iter()
        .take_while(|word| word.starts_with('-'))
        .any(|word| word == "--help")
    {
        return text::say(text::of(command));
    }
    let words = match Words::read(options, words) {
        Ok(words) => words,
        Err(unknown) => return syntax(&unknown),
    };
    if rustix::process::geteuid().is_root() {
        let why = if general.has("--allow-root") {
            "containers of root are those of \"atomic-rs install\" and \"atomic-rs run\""
        } else {
            "do not run as root !"
        };
        say!("Error: {why}");
        return Ok(1);
    }
    let mut call = Call {
        level,
        ..Call::load(&general, settings)?
    };
    let result = call.run(command, &words);
    result.map_err(|error| call.config.interrupt.explain(error))
}

fn level(general: &Words, settings: &Settings) -> Level {
    let named = settings.get("verbose_level");
    let number = named.and_then(|text| text.trim().parse::<u8>().ok());
    match number {
        _ if general.has("--debug") => Level::All,
        _ if general.has("--quiet") => Level::Results,
        Some(0..=2) => Level::Results,
        Some(5..) => Level::All,
        _ => Level::Infos,
    }
}

/// Options of a command; nothing if there is no such command.
fn options_of(command: &str) -> Option<&'static [Opt]> {
    Some(match command {
        "search" => &registry::SEARCH,
        "login" => &registry::LOGIN,
        "logout" => &registry::LOGOUT,
        "pull" | "manifest" => &images::PULL,
        "images" => &images::IMAGES,
        "rmi" => &images::REMOVE,
        "load" => &archives::LOAD,
        "save" => &archives::SAVE,
        "import" => &archives::IMPORT,
        "inspect" => &images::INSPECT,
        "create" => &containers::CREATE,
        "ps" => &containers::PS,
        "rm" => &containers::REMOVE,
        "clone" => &containers::CLONE,
        "export" => &containers::EXPORT,
        "setup" => &containers::SETUP,
        "run" => run::RUN,
        "tag" | "verify" | "protect" | "unprotect" | "name" | "rmname" | "rename" | "mkrepo"
        | "showconf" => &[],
        "install" => &[
            (&["--force"], Takes::Nothing),
            (&["--purge"], Takes::Nothing),
        ],
        _ => return None,
    })
}

#[allow(clippy::unnecessary_wraps)] // commands end by it
fn syntax(unknown: &[String]) -> Code {
    say!("Error: syntax error at: {}", unknown.join(" "));
    Ok(1)
}

impl Call {
    fn load(general: &Words, settings: Settings) -> Result<Self> {
        let interrupt = Interrupt::listen_unless_ignored()?;
        let mut config = Config::load(interrupt)?;
        if let Some(runtime) = settings.get("use_runc_executable") {
            config.runtime = Some(runtime.to_owned());
        }
        let named = general.value("--repo").map(str::to_owned);
        // The original's own example sets it in terms of itself.
        let topdir = settings
            .get("topdir")
            .filter(|topdir| topdir.starts_with(['/', '.']));
        let repo = named.clone().or_else(|| topdir.map(str::to_owned));
        let repo = repo.map(Utf8PathBuf::from);
        if let Some(repo) = &repo {
            if named.is_some() && !is_repo(repo) {
                return Err(Error::new(
                    Kind::Child(1),
                    format!("invalid udocker repository: {repo}"),
                ));
            }
            let repo = camino::absolute_utf8(repo).context(|| repo.to_string())?;
            config.checkouts = repo.join(STORE);
            config.repository = Some(repo.join(STORE).join("repo"));
            config.rootless = Some(repo);
        }
        Ok(Self {
            config,
            level: Level::Infos,
            insecure: general.has("--insecure") || settings.is_on("http_insecure"),
            repo,
            settings,
        })
    }

    fn run(&mut self, command: &str, words: &Words) -> Code {
        if let Some(repo) = self.repo.clone()
            && !matches!(command, "showconf" | "install" | "mkrepo")
            && !is_repo(&repo)
        {
            self.info(format!("Info: creating repo: {repo}"))?;
            make_repo(&repo)?;
        }
        match command {
            "search" => registry::search(self, words),
            "login" => registry::login(self, words),
            "logout" => registry::logout(self, words),
            "pull" => images::pull(self, words),
            "images" => images::list(self, words),
            "rmi" => images::remove(self, words),
            "tag" => images::tag(self, words),
            "manifest" => images::manifest(self, words),
            "verify" => images::verify(self, words),
            "load" => archives::load(self, words),
            "save" => archives::save(self, words),
            "import" => archives::import(self, words),
            "inspect" => images::inspect(self, words),
            "protect" => containers::protect(self, words, true),
            "unprotect" => containers::protect(self, words, false),
            "create" => containers::create(self, words),
            "ps" => containers::list(self, words),
            "rm" => containers::remove(self, words),
            "name" => containers::name(self, words),
            "rmname" => containers::remove_name(self, words),
            "rename" => containers::rename(self, words),
            "clone" => containers::clone(self, words),
            "export" => containers::export(self, words),
            "setup" => containers::setup(self, words),
            "run" => run::run(self, words),
            "mkrepo" => make_new_repo(words),
            "showconf" => text::say(&text::settings(self)),
            _ => text::say(&text::found()),
        }
    }

    /// The proxy that registries are asked by.
    fn proxy<'a>(&'a self, words: &'a Words) -> Option<&'a str> {
        let named = words.value("--httpproxy");
        named.or_else(|| self.settings.get("http_proxy"))
    }

    /// The registry of images whose names have none, where it is not the usual one.
    fn registry<'a>(&'a self, words: &'a Words) -> Option<&'a str> {
        let named = words.value("--registry");
        let named = named.or_else(|| self.settings.get("dockerio_registry_url"));
        named.filter(|registry| !registry.is_empty() && !registry.contains("docker.io"))
    }

    /// Credentials that udocker itself has kept for the registry of an image, where skopeo knows none.
    fn kept_credentials(&self, reference: &Reference) -> Result<Option<Credentials>> {
        let directory = || {
            let home = std::env::var("HOME").ok().map(Utf8PathBuf::from);
            let usual = home.map(|home| home.join(".udocker"));
            self.repo.clone().or(usual)
        };
        let keystore = Utf8Path::new(self.settings.get("keystore").unwrap_or("keystore"));
        let Some(path) = directory().map(|directory| directory.join(keystore)) else {
            return Ok(None);
        };
        let registry = reference.name.as_ref().and_then(|name| name.registry());
        let registry = registry.unwrap_or("docker.io");
        let all = migrate::keystore(&path)?;
        let Some((_, auth)) = all.into_iter().find(|(host, _)| host == registry) else {
            return Ok(None);
        };
        if credentials::find(&Access::default(), registry, "")?.is_some() {
            return Ok(None);
        }
        let plain = base64::engine::general_purpose::STANDARD.decode(auth).ok();
        let plain = plain.and_then(|plain| String::from_utf8(plain).ok());
        plain.map(|plain| plain.parse()).transpose()
    }

    /// How new containers run, unless somebody says otherwise.
    fn mode(&self, words: &Words) -> Result<Mode> {
        let named = words.value("--execmode");
        match named.or_else(|| self.settings.get("default_execution_mode")) {
            Some(text) => text
                .parse()
                .map_err(|_| Error::new(Kind::Child(1), format!("invalid execmode: {text}"))),
            None => Ok(Mode::N),
        }
    }

    fn home(&self) -> Home {
        Home::of(&self.config)
    }

    /// A container, where it is one.
    fn container(&self, text: &str) -> Result<Option<Container>> {
        self.home().find(text)
    }

    fn result(&self, text: impl AsRef<str>) -> Result<()> {
        if self.level >= Level::Results {
            super::Output::default().line(text)?;
        }
        Ok(())
    }

    fn info(&self, text: impl AsRef<str>) -> Result<()> {
        if self.level >= Level::Infos {
            super::Output::default().line(text)?;
        }
        Ok(())
    }
}

/// Below udocker's directory: the store.
const STORE: &str = "store";
/// What a directory of udocker's has.
const DIRECTORIES: [&str; 6] = ["bin", "lib", "doc", "repos", "layers", "containers"];

fn is_repo(path: &Utf8Path) -> bool {
    path.join("containers").is_dir() && path.join("repos").is_dir()
}

fn make_repo(path: &Utf8Path) -> Result<()> {
    for directory in DIRECTORIES {
        let path = path.join(directory);
        std::fs::create_dir_all(&path).context(|| format!("cannot create {path}"))?;
    }
    Ok(())
}

/// `mkrepo`
fn make_new_repo(words: &Words) -> Code {
    let Some(path) = words.one() else {
        return failed("invalid udocker repository");
    };
    let path = Utf8Path::new(path);
    if path.exists() {
        return failed(&format!("localrepo directory already exists: {path}"));
    }
    make_repo(path)?;
    Ok(0)
}

/// Say an error, with exit code 1.
#[allow(clippy::unnecessary_wraps)] // commands end by it
fn failed(text: &str) -> Code {
    say!("Error: {text}");
    Ok(1)
}
