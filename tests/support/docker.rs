//! Debian's docker daemon, with nothing of the host's: no bridge, no rules, a store of its own.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::must;

pub struct Docker {
    child: Child,
    // Sockets have short names.
    directory: tempfile::TempDir,
}

impl Docker {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        // It does not outlive a test that is killed.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "dockerd"])
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none"])
            .args(["--storage-driver=vfs", "--host"])
            .arg(format!("unix://{}", at("socket")))
            .args(["--data-root", &at("data"), "--exec-root", &at("exec")])
            .args(["--pidfile", &at("pid")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(at("log")).unwrap())
            .spawn()
            .expect("dockerd cannot run: run \"make deps\"");
        let docker = Self { child, directory };
        let start = Instant::now();
        while !docker
            .command()
            .arg("version")
            .output()
            .unwrap()
            .status
            .success()
        {
            let log = || std::fs::read_to_string(docker.path("log")).unwrap_or_default();
            assert!(
                start.elapsed() < Duration::from_mins(1),
                "dockerd does not start: {}",
                log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        docker
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// For `DOCKER_HOST`.
    pub fn host(&self) -> String {
        format!("unix://{}", self.path("socket").display())
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", self.host());
        command
    }

    pub fn run(&self, words: &[&str]) -> String {
        must(self.command().args(words))
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // It ends its containerd as well.
        let _ = Command::new("kill")
            .arg(self.child.id().to_string())
            .status();
        let _ = self.child.wait();
    }
}
