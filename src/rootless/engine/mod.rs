//! How containers run.
//!
//! The program calls itself to get inside, stage by stage:
//! - [`parent`] starts the next stage in a new user namespace (or for that of a run under way, since the kernel
//!   does not answer for two mounts of one overlay), has ids mapped, and waits;
//! - [`outer`] is root there, mounts the container's root where nobody else sees it, and keeps it mounted;
//! - [`init`] is process 1 of the container: it puts the mounts together, makes them its only world, starts
//!   the program, passes signals on to it and cleans up after its children;
//! - [`enter`] runs one more command beside it;
//! - [`runtime`] is what [`init`] does in place of that where an OCI runtime is asked for: it stays in the host's
//!   world, but for the numbers of processes, so that nothing outlives it.
//!
//! They talk on one socket: see [`wire`].
//!
//! [`proot`], [`fakechroot`] and [`singularity`] need none of this: no namespaces, no mounts, but files of the container's own. [`probe`] finds
//! out whether what it runs sees anything of the host's.

mod adopt;
pub mod enter;
pub mod fakechroot;
pub mod init;
mod join;
pub mod outer;
pub mod parent;
mod probe;
mod program;
pub mod proot;
mod root;
mod runtime;
mod signals;
pub mod singularity;
mod wire;

pub use parent::{exec, run, run_of_host};

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

use super::process::Process;

/// The verbs by which the program calls itself.
pub const OUTER_VERB: &str = "container-outer";
/// See [`OUTER_VERB`].
pub const INIT_VERB: &str = "container-init";

/// See [`OUTER_VERB`].
pub const ENTER_VERB: &str = "container-enter";

/// Set-up failed. The exit codes are those of docker and podman.
pub const SETUP_FAILED: u8 = 125;
/// The program is there and cannot be executed.
pub const CANNOT_EXECUTE: u8 = 126;
/// There is no such program.
pub const NO_SUCH_PROGRAM: u8 = 127;

/// What [`outer`] is told.
#[derive(Debug, Serialize, Deserialize)]
pub struct OuterTask {
    /// The container's directory.
    pub container: Utf8PathBuf,
    /// What its root is made of; nothing if that is mounted already.
    pub base: Option<Base>,
    /// What runs on it.
    pub inside: Inside,
    /// ^C on the terminal reaches everybody by itself.
    pub at_terminal: bool,
}

/// What a container's root is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Base {
    /// What was written to it, over these: lower layers, topmost first, relative to its directory.
    Overlay(Vec<String>),
    /// Files of its own, or lent to it.
    Files(Utf8PathBuf),
}

/// What runs on a container's root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Inside {
    /// [`init`], to which what it is told is sent.
    First,
    /// A program of the host, in the host's world, with the container's root as its working directory.
    Host(Vec<String>),
}

/// An OCI runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeTask {
    /// Where it is.
    pub path: String,
    /// A directory for what it is given, and for what it keeps.
    pub bundle: Utf8PathBuf,
}

/// What [`init`] is told.
#[derive(Debug, Serialize, Deserialize)]
pub struct InitTask {
    /// The container's root.
    pub root: Utf8PathBuf,
    /// What to run.
    pub process: Process,
    /// Who starts it, if not [`init`] itself.
    pub runtime: Option<RuntimeTask>,
    /// Whether there are more ids than one.
    pub has_range: bool,
    /// ^C on the terminal reaches everybody by itself.
    pub at_terminal: bool,
}
