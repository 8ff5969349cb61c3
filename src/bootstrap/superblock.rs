//! The superblock of an ext4 or ext3 file system, as far as its journal goes.
//!
//! A file system that is filled is thrown away if that fails: a journal would only be more to write, and in the images
//! afterwards. So it is mounted as one without, and its images say again that it has one, which is as empty as mke2fs
//! made it. Source: the kernel's `Documentation/filesystems/ext4/super.rst`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// Where it is on the disk, and how long.
pub const OFFSET: usize = 1024;
const BYTES: usize = 1024;
/// `s_feature_compat` and in it the journal.
const COMPATIBLE: usize = 0x5c;
const HAS_JOURNAL: u8 = 4;
/// In its second byte, a file of orphans, which there is only with a journal.
const ORPHAN_FILE: u8 = 0x10;
/// The second byte of `s_feature_ro_compat`, and in it sums of all metadata.
const READ_ONLY_COMPATIBLE: usize = 0x65;
const METADATA_CSUM: u8 = 4;
/// `s_checksum`, of all before it.
const CHECKSUM: usize = 0x3fc;

/// Say whether there is a journal; `disk`: at least the first 2 KB of one. What cannot be without keeps it.
pub fn set_journal(disk: &mut [u8], has_journal: bool) {
    let block = &mut disk[OFFSET..OFFSET + BYTES];
    if has_journal {
        block[COMPATIBLE] |= HAS_JOURNAL;
    } else if block[COMPATIBLE + 1] & ORPHAN_FILE == 0 {
        block[COMPATIBLE] &= !HAS_JOURNAL;
    }
    if block[READ_ONLY_COMPATIBLE] & METADATA_CSUM != 0 {
        // The kernel's sums are not inverted in the end.
        let sum = !crc32c::crc32c(&block[..CHECKSUM]);
        block[CHECKSUM..].copy_from_slice(&sum.to_le_bytes());
    }
}

/// The same in a file.
pub fn set_journal_in(raw: &File, has_journal: bool) -> io::Result<()> {
    let mut disk = [0; OFFSET + BYTES];
    raw.read_exact_at(&mut disk, 0)?;
    set_journal(&mut disk, has_journal);
    raw.write_all_at(&disk[OFFSET..], OFFSET as u64)
}
