//! Room on the disk.

use std::sync::atomic::{AtomicI64, Ordering};

use camino::Utf8Path;
use ostree::Repo;

use crate::error::{Context as _, Kind, Result};
use crate::fail;

/// The part of the file system that is to stay free, as libostree has it for its own writes: the setting
/// `min-free-space-percent` of the repository.
pub(super) struct Space {
    percent: i64,
    block: i64,
    left: AtomicI64,
}

impl Space {
    pub(super) fn new(repo: &Repo, path: &Utf8Path) -> Result<Self> {
        const DEFAULT_PERCENT: i32 = 3;
        let config = repo.config();
        let percent = config.integer("core", "min-free-space-percent");
        let percent = i64::from(percent.unwrap_or(DEFAULT_PERCENT).clamp(0, 99));
        let found = rustix::fs::statvfs(path.as_std_path())
            .context(|| format!("cannot ask for the free space of {path}"))?;
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let free = if rustix::process::geteuid().is_root() {
            found.f_bfree
        } else {
            found.f_bavail
        };
        let kept = number(found.f_blocks) / 100 * percent;
        Ok(Self {
            percent,
            block: number(found.f_frsize).max(1),
            left: AtomicI64::new(number(free) - kept),
        })
    }

    pub(super) fn take(&self, bytes: u64) -> Result<()> {
        let blocks = i64::try_from(bytes).unwrap_or(i64::MAX) / self.block + 1;
        let left = self.left.fetch_sub(blocks, Ordering::Relaxed) - blocks;
        if self.percent > 0 && left < 0 {
            fail!(
                Kind::Failed,
                "cannot write to the repository: less than {}% of its file system would be free (min-free-space-percent in its configuration)",
                self.percent
            );
        }
        Ok(())
    }
}
