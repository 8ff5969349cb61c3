//! The stage that runs one more command where a container's first process is.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::process::Pid;

use super::signals::{Forward, Listening};
use super::{InitTask, init, join, wire};
use crate::error::{Context as _, Kind, Result};
use crate::{fail, safefs};

/// Be that stage: the exit code is the command's. `namespaces`: numbers of descriptors.
pub fn main(number: i32, namespaces: &[i32]) -> Result<u8> {
    init::hide()?;
    let stream = safefs::inherited(number).context(|| "nobody is there to talk to".into())?;
    let namespaces = join::inherited(namespaces)?;
    safefs::close_on_exec().context(|| "cannot close what others left open".into())?;
    Ok(init::see_to(stream.into(), |stream| {
        start(stream, &namespaces)
    }))
}

fn start(stream: &mut UnixStream, namespaces: &[OwnedFd]) -> Result<Pid> {
    let task: InitTask = wire::receive(stream)?;
    let Some((numbers, others)) = namespaces.split_last() else {
        fail!(Kind::Failed, "there is no container to enter");
    };
    rustix::process::umask(init::UMASK);
    let listening = Listening::start()?;
    join::enter(others, stream)?;
    let forward = Forward::of(listening, task.at_terminal)?;
    join::enter_numbers(numbers)?;
    init::launch(&task, &forward)
}
