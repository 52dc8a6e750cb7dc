//! Windows: how much may be sent before the other side says that it takes more (RFC 9113 5.2 and 6.9).

use super::Reason;

/// The largest window there can be.
pub(super) const WINDOW_MAX: i32 = i32::MAX;

/// What a stream or a connection starts with if nothing is said.
pub(super) const WINDOW: i32 = 65_535;

/// What we may send. Less than nothing if the peer has made windows smaller since.
#[derive(Clone, Copy, Debug)]
pub(super) struct SendWindow(i32);

/// What the peer may send, and what was taken of what it sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReceiveWindow {
    left: i32,
    /// Taken, and not said yet.
    taken: i32,
    /// How much is said at once.
    step: i32,
}

// === impl SendWindow ===

impl SendWindow {
    pub(super) fn new(size: i32) -> Self {
        Self(size)
    }

    pub(super) fn room(self) -> usize {
        usize::try_from(self.0).unwrap_or(0)
    }

    /// `count`: not more than there is room.
    pub(super) fn take(&mut self, count: usize) {
        self.0 -= count as i32;
    }

    pub(super) fn grow(&mut self, by: i32) -> Result<(), Reason> {
        self.0 = self.0.checked_add(by).ok_or(Reason::FLOW_CONTROL_ERROR)?;
        Ok(())
    }
}

// === impl ReceiveWindow ===

impl ReceiveWindow {
    pub(super) fn new(size: u32) -> Self {
        let size = i32::try_from(size).unwrap_or(WINDOW_MAX);
        Self { left: size, taken: 0, step: size / 2 }
    }

    /// So much came.
    pub(super) fn receive(&mut self, count: usize) -> Result<(), Reason> {
        let left = i32::try_from(count).ok().and_then(|count| self.left.checked_sub(count)).filter(|left| *left >= 0);
        self.left = left.ok_or(Reason::FLOW_CONTROL_ERROR)?;
        Ok(())
    }

    /// So much of that was taken. What the peer is to be told, if it is worth a frame.
    pub(super) fn release(&mut self, count: usize) -> Option<u32> {
        self.taken += count as i32;
        if self.taken == 0 || self.taken < self.step {
            return None;
        }
        let increment = self.taken;
        self.left += increment;
        self.taken = 0;
        Some(increment as u32)
    }
}
