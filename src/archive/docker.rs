//! The form of `docker save`, unpacked, as others than this program read it.

use camino::Utf8Path;

use super::read_json;
use crate::command::Child;
use crate::config::Config;
use crate::error::{Context as _, Kind, Result};
use crate::{fail, safefs, transport};

const MAX_JSON_BYTES: u64 = 8 * 1024 * 1024;

/// # Errors
/// [`Kind::Exists`] if a directory is there and not empty.
pub fn check_empty(directory: &Utf8Path) -> Result<()> {
    match directory.read_dir_utf8() {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => fail!(Kind::Exists, "Directory {directory} is not empty"),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).context(|| format!("cannot list {directory}")),
    }
}

/// Write the image of a layout of ours in that form to `directory`, which is not there or empty.
pub fn unpack_docker(config: &Config, layout: &Utf8Path, directory: &Utf8Path) -> Result<()> {
    check_empty(directory)?;
    let directory = &camino::absolute_utf8(directory).context(|| directory.to_string())?;
    let parent = directory.parent().unwrap_or(directory);
    std::fs::create_dir_all(parent).context(|| format!("cannot create {parent}"))?;
    let failed = || format!("cannot create a directory in {parent}");
    let scratch = tempfile::Builder::new()
        .prefix(".atomic-rs-")
        .tempdir_in(parent);
    let scratch = scratch.context(failed)?;
    let Some(path) = Utf8Path::from_path(scratch.path()) else {
        fail!(Kind::Invalid, "{parent} is not UTF-8");
    };
    let named = read_json(&layout.join("manifest.json"), MAX_JSON_BYTES)?;
    let tag = named[0]["RepoTags"][0]
        .as_str()
        .map(|tag| format!(":{tag}"));
    let archive = path.join("image.tar");
    let target = format!("docker-archive:{archive}{}", tag.unwrap_or_default());
    transport::copy_here(config, layout, &target)?;
    let made = path.join("image");
    std::fs::create_dir(&made).context(failed)?;
    Child::new("tar")
        .args(["--extract", "--no-same-owner", "--file", archive.as_str()])
        .args(["--directory", made.as_str()])
        .run()?;
    safefs::sync_file_system(made.as_std_path())?;
    // In place of nothing, or of an empty directory.
    rustix::fs::rename(made.as_std_path(), directory.as_std_path())
        .context(|| format!("cannot create {directory}"))
}
