//! The layers of a pull, several at a time.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Progress;
use crate::error::{Error, Kind, Result};
use crate::fail;
use crate::image::{Descriptor, Digest};
use crate::selinux::Labels;
use crate::store::{Import, ImportedLayer, LayerReader};
use crate::transport::Source;

/// More at a time only compete for the network, and each has its buffers.
const MAX_AT_ONCE: usize = 4;

/// A layer to fetch: what it is, and what it must unpack to.
pub struct Wanted<'a> {
    pub layer: &'a Descriptor,
    pub diff_id: Digest,
}

/// Fetch layers and hand their files to the import; in the order they were asked for.
///
/// `budget`: so many bytes of files may wait for being written.
pub fn fetch(
    import: &Import<'_>,
    source: &Source,
    wanted: &[Wanted<'_>],
    budget: usize,
    progress: &mut dyn Progress,
) -> Result<Vec<ImportedLayer>> {
    for wanted in wanted {
        import.expect_layer(wanted.layer)?;
    }
    let at_once = if source.reads_several() {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        wanted.len().min(processors).clamp(1, MAX_AT_ONCE)
    } else {
        1
    };
    let fetch = Fetch {
        source,
        wanted,
        turn: Mutex::new(Turn { next: 0, progress }),
        is_over: AtomicBool::new(false),
    };
    let readers = (0..at_once.min(wanted.len()))
        .map(|_| import.layer_reader(at_once, budget))
        .collect::<Result<Vec<_>>>()?;
    let parts: Vec<Result<Vec<(usize, ImportedLayer)>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = readers
            .into_iter()
            .map(|reader| {
                let fetch = &fetch;
                scope.spawn(move || fetch.work(&reader))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                let died = |_| Err(Error::new(Kind::Failed, "a thread that reads layers died"));
                thread.join().unwrap_or_else(died)
            })
            .collect()
    });
    let mut layers = Vec::with_capacity(wanted.len());
    for part in parts {
        layers.extend(part?);
    }
    if layers.len() < wanted.len() {
        fail!(Kind::Failed, "layers are missing");
    }
    layers.sort_by_key(|(number, _)| *number);
    Ok(layers.into_iter().map(|(_, layer)| layer).collect())
}

/// What the threads share.
struct Fetch<'a, 'p> {
    source: &'a Source,
    wanted: &'a [Wanted<'a>],
    turn: Mutex<Turn<'p>>,
    /// One of them failed.
    is_over: AtomicBool,
}

struct Turn<'p> {
    next: usize,
    progress: &'p mut dyn Progress,
}

impl<'p> Fetch<'_, 'p> {
    /// Fetch one layer after another. What fails because another thread failed is no error.
    fn work(&self, reader: &LayerReader<'_>) -> Result<Vec<(usize, ImportedLayer)>> {
        let mut done = Vec::new();
        let labels = reader.labels();
        while let Some((number, wanted)) = self.next() {
            let labels = labels
                .as_ref()
                .map_err(|error| Error::new(error.kind(), error.to_string()));
            match labels.and_then(|labels| self.one(reader, labels.as_ref(), wanted)) {
                Ok(layer) => done.push((number, layer)),
                Err(_) if self.is_over.swap(true, Ordering::Relaxed) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn next(&self) -> Option<(usize, &Wanted<'_>)> {
        if self.is_over.load(Ordering::Relaxed) {
            return None;
        }
        let mut turn = self.turn();
        let number = turn.next;
        let wanted = self.wanted.get(number)?;
        turn.next += 1;
        turn.progress.layer(wanted.layer.digest, wanted.layer.size);
        Some((number, wanted))
    }

    fn one(
        &self,
        reader: &LayerReader<'_>,
        labels: Option<&Labels>,
        wanted: &Wanted<'_>,
    ) -> Result<ImportedLayer> {
        let Wanted { layer, diff_id } = wanted;
        let _span = tracing::debug_span!("layer", digest = &layer.digest.hex()[..12]).entered();
        tracing::debug!(bytes = layer.size, "begins");
        let mut blob = self.source.blob(layer)?;
        let counting = Counting {
            reader: &mut blob,
            fetch: self,
        };
        let read = reader.read(labels, layer, counting);
        if self.is_over.load(Ordering::Relaxed) {
            fail!(Kind::Failed, "given up");
        }
        tracing::debug!("is read");
        // skopeo knows best why a stream ended early; our own checks name the layer.
        blob.finish()?;
        let read = read?;
        if read.diff_id != *diff_id {
            fail!(
                Kind::Invalid,
                "the layer {} unpacks to {}, but the image config says {diff_id}",
                layer.digest,
                read.diff_id
            );
        }
        Ok(read)
    }

    fn turn(&self) -> MutexGuard<'_, Turn<'p>> {
        // Whatever thread died, a number and a display are in order.
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells how much was read, and ends when another thread failed.
struct Counting<'a, 'p, R> {
    reader: R,
    fetch: &'a Fetch<'a, 'p>,
}

impl<R: Read> Read for Counting<'_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.fetch.is_over.load(Ordering::Relaxed) {
            return Err(io::Error::other("given up"));
        }
        let n = self.reader.read(buffer)?;
        self.fetch.turn().progress.advance(n as u64);
        Ok(n)
    }
}
