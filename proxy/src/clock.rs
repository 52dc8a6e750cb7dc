//! Coarse clock, for durations measured in seconds: the kernel's time of the last tick. It lags by at most one tick
//! (1 to 10 ms). Reading it costs 7 ns instead of 35 for the exact time (measured in a virtual machine); a request
//! reads it ten times.

use std::sync::OnceLock;
use std::time::Duration;

use nix::time::ClockId;

/// A point in time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tick(Duration);

impl Tick {
    pub(crate) fn now() -> Self {
        Self(read(ClockId::CLOCK_MONOTONIC_COARSE))
    }

    /// Time since then.
    pub(crate) fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }

    /// The same by the exact clock, which is on the same scale.
    pub(crate) fn elapsed_exact(self) -> Duration {
        read(ClockId::CLOCK_MONOTONIC).saturating_sub(self.0)
    }
}

/// Wall clock time since the Unix epoch.
pub(crate) fn time_of_day() -> Duration {
    read(ClockId::CLOCK_REALTIME_COARSE)
}

fn read(clock: ClockId) -> Duration {
    // Linux has all of them since 2.6.32.
    clock.now().map(Duration::from).unwrap_or_default()
}

/// Seconds since the first call in this process.
pub(crate) fn uptime_seconds() -> u64 {
    static START: OnceLock<Tick> = OnceLock::new();
    // At least 1, so that a namespace that was never used (0) is older than all others.
    START.get_or_init(Tick::now).elapsed().as_secs() + 1
}

#[cfg(test)]
mod tests {
    use std::time::{Instant, SystemTime, UNIX_EPOCH};

    use super::*;

    /// Much longer than a tick, because ticks are late on a busy machine.
    const TICKS: Duration = Duration::from_millis(200);

    #[test]
    fn coarse_time_follows_the_exact_time() {
        let before = Instant::now();
        let tick = Tick::now();
        let after = Instant::now();
        std::thread::sleep(TICKS * 2);
        // In this order, a delay between two lines only widens the expected range.
        let least = after.elapsed();
        let (ticked, exact) = (tick.elapsed(), tick.elapsed_exact());
        let most = before.elapsed();
        for elapsed in [ticked, exact] {
            assert!(least - TICKS <= elapsed && elapsed <= most + TICKS, "{elapsed:?}, not {least:?} to {most:?}");
        }
        assert!(tick.elapsed_exact() > exact, "the exact clock does not wait for a tick");
    }

    #[test]
    fn time_of_day_is_the_system_time() {
        let day = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after the epoch");
        let (before, read, after) = (day(), time_of_day(), day());
        assert!(before - TICKS <= read && read <= after + TICKS, "{read:?}, not {before:?} to {after:?}");
    }
}
