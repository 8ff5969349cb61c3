//! System and user containers: install, update, rollback, uninstall, run, list, verify, mount.

pub mod all;
mod build;
mod change;
pub mod effects;
mod exports;
pub mod hostfiles;
pub mod inspect;
mod install;
pub mod list;
pub mod mount;
mod packages;
mod preview;
mod render;
mod rollback;
pub mod run;
mod spool;
mod uninstall;
mod unit;
mod update;
mod verify;
mod window;

pub use build::{Built, build_package};
pub use change::{Change, Outcome, Preview, Recovered, interrupted, lock, recover_all};
pub use exports::{TemplateVariable, exported_files, template_variables};
pub use hostfiles::{HostDiff, host_diff};
pub use inspect::{history, image_of};
pub use install::{Install, install, preview_fetch, remote_rootfs};
pub use packages::PackageWish;
pub use rollback::rollback;
pub use uninstall::{Uninstalled, uninstall};
pub use update::{Fetch, Update, update};
pub use verify::{repair, verify};
pub use window::Window;

/// Remove what killed commands left, and what no deployment needs any more beside its image.
pub fn sweep(config: &crate::config::Config) -> crate::error::Result<()> {
    run::sweep(config)?;
    mount::sweep(config)?;
    // The store's own leftovers do not wait for a user's id ranges to be as they were.
    if let Err(error) = crate::deployment::owners::sweep(config, None) {
        tracing::warn!(%error, "owner layers are left");
    }
    Ok(())
}
