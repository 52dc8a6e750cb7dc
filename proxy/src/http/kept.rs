//! What is kept of a request's body to send it again, in about as much memory as it has octets.

use bytes::{Bytes, BytesMut};

/// A part of this length or more is kept where it was read to; shorter ones are copied behind each other. Otherwise each would
/// cost what a `Bytes` does, and hold the whole buffer that it is a part of.
const LONG: usize = 16 * 1024;

/// The beginning of a body.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    parts: Vec<Bytes>,
    /// Short parts behind those.
    gathered: BytesMut,
    length: usize,
}

// === impl Kept ===

impl Kept {
    /// Octets that are kept.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Keeps one more part. The first is shared, as most bodies have no other.
    pub(crate) fn push(&mut self, data: &Bytes) {
        if data.is_empty() {
            return;
        }
        if self.length == 0 || data.len() >= LONG {
            self.settle();
            self.parts.push(data.clone());
        } else {
            if self.gathered.is_empty()
                && let Some(last) = self.parts.pop_if(|last| last.len() < LONG)
            {
                self.gathered.extend_from_slice(&last);
            }
            self.gathered.extend_from_slice(data);
        }
        self.length += data.len();
    }

    /// The part that begins there, or the rest of the one that it is in. None: all that is kept lies before.
    pub(crate) fn part(&mut self, position: usize) -> Option<Bytes> {
        self.settle();
        let mut begins = 0;
        for part in &self.parts {
            if position < begins + part.len() {
                return Some(part.slice(position - begins..));
            }
            begins += part.len();
        }
        None
    }

    /// All of it.
    pub(crate) fn parts(&mut self) -> &[Bytes] {
        self.settle();
        &self.parts
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    fn settle(&mut self) {
        if !self.gathered.is_empty() {
            self.parts.push(std::mem::take(&mut self.gathered).freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn many_short_parts_are_kept_as_one() {
        let mut kept = Kept::default();
        for number in 0..65_000_u32 {
            // A part of a buffer of the size that is read into.
            let buffer = Bytes::from(vec![number as u8; 1024]);
            kept.push(&buffer.slice(7..8));
        }
        assert_eq!((kept.len(), kept.parts.len()), (65_000, 0));
        assert!(kept.gathered.capacity() <= 2 * 65_536, "{}", kept.gathered.capacity());
        assert_eq!(kept.parts().len(), 1);
        assert!(kept.parts()[0].iter().enumerate().all(|(at, octet)| *octet == at as u8));
    }

    #[test]
    fn one_part_is_shared() {
        let mut kept = Kept::default();
        let data = Bytes::from(vec![1; 100]);
        kept.push(&data);
        assert_eq!(kept.parts()[0].as_ptr(), data.as_ptr());
    }

    proptest! {
        /// However it came, it is what came, from any position on, and parts beside each other are not both short.
        #[test]
        fn what_is_kept_is_what_came(
            parts in prop::collection::vec((0usize..3, 0usize..LONG * 2), 0..12),
            looks in prop::collection::vec(any::<bool>(), 12),
        ) {
            let (mut kept, mut whole) = (Kept::default(), Vec::new());
            for (number, ((kind, length), looks)) in parts.into_iter().zip(looks).enumerate() {
                let length = [length, length % 700, length % 2][kind];
                let data = Bytes::from(vec![number as u8; length]);
                kept.push(&data);
                whole.extend_from_slice(&data);
                prop_assert_eq!(kept.len(), whole.len());
                if looks {
                    let mut seen = Vec::new();
                    while let Some(part) = kept.part(seen.len()) {
                        seen.extend_from_slice(&part);
                    }
                    prop_assert_eq!(&seen, &whole);
                }
                let position = whole.len() / 3;
                let rest = kept.part(position).unwrap_or_default();
                prop_assert!(whole[position..].starts_with(&rest));
                prop_assert!(kept.parts().windows(2).all(|two| two[0].len() + two[1].len() >= LONG));
            }
        }
    }
}
