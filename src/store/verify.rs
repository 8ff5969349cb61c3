//! Reading everything again: what is stored is what was pulled, and what is deployed is what is
//! stored.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use gio::prelude::*;
use ostree::{ObjectType, RepoCommitState};

use super::layer_tree::join;
use super::objects::{self, Checksum, NO_CANCEL, read_dirmeta, read_dirtree};
use super::{Import, Store};
use crate::error::{Context as _, Result};
use crate::image::digest::hex;
use crate::image::refname::{blob_ref, image_ref, tree_ref};
use crate::image::{Digest, Manifest};
use crate::selinux::Labels;
use crate::store::images::StoredImage;

/// Enough lines to know what is wrong; the rest is counted.
pub const MAX_SHOWN: usize = 20;

/// An object that is missing or not what its name says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Damaged {
    kind: Kind,
    checksum: Checksum,
    /// What is wrong.
    pub why: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    File,
    Tree,
    Meta,
}

impl Kind {
    fn object(self) -> ObjectType {
        match self {
            Self::File => ObjectType::File,
            Self::Tree => ObjectType::DirTree,
            Self::Meta => ObjectType::DirMeta,
        }
    }
}

/// What reading an image again found.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    /// Objects that were read.
    pub objects: usize,
    /// Those that are not good.
    pub damaged: Vec<Damaged>,
    /// What is wrong beyond single objects.
    pub problems: Vec<String>,
    /// Files of which only the `SELinux` label is another one than when they were stored.
    pub relabelled: Vec<String>,
}

/// How a deployment differs from what was deployed.
#[derive(Debug, Clone, Default)]
pub struct Drift {
    /// What is wrong.
    pub problems: Vec<String>,
    /// Files of which only the `SELinux` label is another one than when they were stored.
    pub relabelled: Vec<String>,
}

impl Drift {
    /// True if nothing differs.
    pub fn is_none(&self) -> bool {
        self.problems.is_empty() && self.relabelled.is_empty()
    }
}

impl Findings {
    /// True if everything is as it was pulled.
    pub fn is_good(&self) -> bool {
        self.damaged.is_empty() && self.problems.is_empty()
    }

    /// Everything that is wrong, as text.
    pub fn lines(&self) -> Vec<String> {
        let damaged = self.damaged.iter().map(|damaged| damaged.why.clone());
        damaged.chain(self.problems.iter().cloned()).collect()
    }
}

impl Store {
    /// Re-read every object of an image, and its manifest and config against their digests. Layers
    /// that are damaged are marked, so that the next pull fetches them again.
    pub fn verify_image(&self, image: &StoredImage) -> Result<Findings> {
        let mut seen = HashSet::new();
        let mut findings = Findings::default();
        if let (Some(text), Some(digest)) = (&image.manifest_text, image.digest)
            && matches!(image.manifest, Some(Manifest::Image { .. }))
            && Digest::of(text.as_bytes()) != digest
        {
            findings
                .problems
                .push(format!("the manifest does not have the digest {digest}"));
        }
        self.verify_marking(&image.commit, &mut seen, &mut findings)?;
        let Some(manifest) = &image.manifest else {
            return Ok(findings);
        };
        let blobs = manifest
            .layer_digests()
            .into_iter()
            .chain(manifest.config_digest());
        for digest in blobs {
            let Some(commit) = self.resolve(&blob_ref(digest))? else {
                findings.problems.push(format!("{digest} is missing"));
                continue;
            };
            self.verify_marking(&commit, &mut seen, &mut findings)?;
        }
        if let Some(digest) = manifest.config_digest()
            && let Ok(Some(bytes)) = self.image_config_text(digest)
            && Digest::of(&bytes) != digest
        {
            findings
                .problems
                .push(format!("the config does not have the digest {digest}"));
        }
        if let Some(digest) = image.digest
            && let Some(commit) = self.resolve(&tree_ref(digest))?
        {
            self.verify_marking(&commit, &mut seen, &mut findings)?;
        }
        Ok(findings)
    }

    /// Verify a commit and mark it if something of it is damaged.
    fn verify_marking(
        &self,
        commit: &str,
        seen: &mut HashSet<(Kind, Checksum)>,
        findings: &mut Findings,
    ) -> Result<()> {
        let before = findings.damaged.len();
        self.verify_commit(commit, seen, findings);
        if findings.damaged.len() > before {
            self.repo
                .mark_commit_partial(commit, true)
                .context(|| format!("cannot mark {commit} as damaged"))?;
        }
        Ok(())
    }

    /// True if [`Self::verify_image`] found this blob damaged and no pull has mended it since.
    pub fn is_marked_damaged(&self, digest: Digest) -> Result<bool> {
        self.is_marked(&blob_ref(digest))
    }

    /// The same for what an image has beside its blobs: its manifest and its merged tree.
    pub fn is_image_marked(&self, name: &crate::image::Name, manifest: Digest) -> Result<bool> {
        Ok(
            self.is_marked(&image_ref(&name.to_string()))?
                || self.is_marked(&tree_ref(manifest))?,
        )
    }

    pub(super) fn is_marked(&self, name: &str) -> Result<bool> {
        let Some(commit) = self.resolve(name)? else {
            return Ok(false);
        };
        Ok(match self.repo.load_commit(&commit) {
            Ok((_, state)) => state.contains(RepoCommitState::PARTIAL),
            Err(_) => true,
        })
    }

    fn verify_commit(
        &self,
        commit: &str,
        seen: &mut HashSet<(Kind, Checksum)>,
        findings: &mut Findings,
    ) {
        match objects::commit_root(&self.repo, commit) {
            Ok((tree, meta)) => self.verify_tree("", &tree, &meta, seen, findings),
            Err(error) => findings.problems.push(error.to_string()),
        }
    }

    fn verify_tree(
        &self,
        path: &str,
        tree: &Checksum,
        meta: &Checksum,
        seen: &mut HashSet<(Kind, Checksum)>,
        findings: &mut Findings,
    ) {
        let mut check = |kind: Kind, checksum: &Checksum, path: &str| {
            if !seen.insert((kind, *checksum)) {
                return;
            }
            findings.objects += 1;
            let object = kind.object();
            if let Err(error) = self.repo.fsck_object(object, &hex(checksum), NO_CANCEL) {
                if kind == Kind::File && self.differs_in_label(checksum, path) {
                    findings.relabelled.push(format!("/{path}"));
                    return;
                }
                findings.damaged.push(Damaged {
                    kind,
                    checksum: *checksum,
                    why: format!("/{path}: {error}"),
                });
            }
        };
        check(Kind::Meta, meta, path);
        check(Kind::Tree, tree, path);
        let Ok(entries) = read_dirtree(&self.repo, tree) else {
            return;
        };
        for (name, checksum) in &entries.files {
            check(Kind::File, checksum, &join(path, name));
        }
        for (name, (tree, meta)) in &entries.dirs {
            // Subtrees that layers share were read with the first one.
            if !(seen.contains(&(Kind::Tree, *tree)) && seen.contains(&(Kind::Meta, *meta))) {
                self.verify_tree(&join(path, name), tree, meta, seen, findings);
            }
        }
    }

    /// Compare what is deployed below `rootfs` with the tree of `commit`: every file must be the
    /// store's own, or one with the same content, owner and mode.
    /// Runtimes make what is missing of `mount_points`; these may be there.
    pub fn verify_deployment(
        &self,
        commit: &str,
        rootfs: &Utf8Path,
        mount_points: &HashSet<String>,
    ) -> Result<Drift> {
        let root = objects::commit_root(&self.repo, commit)?;
        let mut drift = Drift::default();
        self.compare_dir(rootfs, "", &root, mount_points, &mut drift)?;
        Ok(drift)
    }

    fn compare_dir(
        &self,
        rootfs: &Utf8Path,
        path: &str,
        (tree, meta): &(Checksum, Checksum),
        mount_points: &HashSet<String>,
        drift: &mut Drift,
    ) -> Result<()> {
        let problems = &mut drift.problems;
        let at = rootfs.join(path);
        let Ok(found) = std::fs::symlink_metadata(&at) else {
            problems.push(format!("/{path} is missing"));
            return Ok(());
        };
        if !found.is_dir() {
            problems.push(format!("/{path} is no directory"));
            return Ok(());
        }
        let wanted = read_dirmeta(&self.repo, meta)?;
        let owner = (found.uid(), found.gid(), found.mode() & 0o7777);
        if self.is_system && owner != (wanted.uid, wanted.gid, wanted.mode) {
            problems.push(format!(
                "/{path} has owner {}:{} and mode {:04o} in place of {}:{} and {:04o}",
                owner.0, owner.1, owner.2, wanted.uid, wanted.gid, wanted.mode
            ));
        }
        let entries = read_dirtree(&self.repo, tree)?;
        let listing = std::fs::read_dir(&at).context(|| format!("cannot list {at}"))?;
        for entry in listing {
            let entry = entry.context(|| format!("cannot list {at}"))?;
            let name = entry.file_name();
            let known = name.to_str().is_some_and(|name| {
                entries.files.contains_key(name) || entries.dirs.contains_key(name)
            });
            let path = join(path, &name.to_string_lossy());
            if !known && !mount_points.contains(&path) {
                problems.push(format!("/{path} is not in the image"));
            }
        }
        for (name, checksum) in &entries.files {
            let path = join(path, name);
            let at = rootfs.join(&path);
            if let Some(good) = self.shared_with_store(&at, checksum) {
                // One file with two names: a write through either damages both.
                if !good && self.differs_in_label(checksum, &path) {
                    drift.relabelled.push(format!("/{path}"));
                } else if !good {
                    drift.problems.push(format!(
                        "/{path} was written to, and so was the store's copy"
                    ));
                }
            } else if let Some(problem) = self.compare_file(&at, checksum) {
                drift.problems.push(format!("/{path} {problem}"));
            }
        }
        for (name, below) in &entries.dirs {
            self.compare_dir(rootfs, &join(path, name), below, mount_points, drift)?;
        }
        Ok(())
    }

    /// For a deployed file that is the store's own: whether the store's object is good.
    fn shared_with_store(&self, at: &Utf8Path, checksum: &Checksum) -> Option<bool> {
        let id = |path: &Utf8Path| {
            let found = std::fs::symlink_metadata(path).ok()?;
            Some((found.dev(), found.ino()))
        };
        (id(at)? == id(&self.loose_path(checksum))?).then(|| {
            self.repo
                .fsck_object(ObjectType::File, &hex(checksum), NO_CANCEL)
                .is_ok()
        })
    }

    fn compare_file(&self, at: &Utf8Path, checksum: &Checksum) -> Option<String> {
        let Ok(found) = std::fs::symlink_metadata(at) else {
            return Some("is missing".into());
        };
        let Ok((stream, info, _)) = self.repo.load_file(&hex(checksum), NO_CANCEL) else {
            return Some("cannot be compared: the store's copy is damaged".into());
        };
        if info.file_type() == gio::FileType::SymbolicLink {
            let target = std::fs::read_link(at).ok();
            let same = target.is_some_and(|target| {
                info.symlink_target()
                    .is_some_and(|wanted| wanted.as_os_str() == target.as_os_str())
            });
            return (!same).then(|| "is another link".into());
        }
        let mode = info.attribute_uint32("unix::mode") & 0o7777;
        let owner = (
            info.attribute_uint32("unix::uid"),
            info.attribute_uint32("unix::gid"),
        );
        if !found.is_file() || (self.is_system && (found.uid(), found.gid()) != owner) {
            return Some("has another owner".into());
        }
        if self.is_system && found.mode() & 0o7777 != mode {
            return Some("has another mode".into());
        }
        let same = u64::try_from(info.size()).is_ok_and(|size| size == found.len())
            && stream.is_some_and(|stream| {
                let Ok(mut file) = std::fs::File::open(at) else {
                    return false;
                };
                same_bytes(&mut file, &mut stream.into_read())
            });
        (!same).then(|| "has another content".into())
    }

    /// True if an object that is not what its name says would be without a `SELinux` label, or with the
    /// one that today's policy has for its path: the policy was switched on, or off, since it was stored.
    fn differs_in_label(&self, checksum: &Checksum, path: &str) -> bool {
        const LABEL: &[u8] = b"security.selinux\0";
        let name = hex(checksum);
        let Ok((_, info, xattrs)) = self.repo.load_file(&name, NO_CANCEL) else {
            return false;
        };
        let others = xattrs
            .get::<Vec<(Vec<u8>, Vec<u8>)>>()
            .unwrap_or_default()
            .into_iter()
            .filter(|(name, _)| name != LABEL);
        let without: Vec<_> = others.collect();
        let mut candidates = vec![without.clone()];
        let mode = info.attribute_uint32("unix::mode");
        if let Ok(Some(labels)) = Labels::open(self.file_contexts.as_deref())
            && let Some(label) = labels.look_up(path, mode)
        {
            let mut with = without;
            with.push((LABEL.to_vec(), label));
            with.sort();
            candidates.push(with);
        }
        candidates.into_iter().any(|xattrs| {
            let Ok((stream, info, _)) = self.repo.load_file(&name, NO_CANCEL) else {
                return false;
            };
            let computed = ostree::checksum_file_from_input(
                &info,
                Some(&xattrs.to_variant()),
                stream.as_ref(),
                ObjectType::File,
                NO_CANCEL,
            );
            computed.is_ok_and(|computed| computed.to_hex() == name)
        })
    }

    fn loose_path(&self, checksum: &Checksum) -> Utf8PathBuf {
        let text = hex(checksum);
        self.path
            .join("objects")
            .join(&text[..2])
            .join(format!("{}.file", &text[2..]))
    }
}

impl Import<'_> {
    /// Delete the damaged objects below a ref that is about to be imported again: libostree writes
    /// no object that is there already.
    pub(super) fn make_room(&self, name: &str) -> Result<()> {
        let Some(commit) = self.store.resolve(name)? else {
            return Ok(());
        };
        let mut findings = Findings::default();
        self.store
            .verify_commit(&commit, &mut HashSet::new(), &mut findings);
        for damaged in findings.damaged {
            let text = hex(&damaged.checksum);
            let kind = damaged.kind.object();
            // A missing one is as good.
            if let Err(error) = self.store.repo.delete_object(kind, &text, NO_CANCEL) {
                tracing::debug!(%error, text, "not deleted");
            }
        }
        Ok(())
    }
}

pub(super) fn same_bytes(a: &mut impl std::io::Read, b: &mut impl std::io::Read) -> bool {
    let mut buffers = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        let Ok(n) = a.read(&mut buffers.0) else {
            return false;
        };
        if n == 0 {
            return matches!(b.read(&mut buffers.1), Ok(0));
        }
        if b.read_exact(&mut buffers.1[..n]).is_err() || buffers.0[..n] != buffers.1[..n] {
            return false;
        }
    }
}
