//! The program that a word means, found from outside: for engines that start it with names of the host.

use camino::{Utf8Path, Utf8PathBuf};

use super::{CANNOT_EXECUTE, NO_SUCH_PROGRAM};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::rootless::fake::resolve;
use crate::rootless::process::Process;

/// A program: its absolute path in the container, and where that is on the host.
#[derive(Debug, Clone)]
pub struct Program {
    pub inside: String,
    pub outside: Utf8PathBuf,
}

/// Where a path of the container is on the host; below a volume that is the volume's.
pub fn outside(process: &Process, files: &Utf8Path, path: &str) -> Option<Utf8PathBuf> {
    let volumes = process.volumes.iter();
    let below = volumes.filter_map(|volume| {
        let rest = Utf8Path::new(path).strip_prefix(&volume.destination).ok()?;
        let depth = volume.destination.len();
        // A file that is bound has nothing below it.
        let at = if rest.as_str().is_empty() {
            volume.source.clone()
        } else {
            volume.source.join(rest)
        };
        Some((depth, at))
    });
    match below.max_by_key(|(depth, _)| *depth) {
        Some((_, at)) => Some(at),
        None => resolve(files, path),
    }
}

/// Find the first of a process's words.
///
/// # Errors
/// [`Kind::Child`] with the exit codes of shells if there is none, or it may not be executed.
pub fn find(process: &Process, files: &Utf8Path, env: &[String]) -> Result<Program> {
    let Some(word) = process.args.first() else {
        fail!(Kind::Usage, "there is no program");
    };
    let path = env.iter().find_map(|entry| entry.strip_prefix("PATH="));
    let directories: Vec<&str> = if word.contains('/') {
        vec![""]
    } else {
        path.unwrap_or_default().split(':').collect()
    };
    let mut code = NO_SUCH_PROGRAM;
    for directory in directories {
        let inside = Utf8Path::new(&process.cwd)
            .join(directory)
            .join(word)
            .into_string();
        if let Some(outside) = outside(process, files, &inside).filter(|path| path.is_file()) {
            let may = rustix::fs::access(outside.as_std_path(), rustix::fs::Access::EXEC_OK);
            if may.is_ok() {
                return Ok(Program { inside, outside });
            }
            code = CANNOT_EXECUTE;
        }
    }
    Err(Error::new(
        Kind::Child(code),
        format!("command not found or has no execute bit set: {word}"),
    ))
}

/// The directory that a process starts in, on the host.
///
/// # Errors
/// [`Kind::NotFound`] if there is none.
pub fn directory(process: &Process, files: &Utf8Path) -> Result<Utf8PathBuf> {
    let cwd = &process.cwd;
    if !cwd.starts_with('/') {
        fail!(Kind::Usage, "the working directory {cwd} is not absolute");
    }
    let Some(path) = outside(process, files, cwd) else {
        fail!(
            Kind::Invalid,
            "the working directory {cwd} leads in circles"
        );
    };
    if process.makes_cwd && !path.exists() {
        std::fs::create_dir_all(&path)
            .context(|| format!("cannot create the working directory {cwd}"))?;
    }
    if !path.is_dir() {
        fail!(Kind::NotFound, "the working directory {cwd} is not there");
    }
    Ok(path)
}
