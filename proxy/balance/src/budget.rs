//! The retry budget: how much retries may add to the load of a Service.
//!
//! A token bucket that all workers of the proxy share. It starts full; each retry takes one token, and tokens are
//! added:
//!
//! ```text
//! by each request    19/20 of `percent` / 100                                0.19 by default
//! by each second     `min_per_second`, less what requests added              10 by default
//! capacity           the larger of `percent` / 2 and `min_per_second`        10 by default
//! ```
//!
//! So N requests in a row are retried at most `percent / 2 + 0.95 · percent / 100 · N` times. That is below `percent`
//! of them from N = 1,000 on, whatever happened before: the twentieth that requests do not add pays for the initial
//! tokens. Time adds tokens only as far as requests add less than the minimum, and the requests of a burst count for
//! up to 10 seconds after it. So the minimum is a lower bound of the share and, unlike Linkerd's, does not add to it:
//! by default it takes effect below 53 requests a second, where it harms no Service and still lets a client that sends
//! little retry. Envoy's alternative, a share of the requests in flight, bounds concurrent retries and not their sum:
//! retries that fail fast stay below it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use weft_config::RetryBudget;

/// One token, the price of a retry, in the unit that is counted in: fine enough for 19/20 of a hundredth.
const TOKEN: u64 = 2_000;

/// For how long tokens that requests added count towards the minimum. Source: Linkerd counts over 10 seconds.
const PREPAID_MAX: Duration = Duration::from_secs(10);

/// The token bucket of one Service. Lock-free; concurrent changes by several workers all take effect.
#[derive(Debug, Default)]
pub struct Budget {
    /// What is missing from the full bucket, so that nothing is written while no request fails.
    spent: AtomicU64,
    /// Until when the minimum was added, or requests added as much: nanoseconds since the process started.
    paid_until: AtomicU64,
}

impl Budget {
    /// Adds the share of one request, at its first attempt.
    #[inline]
    pub fn deposit(&self, settings: &RetryBudget) {
        if self.spent.load(Ordering::Relaxed) == 0 {
            return;
        }
        let earned = u64::from(settings.percent) * (TOKEN / 100) * 19 / 20;
        // Before the tokens are added, so that no other worker adds the minimum for the same time.
        if let Some(nanos) = (earned * 1_000_000_000).checked_div(u64::from(settings.min_per_second) * TOKEN) {
            self.paid_until.fetch_add(nanos, Ordering::AcqRel);
        }
        self.add(earned);
    }

    /// Takes a token for a retry at `now`, since the process started. Returns whether there was one.
    pub fn try_spend(&self, settings: &RetryBudget, now: Duration) -> bool {
        let (percent, min) = (u64::from(settings.percent), u64::from(settings.min_per_second));
        let (now, prepaid_max) = (nanos(now), nanos(now + PREPAID_MAX));
        // The worker that raises it adds the minimum for the time in between, and no other worker does.
        let paid_until = self.paid_until.fetch_max(now, Ordering::AcqRel);
        if paid_until < now {
            let unpaid = u128::from(now - paid_until) * u128::from(min * TOKEN) / 1_000_000_000;
            self.add(u64::try_from(unpaid).unwrap_or(u64::MAX));
        } else if paid_until > prepaid_max {
            self.paid_until.fetch_min(prepaid_max, Ordering::AcqRel);
        }
        let capacity = (percent * TOKEN / 2).max(min * TOKEN);
        let spend = |spent: u64| (spent + TOKEN <= capacity).then_some(spent + TOKEN);
        self.spent.fetch_update(Ordering::AcqRel, Ordering::Acquire, spend).is_ok()
    }

    fn add(&self, earned: u64) {
        let reduce = |spent: u64| (spent > 0).then(|| spent.saturating_sub(earned));
        // Fails if the bucket is full: then there is nothing to add.
        let _ = self.spent.fetch_update(Ordering::AcqRel, Ordering::Acquire, reduce);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: RetryBudget = RetryBudget { percent: 20, min_per_second: 10 };

    /// Sends a request at each of these times. All fail and are retried up to three times if the budget allows it.
    /// Returns the number of retries of each.
    fn all_fail(budget: &Budget, settings: &RetryBudget, times: impl Iterator<Item = Duration>) -> Vec<u32> {
        let mut retries = Vec::new();
        for now in times {
            budget.deposit(settings);
            retries.push((0..3).filter(|_| budget.try_spend(settings, now)).count() as u32);
        }
        retries
    }

    /// `count` times at an even rate, from the second `from` on.
    fn steady(from: u64, per_second: u32, count: u32) -> impl Iterator<Item = Duration> {
        (0..count).map(move |number| Duration::from_secs(from) + Duration::from_secs(1) * number / per_second)
    }

    fn sum(retries: &[u32]) -> u32 {
        retries.iter().sum()
    }

    /// The most retries that any `requests` requests in a row got.
    fn most(retries: &[u32], requests: usize) -> u32 {
        retries.windows(requests).map(sum).max().unwrap_or(0)
    }

    #[test]
    fn retry_budget_allows_at_most_200_retries_of_any_1000_requests() {
        for per_second in [53, 60, 100, 400, 5_000, 100_000] {
            let retries = all_fail(&Budget::default(), &DEFAULT, steady(3_600, per_second, 8_000));
            for run in [1_000, 1_500, 4_000, 8_000] {
                let most = most(&retries, run);
                assert!(most * 5 <= run as u32, "{per_second} a second: {most} retries of {run} requests");
            }
            let all = sum(&retries);
            assert!(all >= 1_520, "{per_second} a second: the budget is used: {all} of 8000");
        }
    }

    #[test]
    fn tokens_do_not_accumulate_above_the_capacity() {
        let budget = Budget::default();
        // Each hour: requests that succeed, then none, then a burst that fails.
        for hour in 1..10 {
            for _ in 0..100_000 {
                budget.deposit(&DEFAULT);
            }
            let burst = all_fail(&budget, &DEFAULT, steady(hour * 3_600, 10_000, 1_000));
            assert!((190..=200).contains(&sum(&burst)), "hour {hour}: {} of 1000", sum(&burst));
            assert_eq!(sum(&burst[..4]), 10, "the bucket is full, and spent at once");
        }
    }

    #[test]
    fn bursts_get_no_more_retries_than_an_even_rate() {
        // 600 requests within little more than half a second, every 10 seconds.
        let times = (0..24_000u32).map(|number| {
            Duration::from_secs(60 + u64::from(number / 600) * 10) + Duration::from_millis(1) * (number % 600)
        });
        let retries = all_fail(&Budget::default(), &DEFAULT, times);
        assert!(most(&retries, 4_000) <= 800, "{} of 4000", most(&retries, 4_000));
    }

    #[test]
    fn workers_share_one_budget() {
        // In turns and at different rates: one worker has 9 of 10 requests.
        let budget = Budget::default();
        let times: Vec<Duration> = steady(60, 55, 4_000).collect();
        let of_worker = |own: bool| {
            let budget = &budget;
            (times.iter().enumerate()).filter(move |(number, _)| (number % 10 == 0) == own).map(move |(_, now)| {
                budget.deposit(&DEFAULT);
                (0..3).filter(|_| budget.try_spend(&DEFAULT, *now)).count() as u32
            })
        };
        let (mut few, mut many, mut retries) = (of_worker(true), of_worker(false), Vec::new());
        for number in 0..times.len() {
            retries.extend(if number % 10 == 0 { few.next() } else { many.next() });
        }
        assert_eq!(retries.len(), 4_000);
        assert!(most(&retries, 1_000) <= 200, "{} of 1000", most(&retries, 1_000));
        // At the same time, on two threads.
        let budget = Budget::default();
        let all: u32 = std::thread::scope(|scope| {
            let worker = || sum(&all_fail(&budget, &DEFAULT, steady(60, 10_000, 20_000)));
            let workers = [scope.spawn(worker), scope.spawn(worker)];
            workers.into_iter().map(|worker| worker.join().expect("it ends")).sum()
        });
        assert!((7_500..=8_000).contains(&all), "{all} of 40000");
    }

    #[test]
    fn the_minimum_allows_slow_clients_to_retry() {
        let slow = |seconds: u64| (0..200).map(move |number| Duration::from_secs(60 + number * seconds));
        assert_eq!(sum(&all_fail(&Budget::default(), &DEFAULT, slow(2))), 600, "one in two seconds: always");
        let at_five = sum(&all_fail(&Budget::default(), &DEFAULT, steady(60, 5, 200)));
        assert!((400..=410).contains(&at_five), "five a second: two of three retries: {at_five}");
        let at_fifty = sum(&all_fail(&Budget::default(), &DEFAULT, steady(60, 50, 4_000)));
        assert!((800..=810).contains(&at_fifty), "fifty a second: {at_fifty} of 4000");
        for settings in [RetryBudget { percent: 0, min_per_second: 0 }, RetryBudget { percent: 1, min_per_second: 0 }] {
            let all = sum(&all_fail(&Budget::default(), &settings, steady(60, 10, 1_000)));
            assert!(all <= settings.percent * 10, "{settings:?}: {all} of 1000");
        }
        let minimum = RetryBudget { percent: 0, min_per_second: 5 };
        let all = sum(&all_fail(&Budget::default(), &minimum, steady(60, 100, 1_000)));
        assert!((50..=55).contains(&all), "five a second for ten seconds, and the initial tokens: {all}");
    }
}
