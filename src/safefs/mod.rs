//! Paths that cannot escape, files that are wholly old or wholly new, locks, durability.
//!
//! The only room that resolves a path taken from an image, and the only one with `unsafe`.

mod atomic;
pub mod entry_path;
mod files;
pub mod libostree;
mod lock;
mod make;
mod parent;
mod process;
mod root;
mod unpack;

pub use atomic::{
    fsync_dir, keep_room, link_or_copy, make_private_dir, remove_if_exists, remove_tree, rename,
    rename_new, replace_file, replace_symlink, sweep_beside, sync_file_system, write_new_file,
};
pub use files::{FileStat, Files, Node, Walked};
pub use lock::{Lock, Mode};
pub use parent::Parent;
pub use process::{
    Identity, Leave, become_root, close_on_exec, end_with_parent, inherited, keep_open, leave,
    run_as, status_of_ended,
};
pub use root::{Root, all_xattrs, xattrs_of};
pub use unpack::{Device, Meta, Unpack, finish_file, names_in};

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

/// Open the directory `path`, which must not be a link.
pub fn open_dir(path: &Path) -> std::io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

/// Make the kernel send SIGTERM to the child when this process dies, so that no skopeo, runc or
/// rpm outlives a killed command.
pub fn die_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    // SAFETY: the closure runs between fork and exec and makes only two system calls
    // (prctl and getppid), both async-signal-safe; it allocates nothing and takes no lock.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
            // The parent may have died before the request took effect.
            if rustix::process::getppid() != Some(parent) {
                return Err(std::io::Error::from_raw_os_error(
                    rustix::io::Errno::SRCH.raw_os_error(),
                ));
            }
            Ok(())
        });
    }
}
