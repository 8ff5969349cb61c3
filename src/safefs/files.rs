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

/// What an entry of a directory is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Dir,
    /// A regular file.
    File,
    /// A symbolic link and where it points.
    Link(String),
    /// A device, a fifo, a socket.
    Other,
}

/// An entry below a directory of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walked {
    /// Relative to that directory.
    pub path: String,
    /// What it is.
    pub node: Node,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Extended attributes, without their terminating NUL.
    pub xattrs: Vec<(String, Vec<u8>)>,
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

    /// Everything below the directory `path`, directories before what is in them; nothing if there is
    /// no such directory. Links are not followed.
    ///
    /// # Errors
    /// [`crate::error::Kind::Invalid`] for names that are not UTF-8.
    fn walk(&self, path: &str) -> Result<Vec<Walked>>;

    /// True if `path` is a directory reached without following any symbolic link.
    fn is_plain_dir(&self, path: &str) -> Result<bool>;
}
