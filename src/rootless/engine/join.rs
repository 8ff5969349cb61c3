//! Going where another process is.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use rustix::thread::move_into_link_name_space;

use crate::error::{Context as _, Result};
use crate::safefs;

/// Those that keep a container's root mounted.
pub const OF_ROOT: [&str; 2] = ["user", "mnt"];
/// All of a container's first process; that of process numbers is last, for whoever has left his can start no
/// thread.
pub const OF_CONTAINER: [&str; 5] = ["user", "ipc", "uts", "mnt", "pid"];

/// Namespaces of a process, held open so that they stay if it ends.
pub struct Namespaces(Vec<File>);

impl Namespaces {
    /// Open those of `kinds`, to be passed on to what is executed next.
    ///
    /// # Errors
    /// If the process is gone, or somebody else's.
    pub fn open(pid: u32, kinds: &[&str]) -> Result<Self> {
        let open = |kind: &&str| {
            let path = format!("/proc/{pid}/ns/{kind}");
            let file = File::open(&path).context(|| format!("cannot open {path}"))?;
            safefs::keep_open(&file).context(|| format!("cannot pass on {path}"))?;
            Ok(file)
        };
        kinds.iter().map(open).collect::<Result<_>>().map(Self)
    }

    /// Their numbers, as words for the stage that goes there.
    pub fn words(&self) -> Vec<String> {
        self.0
            .iter()
            .map(|file| file.as_raw_fd().to_string())
            .collect()
    }
}

/// Take over those that were passed on.
pub fn inherited(numbers: &[i32]) -> Result<Vec<OwnedFd>> {
    let take =
        |number: &i32| safefs::inherited(*number).context(|| "a namespace is not there".into());
    numbers.iter().map(take).collect()
}

/// Go there, in this order, and be root from the first one on, which must be that of users. This process must have
/// one thread. `line`: to whoever started us.
pub fn enter(namespaces: &[OwnedFd], line: &impl AsFd) -> Result<()> {
    let failed = || "cannot enter the container".into();
    for (number, namespace) in namespaces.iter().enumerate() {
        move_into_link_name_space(namespace.as_fd(), None).context(failed)?;
        if number == 0 {
            safefs::become_root().context(failed)?;
        }
    }
    // After the change of identity, which makes the kernel forget it.
    safefs::end_with_parent(line).context(failed)
}

/// Go where numbers of processes are others, which counts for those that are started from now on.
pub fn enter_numbers(namespace: &OwnedFd) -> Result<()> {
    move_into_link_name_space(namespace.as_fd(), None)
        .context(|| "cannot enter the container".into())
}
