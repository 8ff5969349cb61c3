//! Files of a container's own, for modes that mount nothing.
//!
//! # Format
//! `ROOT/` in the container's directory: made once, a reflink of what it shared where
//! the file system can, a copy elsewhere, with what was written to it merged in. From then on every mode has
//! it for its root. All of it belongs to the person, and can be read and written by them; nothing is set-uid.

use std::process::Stdio;

use camino::{Utf8Path, Utf8PathBuf};

use super::container::Container;
use super::home::Home;
use super::tree::Tree;
use super::{create, run};
use crate::command::Child;
use crate::config::Config;
use crate::error::{Context as _, Kind, Result};
use crate::runtime::userns::Mapping;
use crate::safefs::Lock;
use crate::{fail, safefs};

/// What everything is given, and what is taken.
const MODES: &str = "u+rwX,ug-s";

/// Make them, if they are not there yet.
///
/// # Errors
/// [`Kind::Refused`] if the container runs.
pub fn make(config: &Config, container: &mut Container) -> Result<()> {
    let mut held = create::stopped(container)?;
    *container = container.reloaded()?;
    if !container.record.own_files {
        let staged = staged(container);
        safefs::remove_tree(staged.as_std_path())?;
        if is_empty(&container.path.join("upper"))? {
            let tree = Tree::of(&Home::of(config), &container.record.tree);
            copy(&tree.checkout(), &staged)?;
        } else {
            merge(config, container, &staged, held)?;
            held = create::stopped(container)?;
            container.check_unchanged()?;
        }
        open(&staged)?;
        safefs::sync_file_system(staged.as_std_path())?;
        container.record.own_files = true;
        container.save()?;
    }
    finish(container)?;
    drop(held);
    Ok(())
}

/// Put them where they belong, which a kill may have left undone; the container's turn must be held.
///
/// # Errors
/// [`Kind::Exists`] if somebody has put other files there.
pub fn finish(container: &Container) -> Result<()> {
    let (staged, root) = (staged(container), container.root());
    if !container.record.own_files || !staged.is_dir() {
        return Ok(());
    }
    if !is_empty(&root)? {
        fail!(
            Kind::Exists,
            "{root} has files that are not the container's: move them away"
        );
    }
    safefs::rename(staged.as_std_path(), root.as_std_path())?;
    // What was written is in them.
    let upper = container.path.join("upper");
    if upper.is_dir() && is_empty(&upper)? {
        return Ok(());
    }
    Mapping::of_user().remove_tree(&upper)?;
    create::make_upper(&upper)
}

fn staged(container: &Container) -> Utf8PathBuf {
    container.path.join(".ROOT.new")
}

fn is_empty(path: &Utf8Path) -> Result<bool> {
    let mut entries = path
        .read_dir_utf8()
        .context(|| format!("cannot list {path}"))?;
    Ok(entries.next().is_none())
}

/// Copy what is shared. Files of the same content are one there and must not become one here.
pub(super) fn copy(from: &Utf8Path, to: &Utf8Path) -> Result<()> {
    let words = [
        "--no-dereference",
        "--recursive",
        "--preserve=mode,timestamps",
        "--reflink=auto",
        "--",
    ];
    let child = Child::new("cp").args(words);
    child.args([from.as_str(), to.as_str()]).run().map(|_| ())
}

/// Write what the container sees, whoever owns what there.
fn merge(config: &Config, container: &Container, to: &Utf8Path, held: Lock) -> Result<()> {
    safefs::make_private_dir(to.as_std_path())?;
    let failed = || "cannot unpack the container's files".into();
    let mut unpack = Child::new("tar")
        .args(["--extract", "--no-same-owner", "--preserve-permissions"])
        .args(["--delay-directory-restore", "--directory", to.as_str()])
        .into_command()
        .stdin(Stdio::piped())
        .spawn()
        .context(failed)?;
    let Some(stdin) = unpack.stdin.take() else {
        fail!(Kind::Failed, "{}", failed());
    };
    let packed = run::export_held(config, container, stdin.into(), held, None);
    let unpacked = unpack.wait().context(failed)?;
    packed?;
    if !unpacked.success() {
        fail!(Kind::Failed, "{}", failed());
    }
    Ok(())
}

/// Have all of them belong to the person again, and be readable and writable: what ran in another mode may have
/// given them to others.
pub fn fix(files: &Utf8Path) -> Result<()> {
    let mapping = Mapping::of_user();
    if mapping.has_range() {
        let words = ["--recursive", "--no-dereference", "0:0", "--"];
        let words: Vec<&str> = words.into_iter().chain([files.as_str()]).collect();
        mapping.run_as_root("chown", &words, &[])?;
    }
    open(files)
}

/// Have all of the person's files be readable and writable by them.
pub(super) fn open(files: &Utf8Path) -> Result<()> {
    let words = ["--recursive", MODES, "--", files.as_str()];
    Child::new("chmod").args(words).run().map(|_| ())
}
