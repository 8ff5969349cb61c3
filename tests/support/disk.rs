//! Disks of tests: files that are mounted.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::{Said as _, Scratch, must};

/// Where the kernel makes disks of compressed memory.
const ZRAM: &str = "/sys/class/zram-control";

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
        Self::made(memory.join("disk"), size, scratch.join("disk"), kind)
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
        Self::made(below.join("disk"), "4G", scratch.join("disk"), kind)
    }

    fn made(image: PathBuf, size: &str, mount: PathBuf, kind: &Kind) -> Self {
        make_sparse(&image, size);
        must(Command::new(kind.make[0]).args(&kind.make[1..]).arg(&image));
        Self::mount(image, mount, kind)
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

/// A disk of compressed memory, which can be made to fail: a loop device on a file that cannot grow says of a part of
/// what it loses that it was written.
pub struct FailingDisk {
    number: String,
    kind: &'static Kind,
    pub mount: PathBuf,
}

impl FailingDisk {
    /// Nothing where the kernel has no such disks.
    pub fn new(scratch: &Scratch, kind: &'static Kind) -> Option<Self> {
        let number = std::fs::read_to_string(format!("{ZRAM}/hot_add")).ok()?;
        // Hosts that boot meanwhile have what is mounted below, too, until it is unmounted here.
        let shared = in_memory(scratch);
        must(Command::new("mount").arg("--make-shared").arg(&shared));
        let disk = Self {
            number: number.trim().to_owned(),
            kind,
            mount: shared.join("disk"),
        };
        std::fs::create_dir(&disk.mount).unwrap();
        disk.set("disksize", "6G");
        must(
            Command::new(kind.make[0])
                .args(&kind.make[1..])
                .arg(disk.device()),
        );
        disk.mount();
        Some(disk)
    }

    fn device(&self) -> String {
        format!("/dev/zram{}", self.number)
    }

    fn set(&self, what: &str, value: &str) {
        let path = format!("/sys/block/zram{}/{what}", self.number);
        std::fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
    }

    fn mount(&self) {
        let options = self
            .kind
            .options
            .trim_start_matches("loop")
            .trim_start_matches(',');
        must(
            Command::new("mount")
                .args(["-t", self.kind.name, "-o", options])
                .arg(self.device())
                .arg(&self.mount),
        );
    }

    /// Have it fail once it has taken so many bytes more, as they are compressed.
    pub fn leave(&self, bytes: u64) {
        let path = format!("/sys/block/zram{}/mm_stat", self.number);
        let text = std::fs::read_to_string(path).unwrap();
        let taken: u64 = text.split_whitespace().nth(2).unwrap().parse().unwrap();
        self.set("mem_limit", &(taken + bytes).to_string());
    }

    /// It no longer fails, and is put in order as at a boot. Nobody may use it.
    pub fn mend(&self) {
        self.set("mem_limit", "0");
        must(Command::new("umount").arg(&self.mount));
        self.wait_until_free();
        if self.kind.name == "ext4" {
            // 1 is that it has found something to correct.
            let checked = Command::new("e2fsck")
                .arg("-fy")
                .arg(self.device())
                .output()
                .unwrap();
            assert!(
                matches!(checked.status.code(), Some(0 | 1)),
                "{}",
                checked.out()
            );
        }
        self.mount();
    }

    fn wait_until_free(&self) {
        // Processes of a host that was switched off may still be leaving.
        let begun = Instant::now();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::EXCL;
        while rustix::fs::open(self.device(), flags, rustix::fs::Mode::empty()).is_err() {
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "the disk is in use"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.mount).status();
        if !std::thread::panicking() {
            self.wait_until_free();
        }
        let _ = std::fs::write(format!("/sys/block/zram{}/reset", self.number), "1");
        let _ = std::fs::write(format!("{ZRAM}/hot_remove"), &self.number);
    }
}
