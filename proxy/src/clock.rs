//! The time by the kernel's ticks, for what is counted in seconds. It is behind by a tick at most (1 to 10 ms), and to read it
//! costs 7 ns, where the exact time costs 35 (measured in a virtual machine); a request asks ten times.

use std::time::Duration;

use nix::time::ClockId;

/// A moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tick(Duration);

impl Tick {
    pub(crate) fn now() -> Self {
        Self(read(ClockId::CLOCK_MONOTONIC_COARSE))
    }

    /// How long ago it was.
    pub(crate) fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }
}

/// The time of day, since the epoch.
pub(crate) fn time_of_day() -> Duration {
    read(ClockId::CLOCK_REALTIME_COARSE)
}

fn read(clock: ClockId) -> Duration {
    // Linux has had both since 2.6.32.
    clock.now().map(Duration::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::{Instant, SystemTime, UNIX_EPOCH};

    use super::*;

    /// Far more than a tick, which is late itself on a machine that is busy.
    const TICKS: Duration = Duration::from_millis(200);

    #[test]
    fn it_goes_with_the_exact_time() {
        let before = Instant::now();
        let tick = Tick::now();
        let after = Instant::now();
        std::thread::sleep(TICKS * 2);
        // In this order: however long the test is held up between two lines, what it expects becomes only wider.
        let least = after.elapsed();
        let ticked = tick.elapsed();
        let most = before.elapsed();
        assert!(least - TICKS <= ticked && ticked <= most + TICKS, "{ticked:?}, not {least:?} to {most:?}");
    }

    #[test]
    fn the_day_is_that_of_the_system() {
        let day = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after the epoch");
        let (before, read, after) = (day(), time_of_day(), day());
        assert!(before - TICKS <= read && read <= after + TICKS, "{read:?}, not {before:?} to {after:?}");
    }
}
