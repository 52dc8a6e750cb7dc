//! When a certificate is requested. By the wall clock, because timers stand still while a machine sleeps: the caller
//! compares the clock every [`CHECK`], so that it knows of a sleep of days within that time.

use std::time::Duration;

/// How often the clock is compared.
pub(super) const CHECK: Duration = Duration::from_secs(2);
/// The first delay after a failure; it doubles with each further one.
const DELAY_MIN: Duration = Duration::from_millis(500);
/// The longest delay while there is a valid certificate.
const DELAY_MAX: Duration = Duration::from_secs(60);
/// The longest delay while there is none, and the pod cannot serve.
const DELAY_MAX_WITHOUT: Duration = Duration::from_secs(3);
/// A clock that goes back by more than this was set: nothing that was planned by it counts.
const STEP: Duration = Duration::from_secs(60);

/// Times of requests, since the epoch. `random` is from 0 to 1, so that pods do not all ask at the same time.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    next: Duration,
    planned: Duration,
    failures: u32,
}

// === impl Schedule ===

impl Schedule {
    /// A certificate was issued: the next is due between 50 and 60 % of the life that it has left.
    pub(super) fn issued(&mut self, now: Duration, not_after: Duration, random: f64) {
        let share = 0.5 + 0.1 * random.clamp(0.0, 1.0);
        let wait = not_after.saturating_sub(now).mul_f64(share).max(DELAY_MIN);
        *self = Self { next: now + wait, planned: now, failures: 0 };
    }

    /// None was issued. `not_after` is the end of the certificate in use; with less left of it, delays are shorter.
    pub(super) fn failed(&mut self, now: Duration, not_after: Option<Duration>, random: f64) {
        let left = not_after.map_or(Duration::ZERO, |not_after| not_after.saturating_sub(now));
        let longest = if left.is_zero() { DELAY_MAX_WITHOUT } else { (left / 10).clamp(DELAY_MAX_WITHOUT, DELAY_MAX) };
        let delay = DELAY_MIN.saturating_mul(1 << self.failures.min(16)).min(longest);
        let wait = delay.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0));
        *self = Self { next: now + wait, planned: now, failures: self.failures.saturating_add(1) };
    }

    /// What the last failure was about has changed.
    pub(super) fn retry(&mut self) {
        *self = Self::default();
    }

    /// Whether a certificate is requested now.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        now >= self.next || now + STEP < self.planned
    }

    /// How long to sleep before the clock is compared again.
    pub(super) fn wait(&self, now: Duration) -> Duration {
        self.next.saturating_sub(now).min(CHECK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1_800_000_000);
    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn renewal_is_between_50_and_60_percent_of_life() {
        for life in [Duration::from_secs(60), DAY] {
            for (random, share) in [(0.0, 0.5), (1.0, 0.6)] {
                let mut schedule = Schedule::default();
                assert!(schedule.is_due(START), "the first one at once");
                schedule.issued(START, START + life, random);
                let due = START + life.mul_f64(share);
                assert!(!schedule.is_due(due - Duration::from_millis(1)) && schedule.is_due(due), "{life:?} {random}");
                assert_eq!(schedule.wait(START), CHECK, "the clock is compared meanwhile");
            }
        }
    }

    #[test]
    fn failures_are_retried_ever_more_slowly_until_little_life_is_left() {
        let delays = |life: Option<Duration>| {
            let (mut schedule, mut now, mut delays) = (Schedule::default(), START, Vec::new());
            for _ in 0..12 {
                schedule.failed(now, life.map(|life| START + life), 1.0);
                delays.push(schedule.next - now);
                now = schedule.next;
            }
            delays
        };
        let of_a_day = delays(Some(DAY));
        assert_eq!(of_a_day[..3], [DELAY_MIN, DELAY_MIN * 2, DELAY_MIN * 4]);
        assert_eq!(of_a_day[11], DELAY_MAX);
        let of_a_minute = delays(Some(Duration::from_secs(60)));
        assert!(of_a_minute.iter().all(|delay| *delay <= Duration::from_secs(6)), "{of_a_minute:?}");
        assert_eq!(delays(None).into_iter().max(), Some(DELAY_MAX_WITHOUT));
        let mut early = Schedule::default();
        early.failed(START, None, 0.0);
        assert_eq!(early.next - START, DELAY_MIN / 2, "with jitter");
    }

    #[test]
    fn sleep_of_days_and_a_clock_that_was_set_back_are_noticed_at_the_next_check() {
        let mut schedule = Schedule::default();
        schedule.issued(START, START + DAY, 0.0);
        assert!(schedule.is_due(START + 3 * DAY), "slept for three days");
        assert!(!schedule.is_due(START - Duration::from_secs(30)), "a clock may be corrected a little");
        assert!(schedule.is_due(START - DAY), "set back by a day: the certificate is not valid yet by this clock");
        schedule.failed(START - DAY, Some(START + DAY), 0.0);
        assert!(!schedule.is_due(START - DAY), "and this is not tried without a pause");
    }
}
