//! The world of a container: its root, the kernel's file systems, some devices, and what the person binds.
//! Every path in it is resolved below its root by the kernel, whatever links its image has.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive,
    mount_change, mount_remount, unmount,
};

use super::InitTask;
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::safefs::{self, Leave, Root};

/// Devices of the host that are in every container.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Links below `/dev`. Source: OCI runtime specification 1.0.2, `config-linux.md`.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];
/// Files of the host that say how names of hosts are found.
pub(super) const HOST_FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// Put it together and go there for good.
pub fn enter(task: &InitTask) -> Result<()> {
    let failed = || "cannot enter the container".into();
    safefs::leave(Leave::Mounts).context(failed)?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .context(failed)?;
    let path = task.root.as_std_path();
    let root = Root::open(path)?;
    devices(task, &root)?;
    for file in HOST_FILES {
        let is_bound = task
            .process
            .volumes
            .iter()
            .any(|volume| volume.destination == file);
        if !is_bound && Path::new(file).is_file() {
            bind(&root, Path::new(file), file, true)?;
        }
    }
    for volume in &task.process.volumes {
        bind(
            &root,
            volume.source.as_std_path(),
            &volume.destination,
            volume.read_only,
        )?;
    }
    bind(&root, Path::new("/sys"), "/sys", true)?;
    // Last, because it is by way of the old one that all these are mounted.
    let proc_flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let at = root.make_dir("/proc")?;
    match mount("proc", at_fd(&at), "proc", proc_flags, None) {
        Ok(()) => {}
        // In a container that hides parts of its own, no other is to be had.
        Err(Errno::PERM) => bind(&root, Path::new("/proc"), "/proc", false)?,
        Err(error) => return Err(error).context(|| "cannot mount /proc".into()),
    }
    rustix::process::chdir(path).context(failed)?;
    // The old root comes to lie below the new one, and goes.
    rustix::process::pivot_root(".", ".").context(failed)?;
    unmount(".", UnmountFlags::DETACH).context(failed)?;
    rustix::process::chdir("/").context(failed)
}

/// Stay in the host's world, where only processes are seen with the numbers that they have from now on.
pub fn number_anew() -> Result<()> {
    let failed = || "cannot mount /proc".into();
    safefs::leave(Leave::Mounts).context(failed)?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .context(failed)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", flags, None).context(failed)
}

/// How a descriptor is named to those who want a path.
fn at_fd(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn devices(task: &InitTask, root: &Root) -> Result<()> {
    let failed = || "cannot set up /dev".into();
    let dev = root.make_dir("/dev")?;
    let flags = MountFlags::NOSUID | MountFlags::STRICTATIME;
    mount(
        "tmpfs",
        at_fd(&dev),
        "tmpfs",
        flags,
        c"mode=755,size=65536k",
    )
    .context(failed)?;
    for name in DEVICES {
        let device = Path::new("/dev").join(name);
        if device.exists() {
            bind(root, &device, &format!("/dev/{name}"), false)?;
        }
    }
    for device in &task.process.devices {
        bind(root, device.as_std_path(), device.as_str(), false)?;
    }
    let options = if task.has_range {
        c"newinstance,ptmxmode=0666,mode=620,gid=5"
    } else {
        c"newinstance,ptmxmode=0666,mode=620"
    };
    let closed = MountFlags::NOSUID | MountFlags::NOEXEC;
    let pts = root.make_dir("/dev/pts")?;
    mount("devpts", at_fd(&pts), "devpts", closed, options).context(failed)?;
    let shared = root.make_dir("/dev/shm")?;
    mount(
        "shm",
        at_fd(&shared),
        "tmpfs",
        closed | MountFlags::NODEV,
        c"mode=1777",
    )
    .context(failed)?;
    let queues = root.make_dir("/dev/mqueue")?;
    // Not every kernel has it.
    let _ = mount(
        "mqueue",
        at_fd(&queues),
        "mqueue",
        closed | MountFlags::NODEV,
        None,
    );
    if let Some(terminal) = terminal() {
        // Under this name programs find the one that they are at.
        bind(root, &terminal, "/dev/console", false)?;
    }
    for (name, target) in LINKS {
        root.make_link(&format!("/dev/{name}"), target)?;
    }
    Ok(())
}

/// The terminal that this process is at, if it is.
fn terminal() -> Option<PathBuf> {
    use rustix::termios::ttyname;
    use std::os::unix::ffi::OsStringExt as _;
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let names = [
        ttyname(&stdin, Vec::new()),
        ttyname(&stdout, Vec::new()),
        ttyname(&stderr, Vec::new()),
    ];
    let name = names.into_iter().find_map(Result::ok)?.into_bytes();
    let path = PathBuf::from(std::ffi::OsString::from_vec(name));
    path.starts_with("/dev").then_some(path)
}

/// Bind a path of the host to one of the container, which is made if it is missing.
fn bind(root: &Root, source: &Path, target: &str, is_read_only: bool) -> Result<()> {
    let failed = || format!("cannot bind {}", source.display());
    let place = place(root, source, target)?;
    let at = at_fd(&place);
    if source.is_dir() {
        mount_bind_recursive(source, &at).context(failed)?;
    } else {
        mount_bind(source, &at).context(failed)?;
    }
    if is_read_only {
        // Looked up again, it is what is mounted there; if somebody has moved it meanwhile, it is no mount and
        // cannot be changed.
        let mounted = root.locate(target)?;
        for mount in mounts_below(&mounted).context(failed)? {
            let mount = rustix::fs::open(&mount, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
            shut(&mount.context(failed)?.into()).context(failed)?;
        }
        shut(&mounted).context(failed)?;
    }
    Ok(())
}

/// Where something of the host's is to be seen: a directory or a file, as it is one itself.
fn place(root: &Root, source: &Path, target: &str) -> Result<File> {
    let meta = std::fs::metadata(source).context(|| format!("cannot bind {}", source.display()))?;
    let at = if meta.is_dir() {
        root.make_dir(target)?
    } else {
        root.make_file(target)?
    };
    let there = at
        .metadata()
        .context(|| format!("cannot look at {target}"))?;
    if there.is_dir() != meta.is_dir() {
        fail!(
            Kind::Invalid,
            "cannot bind {} to {target}: one is a directory and the other is not",
            source.display()
        );
    }
    Ok(at)
}

/// Make a mount read-only.
fn shut(mounted: &File) -> rustix::io::Result<()> {
    let flags = MountFlags::BIND | MountFlags::RDONLY | kept_flags(mounted)?;
    mount_remount(at_fd(mounted), flags, "")
}

/// What is mounted below a directory: what was mounted below where it comes from is there as well.
fn mounts_below(directory: &File) -> std::io::Result<Vec<PathBuf>> {
    let path = std::fs::read_link(at_fd(directory))?;
    let text = std::fs::read_to_string("/proc/self/mountinfo")?;
    // The fifth field, in which blanks and backslashes are octal numbers. Source: proc(5).
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    let points = points.map(|point| PathBuf::from(unescape(point)));
    Ok(points
        .filter(|point| *point != path && point.starts_with(&path))
        .collect())
}

fn unescape(text: &str) -> String {
    let replace = |text: String, (code, plain): (&str, &str)| text.replace(code, plain);
    let codes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    codes.into_iter().fold(text.to_owned(), replace)
}

/// What a mount must not lose when it is changed: the kernel lets nobody in a user namespace take it away.
fn kept_flags(mounted: &File) -> rustix::io::Result<MountFlags> {
    let found = rustix::fs::fstatvfs(mounted)?.f_flag;
    let pairs = [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ];
    let kept = pairs.into_iter().filter(|(has, _)| found.contains(*has));
    Ok(kept.fold(MountFlags::empty(), |all, (_, flag)| all | flag))
}
