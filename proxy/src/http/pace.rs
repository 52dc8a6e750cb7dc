//! Minimum rate of a request body with a Content-Length: how long the proxy waits in total for the client's bytes.
//!
//! Only the time in which the proxy wants to read and has nothing to read counts, so a slow backend does not count
//! against the client. Bodies without a length have no minimum rate: they may be streams with long pauses.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// Each this many bytes received allow one more second. Source: Kestrel's `MinRequestBodyDataRate`.
const MIN_BYTES_PER_SECOND: u64 = 240;

/// Enforces the minimum rate of one request body.
#[derive(Debug)]
pub(crate) struct UploadRate {
    /// How long the proxy waits for the first byte.
    grace: Duration,
    /// Bytes received.
    received: u64,
    /// Time waited, up to the last bytes received.
    waited: Duration,
    /// When the current wait began.
    waiting_since: Option<Instant>,
    /// Fires at the deadline or earlier. Created on the first wait.
    timer: Option<Pin<Box<Sleep>>>,
}

// === impl UploadRate ===

impl UploadRate {
    pub(crate) fn new(grace: Duration) -> Self {
        Self { grace, received: 0, waited: Duration::ZERO, waiting_since: None, timer: None }
    }

    /// Records bytes received.
    pub(crate) fn received(&mut self, bytes: usize) {
        self.received = self.received.saturating_add(bytes as u64);
        if let Some(since) = self.waiting_since.take() {
            self.waited += since.elapsed();
        }
    }

    /// Called when there is nothing to read. Ready: the client is too slow.
    pub(crate) fn poll_too_slow(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        let allowed = Duration::from_millis(self.received.saturating_mul(1000) / MIN_BYTES_PER_SECOND);
        let until = since + (self.grace + allowed).saturating_sub(self.waited);
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

    /// The second at which an upload of `bytes` each `every` seconds is found too slow, within a day.
    async fn too_slow_after(bytes: usize, every: u64) -> Option<u64> {
        let (mut rate, begun) = (UploadRate::new(GRACE), Instant::now());
        while begun.elapsed() < Duration::from_secs(24 * 3600) {
            if timeout(Duration::from_secs(every), poll_fn(|cx| rate.poll_too_slow(cx))).await.is_ok() {
                return Some(begun.elapsed().as_secs());
            }
            rate.received(bytes);
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn uploads_below_the_minimum_rate_time_out() {
        for (bytes, every, expected) in [
            (0, 1000, Some(60)),
            (1, 30, Some(60)),
            (120, 1, Some(120)),
            (240, 1, None),
            (240 * 50, 50, None),
            (240 * 50, 58, Some(110)),
        ] {
            let found = too_slow_after(bytes, every).await;
            let close = match (found, expected) {
                (Some(found), Some(expected)) => found.abs_diff(expected) <= 1,
                (found, expected) => found == expected,
            };
            assert!(close, "{bytes} bytes every {every} s: {found:?} expected {expected:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_while_the_proxy_does_not_read_is_not_counted() {
        let mut rate = UploadRate::new(GRACE);
        for _ in 0..100 {
            assert!(timeout(Duration::from_millis(500), poll_fn(|cx| rate.poll_too_slow(cx))).await.is_err());
            rate.received(1);
            sleep(Duration::from_secs(60)).await;
        }
        assert!(timeout(Duration::from_secs(12), poll_fn(|cx| rate.poll_too_slow(cx))).await.is_ok());
    }
}
