//! Where a worker reads to.
//!
//! Most of what comes is looked at and done with at once, so all connections of a worker read to the same place, which stays in
//! the cache. What is not done with is for the reader to keep: a copy if it is short, else the place itself, and the worker reads
//! to another.

use std::cell::RefCell;
use std::mem;
use std::ops::{Deref, DerefMut, Range};

use bytes::Bytes;

/// Bytes that are read at once.
pub(crate) const READ: usize = 16 * 1024;

/// Parts from here on are kept where they are. They hold twice their length at most.
const LONG: usize = READ / 2;

/// Places that are kept for those who will want one: a megabyte. To give them back costs more than it frees, when each request
/// has a body that is long.
const SPARE_MAX: usize = 64;

thread_local! {
    static PLACE: RefCell<Place> = RefCell::new(Place::new());
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A place to read to.
pub(crate) struct Place(Box<[u8]>);

/// A part of a place that somebody keeps.
struct Kept {
    place: Box<[u8]>,
    part: Range<usize>,
}

/// Lends the worker's place to one reader.
pub(crate) fn lend<T>(work: impl FnOnce(&mut Place) -> T) -> T {
    PLACE.with_borrow_mut(work)
}

// === impl Place ===

impl Place {
    fn new() -> Self {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        Self(spare.unwrap_or_else(|| vec![0; READ].into()))
    }

    /// Keeps a part of what was read. Nothing else that was read is there after that.
    pub(crate) fn keep(&mut self, part: Range<usize>) -> Bytes {
        if part.len() < LONG {
            return Bytes::copy_from_slice(&self.0[part]);
        }
        let place = mem::replace(self, Self::new()).0;
        Bytes::from_owner(Kept { place, part })
    }
}

impl Deref for Place {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Place {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

// === impl Kept ===

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.place[self.part.clone()]
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let place = mem::take(&mut self.place);
        // A worker that ends needs no more of them.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE_MAX {
                spare.push(place);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_stays_as_it_was() {
        let kept: Vec<Bytes> = [(0, 10), (5, READ), (0, LONG), (READ - 3, READ)]
            .iter()
            .enumerate()
            .map(|(number, (start, end))| {
                lend(|place| {
                    place.fill(number as u8);
                    place.keep(*start..*end)
                })
            })
            .collect();
        lend(|place| place.fill(9));
        for (number, (bytes, length)) in kept.iter().zip([10, READ - 5, LONG, 3]).enumerate() {
            assert!(bytes.len() == length && bytes.iter().all(|byte| usize::from(*byte) == number), "{number}");
        }
        drop(kept);
        assert_eq!(SPARE.with_borrow(Vec::len), 2, "the places come back");
    }
}
