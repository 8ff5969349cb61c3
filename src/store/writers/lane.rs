//! The way of one layer's files to the threads that write them.
//!
//! Small files go in batches: waking a thread costs more than writing one of them.

use std::collections::HashMap;
use std::io::Read;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex};

use super::super::objects::Checksum;
use super::form::{FileMeta, Form, Manner};
use super::{lock, wait};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;

/// What a batch has room for.
const BATCH_BYTES: usize = 512 * 1024;
const BATCH_FILES: usize = 256;
/// Larger files are handed over piece by piece.
const WHOLE_BYTES: u64 = 256 * 1024;
/// One such piece.
const PIECE_BYTES: usize = 256 * 1024;
/// So many pieces of one file wait at most.
const PIECES: usize = 4;
/// So many such files wait at most.
const LARGE: usize = 6;
/// So many kinds of files are remembered; one may have many attributes.
const FORMS: usize = 1000;

/// A way in for the files of one layer. Its files are known by number until it is finished.
pub struct Lane {
    tasks: Sender<Task>,
    state: Arc<State>,
    manner: Manner,
    /// So many batches there are at most.
    batches: usize,
    batch: Batch,
    /// The number of the next file.
    next: usize,
    forms: HashMap<FileMeta, Arc<Form>>,
    last_form: Option<Arc<Form>>,
}

#[derive(Default)]
struct State {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    checksums: Vec<Checksum>,
    waiting: usize,
    /// Those of them that are larger files.
    large: usize,
    error: Option<Error>,
    /// Room of batches that were written.
    spare: Vec<Vec<u8>>,
    made: usize,
}

/// Files that wait together.
#[derive(Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    used: usize,
    files: Vec<(usize, Arc<Form>, Range<usize>)>,
}

impl Batch {
    /// Each file's number, form and content.
    pub(super) fn files(&self) -> impl Iterator<Item = (usize, &Form, &[u8])> {
        let files = self.files.iter();
        files.map(|(number, form, range)| (*number, &**form, &self.bytes[range.clone()]))
    }
}

/// What a thread that writes is given.
pub(super) enum Content {
    Batch(Batch),
    Pieces {
        number: usize,
        form: Arc<Form>,
        size: u64,
        pieces: Receiver<Vec<u8>>,
    },
}

/// The same, with what came of it, of which its lane hears when it is dropped.
pub(super) struct Task {
    state: Arc<State>,
    pub(super) content: Content,
    pub(super) outcome: Option<Result<Vec<(usize, Checksum)>>>,
}

impl Drop for Task {
    fn drop(&mut self) {
        let mut inner = lock(&self.state.inner);
        inner.waiting -= 1;
        if matches!(self.content, Content::Pieces { .. }) {
            inner.large -= 1;
        }
        match self.outcome.take() {
            Some(Ok(written)) => {
                for (number, checksum) in written {
                    if inner.checksums.len() <= number {
                        inner.checksums.resize(number + 1, [0; 32]);
                    }
                    inner.checksums[number] = checksum;
                }
            }
            Some(Err(error)) => {
                inner.error.get_or_insert(error);
            }
            None => {
                let died = || Error::new(Kind::Failed, "a thread that writes files died");
                inner.error.get_or_insert_with(died);
            }
        }
        if let Content::Batch(batch) = &mut self.content {
            inner.spare.push(std::mem::take(&mut batch.bytes));
        }
        drop(inner);
        self.state.changed.notify_one();
    }
}

impl Lane {
    pub(super) fn new(tasks: Sender<Task>, manner: Manner, budget: usize) -> Self {
        Self {
            tasks,
            state: Arc::default(),
            manner,
            batches: (budget / BATCH_BYTES).max(2),
            batch: Batch::default(),
            next: 0,
            forms: HashMap::new(),
            last_form: None,
        }
    }

    /// Write a file of `size` bytes from `content`; its number.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if `content` cannot be read or is shorter, and those of files before it.
    pub fn write(&mut self, meta: FileMeta, size: u64, content: &mut impl Read) -> Result<usize> {
        let form = self.form(meta);
        let cannot_read = || "cannot read the content".into();
        let number = self.next;
        self.next += 1;
        let length = usize::try_from(size).unwrap_or(usize::MAX);
        if size <= WHOLE_BYTES {
            // Without room at all not even an empty file may begin a batch: what it hands back must be room.
            let is_full = |batch: &Batch| {
                batch.bytes.is_empty()
                    || batch.bytes.len() - batch.used < length
                    || batch.files.len() == BATCH_FILES
            };
            if is_full(&self.batch) {
                self.send_batch()?;
                self.batch.bytes = self.room()?;
            }
            let batch = &mut self.batch;
            let range = batch.used..batch.used + length;
            content
                .read_exact(&mut batch.bytes[range.clone()])
                .kind(Kind::Invalid, cannot_read)?;
            batch.used = range.end;
            batch.files.push((number, form, range));
            return Ok(number);
        }
        let (sender, pieces): (SyncSender<Vec<u8>>, _) = sync_channel(PIECES);
        self.wait_for_large()?;
        self.send(Content::Pieces {
            number,
            form,
            size,
            pieces,
        })?;
        let mut left = length;
        while left > 0 {
            let mut piece = vec![0; left.min(PIECE_BYTES)];
            content
                .read_exact(&mut piece)
                .kind(Kind::Invalid, cannot_read)?;
            left -= piece.len();
            if sender.send(piece).is_err() {
                // Whoever took it gave up, and has said why.
                break;
            }
        }
        Ok(number)
    }

    /// Wait until all files are written; their checksums by number.
    pub fn finish(mut self) -> Result<Vec<Checksum>> {
        self.send_batch()?;
        let mut inner = lock(&self.state.inner);
        while inner.waiting > 0 {
            inner = wait(&self.state.changed, inner);
        }
        match inner.error.take() {
            Some(error) => Err(error),
            None => Ok(std::mem::take(&mut inner.checksums)),
        }
    }

    fn form(&mut self, meta: FileMeta) -> Arc<Form> {
        if let Some(form) = self.last_form.as_ref().filter(|form| form.meta == meta) {
            return form.clone();
        }
        let manner = self.manner;
        if self.forms.len() == FORMS {
            self.forms.clear();
        }
        let form = self.forms.entry(meta);
        let form = form.or_insert_with_key(|meta| Arc::new(Form::new(meta.clone(), manner)));
        self.last_form = Some(form.clone());
        form.clone()
    }

    /// Room for a batch; waits for one that is written if there are as many as may be.
    fn room(&self) -> Result<Vec<u8>> {
        let mut inner = lock(&self.state.inner);
        loop {
            if let Some(error) = inner.error.take() {
                return Err(error);
            }
            if let Some(room) = inner.spare.pop() {
                return Ok(room);
            }
            if inner.made < self.batches {
                inner.made += 1;
                return Ok(vec![0; BATCH_BYTES]);
            }
            inner = wait(&self.state.changed, inner);
        }
    }

    /// Wait until few of the larger files are unfinished. All of those are handed over to their ends, and so
    /// somebody finishes them, whatever else waits.
    fn wait_for_large(&self) -> Result<()> {
        let mut inner = lock(&self.state.inner);
        loop {
            if let Some(error) = inner.error.take() {
                return Err(error);
            }
            if inner.large < LARGE {
                return Ok(());
            }
            inner = wait(&self.state.changed, inner);
        }
    }

    fn send_batch(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        if batch.files.is_empty() {
            return Ok(());
        }
        self.send(Content::Batch(batch))
    }

    fn send(&self, content: Content) -> Result<()> {
        {
            let mut inner = lock(&self.state.inner);
            inner.waiting += 1;
            inner.large += usize::from(matches!(content, Content::Pieces { .. }));
        }
        let task = Task {
            state: self.state.clone(),
            content,
            outcome: None,
        };
        if self.tasks.send(task).is_err() {
            fail!(Kind::Failed, "the threads that write files died");
        }
        Ok(())
    }
}
