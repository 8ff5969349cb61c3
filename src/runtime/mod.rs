//! OCI runtimes: which one, and the `config.json` it is given.

pub mod capabilities;
mod health;
pub mod mounts;
mod passwd;
mod seccomp;
pub mod spec;
pub mod userns;

use camino::Utf8PathBuf;

use crate::command::{Child, find_program};
use crate::error::{Error, Kind, Result};
use crate::fail;

pub use health::Health;
pub use passwd::{User, find_user};
pub use seccomp::default_profile as default_seccomp;

/// Tried in this order where nothing else is said.
const KNOWN: [&str; 2] = ["runc", "crun"];

/// An OCI runtime that is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    path: Utf8PathBuf,
}

impl Runtime {
    /// The runtime called `wanted`, or the first known one.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if it is not installed.
    pub fn find(wanted: Option<&str>) -> Result<Self> {
        let found = match wanted {
            Some(name) => find_program(name).ok_or_else(|| {
                Error::new(
                    Kind::NotFound,
                    format!("Cannot install the container: the runtime {name} is not installed"),
                )
            })?,
            None => KNOWN
                .iter()
                .find_map(|name| find_program(name))
                .ok_or_else(|| {
                    Error::new(
                        Kind::NotFound,
                        "Cannot install the container: the runtime runc is not installed",
                    )
                })?,
        };
        let path = Utf8PathBuf::try_from(found)
            .map_err(|_| Error::new(Kind::Invalid, "the path of the runtime is not UTF-8"))?;
        if path
            .as_str()
            .contains(|c: char| !(c.is_ascii_alphanumeric() || "/._+-".contains(c)))
        {
            fail!(
                Kind::Invalid,
                "the path of the runtime has odd characters: {path}"
            );
        }
        Ok(Self { path })
    }

    /// The same by its name alone, for a host where it may be elsewhere.
    #[must_use]
    pub fn by_name(&self) -> Self {
        let name = self.path.file_name().unwrap_or("runc");
        Self { path: name.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &str {
        self.path.as_str()
    }

    /// Options by which a container stays in the control group of the unit that runs it. runc takes a
    /// relative `cgroupsPath` for one below its own; crun, for one below the root.
    pub fn unit_options(&self) -> &'static str {
        if self.path.file_name().is_some_and(|name| name == "crun") {
            " --cgroup-manager=disabled"
        } else {
            ""
        }
    }

    /// The directives that start and stop a container under an image's own unit template
    /// (`EXEC_START`, `EXEC_STOP`, `EXEC_STARTPRE`, `EXEC_STOPPOST`). `detached`: the template asks
    /// for a PID file. The system's manager may be asked for a control group, a user's stays in the
    /// unit's.
    pub fn directives(
        &self,
        name: &str,
        pidfile: &str,
        detached: bool,
        is_system: bool,
    ) -> [(&'static str, String); 4] {
        let systemd = if !is_system {
            self.unit_options()
        } else if self.help(&[]).contains("--systemd-cgroup") {
            " --systemd-cgroup"
        } else {
            ""
        };
        let path = &self.path;
        if detached && self.help(&["run"]).contains("--pid-file") {
            return [
                (
                    "EXEC_START",
                    format!("{path}{systemd} run -d --pid-file {pidfile} '{name}'"),
                ),
                ("EXEC_STOP", String::new()),
                ("EXEC_STARTPRE", String::new()),
                ("EXEC_STOPPOST", format!("{path} delete '{name}'")),
            ];
        }
        [
            ("EXEC_START", format!("{path}{systemd} run '{name}'")),
            ("EXEC_STOP", format!("{path}{systemd} kill '{name}'")),
            ("EXEC_STARTPRE", String::new()),
            ("EXEC_STOPPOST", String::new()),
        ]
    }

    fn help(&self, verb: &[&str]) -> String {
        Child::new(self.path.as_str())
            .args(verb)
            .arg("--help")
            .output()
            .map(|finished| String::from_utf8_lossy(&finished.stdout).into_owned())
            .unwrap_or_default()
    }
}
