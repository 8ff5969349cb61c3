use std::process::ExitCode;

use serde_json::json;

use super::super::Call;
use super::super::args::ListArgs;
use crate::container::list::local_time;
use crate::error::Result;
use crate::rootless::{Container, Home};

/// List containers
#[derive(Debug, clap::Args)]
pub struct Ps {
    #[command(flatten)]
    show: ListArgs,
}

/// Show what is on record of a container, as JSON
#[derive(Debug, clap::Args)]
pub struct Inspect {
    /// A container, by id or name
    container: String,
}

const COLUMNS: [(&str, usize); 7] = [
    ("CONTAINER ID", 12),
    ("NAMES", 12),
    ("IMAGE", 30),
    ("MODE", 4),
    ("PLATFORM", 12),
    ("CREATED", 16),
    ("STATE", 9),
];

fn state(container: &Container) -> Result<&'static str> {
    Ok(if !container.holders()?.is_empty() {
        "running"
    } else if container.record.protected {
        "protected"
    } else {
        ""
    })
}

fn json_of(container: &Container, names: &[String]) -> Result<serde_json::Value> {
    let mut value = json!(container.record);
    value["names"] = json!(names);
    value["running"] = (!container.holders()?.is_empty()).into();
    value["root"] = json!(container.root());
    Ok(value)
}

impl Ps {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let home = Home::of(call.config);
        let containers = home.list()?;
        if self.show.quiet {
            for container in &containers {
                call.out.line(&container.record.id)?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let mut rows = Vec::new();
        let mut documents = Vec::new();
        for container in &containers {
            let record = &container.record;
            let names = home.names_of(&record.id)?;
            if self.show.json {
                documents.push(json_of(container, &names)?);
            }
            let id = record.id.clone();
            rows.push(vec![
                id,
                names.join(","),
                record.image.clone(),
                record.mode.to_string(),
                record.platform.clone(),
                local_time(record.created),
                state(container)?.to_owned(),
            ]);
        }
        if self.show.json {
            call.out.json(&documents.into())?;
        } else {
            call.out
                .table(&COLUMNS, &rows, !self.show.noheading, self.show.no_trunc, 0)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Inspect {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let home = Home::of(call.config);
        let container = home.require(&self.container)?;
        let names = home.names_of(&container.record.id)?;
        call.out.json(&json_of(&container, &names)?)?;
        Ok(ExitCode::SUCCESS)
    }
}
