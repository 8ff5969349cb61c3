//! Images as data: references, digests, manifests, configs. Nothing here touches the world.

pub mod config;
pub mod digest;
pub mod manifest;
pub mod reference;
pub mod refname;

pub use config::ImageConfig;
pub use digest::Digest;
pub use manifest::{Descriptor, Manifest, Platform};
pub use reference::{Name, Reference, Transport};
