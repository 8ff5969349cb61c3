//! Labels of the host's policy. Where `SELinux` is off, nothing happens and nothing is slower.

use std::ffi::{CString, c_void};
use std::marker::PhantomData;

use selinux::label::{Labeler, back_end};
use selinux::{FileAccessMode, KernelSupport};

use crate::error::{Context as _, Result};

/// Files below this directory of an image get the label of where they will be on the host.
const HOST_FILES: &str = "exports/hostfs/";

/// Looks labels up in the host's file contexts.
pub struct Labels {
    labeler: Labeler<back_end::File>,
    // A handle of libselinux belongs to one thread.
    _not_send: PhantomData<*const c_void>,
}

impl Labels {
    /// The host's file contexts, or nothing where `SELinux` is off.
    pub fn of_host() -> Result<Option<Self>> {
        if selinux::kernel_support() == KernelSupport::Unsupported {
            return Ok(None);
        }
        let labeler = Labeler::new(&[], true)
            .context(|| "cannot read the file contexts of the SELinux policy".into())?;
        Ok(Some(Self {
            labeler,
            _not_send: PhantomData,
        }))
    }

    /// The label for `path`, a path inside an image, with the file type bits of `mode`. Nothing if
    /// the policy has none.
    pub fn look_up(&self, path: &str, mode: u32) -> Option<Vec<u8>> {
        let path = path.trim_start_matches('/');
        let path = path.strip_prefix(HOST_FILES).unwrap_or(path);
        let path = CString::new(format!("/{path}")).ok()?;
        let mode = FileAccessMode::new(mode)?;
        let context = self
            .labeler
            .look_up(&path, mode.mode().cast_signed())
            .ok()?;
        let mut label = context.as_bytes().to_vec();
        // The kernel stores labels with their terminating NUL.
        if label.last() != Some(&0) {
            label.push(0);
        }
        Some(label)
    }
}
