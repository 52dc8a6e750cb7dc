//! The least pace of an upload: how long its client may make the proxy wait for a body whose length it has announced.
//!
//! Only the time in which the proxy wants to read and nothing is there counts, so a slow backend is not held against the client.
//! A body of unknown length may be a stream, which is silent as long as both ends like.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// Octets for which the client gets one second more. Source: Kestrel's `MinRequestBodyDataRate`.
const OCTETS_PER_SECOND: u64 = 240;

/// The pace of one upload.
#[derive(Debug)]
pub(crate) struct Pace {
    /// How long the client may be waited for before it has sent anything.
    grace: Duration,
    received: u64,
    /// How long it was waited for, up to what it sent last.
    waited: Duration,
    /// Since when it is waited for.
    since: Option<Instant>,
    /// Rings no later than when the time is over. Made for the first wait.
    timer: Option<Pin<Box<Sleep>>>,
}

// === impl Pace ===

impl Pace {
    pub(crate) fn new(grace: Duration) -> Self {
        Self { grace, received: 0, waited: Duration::ZERO, since: None, timer: None }
    }

    /// The client has sent so much more.
    pub(crate) fn received(&mut self, octets: usize) {
        self.received = self.received.saturating_add(octets as u64);
        if let Some(since) = self.since.take() {
            self.waited += since.elapsed();
        }
    }

    /// Nothing is there: waits until the client has taken too long.
    pub(crate) fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let earned = Duration::from_millis(self.received.saturating_mul(1000) / OCTETS_PER_SECOND);
        let until = since + (self.grace + earned).saturating_sub(self.waited);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        loop {
            ready!(timer.as_mut().poll(cx));
            if until <= Instant::now() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(until);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::{sleep, timeout};

    use super::*;

    const GRACE: Duration = Duration::from_secs(60);

    /// Uploads that send so many octets each so many seconds: after how many seconds they are too slow, if they are within a
    /// day.
    async fn too_slow_after(octets: usize, every: u64) -> Option<u64> {
        let (mut pace, begun) = (Pace::new(GRACE), Instant::now());
        while begun.elapsed() < Duration::from_secs(24 * 3600) {
            if timeout(Duration::from_secs(every), poll_fn(|cx| pace.poll_overdue(cx))).await.is_ok() {
                return Some(begun.elapsed().as_secs());
            }
            pace.received(octets);
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_is_waited_for_as_long_as_it_keeps_its_pace() {
        for (octets, every, expected) in [
            (0, 1000, Some(60)),
            (1, 30, Some(60)),
            (120, 1, Some(120)),
            (240, 1, None),
            (240 * 50, 50, None),
            (240 * 50, 58, Some(110)),
        ] {
            let found = too_slow_after(octets, every).await;
            let close = match (found, expected) {
                (Some(found), Some(expected)) => found.abs_diff(expected) <= 1,
                (found, expected) => found == expected,
            };
            assert!(close, "{octets} octets every {every} s: {found:?} instead of {expected:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nobody_reads_does_not_count() {
        let mut pace = Pace::new(GRACE);
        for _ in 0..100 {
            assert!(timeout(Duration::from_millis(500), poll_fn(|cx| pace.poll_overdue(cx))).await.is_err());
            pace.received(1);
            sleep(Duration::from_secs(60)).await;
        }
        assert!(timeout(Duration::from_secs(12), poll_fn(|cx| pace.poll_overdue(cx))).await.is_ok());
    }
}
