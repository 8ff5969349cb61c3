//! Which parts of an ext4 file system cannot have changed between two images of it: the contents of files whose inodes
//! are byte for byte what they were. Without this each image of a chain would cost reading all that is below it.
//!
//! This is for a file system that the kernel has written: there whatever changes a file's content, or makes another file
//! of its inode, gives the inode another time or generation. Source: the kernel's `Documentation/filesystems/ext4/`.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::superblock::{Groups, u16_at, u32_at};

const INODE_EXTENTS: u32 = 0x8_0000;
const KIND: u16 = 0xf000;
const REGULAR: u16 = 0x8000;
const EXTENT_MAGIC: u16 = 0xf30a;
/// Extents from here on are of blocks that read as zeros: the rest is their length.
const UNWRITTEN: u16 = 0x8000;
/// No tree of extents is deeper.
const MAX_DEPTH: u16 = 5;

/// The inodes of regular files as they were, by number.
#[derive(Default)]
pub struct Inodes(HashMap<u64, [u8; 32]>);

/// Blocks that are what they were.
pub struct Unchanged {
    bits: Vec<u64>,
    block: u64,
}

impl Unchanged {
    /// Whether all bytes of a part of the disk are what they were. Both in bytes.
    pub fn holds(&self, offset: u64, length: u64) -> bool {
        let blocks = offset / self.block..(offset + length).div_ceil(self.block);
        blocks.into_iter().all(|block| {
            let word = usize::try_from(block / 64).unwrap_or(usize::MAX);
            self.bits
                .get(word)
                .is_some_and(|word| word >> (block % 64) & 1 == 1)
        })
    }

    fn add(&mut self, first: u64, count: u64) {
        for block in first..first.saturating_add(count) {
            let word = usize::try_from(block / 64).unwrap_or(usize::MAX);
            match self.bits.get_mut(word) {
                Some(word) => *word |= 1 << (block % 64),
                None => return,
            }
        }
    }
}

/// Look at a file system that nobody writes to: what has not changed since `inodes` was made by the last look, which is
/// made anew. Nothing where that cannot be told.
pub fn look(raw: &File, inodes: &mut Inodes) -> io::Result<Option<Unchanged>> {
    let Some(groups) = Groups::read(raw)? else {
        return Ok(None);
    };
    let size = groups.block;
    let mut unchanged = Unchanged {
        bits: vec![0; usize::try_from(groups.blocks.div_ceil(64)).unwrap_or(0)],
        block: size,
    };
    let mut now = HashMap::new();
    for (index, group) in groups.iter().enumerate() {
        let first = index as u64 * groups.inodes;
        // Where this is not kept, it is zero, and the unused ones are zeros.
        let used = groups.inodes.saturating_sub(group.unused_inodes);
        let mut bytes = vec![0; usize::try_from(used * groups.inode).unwrap_or(0)];
        raw.read_exact_at(&mut bytes, group.inode_table * size)?;
        let inode_bytes = usize::try_from(groups.inode).unwrap_or(usize::MAX);
        for (index, inode) in bytes.chunks_exact(inode_bytes).enumerate() {
            let is_file = u16_at(inode, 0) & KIND == REGULAR && u16_at(inode, 0x1a) != 0;
            if !is_file || u32_at(inode, 0x20) & INODE_EXTENTS == 0 {
                continue;
            }
            let number = first + index as u64;
            let sum = *blake3::hash(inode).as_bytes();
            if inodes.0.get(&number) == Some(&sum) {
                add_tree(raw, &inode[0x28..0x64], size, MAX_DEPTH, &mut unchanged)?;
            }
            now.insert(number, sum);
        }
    }
    inodes.0 = now;
    Ok(Some(unchanged))
}

/// All blocks of a tree of extents, whose nodes are as old as the inode; what is no such tree has none.
fn add_tree(
    raw: &File,
    node: &[u8],
    size: u64,
    deeper: u16,
    unchanged: &mut Unchanged,
) -> io::Result<()> {
    let (magic, count, depth) = (u16_at(node, 0), u16_at(node, 2), u16_at(node, 6));
    if magic != EXTENT_MAGIC || depth > deeper {
        return Ok(());
    }
    for entry in node[12..].chunks_exact(12).take(usize::from(count)) {
        if depth == 0 {
            let length = u16_at(entry, 4);
            let length = if length > UNWRITTEN {
                length - UNWRITTEN
            } else {
                length
            };
            let first = u64::from(u16_at(entry, 6)) << 32 | u64::from(u32_at(entry, 8));
            unchanged.add(first, u64::from(length));
        } else if deeper > 0 {
            let at = u64::from(u16_at(entry, 8)) << 32 | u64::from(u32_at(entry, 4));
            let mut below = vec![0; usize::try_from(size).unwrap_or(0)];
            raw.read_exact_at(&mut below, at * size)?;
            add_tree(raw, &below, size, deeper - 1, unchanged)?;
        }
    }
    Ok(())
}
