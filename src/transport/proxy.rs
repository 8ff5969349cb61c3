//! The protocol of skopeo's image proxy: one request and one answer at a time, as JSON on a socket, and what
//! is long through pipes whose ends come with the answers.
//!
//! Source: skopeo's `cmd/skopeo/proxy.go`, protocol 0.2.3 (skopeo 1.7) and later.

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Seek as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::process::{Child as Process, Command, Stdio};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags,
    SocketType,
};
use rustix::process::{Pid, WaitId, WaitIdOptions, WaitIdStatus};
use serde_json::{Value, json};

use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::interrupt::Interrupt;

/// More than one message has.
const MAX_MESSAGE_BYTES: usize = 32 * 1024;
/// The oldest version of the protocol that is understood: the third number of 0.2.
const OLDEST: u32 = 3;
/// How often a signal is looked for while skopeo is silent.
const LOOK: Duration = Duration::from_millis(50);
/// After so long without a byte skopeo is asked whether what it sends failed.
const SILENCE: Duration = Duration::from_secs(3);
/// Who sends less in the time that is waited for a registry, sends nothing.
const FEW_BYTES: u64 = 4096;
/// How long skopeo may take to put its things away.
const CLOSE: Duration = Duration::from_secs(2);
/// So much of what was not read is read all the same, so that skopeo can say how it went.
const MAX_REST: u64 = 4 * 1024 * 1024;
/// Between two looks whether it has ended.
const POLL: Duration = Duration::from_millis(1);
/// Room of a pipe, for which 64 KiB would mean a change of threads for each piece of what it carries.
const PIPE_BYTES: usize = 1024 * 1024;

/// A skopeo that answers, with one image open.
pub struct Proxy {
    skopeo: Process,
    stderr: File,
    // Only gone while being dropped: by its end skopeo knows that it is not needed any more.
    socket: Option<OwnedFd>,
    line: Mutex<Line>,
    freed: Condvar,
    interrupt: Interrupt,
    /// How long it is waited for an answer, and for some bytes.
    patience: Option<Duration>,
    image: Value,
}

#[derive(Clone, Copy, PartialEq)]
enum Line {
    Free,
    Taken,
    /// Somebody did not wait for an answer: whoever asks next would get it.
    Lost,
}

/// An answer.
struct Answer {
    value: Value,
    pipe: Option<(u64, File)>,
}

/// Whoever has it may ask, and nobody else until it is dropped.
struct Turn<'p> {
    proxy: &'p Proxy,
    is_waiting: bool,
}

impl Proxy {
    /// Start `command`, which becomes the proxy, and open the image that `reference` names in skopeo's way.
    ///
    /// `patience`: whoever is silent for so long is given up.
    ///
    /// # Errors
    /// [`Kind::Transport`] in skopeo's words.
    pub fn open(
        mut command: Command,
        reference: &str,
        patience: Option<Duration>,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let failed = || "cannot start skopeo".into();
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .context(failed)?;
        let stderr = tempfile::tempfile().context(failed)?;
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null());
        command.stderr(stderr.try_clone().context(failed)?);
        let skopeo = command.spawn().context(failed)?;
        // It has skopeo's end of the socket, whose closing must be seen.
        drop(command);
        let mut proxy = Self {
            skopeo,
            stderr,
            socket: Some(ours),
            line: Mutex::new(Line::Free),
            freed: Condvar::new(),
            interrupt: interrupt.clone(),
            patience,
            image: Value::Null,
        };
        let version = proxy.ask("Initialize", &[])?.value;
        let version = version.as_str().unwrap_or_default();
        let patch = version.strip_prefix("0.2.").map(str::parse::<u32>);
        if !patch.is_some_and(|patch| patch.is_ok_and(|patch| patch >= OLDEST)) {
            fail!(
                Kind::Transport,
                "skopeo's image proxy has the version {version}, and 0.2.{OLDEST} or a later 0.2 is needed"
            );
        }
        proxy.image = proxy.ask("OpenImage", &[reference.into()])?.value;
        Ok(proxy)
    }

    /// The manifest's digest, and its bytes as they are in OCI's form.
    ///
    /// `limit`: so long it may be.
    pub fn manifest(&self, limit: u64) -> Result<(String, Vec<u8>)> {
        let answer = self.ask("GetManifest", std::slice::from_ref(&self.image))?;
        let digest = answer.value.as_str().unwrap_or_default().to_owned();
        // Its length is not known, and so its end must be asked for.
        let mut content = self.content(answer, 0)?;
        let mut bytes = Vec::new();
        let read = (&mut content)
            .take(limit.saturating_add(1))
            .read_to_end(&mut bytes);
        content.finish()?;
        read.context(|| "cannot read the manifest".into())?;
        if bytes.len() as u64 > limit {
            fail!(Kind::Invalid, "the manifest has more than {limit} bytes");
        }
        Ok((digest, bytes))
    }

    /// A blob of `size` bytes as a stream.
    pub fn blob(&self, digest: &str, size: u64) -> Result<Content<'_>> {
        let answer = self.ask("GetBlob", &[self.image.clone(), digest.into(), size.into()])?;
        self.content(answer, size)
    }

    fn content(&self, answer: Answer, size: u64) -> Result<Content<'_>> {
        let Some((id, pipe)) = answer.pipe else {
            fail!(Kind::Transport, "skopeo sent an answer without a pipe");
        };
        rustix::io::ioctl_fionbio(&pipe, true).context(|| "cannot read from skopeo".into())?;
        // Whoever may have no more has a slower one.
        let _ = rustix::pipe::fcntl_setpipe_size(&pipe, PIPE_BYTES);
        Ok(Content {
            proxy: self,
            id,
            pipe: Some(pipe),
            left: size,
            turn: None,
            outcome: None,
            waited: Duration::ZERO,
            came: 0,
        })
    }

    fn ask(&self, method: &str, args: &[Value]) -> Result<Answer> {
        let mut turn = self.turn()?;
        turn.send(method, args)?;
        turn.receive()
    }

    /// Wait for one of them, but not for long; true if there is something.
    fn wait(what: &mut [PollFd<'_>]) -> Result<bool> {
        let look = Timespec {
            tv_sec: 0,
            tv_nsec: LOOK.subsec_nanos().into(),
        };
        match poll(what, Some(&look)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error).context(|| "cannot wait for skopeo".into()),
        }
    }

    /// Fail if it was waited too long for so few bytes.
    fn check_patience(&self, waited: Duration, came: u64) -> Result<()> {
        match self.patience {
            Some(patience) if waited >= patience && came < FEW_BYTES => fail!(
                Kind::Transport,
                "{came} bytes came in {} seconds (registry_timeout in the configuration)",
                patience.as_secs()
            ),
            _ => Ok(()),
        }
    }

    fn socket(&self) -> &OwnedFd {
        match &self.socket {
            Some(socket) => socket,
            None => unreachable!("the socket is only gone while being dropped"),
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        // A thread that panicked has dropped its turn.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The turn to ask, as soon as nobody else has it.
    fn turn(&self) -> Result<Turn<'_>> {
        let mut line = self.line();
        while *line == Line::Taken {
            let waited = self.freed.wait_timeout(line, LOOK);
            line = waited.unwrap_or_else(PoisonError::into_inner).0;
            self.interrupt.check()?;
        }
        self.take(&mut line).ok_or_else(|| {
            Error::new(
                Kind::Transport,
                "skopeo was asked for something and not listened to",
            )
        })
    }

    fn try_turn(&self) -> Option<Turn<'_>> {
        self.take(&mut self.line())
    }

    fn take(&self, line: &mut Line) -> Option<Turn<'_>> {
        if *line != Line::Free {
            return None;
        }
        *line = Line::Taken;
        Some(Turn {
            proxy: self,
            is_waiting: false,
        })
    }

    /// What it printed before it ended, or else how it ended.
    fn last_words(&self) -> String {
        let mut text = Vec::new();
        let mut stderr = &self.stderr;
        // Without its words the error is still one.
        let _ = stderr.rewind().and_then(|()| stderr.read_to_end(&mut text));
        let text = String::from_utf8_lossy(&text).trim().to_owned();
        if !text.is_empty() {
            return text;
        }
        // It is not waited for in earnest: that is for whoever closes it.
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        let until = Instant::now() + CLOSE;
        loop {
            let id = WaitId::Pid(Pid::from_child(&self.skopeo));
            let status = rustix::process::waitid(id, look).ok().flatten();
            let signal = status.as_ref().and_then(WaitIdStatus::terminating_signal);
            let number = status.as_ref().and_then(WaitIdStatus::exit_status);
            match (signal, number) {
                (Some(signal), _) => return format!("by signal {signal}"),
                (_, Some(number)) => return format!("with status {number}"),
                _ if Instant::now() >= until => return "without a word".into(),
                _ => std::thread::sleep(POLL),
            }
        }
    }

    /// Have it remove what it unpacked, for which some sources need it, and wait for its end.
    fn close(&mut self) {
        let until = Instant::now() + CLOSE;
        if let Some(mut turn) = self.try_turn()
            && turn
                .send("CloseImage", std::slice::from_ref(&self.image))
                .is_ok()
        {
            let mut answer = [PollFd::new(self.socket(), PollFlags::IN)];
            while Instant::now() < until && !Self::wait(&mut answer).unwrap_or(true) {}
        }
        drop(self.socket.take());
        while Instant::now() < until && matches!(self.skopeo.try_wait(), Ok(None)) {
            std::thread::sleep(POLL);
        }
        if let Ok(None) = self.skopeo.try_wait() {
            tracing::debug!("skopeo did not end in time");
            let _ = self.skopeo.kill();
            let _ = self.skopeo.wait();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.close();
    }
}

impl Turn<'_> {
    fn send(&mut self, method: &str, args: &[Value]) -> Result<()> {
        tracing::trace!(method, "asks");
        let message = json!({"method": method, "args": args}).to_string();
        let socket = self.proxy.socket();
        // Without the flag a skopeo that has ended would end us.
        if rustix::net::send(socket, message.as_bytes(), SendFlags::NOSIGNAL).is_err() {
            return Err(self.ended());
        }
        self.is_waiting = true;
        Ok(())
    }

    /// Wait for the answer.
    fn receive(&mut self) -> Result<Answer> {
        let proxy = self.proxy;
        let begun = Instant::now();
        while !Proxy::wait(&mut [PollFd::new(proxy.socket(), PollFlags::IN)])? {
            proxy.interrupt.check()?;
            proxy.check_patience(begun.elapsed(), 0)?;
        }
        self.is_waiting = false;
        let mut message = vec![0; MAX_MESSAGE_BYTES];
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut room);
        let received = rustix::net::recvmsg(
            proxy.socket(),
            &mut [IoSliceMut::new(&mut message)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        );
        let bytes = match received {
            Ok(received) if received.bytes > 0 => received.bytes,
            _ => return Err(self.ended()),
        };
        let pipes = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(pipes) => Some(pipes),
            _ => None,
        });
        let pipe = pipes.flatten().next();
        let mut answer: Value = serde_json::from_slice(&message[..bytes])
            .kind(Kind::Transport, || "skopeo's answer is not JSON".into())?;
        if answer["success"] != true {
            let error = answer["error"].as_str().unwrap_or("it does not say why");
            return Err(Error::new(Kind::Transport, error));
        }
        let id = answer["pipeid"].as_u64();
        Ok(Answer {
            value: answer["value"].take(),
            pipe: id.zip(pipe.map(File::from)),
        })
    }

    fn ended(&self) -> Error {
        Error::new(
            Kind::Transport,
            format!("skopeo ended: {}", self.proxy.last_words()),
        )
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.proxy.line() = if self.is_waiting {
            Line::Lost
        } else {
            Line::Free
        };
        self.proxy.freed.notify_all();
    }
}

/// What comes through a pipe.
pub struct Content<'p> {
    proxy: &'p Proxy,
    id: u64,
    /// Gone when nothing more is wanted of it.
    pipe: Option<File>,
    /// Bytes that are still to come.
    left: u64,
    /// Held while skopeo is asked how it went.
    turn: Option<Turn<'p>>,
    outcome: Option<Result<()>>,
    /// How long it was waited, and for how many bytes, since that was last looked at.
    waited: Duration,
    came: u64,
}

impl<'p> Content<'p> {
    /// Hear whether it arrived whole. Call it in every case, after reading: it says why a stream ended early.
    pub fn finish(mut self) -> Result<()> {
        // Whatever was not read must be, or skopeo waits for us while we wait for it; but if it is much, or has no
        // end, skopeo must hear that nobody reads it.
        let drained = io::copy(&mut (&mut self).take(MAX_REST), &mut io::sink());
        let drained = drained.context(|| "cannot read from skopeo".into())?;
        if drained == MAX_REST {
            self.pipe = None;
            // It says that nobody reads it, which whoever stopped reading knows, and why.
            let _ = self.asked()?.receive();
            return Ok(());
        }
        match self.outcome.take() {
            Some(outcome) => outcome,
            None => self.asked()?.receive().map(|_| ()),
        }
    }

    /// Ask skopeo how it went, as soon as nobody else asks for something.
    fn asked(&mut self) -> Result<&mut Turn<'p>> {
        let turn = match self.turn.take() {
            Some(turn) => turn,
            None => self.begin(self.proxy.turn()?)?,
        };
        Ok(self.turn.insert(turn))
    }

    fn begin(&self, mut turn: Turn<'p>) -> Result<Turn<'p>> {
        turn.send("FinishPipe", &[self.id.into()])?;
        Ok(turn)
    }

    /// Count from now on, if it was waited for as long as it may be.
    fn look_at_clock(&mut self) -> Result<()> {
        self.proxy.check_patience(self.waited, self.came)?;
        if self
            .proxy
            .patience
            .is_some_and(|patience| self.waited >= patience)
        {
            (self.waited, self.came) = (Duration::ZERO, 0);
        }
        Ok(())
    }

    /// Ask if it is time to, and wait a moment.
    fn listen(&mut self, begun: Instant) -> Result<()> {
        if self.outcome.is_none() {
            if self.left == 0 {
                self.asked()?;
            } else if self.turn.is_none() && begun.elapsed() >= SILENCE {
                let turn = self.proxy.try_turn();
                self.turn = turn.map(|turn| self.begin(turn)).transpose()?;
            }
        }
        self.wait()
    }

    /// Wait a moment for bytes, and for an answer if skopeo was asked.
    fn wait(&mut self) -> Result<()> {
        self.proxy.interrupt.check()?;
        let Some(pipe) = &self.pipe else {
            return Ok(());
        };
        let mut what = vec![PollFd::new(pipe, PollFlags::IN)];
        if self.turn.is_some() {
            what.push(PollFd::new(self.proxy.socket(), PollFlags::IN));
        }
        Proxy::wait(&mut what)?;
        let is_answered = what.get(1).is_some_and(|what| !what.revents().is_empty());
        if is_answered && let Some(mut turn) = self.turn.take() {
            self.outcome = Some(turn.receive().map(|_| ()));
        }
        Ok(())
    }
}

impl Read for Content<'_> {
    /// skopeo closes its end of the pipe only when it is asked how it went, and answers nothing else until the
    /// content is through. So it is asked at the end, or when it has been silent for so long that it may have failed.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let begun = Instant::now();
        loop {
            let Some(pipe) = &self.pipe else {
                return Ok(0);
            };
            match rustix::io::read(pipe, &mut *buffer) {
                Ok(n) => {
                    self.left = self.left.saturating_sub(n as u64);
                    self.came += n as u64;
                    self.waited += begun.elapsed();
                    self.look_at_clock().map_err(io::Error::other)?;
                    return Ok(n);
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            self.listen(begun).map_err(io::Error::other)?;
            let waited = self.waited + begun.elapsed();
            self.proxy
                .check_patience(waited, self.came)
                .map_err(io::Error::other)?;
        }
    }
}
