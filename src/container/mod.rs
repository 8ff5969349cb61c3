//! System containers: install, update, rollback, uninstall, list, inspect.

mod change;
mod exports;
pub mod inspect;
mod install;
pub mod list;
mod render;
mod rollback;
mod uninstall;
mod update;

pub use change::{Change, Outcome, Recovered, recover_all};
pub use install::{Install, install, remote_rootfs};
pub use rollback::rollback;
pub use uninstall::{Uninstalled, uninstall};
pub use update::{Update, update};
