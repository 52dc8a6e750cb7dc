//! The replay buffer: the beginning of a request's body, kept for retries, hedges and mirrors in about as much memory
//! as it has bytes.

use bytes::{Bytes, BytesMut};

/// Parts of this many bytes or more are kept by reference; shorter ones are copied together. Otherwise each would cost
/// a `Bytes` and hold the whole read buffer that it is a slice of.
const SHARED_LEN_MIN: usize = 16 * 1024;

/// The first bytes of a body.
#[derive(Debug, Default)]
pub(crate) struct ReplayBuffer {
    parts: Vec<Bytes>,
    /// Short parts that follow `parts`, copied together.
    tail: BytesMut,
    length: usize,
}

// === impl ReplayBuffer ===

impl ReplayBuffer {
    /// Bytes in the buffer.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Appends a part. The first is kept by reference whatever its length, as most bodies have only one.
    pub(crate) fn push(&mut self, data: &Bytes) {
        if data.is_empty() {
            return;
        }
        if self.length == 0 || data.len() >= SHARED_LEN_MIN {
            self.flush_tail();
            self.parts.push(data.clone());
        } else {
            if self.tail.is_empty()
                && let Some(last) = self.parts.pop_if(|last| last.len() < SHARED_LEN_MIN)
            {
                self.tail.extend_from_slice(&last);
            }
            self.tail.extend_from_slice(data);
        }
        self.length += data.len();
    }

    /// The bytes from `position` to the end of the part that it is in. None: the buffer ends before.
    pub(crate) fn part_at(&mut self, position: usize) -> Option<Bytes> {
        self.flush_tail();
        let mut begins = 0;
        for part in &self.parts {
            if position < begins + part.len() {
                return Some(part.slice(position - begins..));
            }
            begins += part.len();
        }
        None
    }

    /// All parts.
    pub(crate) fn parts(&mut self) -> &[Bytes] {
        self.flush_tail();
        &self.parts
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Turns the copied short parts into one part.
    fn flush_tail(&mut self) {
        if !self.tail.is_empty() {
            self.parts.push(std::mem::take(&mut self.tail).freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn short_parts_are_merged() {
        let mut buffer = ReplayBuffer::default();
        for number in 0..65_000_u32 {
            // A slice of a larger read buffer.
            let read = Bytes::from(vec![number as u8; 1024]);
            buffer.push(&read.slice(7..8));
        }
        assert_eq!((buffer.len(), buffer.parts.len()), (65_000, 0));
        assert!(buffer.tail.capacity() <= 2 * 65_536, "{}", buffer.tail.capacity());
        assert_eq!(buffer.parts().len(), 1);
        assert!(buffer.parts()[0].iter().enumerate().all(|(at, byte)| *byte == at as u8));
    }

    #[test]
    fn first_part_is_not_copied() {
        let mut buffer = ReplayBuffer::default();
        let data = Bytes::from(vec![1; 100]);
        buffer.push(&data);
        assert_eq!(buffer.parts()[0].as_ptr(), data.as_ptr());
    }

    proptest! {
        /// Whatever the parts, the buffer yields their bytes from any position, and adjacent parts are not both short.
        #[test]
        fn buffer_yields_what_was_pushed(
            parts in prop::collection::vec((0usize..3, 0usize..SHARED_LEN_MIN * 2), 0..12),
            reads in prop::collection::vec(any::<bool>(), 12),
        ) {
            let (mut buffer, mut whole) = (ReplayBuffer::default(), Vec::new());
            for (number, ((kind, length), reads)) in parts.into_iter().zip(reads).enumerate() {
                let length = [length, length % 700, length % 2][kind];
                let data = Bytes::from(vec![number as u8; length]);
                buffer.push(&data);
                whole.extend_from_slice(&data);
                prop_assert_eq!(buffer.len(), whole.len());
                if reads {
                    let mut seen = Vec::new();
                    while let Some(part) = buffer.part_at(seen.len()) {
                        seen.extend_from_slice(&part);
                    }
                    prop_assert_eq!(&seen, &whole);
                }
                let position = whole.len() / 3;
                let rest = buffer.part_at(position).unwrap_or_default();
                prop_assert!(whole[position..].starts_with(&rest));
                prop_assert!(buffer.parts().windows(2).all(|two| two[0].len() + two[1].len() >= SHARED_LEN_MIN));
            }
        }
    }
}
