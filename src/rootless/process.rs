//! What to run in a container: the image's word, the person's word, and what is the rule between them.

use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

use crate::error::{Kind, Result};
use crate::fail;
use crate::image::config::RunConfig;
use crate::runtime::mounts::Volume;
use crate::runtime::{User, find_user};
use crate::safefs::Files;

/// Where programs are looked for if nobody says.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a person asks for.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// In place of the image's command.
    pub command: Vec<String>,
    /// In place of the image's entrypoint, whose command goes with it.
    pub entrypoint: Option<Vec<String>>,
    /// `NAME=value`, later ones win.
    pub env: Vec<String>,
    /// Have what we have ourselves, where nobody else says anything.
    pub host_env: bool,
    /// `user[:group]`, in place of the image's.
    pub user: Option<String>,
    /// In place of the image's.
    pub workdir: Option<String>,
    /// Binds.
    pub volumes: Vec<Volume>,
    /// Devices of the host.
    pub devices: Vec<Utf8PathBuf>,
    /// The host's name inside.
    pub hostname: Option<String>,
    /// Put up with an engine that does not hide all of the host.
    pub allow_leaky: bool,
    /// Have nothing of what the image says.
    pub without_metadata: bool,
}

/// What is run, but for whom the container's own files have to say.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Process {
    /// The program and its words.
    pub args: Vec<String>,
    /// `NAME=value`
    pub env: Vec<String>,
    /// `user[:group]`
    pub user: String,
    /// Where it starts.
    pub cwd: String,
    /// Whether that is made if it is missing, as for the image's own.
    pub makes_cwd: bool,
    /// Binds.
    pub volumes: Vec<Volume>,
    /// Devices of the host.
    pub devices: Vec<Utf8PathBuf>,
    /// The host's name inside.
    pub hostname: String,
}

/// Whom it runs as, and with what environment.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Numbers.
    pub user: User,
    /// `NAME=value`
    pub env: Vec<String>,
}

impl Process {
    /// Put together what the image says and what the person says.
    ///
    /// `host`: our own environment, for [`Wishes::host_env`].
    ///
    /// # Errors
    /// [`Kind::Usage`] if neither names a command.
    pub fn new(
        image: &RunConfig,
        wishes: Wishes,
        id: &str,
        host: &[(String, String)],
    ) -> Result<Self> {
        let args = words(image, &wishes);
        if args.is_empty() {
            fail!(
                Kind::Usage,
                "the image has neither entrypoint nor command: name a command"
            );
        }
        let mut env = Environment::default();
        env.set("PATH", DEFAULT_PATH);
        if wishes.host_env {
            for (name, value) in host {
                env.set(name, value);
            }
        } else if let Some((_, term)) = host.iter().find(|(name, _)| name == "TERM") {
            env.set("TERM", term);
        }
        for entry in image.env.iter().chain(&wishes.env) {
            if let Some((name, value)) = entry.split_once('=') {
                env.set(name, value);
            }
        }
        let (cwd, makes_cwd) = match wishes.workdir {
            Some(path) => (path, false),
            None if image.working_dir.is_empty() => ("/".to_owned(), false),
            None => (image.working_dir.clone(), true),
        };
        Ok(Self {
            args,
            env: env.into_list(),
            user: wishes.user.unwrap_or_else(|| image.user.clone()),
            cwd,
            makes_cwd,
            volumes: wishes.volumes,
            devices: wishes.devices,
            hostname: wishes
                .hostname
                .unwrap_or_else(|| id.chars().take(12).collect()),
        })
    }

    /// Look up the user in the container's files. HOME is what they say, unless it is set.
    pub fn resolve(&self, files: &dyn Files) -> Result<Resolved> {
        let user = find_user(files, &self.user)?;
        let mut env = self.env.clone();
        if !env.iter().any(|entry| entry.starts_with("HOME=")) {
            env.push(format!("HOME={}", user.home));
        }
        Ok(Resolved { user, env })
    }
}

fn words(image: &RunConfig, wishes: &Wishes) -> Vec<String> {
    let entrypoint = wishes.entrypoint.as_ref().unwrap_or(&image.entrypoint);
    let command = if !wishes.command.is_empty() {
        &wishes.command
    } else if wishes.entrypoint.is_none() {
        &image.cmd
    } else {
        &Vec::new()
    };
    entrypoint.iter().chain(command).cloned().collect()
}

#[derive(Default)]
struct Environment {
    order: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Environment {
    fn set(&mut self, name: &str, value: &str) {
        if self
            .values
            .insert(name.to_owned(), value.to_owned())
            .is_none()
        {
            self.order.push(name.to_owned());
        }
    }

    fn into_list(self) -> Vec<String> {
        let values = &self.values;
        self.order
            .iter()
            .map(|name| format!("{name}={}", values[name]))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn words_and_environment_follow_the_rules_of_docker() {
        let image = RunConfig {
            entrypoint: texts(&["entry"]),
            cmd: texts(&["default"]),
            env: texts(&["A=image", "B=image"]),
            working_dir: "/srv".into(),
            user: "web".into(),
            ..RunConfig::default()
        };
        let of = |wishes: Wishes| {
            Process::new(
                &image,
                wishes,
                "0123456789abcdef",
                &[("TERM".into(), "x".into()), ("C".into(), "host".into())],
            )
            .unwrap()
        };
        let plain = of(Wishes::default());
        assert_eq!(plain.args, ["entry", "default"]);
        assert_eq!(plain.env[1..], texts(&["TERM=x", "A=image", "B=image"]));
        assert_eq!(
            (plain.cwd.as_str(), plain.makes_cwd, plain.user.as_str()),
            ("/srv", true, "web")
        );
        assert_eq!(plain.hostname, "0123456789ab");
        let asked = of(Wishes {
            command: texts(&["mine"]),
            env: texts(&["A=mine"]),
            host_env: true,
            workdir: Some("/x".into()),
            ..Wishes::default()
        });
        assert_eq!(asked.args, ["entry", "mine"]);
        assert!(asked.env.contains(&"A=mine".into()) && asked.env.contains(&"C=host".into()));
        assert!(!asked.makes_cwd);
        let other = of(Wishes {
            entrypoint: Some(texts(&["sh"])),
            ..Wishes::default()
        });
        assert_eq!(other.args, ["sh"]);
        let none = Wishes {
            entrypoint: Some(Vec::new()),
            ..Wishes::default()
        };
        assert!(Process::new(&image, none, "x", &[]).is_err());
    }
}
