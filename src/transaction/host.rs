//! The host that plans are applied to.

use std::cell::{Cell, OnceCell, RefCell};
use std::path::Path;
use std::time::Instant;

use camino::Utf8Path;

use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::hostfiles::package::FrontendLock;
use crate::selinux::Labels;
use crate::systemd::Manager;

/// The host a plan is applied to.
pub struct Host<'c> {
    config: &'c Config,
    manager: OnceCell<Manager>,
    labels: OnceCell<Option<Labels>>,
    packages: RefCell<Option<FrontendLock>>,
    offline: bool,
    resuming: Cell<bool>,
    started: Cell<Option<Instant>>,
    serving: Cell<Option<Instant>>,
}

impl<'c> Host<'c> {
    /// A host whose service manager is reached when first needed.
    pub fn new(config: &'c Config) -> Self {
        Self {
            config,
            manager: OnceCell::new(),
            labels: OnceCell::new(),
            packages: RefCell::new(None),
            offline: false,
            resuming: Cell::new(false),
            started: Cell::new(None),
            serving: Cell::new(None),
        }
    }

    /// A host whose service manager is not up yet (early boot): steps change files only.
    pub fn offline(config: &'c Config) -> Self {
        Self {
            offline: true,
            ..Self::new(config)
        }
    }

    /// Its configuration.
    pub fn config(&self) -> &'c Config {
        self.config
    }

    /// Its service manager.
    pub fn manager(&self) -> Result<&Manager> {
        if self.manager.get().is_none() {
            // Nobody else sets it: the cell is ours and this is one thread.
            let _ = self.manager.set(Manager::connect(self.config.is_system)?);
        }
        self.manager
            .get()
            .ok_or_else(|| Error::new(Kind::Systemd, "systemd cannot be reached"))
    }

    /// The labels of its files, where there are any.
    pub(super) fn labels(&self) -> Result<Option<&Labels>> {
        if self.labels.get().is_none() {
            let _ = self
                .labels
                .set(Labels::open(self.config.selinux_file_contexts.as_deref())?);
        }
        Ok(self.labels.get().and_then(Option::as_ref))
    }

    /// Note whether what is done now was begun by somebody who was killed.
    pub(super) fn set_resuming(&self, resuming: bool) {
        self.resuming.set(resuming);
    }

    /// True if it was.
    pub(super) fn is_resuming(&self) -> bool {
        self.resuming.get()
    }

    /// The lock on the host's packages, while we hold it.
    pub(super) fn packages(&self) -> &RefCell<Option<FrontendLock>> {
        &self.packages
    }

    /// Give a file that waits at `at` the label it will need at `target`.
    pub(super) fn label(&self, at: &Path, target: &Utf8Path) -> Result<()> {
        match self.labels()? {
            // A user's files have the labels their home gives them.
            Some(labels) if self.config.is_system => labels.give(at, target),
            _ => Ok(()),
        }
    }

    /// True if the service manager is not up yet.
    pub fn is_offline(&self) -> bool {
        self.offline
    }

    /// When a unit was last started.
    pub(super) fn started(&self) -> Option<Instant> {
        self.started.get()
    }

    /// When the new version was first seen to work.
    pub fn serving(&self) -> Option<Instant> {
        self.serving.get()
    }

    /// Note that the new version works from now on; later calls for the same start are ignored.
    pub(super) fn note_serving(&self) {
        if self.serving.get().is_none() {
            self.serving.set(Some(Instant::now()));
        }
    }

    /// A unit is about to be started.
    pub(super) fn note_start(&self) {
        self.started.set(Some(Instant::now()));
        self.serving.set(None);
    }

    pub(super) fn with_manager(&self, act: impl FnOnce(&Manager) -> Result<()>) -> Result<()> {
        if self.offline {
            return Ok(());
        }
        act(self.manager()?)
    }
}
