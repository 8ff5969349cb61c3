//! Importing one layer: compressed stream in, objects and a commit out, in one pass.
//!
//! # Format of a layer commit
//! The tree is the unpacked layer with whiteouts kept as ordinary `.wh.*` files. Metadata, all
//! strings: `docker.size` (bytes as stored in the registry), `docker.uncompressed_size`,
//! `docker.uncompressed_digest`; ours: `atomic-rs.implied` (array of strings: directories the
//! archive implies but does not declare, whose metadata come from the layer below) and
//! `atomic-rs.skipped` (how many device nodes, fifos and names that are not UTF-8 were left out).

use std::io::{BufRead, BufReader, Read};

use glib::prelude::*;
use ostree::Repo;

use super::layer_tree::{Builder, Built};
use super::objects::{Checksum, Commit, Sealed};
use super::tar::TarStream;
use super::tree::{self, LayerRoot};
use crate::error::{Context as _, Kind, Result};
use crate::fail;
use crate::image::digest::Hashing;
use crate::image::{Descriptor, Digest};
use crate::selinux::Labels;

/// zstd's own default limit for a window: 128 MiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// What an imported layer turned out to be.
#[derive(Debug, Clone)]
pub struct ImportedLayer {
    /// Its commit, which is not written yet.
    pub commit: Sealed,
    /// Its root, for the merge.
    pub root: LayerRoot,
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

/// Read one layer from `input` into the repository.
///
/// # Errors
/// [`Kind::Invalid`] if the bytes are not those of `descriptor` or not a layer.
pub fn import(
    repo: &Repo,
    labels: Option<&Labels>,
    descriptor: &Descriptor,
    max_bytes: u64,
    input: impl Read,
) -> Result<ImportedLayer> {
    // One byte more than promised is enough to know that the blob is too long.
    let mut compressed = Hashing::new(input.take(descriptor.size.saturating_add(1)));
    let imported = {
        let mut buffered = BufReader::with_capacity(256 * 1024, &mut compressed);
        let unpacked = unpack(repo, labels, max_bytes, &mut buffered);
        // To the end in every case: a damaged blob explains a damaged archive.
        let drained = std::io::copy(&mut buffered, &mut std::io::sink());
        drained
            .kind(Kind::Transport, || {
                format!("cannot read the blob {}", descriptor.digest)
            })
            .and(unpacked)
    };
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
    let unpacked = imported.map_err(|error| error.within(format_args!("layer {digest}")))?;
    let commit = Commit {
        subject: &format!("layer {digest}"),
        metadata: vec![
            ("docker.size", size.to_string().to_variant()),
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
        ],
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
            left_out: unpacked.built.left_out.clone(),
        },
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

fn unpack(
    repo: &Repo,
    labels: Option<&Labels>,
    max_bytes: u64,
    input: &mut impl BufRead,
) -> Result<Unpacked> {
    let mut head = [0; 4];
    {
        let available = input
            .fill_buf()
            .kind(Kind::Transport, || "cannot read the layer".into())?;
        let n = available.len().min(4);
        head[..n].copy_from_slice(&available[..n]);
    }
    match head {
        [0x1f, 0x8b, ..] => read_archive(
            repo,
            labels,
            max_bytes,
            flate2::bufread::MultiGzDecoder::new(input),
        ),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)
                .kind(Kind::Invalid, || "cannot start zstd".into())?;
            decoder
                .window_log_max(ZSTD_WINDOW_LOG_MAX)
                .kind(Kind::Invalid, || "cannot start zstd".into())?;
            read_archive(repo, labels, max_bytes, decoder)
        }
        _ => read_archive(repo, labels, max_bytes, input),
    }
}

fn read_archive(
    repo: &Repo,
    labels: Option<&Labels>,
    max_bytes: u64,
    input: impl Read,
) -> Result<Unpacked> {
    let mut stream = TarStream::new(Hashing::new(input.take(max_bytes.saturating_add(1))));
    let mut builder = Builder::new(repo, labels, max_bytes);
    let read = builder.read(&mut stream);
    // A stream that was cut at the limit looks like one that was damaged.
    if stream.get_ref().bytes() > max_bytes {
        fail!(
            Kind::Invalid,
            "unpacks to more than {max_bytes} bytes (max_layer_bytes in the configuration)"
        );
    }
    read?;
    let (hashing, side) = stream.into_inner();
    let (diff_id, size, _) = hashing.finish();
    Ok(Unpacked {
        side,
        built: builder.finish()?,
        diff_id,
        size,
    })
}
