//! Backoff of a watch that failed.

use std::time::Duration;

use backon::ExponentialBuilder;

/// The first delay; it doubles with each consecutive failure.
const MIN_DELAY: Duration = Duration::from_millis(500);
/// The longest delay; with jitter, at most twice that. client-go waits up to 30 s: after an API server was down for a
/// minute, the next change would reach a proxy half a minute late, and a minute late through an operator that waits
/// as well. A refused connection costs a server next to nothing, so thousands of proxies may retry this often.
const MAX_DELAY: Duration = Duration::from_secs(3);

/// The backoff of one watch, not tied to a client library's type: weft-init uses this crate too, and has no client.
pub fn backoff() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(MIN_DELAY)
        .with_max_delay(MAX_DELAY)
        .with_factor(2.0)
        .with_jitter()
        .without_max_times()
}

#[cfg(test)]
mod tests {
    use backon::BackoffBuilder;

    use super::*;

    #[test]
    fn backoff_stays_below_six_seconds_after_an_hour() {
        let mut delays = backoff().build();
        let mut elapsed = Duration::ZERO;
        let mut longest = Duration::ZERO;
        while elapsed < Duration::from_secs(3600) {
            let delay = delays.next().expect("unlimited retries");
            (elapsed, longest) = (elapsed + delay, longest.max(delay));
        }
        assert!(longest <= MAX_DELAY * 2, "{longest:?}");
        assert!(longest > MAX_DELAY, "without jitter, all proxies retry at the same time");
    }
}
