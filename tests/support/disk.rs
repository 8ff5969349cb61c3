//! Disks of tests: files that are mounted.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Scratch, must};

/// What is on the disk, and how it is made and mounted.
pub struct Kind {
    pub name: &'static str,
    make: &'static [&'static str],
    options: &'static str,
}

pub const XFS: Kind = Kind {
    name: "xfs",
    make: &["mkfs.xfs", "-q"],
    options: "loop,nouuid",
};
pub const EXT4: Kind = Kind {
    name: "ext4",
    make: &["mkfs.ext4", "-q", "-F"],
    options: "loop,noauto_da_alloc,commit=300",
};

/// No room is kept for root, and there are few inodes.
pub const FEW_INODES: Kind = Kind {
    name: "ext4",
    make: &["mkfs.ext4", "-q", "-F", "-m", "0", "-N", "6000"],
    options: "loop",
};

/// A disk that is mounted until this is gone.
pub struct Disk {
    pub image: PathBuf,
    pub mount: PathBuf,
}

impl Disk {
    /// A disk in memory, of this size as truncate takes it.
    pub fn small(scratch: &Scratch, size: &str, kind: &Kind) -> Self {
        let memory = in_memory(scratch);
        Self::made(memory.join("disk"), size, scratch, kind)
    }

    /// A disk in memory that can be snapshotted.
    pub fn new(scratch: &Scratch, kind: &Kind) -> Self {
        let outer = in_memory(scratch).join("outer");
        make_sparse(&outer, "10G");
        must(
            Command::new("mkfs.xfs")
                .args(["-q", "-m", "reflink=1"])
                .arg(&outer),
        );
        let below = scratch.join("below");
        std::fs::create_dir_all(&below).unwrap();
        must(
            Command::new("mount")
                .args(["-t", "xfs", "-o", "loop"])
                .args([&outer, &below]),
        );
        Self::made(below.join("disk"), "4G", scratch, kind)
    }

    fn made(image: PathBuf, size: &str, scratch: &Scratch, kind: &Kind) -> Self {
        make_sparse(&image, size);
        must(Command::new(kind.make[0]).args(&kind.make[1..]).arg(&image));
        Self::mount(image, scratch.join("disk"), kind)
    }

    pub fn mount(image: PathBuf, mount: PathBuf, kind: &Kind) -> Self {
        std::fs::create_dir_all(&mount).unwrap();
        must(
            Command::new("mount")
                .args(["-t", kind.name, "-o", kind.options])
                .args([&image, &mount]),
        );
        Self { image, mount }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Processes of a host that was switched off may still be leaving.
        let _ = Command::new("umount").arg("-l").arg(&self.mount).status();
        let _ = std::fs::remove_file(&self.image);
    }
}

fn in_memory(scratch: &Scratch) -> PathBuf {
    let memory = scratch.join("memory");
    std::fs::create_dir_all(&memory).unwrap();
    must(
        Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=12g", "tmpfs"])
            .arg(&memory),
    );
    memory
}

fn make_sparse(path: &Path, size: &str) {
    must(Command::new("truncate").args(["-s", size]).arg(path));
}
