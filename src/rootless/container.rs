//! One container: what it was made from, how it runs, what was written to it.
//!
//! # Format
//! `H/containers/ID/`:
//! - `container.json`: [`Record`]
//! - `upper/`, `work/`: what was written, as the two directories of an overlay; files in them belong to
//!   the container's users
//! - `ROOT/`: where the overlay is mounted while the container runs, out of sight of the host; in modes that
//!   mount nothing, the files themselves
//! - `run/PID`: a process that keeps the overlay mounted, by its number; inside is when it was started
//!   (`/proc/PID/stat`, field 22), so that a number that is used again means nothing
//! - `bundles/PID/`: what an OCI runtime is given, and what it keeps for itself
//! - `lock`: held exclusively while the overlay is being mounted or the container changed

use std::fmt;
use std::str::FromStr;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::home::Home;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::image::ImageConfig;
use crate::safefs::{self, Lock};

/// The format of [`Record`] that this program writes.
pub const FORMAT: u32 = 1;

/// How a container is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// Namespaces that this program sets up, and an overlay.
    N,
    /// An OCI runtime, runc or crun, on the same overlay.
    R1,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::N, Self::R1];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::N => "N",
            Self::R1 => "R1",
        })
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|mode| mode.to_string() == text);
        found.ok_or_else(|| {
            let all = Self::ALL.map(|mode| mode.to_string()).join(", ");
            Error::new(Kind::Usage, format!("\"{text}\" is not a mode: {all}"))
        })
    }
}

/// What is on record of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// [`FORMAT`]
    pub format: u32,
    /// Its id, a UUID.
    pub id: String,
    /// The image, by name and tag.
    pub image: String,
    /// The image's id.
    pub image_id: String,
    /// When it was created, in seconds since 1970.
    pub created: u64,
    /// `os/architecture[/variant]`
    pub platform: String,
    /// How it runs.
    pub mode: Mode,
    /// It is not removed, nor anything of it changed.
    #[serde(default)]
    pub protected: bool,
    /// The shared files it stands on: a name below `H/trees`.
    pub tree: String,
    /// The image's config, as it came.
    pub config: Value,
}

/// A container.
#[derive(Debug, Clone)]
pub struct Container {
    /// Where it is.
    pub path: Utf8PathBuf,
    /// What is on record.
    pub record: Record,
}

impl Container {
    /// Read the container of this id.
    pub fn open(home: &Home, id: &str) -> Result<Self> {
        let path = home.container(id);
        let file = path.join("container.json");
        let text = std::fs::read(&file).context(|| format!("cannot read {file}"))?;
        let record: Record =
            serde_json::from_slice(&text).kind(Kind::Invalid, || format!("{file} is damaged"))?;
        if record.format > FORMAT {
            fail!(
                Kind::Invalid,
                "{file} is of a later version of this program"
            );
        }
        Ok(Self { path, record })
    }

    /// The image's config, as far as this program uses it.
    pub fn image_config(&self) -> Result<ImageConfig> {
        let config = ImageConfig::deserialize(&self.record.config);
        config.kind(Kind::Invalid, || "the image config is not valid".into())
    }

    /// Write the record.
    pub fn save(&self) -> Result<()> {
        let text = serde_json::to_vec_pretty(&self.record)
            .context(|| "cannot write the record of a container".into())?;
        safefs::replace_file(self.path.join("container.json").as_std_path(), &text, 0o600)
    }

    /// While this is held nobody else mounts or changes it.
    pub fn turn(&self) -> Result<Lock> {
        let path = self.path.join("lock");
        Lock::take(path.as_std_path(), safefs::Mode::Exclusive, &self.record.id)
    }

    /// Processes that keep its overlay mounted; [`Self::turn`] should be held. Traces of dead ones are
    /// removed.
    pub fn holders(&self) -> Result<Vec<u32>> {
        let run = self.path.join("run");
        let Ok(entries) = run.read_dir_utf8() else {
            return Ok(Vec::new());
        };
        let mut out = Vec::new();
        for entry in entries.flatten() {
            let started = std::fs::read_to_string(entry.path()).unwrap_or_default();
            match entry.file_name().parse() {
                Ok(pid) if start_of(pid).is_some_and(|start| start == started.trim()) => {
                    out.push(pid);
                }
                _ => safefs::remove_if_exists(entry.path().as_std_path())?,
            }
        }
        out.sort_unstable();
        Ok(out)
    }

    /// Put a process on record that keeps the overlay mounted.
    pub fn add_holder(&self, pid: u32) -> Result<()> {
        let run = self.path.join("run");
        safefs::make_private_dir(run.as_std_path())?;
        let Some(start) = start_of(pid) else {
            return Ok(());
        };
        safefs::replace_file(
            run.join(pid.to_string()).as_std_path(),
            start.as_bytes(),
            0o600,
        )
    }

    /// It has ended.
    pub fn remove_holder(&self, pid: u32) -> Result<()> {
        safefs::remove_if_exists(self.path.join("run").join(pid.to_string()).as_std_path())
    }

    /// # Errors
    /// [`Kind::Refused`] if it is protected.
    pub fn check_unprotected(&self) -> Result<()> {
        if self.record.protected {
            fail!(Kind::Refused, "container {} is protected", self.record.id);
        }
        Ok(())
    }

    /// Where its root is.
    pub fn root(&self) -> Utf8PathBuf {
        self.path.join("ROOT")
    }
}

/// When a process was started, in the kernel's ticks since boot. Source: proc(5), `/proc/PID/stat`.
fn start_of(pid: u32) -> Option<String> {
    let stat =
        std::fs::read_to_string(Utf8Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The second field, in parentheses, may have blanks.
    let (_, rest) = stat.rsplit_once(')')?;
    let state = rest.split_whitespace().next()?;
    (state != "Z").then_some(())?;
    rest.split_whitespace().nth(19).map(str::to_owned)
}
