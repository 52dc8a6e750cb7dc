//! Coarse time of day and time since the start, cheap to read: see [`Tick`].

use std::sync::OnceLock;
use std::time::Duration;

use nix::time::ClockId;
use weft_codec::Tick;

/// Wall clock time since the Unix epoch.
pub(crate) fn time_of_day() -> Duration {
    // Linux has the clock since 2.6.32.
    ClockId::CLOCK_REALTIME_COARSE.now().map(Duration::from).unwrap_or_default()
}

/// Seconds since the first call in this process.
pub(crate) fn uptime_seconds() -> u64 {
    static START: OnceLock<Tick> = OnceLock::new();
    // At least 1, so that a namespace that was never used (0) is older than all others.
    START.get_or_init(Tick::now).elapsed().as_secs() + 1
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    /// Much longer than a tick, because ticks are late on a busy machine.
    const TICKS: Duration = Duration::from_millis(200);

    #[test]
    fn time_of_day_is_the_system_time() {
        let day = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after the epoch");
        let (before, read, after) = (day(), time_of_day(), day());
        assert!(before - TICKS <= read && read <= after + TICKS, "{read:?}, not {before:?} to {after:?}");
    }
}
