//! Handing an image of a directory to podman or docker, for those who want theirs to run it.

use std::fmt;
use std::io::IsTerminal as _;
use std::process::ExitStatus;
use std::str::FromStr;

use camino::Utf8Path;

use super::{ArchivedImage, verify};
use crate::command::Child;
use crate::config::Config;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::runtime::mounts::Volume;
use crate::transport;

/// A container engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// podman
    Podman,
    /// docker
    Docker,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Podman => "podman",
            Self::Docker => "docker",
        })
    }
}

impl FromStr for Engine {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "podman" => Ok(Self::Podman),
            "docker" => Ok(Self::Docker),
            _ => fail!(Kind::Usage, "\"{text}\" is not an engine: podman or docker"),
        }
    }
}

/// What to run.
#[derive(Debug)]
pub struct Command<'a> {
    /// The words, in place of the image's.
    pub words: &'a [String],
    /// `NAME=value`
    pub env: Vec<String>,
    /// Binds.
    pub volumes: Vec<Volume>,
    /// Where it starts.
    pub workdir: &'a str,
}

impl Engine {
    /// Have the engine know an image, by its id: no name that it has is moved.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if the image is not what it says.
    pub fn load(self, config: &Config, image: &ArchivedImage) -> Result<()> {
        if self.has(image)? {
            return Ok(());
        }
        if let Some(finding) = verify(image)?.first() {
            fail!(
                Kind::Invalid,
                "{}/{}: {}",
                image.directory,
                finding.path,
                finding.what
            );
        }
        let failed = || "cannot create a temporary directory".into();
        let scratch = tempfile::tempdir().context(failed)?;
        let path = Utf8Path::from_path(scratch.path());
        let path =
            path.ok_or_else(|| Error::new(Kind::Invalid, "the temporary directory is not UTF-8"))?;
        let layout = path.join("image");
        image.write_layout(&layout)?;
        let name = format!("localhost/archive:{}", image.id.hex());
        let archive = path.join("image.tar");
        let target = match self {
            Self::Podman => format!("containers-storage:{name}"),
            Self::Docker => format!("docker-archive:{archive}:{name}"),
        };
        transport::copy_here(config, &layout, &target)?;
        if self == Self::Docker {
            Child::new("docker")
                .args(["load", "--quiet", "--input", archive.as_str()])
                .run()?;
        }
        if !self.has(image)? {
            fail!(Kind::Failed, "{self} has not taken the image {}", image.id);
        }
        Ok(())
    }

    fn has(self, image: &ArchivedImage) -> Result<bool> {
        let asked = Child::new(self.to_string()).args(["image", "inspect", &image.id.hex()]);
        Ok(asked.output()?.status.success())
    }

    /// Run a command in an image that the engine has, as whoever runs us; how it ended.
    pub fn run(self, image: &ArchivedImage, command: &Command<'_>) -> Result<ExitStatus> {
        let mut child = Child::new(self.to_string()).args(["run", "--rm", "--interactive"]);
        if std::io::stdin().is_terminal() {
            child = child.arg("--tty");
        }
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        child = match self {
            // Its root is the caller, and others are not.
            Self::Podman if !uid.is_root() => child.arg("--userns=keep-id"),
            _ => child.arg(format!("--user={}:{}", uid.as_raw(), gid.as_raw())),
        };
        for Volume {
            source,
            destination,
            read_only,
        } in &command.volumes
        {
            let how = if *read_only { ":ro" } else { "" };
            child = child.arg(format!("--volume={source}:{destination}{how}"));
        }
        for variable in &command.env {
            child = child.arg(format!("--env={variable}"));
        }
        child
            .arg(format!("--workdir={}", command.workdir))
            .arg(image.id.to_string())
            .args(command.words)
            .status()
    }
}
