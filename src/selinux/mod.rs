//! Labels of the host's policy. Where `SELinux` is off, nothing happens and nothing is slower, unless the
//! configuration names file contexts: those of a host that the store or its files are for.

use std::ffi::{CString, c_int, c_void};
use std::marker::PhantomData;
use std::path::Path;

use camino::Utf8Path;
use rustix::fs::XattrFlags;

use selinux::label::{Labeler, back_end};
use selinux::{FileAccessMode, KernelSupport};

use crate::error::{Context as _, Result};

/// Where an image has its files for the host: they get the labels of their places on it.
pub const HOST_FILES: &str = "exports/hostfs";

/// The attribute that holds a label.
pub const ATTRIBUTE: &str = "security.selinux";

/// The option of a labeler that names its file. Source: `selinux/label.h`.
const OPTION_PATH: c_int = 3;

/// Looks labels up in the host's file contexts.
pub struct Labels {
    labeler: Labeler<back_end::File>,
    // A handle of libselinux belongs to one thread.
    _not_send: PhantomData<*const c_void>,
}

impl Labels {
    /// The configured file contexts, or the host's; nothing where there are none and `SELinux` is off.
    ///
    /// # Errors
    /// [`crate::error::Kind::Failed`] if they cannot be read.
    pub fn open(file_contexts: Option<&Utf8Path>) -> Result<Option<Self>> {
        if file_contexts.is_none() && selinux::kernel_support() == KernelSupport::Unsupported {
            return Ok(None);
        }
        let file = file_contexts.map_or("", Utf8Path::as_str);
        let file = CString::new(file).context(|| "the path of the file contexts is odd".into())?;
        let options = [(OPTION_PATH, file.as_ptr().cast::<c_void>())];
        let options = if file_contexts.is_some() {
            &options[..]
        } else {
            &[]
        };
        let labeler = Labeler::new(options, true)
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
        let on_host = path
            .strip_prefix(HOST_FILES)
            .filter(|rest| rest.starts_with('/'));
        let path = on_host.map_or(path, |rest| &rest[1..]);
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

    /// Give the file at `at` the label of `target`, where it will be on the host.
    pub fn give(&self, at: &Path, target: &Utf8Path) -> Result<()> {
        let failed = || format!("cannot label {}", at.display());
        let found = rustix::fs::lstat(at).context(failed)?;
        match self.look_up(target.as_str(), found.st_mode) {
            Some(label) => {
                rustix::fs::lsetxattr(at, ATTRIBUTE, &label, XattrFlags::empty()).context(failed)
            }
            None => Ok(()),
        }
    }

    /// True if the file at `at` has the label of `target`, or `target` may have any.
    pub fn agrees(&self, at: &Path, target: &Utf8Path) -> bool {
        let Ok(found) = rustix::fs::lstat(at) else {
            return false;
        };
        let Some(label) = self.look_up(target.as_str(), found.st_mode) else {
            return true;
        };
        let mut value = vec![0; label.len() + 1];
        let read = rustix::fs::lgetxattr(at, ATTRIBUTE, value.as_mut_slice());
        read.is_ok_and(|length| value.get(..length) == Some(&label[..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where Debian's selinux-policy-default has them.
    const DEBIAN: &str = "/etc/selinux/default/contexts/files/file_contexts";

    #[test]
    fn labels_are_those_of_a_real_policy_for_the_path_on_the_host() {
        let labels = Labels::open(Some(DEBIAN.into())).unwrap().unwrap();
        let (file, dir, link) = (0o100_644, 0o040_755, 0o120_777);
        for (path, mode, kind) in [
            ("/", dir, "root_t"),
            ("usr/bin/x", file, "bin_t"),
            ("etc/x", file, "etc_t"),
            (
                "exports/hostfs/etc/systemd/system/x.service",
                file,
                "systemd_unit_t",
            ),
            ("exports/hostfs/usr/bin/x", file, "bin_t"),
            ("exports/hostfs/usr/bin/x", link, "bin_t"),
            ("exports/manifest.json", file, "default_t"),
            ("var/log/x", file, "var_log_t"),
        ] {
            let label = String::from_utf8(labels.look_up(path, mode).unwrap()).unwrap();
            assert!(label.ends_with('\0'));
            let found = label.split(':').nth(2).unwrap();
            assert_eq!(found, kind, "{path}: {label}");
        }
        // No file has a label below /proc.
        assert_eq!(labels.look_up("/proc/x", file), None);
    }
}
