//! `fakechroot`: a library in every program of the container translates the names that it hands to the C
//! library. What goes past that, as programs without libraries do, is not confined, and not started.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};

use super::parent::is_at_terminal;
use super::root::HOST_FILES;
use super::{adopt, program};
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::rootless::container::{Container, Mode};
use crate::rootless::fake::{self, OF_HOST, elf};
use crate::rootless::process::Process;
use crate::safefs::Root;

/// Where the library is, by what Debian and others call it.
const LIBRARIES: [&str; 6] = [
    "/usr/lib/x86_64-linux-gnu/fakechroot/libfakechroot.so",
    "/usr/lib/aarch64-linux-gnu/fakechroot/libfakechroot.so",
    "/usr/lib64/fakechroot/libfakechroot.so",
    "/usr/lib/fakechroot/libfakechroot.so",
    "/usr/lib64/libfakechroot.so",
    "/usr/lib/libfakechroot.so",
];
/// Linux reads so much of a script to know who runs it.
const MAX_LINE: u64 = 256;
/// Where libraries are without anybody saying so.
const USUAL: [&str; 10] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/local/lib64",
];
/// Programs that must not run: the loader's lists are made for the host, and it has no libraries itself.
const NOT_RUN: &str = "/sbin/ldconfig=/bin/true:/usr/sbin/ldconfig=/bin/true";

/// Run a process on a container's own files and return its exit code.
///
/// # Errors
/// [`Kind::Refused`] for what would see the host.
pub fn run(container: &Container, process: &Process) -> Result<u8> {
    let command = |files: &Utf8Path| {
        let library = library(files)?;
        fake::volumes::make(container, files, &process.volumes)?;
        command(container, process, files, &library)
    };
    adopt::run(container, command, adopt::wait_for)
}

/// The library that is installed, or named.
pub fn find() -> Option<Utf8PathBuf> {
    let named = std::env::var("FAKECHROOT_SO").or_else(|_| std::env::var("UDOCKER_FAKECHROOT_SO"));
    match named.ok().filter(|named| !named.is_empty()) {
        Some(named) => Some(Utf8PathBuf::from(named)),
        None => LIBRARIES
            .into_iter()
            .map(Utf8PathBuf::from)
            .find(|path| path.exists()),
    }
}

/// The library, if it goes with the container's C library. One that does not is passed over by the loader, and
/// nothing is confined.
fn library(files: &Utf8Path) -> Result<Utf8PathBuf> {
    let Some(library) = find() else {
        fail!(
            Kind::NotFound,
            "libfakechroot.so is not installed: modes F1 to F4 are by it (FAKECHROOT_SO says where it is)"
        );
    };
    if library.as_str().contains([' ', ':']) || !library.is_absolute() {
        fail!(
            Kind::Usage,
            "{library}: the loader reads no such name of a library: absolute, without blanks and colons"
        );
    }
    let read = |path: &Utf8Path| std::fs::read(path).context(|| format!("cannot read {path}"));
    let bytes = read(&library)?;
    let loader = fake::loader(files)?;
    let ours = elf::machine(&read(&loader)?);
    if elf::machine(&bytes).is_none() || elf::machine(&bytes) != ours {
        fail!(
            Kind::Refused,
            "{library} is not a library for the container's processor: its programs would start without it, on the \
             host's files; use mode N, R1 or P2"
        );
    }
    let libc = loader.with_file_name("libc.so.6");
    let libc = if libc.exists() {
        Some(libc)
    } else {
        find_libc(files)
    };
    let Some(libc) = libc else {
        fail!(
            Kind::Refused,
            "the container has no GNU C library: use mode N, R1 or P2"
        );
    };
    let (wants, has) = (elf::glibc(&bytes), elf::glibc(&read(&libc)?));
    if wants.is_none() || wants > has {
        let text = |version: Option<(u32, u32)>| {
            version.map_or_else(
                || "none".to_owned(),
                |(major, minor)| format!("{major}.{minor}"),
            )
        };
        fail!(
            Kind::Refused,
            "{library} wants version {} of the GNU C library and the container has {}: its programs would start without \
             it, on the host's files; use mode N, R1 or P2, or name another by FAKECHROOT_SO",
            text(wants),
            text(has)
        );
    }
    Ok(library)
}

fn find_libc(files: &Utf8Path) -> Option<Utf8PathBuf> {
    let mut all = USUAL
        .iter()
        .map(|directory| format!("{directory}/libc.so.6"));
    all.find_map(|path| fake::resolve(files, &path).filter(|path| path.is_file()))
}

/// What is started: the program, by the loader or a script's interpreter where it needs one.
fn command(
    container: &Container,
    process: &Process,
    files: &Utf8Path,
    library: &Utf8Path,
) -> Result<Command> {
    let mode = container.record.mode;
    let resolved = process.resolve(&Root::open(files.as_std_path())?)?;
    let cwd = program::directory(process, files)?;
    let loader = fake::loader(files)?;
    let (program, mut words) = started(process, files, &resolved.env)?;
    let bytes = std::fs::read(&program).context(|| format!("cannot read {program}"))?;
    match elf::kind(&bytes) {
        elf::Kind::Dynamic => {}
        elf::Kind::Plain => fail!(
            Kind::Refused,
            "{} needs no libraries, and so fakechroot does not confine it: it would run on the host's files; use mode N, \
             R1 or P2",
            process.args.join(" ")
        ),
        elf::Kind::Other => fail!(
            Kind::Child(super::CANNOT_EXECUTE),
            "cannot execute {}",
            process.args.join(" ")
        ),
    }
    let of_loader = std::fs::read(&loader).context(|| format!("cannot read {loader}"))?;
    if elf::machine(&bytes) != elf::machine(&of_loader) {
        fail!(
            Kind::Refused,
            "{} is for another processor than the container's C library: fakechroot does not confine it",
            process.args.join(" ")
        );
    }
    let named = elf::interpreter(&bytes).unwrap_or_default();
    let named = Utf8Path::new(&named).file_name().unwrap_or_default();
    if named.contains("musl") {
        fail!(
            Kind::Refused,
            "programs with musl are not confined by fakechroot: use mode N, R1 or P2"
        );
    }
    let by_loader = matches!(mode, Mode::F1 | Mode::F2);
    let mut command = if by_loader {
        let mut command = Command::new(&loader);
        command.arg(&program);
        command
    } else {
        let mut command = Command::new(&program);
        if let Some(first) = words.first() {
            command.arg0(first);
        }
        command
    };
    if !words.is_empty() {
        words.remove(0);
    }
    command.args(words).current_dir(cwd).env_clear();
    command.envs(
        resolved
            .env
            .iter()
            .filter_map(|entry| entry.split_once('=')),
    );
    let seen = OF_HOST.into_iter().chain(
        HOST_FILES
            .into_iter()
            .filter(|path| Path::new(path).is_file()),
    );
    let mut seen: Vec<&str> = seen.collect();
    seen.extend(process.volumes.iter().map(|volume| volume.source.as_str()));
    command.env("FAKECHROOT_BASE", files);
    command.env("FAKECHROOT_EXCLUDE_PATH", seen.join(":"));
    command.env("FAKECHROOT_CMD_SUBST", NOT_RUN);
    command.env("FAKECHROOT_AF_UNIX_PATH", "/tmp");
    command.env("LD_PRELOAD", library);
    command.env("LD_LIBRARY_PATH", library_path(files));
    if by_loader {
        command.env("FAKECHROOT_ELFLOADER", &loader);
    }
    if !is_at_terminal() {
        command.process_group(0);
    }
    Ok(command)
}

/// The program as a file of the host, and its words: those of a script's interpreter if it is one.
fn started(
    process: &Process,
    files: &Utf8Path,
    env: &[String],
) -> Result<(Utf8PathBuf, Vec<String>)> {
    use std::io::Read as _;
    let found = program::find(process, files, env)?;
    let mut head = Vec::new();
    std::fs::File::open(&found.outside)
        .and_then(|file| file.take(MAX_LINE).read_to_end(&mut head))
        .context(|| format!("cannot read {}", found.outside))?;
    let Some(line) = head.strip_prefix(b"#!") else {
        return Ok((found.outside, process.args.clone()));
    };
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line).trim().to_owned();
    let (interpreter, option) = match line.split_once(char::is_whitespace) {
        Some((interpreter, option)) => (interpreter.to_owned(), Some(option.trim().to_owned())),
        None => (line, None),
    };
    let by = Process {
        args: vec![interpreter.clone()],
        ..process.clone()
    };
    let path = program::find(&by, files, env)?.outside;
    let mut words = vec![interpreter];
    words.extend(option);
    words.push(found.inside);
    words.extend(process.args.iter().skip(1).cloned());
    Ok((path, words))
}

/// Where the loader looks: places as names of the host.
fn library_path(files: &Utf8Path) -> String {
    let mut all: Vec<String> = USUAL.iter().map(|path| (*path).to_owned()).collect();
    let mut lists = vec!["/etc/ld.so.conf".to_owned()];
    if let Some(directory) = fake::resolve(files, "/etc/ld.so.conf.d") {
        let entries = directory.read_dir_utf8().into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .map(|entry| format!("/etc/ld.so.conf.d/{}", entry.file_name()))
            .collect();
        names.sort();
        lists.extend(names);
    }
    for list in lists {
        let path = fake::resolve(files, &list).filter(|path| path.is_file());
        let text = path
            .and_then(|path| std::fs::read_to_string(path).ok())
            .unwrap_or_default();
        let lines = text
            .lines()
            .map(str::trim)
            .filter(|line| line.starts_with('/'));
        all.extend(lines.map(str::to_owned));
    }
    let mut out: Vec<String> = Vec::new();
    for path in all {
        if let Some(path) = fake::resolve(files, &path).filter(|path| path.is_dir())
            && !out.iter().any(|known| known == path.as_str())
        {
            out.push(path.into_string());
        }
    }
    out.join(":")
}
