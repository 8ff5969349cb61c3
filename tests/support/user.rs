//! An ordinary user of a host.

use std::process::{Command, Output};

use super::{Host, Said as _};

/// The user's home directory.
pub const HOME: &str = "/home/someone";

pub struct User<'h> {
    host: &'h Host,
    env: Vec<String>,
}

impl<'h> User<'h> {
    /// A user with ranges and a manager of their own.
    pub fn new(host: &'h Host) -> Self {
        host.ok("useradd -m someone");
        host.sh("usermod -v 300000-300009 someone; usermod -w 300000-300009 someone");
        let uid = host.ok("id -u someone");
        let uid = uid.trim();
        host.ok(&format!("systemctl start user@{uid}"));
        let env = [
            format!("HOME={HOME}"),
            format!("XDG_RUNTIME_DIR=/run/user/{uid}"),
            "ATOMIC_RS_CONFIG=/etc/atomic-rs.toml".into(),
        ];
        Self {
            host,
            env: env.into(),
        }
    }

    /// The same with all containers on a real disk: an overlay can be written to nowhere else.
    pub fn on_disk(host: &'h Host) -> Self {
        let mut user = Self::new(host);
        host.ok("install -d -o someone -g someone /var/lib/containers/someone");
        user.env
            .push("ATOMIC_OSTREE_CHECKOUT_PATH=/var/lib/containers/someone".into());
        user
    }

    /// The same without ranges of ids.
    pub fn without_ranges(self) -> Self {
        self.host.ok("sed -i /^someone:/d /etc/subuid /etc/subgid");
        self
    }

    /// A line of the shell as this user.
    pub fn shell(&self, words: &str) -> Command {
        let mut command = self.host.command("setpriv");
        command
            .args(["--reuid=someone", "--regid=someone", "--init-groups", "env"])
            .args(&self.env)
            .args(["sh", "-c", words]);
        command
    }

    pub fn command(&self, words: &str) -> Output {
        self.shell(words).output().unwrap()
    }

    pub fn ok(&self, words: &str) -> String {
        let output = self.command(words);
        assert!(
            output.status.success(),
            "{words}: {}: {}{}",
            output.status,
            output.out(),
            output.err()
        );
        output.out()
    }
}
