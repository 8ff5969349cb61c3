//! Commands on containers.

use std::process::Stdio;

use camino::Utf8Path;

use super::grammar::{Opt, Takes, Words};
use super::{Call, Code, archives, failed, images};
use crate::error::{Context as _, Error, Kind, Result};
use crate::rootless::{self, Container, Mode, Name, create, files};
use crate::safefs;
use crate::store::Store;

pub const CREATE: [Opt; 5] = [
    (&["--name"], Takes::Value),
    (&["--force"], Takes::Nothing),
    (&["--platform"], Takes::Value),
    (&["--registry"], Takes::Value),
    (&["--index"], Takes::Value),
];
pub const PS: [Opt; 3] = [
    (&["-m"], Takes::Nothing),
    (&["-s"], Takes::Nothing),
    (&["-p"], Takes::Nothing),
];
pub const REMOVE: [Opt; 1] = [(&["-f", "--force"], Takes::Nothing)];
pub const CLONE: [Opt; 1] = [(&["--name"], Takes::Value)];
pub const EXPORT: [Opt; 2] = [
    (&["-o", "--output"], Takes::Value),
    (&["--clone"], Takes::Nothing),
];
pub const SETUP: [Opt; 5] = [
    (&["--execmode"], Takes::Value),
    (&["--force"], Takes::Nothing),
    (&["--purge"], Takes::Nothing),
    (&["--fixperm"], Takes::Nothing),
    (&["--nvidia"], Takes::Nothing),
];

pub fn create(call: &mut Call, words: &Words) -> Code {
    let Some(spec) = words.one() else {
        return failed("create container: imagerepo is invalid");
    };
    let name = match words.value("--name").map(parse_name).transpose() {
        Ok(name) => name,
        Err(error) => return failed(&error.to_string()),
    };
    if let Some(name) = &name
        && call.home().id_of(name).is_some()
        && !words.has("--force")
    {
        return failed("container name already exists");
    }
    let store = Store::open(&call.config)?;
    let Some(image) = images::stored(&store, spec, words)? else {
        return failed("create container: getting layers or json");
    };
    let made = create::create(
        &call.config,
        &store,
        &create::Create {
            image: &image,
            name: name.as_ref(),
            force: words.has("--force"),
            mode: call.mode(words)?,
        },
    )?;
    call.result(made.record.id)?;
    Ok(0)
}

pub fn parse_name(text: &str) -> Result<Name> {
    text.parse()
        .map_err(|_| Error::new(Kind::Child(1), "invalid container name or wrong format"))
}

/// Files and megabytes, as `du` counts them.
fn megabytes(container: &Container) -> String {
    let mut bytes = 0;
    for directory in ["ROOT", "upper"] {
        bytes += size_of(&container.path.join(directory));
    }
    (bytes / 1_000_000).to_string()
}

fn size_of(path: &Utf8Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    for entry in path.read_dir_utf8().into_iter().flatten().flatten() {
        // What belongs to the container's users cannot be looked into.
        let Ok(meta) = entry.path().symlink_metadata() else {
            continue;
        };
        bytes += meta.blocks() * 512;
        if meta.is_dir() {
            bytes += size_of(entry.path());
        }
    }
    bytes
}

pub fn list(call: &mut Call, words: &Words) -> Code {
    if !words.rest.is_empty() {
        return super::syntax(&words.rest);
    }
    let shows = |option: &str, text: String| {
        if words.has(option) {
            text
        } else {
            String::new()
        }
    };
    let row = |id: &str,
               protected: &str,
               writable: &str,
               mode: &str,
               size: &str,
               platform: &str,
               names: &str,
               image: &str| {
        format!(
            "{id:<36.36} {protected:.1} {writable:.1} {}{}{}{names:<18.100} {image:<20.100}",
            shows("-m", format!("{mode:>3.3} ")),
            shows("-s", format!("{size:>5.5} ")),
            shows("-p", format!("{platform:<18.18} ")),
        )
    };
    call.info(
        row(
            "CONTAINER ID",
            "P",
            "M",
            "MOD",
            "SIZE",
            "PLATFORM",
            "NAMES",
            "IMAGE",
        )
        .trim_end(),
    )?;
    let home = call.home();
    for container in home.list()? {
        let record = &container.record;
        let names: Vec<String> = home
            .names_of(&record.id)?
            .iter()
            .map(|name| format!("'{name}'"))
            .collect();
        let is_writable =
            rustix::fs::access(container.root().as_std_path(), rustix::fs::Access::WRITE_OK)
                .is_ok();
        let line = row(
            &record.id,
            if record.protected { "P" } else { "." },
            if is_writable { "W" } else { "R" },
            &record.mode.to_string(),
            &shows("-s", megabytes(&container)),
            &record.platform,
            &format!("[{}]", names.join(", ")),
            &images::familiar(&record.image),
        );
        call.result(line.trim_end())?;
    }
    Ok(0)
}

pub fn remove(call: &mut Call, words: &Words) -> Code {
    if words.rest.is_empty() {
        return failed("must specify image:tag or repository/image:tag");
    }
    let mut code = 0;
    for text in &words.rest {
        let removed = match call.container(text)? {
            None => Err("invalid container id".to_owned()),
            Some(container) if container.record.protected => {
                Err("container is protected".to_owned())
            }
            Some(container) => {
                call.info(format!("Info: deleting container: {}", container.record.id))?;
                create::remove(&call.config, &container)
                    .map_err(|error| format!("deleting container: {error}"))
            }
        };
        if let Err(why) = removed {
            code = failed(&why)?;
        }
    }
    Ok(code)
}

pub fn name(call: &mut Call, words: &Words) -> Code {
    let [container, name] = words.rest.as_slice() else {
        return failed("invalid container id or name");
    };
    let home = call.home();
    let _turn = home.turn()?;
    let (Some(container), Ok(name)) = (call.container(container)?, name.parse::<Name>()) else {
        return failed("invalid container id or name");
    };
    match home.add_name(&container.record.id, &name) {
        Ok(()) => Ok(0),
        Err(_) => failed("invalid container id or name"),
    }
}

pub fn remove_name(call: &mut Call, words: &Words) -> Code {
    let Some(Ok(name)) = words.one().map(str::parse::<Name>) else {
        return failed("invalid container name");
    };
    let home = call.home();
    let _turn = home.turn()?;
    if home.remove_name(&name).is_err() {
        return failed("removing container name");
    }
    call.info(format!("Info: container name: {name} removed."))?;
    Ok(0)
}

pub fn rename(call: &mut Call, words: &Words) -> Code {
    let [old, new] = words.rest.as_slice() else {
        return failed("invalid container name");
    };
    let (Ok(old), Ok(new)) = (old.parse::<Name>(), new.parse::<Name>()) else {
        return failed("invalid container name");
    };
    let home = call.home();
    let _turn = home.turn()?;
    let Some(id) = home.id_of(&old) else {
        return failed("container does not exist");
    };
    if home.id_of(&new).is_some() {
        return failed("new name already exists");
    }
    home.add_name(&id, &new)?;
    home.remove_name(&old)?;
    Ok(0)
}

pub fn protect(call: &mut Call, words: &Words, protected: bool) -> Code {
    let Some(text) = words.one() else {
        return failed("must specify image:tag or repository/image:tag");
    };
    let Some(mut container) = call.container(text)? else {
        return images::protect(call, text, protected);
    };
    let _turn = call.home().turn()?;
    container = container.reloaded()?;
    container.record.protected = protected;
    container.save()?;
    Ok(0)
}

/// The container that is the one thing the words are about.
fn named(call: &Call, words: &Words) -> Result<Option<Container>> {
    match words.one() {
        Some(text) => call.container(text),
        None => Ok(None),
    }
}

pub fn clone(call: &mut Call, words: &Words) -> Code {
    let Some(container) = named(call, words)? else {
        return failed("invalid container id");
    };
    let name = words.value("--name").map(parse_name).transpose()?;
    if let Some(name) = &name
        && call.home().id_of(name).is_some()
    {
        return failed("container name already exists");
    }
    let made = create::clone(&call.config, &container, name.as_ref())?;
    call.result(made.record.id)?;
    Ok(0)
}

pub fn export(call: &mut Call, words: &Words) -> Code {
    let Some(container) = named(call, words)? else {
        return failed("invalid container id");
    };
    let output = words
        .value("--output")
        .or_else(|| words.value("-o"))
        .filter(|path| *path != "-");
    let is_clone = words.has("--clone");
    let Some(path) = output else {
        return write(
            call,
            &container,
            is_clone,
            std::io::stdout(),
            Stdio::inherit(),
        );
    };
    call.info(format!("Info: exporting to file {path}"))?;
    let staged = format!("{path}.{}.part", std::process::id());
    let file = std::fs::File::create_new(&staged)
        .context(|| format!("exporting: cannot create {staged}"))?;
    let written = file
        .try_clone()
        .context(|| format!("exporting: cannot write {staged}"))
        .and_then(|out| write(call, &container, is_clone, out, file.into()))
        .and_then(|_| safefs::rename(staged.as_ref(), path.as_ref()));
    if let Err(error) = written {
        safefs::remove_if_exists(staged.as_ref())?;
        return failed(&format!("exporting: {error}"));
    }
    Ok(0)
}

/// Write a container's files, or with them what udocker has beside them: then they are in a directory.
fn write(
    call: &Call,
    container: &Container,
    is_clone: bool,
    mut out: impl std::io::Write,
    to: Stdio,
) -> Code {
    let failed = || "exporting: cannot write the archive".into();
    if is_clone {
        let record = &container.record;
        for (name, text) in [
            ("container.json", record.config.to_string()),
            ("imagerepo.name", record.image.clone()),
            ("execmode", record.mode.to_string()),
        ] {
            out.write_all(&archives::small_file(name, text.as_bytes()))
                .context(failed)?;
        }
        out.flush().context(failed)?;
    }
    let below = is_clone.then_some(archives::ROOT);
    rootless::export(&call.config, container, to, below)?;
    Ok(0)
}

pub fn setup(call: &mut Call, words: &Words) -> Code {
    let home = call.home();
    let _turn = home.turn()?;
    let Some(mut container) = named(call, words)? else {
        return failed("invalid container id");
    };
    if container.record.protected {
        return failed("container is protected");
    }
    if words.has("--nvidia")
        && let Err(error) = rootless::set_nvidia(&mut container, true)
    {
        return failed(&error.to_string());
    }
    if words.has("--fixperm") {
        let _still = create::stopped(&container)?;
        files::fix(&container.written())?;
    }
    let Some(mode) = words.value("--execmode") else {
        if words.options.is_empty() {
            call.result(format!("execmode: {}", container.record.mode))?;
            let sees = if container.record.nvidia {
                "True"
            } else {
                "False"
            };
            call.result(format!("nvidiamode: {sees}"))?;
        }
        return Ok(0);
    };
    let mode = match mode.parse::<Mode>() {
        Ok(mode) => mode,
        Err(error) => return failed(&format!("invalid execmode: {mode}: {error}")),
    };
    if let Err(error) = rootless::set_mode(&call.config, &mut container, mode) {
        return failed(&format!("container setup failed: {error}"));
    }
    Ok(0)
}
