//! Reading in a thread of its own, some pieces ahead of whoever wants the bytes.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

/// Bytes that are handed over at a time.
const PIECE_BYTES: usize = 256 * 1024;
/// So many pieces wait at most.
const PIECES: usize = 4;

/// A buffer and how much of it counts.
type Piece = (Vec<u8>, usize);

/// The end that is read ahead.
pub struct Pieces {
    pieces: SyncSender<io::Result<Piece>>,
    spare: Receiver<Vec<u8>>,
}

/// The end that wants the bytes.
pub struct Ahead {
    pieces: Receiver<io::Result<Piece>>,
    spare: Sender<Vec<u8>>,
    piece: Piece,
    at: usize,
}

/// Both ends.
pub fn pair() -> (Pieces, Ahead) {
    let (sender, pieces) = sync_channel(PIECES);
    let (spare, spares) = channel();
    let ahead = Ahead {
        pieces,
        spare,
        piece: Piece::default(),
        at: 0,
    };
    let pieces = Pieces {
        pieces: sender,
        spare: spares,
    };
    (pieces, ahead)
}

impl Pieces {
    /// Read `input` to its end, or until nobody wants more. What fails there, fails at the other end.
    pub fn send_all(self, mut input: impl Read) {
        loop {
            let spare = self.spare.try_recv().ok();
            let mut buffer = spare.unwrap_or_else(|| vec![0; PIECE_BYTES]);
            let mut filled = 0;
            let end = loop {
                match input.read(&mut buffer[filled..]) {
                    Ok(0) => break Some(None),
                    Ok(n) => filled += n,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => break Some(Some(error)),
                }
                if filled == buffer.len() {
                    break None;
                }
            };
            if self.pieces.send(Ok((buffer, filled))).is_err() {
                return;
            }
            if let Some(failed) = end {
                if let Some(error) = failed {
                    // Whoever wanted the bytes may have gone.
                    let _ = self.pieces.send(Err(error));
                }
                return;
            }
        }
    }
}

impl Read for Ahead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.1 {
            let Ok(next) = self.pieces.recv() else {
                return Ok(0);
            };
            let (used, _) = std::mem::replace(&mut self.piece, next?);
            self.at = 0;
            if !used.is_empty() {
                // Nobody takes it at the end.
                let _ = self.spare.send(used);
            }
        }
        let piece = &self.piece.0[self.at..self.piece.1];
        let n = buffer.len().min(piece.len());
        buffer[..n].copy_from_slice(&piece[..n]);
        self.at += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_arrive_in_order_and_errors_after_them() {
        struct Failing(usize);
        impl Read for Failing {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let n = self.0.min(buffer.len()).min(1000);
                self.0 -= n;
                buffer[..n].fill(7);
                match n {
                    0 => Err(io::Error::other("broken")),
                    n => Ok(n),
                }
            }
        }
        let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        let (pieces, mut ahead) = pair();
        std::thread::scope(|scope| {
            scope.spawn(|| pieces.send_all(&bytes[..]));
            let mut out = Vec::new();
            ahead.read_to_end(&mut out).unwrap();
            assert!(out == bytes);
        });
        let (pieces, mut ahead) = pair();
        std::thread::scope(|scope| {
            scope.spawn(|| pieces.send_all(Failing(600_000)));
            let mut out = Vec::new();
            let error = ahead.read_to_end(&mut out).unwrap_err();
            assert_eq!((out.len(), error.to_string().as_str()), (600_000, "broken"));
        });
        // One end that goes early does not hold the other.
        let (pieces, ahead) = pair();
        drop(ahead);
        pieces.send_all(io::repeat(1));
    }
}
