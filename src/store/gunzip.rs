//! Inflating gzip: the frame here, what is in it by `fdeflate`, which needs three quarters of the time of
//! zlib-rs and is safe Rust.

use std::io::{self, BufRead, Read};
use std::ops::Range;

use fdeflate::Decompressor;

/// Back references reach so far.
const WINDOW: usize = 32 * 1024;
/// Room for what is inflated, the window included: little enough to stay in the processor's cache.
const ROOM: usize = WINDOW + 128 * 1024;

/// Flags of a member's header.
const HEADER_SUM: u8 = 1 << 1;
const EXTRA: u8 = 1 << 2;
const NAME: u8 = 1 << 3;
const COMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0b1110_0000;

/// What is in gzip members, one after another.
pub struct Gunzip<R> {
    input: R,
    /// What was read of the next member to know that there is one.
    following: Vec<u8>,
    member: Option<Member>,
    room: Vec<u8>,
    /// What of it was not handed out yet.
    ready: Range<usize>,
}

struct Member {
    deflate: Decompressor,
    sum: crc32fast::Hasher,
    length: u32,
    last: Last,
}

/// The last bytes that were given to the inflater: it may take some that are behind the end.
#[derive(Default)]
struct Last([u8; 4 + MAX_BEHIND]);

impl Last {
    fn push(&mut self, bytes: &[u8]) {
        let new = &bytes[bytes.len().saturating_sub(self.0.len())..];
        self.0.rotate_left(new.len());
        let old = self.0.len() - new.len();
        self.0[old..].copy_from_slice(new);
    }
}

/// So many bytes behind the sum the inflater takes at most, and takes always if there are more: it reads
/// 56 bits when it expects the sum, which are the sum's 32 and these.
const MAX_BEHIND: usize = 3;
/// What every member begins with.
const MAGIC: [u8; 2] = [0x1f, 0x8b];

impl<R: BufRead> Gunzip<R> {
    /// Inflate `input`, which begins with a member.
    pub fn new(input: R) -> Self {
        Self {
            input,
            following: Vec::new(),
            member: None,
            room: vec![0; ROOM],
            ready: 0..0,
        }
    }

    /// Make some bytes ready; false at the end.
    fn inflate(&mut self) -> io::Result<bool> {
        while self.ready.is_empty() {
            if self.member.is_none() {
                if self.following.is_empty() && self.input.fill_buf()?.is_empty() {
                    return Ok(false);
                }
                read_header(&mut self.following.as_slice().chain(&mut self.input))?;
                self.following.clear();
                self.member = Some(Member::new()?);
                // What the member before it held is out of its reach.
                self.ready = 0..0;
            }
            if let Some(member) = &mut self.member {
                if self.ready.end == ROOM {
                    self.room.copy_within(ROOM - WINDOW.., 0);
                    self.ready = WINDOW..WINDOW;
                }
                let at = self.ready.end;
                let (made, following) = member.inflate(&mut self.input, &mut self.room, at)?;
                self.ready = at..at + made;
                if let Some(following) = following {
                    self.following = following;
                    self.member = None;
                }
            }
        }
        Ok(true)
    }
}

impl<R: BufRead> Read for Gunzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || !self.inflate()? {
            return Ok(0);
        }
        let n = buffer.len().min(self.ready.len());
        buffer[..n].copy_from_slice(&self.room[self.ready.start..][..n]);
        self.ready.start += n;
        Ok(n)
    }
}

impl Member {
    fn new() -> io::Result<Self> {
        let mut deflate = Decompressor::new();
        // It expects zlib's frame: a header, and a sum of another kind of the same size.
        deflate.ignore_adler32();
        deflate
            .read(&[0x78, 0x01], &mut [], 0, false)
            .map_err(damaged)?;
        Ok(Self {
            deflate,
            sum: crc32fast::Hasher::new(),
            length: 0,
            last: Last::default(),
        })
    }

    /// Inflate some into `room` from `at`: how many bytes; and if that was all, what was read of what follows.
    fn inflate(
        &mut self,
        input: &mut impl BufRead,
        room: &mut [u8],
        at: usize,
    ) -> io::Result<(usize, Option<Vec<u8>>)> {
        let given = input.fill_buf()?;
        if given.is_empty() {
            return Err(cut_off());
        }
        let read = self.deflate.read(given, room, at, false);
        let (taken, made) = read.map_err(damaged)?;
        self.last.push(&given[..taken]);
        let took_all = taken == given.len();
        input.consume(taken);
        self.sum.update(&room[at..at + made]);
        // The frame has the length's last 32 bits.
        #[allow(clippy::cast_possible_truncation)]
        {
            self.length = self.length.wrapping_add(made as u32);
        }
        if self.deflate.is_done() {
            return Ok((made, Some(self.end(input, took_all)?)));
        }
        if taken == 0 && made == 0 {
            return Err(damaged("the inflater stands still"));
        }
        Ok((made, None))
    }

    /// Check the sum and the length, of which some bytes may have been taken already.
    fn end(&self, input: &mut impl BufRead, took_all: bool) -> io::Result<Vec<u8>> {
        let mut tail = self.last.0.to_vec();
        let ahead = 4 + MAGIC.len();
        input.take(ahead as u64).read_to_end(&mut tail)?;
        let frame = [self.sum.clone().finalize(), self.length].map(u32::to_le_bytes);
        let mut found = None;
        // Where the input ended, as it does for a moment at the end of each buffer, fewer may have been taken.
        let fewest = if took_all { 0 } else { MAX_BEHIND };
        for behind in fewest..=MAX_BEHIND {
            let Some((here, after)) = tail[MAX_BEHIND - behind..].split_at_checked(8) else {
                continue;
            };
            if here == frame.as_flattened() && (after.is_empty() || after.starts_with(&MAGIC)) {
                if found.is_some() {
                    // Nobody's bytes are like this by chance.
                    return Err(damaged("its end is ambiguous"));
                }
                found = Some(after.to_vec());
            }
        }
        found.ok_or_else(|| {
            damaged("its sum or its length is wrong or cut off, or something else follows")
        })
    }
}

fn read_header(input: &mut impl Read) -> io::Result<()> {
    let mut head = [0; 10];
    input.read_exact(&mut head)?;
    let [0x1f, 0x8b, 8, flags, ..] = head else {
        return Err(damaged("its header is of an unknown kind"));
    };
    if flags & RESERVED != 0 {
        return Err(damaged("its header is of an unknown kind"));
    }
    if flags & EXTRA != 0 {
        let mut length = [0; 2];
        input.read_exact(&mut length)?;
        skip(input, u16::from_le_bytes(length).into())?;
    }
    for _ in [NAME, COMMENT].iter().filter(|text| flags & *text != 0) {
        let mut byte = [1];
        while byte != [0] {
            input.read_exact(&mut byte)?;
        }
    }
    if flags & HEADER_SUM != 0 {
        skip(input, 2)?;
    }
    Ok(())
}

fn skip(input: &mut impl Read, bytes: u64) -> io::Result<()> {
    if io::copy(&mut input.take(bytes), &mut io::sink())? < bytes {
        return Err(cut_off());
    }
    Ok(())
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "gzip: it is cut off")
}

fn damaged(why: impl std::fmt::Debug) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("gzip: {why:?}"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, GzBuilder};

    use super::*;

    /// Bytes that are like those of layers in parts, and like nothing in others.
    fn bytes(length: usize) -> Vec<u8> {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 16
        };
        let mut out = Vec::new();
        while out.len() < length {
            match next() % 4 {
                0 => out.extend((0..next() % 3000).map(|_| next().to_le_bytes()[0])),
                1 => out.extend(std::iter::repeat_n(7, next() as usize % 70_000)),
                2 => {
                    let from = out.len().saturating_sub(next() as usize % 33_000);
                    let to = out.len().min(from + next() as usize % 3000);
                    out.extend_from_within(from..to);
                }
                _ => out.extend_from_slice(b"usr/lib/x86_64-linux-gnu/"),
            }
        }
        out.truncate(length);
        out
    }

    fn member(bytes: &[u8], level: u32) -> Vec<u8> {
        let builder = GzBuilder::new().filename("a name").comment("said of it");
        let mut writer = builder
            .extra(vec![1; 300])
            .write(Vec::new(), Compression::new(level));
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap()
    }

    /// Read by so many bytes at a time.
    fn gunzip(packed: &[u8], at_a_time: usize) -> io::Result<Vec<u8>> {
        let input = io::BufReader::with_capacity(at_a_time, packed);
        let mut out = Vec::new();
        Gunzip::new(input).read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn members_of_all_sizes_in_pieces_of_all_sizes() {
        for (length, steps) in [
            (0, 1..40),
            (1, 1..40),
            (100, 1..200),
            (70_000, 1..60),
            (600_000, 4090..4110),
        ] {
            let plain = bytes(length);
            for level in [0, 1, 6, 9] {
                let packed = [
                    member(&plain, level),
                    member(b"", level),
                    member(&plain, level),
                ];
                let wanted = [&plain[..], &plain].concat();
                for step in steps.clone() {
                    let found = gunzip(&packed.concat(), step).unwrap();
                    assert!(found == wanted, "{length} {level} {step}");
                }
            }
        }
    }

    #[test]
    fn what_is_damaged_is_refused() {
        let plain = bytes(5000);
        let packed = member(&plain, 6);
        for at_a_time in [1, 7, 1 << 20] {
            for length in 1..packed.len() {
                gunzip(&packed[..length], at_a_time).unwrap_err();
            }
            for place in packed.len() - 8..packed.len() {
                let mut damaged = packed.clone();
                damaged[place] ^= 0x10;
                gunzip(&damaged, at_a_time).unwrap_err();
            }
            let followed = [&packed[..], b"and more, which is no member"].concat();
            gunzip(&followed, at_a_time).unwrap_err();
        }
        // A member cannot refer to what is in another: the first bytes of this one's content do.
        let reaching = [
            0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0x03, 0x02, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        gunzip(&[&packed[..], &reaching].concat(), 1 << 20).unwrap_err();
    }
}
