//! Starting the stages, and waiting for the program's end.

use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child as Running, Stdio};

use rustix::process::Pid;

use super::join::{self, Namespaces};
use super::signals::Forward;
use super::wire::{self, Report};
use super::{Base, ENTER_VERB, InitTask, Inside, OUTER_VERB, OuterTask, RuntimeTask};
use crate::command::Child;
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::rootless::container::{Container, children_of};
use crate::rootless::fake;
use crate::rootless::home::Home;
use crate::rootless::process::Process;
use crate::rootless::tree::Tree;
use crate::runtime::Runtime;
use crate::runtime::userns::{self, Mapping};
use crate::safefs::{self, Lock, Root};

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
    let turn = container.turn()?;
    fake::check_ready(container)?;
    run_inside(
        home,
        container,
        Inside::First,
        Some((process, runtime)),
        Stdio::inherit(),
        turn,
    )
}

/// Run a program of the host on the root of a container, as root of its user namespace, and return its exit
/// code. `turn`: the container's, which is held until the program is on record.
///
/// # Errors
/// As [`run`].
pub fn run_of_host(
    home: &Home,
    container: &Container,
    words: Vec<String>,
    stdout: Stdio,
    turn: Lock,
) -> Result<u8> {
    run_inside(home, container, Inside::Host(words), None, stdout, turn)
}

fn run_inside(
    home: &Home,
    container: &Container,
    inside: Inside,
    process: Option<(Process, Option<&Runtime>)>,
    stdout: Stdio,
    turn: Lock,
) -> Result<u8> {
    if !userns::are_allowed() {
        fail!(
            Kind::Refused,
            "this host allows no user namespaces, which modes N and R1 are made of: use --mode P2 or F1"
        );
    }
    let mapping = Mapping::of_user();
    let at_terminal = is_at_terminal();
    // Before anything runs, so that no signal gets lost or ends us alone.
    let forward = Forward::start(at_terminal)?;
    let base = match container.files() {
        Some(files) => Base::Files(files),
        None => Base::Overlay(lower(home, container, &mapping)?),
    };
    container.sweep_traces()?;
    let Stage {
        mut running,
        mut stream,
        is_first,
    } = Stage::start(container, stdout)?;
    forward.to(Pid::from_child(&running));
    let pid = running.id();
    let outer = OuterTask {
        container: container.path.clone(),
        base: is_first.then_some(base),
        inside,
        at_terminal,
    };
    let bundle = container.bundle(pid);
    let init = process.map(|(process, runtime)| InitTask {
        root: container.root(),
        process,
        runtime: runtime.map(|runtime| RuntimeTask {
            path: runtime.path().to_owned(),
            bundle: bundle.clone(),
        }),
        has_range: mapping.has_range(),
        at_terminal,
    });
    let mounted = (|| {
        wire::await_ready(&mut stream)?;
        if is_first {
            mapping.write_to(pid)?;
        }
        wire::send(&mut stream, &outer)?;
        if let Some(init) = &init {
            if init.runtime.is_some() {
                safefs::make_private_dir(container.path.join("bundles").as_std_path())?;
                safefs::make_private_dir(bundle.as_std_path())?;
            }
            wire::send(&mut stream, init)?;
        }
        match wire::next(&mut stream)? {
            Some(Report::Mounted) => container.add_holder(pid, None),
            _ => fail!(Kind::Failed, "the container ended before it began"),
        }
    })();
    drop(turn);
    let started = mounted.and_then(|()| {
        wire::next(&mut stream)?;
        // Only now is the first process in its own world; a program of the host's never is.
        match init {
            // The one child of whoever holds the root.
            Some(_) => container.add_holder(pid, children_of(pid).first().copied()),
            None => Ok(()),
        }
    });
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
    /// It is in a new user namespace, and nothing is mounted.
    is_first: bool,
}

impl Stage {
    /// Start it: where a run under way keeps the root mounted, or in a new user namespace.
    fn start(container: &Container, stdout: Stdio) -> Result<Self> {
        let mut holders = container.holders()?.into_iter();
        // One that ends just now is as good as none.
        let namespaces = holders.find_map(|pid| Namespaces::open(pid, &join::OF_ROOT).ok());
        let unshare = ["unshare", "--user", "--mount", "--keep-caps", "--"];
        let before: &[&str] = if namespaces.is_some() { &[] } else { &unshare };
        let (running, stream) = start(before, OUTER_VERB, namespaces.as_ref(), stdout)?;
        Ok(Self {
            running,
            stream,
            is_first: namespaces.is_none(),
        })
    }
}

/// Have this program, after the words `before`, be the stage `verb`.
fn start(
    before: &[&str],
    verb: &str,
    namespaces: Option<&Namespaces>,
    stdout: Stdio,
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
    let running = command.stdin(Stdio::inherit()).stdout(stdout).spawn();
    let running = running.context(|| format!("cannot run {first}"))?;
    Ok((running, ours))
}

/// Run one more process beside the first one of a container that runs, and return its exit code.
///
/// # Errors
/// [`Kind::Refused`] if it does not run.
pub fn exec(container: &Container, process: Process, runtime: Option<&Runtime>) -> Result<u8> {
    let Some((holder, first)) = container.first_process()? else {
        container.require_running()?;
        fail!(
            Kind::Refused,
            "container {} is only beginning, or ending",
            container.record.id
        );
    };
    if let Some(runtime) = runtime {
        return exec_by_runtime(container, &process, runtime, (holder, first));
    }
    let at_terminal = is_at_terminal();
    let forward = Forward::start(at_terminal)?;
    let namespaces = Namespaces::open(first, &join::OF_CONTAINER)?;
    let (mut running, mut stream) = start(&[], ENTER_VERB, Some(&namespaces), Stdio::inherit())?;
    drop(namespaces);
    forward.to(Pid::from_child(&running));
    let task = InitTask {
        root: container.root(),
        process,
        runtime: None,
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
    (holder, first): (u32, u32),
) -> Result<u8> {
    let forward = Forward::start(is_at_terminal())?;
    let bundle = container.bundle(holder);
    let root = format!("/proc/{holder}/root{}", container.root());
    let resolved = process.resolve(&Root::open(Path::new(&root))?)?;
    let text = super::runtime::process(process, &resolved, super::runtime::has_terminal())?;
    // In a file of ours: what is in the environment is not for everybody who can list processes.
    let mut file = tempfile::Builder::new()
        .prefix("exec-")
        .tempfile_in(&bundle)
        .context(|| format!("cannot create a file in {bundle}"))?;
    file.write_all(text.to_string().as_bytes())
        .context(|| format!("cannot write a file in {bundle}"))?;
    let mut command = Child::new("nsenter")
        .args([
            "--user",
            "--mount",
            "--pid",
            "--preserve-credentials",
            "--target",
        ])
        .args([first.to_string().as_str(), "--", runtime.path()])
        .args([
            "--root",
            bundle.join(super::runtime::STATE).as_str(),
            "exec",
            "--process",
        ])
        .arg(file.path())
        .arg(super::runtime::NAME)
        .into_command();
    let mut running = command
        .stdin(Stdio::inherit())
        .spawn()
        .context(|| "cannot run nsenter".into())?;
    forward.to(Pid::from_child(&running));
    end(&mut running, false)
}

/// The lower layers of a container, relative to its directory.
///
/// # Errors
/// [`Kind::Invalid`] if there are other ids now than when it was created: its files have owners among those.
fn lower(home: &Home, container: &Container, mapping: &Mapping) -> Result<Vec<String>> {
    let tree = Tree::of(home, &container.record.tree);
    let relative = |name: &str| format!("../../trees/{}/{name}", tree.name());
    let owners = tree.owners(mapping);
    let mut out = Vec::new();
    if mapping.has_range() {
        if !owners.is_dir() {
            fail!(
                Kind::Invalid,
                "your ranges in /etc/subuid and /etc/subgid are others than when container {} was created: create it again",
                container.record.id
            );
        }
        out.extend(owners.file_name().map(relative));
    }
    out.push(relative("checkout"));
    Ok(out)
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

/// Whether ^C is typed where all stages hear it: this process is in the foreground of its terminal.
pub(super) fn is_at_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok_and(|terminal| {
        rustix::termios::tcgetpgrp(&terminal).is_ok_and(|group| group == rustix::process::getpgrp())
    })
}
