//! Waiting for asynchronous effects in a cluster. A test never sleeps for a fixed time: it polls for a named effect
//! with a timeout, and a timeout reports the last observation.
//!
//! Poll for the effect that the test then uses: a ready pod is not an endpoint yet, an endpoint is not known to every
//! proxy yet, and a proxy that knows one pod of a Service may not know the next.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// Polling interval.
const INTERVAL: Duration = Duration::from_millis(200);

/// Calls `poll` until it succeeds, for at most `limit`; the returned error contains the last one.
pub fn eventually<T>(what: &str, limit: Duration, poll: impl FnMut() -> Result<T>) -> Result<T> {
    eventually_every(INTERVAL, what, limit, poll)
}

/// As [`eventually`], with a polling interval of the caller's choice.
pub fn eventually_every<T>(
    interval: Duration,
    what: &str,
    limit: Duration,
    mut poll: impl FnMut() -> Result<T>,
) -> Result<T> {
    let began = Instant::now();
    let mut attempts = 0;
    loop {
        attempts += 1;
        match poll() {
            Ok(value) => return Ok(value),
            Err(error) if began.elapsed() >= limit => {
                return Err(anyhow!("timed out after {limit:?} waiting for {what} ({attempts} attempts): {error:#}"));
            }
            Err(_) => thread::sleep(interval),
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn returns_the_first_success() {
        let mut attempts = 0;
        let found = eventually_every(Duration::ZERO, "three", Duration::from_secs(5), || {
            attempts += 1;
            if attempts < 3 { bail!("only {attempts}") } else { Ok(attempts) }
        });
        assert_eq!(found.expect("the third attempt succeeds"), 3);
    }

    #[test]
    fn timeout_reports_the_last_error() {
        let error =
            eventually("rain", Duration::ZERO, || -> Result<()> { bail!("the sky is blue") }).expect_err("no rain");
        assert_eq!(error.to_string(), "timed out after 0ns waiting for rain (1 attempts): the sky is blue");
    }
}
