//! What a process does to itself before it runs something that is not trusted. It is here for the sake of
//! `unsafe`, which is in this room alone.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::FdFlags;
use rustix::process::{Gid, Signal, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

/// Let a descriptor stay open in every program that is executed from now on.
pub fn keep_open(descriptor: &impl AsFd) -> io::Result<()> {
    Ok(rustix::io::fcntl_setfd(descriptor, FdFlags::empty())?)
}

/// Take over a descriptor that whoever executed us has left open, by its number. From here on it is ours
/// alone: it is closed in what we execute.
///
/// # Errors
/// `EBADF` if there is none of this number, and `EINVAL` for stdin, stdout and stderr.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: it is only borrowed, to ask whether it is open; if it is not, the answer is an error.
    #[allow(unsafe_code)]
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and nothing else in this process owns it: the parent left it open for us, and
    // this is called with its number first thing and once.
    #[allow(unsafe_code)]
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Close all descriptors but stdin, stdout and stderr in what is executed from now on: what whoever started
/// us left open is not for a container.
pub fn close_on_exec() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse::<RawFd>().ok()) else {
            continue;
        };
        if number > 2 {
            // SAFETY: it is only borrowed, to mark it; one that is closed by now is an error that does
            // not matter.
            #[allow(unsafe_code)]
            let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
            let _ = rustix::io::fcntl_setfd(borrowed, FdFlags::CLOEXEC);
        }
    }
    Ok(())
}

/// How a process ended that somebody else has waited for, as `wait` would have said it; nothing where the kernel
/// does not know (before Linux 6.15), or the process is still there.
///
/// Source: `linux/pidfd.h`, `PIDFD_GET_INFO`.
pub fn status_of_ended(process: &impl AsFd) -> Option<i32> {
    const GET_INFO: libc::Ioctl = 0xc040_ff0bu32 as libc::Ioctl;
    const EXIT: u64 = 1 << 3;
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup: u64,
        numbers: [u32; 11],
        status: i32,
    }
    let mut info = Info {
        mask: EXIT,
        ..Info::default()
    };
    // SAFETY: the kernel writes at most the 64 bytes that the request's number says, which this structure has.
    #[allow(unsafe_code)]
    let done = unsafe { libc::ioctl(process.as_fd().as_raw_fd(), GET_INFO, &raw mut info) };
    (done == 0 && info.mask & EXIT != 0).then_some(info.status)
}

/// Namespaces to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Those of mounts.
    Mounts,
    /// Those of process numbers (for children), System V IPC and the host's name.
    Others,
}

/// Move this process, and what it starts from now on, to namespaces of their own.
pub fn leave(what: Leave) -> io::Result<()> {
    let flags = match what {
        Leave::Mounts => UnshareFlags::NEWNS,
        Leave::Others => UnshareFlags::NEWPID | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS,
    };
    // SAFETY: only CLONE_FILES would be unsafe, and that is none of these.
    #[allow(unsafe_code)]
    unsafe {
        rustix::thread::unshare_unsafe(flags)?;
    }
    Ok(())
}

/// Be root of the user namespace, with the groups that were there before.
pub fn become_root() -> io::Result<()> {
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    Ok(())
}

/// Be killed when whoever started us is. `line`: a socket or pipe whose other end that process alone has.
///
/// # Errors
/// If it is gone already.
pub fn end_with_parent(line: &impl AsFd) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have died before the request took effect, and its number may mean nothing here.
    let mut asked = [PollFd::new(line, PollFlags::empty())];
    rustix::event::poll(&mut asked, Some(&Timespec::default()))?;
    if asked[0].revents().contains(PollFlags::HUP) {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    Ok(())
}

/// Leave the keys of whoever logged in behind: a user namespace does not. Source: keyctl(2). Where the kernel has
/// no keys, nothing happens.
fn join_new_keyring() {
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: the call reads no memory: the name of the keyring is a null pointer, which asks for a new one
    // without a name.
    #[allow(unsafe_code)]
    unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
        );
    }
}

/// Whom a program runs as.
#[derive(Debug, Clone)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups; nothing: those of whoever starts it.
    pub groups: Option<Vec<u32>>,
    /// Capabilities it, and what it starts, may have at the most: bits by number.
    pub capabilities: u64,
    /// A session of its own, so that signals to its group and what it types into a terminal reach nobody else.
    pub new_session: bool,
}

/// Make a command run as somebody else, by root.
pub fn run_as(command: &mut Command, identity: &Identity) {
    let groups = identity.groups.as_ref();
    let groups: Option<Vec<Gid>> =
        groups.map(|list| list.iter().copied().map(Gid::from_raw).collect());
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    let allowed = identity.capabilities;
    let new_session = identity.new_session;
    let become_them = move || -> io::Result<()> {
        join_new_keyring();
        for number in 0..u64::BITS {
            let one = CapabilitySet::from_bits_retain(1 << number);
            if allowed & one.bits() == 0 {
                match rustix::thread::remove_capability_from_bounding_set(one) {
                    Ok(()) => {}
                    // The kernel knows no more.
                    Err(rustix::io::Errno::INVAL) => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        if new_session {
            rustix::process::setsid()?;
        }
        if let Some(groups) = &groups {
            rustix::thread::set_thread_groups(groups)?;
        }
        rustix::thread::clear_ambient_capability_set()?;
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        // What root executes has what is left of the bounding set, and what anybody else does, nothing.
        let none = CapabilitySets {
            inheritable: CapabilitySet::empty(),
            ..rustix::thread::capabilities(None)?
        };
        rustix::thread::set_capabilities(None, none)?;
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec; it makes system calls, which are
    // async-signal-safe, allocates nothing and takes no lock.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(become_them);
    }
}
