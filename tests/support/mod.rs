//! What the tests stand on: a real registry, real images, a real systemd host. Nothing is mocked.
#![allow(dead_code, missing_docs, unreachable_pub, unused_imports)] // each test uses a part

pub mod debian;
pub mod disk;
pub mod docker;
pub mod host;
pub mod images;
pub mod place;
pub mod random;
pub mod registry;
pub mod scene;
pub mod targets;
pub mod tokens;
pub mod tree;
pub mod user;
pub mod whole;
pub mod wicked;
pub mod wire;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub use host::Host;
pub use place::Place;
pub use random::Random;
pub use registry::Registry;
pub use user::User;

/// A directory on the real disk (hard links and overlay uppers need one), removed when dropped.
/// Those of processes that died are swept by whoever comes next.
pub struct Scratch {
    path: PathBuf,
}

static COUNTER: AtomicU32 = AtomicU32::new(0);

impl Scratch {
    pub fn new(what: &str) -> Self {
        let base = base();
        std::fs::create_dir_all(&base).unwrap();
        sweep(&base);
        let path = base.join(format!(
            "{}-{}-{what}",
            std::process::id(),
            COUNTER.fetch_add(1, Ordering::Relaxed)
        ));
        std::fs::create_dir_all(&path).unwrap();
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// `target/tmp/atomic-rs-tests`, found from where this very program is.
fn base() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let target = exe
        .ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").exists())
        .unwrap();
    target.join("tmp/atomic-rs-tests")
}

fn sweep(base: &Path) {
    for entry in std::fs::read_dir(base).unwrap().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let Some(pid) = name
            .split('-')
            .next()
            .and_then(|pid| pid.parse::<u32>().ok())
        else {
            continue;
        };
        if !Path::new(&format!("/proc/{pid}")).exists() {
            if let Ok(pid) = std::fs::read_to_string(entry.path().join("pid")) {
                kill_if_ours(&pid, &entry.path());
            }
            remove(&entry.path());
        }
    }
}

/// Kill a left-over process by its number, if it still is the one that was written down.
fn kill_if_ours(pid: &str, path: &Path) {
    let pid = pid.trim();
    let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    if String::from_utf8_lossy(&cmdline).contains(&*path.to_string_lossy()) {
        let _ = Command::new("kill").args(["-KILL", pid]).status();
    }
}

fn remove(path: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let prefix = path.to_string_lossy().into_owned();
    let mut below: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|mount| mount.starts_with(&prefix))
        .collect();
    below.sort_unstable();
    for mount in below.iter().rev() {
        let _ = Command::new("umount").args(["-l", mount]).status();
    }
    let _ = std::fs::remove_dir_all(path);
}

/// Whether the long forms of tests are wanted, which take hours.
pub fn is_torture() -> bool {
    std::env::var_os("ATOMIC_RS_TORTURE").is_some()
}

/// The program under test.
pub fn program() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let profile = exe
        .ancestors()
        .find(|dir| dir.join("atomic-rs").is_file())
        .expect("the program is built beside the tests");
    profile.join("atomic-rs")
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// Run a command that must work; its stdout.
pub fn must(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?} cannot run: {error}: run \"make deps\""));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// What a finished command said.
pub trait Said {
    fn out(&self) -> String;
    fn err(&self) -> String;
    fn code(&self) -> i32;
}

impl Said for Output {
    fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
    fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
    fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }
}

/// The answer of an HTTP server on loopback, or nothing if there is none.
pub fn http_get(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream
        .write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
        .ok()?;
    let mut text = String::new();
    // A server behind nc may reset after its answer.
    let _ = stream.read_to_string(&mut text);
    (!text.is_empty()).then_some(text)
}

/// Wait until the server answers with `wanted`.
pub fn wait_for_answer(port: u16, wanted: &str) -> String {
    let start = Instant::now();
    let mut last = None;
    while start.elapsed() < Duration::from_secs(15) {
        last = http_get(port);
        if let Some(text) = &last
            && text.contains(wanted)
        {
            return text.clone();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("port {port} should answer \"{wanted}\" and answered {last:?}");
}

/// The longest time without an answer while `act` runs; a client asks every 10 ms.
pub fn outage(port: u16, act: impl FnOnce()) -> Duration {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
            while !done.load(Ordering::SeqCst) {
                if http_get(port).is_some() {
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            longest
        });
        std::thread::sleep(Duration::from_millis(100));
        act();
        std::thread::sleep(Duration::from_millis(300));
        done.store(true, Ordering::SeqCst);
        client.join().unwrap()
    })
}
