//! Where a worker reads to.
//!
//! Most of what comes is looked at and done with at once, so all connections of a worker read to the same place, which stays in
//! the cache. What is not done with is for the reader to keep.

use std::cell::RefCell;

/// Bytes that are read at once.
pub(crate) const READ: usize = 16 * 1024;

thread_local! {
    static SPACE: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into());
}

/// Lends the place to one reader.
pub(crate) fn lend<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    SPACE.with_borrow_mut(|space| work(space))
}
