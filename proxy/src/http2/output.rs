//! What is to be written: short pieces gathered, long ones from where they are.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;

/// Data below this is gathered with what is before it.
const SHORT: usize = 2048;

/// Room that is kept for what comes next.
const KEPT: usize = 4096;

/// Pieces that are written at once.
const SLICES: usize = 32;

#[derive(Default)]
pub(super) struct Output {
    /// In front of what is gathered.
    pieces: VecDeque<Bytes>,
    gathered: BytesMut,
    /// Octets in the pieces.
    waiting: usize,
}

// === impl Output ===

impl Output {
    /// Octets that wait.
    pub(super) fn len(&self) -> usize {
        self.waiting + self.gathered.len()
    }

    /// Where frames are put.
    pub(super) fn gathered(&mut self) -> &mut BytesMut {
        &mut self.gathered
    }

    pub(super) fn push(&mut self, data: Bytes) {
        if data.len() < SHORT {
            self.gathered.extend_from_slice(&data);
            return;
        }
        if !self.gathered.is_empty() {
            self.waiting += self.gathered.len();
            self.pieces.push_back(self.gathered.split().freeze());
        }
        self.waiting += data.len();
        self.pieces.push_back(data);
    }

    /// Writes what there is.
    pub(super) fn poll_write<S>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        S: AsyncWrite + Unpin,
    {
        if self.len() == 0 {
            return Poll::Ready(Ok(()));
        }
        while self.len() > 0 {
            let written = if self.pieces.is_empty() {
                ready!(Pin::new(&mut *stream).poll_write(cx, &self.gathered))?
            } else {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let pieces = self.pieces.iter().map(|piece| &**piece).chain([&*self.gathered]);
                let mut count = 0;
                for (slice, piece) in slices.iter_mut().zip(pieces) {
                    *slice = IoSlice::new(piece);
                    count += 1;
                }
                ready!(Pin::new(&mut *stream).poll_write_vectored(cx, &slices[..count]))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
        }
        // A connection at rest holds little.
        if self.gathered.capacity() > KEPT {
            self.gathered = BytesMut::new();
        }
        Pin::new(stream).poll_flush(cx)
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(piece) = self.pieces.front_mut() {
            let count = written.min(piece.len());
            piece.advance(count);
            self.waiting -= count;
            written -= count;
            if !piece.is_empty() {
                return;
            }
            self.pieces.pop_front();
        }
        if written == self.gathered.len() {
            self.gathered.clear();
        } else {
            self.gathered.advance(written);
        }
    }
}
