//! Reading files of an image, wherever the image is: in the store or in a directory.

use crate::error::Result;

/// What lies at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStat {
    /// A directory, as opposed to a file.
    pub is_dir: bool,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The files of an image. Paths are absolute or relative to the image's root, symbolic links are
/// followed and never lead out of it.
pub trait Files {
    /// What lies at `path`, or nothing.
    fn stat(&self, path: &str) -> Result<Option<FileStat>>;

    /// The content of a regular file, or nothing if there is none.
    ///
    /// # Errors
    /// [`crate::error::Kind::Invalid`] if it is no regular file or has more than `limit` bytes.
    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>>;

    /// True if `path` is a directory reached without following any symbolic link.
    fn is_plain_dir(&self, path: &str) -> Result<bool>;
}
