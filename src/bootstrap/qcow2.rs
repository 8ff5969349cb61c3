//! Writing qcow2 images, version 3: what has changed of a disk since the last cut, over a backing file or none.
//!
//! Source: QEMU's `docs/interop/qcow2.txt`.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::BuildHasher as _;
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};

use flate2::{Compress, Compression, FlushCompress, Status};
use rustix::fs::{Mode, OFlags, SeekFrom, seek};
use rustix::io::Errno;
use twox_hash::XxHash3_128;

use super::extents::Unchanged;
use crate::error::{Context as _, Result};

/// The usual size of a cluster.
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
const CLUSTER_BYTES: usize = 1 << CLUSTER_BITS;
/// What a disk wants to have its data at multiples of, at the most.
const PAGE: usize = 4096;
/// Clusters that a thread reads at once.
const PART: usize = 16;
/// Entries of a table of one cluster.
const ENTRIES: u64 = CLUSTER / 8;
/// Reference counts of 16 bits in one cluster.
const COUNTS: u64 = CLUSTER / 2;
/// What an entry has that is referred to once.
const ONCE: u64 = 1 << 63;
/// What an entry has whose cluster is zeros, whatever lies below.
const ZEROS: u64 = 1;
/// What an entry has whose cluster is compressed: the rest is its offset in bytes and, above that, how many sectors
/// beyond the first one it is in.
const PACKED: u64 = 1 << 62;
const PACKED_OFFSET_BITS: u32 = 62 - (CLUSTER_BITS - 8);
const SECTOR: u64 = 512;
/// The window that a reader has: 4 KB.
const WINDOW_BITS: u8 = 12;
/// Where more effort gains little.
const LEVEL: u32 = 6;
const MAGIC: u32 = 0x5146_49fb;
const VERSION: u32 = 3;
const HEADER_BYTES: u32 = 104;
/// The extension that names the format of the backing file.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// How reference counts of 16 bits are named.
const REFCOUNT_ORDER: u32 = 4;

/// What is known of a cluster: enough to see whether it has changed.
type Sum = u128;

/// Some clusters in memory, where a disk can take them from as they are.
struct Clusters {
    bytes: Vec<u8>,
    start: usize,
}

impl Clusters {
    fn new(count: usize) -> Self {
        let bytes = vec![0; count * CLUSTER_BYTES + PAGE];
        let start = bytes.as_ptr().align_offset(PAGE).min(PAGE);
        Self { bytes, start }
    }

    fn each(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes[self.start..].chunks_exact(CLUSTER_BYTES)
    }

    fn each_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.bytes[self.start..].chunks_exact_mut(CLUSTER_BYTES)
    }
}

/// A cluster as it is found.
enum Found {
    Zeros,
    /// As at the last cut.
    Same(Sum),
    /// Not as at the last cut.
    Changed(Sum),
    /// The same, and this is it in fewer bytes.
    Packed(Sum, Vec<u8>),
}

/// A disk of which one image after another is made.
pub struct Disk {
    raw: File,
    size: u64,
    /// Whether clusters are compressed where that makes them smaller.
    is_packed: bool,
    /// What is changed in the first cluster when it is read.
    mend: fn(&mut [u8]),
    /// Nobody knows it who could have made clusters with the same sum.
    seed: u64,
    /// What clusters were like at the last cut; others were zeros.
    known: BTreeMap<u64, Sum>,
}

impl Disk {
    /// A disk of zeros so far, which is this sparse file; in its images the first cluster is as `mend` makes it.
    pub fn new(raw: File, size: u64, is_packed: bool, mend: fn(&mut [u8])) -> Self {
        Self {
            raw,
            size,
            is_packed,
            mend,
            seed: RandomState::new().hash_one(size),
            known: BTreeMap::new(),
        }
    }

    /// Write what has changed since the last cut to `out`, an empty file, over `backing`. What `unchanged` holds is not
    /// looked at.
    pub fn cut(
        &mut self,
        out: &File,
        backing: Option<&str>,
        unchanged: Option<&Unchanged>,
    ) -> Result<()> {
        let failed = || "cannot write the disk image".into();
        let mut image = Image::new(out, self.size, backing).context(failed)?;
        let mut numbers = self.written().context(failed)?;
        let mut known = BTreeMap::new();
        if let Some(unchanged) = unchanged {
            numbers.retain(|number| {
                let is_same = unchanged.holds(number * CLUSTER, CLUSTER);
                if is_same && let Some(sum) = self.known.get(number) {
                    known.insert(*number, *sum);
                }
                !is_same
            });
        }
        let mut now = self.compare(&numbers, &mut image).context(failed)?;
        now.append(&mut known);
        // Those that are nothing any more.
        for number in self.known.keys() {
            if !now.contains_key(number) {
                image.zeros(*number);
            }
        }
        self.known = now;
        image.finish().context(failed)
    }

    /// The clusters that are not holes.
    fn written(&self) -> io::Result<Vec<u64>> {
        let mut numbers: Vec<u64> = Vec::new();
        let mut at = 0;
        while let Some((begin, end)) = next_data(&self.raw, at, self.size)? {
            // One extent may end in a cluster where the next one begins.
            let first = numbers.last().map_or(0, |last| last + 1);
            numbers.extend((begin / CLUSTER).max(first)..end.div_ceil(CLUSTER));
            at = end;
        }
        Ok(numbers)
    }

    /// Write those of these clusters that are not what they were; what they are now. They are read, summed and compressed
    /// by threads, and written in their order, so that the same disk is the same image.
    fn compare(&self, numbers: &[u64], image: &mut Image<'_>) -> io::Result<BTreeMap<u64, Sum>> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let parts: Vec<&[u64]> = numbers.chunks(PART).collect();
        let died = || io::Error::other("a thread that reads the disk died");
        std::thread::scope(|scope| {
            let mut queues = Vec::new();
            // What is read is returned when it is written.
            let (used, free) = std::sync::mpsc::channel::<Clusters>();
            let free = Arc::new(Mutex::new(free));
            // Each thread has two at the most: one that waits to be written, one that it reads.
            for _ in 0..2 * threads {
                let _ = used.send(Clusters::new(PART));
            }
            for thread in 0..threads {
                let (done, queue) = std::sync::mpsc::sync_channel(1);
                queues.push(queue);
                let (parts, free) = (&parts, free.clone());
                scope.spawn(move || {
                    for part in parts.iter().skip(thread).step_by(threads) {
                        let next = free.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        let Ok(mut buffer) = next else {
                            return;
                        };
                        let found = self.look_at(part, &mut buffer);
                        if done.send(found.map(|found| (found, buffer))).is_err() {
                            return;
                        }
                    }
                });
            }
            let mut now = BTreeMap::new();
            for (index, part) in parts.iter().enumerate() {
                let (found, buffer) = queues[index % threads].recv().map_err(|_| died())??;
                let mut changed = Vec::new();
                for ((number, found), cluster) in part.iter().zip(found).zip(buffer.each()) {
                    let sum = match found {
                        Found::Zeros => continue,
                        Found::Same(sum) => sum,
                        Found::Changed(sum) => {
                            changed.push((*number, cluster));
                            sum
                        }
                        Found::Packed(sum, packed) => {
                            image.data(&std::mem::take(&mut changed))?;
                            image.packed(*number, &packed)?;
                            sum
                        }
                    };
                    now.insert(*number, sum);
                }
                image.data(&changed)?;
                let _ = used.send(buffer);
            }
            Ok(now)
        })
    }

    /// Read clusters, and see whether they are what they were.
    fn look_at(&self, numbers: &[u64], buffer: &mut Clusters) -> io::Result<Vec<Found>> {
        let one = |(number, cluster): (&u64, &mut [u8])| {
            self.read(*number, cluster)?;
            if is_zero(cluster) {
                return Ok(Found::Zeros);
            }
            let sum = XxHash3_128::oneshot_with_seed(self.seed, cluster);
            if self.known.get(number) == Some(&sum) {
                return Ok(Found::Same(sum));
            }
            let packed = if self.is_packed { pack(cluster)? } else { None };
            Ok(match packed {
                Some(packed) => Found::Packed(sum, packed),
                None => Found::Changed(sum),
            })
        };
        numbers.iter().zip(buffer.each_mut()).map(one).collect()
    }

    /// Read a cluster; the last one of the disk may be shorter.
    fn read(&self, number: u64, buffer: &mut [u8]) -> io::Result<()> {
        let offset = number * CLUSTER;
        let length = CLUSTER.min(self.size - offset);
        let (part, rest) = buffer.split_at_mut(usize::try_from(length).unwrap_or(usize::MAX));
        rest.fill(0);
        self.raw.read_exact_at(part, offset)?;
        if number == 0 {
            (self.mend)(buffer);
        }
        Ok(())
    }
}

/// A cluster in fewer bytes, if there are fewer.
fn pack(cluster: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut packer = Compress::new_with_window_bits(Compression::new(LEVEL), false, WINDOW_BITS);
    // One byte less, or it is not worth it.
    let mut packed = Vec::with_capacity(CLUSTER_BYTES - 1);
    let status = packer
        .compress_vec(cluster, &mut packed, FlushCompress::Finish)
        .map_err(io::Error::other)?;
    Ok((status == Status::StreamEnd).then_some(packed))
}

fn is_zero(bytes: &[u8]) -> bool {
    // By words: this is done to every byte of the disk.
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// The next part of a file that is no hole.
fn next_data(file: &File, at: u64, size: u64) -> rustix::io::Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    let begin = match seek(file, SeekFrom::Data(at)) {
        Ok(begin) => begin,
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error),
    };
    let end = seek(file, SeekFrom::Hole(begin))?;
    Ok(Some((begin, end.min(size))))
}

/// An image being written: the clusters as they come, the tables at the end.
struct Image<'o> {
    out: &'o File,
    /// The same, past the kernel's memory.
    direct: Option<File>,
    size: u64,
    backing: Option<&'o str>,
    /// The next free cluster.
    next: u64,
    /// Entries of the second level, by number of their table.
    tables: BTreeMap<u64, Vec<u64>>,
    /// Where the next compressed bytes go.
    packed_end: u64,
    /// How many compressed clusters are in a cluster, where there are some.
    packed_counts: BTreeMap<u64, u16>,
}

impl<'o> Image<'o> {
    fn new(out: &'o File, size: u64, backing: Option<&'o str>) -> io::Result<Self> {
        out.set_len(0)?;
        let path = format!("/proc/self/fd/{}", out.as_raw_fd());
        let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC;
        let direct = rustix::fs::open(path, flags, Mode::empty());
        let direct = direct.ok().map(File::from);
        Ok(Self {
            out,
            direct,
            size,
            backing,
            // The first one is the header's.
            next: 1,
            tables: BTreeMap::new(),
            packed_end: 0,
            packed_counts: BTreeMap::new(),
        })
    }

    fn entry(&mut self, number: u64) -> &mut u64 {
        let table = self.tables.entry(number / ENTRIES);
        let table =
            table.or_insert_with(|| vec![0; usize::try_from(ENTRIES).unwrap_or(usize::MAX)]);
        // The remainder is smaller than the table.
        &mut table[usize::try_from(number % ENTRIES).unwrap_or(0)]
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let offset = self.next * CLUSTER;
        self.out.write_all_at(bytes, offset)?;
        self.next += (bytes.len() as u64).div_ceil(CLUSTER);
        Ok(offset)
    }

    /// Clusters as they are, by number, one behind the other.
    fn data(&mut self, clusters: &[(u64, &[u8])]) -> io::Result<()> {
        let mut offset = self.next * CLUSTER;
        let slices: Vec<IoSlice<'_>> = clusters
            .iter()
            .map(|(_, cluster)| IoSlice::new(cluster))
            .collect();
        self.write(&slices, offset)?;
        self.next += clusters.len() as u64;
        for (number, _) in clusters {
            *self.entry(*number) = offset | ONCE;
            offset += CLUSTER;
        }
        Ok(())
    }

    /// Write clusters past the kernel's memory, which the disk itself fills already, where the file system can do that.
    fn write(&mut self, mut slices: &[IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        while let Some(first) = slices.first() {
            let to = self.direct.as_ref().unwrap_or(self.out);
            let written = match rustix::io::pwritev(to, slices, offset) {
                Ok(written) => written as u64,
                Err(Errno::INVAL) if self.direct.is_some() => {
                    self.direct = None;
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let whole = written / CLUSTER;
            if whole == 0 {
                self.out.write_all_at(first, offset)?;
            }
            let whole = whole.max(1);
            offset += whole * CLUSTER;
            slices = slices
                .get(usize::try_from(whole).unwrap_or(usize::MAX)..)
                .unwrap_or_default();
        }
        Ok(())
    }

    /// A cluster in fewer bytes: behind the one before, if there is room.
    fn packed(&mut self, number: u64, bytes: &[u8]) -> io::Result<()> {
        let free = self.next * CLUSTER;
        let length = bytes.len() as u64;
        // What is in a cluster of its own may be between.
        let room_ends = self.packed_end.next_multiple_of(CLUSTER);
        if room_ends != free && self.packed_end + length > room_ends {
            self.packed_end = free;
        }
        let offset = self.packed_end;
        self.out.write_all_at(bytes, offset)?;
        self.packed_end = offset + length;
        self.next = self.next.max(self.packed_end.div_ceil(CLUSTER));
        for cluster in offset / CLUSTER..=(self.packed_end - 1) / CLUSTER {
            *self.packed_counts.entry(cluster).or_default() += 1;
        }
        let sectors = (self.packed_end - 1) / SECTOR - offset / SECTOR;
        *self.entry(number) = PACKED | sectors << PACKED_OFFSET_BITS | offset;
        Ok(())
    }

    fn zeros(&mut self, number: u64) {
        *self.entry(number) = ZEROS;
    }

    fn finish(mut self) -> io::Result<()> {
        let l1_entries = self.size.div_ceil(CLUSTER).div_ceil(ENTRIES).max(1);
        let mut l1 = vec![0; usize::try_from(l1_entries).unwrap_or(usize::MAX)];
        for (number, table) in std::mem::take(&mut self.tables) {
            let offset = self.append(&big_endian(&table))?;
            l1[usize::try_from(number).unwrap_or(0)] = offset | ONCE;
        }
        let l1_offset = self.append(&big_endian(&l1))?;
        // The counts count themselves.
        let used = self.next;
        let (mut blocks, mut tables) = (0, 0);
        loop {
            let total = used + blocks + tables;
            let wanted = (total.div_ceil(COUNTS), blocks.div_ceil(ENTRIES).max(1));
            if wanted == (blocks, tables) {
                break;
            }
            (blocks, tables) = wanted;
        }
        let table_offset = used * CLUSTER;
        let first_block = used + tables;
        let block_offsets: Vec<u64> = (first_block..first_block + blocks)
            .map(|cluster| cluster * CLUSTER)
            .collect();
        self.append(&padded(big_endian(&block_offsets)))?;
        self.next = first_block;
        let total = usize::try_from(used + tables + blocks).unwrap_or(usize::MAX);
        let mut counts = [0, 1].repeat(total);
        for (cluster, count) in &self.packed_counts {
            let at = usize::try_from(cluster * 2).unwrap_or(usize::MAX);
            counts[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
        counts.resize(usize::try_from(blocks * CLUSTER).unwrap_or(usize::MAX), 0);
        self.append(&counts)?;
        self.out.set_len(self.next * CLUSTER)?;
        let header = self.header(l1_entries, l1_offset, table_offset, tables);
        self.out.write_all_at(&header, 0)
    }

    fn header(&self, l1_entries: u64, l1: u64, counts: u64, tables: u64) -> Vec<u8> {
        let mut extensions = Vec::new();
        if self.backing.is_some() {
            extensions.extend(BACKING_FORMAT.to_be_bytes());
            extensions.extend(5u32.to_be_bytes());
            extensions.extend(b"qcow2\0\0\0");
        }
        // The end of the extensions.
        extensions.extend([0; 8]);
        let name = self.backing.unwrap_or_default();
        let name_offset = match self.backing {
            Some(_) => u64::from(HEADER_BYTES) + extensions.len() as u64,
            None => 0,
        };
        let short = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).to_be_bytes();
        let mut out = Vec::new();
        out.extend(MAGIC.to_be_bytes());
        out.extend(VERSION.to_be_bytes());
        out.extend(name_offset.to_be_bytes());
        out.extend(short(name.len() as u64));
        out.extend(CLUSTER_BITS.to_be_bytes());
        out.extend(self.size.to_be_bytes());
        // Not encrypted.
        out.extend(0u32.to_be_bytes());
        out.extend(short(l1_entries));
        out.extend(l1.to_be_bytes());
        out.extend(counts.to_be_bytes());
        out.extend(short(tables));
        // No snapshots, and none of the features that are there for some.
        out.extend([0; 4 + 8 + 3 * 8]);
        out.extend(REFCOUNT_ORDER.to_be_bytes());
        out.extend(HEADER_BYTES.to_be_bytes());
        out.extend(extensions);
        out.extend(name.as_bytes());
        padded(out)
    }
}

fn big_endian(values: &[u64]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_be_bytes())
        .collect()
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    let cluster = usize::try_from(CLUSTER).unwrap_or(usize::MAX);
    bytes.resize(bytes.len().next_multiple_of(cluster), 0);
    bytes
}
