//! Images in the `OSTree` repository.
//!
//! # Refs and commits
//! - `ociimage/<encoded name>`: an image. Tree: `/manifest.json`. Metadata: `docker.manifest` (the
//!   exact text), `docker.digest`, `signatures`; ours: `atomic-rs.source`, the reference it came by, and
//!   `atomic-rs.platform`, the platform that was asked for, if one was.
//! - `ociimage/<64 hex>`: a layer (see [`layer`]) or an image config (tree: `/content`).
//! - `ociimage-tree/<64 hex>`: the merged tree of the image with this manifest digest.
//! - `ociimage-side/<64 hex>`: the side data of a layer (see [`side`]); `ociimage-kept/<64 hex>`: its
//!   blob as it came (tree: `/blob`), where that is wanted.
//! - `atomic-deployment/<name>/<slot>`: the tree a deployment was made from; it keeps all that the
//!   deployment needs from being pruned.
//!
//! The layout is the one skopeo's old `ostree:` destination wrote, so repositories of existing
//! hosts are read and extended in place.

mod ahead;
mod checkout;
pub mod diff;
mod docker_archive;
pub mod export;
pub mod gunzip;
pub mod images;
mod import;
pub mod layer;
mod layer_stream;
mod layer_tree;
pub mod objects;
mod side;
pub mod special;
pub mod tar;
pub mod tree;
pub mod verify;
pub mod writers;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::time::{SystemTime, UNIX_EPOCH};

use camino::{Utf8Path, Utf8PathBuf};
use ostree::{Repo, RepoCheckoutAtOptions, RepoCheckoutMode, RepoCheckoutOverwriteMode, RepoMode};

use crate::config::Config;
use crate::error::{Context as _, Kind, Result};
use crate::image::refname::blob_ref;
use crate::image::{Descriptor, Digest, Manifest};
use crate::safefs::{self, Lock};
use crate::{fail, fault};
use objects::NO_CANCEL;

pub use import::{Import, LayerReader, Recorded};
pub use layer::ImportedLayer;
pub use layer_stream::LayerStream;
pub use layer_tree::is_kept_xattr;
pub use tree::{ImageTree, LayerRoot};

/// The repository of a host that has `OSTree` for itself.
const HOST_REPOSITORY: &str = "/ostree/repo";
/// Prefix of the refs that pin what deployments need.
pub const DEPLOYMENT_PREFIX: &str = "atomic-deployment/";

/// The store, open, with its lock held: shared for use, exclusive for pruning.
pub struct Store {
    repo: Repo,
    path: Utf8PathBuf,
    max_layer_bytes: u64,
    file_contexts: Option<Utf8PathBuf>,
    is_system: bool,
    /// Sizes of layers that were asked for.
    layer_sizes: RefCell<HashMap<Digest, (u64, u64)>>,
    _lock: Lock,
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

impl Store {
    /// Open the store, creating it where there is none.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if repository and checkouts are on different file systems, or the
    /// repository is of a kind that has no files to link.
    pub fn open(config: &Config) -> Result<Self> {
        Self::open_locked(config, safefs::Mode::Shared)
    }

    /// The same with everybody else kept out, for pruning.
    pub fn open_exclusive(config: &Config) -> Result<Self> {
        Self::open_locked(config, safefs::Mode::Exclusive)
    }

    /// Open the store only if it exists: a listing creates nothing.
    pub fn open_existing(config: &Config) -> Result<Option<Self>> {
        if !config.checkouts.is_dir() {
            return Ok(None);
        }
        let path = repository_path(config);
        if !is_repository(&path) {
            return Ok(None);
        }
        Self::open(config).map(Some)
    }

    fn open_locked(config: &Config, mode: safefs::Mode) -> Result<Self> {
        safefs::make_private_dir(config.checkouts.as_std_path())?;
        for own in [".locks", ".journal", ".ledger"] {
            safefs::make_private_dir(config.checkouts.join(own).as_std_path())?;
        }
        let lock = Lock::take(
            config.checkouts.join(".lock").as_std_path(),
            mode,
            "the store",
        )?;
        let path = repository_path(config);
        check_same_file_system(&path, &config.checkouts)?;
        if !is_repository(&path) {
            let creating = config.checkouts.join(".locks/.repository");
            let _lock = Lock::take(
                creating.as_std_path(),
                safefs::Mode::Exclusive,
                "the new repository",
            )?;
            if !is_repository(&path) {
                create(&path, config.is_system)?;
            }
        }
        let repo = repository(&path)?;
        repo.open(NO_CANCEL)
            .context(|| format!("cannot open the repository {path}"))?;
        let (wanted, name) = mode_for(config.is_system);
        if repo.mode() != wanted {
            fail!(
                Kind::Invalid,
                "the repository {path} is not of the kind \"{name}\", which deployments are linked from"
            );
        }
        Ok(Self {
            repo,
            path,
            max_layer_bytes: config.max_layer_bytes,
            file_contexts: config.selinux_file_contexts.clone(),
            is_system: config.is_system,
            layer_sizes: RefCell::default(),
            _lock: lock,
        })
    }

    /// Where the repository is.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// The repository itself.
    pub fn repo(&self) -> &Repo {
        &self.repo
    }

    /// The commit a ref points to.
    pub fn resolve(&self, name: &str) -> Result<Option<String>> {
        self.repo
            .resolve_rev(name, true)
            .map(|commit| commit.map(|commit| commit.to_string()))
            .context(|| format!("cannot read the ref {name}"))
    }

    /// Point a ref to a commit, or remove it.
    pub fn set_ref(&self, name: &str, commit: Option<&str>) -> Result<()> {
        if commit.is_none() && self.resolve(name)?.is_none() {
            return Ok(());
        }
        fault::point("set a ref")?;
        self.repo
            .set_ref_immediate(None, name, commit, NO_CANCEL)
            .context(|| format!("cannot set the ref {name}"))
    }

    /// Check out `commit` as hard links into `directory/rootfs`, which must not exist.
    pub fn check_out(&self, commit: &str, directory: &Utf8Path) -> Result<()> {
        self.check_out_as(commit, directory, "rootfs")
    }

    /// Copy the files of `commit` into `directory`, which is there and empty: copies, because a
    /// write to a hard link would be one to the store.
    pub fn copy_out(&self, commit: &str, directory: &Utf8Path) -> Result<()> {
        let at = std::fs::File::open(directory)
            .context(|| format!("cannot open the directory {directory}"))?;
        let options = RepoCheckoutAtOptions {
            mode: RepoCheckoutMode::User,
            overwrite_mode: RepoCheckoutOverwriteMode::UnionFiles,
            enable_fsync: false,
            force_copy: true,
            ..Default::default()
        };
        self.repo
            .checkout_at(Some(&options), at.as_raw_fd(), ".", commit, NO_CANCEL)
            .context(|| format!("cannot copy {commit} to {directory}"))
    }

    /// The same under another name than `rootfs`.
    pub fn check_out_as(&self, commit: &str, directory: &Utf8Path, name: &str) -> Result<()> {
        let parent = std::fs::File::open(directory)
            .context(|| format!("cannot open the directory {directory}"))?;
        let failed = || format!("cannot check out {commit} to {directory}/{name}");
        let root = objects::commit_root(&self.repo, commit)?;
        let kind = if self.is_system {
            checkout::Kind::Bare
        } else {
            checkout::Kind::BareUser
        };
        let linked = checkout::check_out(&self.repo, &self.path, kind, root, &parent, name);
        if linked.map_err(|error| error.within(failed()))? {
            return Ok(());
        }
        safefs::remove_tree(directory.join(name).as_std_path())?;
        let options = RepoCheckoutAtOptions {
            // An ordinary user cannot give files away; who owns what is in an attribute.
            mode: if self.is_system {
                RepoCheckoutMode::None
            } else {
                RepoCheckoutMode::User
            },
            overwrite_mode: RepoCheckoutOverwriteMode::None,
            // Durability comes from one syncfs when the whole deployment is staged; and where a
            // file has as many links as its file system can count, it is copied.
            enable_fsync: false,
            no_copy_fallback: false,
            ..Default::default()
        };
        self.repo
            .checkout_at(Some(&options), parent.as_raw_fd(), name, commit, NO_CANCEL)
            .context(failed)
    }

    /// Start writing to the store, keeping layers' blobs as they come or not; nothing is visible before [`Import::commit`].
    pub fn import(&self, keeps_blobs: bool) -> Result<Import<'_>> {
        let transaction = self
            .repo
            .auto_transaction(NO_CANCEL)
            .context(|| "cannot start a transaction in the repository".into())?;
        Ok(Import {
            store: self,
            transaction,
            writers: OnceCell::new(),
            commits: RefCell::default(),
            image: RefCell::default(),
            heals: Cell::new(false),
            keeps_blobs,
        })
    }
}

/// Which layers and configs of `manifest` are not in the store yet.
pub fn missing_blobs<'m>(store: &Store, manifest: &'m Manifest) -> Result<Vec<&'m Descriptor>> {
    let Manifest::Image { config, layers, .. } = manifest else {
        return Ok(Vec::new());
    };
    let mut missing: Vec<&Descriptor> = Vec::new();
    for descriptor in layers.iter().chain([config]) {
        let there = store.resolve(&blob_ref(descriptor.digest))?.is_some()
            && !store.is_marked_damaged(descriptor.digest)?;
        if !there
            && !missing
                .iter()
                .any(|other| other.digest == descriptor.digest)
        {
            missing.push(descriptor);
        }
    }
    Ok(missing)
}

fn repository_path(config: &Config) -> Utf8PathBuf {
    if let Some(path) = &config.repository {
        return path.clone();
    }
    let own = config.checkouts.join(".storage/ostree");
    let host = Utf8Path::new(HOST_REPOSITORY);
    if !own.exists()
        && host.join("config").exists()
        && check_same_file_system(host, &config.checkouts).is_ok()
    {
        return host.to_owned();
    }
    own
}

/// Root's files keep their owners; a user's carry them in an attribute.
fn mode_for(is_system: bool) -> (RepoMode, &'static str) {
    if is_system {
        (RepoMode::Bare, "bare")
    } else {
        (RepoMode::BareUser, "bare-user")
    }
}

/// libostree makes `objects` last, so what lacks it is half made.
fn is_repository(path: &Utf8Path) -> bool {
    path.join("objects").is_dir()
}

/// A repository, which may not exist yet. Nothing of libostree is used before it.
fn repository(path: &Utf8Path) -> Result<Repo> {
    if let Err(why) = safefs::libostree::load() {
        fail!(Kind::Failed, "cannot load libostree: {why}");
    }
    Ok(Repo::new_for_path(path))
}

/// Create a repository, whole or not at all: made aside and renamed. Where the directory is there
/// already, libostree completes it.
fn create(path: &Utf8Path, is_system: bool) -> Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).context(|| format!("cannot create {parent}"))?;
    }
    let staged = if path.exists() {
        path.to_owned()
    } else {
        let aside = path.with_file_name(format!(".{}.new", path.file_name().unwrap_or("repo")));
        safefs::remove_tree(aside.as_std_path())?;
        aside
    };
    let failed = || format!("cannot create the repository {path}");
    let repo = repository(&staged)?;
    repo.create(mode_for(is_system).0, NO_CANCEL)
        .context(failed)?;
    // Set-uid files of every image lie below.
    std::fs::set_permissions(&staged, std::fs::Permissions::from_mode(0o700))
        .context(|| format!("cannot close {staged} to other users"))?;
    let keys = repo.copy_config();
    // Another command's long pull is no reason to fail.
    keys.set_string("core", "lock-timeout-secs", "-1");
    repo.write_config(&keys).context(failed)?;
    if staged != path {
        safefs::sync_file_system(staged.as_std_path())?;
        safefs::rename(staged.as_std_path(), path.as_std_path())?;
    }
    Ok(())
}

/// Hard links need one file system; where only bind mounts tell, the link itself does.
fn check_same_file_system(repository: &Utf8Path, checkouts: &Utf8Path) -> Result<()> {
    // A repository that does not exist yet will be where its first existing parent is.
    let device = |path: &Utf8Path| {
        let existing = path.ancestors().find(|path| path.exists()).unwrap_or(path);
        std::fs::metadata(existing)
            .map(|meta| meta.dev())
            .context(|| format!("cannot stat {existing}"))
    };
    if device(repository)? != device(checkouts)? {
        fail!(
            Kind::Invalid,
            "the repository {repository} and the checkouts {checkouts} are on different file systems: deployments are hard links, so move one of them (ATOMIC_OSTREE_REPO, ATOMIC_OSTREE_CHECKOUT_PATH)"
        );
    }
    Ok(())
}
