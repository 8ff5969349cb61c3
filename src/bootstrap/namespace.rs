//! Owners without root: a directory that is made by root of a user namespace, who may give files to the caller's
//! subordinate ids. The program calls itself for this.
//!
//! The one inside reads a task, and writes a line of JSON for whatever there is to tell; both are only for one another.

use std::io::{Read, Write};

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

use super::ids::Ids;
use super::{Form, Made, Progress, Request, Source};
use crate::config::Config;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::interrupt::Interrupt;
use crate::runtime::userns::Mapping;
use crate::store::Store;

/// The verb of the one inside.
pub const VERB: &str = "bootstrap-inside";
/// So many bytes are told at once.
const TOLD: u64 = 1 << 20;

/// What is to be made.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    from: From,
    destination: Utf8PathBuf,
    ids: Ids,
    root_password: Option<String>,
    force: bool,
}

#[derive(Debug, Serialize, Deserialize)]
enum From {
    /// A stored image, by its name.
    Image(String),
    Archive(Utf8PathBuf),
}

/// What the one inside has to tell.
#[derive(Debug, Serialize, Deserialize)]
enum Told {
    Begin(u64),
    Layer(usize, usize),
    Advance(u64),
    End,
    Made(Made),
    Failed(String),
}

/// Have it made.
pub fn make(
    config: &Config,
    source: &Source<'_>,
    request: &Request,
    progress: &mut dyn Progress,
) -> Result<Made> {
    let mapping = Mapping::of_user();
    let task = Task {
        from: match source {
            Source::Image(_, image) => From::Image(image.name.clone()),
            Source::Archive(path) => From::Archive(path.clone()),
        },
        destination: request.destination.clone(),
        ids: request.ids.inside(&mapping)?,
        root_password: request.root_password.clone(),
        force: request.force,
    };
    let task = serde_json::to_vec(&task).context(|| "cannot write JSON".into())?;
    let program = std::env::current_exe().context(|| "cannot find myself".into())?;
    let mut ended: Option<Result<Made>> = None;
    let ran = mapping.run_as_root_heard(
        &program.to_string_lossy(),
        &[VERB],
        &task,
        |line| match serde_json::from_str(line) {
            Ok(Told::Begin(bytes)) => progress.begin(bytes),
            Ok(Told::Layer(number, of)) => progress.layer(number, of),
            Ok(Told::Advance(bytes)) => progress.advance(bytes),
            Ok(Told::End) => progress.end(),
            Ok(Told::Made(made)) => ended = Some(Ok(made)),
            Ok(Told::Failed(text)) => ended = Some(Err(Error::new(Kind::Failed, text))),
            Err(error) => tracing::debug!(%error, line, "not understood"),
        },
        || config.interrupt.check().is_err(),
    );
    config.interrupt.check()?;
    match ended {
        Some(Err(error)) => Err(error),
        ended => {
            ran?;
            match ended {
                Some(made) => made,
                None => fail!(Kind::Failed, "nobody said what was made"),
            }
        }
    }
}

/// Do what a task says, as root of a user namespace.
///
/// # Errors
/// Whatever went wrong, which was told already.
pub fn make_inside(task: impl Read, out: impl Write) -> Result<()> {
    let mut teller = Teller { out, untold: 0 };
    let made = make_told(task, &mut teller).inspect_err(|error| {
        teller.tell(&Told::Failed(error.to_string()));
    })?;
    teller.tell(&Told::Made(made));
    Ok(())
}

fn make_told(task: impl Read, teller: &mut dyn Progress) -> Result<Made> {
    let task: Task = serde_json::from_reader(task).kind(Kind::Invalid, || "not a task".into())?;
    let config = Config::of_user(Interrupt::listen()?)?;
    let request = Request {
        destination: task.destination,
        form: Form::Directory,
        ids: task.ids,
        owners: None,
        root_password: task.root_password,
        force: task.force,
    };
    match task.from {
        From::Archive(path) => super::make(&config, &Source::Archive(path), &request, teller),
        From::Image(name) => {
            let store = Store::open(&config)?;
            let image = store.find_one(&name)?;
            super::make(&config, &Source::Image(&store, &image), &request, teller)
        }
    }
}

struct Teller<W> {
    out: W,
    /// Bytes that were not told of yet.
    untold: u64,
}

impl<W: Write> Teller<W> {
    fn tell(&mut self, told: &Told) {
        // Who does not read it any more has been killed; that ends us, too.
        let _ = serde_json::to_writer(&mut self.out, told);
        let _ = self.out.write_all(b"\n").and_then(|()| self.out.flush());
    }
}

impl<W: Write> Progress for Teller<W> {
    fn begin(&mut self, bytes: u64) {
        self.tell(&Told::Begin(bytes));
    }

    fn layer(&mut self, number: usize, of: usize) {
        self.tell(&Told::Layer(number, of));
    }

    fn advance(&mut self, bytes: u64) {
        self.untold += bytes;
        if self.untold >= TOLD {
            self.tell(&Told::Advance(self.untold));
            self.untold = 0;
        }
    }

    fn end(&mut self) {
        self.tell(&Told::Advance(self.untold));
        self.untold = 0;
        self.tell(&Told::End);
    }
}
