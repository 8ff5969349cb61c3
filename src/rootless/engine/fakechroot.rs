//! `fakechroot`: a library in every program of the container translates the names that it hands to the C
//! library. What goes past that, as programs without libraries do, is not confined, and not started.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::process::Pid;

use super::parent::is_at_terminal;
use super::root::HOST_FILES;
use super::signals::Forward;
use super::{NO_SUCH_PROGRAM, outer};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::rootless::container::{Container, Mode};
use crate::rootless::fake::{self, elf};
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
/// Of the host's, in every container.
const DIRECTORIES: [&str; 3] = ["/dev", "/proc", "/sys"];
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
    let Some(files) = container.files() else {
        fail!(Kind::Failed, "the container has no files of its own");
    };
    let library = library(&files)?;
    let links = volumes(process, &files)?;
    let mut command = command(container, process, &files, &library)?;
    let at_terminal = is_at_terminal();
    let forward = Forward::start(at_terminal)?;
    let turn = container.turn()?;
    container.sweep_traces()?;
    for (link, target) in &links {
        place(link, target)?;
    }
    let running = command
        .spawn()
        .context(|| format!("cannot run {}", process.args.join(" ")))?;
    let pid = running.id();
    container.add_holder(pid, None)?;
    drop(turn);
    forward.to(Pid::from_child(&running));
    let code = outer::wait_for(Pid::from_child(&running));
    container.remove_holder(pid)?;
    if container.holders()?.is_empty() {
        for (link, _) in &links {
            // Another run may have begun; then it makes its own again.
            let _ = std::fs::remove_file(link);
        }
    }
    code
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

/// The library, if it goes with the container's C library.
fn library(files: &Utf8Path) -> Result<Utf8PathBuf> {
    let Some(library) = find() else {
        fail!(
            Kind::NotFound,
            "libfakechroot.so is not installed: modes F1 to F4 are by it (FAKECHROOT_SO says where it is)"
        );
    };
    let read = |path: &Utf8Path| std::fs::read(path).context(|| format!("cannot read {path}"));
    let wants = elf::glibc(&read(&library)?);
    let loader = fake::loader(files)?;
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
    let has = elf::glibc(&read(&libc)?);
    if wants > has {
        let text = |version: Option<(u32, u32)>| {
            version.map_or_else(
                || "?".to_owned(),
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

/// Links by which directories of the host are seen, and where they lead.
fn volumes(process: &Process, files: &Utf8Path) -> Result<Vec<(Utf8PathBuf, Utf8PathBuf)>> {
    let mut out = Vec::new();
    for volume in &process.volumes {
        if volume.read_only {
            fail!(
                Kind::Refused,
                "modes F1 to F4 cannot make {} read-only: use mode N or R1",
                volume.destination
            );
        }
        if !volume.source.exists() {
            fail!(Kind::NotFound, "there is no {}", volume.source);
        }
        if volume.source == volume.destination.as_str() {
            continue;
        }
        let Some(link) = fake::resolve(files, &volume.destination) else {
            fail!(Kind::Invalid, "{} leads in circles", volume.destination);
        };
        out.push((link, volume.source.clone()));
    }
    Ok(out)
}

fn place(link: &Utf8Path, target: &Utf8Path) -> Result<()> {
    let failed = || format!("cannot make {link}");
    if link.read_link_utf8().is_ok_and(|there| there == target) {
        return Ok(());
    }
    if link.symlink_metadata().is_ok() {
        // An empty directory is what an image has where a volume goes.
        if std::fs::remove_dir(link).is_err() {
            fail!(
                Kind::Refused,
                "modes F1 to F4 cannot have a volume where the container has files of its own: {link}"
            );
        }
    } else if let Some(parent) = link.parent() {
        std::fs::create_dir_all(parent).context(failed)?;
    }
    std::os::unix::fs::symlink(target, link).context(failed)
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
    let cwd = fake::resolve(files, &process.cwd).filter(|_| process.cwd.starts_with('/'));
    let Some(cwd) = cwd else {
        fail!(
            Kind::Usage,
            "the working directory {} is not absolute",
            process.cwd
        );
    };
    if process.makes_cwd {
        std::fs::create_dir_all(&cwd).context(|| format!("cannot create {cwd}"))?;
    }
    if !cwd.is_dir() {
        fail!(
            Kind::NotFound,
            "the working directory {} is not there",
            process.cwd
        );
    }
    let loader = fake::loader(files)?;
    let (program, mut words) = program(process, files, &resolved.env)?;
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
    let named = elf::interpreter(&bytes).unwrap_or_default();
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
    let seen = DIRECTORIES.into_iter().chain(
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
fn program(
    process: &Process,
    files: &Utf8Path,
    env: &[String],
) -> Result<(Utf8PathBuf, Vec<String>)> {
    let words = process.args.clone();
    let word = words.first().cloned().unwrap_or_default();
    let path = env
        .iter()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or_default();
    let candidates: Vec<String> = if word.contains('/') {
        vec![Utf8Path::new(&process.cwd).join(&word).into_string()]
    } else {
        path.split(':')
            .map(|directory| format!("{directory}/{word}"))
            .collect()
    };
    let is_program = |path: &Utf8PathBuf| {
        path.is_file()
            && rustix::fs::access(path.as_std_path(), rustix::fs::Access::EXEC_OK).is_ok()
    };
    let found = candidates.into_iter().find_map(|inside| {
        let path = fake::resolve(files, &inside).filter(is_program)?;
        Some((inside, path))
    });
    let Some((inside, path)) = found else {
        return Err(Error::new(
            Kind::Child(NO_SUCH_PROGRAM),
            format!("command not found or has no execute bit set: {word}"),
        ));
    };
    let head = std::fs::read(&path).context(|| format!("cannot read {path}"))?;
    let Some(line) = head.strip_prefix(b"#!") else {
        return Ok((path, words));
    };
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line).trim().to_owned();
    let (interpreter, option) = match line.split_once(char::is_whitespace) {
        Some((interpreter, option)) => (interpreter.to_owned(), Some(option.trim().to_owned())),
        None => (line, None),
    };
    let Some(path) = fake::resolve(files, &interpreter).filter(is_program) else {
        fail!(
            Kind::Child(super::CANNOT_EXECUTE),
            "cannot execute {word}: there is no {interpreter}"
        );
    };
    let mut new = vec![interpreter];
    new.extend(option);
    new.push(inside);
    new.extend(words.into_iter().skip(1));
    Ok((path, new))
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
