//! Importing one layer: compressed stream in, objects and a commit out, in one pass.
//!
//! # Format of a layer commit
//! The tree is the unpacked layer with whiteouts kept as ordinary `.wh.*` files. Metadata, all
//! strings: `docker.size` (bytes as stored in the registry), `docker.uncompressed_size`,
//! `docker.uncompressed_digest`; ours: `atomic-rs.implied` (array of strings: directories the
//! archive implies but does not declare, whose metadata come from the layer below),
//! `atomic-rs.whiteouts` (array of strings: directories that have whiteouts) and
//! `atomic-rs.skipped` (how many device nodes, fifos and names that are not UTF-8 were left out).

use std::io::{BufRead, BufReader, Read};

use glib::prelude::*;
use ostree::Repo;

use super::ahead::{self, Pieces};
use super::export::Keeper;
use super::gunzip::Gunzip;
use super::layer_tree::{Builder, Built};
use super::objects::{Checksum, Commit, Sealed};
use super::tar::TarStream;
use super::tree::{self, LayerRoot};
use super::writers::{Lane, Staged};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;
use crate::image::digest::Hashing;
use crate::image::{Descriptor, Digest};
use crate::selinux::Labels;

/// Compressed bytes are read so many at a time.
const COMPRESSED_BYTES: usize = 256 * 1024;
/// zstd's own default limit for a window: 128 MiB.
pub const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// What an imported layer turned out to be.
#[derive(Debug, Clone)]
pub struct ImportedLayer {
    /// Its commit, which is not written yet.
    pub commit: Sealed,
    /// Its root, for the merge.
    pub root: LayerRoot,
    /// Its blob, where that is kept.
    pub blob: Option<Checksum>,
    /// What of the archive is not in the tree; nothing if that is too much.
    pub side: Option<Vec<u8>>,
    /// Stored files that the side data name and the tree does not.
    pub superseded: Vec<Checksum>,
    /// Digest of the uncompressed layer.
    pub diff_id: Digest,
    /// Bytes of the uncompressed layer.
    pub uncompressed_size: u64,
    /// Entries that `OSTree` cannot hold.
    pub skipped: u64,
}

/// Where a layer goes.
pub struct Into<'a> {
    /// The repository.
    pub repo: &'a Repo,
    /// Labels of the host's policy.
    pub labels: Option<&'a Labels>,
    /// The way for its directories and links.
    pub staged: Staged,
    /// The way for its files.
    pub lane: Lane,
    /// More than this it must not be, unpacked.
    pub max_bytes: u64,
    /// Whether its blob is kept as it came.
    pub keeps_blob: bool,
}

/// Read one layer from `input` into the repository.
///
/// # Errors
/// [`Kind::Invalid`] if the bytes are not those of `descriptor` or not a layer.
pub fn import(
    into: Into<'_>,
    descriptor: &Descriptor,
    input: impl Read + Send,
) -> Result<ImportedLayer> {
    // Inflating is the most of it, and so has a thread of its own.
    let (pieces, plain) = ahead::pair();
    let (repo, keeps) = (into.repo.clone(), into.keeps_blob);
    let (blob, imported) = std::thread::scope(|scope| {
        let thread = scope.spawn(move || inflate(&repo, descriptor, keeps, input, pieces));
        let imported = read_archive(into, plain);
        let died = |_| Err(Error::new(Kind::Failed, "the thread that inflates died"));
        (thread.join().unwrap_or_else(died), imported)
    });
    // A damaged blob explains a damaged archive.
    let blob = blob?;
    let digest = descriptor.digest;
    let unpacked = imported.map_err(|error| error.within(format_args!("layer {digest}")))?;
    let mut metadata = vec![
        ("docker.size", descriptor.size.to_string().to_variant()),
        (
            "docker.uncompressed_size",
            unpacked.size.to_string().to_variant(),
        ),
        (
            "docker.uncompressed_digest",
            unpacked.diff_id.to_string().to_variant(),
        ),
        ("atomic-rs.implied", unpacked.built.implied.to_variant()),
        (
            "atomic-rs.skipped",
            unpacked.built.skipped.to_string().to_variant(),
        ),
        (tree::LEFT_OUT, unpacked.built.left_out.to_variant()),
    ];
    if let Some(whiteouts) = &unpacked.built.whiteouts {
        let list: Vec<&String> = whiteouts.iter().collect();
        metadata.push((tree::WHITEOUTS, list.to_variant()));
    }
    let commit = Commit {
        subject: &format!("layer {digest}"),
        metadata,
        tree: unpacked.built.tree,
        meta: unpacked.built.meta,
        timestamp: super::now(),
    }
    .seal();
    Ok(ImportedLayer {
        commit,
        root: LayerRoot {
            tree: unpacked.built.tree,
            meta: unpacked.built.meta,
            implied: unpacked.built.implied.iter().cloned().collect(),
            whiteouts: unpacked.built.whiteouts,
            left_out: unpacked.built.left_out.clone(),
        },
        blob,
        side: unpacked.side,
        superseded: unpacked.built.superseded,
        diff_id: unpacked.diff_id,
        uncompressed_size: unpacked.size,
        skipped: unpacked.built.skipped,
    })
}

struct Unpacked {
    built: Built,
    side: Option<Vec<u8>>,
    diff_id: Digest,
    size: u64,
}

/// Read the compressed bytes to their end and check them; what they inflate to goes to `pieces`.
fn inflate(
    repo: &Repo,
    descriptor: &Descriptor,
    keeps: bool,
    input: impl Read,
    pieces: Pieces,
) -> Result<Option<Checksum>> {
    let mut keeper = Keeper::new(repo, descriptor, input, keeps)?;
    // One byte more than promised is enough to know that the blob is too long.
    let mut compressed = Hashing::new((&mut keeper).take(descriptor.size.saturating_add(1)));
    let mut buffered = BufReader::with_capacity(COMPRESSED_BYTES, &mut compressed);
    inflate_to(pieces, &mut buffered)?;
    std::io::copy(&mut buffered, &mut std::io::sink()).kind(Kind::Transport, || {
        format!("cannot read the blob {}", descriptor.digest)
    })?;
    let (digest, size, _) = compressed.finish();
    if size != descriptor.size {
        fail!(
            Kind::Invalid,
            "the blob {} is damaged: it should have {} bytes and has {}{size}",
            descriptor.digest,
            descriptor.size,
            if size > descriptor.size {
                "at least "
            } else {
                ""
            }
        );
    }
    if digest != descriptor.digest {
        fail!(
            Kind::Invalid,
            "the blob {} is damaged: its bytes have the digest {digest}",
            descriptor.digest
        );
    }
    keeper.finish()
}

/// By its first bytes a layer is compressed in one way or another.
fn inflate_to(pieces: Pieces, input: &mut impl BufRead) -> Result<()> {
    let mut head = [0; 4];
    {
        let available = input
            .fill_buf()
            .kind(Kind::Transport, || "cannot read the layer".into())?;
        let n = available.len().min(4);
        head[..n].copy_from_slice(&available[..n]);
    }
    match head {
        [0x1f, 0x8b, ..] => pieces.send_all(Gunzip::new(input)),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)
                .kind(Kind::Invalid, || "cannot start zstd".into())?;
            decoder
                .window_log_max(ZSTD_WINDOW_LOG_MAX)
                .kind(Kind::Invalid, || "cannot start zstd".into())?;
            pieces.send_all(decoder);
        }
        _ => pieces.send_all(input),
    }
    Ok(())
}

fn read_archive(into: Into<'_>, input: impl Read) -> Result<Unpacked> {
    let max_bytes = into.max_bytes;
    let mut stream = TarStream::recorded(Hashing::new(input.take(max_bytes.saturating_add(1))));
    let mut builder = Builder::new(into.staged, into.labels, into.lane, max_bytes);
    let read = builder.read(&mut stream);
    // A stream that was cut at the limit looks like one that was damaged.
    if stream.get_ref().bytes() > max_bytes {
        fail!(
            Kind::Invalid,
            "unpacks to more than {max_bytes} bytes (max_layer_bytes in the configuration)"
        );
    }
    read?;
    let (hashing, recorder) = stream.into_inner();
    let (diff_id, size, _) = hashing.finish();
    let built = builder.finish()?;
    Ok(Unpacked {
        side: recorder.and_then(|recorder| recorder.finish(&built.files)),
        built,
        diff_id,
        size,
    })
}
