//! Waiting for what a cluster does in its own time. A test never sleeps for a fixed time: it says what it waits for, how
//! long at most, and is told what was the case when the time was up.
//!
//! It waits for the very thing that it then asks for. A pod that is ready is no endpoint yet, an endpoint that is written is not
//! known to every proxy yet, and a proxy that knows one pod of a Service need not know the next.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// Calls `look` until it succeeds, for at most `limit`; the last error stands in the one that is returned.
pub fn eventually<T>(what: &str, limit: Duration, look: impl FnMut() -> Result<T>) -> Result<T> {
    eventually_every(PAUSE, what, limit, look)
}

/// As [`eventually`], with a pause of the caller's choice between two looks.
pub fn eventually_every<T>(
    pause: Duration,
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<T>,
) -> Result<T> {
    let began = Instant::now();
    let mut looks = 0;
    loop {
        looks += 1;
        match look() {
            Ok(value) => return Ok(value),
            Err(error) if began.elapsed() >= limit => {
                return Err(anyhow!("waited {limit:?} in vain for {what} ({looks} looks); at the end: {error:#}"));
            }
            Err(_) => thread::sleep(pause),
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn returns_the_first_success() {
        let mut looks = 0;
        let found = eventually_every(Duration::ZERO, "three", Duration::from_secs(5), || {
            looks += 1;
            if looks < 3 { bail!("only {looks}") } else { Ok(looks) }
        });
        assert_eq!(found.expect("the third look succeeds"), 3);
    }

    #[test]
    fn says_what_was_wrong_at_the_end() {
        let error =
            eventually("rain", Duration::ZERO, || -> Result<()> { bail!("the sky is blue") }).expect_err("no rain");
        assert_eq!(error.to_string(), "waited 0ns in vain for rain (1 looks); at the end: the sky is blue");
    }
}
