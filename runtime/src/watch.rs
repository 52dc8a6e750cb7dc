//! How soon a watch that broke is taken up again.

use std::time::Duration;

use backon::ExponentialBuilder;

/// The first wait, doubled by each failure that follows another.
const FIRST: Duration = Duration::from_millis(500);
/// The longest wait; with jitter, at most twice that. client-go waits up to 30 s: after an API server was away for a
/// minute, what is applied next would reach a proxy only half a minute later, and through an operator that waits as
/// well a minute later. A refused connection costs a server next to nothing, so thousands of proxies may ask this often.
const LONGEST: Duration = Duration::from_secs(3);

/// The pace of one watch, for a client's own kind of back-off: weft-init uses this crate too, and has no client.
pub fn pace() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(FIRST)
        .with_max_delay(LONGEST)
        .with_factor(2.0)
        .with_jitter()
        .without_max_times()
}

#[cfg(test)]
mod tests {
    use backon::BackoffBuilder;

    use super::*;

    #[test]
    fn a_server_that_is_back_after_an_hour_is_asked_within_six_seconds() {
        let mut waits = pace().build();
        let mut gone = Duration::ZERO;
        let mut longest = Duration::ZERO;
        while gone < Duration::from_secs(3600) {
            let wait = waits.next().expect("it never gives up");
            (gone, longest) = (gone + wait, longest.max(wait));
        }
        assert!(longest <= LONGEST * 2, "{longest:?}");
        assert!(longest > LONGEST, "without jitter, all proxies ask at once");
    }
}
