//! Health commands: run inside a container, they tell whether it works.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::spec::RunOptions;
use crate::command::Child;
use crate::error::{Kind, Result};
use crate::fail;
use crate::image::ImageConfig;

/// A label with a shell command, for images whose config cannot carry a health check (OCI).
const LABEL: &str = "atomic.health-cmd";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_RETRIES: u32 = 3;
/// How much of what the command said an error quotes.
const QUOTED_CHARS: usize = 300;

/// A health command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Its words.
    pub args: Vec<String>,
    /// Milliseconds one run may take.
    pub timeout_ms: u64,
    /// Failures in a row that are too many, once it succeeded.
    pub retries: u32,
}

impl Health {
    /// The health command of a container: what the person said, else the label, else the image's
    /// health check. `--health-cmd none` means none.
    pub fn of(image: &ImageConfig, options: &RunOptions) -> Option<Self> {
        let check = &image.config.healthcheck;
        let shell = |line: &str| vec!["/bin/sh".to_owned(), "-c".to_owned(), line.to_owned()];
        let said = options.health_cmd.as_deref().or_else(|| image.label(LABEL));
        let args = match said {
            Some("none" | "") => return None,
            Some(line) => shell(line),
            None => match check.test.split_first() {
                Some((kind, words)) if kind == "CMD" && !words.is_empty() => words.to_vec(),
                Some((kind, [line, ..])) if kind == "CMD-SHELL" => shell(line),
                _ => return None,
            },
        };
        let timeout = match check.timeout {
            0 => DEFAULT_TIMEOUT,
            nanoseconds => Duration::from_nanos(nanoseconds),
        };
        Some(Self {
            args,
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            retries: match check.retries {
                0 => DEFAULT_RETRIES,
                retries => retries,
            },
        })
    }

    /// Run it once in the container `name`, for at most `limit`.
    ///
    /// # Errors
    /// [`Kind::Failed`] with what it said, unless it ends with 0.
    pub fn run(&self, runtime: &str, name: &str, limit: Duration) -> Result<()> {
        let limit = limit.min(Duration::from_millis(self.timeout_ms));
        let finished = Child::new(runtime)
            .args(["exec", name])
            .args(&self.args)
            .output_within(limit)
            .map_err(|error| error.within("the health command"))?;
        if finished.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&finished.stdout);
        let said: String = said.trim().chars().take(QUOTED_CHARS).collect();
        fail!(
            Kind::Failed,
            "the health command ended with {}{}{said}",
            finished.status,
            if said.is_empty() { "" } else { ": " }
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(text: &str) -> ImageConfig {
        ImageConfig::parse(format!("{{\"config\":{text}}}").as_bytes()).unwrap()
    }

    #[test]
    fn what_the_person_says_comes_before_label_and_image() {
        let none = RunOptions::default();
        let words = |image: &ImageConfig, options: &RunOptions| {
            Health::of(image, options).map(|health| health.args.join(" "))
        };
        let checked = image(r#"{"Healthcheck":{"Test":["CMD","/check","x"],"Retries":2}}"#);
        assert_eq!(words(&checked, &none).unwrap(), "/check x");
        assert_eq!(Health::of(&checked, &none).unwrap().retries, 2);
        let labelled = image(
            r#"{"Healthcheck":{"Test":["CMD-SHELL","a"]},"Labels":{"atomic.health-cmd":"b"}}"#,
        );
        assert_eq!(words(&labelled, &none).unwrap(), "/bin/sh -c b");
        let said = RunOptions {
            health_cmd: Some("none".into()),
            ..RunOptions::default()
        };
        assert_eq!(words(&labelled, &said), None);
        for silent in [
            "{}",
            r#"{"Healthcheck":{"Test":["NONE"]}}"#,
            r#"{"Healthcheck":null}"#,
        ] {
            assert_eq!(words(&image(silent), &none), None, "{silent}");
        }
    }
}
