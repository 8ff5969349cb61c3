//! A directory with a store of its own, to run verbs in.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::{Said as _, Scratch, must, program};

pub struct Place {
    scratch: Scratch,
    verb: &'static str,
}

impl Place {
    /// For what this verb's own verbs do.
    pub fn new(verb: &'static str) -> Self {
        Self {
            scratch: Scratch::new(verb),
            verb,
        }
    }

    pub fn directory(&self) -> &Path {
        self.scratch.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    pub fn command(&self, words: &str) -> Command {
        let mut command = Command::new(program());
        command
            .arg(self.verb)
            .args(words.split_whitespace())
            .current_dir(self.scratch.path())
            .env("ATOMIC_OSTREE_CHECKOUT_PATH", self.path("store"))
            .env("ATOMIC_RS_CONFIG", "/no/such/file");
        command
    }

    pub fn run(&self, words: &str) -> Output {
        self.command(words).output().unwrap()
    }

    pub fn ok(&self, words: &str) -> String {
        let output = self.run(words);
        assert_eq!(output.code(), 0, "{words}: {}", output.err());
        output.out()
    }

    pub fn refused(&self, words: &str, why: &str) {
        let output = self.run(words);
        assert_ne!(output.code(), 0, "{words}");
        assert!(output.err().contains(why), "{words}: {}", output.err());
    }

    pub fn sh(&self, script: &str) -> String {
        must(
            Command::new("sh")
                .args(["-ec", script])
                .current_dir(self.scratch.path()),
        )
    }
}
