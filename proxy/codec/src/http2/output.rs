//! The write buffer of a connection: frames and short data are copied, long data is written from where it is.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;

/// Shorter data is copied into the buffer.
const COPY_BELOW: usize = 2048;

/// Capacity of the buffer that is kept when all was written.
const CAPACITY_KEPT: usize = 4096;

/// Slices of one vectored write.
const SLICES_MAX: usize = 32;

/// Frames to write.
#[derive(Default)]
pub(super) struct Output {
    /// Written before `buffer`.
    pieces: VecDeque<Bytes>,
    buffer: BytesMut,
    /// Bytes in `pieces`.
    queued_bytes: usize,
}

// === impl Output ===

impl Output {
    /// Bytes to write.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.queued_bytes + self.buffer.len()
    }

    /// Where frames are encoded.
    pub(super) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    pub(super) fn push(&mut self, data: Bytes) {
        if data.len() < COPY_BELOW {
            self.buffer.extend_from_slice(&data);
            return;
        }
        if !self.buffer.is_empty() {
            self.queued_bytes += self.buffer.len();
            self.pieces.push_back(self.buffer.split().freeze());
        }
        self.queued_bytes += data.len();
        self.pieces.push_back(data);
    }

    /// Writes everything, and flushes.
    pub(super) fn poll_write<S>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        S: AsyncWrite + Unpin,
    {
        if self.len() == 0 {
            return Poll::Ready(Ok(()));
        }
        while self.len() > 0 {
            let written = if self.pieces.is_empty() {
                ready!(Pin::new(&mut *stream).poll_write(cx, &self.buffer))?
            } else {
                let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                let pieces = self.pieces.iter().map(|piece| &**piece).chain([&*self.buffer]);
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
        // An idle connection holds little memory.
        if self.buffer.capacity() > CAPACITY_KEPT {
            self.buffer = BytesMut::new();
        }
        Pin::new(stream).poll_flush(cx)
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(piece) = self.pieces.front_mut() {
            let count = written.min(piece.len());
            piece.advance(count);
            self.queued_bytes -= count;
            written -= count;
            if !piece.is_empty() {
                return;
            }
            self.pieces.pop_front();
        }
        if written == self.buffer.len() {
            self.buffer.clear();
        } else {
            self.buffer.advance(written);
        }
    }
}
