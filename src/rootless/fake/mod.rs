//! A container's files as `fakechroot` needs them, and back again.
//!
//! The host's kernel and loader read these files by names of the host: absolute links, names of loaders and
//! places of libraries have to be such. What is changed can be undone, bit for bit, also after a kill.
//!
//! # Format
//! `fake/` in the container's directory: `state.json`, [`State`], is durable before anything is changed;
//! `originals/N` is the file that was at the place which the state has as number N, once another one is there.
//! What is there now is known by changing the original once more: whatever differs has been written by the
//! container since, and stays.

pub mod elf;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use super::container::{Container, Mode};
use crate::error::{Context as _, Kind, Result};
use crate::{fail, safefs};

/// The format of [`State`].
const FORMAT: u32 = 1;
/// Larger files are no programs.
const MAX_BYTES: u64 = 1 << 30;
/// Of the host's in every container: links there stay.
const OF_HOST: [&str; 3] = ["/dev", "/proc", "/sys"];
/// Where programs say their loader is.
const LOADERS: [&str; 5] = [
    "lib64/ld-linux-x86-64.so.2",
    "lib/ld-linux-aarch64.so.1",
    "lib64/ld64.so.2",
    "lib/ld-linux-armhf.so.3",
    "lib/ld-linux.so.2",
];

/// What was changed for which mode.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    format: u32,
    mode: Mode,
    /// Where the files were then.
    root: Utf8PathBuf,
    /// Links, and where they led.
    links: Vec<(Utf8PathBuf, String)>,
    /// Programs and libraries, by number.
    files: Vec<Utf8PathBuf>,
    /// All of it is done.
    done: bool,
}

/// Have a container's files be as its mode needs them; nothing of it may run.
pub fn ensure(container: &Container) -> Result<()> {
    let Some(files) = container.files() else {
        return Ok(());
    };
    let wanted = container.record.mode;
    if let Some(state) = read(container)? {
        // In F4 there may be new programs.
        let is_so = state.done && state.mode == wanted && state.root == files;
        if is_so && wanted != Mode::F4 {
            return Ok(());
        }
        restore(container, &files, &state)?;
    }
    if wanted.is_fake() {
        change(container, &files, wanted)?;
    }
    Ok(())
}

/// Have a container's files be what they were; nothing of it may run.
pub fn undo(container: &Container) -> Result<()> {
    match (container.files(), read(container)?) {
        (Some(files), Some(state)) => restore(container, &files, &state),
        _ => Ok(()),
    }
}

/// Whether anything is changed, or was on the way.
pub fn is_changed(container: &Container) -> bool {
    directory(container).join("state.json").exists()
}

fn directory(container: &Container) -> Utf8PathBuf {
    container.path.join("fake")
}

fn read(container: &Container) -> Result<Option<State>> {
    let path = directory(container).join("state.json");
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context(|| format!("cannot read {path}")),
    };
    let state: State =
        serde_json::from_slice(&text).kind(Kind::Invalid, || format!("{path} is damaged"))?;
    if state.format > FORMAT {
        fail!(
            Kind::Invalid,
            "{path} is of a later version of this program"
        );
    }
    Ok(Some(state))
}

fn write(container: &Container, state: &State) -> Result<()> {
    let path = directory(container).join("state.json");
    let text = serde_json::to_vec(state).context(|| format!("cannot write {path}"))?;
    safefs::replace_file(path.as_std_path(), &text, 0o600)
}

/// The loader of a container's programs, as a name of the host.
///
/// # Errors
/// [`Kind::Refused`] where there is none that `fakechroot` can do with.
pub fn loader(files: &Utf8Path) -> Result<Utf8PathBuf> {
    let root = safefs::Root::open(files.as_std_path())?;
    for name in LOADERS {
        // By way of links, which may be changed already.
        if let Some(path) = resolve(files, name)
            && safefs::Files::stat(&root, path.strip_prefix(files).unwrap_or(&path).as_str())?
                .is_some_and(|stat| !stat.is_dir)
        {
            return Ok(path);
        }
    }
    fail!(
        Kind::Refused,
        "the container's programs have no loader of the GNU C library: with musl, or without libraries at all, they are \
         not confined by fakechroot; use mode N, R1 or P2"
    )
}

/// Where a path of the container is on the host: links are followed as the container's, whether they lead from
/// its root or, changed, from the host's. It stays below.
pub fn resolve(files: &Utf8Path, path: &str) -> Option<Utf8PathBuf> {
    let mut left: Vec<String> = parts(path);
    let mut at: Vec<String> = Vec::new();
    let mut links = 0;
    left.reverse();
    while let Some(part) = left.pop() {
        if part == ".." {
            at.pop();
            continue;
        }
        at.push(part);
        let here = files.join(at.join("/"));
        let Ok(target) = here.read_link_utf8() else {
            continue;
        };
        links += 1;
        if links > 40 {
            return None;
        }
        at.pop();
        let inside = target.strip_prefix(files).ok();
        if target.is_absolute() {
            at.clear();
        }
        let rest = parts(inside.unwrap_or(&target).as_str());
        left.extend(rest.into_iter().rev());
    }
    Some(files.join(at.join("/")))
}

fn parts(path: &str) -> Vec<String> {
    let words = path
        .split('/')
        .filter(|word| !word.is_empty() && *word != ".");
    words.map(str::to_owned).collect()
}

fn change(container: &Container, files: &Utf8Path, mode: Mode) -> Result<()> {
    let directory = directory(container);
    safefs::make_private_dir(directory.as_std_path())?;
    safefs::make_private_dir(directory.join("originals").as_std_path())?;
    let loader = loader(files)?;
    let mut state = State {
        format: FORMAT,
        mode,
        root: files.to_owned(),
        links: Vec::new(),
        files: Vec::new(),
        done: false,
    };
    // The loader itself comes first: it is what the others are given.
    if mode != Mode::F1 {
        state.files.push(inside(files, &loader));
    }
    walk(files, &mut |path, meta| {
        let name = inside(files, path);
        if meta.is_symlink() {
            if let Ok(target) = path.read_link_utf8()
                && target.is_absolute()
                && !OF_HOST.iter().any(|of_host| target.starts_with(of_host))
            {
                state.links.push((name, target.into_string()));
            }
        } else if matches!(mode, Mode::F3 | Mode::F4)
            && meta.is_file()
            && meta.len() <= MAX_BYTES
            && path != loader
            && begins_like_a_program(path)
        {
            state.files.push(name);
        }
        Ok(())
    })?;
    write(container, &state)?;
    for (name, target) in &state.links {
        replace_link(files, name, &moved(files, target))?;
    }
    for (number, name) in state.files.iter().enumerate() {
        change_file(container, files, number, name)?;
    }
    safefs::sync_file_system(files.as_std_path())?;
    state.done = true;
    write(container, &state)
}

fn inside(files: &Utf8Path, path: &Utf8Path) -> Utf8PathBuf {
    path.strip_prefix(files).unwrap_or(path).to_owned()
}

/// Where a link leads on the host.
fn moved(files: &Utf8Path, target: &str) -> String {
    format!("{files}{target}")
}

fn begins_like_a_program(path: &Utf8Path) -> bool {
    use std::io::Read as _;
    let mut head = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut head));
    read.is_ok() && head == *b"\x7fELF"
}

/// What a file becomes; nothing if it stays.
fn changed(files: &Utf8Path, number: usize, bytes: &[u8]) -> Option<Vec<u8>> {
    if number == 0 {
        return elf::closed_loader(bytes);
    }
    elf::patched(bytes, |old| {
        let new = resolve(files, old)?;
        new.is_file().then(|| new.into_string())
    })
}

fn change_file(
    container: &Container,
    files: &Utf8Path,
    number: usize,
    name: &Utf8Path,
) -> Result<()> {
    let path = files.join(name);
    let failed = || format!("cannot change {path}");
    let bytes = std::fs::read(&path).context(failed)?;
    let Some(new) = changed(files, number, &bytes) else {
        return Ok(());
    };
    let meta = std::fs::symlink_metadata(&path).context(failed)?;
    let kept = directory(container)
        .join("originals")
        .join(number.to_string());
    let staged = directory(container).join("new");
    safefs::remove_if_exists(staged.as_std_path())?;
    std::fs::write(&staged, new).context(failed)?;
    let mode = std::fs::Permissions::from_mode(meta.mode() & 0o7777);
    std::fs::set_permissions(&staged, mode).context(failed)?;
    let times = std::fs::FileTimes::new()
        .set_accessed(meta.accessed().context(failed)?)
        .set_modified(meta.modified().context(failed)?);
    let file = std::fs::File::open(&staged).context(failed)?;
    file.set_times(times).context(failed)?;
    // First there are two names of the original, then one of them is the changed one's.
    std::fs::hard_link(&path, &kept).context(failed)?;
    std::fs::rename(&staged, &path).context(failed)
}

/// Undo it.
fn restore(container: &Container, files: &Utf8Path, state: &State) -> Result<()> {
    let originals = directory(container).join("originals");
    for (number, name) in state.files.iter().enumerate().rev() {
        let kept = originals.join(number.to_string());
        let Ok(original) = std::fs::read(&kept) else {
            continue;
        };
        let path = files.join(name);
        let failed = || format!("cannot change {path} back");
        // With the loaders that the files had then, wherever they are now.
        let ours = changed_at(files, &state.root, number, &original);
        let now = match std::fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_file() => std::fs::read(&path).ok(),
            _ => None,
        };
        if now.is_some() && now == ours {
            std::fs::rename(&kept, &path).context(failed)?;
        }
        // The same file twice, or one that was replaced meanwhile.
        safefs::remove_if_exists(kept.as_std_path())?;
    }
    for (name, target) in &state.links {
        let now = files.join(name).read_link_utf8();
        if now.is_ok_and(|now| now == moved(&state.root, target)) {
            replace_link(files, name, target)?;
        }
    }
    safefs::sync_file_system(files.as_std_path())?;
    safefs::remove_if_exists(directory(container).join("state.json").as_std_path())?;
    safefs::remove_tree(directory(container).as_std_path())
}

/// What a file became when the files were elsewhere.
fn changed_at(files: &Utf8Path, then: &Utf8Path, number: usize, bytes: &[u8]) -> Option<Vec<u8>> {
    if number == 0 || files == then {
        return changed(files, number, bytes);
    }
    elf::patched(bytes, |old| {
        let new = resolve(files, old)?;
        let inside = new.strip_prefix(files).ok()?;
        new.is_file().then(|| then.join(inside).into_string())
    })
}

fn replace_link(files: &Utf8Path, name: &Utf8Path, target: &str) -> Result<()> {
    let path = files.join(name);
    let failed = || format!("cannot change the link {path}");
    let staged = path.with_file_name(format!(".{}.atomic-rs", path.file_name().unwrap_or("link")));
    safefs::remove_if_exists(staged.as_std_path())?;
    std::os::unix::fs::symlink(target, &staged).context(failed)?;
    std::fs::rename(&staged, &path).context(failed)
}

/// Everything below a directory; links are not followed, and names that are no text passed over.
fn walk(
    directory: &Utf8Path,
    found: &mut dyn FnMut(&Utf8Path, &std::fs::Metadata) -> Result<()>,
) -> Result<()> {
    let failed = || format!("cannot list {directory}");
    for entry in std::fs::read_dir(directory).context(failed)? {
        let entry = entry.context(failed)?;
        let Ok(path) = Utf8PathBuf::from_path_buf(entry.path()) else {
            continue;
        };
        let meta = entry.metadata().context(failed)?;
        if meta.is_dir() {
            walk(&path, found)?;
        } else {
            found(&path, &meta)?;
        }
    }
    Ok(())
}
