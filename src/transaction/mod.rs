//! A change to a container as data: shown, journaled, applied, undone, recovered by one engine.
//!
//! A plan has phases; each is written to the journal, durably, before its first effect. The switch
//! of the container's symlink is the commit point: recovery goes forward if it happened and back
//! if it did not.

mod engine;
mod files;
mod host;
mod package;
mod plan;
mod show;
mod spot;
mod step;

pub use engine::{Applied, Report, apply, recover};
pub use host::Host;
pub use plan::{Direction, Journal, Phase, Plan, Subject};
pub use step::{DeployFile, Shipment, Step, TMPFILES_SETUP};
