use std::process::ExitCode;

use clap::Subcommand;

use super::args::{ChangeArgs, ListArgs};
use super::{Call, inspect, rollback, uninstall, update};
use crate::container::list::{self, Row};
use crate::deployment::ContainerName;
use crate::error::{Kind, Result};
use crate::fail;
use crate::transaction::Host;

/// Commands for installed containers
#[derive(Debug, clap::Args)]
pub struct Containers {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    List(List),
    Delete(Delete),
    /// Update a container to what the store has; see "atomic-rs update" for one that pulls first
    Update(Box<update::Update>),
    Rollback(rollback::Rollback),
    Inspect(inspect::InspectContainer),
}

/// List containers: running ones, or all of them
#[derive(Debug, clap::Args)]
struct List {
    /// Stopped ones as well
    #[arg(short, long)]
    all: bool,
    /// Only rows where a column contains a text: container, name, image, command, created, state,
    /// runtime or backend; several filters must all match
    #[arg(short, long, value_name = "COLUMN=TEXT")]
    filter: Vec<String>,
    #[command(flatten)]
    show: ListArgs,
}

/// Uninstall containers
#[derive(Debug, clap::Args)]
struct Delete {
    /// All of them
    #[arg(short, long)]
    all: bool,
    /// Accepted for scripts written for the original
    #[arg(short, long, hide = true)]
    force: bool,
    #[command(flatten)]
    change: ChangeArgs,
    #[arg(long, hide = true)]
    storage: Option<String>,
    /// Installed containers
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

const COLUMNS: [(&str, usize); 9] = [
    ("", 1),
    ("CONTAINER ID", 12),
    ("IMAGE", 20),
    ("NAME", 10),
    ("COMMAND", 10),
    ("CREATED", 16),
    ("STATE", 10),
    ("BACKEND", 10),
    ("RUNTIME", 10),
];

const FILTERS: [&str; 8] = [
    "container",
    "name",
    "image",
    "command",
    "created",
    "state",
    "runtime",
    "backend",
];

impl Containers {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        match self.verb {
            Verb::List(verb) => verb.run(call),
            Verb::Delete(verb) => verb.run(call),
            Verb::Update(verb) => verb.run(call, false),
            Verb::Rollback(verb) => verb.run(call),
            Verb::Inspect(verb) => verb.run(call),
        }
    }
}

impl List {
    fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let filters = parse_filters(&self.filter, &FILTERS)?;
        let mut rows = list::list(call.config)?;
        rows.retain(|row| (self.all || row.running) && filters.iter().all(|f| matches(row, f)));
        for row in &rows {
            if let Some(problem) = &row.problem {
                call.out.note(format!("{}: {problem}", row.name));
            }
        }
        if self.show.quiet {
            for row in &rows {
                call.out.line(&row.name)?;
            }
        } else if self.show.json {
            call.out
                .json(&serde_json::to_value(&rows).unwrap_or_default())?;
        } else if !rows.is_empty() {
            let cells: Vec<Vec<String>> = rows.iter().map(cells).collect();
            call.out.table(
                &COLUMNS,
                &cells,
                !self.show.noheading,
                self.show.no_trunc,
                0,
            )?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn cells(row: &Row) -> Vec<String> {
    // The path cut to ten characters would tell nobody which runtime it is.
    let runtime = row.runtime.rsplit('/').next().unwrap_or_default();
    [
        "",
        &row.id,
        &row.image_name,
        &row.name,
        &row.command,
        &row.created,
        &row.state,
        row.backend,
        runtime,
    ]
    .map(str::to_owned)
    .to_vec()
}

fn matches(row: &Row, (key, value): &(String, String)) -> bool {
    let field = match key.as_str() {
        "container" | "name" => &row.id,
        "image" => &row.image_name,
        "command" => &row.command,
        "created" => &row.created,
        "state" => &row.state,
        "runtime" => &row.runtime,
        _ => row.backend,
    };
    field.to_lowercase().contains(&value.to_lowercase())
}

/// Read `KEY=TEXT` filters.
pub fn parse_filters(filters: &[String], keys: &[&str]) -> Result<Vec<(String, String)>> {
    filters
        .iter()
        .map(|text| {
            let Some((key, value)) = text.split_once('=') else {
                fail!(
                    Kind::Usage,
                    "The filter {text} is not formatted correctly.  It should be VAR=VALUE"
                );
            };
            if !keys.contains(&key) {
                let names: Vec<String> = keys.iter().map(|key| format!("'{key}'")).collect();
                fail!(
                    Kind::Usage,
                    "The filter {key} is not valid.  Please choose from [{}]",
                    names.join(", ")
                );
            }
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect()
}

impl Delete {
    fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        if self.all != self.names.is_empty() {
            fail!(
                Kind::Usage,
                "You must select --all or provide a list of containers to delete."
            );
        }
        let wanted: Vec<ContainerName> = self
            .names
            .iter()
            .map(|name| name.parse())
            .collect::<Result<_>>()?;
        let rows: Vec<Row> = list::list(call.config)?
            .into_iter()
            .filter(|row| self.all || wanted.iter().any(|name| name.as_str() == row.name))
            .collect();
        if let Some(missing) = wanted
            .iter()
            .find(|name| !rows.iter().any(|row| row.name == name.as_str()))
        {
            fail!(
                Kind::NotFound,
                "Unable to find backend associated with container '{missing}'"
            );
        }
        if rows.is_empty() {
            fail!(Kind::NotFound, "No containers to delete");
        }
        let steps: Vec<String> = rows
            .iter()
            .map(|row| format!("uninstall {}", row.name))
            .collect();
        if let Some(code) = self.change.told(call, "delete", &steps)? {
            return Ok(code);
        }
        call.out.line(if call.assumeyes {
            "The following containers will be deleted."
        } else {
            "Do you wish to delete the following containers?"
        })?;
        call.out.line("")?;
        let cells: Vec<Vec<String>> = rows
            .iter()
            .map(|row| {
                vec![
                    row.id.clone(),
                    row.name.clone(),
                    row.image_name.clone(),
                    row.backend.to_owned(),
                ]
            })
            .collect();
        let columns = [
            ("ID", 12),
            ("NAME", 20),
            ("IMAGE_NAME", 25),
            ("STORAGE", 10),
        ];
        call.out.table(&columns, &cells, true, false, 3)?;
        call.out.line("")?;
        let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
        if !call.assumeyes {
            call.out.confirm(&format!(
                "User aborted delete operation for {}",
                names.join(" ")
            ))?;
        }
        let host = Host::new(call.config);
        for name in names {
            uninstall::remove(call, &host, &name.parse()?, false, &ChangeArgs::default())?;
        }
        self.change.done(call, "delete", &steps)
    }
}
