//! Disks of tests: files that are mounted.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::{Said as _, Scratch, must};

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

    /// A disk that fails where it was never written to once less than that is left in memory: what it is said to hold
    /// is more than there is.
    pub fn failing(scratch: &Scratch, kind: &Kind) -> Self {
        let memory = in_memory(scratch);
        Self::made(memory.join("disk"), "6G", scratch, kind)
    }

    /// Have the disk fail when it has taken so many bytes more.
    pub fn leave(&self, bytes: u64) {
        let memory = self.image.parent().unwrap();
        let found = rustix::fs::statvfs(memory).unwrap();
        let taken = (found.f_blocks - found.f_bfree) * found.f_frsize;
        let size = format!("remount,size={}", taken + bytes);
        must(Command::new("mount").args(["-o", &size]).arg(memory));
    }

    /// It no longer fails, and is put in order as at a boot. Nobody may use it.
    pub fn mend(&self, kind: &Kind) {
        let memory = self.image.parent().unwrap();
        must(
            Command::new("mount")
                .args(["-o", "remount,size=12g"])
                .arg(memory),
        );
        must(Command::new("umount").arg(&self.mount));
        // Processes of a host that was switched off may still be leaving.
        let begun = Instant::now();
        while !must(Command::new("losetup").arg("-j").arg(&self.image)).is_empty() {
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "the disk is in use"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        if kind.name == "ext4" {
            // 1 is that it has found something to correct.
            let checked = Command::new("e2fsck")
                .arg("-fy")
                .arg(&self.image)
                .output()
                .unwrap();
            assert!(
                matches!(checked.status.code(), Some(0 | 1)),
                "{}",
                checked.out()
            );
        }
        must(
            Command::new("mount")
                .args(["-t", kind.name, "-o", kind.options])
                .args([&self.image, &self.mount]),
        );
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
