//! Room on the disk.

use std::sync::atomic::{AtomicI64, Ordering};

use camino::Utf8Path;
use ostree::Repo;

use crate::error::{Context as _, Kind, Result};
use crate::fail;

/// The part of the file system that is to stay free, as libostree has it for its own writes: the setting
/// `min-free-space-size` of the repository, or else `min-free-space-percent`.
pub(super) struct Space {
    is_limited: bool,
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
        let block = number(found.f_frsize).max(1);
        let size = config.string("core", "min-free-space-size").ok();
        let kept = match size.as_deref().and_then(bytes_of) {
            Some(bytes) => bytes / block,
            None => number(found.f_blocks) / 100 * percent,
        };
        Ok(Self {
            is_limited: kept > 0,
            block,
            left: AtomicI64::new(number(free) - kept),
        })
    }

    pub(super) fn take(&self, bytes: u64) -> Result<()> {
        let blocks = i64::try_from(bytes).unwrap_or(i64::MAX) / self.block + 1;
        let left = self.left.fetch_sub(blocks, Ordering::Relaxed) - blocks;
        if self.is_limited && left < 0 {
            fail!(
                Kind::Failed,
                "cannot write to the repository: too little of its file system would be free (min-free-space-size or min-free-space-percent in its configuration)"
            );
        }
        Ok(())
    }
}

/// A size as libostree's configuration has it: a number and MB, GB or TB.
fn bytes_of(text: &str) -> Option<i64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(2)?)?;
    let shift = match unit {
        "MB" => 20,
        "GB" => 30,
        "TB" => 40,
        _ => return None,
    };
    number.parse::<i64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(bytes_of("500MB"), Some(500 << 20));
        assert_eq!(bytes_of("2TB"), Some(2 << 40));
        for bad in ["", "B", "MB", "5", "5kB", "99999999999999999TB"] {
            assert_eq!(bytes_of(bad), None, "{bad}");
        }
    }
}
