//! The read buffer of a thread.
//!
//! All connections of a thread read to the same buffer, so that it stays in the cache. Most input is parsed and
//! consumed before the next read. A reader that keeps a part gets a copy if it is short; if it is long, the reader
//! gets the buffer itself and the thread goes on with another one.

use std::cell::RefCell;
use std::mem;
use std::ops::{Deref, DerefMut, Range};

use bytes::Bytes;

/// Size of the buffer, and so the bytes of one read.
pub const READ_BYTES: usize = 16 * 1024;

/// A part from this length on takes the buffer instead of a copy. So a kept part holds at most twice its length.
const KEEP_BYTES_MIN: usize = READ_BYTES / 2;

/// Spare buffers that a thread keeps, 1 MiB together. When every request has a long body, freeing and allocating them
/// costs more than the memory is worth.
const SPARE_MAX: usize = 64;

thread_local! {
    static READ_BUFFER: RefCell<ReadBuffer> = RefCell::new(ReadBuffer::new());
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer to read to.
pub struct ReadBuffer(Box<[u8]>);

/// The part of a buffer that a reader keeps.
struct KeptPart {
    buffer: Box<[u8]>,
    range: Range<usize>,
}

/// Lends the thread's read buffer to one reader.
pub fn with_read_buffer<T>(work: impl FnOnce(&mut ReadBuffer) -> T) -> T {
    READ_BUFFER.with_borrow_mut(work)
}

// === impl ReadBuffer ===

impl ReadBuffer {
    fn new() -> Self {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        Self(spare.unwrap_or_else(|| vec![0; READ_BYTES].into()))
    }

    /// Keeps a part of what was read. The rest of the buffer's content is lost.
    #[inline]
    pub(crate) fn keep(&mut self, range: Range<usize>) -> Bytes {
        if range.len() < KEEP_BYTES_MIN {
            return Bytes::copy_from_slice(&self.0[range]);
        }
        let buffer = mem::replace(self, Self::new()).0;
        Bytes::from_owner(KeptPart { buffer, range })
    }
}

impl Deref for ReadBuffer {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for ReadBuffer {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

// === impl KeptPart ===

impl AsRef<[u8]> for KeptPart {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

impl Drop for KeptPart {
    fn drop(&mut self) {
        let buffer = mem::take(&mut self.buffer);
        // In a thread that ends, the spare buffers are gone already.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE_MAX {
                spare.push(buffer);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_parts_survive_later_reads() {
        let kept: Vec<Bytes> = [(0, 10), (5, READ_BYTES), (0, KEEP_BYTES_MIN), (READ_BYTES - 3, READ_BYTES)]
            .iter()
            .enumerate()
            .map(|(number, (start, end))| {
                with_read_buffer(|buffer| {
                    buffer.fill(number as u8);
                    buffer.keep(*start..*end)
                })
            })
            .collect();
        with_read_buffer(|buffer| buffer.fill(9));
        for (number, (bytes, length)) in kept.iter().zip([10, READ_BYTES - 5, KEEP_BYTES_MIN, 3]).enumerate() {
            assert!(bytes.len() == length && bytes.iter().all(|byte| usize::from(*byte) == number), "{number}");
        }
        drop(kept);
        assert_eq!(SPARE.with_borrow(Vec::len), 2, "both whole buffers are spare again");
    }
}
