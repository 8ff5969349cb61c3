//! Bringing an image in: layers, config, manifest and merged tree, all of it or nothing.

use std::cell::{Cell, OnceCell, RefCell};

use camino::Utf8Path;
use glib::prelude::*;

use super::layer::ImportedLayer;
use super::objects::{
    self, Checksum, Commit, DirMeta, DirTree, NO_CANCEL, Sealed, write_dirmeta, write_dirtree,
};
use super::writers::Writers;
use super::{LayerRoot, Store, layer, now, tree};
use crate::error::{Context as _, Kind, Result};
use crate::image;
use crate::image::refname::{blob_ref, image_ref, kept_ref, side_ref, tree_ref};
use crate::image::{Descriptor, Digest};
use crate::selinux::Labels;
use crate::{fail, fault, safefs};

/// Metadata of an image's commit: the reference it came by, and the platform that was asked for.
pub(super) const SOURCE_KEY: &str = "atomic-rs.source";
pub(super) const PLATFORM_KEY: &str = "atomic-rs.platform";

/// How an image was asked for, so that it can be pulled again in the same way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// The full reference.
    pub source: String,
    /// The platform, if one was asked for.
    pub platform: Option<String>,
}

/// What brings one image in.
///
/// Trees and files are written and made durable first, commits and refs after them: libostree
/// moves what a transaction wrote into place in no order, and a commit that a kill left without its
/// tree would be a repository that is damaged.
pub struct Import<'s> {
    pub(super) store: &'s Store,
    pub(super) transaction: ostree::TransactionGuard<'s>,
    pub(super) writers: OnceCell<Writers>,
    pub(super) commits: RefCell<Vec<(String, Sealed)>>,
    /// The one of their names that makes an image of them.
    pub(super) image: RefCell<Option<String>>,
    /// Something that is there already was found damaged.
    pub(super) heals: Cell<bool>,
    /// Whether layers' blobs are kept as they came.
    pub(super) keeps_blobs: bool,
}

/// Reads layers in a thread of its own.
pub struct LayerReader<'i> {
    repo: ostree::Repo,
    file_contexts: Option<&'i Utf8Path>,
    max_bytes: u64,
    keeps_blobs: bool,
    budget: usize,
    writers: &'i Writers,
}

impl LayerReader<'_> {
    /// The labels of the host's policy, for this thread.
    pub fn labels(&self) -> Result<Option<Labels>> {
        Labels::open(self.file_contexts)
    }

    /// Read one layer from its compressed bytes.
    pub fn read(
        &self,
        labels: Option<&Labels>,
        descriptor: &Descriptor,
        input: impl std::io::Read + Send,
    ) -> Result<ImportedLayer> {
        let into = layer::Into {
            repo: &self.repo,
            labels,
            staged: self.writers.staged(&self.repo),
            lane: self.writers.lane(self.budget)?,
            max_bytes: self.max_bytes,
            keeps_blob: self.keeps_blobs,
        };
        layer::import(into, descriptor, input)
    }
}

impl Import<'_> {
    /// What reads layers of this import, for one thread of `threads`.
    ///
    /// `budget`: so many bytes of files may wait for being written, in all threads together.
    pub fn layer_reader(&self, threads: usize, budget: usize) -> Result<LayerReader<'_>> {
        let store = self.store;
        Ok(LayerReader {
            repo: store.repo.clone(),
            file_contexts: store.file_contexts.as_deref(),
            max_bytes: store.max_layer_bytes,
            keeps_blobs: self.keeps_blobs,
            budget: budget / threads.max(1),
            writers: self.writers()?,
        })
    }

    fn writers(&self) -> Result<&Writers> {
        if let Some(writers) = self.writers.get() {
            return Ok(writers);
        }
        let store = self.store;
        let writers = Writers::start(&store.repo, &store.path, store.is_system)?;
        Ok(self.writers.get_or_init(|| writers))
    }

    /// Get ready for a layer, before it is read: what is there of it already may be damaged.
    pub fn expect_layer(&self, descriptor: &Descriptor) -> Result<()> {
        if self.store.is_marked_damaged(descriptor.digest)? {
            self.heal(descriptor.digest)?;
        }
        Ok(())
    }

    /// Keep a layer that was read.
    pub fn layer(&self, descriptor: &Descriptor, imported: &ImportedLayer) -> Result<()> {
        if let Some(blob) = imported.blob {
            let commit = self.file_commit("blob", blob, &[], "blob", Vec::new())?;
            self.keep(kept_ref(descriptor.digest), commit);
        }
        if let Some(side) = &imported.side {
            let commit =
                self.single_file_with("side", side, &imported.superseded, "side data", |_| {
                    Vec::new()
                })?;
            self.keep(side_ref(descriptor.digest), commit);
        }
        self.keep(blob_ref(descriptor.digest), imported.commit.clone());
        Ok(())
    }

    /// Keep an image config.
    pub fn config(&self, digest: Digest, bytes: &[u8]) -> Result<()> {
        if self.store.is_marked_damaged(digest)? {
            self.heal(digest)?;
        }
        let commit = self.single_file("content", bytes, &format!("config {digest}"), |size| {
            vec![("docker.size", size.to_variant())]
        })?;
        self.keep(blob_ref(digest), commit);
        Ok(())
    }

    /// Keep a manifest under `name`, and the merged tree of its layers, base first, and return the image's commit.
    ///
    /// `recorded`: how to pull it again.
    pub fn image(
        &self,
        name: &image::Name,
        recorded: &Recorded,
        manifest: &[u8],
        digest: Digest,
        layers: &[LayerRoot],
    ) -> Result<String> {
        let text = std::str::from_utf8(manifest)
            .kind(Kind::Invalid, || "the manifest is not UTF-8".into())?;
        let name_ref = image_ref(&name.to_string());
        if self.heals.get() || self.store.is_marked(&name_ref)? {
            self.heals.set(true);
            self.make_room(&name_ref)?;
        }
        let commit = self.single_file("manifest.json", manifest, &name.to_string(), |_| {
            let mut metadata = vec![
                ("docker.manifest", text.to_variant()),
                ("docker.digest", digest.to_string().to_variant()),
                ("signatures", "0".to_variant()),
                (SOURCE_KEY, recorded.source.to_variant()),
            ];
            if let Some(platform) = &recorded.platform {
                metadata.push((PLATFORM_KEY, platform.to_variant()));
            }
            metadata
        })?;
        self.tree(digest, layers)?;
        self.image.replace(Some(name_ref.clone()));
        let checksum = commit.checksum.clone();
        self.keep(name_ref, commit);
        Ok(checksum)
    }

    /// Write the merged tree of an image's layers and return its commit.
    pub fn tree(&self, manifest: Digest, layers: &[LayerRoot]) -> Result<String> {
        let name = tree_ref(manifest);
        if self.heals.get() || self.store.is_marked(&name)? {
            self.heals.set(true);
            self.make_room(&name)?;
        }
        let staged = self.writers()?.staged(&self.store.repo);
        let (tree, meta) = tree::merge(&staged, layers)?;
        let commit = Commit {
            subject: &format!("tree of {manifest}"),
            metadata: vec![
                ("atomic-rs.format", "1".to_variant()),
                (
                    tree::LEFT_OUT,
                    tree::left_out(&staged, layers)?.to_variant(),
                ),
            ],
            tree,
            meta,
            timestamp: now(),
        }
        .seal();
        let checksum = commit.checksum.clone();
        self.keep(tree_ref(manifest), commit);
        Ok(checksum)
    }

    /// Make everything durable, then visible at once.
    pub fn commit(mut self) -> Result<()> {
        let failed = || "cannot commit to the repository".into();
        let repo = &self.store.repo;
        fault::point("place objects")?;
        // What is renamed below must be on the disk before it has its name: libostree's trees as well.
        let root = std::fs::File::open(&self.store.path).context(failed)?;
        match self.writers.take() {
            Some(writers) => writers.place()?,
            None => rustix::fs::syncfs(root).context(failed)?,
        }
        tracing::debug!("files are in place");
        // It would sync each of its 256 directories. The second transaction begins with a sync of them all.
        let syncs = !repo.is_disable_fsync();
        fault::point("place trees")?;
        repo.set_disable_fsync(true);
        let committed = self.transaction.commit(NO_CANCEL);
        repo.set_disable_fsync(!syncs);
        committed.context(failed)?;
        tracing::debug!("trees are in place");
        fault::point("write commits")?;
        let transaction = repo.auto_transaction(NO_CANCEL).context(failed)?;
        let (commits, image) = (self.commits.take(), self.image.take());
        for (name, commit) in &commits {
            // Between the two transactions somebody else's prune may have had its turn.
            if !repo
                .has_object(ostree::ObjectType::DirTree, &commit.tree, NO_CANCEL)
                .context(failed)?
            {
                fail!(
                    Kind::Failed,
                    "what was written to the repository is gone, as by a prune of another program: pull again"
                );
            }
            commit.write(repo)?;
            if image.as_ref() != Some(name) {
                repo.transaction_set_ref(None, name, Some(&commit.checksum));
            }
        }
        fault::point("set the refs of an image")?;
        transaction.commit(NO_CANCEL).context(failed)?;
        // A transaction sets refs in no order either: whoever finds an image by its name must find all of it.
        for (name, commit) in &commits {
            if image.as_ref() == Some(name) {
                self.store.set_ref(name, Some(&commit.checksum))?;
                // The name lasts when the command says that it is there; what was renamed before it does then, too.
                let file = self.store.path.join("refs/heads").join(name);
                let directory = file.parent().unwrap_or(&self.store.path);
                safefs::fsync_dir(directory.as_std_path())?;
            }
        }
        fault::point("end a pull")?;
        tracing::debug!("committed");
        if self.heals.get() {
            for (_, commit) in &commits {
                repo.mark_commit_partial(&commit.checksum, false)
                    .context(failed)?;
            }
        }
        Ok(())
    }

    fn heal(&self, digest: Digest) -> Result<()> {
        self.heals.set(true);
        self.make_room(&blob_ref(digest))
    }

    fn keep(&self, name: String, commit: Sealed) {
        self.commits.borrow_mut().push((name, commit));
    }

    fn single_file<'k>(
        &self,
        file: &str,
        bytes: &[u8],
        subject: &str,
        metadata: impl FnOnce(String) -> Vec<(&'k str, glib::Variant)>,
    ) -> Result<Sealed> {
        self.single_file_with(file, bytes, &[], subject, metadata)
    }

    /// The same with further stored files beside it.
    fn single_file_with<'k>(
        &self,
        file: &str,
        bytes: &[u8],
        also: &[Checksum],
        subject: &str,
        metadata: impl FnOnce(String) -> Vec<(&'k str, glib::Variant)>,
    ) -> Result<Sealed> {
        let repo = &self.store.repo;
        let written = repo
            .write_regfile_inline(None, 0, 0, 0o100_644, None, bytes, NO_CANCEL)
            .context(|| "cannot write to the repository".into())?;
        self.file_commit(
            file,
            objects::checksum(&written)?,
            also,
            subject,
            metadata(bytes.len().to_string()),
        )
    }

    /// A commit whose tree is one stored file.
    fn file_commit(
        &self,
        name: &str,
        file: Checksum,
        also: &[Checksum],
        subject: &str,
        mut metadata: Vec<(&str, glib::Variant)>,
    ) -> Result<Sealed> {
        let repo = &self.store.repo;
        let mut tree = DirTree::default();
        tree.files.insert(name.to_owned(), file);
        for (index, file) in also.iter().enumerate() {
            tree.files.insert(index.to_string(), *file);
        }
        // By this the commit is known as ours.
        metadata.push(("atomic-rs.format", "1".to_variant()));
        Ok(Commit {
            subject,
            metadata,
            tree: write_dirtree(repo, &tree)?,
            meta: write_dirmeta(repo, &DirMeta::default())?,
            timestamp: now(),
        }
        .seal())
    }
}
