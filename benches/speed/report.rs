//! What was measured, as text and as JSON.

use std::path::Path;
use std::process::Command;

use plotters::prelude::*;
use serde::Serialize;

use crate::measure::{Sample, median};

/// What one part of the benchmark found. The first row is ours.
#[derive(Debug, Serialize)]
pub struct Table {
    pub title: String,
    pub about: String,
    /// Whether the rows do the same.
    pub compares: bool,
    pub rows: Vec<Row>,
}

/// Somebody's samples, one for each round.
#[derive(Debug, Serialize)]
pub struct Row {
    pub who: String,
    pub samples: Vec<Sample>,
}

impl Row {
    pub fn new(who: &str) -> Self {
        Self {
            who: who.to_owned(),
            samples: Vec::new(),
        }
    }

    fn median(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        median(self.samples.iter().map(of).collect())
    }
}

impl Table {
    /// Our share of what somebody else took, if that is somebody else.
    fn ratio(&self, row: &Row, of: fn(&Sample) -> f64) -> Option<f64> {
        let ours = self.rows.first().filter(|_| self.compares)?;
        let theirs = row.median(of);
        (theirs > 0.0 && !std::ptr::eq(row, ours)).then(|| ours.median(of) / theirs)
    }

    /// As a table of medians, with our share of each other's wall time and processor time.
    pub fn markdown(&self) -> String {
        let mut out = format!(
            "## {}\n\n{}\n\n| | wall s | ours / theirs | CPU s | ours / theirs | peak MB | written MB | temporary MB |\n|---|---|---|---|---|---|---|---|\n",
            self.title, self.about
        );
        for row in &self.rows {
            let ratio = |of: fn(&Sample) -> f64| {
                let ratio = self.ratio(row, of).map(|ratio| format!("{ratio:.2}"));
                ratio.unwrap_or_default()
            };
            let is_script = row.samples.iter().any(|sample| sample.is_script);
            let own = |of: fn(&Sample) -> f64| {
                let known = (!is_script).then(|| megabytes(row.median(of)));
                known.unwrap_or_default()
            };
            out += &format!(
                "| {} | {:.3} | {} | {:.2} | {} | {} | {} | {} |\n",
                row.who.replace('|', "\\|"),
                row.median(|sample| sample.wall),
                ratio(|sample| sample.wall),
                row.median(|sample| sample.cpu),
                ratio(|sample| sample.cpu),
                own(|sample| sample.memory),
                own(|sample| sample.written),
                megabytes(row.median(|sample| sample.temporary)),
            );
        }
        out
    }
}

fn megabytes(bytes: f64) -> String {
    format!("{:.0}", bytes / 1e6)
}

/// What was measured, and where.
#[derive(Debug, Serialize)]
pub struct Results {
    rounds: usize,
    machine: Vec<String>,
    versions: Vec<String>,
    tables: Vec<Table>,
}

impl Results {
    pub fn new(rounds: usize, tables: Vec<Table>) -> Self {
        let versions = [
            "atomic-rs",
            "podman",
            "skopeo",
            "umoci",
            "tar",
            "gzip",
            "zstd",
            "ostree",
            "cp",
        ];
        Self {
            rounds,
            machine: machine(),
            versions: versions.iter().filter_map(|name| version(name)).collect(),
            tables,
        }
    }

    /// Write them down in `directory`: as text, as JSON and as a plot.
    pub fn write(&self, directory: &Path) -> Result<(), Box<dyn std::error::Error>> {
        let mut text = format!(
            "# What `make bench` found\n\nMedians of {} rounds, everybody in turn in one run, each from a cold store on an ext4 of its own. \
             The first row is ours; a ratio below 1 means that we took less. Our times include both digests of every layer, side data, the merged \
             tree and the closing syncs; nobody else syncs. \
             Peak memory and bytes written are those of the program itself, without its children; temporary is what was on the disk on the way and not at the end.\n\n![our share of the others' time](results.svg)\n\n",
            self.rounds
        );
        for line in self.machine.iter().chain(&self.versions) {
            text += &format!("- {line}\n");
        }
        for table in &self.tables {
            text += &format!("\n{}", table.markdown());
        }
        std::fs::write(directory.join("RESULTS.md"), text)?;
        let json = serde_json::to_string_pretty(self)?;
        std::fs::write(directory.join("results.json"), json + "\n")?;
        self.plot(&directory.join("results.svg"))
    }

    /// A bar for our share of each other's wall time.
    fn plot(&self, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
        const BAR: i32 = 22;
        const LEFT: i32 = 330;
        const UNIT: f64 = 300.0;
        let mut bars: Vec<(String, f64)> = Vec::new();
        for table in &self.tables {
            for row in &table.rows {
                if let Some(ratio) = table.ratio(row, |sample| sample.wall) {
                    bars.push((format!("{}: {}", table.title, row.who), ratio));
                }
            }
        }
        let height = BAR * i32::try_from(bars.len())? + 40;
        let size = (800, u32::try_from(height)?);
        let area = SVGBackend::new(path, size).into_drawing_area();
        area.fill(&WHITE)?;
        let font = ("sans-serif", 13).into_font();
        #[allow(clippy::cast_possible_truncation)]
        let right_of = |ratio: f64| LEFT + (ratio.min(1.4) * UNIT) as i32;
        for (number, (name, ratio)) in bars.iter().enumerate() {
            let top = 10 + BAR * i32::try_from(number)?;
            let color = if *ratio < 1.0 {
                RGBColor(60, 120, 180)
            } else {
                RGBColor(200, 110, 60)
            };
            let corners = [(LEFT, top + 3), (right_of(*ratio), top + BAR - 3)];
            area.draw(&Rectangle::new(corners, color.filled()))?;
            area.draw(&Text::new(name.clone(), (8, top + 5), font.clone()))?;
            let label = format!("{ratio:.2}");
            area.draw(&Text::new(
                label,
                (right_of(*ratio) + 6, top + 5),
                font.clone(),
            ))?;
        }
        let one = right_of(1.0);
        area.draw(&PathElement::new([(one, 5), (one, height - 30)], BLACK))?;
        area.draw(&Text::new(
            "1 = as long as they",
            (one - 50, height - 22),
            font,
        ))?;
        area.present()?;
        Ok(())
    }
}

/// The first line that a program says of its version.
fn version(name: &str) -> Option<String> {
    let program = match name {
        "atomic-rs" => crate::support::program(),
        other => other.into(),
    };
    let said = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let lines: Vec<&str> = text.lines().take(2).map(str::trim).collect();
    // ostree says it in the second line.
    let line = if name == "ostree" {
        lines.join(" ")
    } else {
        (*lines.first()?).to_owned()
    };
    Some(line)
}

fn machine() -> Vec<String> {
    let read = |file: &str, key: &str| -> Option<String> {
        let text = std::fs::read_to_string(file).ok()?;
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let model = read("/proc/cpuinfo", "model name").unwrap_or_default();
    let memory = read("/proc/meminfo", "MemTotal").unwrap_or_default();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    vec![format!(
        "{processors} processors ({model}), {memory}, Linux {}",
        kernel.trim()
    )]
}
