//! `udocker run`.

use camino::Utf8PathBuf;

use super::grammar::{Opt, Takes, Words};
use super::{Call, Code, SET_UP_FAILED, containers, failed, images};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::rootless::{self, Container, Cpus, Mode, Name, Wishes, create};
use crate::runtime::mounts::Volume;
use crate::store::Store;
use crate::store::images::StoredImage;

const V: Takes = Takes::Value;
const N: Takes = Takes::Nothing;

pub const RUN: &[Opt] = &[
    (&["--rm"], N),
    (&["--workdir", "-w"], V),
    (&["--user", "-u"], V),
    (&["--volume", "-v"], V),
    (&["--novol"], V),
    (&["--env", "-e"], V),
    (&["--env-file"], V),
    (&["--hostauth"], N),
    (&["--containerauth"], N),
    (&["--nosysdirs"], N),
    (&["--nometa"], N),
    (&["--dri"], N),
    (&["--hostenv"], N),
    (&["--cpuset-cpus"], V),
    (&["--name"], V),
    (&["--bindhome"], N),
    (&["--kernel"], V),
    (&["--location"], V),
    (&["--entrypoint"], V),
    (&["--volumes-from"], V),
    (&["--dns"], V),
    (&["--dns-search"], V),
    (&["--nobanner"], N),
    (&["--device"], V),
    (&["--publish", "-p"], V),
    (&["--publish-all", "-P"], N),
    (&["--netcoop"], N),
    (&["--platform"], V),
    (&["--pull"], V),
    (&["--httpproxy"], V),
    (&["--index"], V),
    (&["--registry"], V),
    (&["--execmode"], V),
    (&["--allow-leaky"], N),
    (&["-i", "--interactive"], N),
    (&["-t", "--tty"], N),
    (&["-a", "--attach"], N),
];

pub fn run(call: &mut Call, words: &Words) -> Code {
    let Some((first, command)) = words.rest.split_first() else {
        return failed("must specify container_id or image:tag");
    };
    if let Some((name, _)) = command.split_first()
        && name == "--"
    {
        return super::syntax(command);
    }
    let location = words.value("--location");
    let location = location.or_else(|| call.settings.get("location"));
    let made = match location {
        Some(directory) => lent(call, words, directory),
        None => container(call, words, first),
    };
    let container = match made {
        Ok(found) => found,
        Err(error) if error.kind() == Kind::Transport => {
            say!("Error: {error}");
            say!("Error: image or container not available");
            return Ok(SET_UP_FAILED);
        }
        Err(error) => return Err(set_up(error)),
    };
    let code = execute(call, words, &container, command);
    let goes = words.has("--rm") && !container.record.protected;
    if goes || location.is_some() {
        let removed = create::remove(&call.config, &container);
        if let Err(error) = removed {
            say!("Error: deleting container: {error}");
        }
    }
    code
}

fn execute(call: &Call, words: &Words, container: &Container, command: &[String]) -> Code {
    let wishes = wishes(call, words, container, command).map_err(set_up)?;
    note_ports(call, words, container)?;
    if let Some(cpus) = words.value("--cpuset-cpus") {
        cpus.parse::<Cpus>()
            .and_then(|cpus| cpus.apply())
            .map_err(set_up)?;
    }
    if !words.has("--nobanner") {
        banner(call, container, &wishes)?;
    }
    let code = {
        // From here on signals are the command's.
        let _held = call.config.interrupt.hold();
        rootless::run(&call.config, container, wishes)
    };
    code.map_err(set_up)
}

/// A container of that name, or a new one of an image.
fn container(call: &Call, words: &Words, text: &str) -> Result<Container> {
    let name = words
        .value("--name")
        .map(containers::parse_name)
        .transpose()?;
    if let Some(found) = call.container(text)? {
        return Ok(found);
    }
    let pull = words.value("--pull").unwrap_or("missing");
    if let Some(name) = &name
        && let Some(id) = call.home().id_of(name)
    {
        if pull == "reuse" {
            return Container::open(&call.home(), &id);
        }
        fail!(Kind::Child(1), "invalid container name");
    }
    let store = Store::open(&call.config)?;
    let image = match pull {
        "always" => Some(fetch(call, &store, text, words)?),
        "never" => images::find(&store, text)?,
        "missing" | "reuse" => match images::find(&store, text)? {
            Some(image) => Some(image),
            None => Some(fetch(call, &store, text, words)?),
        },
        other => fail!(Kind::Child(1), "invalid --pull value: {other}"),
    };
    let Some(image) = image else {
        fail!(Kind::NotFound, "container id or name not found");
    };
    create_from(call, words, &store, &image, name.as_ref())
}

/// A container on files of somebody's, for this run alone.
fn lent(call: &Call, words: &Words, directory: &str) -> Result<Container> {
    let files = camino::absolute_utf8(directory).context(|| directory.to_owned())?;
    if !files.is_dir() || files == "/" {
        fail!(Kind::NotFound, "invalid --location: {directory}");
    }
    let mode = call.mode(words)?;
    if mode.is_fake() {
        fail!(
            Kind::Refused,
            "mode {mode} changes files, and those of --location are not a container's: use N, R1 or P2"
        );
    }
    create::adopt(
        &call.config,
        &create::Adopt {
            id: None,
            files: &files,
            lent: true,
            image: String::new(),
            config: serde_json::json!({}),
            name: None,
            mode,
            protected: false,
        },
    )
}

/// The image of a registry; whatever is in the way, there is none.
fn fetch(call: &Call, store: &Store, text: &str, words: &Words) -> Result<StoredImage> {
    images::fetch(call, store, text, words).map_err(|error| match error.kind() {
        Kind::NotFound => Error::new(Kind::Transport, error.to_string()),
        _ => error,
    })
}

fn create_from(
    call: &Call,
    words: &Words,
    store: &Store,
    image: &StoredImage,
    name: Option<&Name>,
) -> Result<Container> {
    let request = create::Create {
        image,
        name,
        force: false,
        mode: call.mode(words)?,
    };
    create::create(&call.config, store, &request)
}

fn wishes(call: &Call, words: &Words, container: &Container, command: &[String]) -> Result<Wishes> {
    let config = container.image_config()?.config;
    let entrypoint: Option<Vec<String>> = words.value("--entrypoint").map(|text| {
        let words = text.trim_matches('"').split_whitespace();
        words.map(str::to_owned).collect()
    });
    let mut command = command.to_vec();
    let image_says_nothing = config.entrypoint.is_empty() && config.cmd.is_empty();
    let says_nothing = words.has("--nometa") || image_says_nothing;
    if command.is_empty()
        && (entrypoint.as_ref().is_some_and(Vec::is_empty) || entrypoint.is_none() && says_nothing)
    {
        command = call
            .settings
            .list("cmd")
            .unwrap_or_else(|| vec!["bash".into(), "-i".into()]);
        let words: Vec<String> = command.iter().map(|word| format!("'{word}'")).collect();
        call.info(format!(
            "Warning: no command assuming: [{}]",
            words.join(", ")
        ))?;
    }
    let user = words.value("--user").map(str::to_owned);
    let mut devices: Vec<Utf8PathBuf> = words.values("--device").map(Utf8PathBuf::from).collect();
    if words.has("--dri") {
        let dri = Utf8PathBuf::from("/dev/dri");
        if dri.exists() {
            devices.push(dri);
        }
    }
    if let Some(missing) = devices.iter().find(|device| !device.exists()) {
        fail!(Kind::NotFound, "device not found: {missing}");
    }
    Ok(Wishes {
        command,
        entrypoint,
        env: environment(call, words, container)?,
        host_env: words.has("--hostenv"),
        user,
        workdir: words.value("--workdir").map(str::to_owned),
        volumes: volumes(call, words, container.record.mode)?,
        devices,
        hostname: None,
        allow_leaky: words.has("--allow-leaky"),
        without_metadata: words.has("--nometa"),
    })
}

/// Files first, so that the command line wins; what the container is, as programs inside ask for it.
fn environment(call: &Call, words: &Words, container: &Container) -> Result<Vec<String>> {
    let mut out = Vec::new();
    let mut add = |text: &str| {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, std::env::var(text).ok()),
        };
        let begins = name.chars().next();
        let is_name =
            begins.is_some_and(|c| !c.is_ascii_digit()) && !name.contains(char::is_whitespace);
        if let (true, Some(value)) = (is_name, value) {
            out.push(format!("{name}={value}"));
        }
    };
    for file in words.values("--env-file") {
        let text = std::fs::read_to_string(file)
            .context(|| format!("env file not found or not readable: {file}"))?;
        for line in text.lines().map(str::trim) {
            if !line.is_empty() && !line.starts_with('#') {
                add(line);
            }
        }
    }
    words.values("--env").for_each(&mut add);
    let user = words.value("--user").unwrap_or("root");
    let user = user.split(':').next().unwrap_or(user);
    for name in ["USER", "LOGNAME", "USERNAME"] {
        add(&format!("{name}={user}"));
    }
    let id = &container.record.id;
    add("SHLVL=0");
    add(&format!("container_root={}", container.root()));
    add(&format!("container_uuid={id}"));
    add(&format!("container_execmode={}", container.record.mode));
    add(&format!(
        "container_names={}",
        call.home().names_of(id)?.join(" ")
    ));
    Ok(out)
}

/// `HOST`, `HOST:INSIDE`, `HOST:`, each with `:ro` or `:rw`.
fn volumes(call: &Call, words: &Words, mode: Mode) -> Result<Vec<Volume>> {
    let mut out: Vec<Volume> = Vec::new();
    for text in words.values("--volume") {
        let (paths, read_only) = match text.rsplit_once(':') {
            Some((paths, "ro")) => (paths, true),
            Some((paths, "rw")) => (paths, false),
            _ => (text, false),
        };
        let (source, inside) = paths.split_once(':').unwrap_or((paths, ""));
        let inside = if inside.is_empty() { source } else { inside };
        if !source.starts_with('/') || !std::path::Path::new(source).exists() {
            fail!(Kind::Usage, "invalid host volume path: {source}");
        }
        if !inside.starts_with('/') || inside == "/" {
            fail!(Kind::Usage, "invalid container volume path: {inside}");
        }
        out.push(Volume {
            source: source.into(),
            destination: inside.to_owned(),
            read_only,
        });
    }
    let mut same = |path: String, read_only| {
        if std::path::Path::new(&path).exists()
            && !out.iter().any(|volume| volume.destination == path)
        {
            out.push(Volume {
                source: path.clone().into(),
                destination: path,
                read_only,
            });
        }
    };
    if words.has("--hostauth") {
        // Where nothing can be read-only, the host's rights keep them.
        let read_only = !mode.mounts_nothing();
        same("/etc/passwd".into(), read_only);
        same("/etc/group".into(), read_only);
    }
    if words.has("--bindhome") {
        same(std::env::var("HOME").unwrap_or_default(), false);
    }
    for path in words.values("--novol") {
        let before = out.len();
        out.retain(|volume| volume.destination != path && volume.source != path);
        if out.len() == before {
            call.info(format!("Warning: --novol {path} not in volumes list"))?;
        }
    }
    Ok(out)
}

/// What the container listens on is open to the whole host.
fn note_ports(call: &Call, words: &Words, container: &Container) -> Result<()> {
    let ports = container.record.config["config"]["ExposedPorts"].as_object();
    let numbers = ports.into_iter().flatten().filter_map(|(port, _)| {
        let number = port
            .split_once('/')
            .map_or(port.as_str(), |(number, _)| number);
        number.parse::<u16>().ok()
    });
    let numbers: Vec<u16> = numbers.collect();
    if words.has("--nometa") || numbers.is_empty() {
        return Ok(());
    }
    if numbers.iter().any(|port| *port < 1024) {
        say!("Error: this container exposes privileged TCP/IP ports");
        return Ok(());
    }
    call.info("Warning: this container exposes TCP/IP ports")
}

fn banner(call: &Call, container: &Container, wishes: &Wishes) -> Result<()> {
    let config = container.image_config()?.config;
    let all = [
        wishes.entrypoint.as_ref().unwrap_or(&config.entrypoint),
        &wishes.command,
        &config.cmd,
    ];
    let word = all.into_iter().find_map(|words| words.first());
    let program = word.map_or("", |word| word.rsplit('/').next().unwrap_or(word));
    let sign = match container.record.mode {
        Mode::P1 | Mode::P2 => "*",
        Mode::F1 | Mode::F2 | Mode::F3 | Mode::F4 => "#",
        Mode::N | Mode::R1 => "%",
        Mode::S1 => "/",
    };
    let bar = sign.repeat(78);
    let center = |text: &str| {
        let edge = sign;
        format!("{edge}{text:^76}{edge}")
    };
    call.info(format!(
        " \n {bar}\n {}\n {}\n {}\n {bar}\n executing: {program}",
        center(""),
        center(&format!("STARTING {}", container.record.id)),
        center(""),
    ))
}

/// What is not the command's own doing has an exit code of its own.
fn set_up(error: Error) -> Error {
    match error.kind() {
        Kind::Child(
            rootless::engine::SETUP_FAILED
            | rootless::engine::CANNOT_EXECUTE
            | rootless::engine::NO_SUCH_PROGRAM,
        ) => Error::new(Kind::Child(SET_UP_FAILED), error.to_string()),
        Kind::Interrupted(_) | Kind::Closed | Kind::Child(_) => error,
        _ => Error::new(Kind::Child(SET_UP_FAILED), error.to_string()),
    }
}
