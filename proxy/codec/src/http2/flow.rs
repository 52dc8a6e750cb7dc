//! Flow control windows (RFC 9113 5.2 and 6.9).

use super::error::Reason;

/// The largest window (RFC 9113 6.9.1).
pub(super) const WINDOW_MAX: i32 = i32::MAX;

/// The initial window of streams and of the connection (RFC 9113 6.9.2).
pub(super) const WINDOW: i32 = 65_535;

/// Bytes that this side may send. Negative after the peer has reduced SETTINGS_INITIAL_WINDOW_SIZE (RFC 9113 6.9.2).
#[derive(Clone, Copy, Debug)]
pub(super) struct SendWindow(i32);

/// Bytes that the peer may send, and bytes to return to it with a WINDOW_UPDATE.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecvWindow {
    available: i32,
    /// Released by the reader, and not yet announced by a WINDOW_UPDATE.
    released: i32,
    /// A WINDOW_UPDATE is sent for at least this many bytes.
    update_threshold: i32,
}

// === impl SendWindow ===

impl SendWindow {
    pub(super) fn new(size: i32) -> Self {
        Self(size)
    }

    pub(super) fn available(self) -> usize {
        usize::try_from(self.0).unwrap_or(0)
    }

    /// `count`: at most [`Self::available`].
    pub(super) fn consume(&mut self, count: usize) {
        self.0 -= count as i32;
    }

    pub(super) fn grow(&mut self, by: i32) -> Result<(), Reason> {
        self.0 = self.0.checked_add(by).ok_or(Reason::FLOW_CONTROL_ERROR)?;
        Ok(())
    }
}

// === impl RecvWindow ===

impl RecvWindow {
    pub(super) fn new(size: u32) -> Self {
        let size = i32::try_from(size).unwrap_or(WINDOW_MAX);
        Self { available: size, released: 0, update_threshold: size / 2 }
    }

    /// The peer has sent `count` bytes.
    pub(super) fn consume(&mut self, count: usize) -> Result<(), Reason> {
        let available =
            i32::try_from(count).ok().and_then(|count| self.available.checked_sub(count)).filter(|left| *left >= 0);
        self.available = available.ok_or(Reason::FLOW_CONTROL_ERROR)?;
        Ok(())
    }

    /// The reader has released `count` bytes. Returns the increment of a WINDOW_UPDATE, once it reaches the
    /// threshold.
    pub(super) fn release(&mut self, count: usize) -> Option<u32> {
        self.released += count as i32;
        if self.released == 0 || self.released < self.update_threshold {
            return None;
        }
        let increment = self.released;
        self.available += increment;
        self.released = 0;
        Some(increment as u32)
    }
}
