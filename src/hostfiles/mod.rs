//! Files that an image brings for the host: everything below its `exports/hostfs`.
//!
//! What is wanted ([`wanted`]), what was installed before (on record in `info`, path by path with a
//! checksum) and what is on the disk now are compared ([`compare`]); the differences become steps of
//! the one transaction. Nothing that exists is overwritten, nothing that somebody changed is touched.
//!
//! # Checksums on record
//! `installed-files-checksum` of `info` maps a path to the SHA-256 of a file's content in hexadecimal,
//! to `link:TARGET` for a symbolic link, and to `0` for a directory. The original wrote `0` for
//! links as well. What files have beside their content is in `installed-files-attributes`.

pub mod attributes;
mod compare;
pub mod package;
mod payload;
mod rules;
mod wanted;

pub use compare::{Comparison, Record, compare};
pub use payload::{Payload, State};
pub use rules::{Rules, follow_merged};
pub use wanted::{HostFile, Kind, Owner, Request, Wanted, wanted};

pub use crate::selinux::HOST_FILES as DIRECTORY;
