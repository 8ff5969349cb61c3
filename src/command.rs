//! Child processes: one way to start them, log them and report how they failed.

use std::ffi::OsStr;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child as Process, Command, ExitStatus, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use crate::error::{Context as _, Error, Kind, Result};
use crate::interrupt::Interrupt;
use crate::{fail, safefs};

/// How much of a failed child's stderr goes into the error.
const STDERR_TAIL_BYTES: usize = 2048;

/// How much of what a command with a time limit printed is read.
const MAX_OUTPUT_BYTES: u64 = 64 * 1024;
/// Between asking a child to end and killing it.
const GRACE: Duration = Duration::from_secs(1);

/// How often a child that is waited for is looked at.
const POLL: Duration = Duration::from_millis(10);

/// A child process to be: it dies with us, reads nothing, and its stderr is kept for the error.
#[derive(Debug)]
pub struct Child {
    command: Command,
    line: String,
    input: Vec<u8>,
    survives: bool,
}

/// What a finished child left.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its stdout.
    pub stdout: Vec<u8>,
    /// The end of its stderr, trimmed.
    pub stderr: String,
}

impl Child {
    /// A child that runs `program`, found in PATH unless it is a path.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let program = program.as_ref();
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        safefs::die_with_parent(&mut command);
        Self {
            command,
            line: program.to_string_lossy().into_owned(),
            input: Vec::new(),
            survives: false,
        }
    }

    /// A child that goes on when we are killed, and is not interrupted with us: what it does must not be
    /// left half done.
    pub fn surviving(program: impl AsRef<OsStr>) -> Self {
        let program = program.as_ref();
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).process_group(0);
        Self {
            command,
            line: program.to_string_lossy().into_owned(),
            input: Vec::new(),
            survives: true,
        }
    }

    /// One argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.line.push(' ');
        self.line.push_str(&arg.as_ref().to_string_lossy());
        self.command.arg(arg);
        self
    }

    /// An environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// One argument that must not be logged.
    #[must_use]
    pub fn secret_arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.line.push_str(" ***");
        self.command.arg(arg);
        self
    }

    /// Several arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    /// What it reads on stdin.
    #[must_use]
    pub fn input(mut self, bytes: &[u8]) -> Self {
        self.input = bytes.to_vec();
        self
    }

    /// Run it to its end, whatever that is.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if the program is not installed.
    pub fn output(mut self) -> Result<Finished> {
        self.try_output()
    }

    /// The same for a child that may have to be run again.
    pub fn try_output(&mut self) -> Result<Finished> {
        tracing::debug!(command = %self.line, "run");
        let input = self.command_input()?;
        self.command.stdin(input);
        if self.survives {
            return self.output_to_files();
        }
        let output = self.command.output();
        let output = output.map_err(|error| self.cannot_run(&error))?;
        Ok(Finished {
            status: output.status,
            stdout: output.stdout,
            stderr: tail(&output.stderr),
        })
    }

    /// The same without a pipe, which would end it when its reader is gone.
    fn output_to_files(&mut self) -> Result<Finished> {
        let failed = |line: &str| format!("cannot run \"{line}\"");
        let mut said = Vec::new();
        let (mut stdout, mut stderr) = tempfile::tempfile()
            .and_then(|stdout| Ok((stdout, tempfile::tempfile()?)))
            .context(|| failed(&self.line))?;
        let sinks = stdout
            .try_clone()
            .and_then(|out| Ok((out, stderr.try_clone()?)))
            .context(|| failed(&self.line))?;
        let status = self.command.stdout(sinks.0).stderr(sinks.1).status();
        let status = status.map_err(|error| self.cannot_run(&error))?;
        for file in [&mut stdout, &mut stderr] {
            let mut text = Vec::new();
            file.rewind()
                .and_then(|()| file.read_to_end(&mut text))
                .context(|| failed(&self.line))?;
            said.push(text);
        }
        let stderr = tail(&said.pop().unwrap_or_default());
        Ok(Finished {
            status,
            stdout: said.pop().unwrap_or_default(),
            stderr,
        })
    }

    /// Run it for at most `limit`; then it is asked to end, and killed a second later. What it
    /// printed is in `stdout`, stdout and stderr in the order they came.
    ///
    /// # Errors
    /// [`Kind::Failed`] if it took longer.
    pub fn output_within(mut self, limit: Duration) -> Result<Finished> {
        tracing::debug!(command = %self.line, "run");
        let failed = |line: &str| format!("cannot run \"{line}\"");
        let mut output = tempfile::tempfile().context(|| failed(&self.line))?;
        let sink = || output.try_clone().map(Stdio::from);
        let (stdout, stderr) = sink()
            .and_then(|first| Ok((first, sink()?)))
            .context(|| failed(&self.line))?;
        let mut child = self
            .command
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .context(|| failed(&self.line))?;
        let begun = Instant::now();
        let waited = wait(&mut child, GRACE, || begun.elapsed() > limit, Process::kill);
        let (status, asked) = waited.context(|| failed(&self.line))?;
        if asked {
            fail!(
                Kind::Failed,
                "\"{}\" took longer than {:.0} seconds",
                self.line,
                limit.as_secs_f32()
            );
        }
        let mut stdout = Vec::new();
        output
            .rewind()
            .and_then(|()| output.take(MAX_OUTPUT_BYTES).read_to_end(&mut stdout))
            .context(|| failed(&self.line))?;
        Ok(Finished {
            status,
            stdout,
            stderr: String::new(),
        })
    }

    /// The bare command, for a library that starts it itself.
    pub fn into_command(self) -> Command {
        tracing::debug!(command = %self.line, "run");
        self.command
    }

    fn command_input(&self) -> Result<Stdio> {
        if self.input.is_empty() {
            return Ok(Stdio::null());
        }
        // A file rather than a pipe: nobody waits for anybody, however much it is.
        let written = || -> std::io::Result<Stdio> {
            let mut file = tempfile::tempfile()?;
            file.write_all(&self.input)?;
            file.rewind()?;
            Ok(file.into())
        };
        written().context(|| format!("cannot pass input to \"{}\"", self.line))
    }

    /// Run it and return its stdout; a status other than zero is an error with its stderr.
    pub fn run(self) -> Result<Vec<u8>> {
        let line = self.line.clone();
        let finished = self.output()?;
        if !finished.status.success() {
            fail!(
                Kind::Failed,
                "\"{line}\" failed ({}): {}",
                finished.status,
                finished.stderr
            );
        }
        Ok(finished.stdout)
    }

    /// Start it, wait until it prints a byte, do something to it, and only then let it read its input
    /// and go on to its end.
    ///
    /// # Errors
    /// [`Kind::Failed`] with its stderr if it fails; that of `between`, which ends it.
    pub fn run_between(self, between: impl FnOnce(u32) -> Result<()>) -> Result<()> {
        self.run_heard(between, |_| {}, || false)
    }

    /// The same, hearing the lines that it prints afterwards. It is asked to end once `is_asked` says so.
    pub fn run_heard(
        mut self,
        between: impl FnOnce(u32) -> Result<()>,
        mut heard: impl FnMut(&str),
        is_asked: impl Fn() -> bool,
    ) -> Result<()> {
        tracing::debug!(command = %self.line, "run");
        let mut child = self
            .command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| self.cannot_run(&error))?;
        let mut byte = [0];
        let mut stdout = child.stdout.take();
        let ready = match &mut stdout {
            Some(stdout) => stdout.read_exact(&mut byte).is_ok(),
            None => false,
        };
        if ready && let Err(error) = between(child.id()) {
            // It reads the end of its input, and may be gone by now.
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
        let said = std::thread::scope(|scope| {
            let input = &self.input;
            // A child that failed early does not read, and says itself why.
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
            let said = scope.spawn(|| {
                let mut said = Vec::new();
                let _ = stderr.map(|mut stderr| stderr.read_to_end(&mut said));
                said
            });
            let (lines, queue) = std::sync::mpsc::channel();
            scope.spawn(move || {
                for line in stdout
                    .into_iter()
                    .flat_map(|out| BufReader::new(out).lines())
                {
                    let Ok(line) = line else { return };
                    if lines.send(line).is_err() {
                        return;
                    }
                }
            });
            let mut was_asked = false;
            loop {
                match queue.recv_timeout(POLL) {
                    Ok(line) => heard(&line),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
                if !was_asked && is_asked() {
                    was_asked = true;
                    ask_to_end(&child);
                }
            }
            said.join().unwrap_or_default()
        });
        let status = child
            .wait()
            .context(|| format!("cannot run \"{}\"", self.line))?;
        if status.success() {
            return Ok(());
        }
        fail!(
            Kind::Failed,
            "\"{}\" failed ({status}): {}",
            self.line,
            tail(&said)
        )
    }

    fn cannot_run(&self, error: &io::Error) -> Error {
        let program = self.command.get_program().to_string_lossy();
        match error.kind() {
            io::ErrorKind::NotFound => Error::new(
                Kind::NotFound,
                format!("the program \"{program}\" is not installed"),
            ),
            _ => Error::new(Kind::Failed, format!("cannot run \"{program}\": {error}")),
        }
    }

    /// Run it on our own stdin, stdout and stderr while signals to us are held: a signal is passed
    /// on, and where that did not help within `grace`, `kill` has to.
    pub fn status_held(
        mut self,
        interrupt: &Interrupt,
        grace: Duration,
        mut kill: impl FnMut(),
    ) -> Result<ExitStatus> {
        tracing::debug!(command = %self.line, "run");
        let failed = |line: &str| format!("cannot run \"{line}\"");
        let mut child = self
            .command
            .stdin(Stdio::inherit())
            .spawn()
            .context(|| failed(&self.line))?;
        let asked = || interrupt.check().is_err();
        wait(&mut child, grace, asked, |_| {
            kill();
            Ok(())
        })
        .map(|(status, _)| status)
        .context(|| failed(&self.line))
    }

    /// Run it on our own stdin, stdout and stderr.
    pub fn status(mut self) -> Result<ExitStatus> {
        tracing::debug!(command = %self.line, "run");
        self.command
            .stdin(Stdio::inherit())
            .status()
            .map_err(|error| {
                Error::new(
                    Kind::Failed,
                    format!("cannot run \"{}\": {error}", self.line),
                )
            })
    }
}

/// The end of what a child said on stderr, trimmed.
fn tail(stderr: &[u8]) -> String {
    let from = stderr.len().saturating_sub(STDERR_TAIL_BYTES);
    String::from_utf8_lossy(&stderr[from..]).trim().to_owned()
}

/// By SIGTERM.
fn ask_to_end(child: &Process) {
    let pid = rustix::process::Pid::from_child(child);
    // It may be gone by now.
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
}

/// Wait for a child to end. From when `due` says so it is asked to, and `kill` has to help where that
/// did not within `grace`, again and again. Returns how it ended and whether it was asked.
fn wait(
    child: &mut Process,
    grace: Duration,
    due: impl Fn() -> bool,
    mut kill: impl FnMut(&mut Process) -> io::Result<()>,
) -> io::Result<(ExitStatus, bool)> {
    let mut asked: Option<Instant> = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((status, asked.is_some()));
        }
        match asked {
            None if due() => {
                asked = Some(Instant::now());
                ask_to_end(child);
            }
            Some(since) if since.elapsed() > grace => {
                asked = Some(Instant::now());
                // It may be gone by now.
                let _ = kill(child);
            }
            _ => {}
        }
        std::thread::sleep(POLL);
    }
}

/// The full path of `program`: itself if it is a path to an executable file, else searched in PATH.
pub fn find_program(program: &str) -> Option<PathBuf> {
    let executable = |path: &PathBuf| {
        path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
    };
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(executable);
    }
    let path = std::env::var_os("PATH")
        .unwrap_or_else(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(executable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_child_is_reported_with_its_stderr() {
        let error = Child::new("sh")
            .args(["-c", "echo no such thing >&2; exit 3"])
            .run()
            .unwrap_err();
        assert!(error.to_string().contains("no such thing"), "{error}");
        let missing = Child::new("no-such-program").run().unwrap_err();
        assert_eq!(missing.kind(), Kind::NotFound);
    }

    #[test]
    fn programs_are_found_in_path_or_by_path() {
        let sh = find_program("sh").unwrap();
        assert_eq!(find_program(sh.to_str().unwrap()), Some(sh));
        assert_eq!(find_program("no-such-program"), None);
        assert_eq!(find_program("/etc/passwd"), None);
    }
}
