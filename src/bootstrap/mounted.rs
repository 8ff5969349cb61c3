//! A file system in a file, mounted meanwhile.

use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};

use super::NEW;
use super::directory::is_mount_point;
use crate::command::Child;
use crate::error::{Context as _, Result};
use crate::safefs;

/// Where it is, in the directory that things are made in.
const MOUNT: &str = ".mount";
/// How long what is laid waits until it goes to the file.
const FLUSH: Duration = Duration::from_millis(30);
/// What the kernel would write in the background would be in later images.
const OPTIONS: &str = "loop,noatime,discard,noinit_itable,barrier=0,nodev,nosuid,noexec";

/// A file system that is mounted until this is gone.
pub struct Mounted {
    path: Utf8PathBuf,
    is_mounted: bool,
}

impl Mounted {
    /// Mount the one in `raw` in `directory`.
    pub fn new(raw: &Utf8Path, directory: &Utf8Path) -> Result<Self> {
        let path = directory.join(MOUNT);
        std::fs::create_dir(&path).context(|| format!("cannot create {path}"))?;
        // The loop device goes with the mount, whatever becomes of us.
        Child::new("mount")
            .args([
                "-t",
                "ext4",
                "-o",
                OPTIONS,
                "--",
                raw.as_str(),
                path.as_str(),
            ])
            .run()?;
        Ok(Self {
            path,
            is_mounted: true,
        })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// Do something while what is there already goes to the file, which then takes no time of its own.
    pub fn while_written<T>(&self, what: impl FnOnce() -> Result<T>) -> Result<T> {
        let directory = safefs::open_dir(self.path.as_std_path());
        let directory = directory.context(|| format!("cannot open {}", self.path))?;
        let (done, is_done) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                while is_done.recv_timeout(FLUSH) == Err(RecvTimeoutError::Timeout) {
                    // Whether it can be written is found out by whoever needs it written.
                    let _ = rustix::fs::syncfs(&directory);
                }
            });
            let made = what();
            drop(done);
            made
        })
    }

    /// Have all of it in the file, but for what is in its superblock.
    pub fn sync(&self) -> Result<()> {
        safefs::sync_file_system(self.path.as_std_path())
    }

    /// Have all of it in the file, in good order. From then on it cannot be written to, until [`Self::go_on`]. (A frozen
    /// one would be in order as well, but nobody could unmount it if we were killed.)
    pub fn be_still(&self) -> Result<()> {
        self.remount(MountFlags::RDONLY)
    }

    /// Let it be written to again.
    pub fn go_on(&self) -> Result<()> {
        self.remount(MountFlags::empty())
    }

    fn remount(&self, how: MountFlags) -> Result<()> {
        let kept =
            MountFlags::NOATIME | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        let done = mount_remount(self.path.as_std_path(), kept | how, "");
        done.context(|| format!("cannot change how {} is mounted", self.path))
    }

    /// Unmount it: all of it is in the file then.
    pub fn end(mut self) -> Result<()> {
        self.is_mounted = false;
        let failed = || format!("cannot unmount {}", self.path);
        unmount(self.path.as_std_path(), UnmountFlags::empty()).context(failed)?;
        std::fs::remove_dir(&self.path).context(failed)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.is_mounted
            && let Err(error) = unmount(self.path.as_std_path(), UnmountFlags::empty())
        {
            tracing::warn!(%error, path = %self.path, "still mounted");
        }
    }
}

/// Unmount what a killed one has left mounted in its directory.
pub fn unmount_abandoned(staged: &Utf8Path) -> Result<()> {
    let mount = staged.join(NEW).join(MOUNT);
    let is_dir = |path: &Utf8Path| path.symlink_metadata().is_ok_and(|found| found.is_dir());
    if is_dir(&staged.join(NEW)) && is_dir(&mount) && is_mount_point(mount.as_std_path()) {
        let done = unmount(mount.as_std_path(), UnmountFlags::empty());
        done.context(|| format!("cannot unmount {mount}"))?;
    }
    Ok(())
}
