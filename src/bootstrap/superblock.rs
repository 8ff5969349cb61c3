//! The superblock and the block groups of an ext4 or ext3 file system, as far as images are made of one.
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
/// `s_free_blocks_count`, its upper half, and `s_free_inodes_count`.
const FREE_BLOCKS: usize = 0xc;
const FREE_BLOCKS_HIGH: usize = 0x158;
const FREE_INODES: usize = 0x10;
/// The first byte of `s_state`, and in it that nobody has it mounted.
const STATE: usize = 0x3a;
const IS_CLEAN: u8 = 1;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;

/// Say whether there is a journal; `disk`: at least the first 2 KB of one. What cannot be without keeps it.
pub fn set_journal(disk: &mut [u8], has_journal: bool) {
    let block = &mut disk[OFFSET..OFFSET + BYTES];
    if has_journal {
        block[COMPATIBLE] |= HAS_JOURNAL;
    } else if block[COMPATIBLE + 1] & ORPHAN_FILE == 0 {
        block[COMPATIBLE] &= !HAS_JOURNAL;
    }
    sum_up(block);
}

fn sum_up(block: &mut [u8]) {
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

/// What a file system says of its block groups.
pub struct Groups {
    superblock: [u8; BYTES],
    /// Bytes of a block.
    pub block: u64,
    /// Blocks in all.
    pub blocks: u64,
    /// Inodes of a group.
    pub inodes: u64,
    /// Bytes of an inode.
    pub inode: u64,
    descriptor: usize,
    is_64bit: bool,
    table: Vec<u8>,
}

/// One of them.
pub struct Group {
    /// The block that its inodes begin in.
    pub inode_table: u64,
    /// How many of the last inodes were never used, where that is kept.
    pub unused_inodes: u64,
    free_blocks: u64,
    free_inodes: u64,
}

impl Groups {
    /// Read them; nothing where they are not in one place.
    pub fn read(raw: &File) -> io::Result<Option<Self>> {
        let mut superblock = [0; BYTES];
        raw.read_exact_at(&mut superblock, OFFSET as u64)?;
        let incompatible = u32_at(&superblock, 0x60);
        if incompatible & INCOMPAT_META_BG != 0 {
            return Ok(None);
        }
        let block = 1024_u64 << u32_at(&superblock, 0x18).min(6);
        let inodes = u64::from(u32_at(&superblock, 0x28)).max(1);
        let count = u64::from(u32_at(&superblock, 0)).div_ceil(inodes);
        let is_64bit = incompatible & INCOMPAT_64BIT != 0;
        let descriptor = if is_64bit {
            usize::from(u16_at(&superblock, 0xfe)).max(64)
        } else {
            32
        };
        let mut table = vec![0; descriptor * usize::try_from(count).unwrap_or(0)];
        let first = u64::from(u32_at(&superblock, 0x14)) + 1;
        raw.read_exact_at(&mut table, first * block)?;
        Ok(Some(Self {
            block,
            blocks: u64::from(u32_at(&superblock, 0x4)),
            inodes,
            inode: u64::from(u16_at(&superblock, 0x58)).max(128),
            superblock,
            descriptor,
            is_64bit,
            table,
        }))
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = Group> + '_ {
        let of_16_bits = |group: &[u8], low, high| {
            let high = if self.is_64bit {
                u16_at(group, high)
            } else {
                0
            };
            u64::from(high) << 16 | u64::from(u16_at(group, low))
        };
        self.table
            .chunks_exact(self.descriptor)
            .map(move |group| Group {
                inode_table: u64::from(u32_at(group, 0x8))
                    | if self.is_64bit {
                        u64::from(u32_at(group, 0x28)) << 32
                    } else {
                        0
                    },
                unused_inodes: of_16_bits(group, 0x1c, 0x32),
                free_blocks: of_16_bits(group, 0xc, 0x2c),
                free_inodes: of_16_bits(group, 0xe, 0x2e),
            })
    }
}

/// Have the superblock of a mounted file system without a journal say in its file what it would say were it unmounted,
/// where all else was written and nobody writes to it. The kernel, which has a superblock of its own in memory, writes
/// over that some time. Whether that could be done.
pub fn seal(raw: &File) -> io::Result<bool> {
    let Some(groups) = Groups::read(raw)? else {
        return Ok(false);
    };
    let mut block = groups.superblock;
    if block[COMPATIBLE] & HAS_JOURNAL != 0 {
        return Ok(false);
    }
    let (mut free_blocks, mut free_inodes) = (0_u64, 0_u64);
    for group in groups.iter() {
        free_blocks += group.free_blocks;
        free_inodes += group.free_inodes;
    }
    let mut put = |at: usize, value: u64| {
        let low = u32::try_from(value & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        block[at..at + 4].copy_from_slice(&low.to_le_bytes());
    };
    put(FREE_BLOCKS, free_blocks);
    put(FREE_INODES, free_inodes);
    if groups.is_64bit {
        put(FREE_BLOCKS_HIGH, free_blocks >> 32);
    }
    block[STATE] |= IS_CLEAN;
    sum_up(&mut block);
    raw.write_all_at(&block, OFFSET as u64)?;
    Ok(true)
}

/// A number of 16 bits.
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// A number of 32 bits.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}
