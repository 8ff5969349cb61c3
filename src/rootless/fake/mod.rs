//! A container's files as `fakechroot` needs them, and back again.
//!
//! The host's kernel and loader read these files by names of the host: absolute links and names of loaders have
//! to be such, and places where libraries are looked for must not be. What is changed is undone bit for bit, also
//! after a kill, and also in what the container's own programs have copied, moved or linked meanwhile: a changed
//! link begins with the name of the root, and a changed program has in it all that it was ([`elf::restored`]).
//!
//! # Format
//! `fake/` in the container's directory: `state.json`, [`State`], is durable before anything is changed and goes
//! when all is undone; `loader` is the loader as it was, where that is changed; `new/` is on its way into the tree.

pub mod elf;
pub mod volumes;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use super::container::{Container, Mode};
use crate::error::{Context as _, Error, Kind, Result};
use crate::{fail, safefs};

/// The format of [`State`].
const FORMAT: u32 = 1;
/// Larger files are no programs.
const MAX_BYTES: u64 = 1 << 30;
/// More links than this lead in circles.
const MAX_LINKS: u32 = 40;
/// Directories of the host's in every container: links to what is in them stay.
pub const OF_HOST: [&str; 3] = ["/dev", "/proc", "/sys"];
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
    /// The loader, where that is changed.
    loader: Option<Utf8PathBuf>,
    /// Links that led out of the root by too many `..`: what they were and became.
    links: Vec<(Utf8PathBuf, String, String)>,
    /// Programs and libraries that look as if they were changed, and were not.
    odd: Vec<Utf8PathBuf>,
    /// All of it is done.
    done: bool,
}

/// Have a container's files be as its mode needs them; nothing of it may run.
pub fn ensure(container: &Container) -> Result<()> {
    let Some(files) = container.files() else {
        return Ok(());
    };
    volumes::sweep(container)?;
    let wanted = container.record.mode;
    if let Some(state) = read(container)? {
        // In F4 there may be new programs.
        if state.is(wanted, &files) && wanted != Mode::F4 {
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
    volumes::sweep(container)?;
    match (container.files(), read(container)?) {
        (Some(files), Some(state)) => restore(container, &files, &state),
        _ => Ok(()),
    }
}

/// Whether anything is changed, or was on the way.
pub fn is_changed(container: &Container) -> bool {
    directory(container).join("state.json").exists()
}

/// The files are what the container's mode needs, and the container what it was when that was prepared; its turn
/// must be held.
///
/// # Errors
/// [`Kind::Refused`] if not.
pub fn check_ready(container: &Container) -> Result<()> {
    container.check_unchanged()?;
    let mode = container.record.mode;
    let is_ready = match (mode.is_fake(), container.files(), read(container)?) {
        (true, Some(files), Some(state)) => state.is(mode, &files),
        (true, ..) => false,
        (false, _, state) => state.is_none(),
    };
    if !is_ready {
        fail!(
            Kind::Refused,
            "container {} is being set up: try again",
            container.record.id
        );
    }
    Ok(())
}

impl State {
    fn is(&self, mode: Mode, root: &Utf8Path) -> bool {
        self.done && self.mode == mode && self.root == root
    }
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
    let mut all = LOADERS.into_iter().filter_map(|name| resolve(files, name));
    // One that a link led to by a name of another kind of file is none.
    let found = all.find(|path| path.symlink_metadata().is_ok_and(|meta| meta.is_file()));
    found.ok_or_else(|| {
        Error::new(
            Kind::Refused,
            "the container's programs have no loader of the GNU C library: with musl, or without libraries at all, they \
             are not confined by fakechroot; use mode N, R1 or P2",
        )
    })
}

/// Where a path of the container is on the host: links are followed as the container's, whether they lead from
/// its root or, changed, from the host's. It stays below; nothing if it leads in circles, or is no text.
pub fn resolve(files: &Utf8Path, path: &str) -> Option<Utf8PathBuf> {
    let mut left = parts(path);
    left.reverse();
    let mut at: Vec<String> = Vec::new();
    let mut links = 0;
    while let Some(part) = left.pop() {
        if part == ".." {
            at.pop();
            continue;
        }
        at.push(part);
        let target = match files.join(at.join("/")).read_link_utf8() {
            Ok(target) => target,
            // No text.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => return None,
            // No link, or nothing at all.
            Err(_) => continue,
        };
        links += 1;
        if links > MAX_LINKS {
            return None;
        }
        at.pop();
        if target.is_absolute() {
            at.clear();
        }
        let inside = target.strip_prefix(files).unwrap_or(&target);
        left.extend(parts(inside.as_str()).into_iter().rev());
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
    safefs::make_private_dir(directory(container).as_std_path())?;
    let loader = loader(files)?;
    let mut state = State {
        format: FORMAT,
        mode,
        root: files.to_owned(),
        loader: (mode != Mode::F1).then(|| inside(files, &loader)),
        links: Vec::new(),
        odd: Vec::new(),
        done: false,
    };
    let (mut links, mut programs) = (Vec::new(), Vec::new());
    walk(files, &mut |path, meta| {
        if meta.is_symlink() {
            let target = path.read_link_utf8().kind(Kind::Refused, || {
                format!("{path} leads to what is no text: modes F1 to F4 cannot follow it")
            })?;
            if target.is_absolute() {
                if let Some(new) = moved(files, &target) {
                    links.push((path.to_owned(), new));
                }
            } else if leads_out(&inside(files, path), &target) {
                let new = format!("{files}/{}", normal(target.as_str()));
                links.push((path.to_owned(), new.clone()));
                state
                    .links
                    .push((inside(files, path), target.into_string(), new));
            }
        } else if matches!(mode, Mode::F3 | Mode::F4)
            && path != loader
            && let Some(bytes) = program(path, meta)?
        {
            if elf::looks_patched(&bytes) {
                state.odd.push(inside(files, path));
            } else {
                programs.push(path.to_owned());
            }
        }
        Ok(())
    })?;
    if state.loader.is_some() {
        let kept = directory(container).join("loader");
        let bytes = std::fs::read(&loader).context(|| format!("cannot read {loader}"))?;
        safefs::replace_file(kept.as_std_path(), &bytes, 0o600)?;
    }
    write(container, &state)?;
    let mut changes = Changes::new(container)?;
    for (path, new) in links {
        changes.link(&path, &new)?;
    }
    for path in programs {
        let bytes = std::fs::read(&path).context(|| format!("cannot read {path}"))?;
        let new = elf::patched(&bytes, |old| {
            let new = resolve(files, old)?;
            new.is_file().then(|| new.into_string())
        });
        if let Some(new) = new {
            changes.file(&path, &new)?;
        }
    }
    if state.loader.is_some() {
        let bytes = std::fs::read(&loader).context(|| format!("cannot read {loader}"))?;
        if let Some(new) = elf::closed_loader(&bytes) {
            changes.file(&loader, &new)?;
        }
    }
    changes.done()?;
    state.done = true;
    write(container, &state)
}

/// Undo it.
fn restore(container: &Container, files: &Utf8Path, state: &State) -> Result<()> {
    let root = state.root.as_str();
    let is_ours = |name: &str| Utf8Path::new(name).starts_with(root);
    let mut changes = Changes::new(container)?;
    walk(files, &mut |path, meta| {
        let name = inside(files, path);
        if meta.is_symlink() {
            let Ok(target) = path.read_link_utf8() else {
                return Ok(());
            };
            let mut known = state.links.iter();
            if let Some((_, old, _)) = known.find(|(link, _, new)| *link == name && target == *new)
            {
                changes.link(path, old)?;
            } else if let Some(rest) = target.as_str().strip_prefix(root)
                && (rest.is_empty() || rest.starts_with('/'))
            {
                changes.link(path, if rest.is_empty() { "/" } else { rest })?;
            }
        } else if !state.odd.contains(&name)
            && let Some(bytes) = program(path, meta)?
            && let Some(old) = elf::restored(&bytes, is_ours)
        {
            changes.file(path, &old)?;
        }
        Ok(())
    })?;
    if let Some(name) = &state.loader {
        let kept = directory(container).join("loader");
        let original = std::fs::read(&kept).context(|| format!("cannot read {kept}"))?;
        let path = files.join(name);
        // Unless another one was installed meanwhile.
        let is_there = path.symlink_metadata().is_ok_and(|meta| meta.is_file());
        if is_there && std::fs::read(&path).ok() == elf::closed_loader(&original) {
            changes.file(&path, &original)?;
        }
    }
    changes.done()?;
    safefs::remove_if_exists(directory(container).join("state.json").as_std_path())?;
    safefs::remove_tree(directory(container).as_std_path())
}

fn inside(files: &Utf8Path, path: &Utf8Path) -> Utf8PathBuf {
    path.strip_prefix(files).unwrap_or(path).to_owned()
}

/// Where an absolute link leads on the host; nothing if that is where it leads already.
fn moved(files: &Utf8Path, target: &Utf8Path) -> Option<String> {
    let normal = Utf8PathBuf::from(format!("/{}", normal(target.as_str())));
    let is_of_host = OF_HOST.iter().any(|of_host| normal.starts_with(of_host));
    (!is_of_host && !target.starts_with(files)).then(|| format!("{files}{target}"))
}

/// A path without `.` and `..`, from the root.
fn normal(path: &str) -> String {
    let mut out: Vec<String> = Vec::new();
    for part in parts(path) {
        if part == ".." {
            out.pop();
        } else {
            out.push(part);
        }
    }
    out.join("/")
}

/// Whether a relative link goes above the root.
fn leads_out(name: &Utf8Path, target: &Utf8Path) -> bool {
    let mut depth = name.as_str().matches('/').count();
    for part in parts(target.as_str()) {
        if part != ".." {
            depth += 1;
        } else if depth == 0 {
            return true;
        } else {
            depth -= 1;
        }
    }
    false
}

/// What is in a file, if it is a program or a library.
fn program(path: &Utf8Path, meta: &std::fs::Metadata) -> Result<Option<Vec<u8>>> {
    use std::io::Read as _;
    if !meta.is_file() || meta.len() > MAX_BYTES {
        return Ok(None);
    }
    let failed = || format!("cannot read {path}: \"rootless setup --fixperm\" gives it to you");
    let mut file = std::fs::File::open(path).context(failed)?;
    let mut bytes = vec![0; 4];
    match file.read_exact(&mut bytes) {
        Ok(()) if bytes == *b"\x7fELF" => {}
        Ok(()) => return Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error).context(failed),
    }
    file.read_to_end(&mut bytes).context(failed)?;
    Ok(Some(bytes))
}

/// What is to take the place of files and links: made aside, durable together, and then renamed one by one, so
/// that nobody sees half of any, also after a power cut.
struct Changes {
    directory: Utf8PathBuf,
    places: Vec<Utf8PathBuf>,
}

impl Changes {
    fn new(container: &Container) -> Result<Self> {
        let directory = directory(container).join("new");
        safefs::remove_tree(directory.as_std_path())?;
        safefs::make_private_dir(directory.as_std_path())?;
        Ok(Self {
            directory,
            places: Vec::new(),
        })
    }

    fn staged(&self, number: usize) -> Utf8PathBuf {
        self.directory.join(number.to_string())
    }

    fn link(&mut self, path: &Utf8Path, target: &str) -> Result<()> {
        std::os::unix::fs::symlink(target, self.staged(self.places.len()))
            .context(|| format!("cannot change the link {path}"))?;
        self.places.push(path.to_owned());
        Ok(())
    }

    fn file(&mut self, path: &Utf8Path, bytes: &[u8]) -> Result<()> {
        let failed = || format!("cannot change {path}");
        let meta = std::fs::symlink_metadata(path).context(failed)?;
        let staged = self.staged(self.places.len());
        std::fs::write(&staged, bytes).context(failed)?;
        let file = std::fs::File::open(&staged).context(failed)?;
        let times = std::fs::FileTimes::new()
            .set_accessed(meta.accessed().context(failed)?)
            .set_modified(meta.modified().context(failed)?);
        file.set_times(times).context(failed)?;
        let mode = std::fs::Permissions::from_mode(meta.mode() & 0o7777);
        file.set_permissions(mode).context(failed)?;
        self.places.push(path.to_owned());
        Ok(())
    }

    fn done(self) -> Result<()> {
        safefs::sync_file_system(self.directory.as_std_path())?;
        for (number, path) in self.places.iter().enumerate() {
            std::fs::rename(self.staged(number), path)
                .context(|| format!("cannot change {path}"))?;
        }
        safefs::sync_file_system(self.directory.as_std_path())
    }
}

/// Everything below a directory; links are not followed, and names that are no text passed over.
fn walk(
    directory: &Utf8Path,
    found: &mut dyn FnMut(&Utf8Path, &std::fs::Metadata) -> Result<()>,
) -> Result<()> {
    let failed =
        || format!("cannot list {directory}: \"rootless setup --fixperm\" gives it to you");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_root_whatever_leads_where() {
        let dir = tempfile::tempdir().unwrap();
        let files = Utf8Path::from_path(dir.path()).unwrap();
        std::fs::create_dir_all(files.join("usr/lib")).unwrap();
        let link = |target: &str, name: &str| {
            std::os::unix::fs::symlink(target, files.join(name)).unwrap();
        };
        link("usr/lib", "lib");
        link("/usr/lib", "absolute");
        link(&format!("{files}/usr/lib"), "changed");
        link("../../../../../etc", "out");
        link("circle", "circle");
        let at = |path: &str| resolve(files, path).map(|path| inside(files, &path).into_string());
        for (path, wanted) in [
            ("/lib/x", "usr/lib/x"),
            ("absolute/x", "usr/lib/x"),
            ("changed/../y", "usr/y"),
            ("out/passwd", "etc/passwd"),
            ("/../../no/such", "no/such"),
        ] {
            assert_eq!(at(path).as_deref(), Some(wanted), "{path}");
        }
        assert_eq!(at("circle/x"), None);
        assert!(leads_out("a/link".into(), "../../etc".into()));
        assert!(leads_out("a/b/link".into(), "../../etc/../..".into()));
        assert!(!leads_out("a/link".into(), "../b/./c".into()));
        assert_eq!(
            moved("/r".into(), "/dev/../etc/x".into()).as_deref(),
            Some("/r/dev/../etc/x")
        );
        assert_eq!(moved("/r".into(), "/proc/mounts".into()), None);
        assert_eq!(moved("/r".into(), "/r/etc".into()), None);
    }
}
