//! Containers of people without root: no service, no unit, no help of an administrator.
//!
//! - [`home`]: where they are, by id and by name
//! - [`tree`]: the files of an image, made once and shared by all containers of it
//! - [`container`]: one container: its record, what was written to it
//! - [`create`]: create, clone, remove
//! - [`fake`]: what `fakechroot` needs changed in them, and back
//! - [`files`]: files of a container's own, for modes that mount nothing
//! - [`migrate`]: what udocker has, brought in
//! - [`nvidia`]: the host's driver in them
//! - [`process`]: what to run: words, environment, user, volumes
//! - [`engine`]: how it is run
//! - [`run`]: all of it together

pub mod container;
mod cpus;
pub mod create;
pub mod engine;
pub mod fake;
pub mod files;
pub mod home;
pub mod migrate;
pub mod nvidia;
pub mod process;
pub mod run;
pub mod tree;

pub use container::{Container, Mode, Record};
pub use cpus::Cpus;
pub use home::{Home, Name};
pub use process::Wishes;
pub use run::{DETACHED, exec, export, own_files, run, set_mode, set_nvidia};
