//! System and user containers: install, update, rollback, uninstall, run, list, verify, mount.

pub mod all;
mod change;
pub mod effects;
mod exports;
pub mod hostfiles;
pub mod inspect;
mod install;
pub mod list;
pub mod mount;
mod preview;
mod render;
mod rollback;
pub mod run;
mod uninstall;
mod update;
mod verify;
mod window;

pub use change::{Change, Outcome, Preview, Recovered, interrupted, recover_all};
pub use exports::{TemplateVariable, template_variables};
pub use inspect::{history, image_of};
pub use install::{Install, install, preview_fetch, remote_rootfs};
pub use rollback::rollback;
pub use uninstall::{Uninstalled, uninstall};
pub use update::{Fetch, Update, update};
pub use verify::{repair, verify};
pub use window::Window;
