//! Starting the stages, and waiting for the program's end.

use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child as Running, Stdio};

use rustix::process::Pid;

use super::join::{self, Namespaces};
use super::signals::Forward;
use super::wire::{self, Report};
use super::{ENTER_VERB, InitTask, OUTER_VERB, OuterTask};
use crate::command::Child;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::rootless::container::Container;
use crate::rootless::home::Home;
use crate::rootless::process::Process;
use crate::rootless::tree::Tree;
use crate::runtime::Runtime;
use crate::runtime::userns::Mapping;
use crate::safefs::{self, Root};

/// Run a process in a container and return its exit code.
///
/// # Errors
/// [`Kind::Child`] with what could not be set up.
pub fn run(
    home: &Home,
    container: &Container,
    process: Process,
    runtime: Option<&Runtime>,
) -> Result<u8> {
    let mapping = Mapping::of_user();
    let at_terminal = is_at_terminal();
    // Before anything runs, so that no signal gets lost or ends us alone.
    let forward = Forward::start(at_terminal)?;
    let turn = container.turn()?;
    let Stage {
        mut running,
        mut stream,
        namespaces,
    } = Stage::start(container)?;
    forward.to(Pid::from_child(&running));
    let is_first = namespaces.is_none();
    // The stage has its own.
    drop(namespaces);
    let tasks = Tasks {
        outer: OuterTask {
            container: container.path.clone(),
            lower: is_first.then(|| lower(home, container, &mapping)),
            runtime: runtime.map(|runtime| runtime.path().to_owned()),
            at_terminal,
        },
        init: InitTask {
            root: container.root(),
            process,
            has_range: mapping.has_range(),
            at_terminal,
        },
    };
    let pid = running.id();
    let mounted = (|| {
        wire::await_ready(&mut stream)?;
        if is_first {
            mapping.write_to(pid)?;
        }
        wire::send(&mut stream, &tasks.outer)?;
        wire::send(&mut stream, &tasks.init)?;
        match wire::next(&mut stream)? {
            Some(Report::Mounted) => container.add_holder(pid),
            _ => fail!(Kind::Failed, "the container ended before it began"),
        }
    })();
    drop(turn);
    let started = mounted.and_then(|()| wire::next(&mut stream));
    drop(stream);
    let ended = end(&mut running, started.is_err());
    container.remove_holder(pid)?;
    started?;
    ended
}

/// The next stage, and the line to it.
struct Stage {
    running: Running,
    stream: UnixStream,
    /// Those of a run under way, where it goes.
    namespaces: Option<Namespaces>,
}

impl Stage {
    /// Start it: where a run under way keeps the root mounted, or in a new user namespace.
    fn start(container: &Container) -> Result<Self> {
        let mut holders = container.holders()?.into_iter();
        // One that ends just now is as good as none.
        let namespaces = holders.find_map(|pid| Namespaces::open(pid, &join::OF_ROOT).ok());
        let unshare = ["unshare", "--user", "--mount", "--keep-caps", "--"];
        let before: &[&str] = if namespaces.is_some() { &[] } else { &unshare };
        let (running, stream) = start(before, OUTER_VERB, namespaces.as_ref())?;
        Ok(Self {
            running,
            stream,
            namespaces,
        })
    }
}

/// Have this program, after the words `before`, be the stage `verb`.
fn start(
    before: &[&str],
    verb: &str,
    namespaces: Option<&Namespaces>,
) -> Result<(Running, UnixStream)> {
    let failed = || "cannot talk to the container".into();
    let (ours, theirs) = UnixStream::pair().context(failed)?;
    safefs::keep_open(&theirs).context(failed)?;
    let program = std::env::current_exe().context(|| "cannot find myself".into())?;
    let program = program.to_string_lossy();
    let number = theirs.as_raw_fd().to_string();
    let mut words = before.iter().copied().chain([&*program, verb, &number]);
    let first = words.next().unwrap_or_default();
    let mut child = Child::new(first).args(words);
    if let Some(namespaces) = namespaces {
        child = child.args(namespaces.words());
    }
    let mut command = child.into_command();
    let running = command.stdin(Stdio::inherit()).spawn();
    let running = running.context(|| format!("cannot run {first}"))?;
    Ok((running, ours))
}

/// Run one more process beside the first one of a container that runs, and return its exit code.
///
/// # Errors
/// [`Kind::Refused`] if it does not run.
pub fn exec(container: &Container, process: Process, runtime: Option<&Runtime>) -> Result<u8> {
    let holders = container.holders()?;
    let Some(holder) = holders.first().copied() else {
        fail!(
            Kind::Refused,
            "container {} is not running",
            container.record.id
        );
    };
    if let Some(runtime) = runtime {
        return exec_by_runtime(container, &process, runtime, holder);
    }
    let at_terminal = is_at_terminal();
    let forward = Forward::start(at_terminal)?;
    let namespaces = Namespaces::open(first_process(holder)?, &join::OF_CONTAINER)?;
    let (mut running, mut stream) = start(&[], ENTER_VERB, Some(&namespaces))?;
    drop(namespaces);
    forward.to(Pid::from_child(&running));
    let task = InitTask {
        root: container.root(),
        process,
        has_range: Mapping::of_user().has_range(),
        at_terminal,
    };
    let started = wire::send(&mut stream, &task).and_then(|()| wire::next(&mut stream));
    drop(stream);
    let ended = end(&mut running, started.is_err());
    started?;
    ended
}

fn exec_by_runtime(
    container: &Container,
    process: &Process,
    runtime: &Runtime,
    holder: u32,
) -> Result<u8> {
    let forward = Forward::start(is_at_terminal())?;
    let state = container
        .path
        .join("bundles")
        .join(holder.to_string())
        .join("state");
    let mut child = Child::new("nsenter")
        .args(["--user", "--mount", "--preserve-credentials", "--target"])
        .args([
            holder.to_string().as_str(),
            "--",
            runtime.path(),
            "--root",
            state.as_str(),
        ])
        .args(["exec", "--cwd", &process.cwd]);
    // It knows numbers only.
    let root = format!("/proc/{holder}/root{}", container.root());
    let resolved = process.resolve(&Root::open(Path::new(&root))?)?;
    child = child
        .arg("--user")
        .arg(format!("{}:{}", resolved.user.uid, resolved.user.gid));
    for entry in &resolved.env {
        child = child.args(["--env", entry]);
    }
    if is_at_terminal() && std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        child = child.arg("--tty");
    }
    let mut command = child
        .arg(format!("rootless-{holder}"))
        .args(&process.args)
        .into_command();
    let mut stage = command
        .stdin(Stdio::inherit())
        .spawn()
        .context(|| "cannot run nsenter".into())?;
    forward.to(Pid::from_child(&stage));
    end(&mut stage, false)
}

/// The first process of a container: the one child of whoever holds its root.
fn first_process(holder: u32) -> Result<u32> {
    let path = format!("/proc/{holder}/task/{holder}/children");
    let text = std::fs::read_to_string(&path).context(|| format!("cannot read {path}"))?;
    let first = text
        .split_whitespace()
        .next()
        .and_then(|word| word.parse().ok());
    first.ok_or_else(|| Error::new(Kind::Refused, "the container is ending"))
}

struct Tasks {
    outer: OuterTask,
    init: InitTask,
}

/// The lower layers of a container, relative to its directory.
fn lower(home: &Home, container: &Container, mapping: &Mapping) -> Vec<String> {
    let tree = Tree::of(home, &container.record.tree);
    let relative = |name: &str| format!("../../trees/{}/{name}", tree.name());
    let owners = tree.owners(mapping);
    let mut out = Vec::new();
    if mapping.has_range() && owners.is_dir() {
        out.extend(owners.file_name().map(relative));
    }
    out.push(relative("checkout"));
    out
}

/// Wait for the stage, and end it first if all is over.
fn end(stage: &mut Running, is_over: bool) -> Result<u8> {
    if is_over {
        // It may have ended by itself.
        let _ = stage.kill();
    }
    let pid = Pid::from_child(stage);
    super::outer::wait_for(pid)
}

/// Whether ^C is typed where all stages hear it.
fn is_at_terminal() -> bool {
    let stdin = std::io::stdin();
    rustix::termios::tcgetpgrp(&stdin).is_ok_and(|group| group == rustix::process::getpgrp())
}
