//! atomic-rs: OCI images at work on a plain Linux host, without a container engine.
//!
//! The house, from the street to the foundation. A room uses only rooms below it.
//!
//! - [`cli`]: words in, words out
//! - [`container`]: system and user containers: install, update, rollback, uninstall, run, verify, mount
//! - [`inject`]: one layer of an image that lives in a registry
//! - [`archive`]: images as directories that are versioned
//! - [`bootstrap`]: an image as a root filesystem: a directory or disk images
//! - [`rootless`]: containers of people without root: create, run
//! - [`transaction`]: a change as data: plan, journal, apply, undo, recover
//! - [`deployment`]: one deployment on disk: names, paths, `info`, ledger
//! - [`hostfiles`]: files that images bring for the host: what is wanted, installed, on the disk
//! - [`pull`]: reference in, stored image out
//! - [`runtime`]: OCI runtimes and their `config.json`, user namespaces, health commands
//! - [`template`]: `$NAME` substitution, Tera, variables, escaping by context
//! - [`store`]: images in the `OSTree` repository: import, merged tree, checkout, verify, export, prune
//! - [`transport`]: images from and to anywhere, through skopeo; policy and signatures
//! - [`registry`]: talking to a registry directly: credentials, blobs, manifests, search
//! - [`systemd`]: the manager over D-Bus, units, tmpfiles, the watch
//! - [`selinux`]: labels of the host policy; nothing where `SELinux` is off
//! - [`interrupt`]: ^C and SIGTERM
//! - [`command`]: the one way to start a child process
//! - [`safefs`]: confined paths, atomic files, locks, durability
//! - [`image`]: references, digests, manifests, configs: data without I/O
//! - [`config`]: where things are
//! - [`fault`]: where a debug build can be made to fail
//! - [`error`]: error kinds and exit codes

#![warn(missing_docs)]
#![deny(unsafe_code)]

/// A line on stderr, if somebody takes it: who cannot be told anything is no reason to die.
macro_rules! say {
    ($($what:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr().lock(), $($what)*);
    }};
}

pub mod archive;
pub mod bootstrap;
pub mod cli;
pub mod command;
pub mod config;
pub mod container;
pub mod deployment;
pub mod error;
pub mod fault;
pub mod hostfiles;
pub mod image;
pub mod inject;
pub mod interrupt;
pub mod pull;
pub mod registry;
pub mod rootless;
pub mod runtime;
pub mod safefs;
pub mod selinux;
pub mod store;
pub mod systemd;
pub mod template;
pub mod transaction;
pub mod transport;

/// The version of this program, as `--version` prints it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
