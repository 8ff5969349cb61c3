//! How far it is: a bar on a terminal, a line a step elsewhere, and JSON for programs.
//!
//! # Format
//! `--progress-fd N` gets a JSON object a line, whenever something begins, takes its next step or ends, and ten times a
//! second between:
//! `{"version": 1, "phase": "pull", "step": "layer sha256:…", "bytes": 123, "total": 456, "done": false}`.
//! `phase`: `pull`, `unpack`, `pack` or `upload`. `step`: in words, or null. `bytes`: so many of `total`, which is null
//! where nobody knows. Other keys may come.

use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::image::Digest;
use crate::{bootstrap, inject, pull};

/// Between two lines that only say how many bytes.
const INTERVAL: Duration = Duration::from_millis(100);

/// Shows it.
pub struct Meter {
    bar: ProgressBar,
    is_terminal: bool,
    is_quiet: bool,
    lines: Option<File>,
    phase: &'static str,
    step: Option<String>,
    bytes: u64,
    total: Option<u64>,
    written: Option<Instant>,
}

impl Meter {
    /// One that shows nothing yet. `lines`: where JSON goes.
    pub fn new(lines: Option<File>) -> Self {
        Self {
            bar: ProgressBar::hidden(),
            is_terminal: std::io::stderr().is_terminal(),
            is_quiet: false,
            lines,
            phase: "",
            step: None,
            bytes: 0,
            total: None,
            written: None,
        }
    }

    /// The same with nothing on stderr.
    #[must_use]
    pub fn quiet(mut self, is_quiet: bool) -> Self {
        self.is_quiet = is_quiet;
        self
    }

    fn start(&mut self, phase: &'static str, total: Option<u64>) {
        (self.phase, self.total) = (phase, total);
        (self.bytes, self.step) = (0, None);
        if self.is_terminal && !self.is_quiet {
            let template = match total {
                Some(_) => "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
                None => "{msg} {spinner} {bytes}",
            };
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            self.bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr())
                .with_style(style);
            self.bar.enable_steady_tick(Duration::from_millis(200));
        }
        self.write(false);
    }

    /// `shown`: on the bar. Where there is none, `line` is a line of its own.
    fn step(&mut self, step: String, shown: String, line: Option<String>) {
        if let (Some(line), false, false) = (line, self.is_terminal, self.is_quiet) {
            say!("{line}");
        }
        self.bar.set_message(shown);
        self.step = Some(step);
        self.write(false);
    }

    fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.bar.inc(bytes);
        if self.written.is_some_and(|at| at.elapsed() >= INTERVAL) {
            self.write(false);
        }
    }

    fn finish(&mut self) {
        self.bar.finish_and_clear();
        // What is no content is not counted on the way.
        self.bytes = self.total.unwrap_or(self.bytes).max(self.bytes);
        self.write(true);
    }

    fn write(&mut self, is_done: bool) {
        let Some(lines) = &mut self.lines else {
            return;
        };
        let line = json!({
            "version": 1, "phase": self.phase, "step": self.step,
            "bytes": self.bytes, "total": self.total, "done": is_done,
        });
        // Who does not read it any more is no reason to stop.
        if writeln!(lines, "{line}").is_err() {
            self.lines = None;
        }
        self.written = Some(Instant::now());
    }
}

impl pull::Progress for Meter {
    fn begin(&mut self, layers: usize, present: usize, bytes: u64) {
        tracing::debug!(layers, present, bytes, "pull");
        if layers > 0 {
            self.start("pull", Some(bytes));
            self.bar.set_message(format!("{layers} layers"));
        }
    }

    fn layer(&mut self, digest: Digest, _: u64) {
        let hex = digest.hex();
        let shown = format!("layer {}", &hex[..12]);
        self.step(
            format!("layer {digest}"),
            shown,
            Some(format!("Pulling layer {hex}")),
        );
    }

    fn advance(&mut self, bytes: u64) {
        self.add(bytes);
    }

    fn end(&mut self) {
        if self.phase == "pull" {
            self.finish();
        }
    }
}

impl bootstrap::Progress for Meter {
    fn begin(&mut self, bytes: u64) {
        self.start("unpack", Some(bytes));
    }

    fn layer(&mut self, number: usize, of: usize) {
        let text = format!("Unpacking layer {number}/{of}");
        self.step(format!("layer {number}/{of}"), text.clone(), Some(text));
    }

    fn advance(&mut self, bytes: u64) {
        self.add(bytes);
    }

    fn end(&mut self) {
        self.finish();
    }
}

impl inject::Progress for Meter {
    fn begin(&mut self, what: inject::Work, bytes: Option<u64>) {
        let (phase, shown) = match what {
            inject::Work::Pack => ("pack", "Packing"),
            inject::Work::Copy => ("upload", "Copying layer"),
            inject::Work::Upload => ("upload", "Uploading layer"),
            inject::Work::Fetch => ("pull", "Fetching layer"),
        };
        self.start(phase, bytes);
        self.step(shown.to_lowercase(), shown.to_owned(), None);
    }

    fn advance(&mut self, bytes: u64) {
        self.add(bytes);
    }

    fn end(&mut self) {
        self.finish();
    }
}
