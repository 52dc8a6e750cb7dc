//! Backoff of a watch that failed.

use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// The first delay; it doubles with each failure.
const MIN_DELAY: Duration = Duration::from_millis(500);
/// The longest delay; with jitter, at most twice that. client-go waits up to 30 s: after an API server was down for a
/// minute, the next change would reach a proxy half a minute late, and a minute late through an operator that waits
/// as well. A refused connection costs a server next to nothing, so thousands of proxies may retry this often.
const MAX_DELAY: Duration = Duration::from_secs(3);
/// A watch that was without a failure for this long begins again with the first delay.
const RESET: Duration = Duration::from_secs(10);

/// The delays of one watch. kube resets a backoff with every event, and a watch that fails to list sends one before
/// each failure, so only time resets this one.
#[derive(Debug)]
pub struct Backoff {
    delays: ExponentialBackoff,
    failed: Option<Instant>,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { delays: delays(), failed: None }
    }
}

impl Backoff {
    fn next_at(&mut self, now: Instant) -> Option<Duration> {
        let delay = match self.failed {
            Some(failed) if now.saturating_duration_since(failed) < RESET => self.delays.next(),
            _ => {
                self.delays = delays();
                self.delays.next()
            }
        }?;
        self.failed = Some(now + delay);
        Some(delay)
    }
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.next_at(Instant::now())
    }
}

#[cfg(feature = "kube")]
impl kube::runtime::utils::Backoff for Backoff {
    fn reset(&mut self) {}
}

fn delays() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(MIN_DELAY)
        .with_max_delay(MAX_DELAY)
        .with_factor(2.0)
        .with_jitter()
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_while_a_watch_fails_and_stays_below_six_seconds() {
        let (mut backoff, start) = (Backoff::default(), Instant::now());
        let (mut elapsed, mut longest) = (Duration::ZERO, Duration::ZERO);
        while elapsed < Duration::from_secs(3600) {
            let delay = backoff.next_at(start + elapsed).expect("unlimited retries");
            (elapsed, longest) = (elapsed + delay, longest.max(delay));
        }
        assert!(longest <= MAX_DELAY * 2, "{longest:?}");
        assert!(longest > MAX_DELAY, "without jitter, all proxies retry at the same time");
    }

    #[test]
    fn backoff_begins_again_after_a_time_without_failures() {
        let (mut backoff, start) = (Backoff::default(), Instant::now());
        let mut elapsed = Duration::ZERO;
        for _ in 0..8 {
            elapsed += backoff.next_at(start + elapsed).expect("unlimited retries");
        }
        assert!(backoff.next_at(start + elapsed).is_some_and(|delay| delay >= MAX_DELAY), "a failure at once");
        let later = start + elapsed + MAX_DELAY * 2 + RESET;
        assert!(backoff.next_at(later).is_some_and(|delay| delay <= MIN_DELAY * 2), "the watch worked in between");
    }
}
