//! Files on their way into a deployment: in a private directory, which goes when nobody needs it any more.

use std::path::Path;

use camino::{Utf8Path, Utf8PathBuf};

use crate::error::{Context as _, Error, Kind, Result};

/// How such directories are called, in front of the process that made them.
const PREFIX: &str = "atomic-rs-spool-";

/// A file in a directory of its own, not below the checkouts: a dry run must not touch those.
#[derive(Debug)]
pub struct Spool {
    _directory: tempfile::TempDir,
    file: Utf8PathBuf,
}

impl Spool {
    /// Room for a file called `name`, which is not there yet.
    pub fn new(name: &str) -> Result<Self> {
        let above = directory();
        sweep(&above);
        let failed = || format!("cannot create a directory in {}", above.display());
        // Mode 0700: what is in it may hold secrets.
        let directory = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{}-", std::process::id()))
            .tempdir_in(&above)
            .context(failed)?;
        let path = directory.path().join(name);
        let file = Utf8PathBuf::try_from(path).map_err(|path| {
            Error::new(
                Kind::Invalid,
                format!("{} is not UTF-8", path.as_path().display()),
            )
        })?;
        Ok(Self {
            _directory: directory,
            file,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Utf8Path {
        &self.file
    }
}

fn directory() -> std::path::PathBuf {
    std::env::var_os("TMPDIR").map_or_else(|| "/var/tmp".into(), Into::into)
}

/// Remove what killed commands left: directories of ours whose maker is not there any more.
fn sweep(above: &Path) {
    use std::os::unix::fs::MetadataExt as _;
    let me = rustix::process::geteuid().as_raw();
    for entry in std::fs::read_dir(above).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let maker = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX))
            .and_then(|rest| rest.split('-').next())
            .filter(|pid| !Path::new("/proc").join(pid).exists());
        let is_ours = entry
            .metadata()
            .is_ok_and(|found| found.is_dir() && found.uid() == me);
        if maker.is_some()
            && is_ours
            && let Err(error) = std::fs::remove_dir_all(entry.path())
        {
            tracing::warn!(%error, "{} is left", entry.path().display());
        }
    }
}
