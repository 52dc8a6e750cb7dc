//! An endpoint, as balancing sees it. The caller owns and updates its state.

use std::cell::Cell;
use std::net::SocketAddr;
use std::time::Duration;

use crate::ewma::PeakEwma;
use crate::slow_start::SlowStart;

/// What a pick looks at.
#[derive(Clone, Copy, Debug)]
pub struct EndpointView<'a> {
    /// Names it in hash tables and sessions, and among the endpoints that a request has tried.
    pub address: SocketAddr,
    /// Requests that one worker has sent it and that are not complete.
    pub in_flight: u32,
    /// Its response time.
    pub ewma: &'a Cell<PeakEwma>,
    /// When its slow start began: it was added, or unejected. `None`: it gets its whole share. A pick sets this when
    /// the slow start is over.
    pub joined: &'a Cell<Option<Duration>>,
}

impl EndpointView<'_> {
    /// The expected cost of one more request.
    #[inline]
    pub(crate) fn cost(&self, now: Duration) -> f64 {
        self.ewma.get().cost(self.in_flight, now)
    }

    /// Its weight relative to its full share.
    #[inline]
    pub(crate) fn weight(&self, slow_start: &SlowStart, now: Duration) -> f64 {
        let weight = self.joined.get().and_then(|joined| slow_start.weight(now.saturating_sub(joined)));
        weight.unwrap_or_else(|| {
            self.joined.set(None);
            1.0
        })
    }
}
