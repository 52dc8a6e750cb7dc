//! How much repeating requests may add to what a Service is sent.
//!
//! Repetitions of the last 10 seconds are at most the larger of a share of the requests and a minimum rate:
//! `max(20 % of requests, 10 a second)`. The larger of the two and not, as for Linkerd, their sum: a sum would let a Service
//! that fails every request be sent more than 1.2 times what was asked of it for as long as it fails, at any load. As it is,
//! that holds from 50 requests a second on, but for the hundred that a client may use at once when it begins; below, 10
//! repetitions a second hurt nobody, and a client that sends little is still helped. Envoy's other way, a share of the
//! requests in flight, bounds what is open at once and not the sum: repetitions that fail fast pass below it.

use std::time::Duration;

use weft_config::RetryBudget;

/// The window, in slots of a second.
const SLOTS: usize = 10;

/// Requests and repetitions of the last ten seconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Budget {
    slots: [Slot; SLOTS],
    /// The second that the newest slot is of.
    second: u64,
    requests: u64,
    repetitions: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    requests: u32,
    repetitions: u32,
}

impl Budget {
    /// A request is sent for the first time.
    pub(crate) fn request(&mut self, now: Duration) {
        let slot = self.slot(now);
        slot.requests = slot.requests.saturating_add(1);
        self.requests += 1;
    }

    /// Whether a repetition is allowed; if so it is counted.
    pub(crate) fn repeat(&mut self, settings: &RetryBudget, now: Duration) -> bool {
        self.slot(now);
        let share = self.requests * u64::from(settings.percent) / 100;
        let least = u64::from(settings.min_per_second) * SLOTS as u64;
        if self.repetitions >= share.max(least) {
            return false;
        }
        let slot = self.slot(now);
        slot.repetitions = slot.repetitions.saturating_add(1);
        self.repetitions += 1;
        true
    }

    /// The slot of this second, with those that are too old forgotten.
    fn slot(&mut self, now: Duration) -> &mut Slot {
        let second = now.as_secs();
        let passed = second.saturating_sub(self.second).min(SLOTS as u64);
        for step in 1..=passed {
            let at = ((self.second + step) % SLOTS as u64) as usize;
            let Slot { requests, repetitions } = std::mem::take(&mut self.slots[at]);
            self.requests -= u64::from(requests);
            self.repetitions -= u64::from(repetitions);
        }
        self.second = self.second.max(second);
        let at = (self.second % SLOTS as u64) as usize;
        &mut self.slots[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every request fails, and each is repeated up to three times where that is allowed. Gives back requests and repetitions.
    fn all_fail(budget: &mut Budget, settings: &RetryBudget, per_second: &[u32]) -> (u32, u32) {
        let (mut requests, mut repetitions) = (0, 0);
        for (second, count) in per_second.iter().enumerate() {
            for number in 0..*count {
                let now = Duration::from_secs(second as u64) + Duration::from_secs(1) * number / *count;
                budget.request(now);
                requests += 1;
                repetitions += (0..3).filter(|_| budget.repeat(settings, now)).count() as u32;
            }
        }
        (requests, repetitions)
    }

    #[test]
    fn a_service_that_fails_is_sent_at_most_a_fifth_more() {
        let settings = RetryBudget::default();
        for load in [50, 51, 100, 1_000, 5_000] {
            let (requests, repetitions) = all_fail(&mut Budget::default(), &settings, &[load; 60]);
            assert!(repetitions * 5 <= requests, "{load} a second: {repetitions} repetitions of {requests} requests");
            assert!(
                repetitions * 5 + 500 >= requests,
                "{load} a second: the budget is used: {repetitions} of {requests}"
            );
        }
        // Whatever the load does, no more than a fifth of it and the minimum's own are added.
        let mut uneven: Vec<u32> =
            (0..120u32).map(|second| if second % 13 == 0 { 2_000 } else { second % 7 }).collect();
        for _ in 0..3 {
            uneven.rotate_left(5);
            let (requests, repetitions) = all_fail(&mut Budget::default(), &settings, &uneven);
            assert!(repetitions <= requests / 5 + 10 * 120, "{repetitions} of {requests}");
            let share = RetryBudget { min_per_second: 0, ..settings };
            let (requests, repetitions) = all_fail(&mut Budget::default(), &share, &uneven);
            assert!(repetitions * 5 <= requests, "without a minimum: {repetitions} of {requests}");
        }
    }

    #[test]
    fn a_client_that_sends_little_is_helped() {
        let (requests, repetitions) = all_fail(&mut Budget::default(), &RetryBudget::default(), &[1; 30]);
        assert_eq!(repetitions, requests * 3);
        let none = RetryBudget { percent: 0, min_per_second: 0 };
        assert_eq!(all_fail(&mut Budget::default(), &none, &[10; 30]).1, 0);
    }

    #[test]
    fn what_is_ten_seconds_old_is_forgotten() {
        let settings = RetryBudget { percent: 20, min_per_second: 0 };
        let mut budget = Budget::default();
        all_fail(&mut Budget::default(), &settings, &[100]);
        for _ in 0..100 {
            budget.request(Duration::from_secs(3));
        }
        assert!(budget.repeat(&settings, Duration::from_secs(12)), "9 seconds later");
        assert!(!budget.repeat(&settings, Duration::from_secs(13)), "10 seconds later");
        budget.request(Duration::from_secs(1_000));
        assert_eq!((budget.requests, budget.repetitions), (1, 0));
    }
}
