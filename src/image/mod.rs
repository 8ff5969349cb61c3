//! Images as data: references, digests, manifests, configs. Nothing here touches the world.

pub mod config;
pub mod digest;
pub mod manifest;
pub mod platform;
pub mod reference;
pub mod refname;

pub use config::ImageConfig;
pub use digest::Digest;
pub use manifest::{Descriptor, Manifest};
pub use platform::Platform;
pub use reference::{Name, Reference, Transport};

/// The beginning of an id that people are shown: twelve digits.
pub fn short_id(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
