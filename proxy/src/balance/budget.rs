//! How much repeating requests may add to what a Service is sent.
//!
//! A store of repetitions that all workers of the proxy share. It is full at first; each repetition takes one out, and two
//! things put back:
//!
//! ```text
//! a request     19/20 of `percent` hundredths                             0.19 by default
//! a second      `min_per_second`, less what requests put back             10 by default
//! at most       the larger of `percent` / 2 and `min_per_second`          10 by default
//! ```
//!
//! So N requests in a row are repeated at most `percent / 2 + 0.95 · percent / 100 · N` times, which is below `percent` of
//! them from N = 1,000 on, whatever went before: the twentieth that is held back pays for the store. Time counts only as
//! far as requests earn less than the minimum, and those of a burst count for up to 10 seconds after it. That is why the
//! minimum is a lower bound of the share and, unlike Linkerd's, adds nothing to it: by default it takes effect below 53
//! requests a second, where it hurts nobody and a client that sends little is still helped. Envoy's other way, a share of
//! the requests in flight, bounds what is open at once and not the sum: repetitions that fail fast pass below it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use weft_config::RetryBudget;

/// One repetition, in the unit that is counted in: fine enough for 19/20 of a hundredth.
const REPETITION: u64 = 2_000;

/// How long what requests put back stands in for the minimum. Source: Linkerd counts over 10 seconds.
const AHEAD: Duration = Duration::from_secs(10);

/// What is in the store of one Service. Changed without locks; workers that change it at once lose nothing of each other.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// What is missing from it, so that nothing is written while nothing fails.
    spent: AtomicU64,
    /// Until when the minimum has been put back, or requests have put back as much: nanoseconds of the process's life.
    paid: AtomicU64,
}

impl Budget {
    /// A request is sent for the first time.
    pub(crate) fn request(&self, settings: &RetryBudget) {
        if self.spent.load(Ordering::Relaxed) == 0 {
            return;
        }
        let earned = u64::from(settings.percent) * (REPETITION / 100) * 19 / 20;
        // First, so that nobody takes the same time for unpaid.
        if let Some(nanos) = (earned * 1_000_000_000).checked_div(u64::from(settings.min_per_second) * REPETITION) {
            self.paid.fetch_add(nanos, Ordering::AcqRel);
        }
        self.put_back(earned);
    }

    /// Whether a repetition is allowed at `now`, in the process's life; if so it is counted.
    pub(crate) fn repeat(&self, settings: &RetryBudget, now: Duration) -> bool {
        let (percent, least) = (u64::from(settings.percent), u64::from(settings.min_per_second));
        let (moment, latest) = (nanos(now), nanos(now + AHEAD));
        // Whoever raises it has the time in between to put back, and nobody else does.
        let paid = self.paid.fetch_max(moment, Ordering::AcqRel);
        if paid < moment {
            let unpaid = u128::from(moment - paid) * u128::from(least * REPETITION) / 1_000_000_000;
            self.put_back(u64::try_from(unpaid).unwrap_or(u64::MAX));
        } else if paid > latest {
            self.paid.fetch_min(latest, Ordering::AcqRel);
        }
        let all = (percent * REPETITION / 2).max(least * REPETITION);
        let take = |spent: u64| (spent + REPETITION <= all).then_some(spent + REPETITION);
        self.spent.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok()
    }

    fn put_back(&self, earned: u64) {
        let put = |spent: u64| (spent > 0).then(|| spent.saturating_sub(earned));
        // Refused where nothing is missing, which is as well.
        let _ = self.spent.fetch_update(Ordering::AcqRel, Ordering::Acquire, put);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: RetryBudget = RetryBudget { percent: 20, min_per_second: 10 };

    /// Sends a request at each of these moments, all of which fail and are repeated up to three times where that is
    /// allowed. Gives back how often each was.
    fn all_fail(budget: &Budget, settings: &RetryBudget, moments: impl Iterator<Item = Duration>) -> Vec<u32> {
        let mut repeated = Vec::new();
        for now in moments {
            budget.request(settings);
            repeated.push((0..3).filter(|_| budget.repeat(settings, now)).count() as u32);
        }
        repeated
    }

    /// So many moments, evenly, from this second on.
    fn steady(from: u64, per_second: u32, count: u32) -> impl Iterator<Item = Duration> {
        (0..count).map(move |number| Duration::from_secs(from) + Duration::from_secs(1) * number / per_second)
    }

    fn sum(repeated: &[u32]) -> u32 {
        repeated.iter().sum()
    }

    /// The most that any so many requests in a row were repeated.
    fn most(repeated: &[u32], requests: usize) -> u32 {
        repeated.windows(requests).map(sum).max().unwrap_or(0)
    }

    #[test]
    fn no_thousand_requests_are_repeated_more_than_two_hundred_times() {
        for per_second in [53, 60, 100, 400, 5_000, 100_000] {
            let repeated = all_fail(&Budget::default(), &DEFAULT, steady(3_600, per_second, 8_000));
            for run in [1_000, 1_500, 4_000, 8_000] {
                let most = most(&repeated, run);
                assert!(most * 5 <= run as u32, "{per_second} a second: {most} repetitions of {run} requests");
            }
            let all = sum(&repeated);
            assert!(all >= 1_520, "{per_second} a second: the budget is used: {all} of 8000");
        }
    }

    #[test]
    fn what_went_before_buys_no_more_than_the_store_holds() {
        let budget = Budget::default();
        // An hour in which nothing fails, then nothing at all, then a burst of failures, again and again.
        for hour in 1..10 {
            for _ in 0..100_000 {
                budget.request(&DEFAULT);
            }
            let burst = all_fail(&budget, &DEFAULT, steady(hour * 3_600, 10_000, 1_000));
            assert!((190..=200).contains(&sum(&burst)), "hour {hour}: {} of 1000", sum(&burst));
            assert_eq!(sum(&burst[..4]), 10, "the store is full, and used at once");
        }
    }

    #[test]
    fn bursts_are_worth_what_an_even_pace_is() {
        // 600 requests within little more than half a second, every 10 seconds.
        let moments = (0..24_000u32).map(|number| {
            Duration::from_secs(60 + u64::from(number / 600) * 10) + Duration::from_millis(1) * (number % 600)
        });
        let repeated = all_fail(&Budget::default(), &DEFAULT, moments);
        assert!(most(&repeated, 4_000) <= 800, "{} of 4000", most(&repeated, 4_000));
    }

    #[test]
    fn two_workers_share_one_store() {
        // In turns, at paces that differ: the one has 9 requests in 10.
        let budget = Budget::default();
        let moments: Vec<Duration> = steady(60, 55, 4_000).collect();
        let of_worker = |own: bool| {
            let budget = &budget;
            (moments.iter().enumerate()).filter(move |(number, _)| (number % 10 == 0) == own).map(move |(_, now)| {
                budget.request(&DEFAULT);
                (0..3).filter(|_| budget.repeat(&DEFAULT, *now)).count() as u32
            })
        };
        let (mut few, mut many, mut repeated) = (of_worker(true), of_worker(false), Vec::new());
        for number in 0..moments.len() {
            repeated.extend(if number % 10 == 0 { few.next() } else { many.next() });
        }
        assert_eq!(repeated.len(), 4_000);
        assert!(most(&repeated, 1_000) <= 200, "{} of 1000", most(&repeated, 1_000));
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
    fn a_client_that_sends_little_is_helped() {
        let slow = |seconds: u64| (0..200).map(move |number| Duration::from_secs(60 + number * seconds));
        assert_eq!(sum(&all_fail(&Budget::default(), &DEFAULT, slow(2))), 600, "one in two seconds: always");
        let at_five = sum(&all_fail(&Budget::default(), &DEFAULT, steady(60, 5, 200)));
        assert!((400..=410).contains(&at_five), "five a second: two of three repetitions: {at_five}");
        let at_fifty = sum(&all_fail(&Budget::default(), &DEFAULT, steady(60, 50, 4_000)));
        assert!((800..=810).contains(&at_fifty), "fifty a second: {at_fifty} of 4000");
        for settings in [RetryBudget { percent: 0, min_per_second: 0 }, RetryBudget { percent: 1, min_per_second: 0 }] {
            let all = sum(&all_fail(&Budget::default(), &settings, steady(60, 10, 1_000)));
            assert!(all <= settings.percent * 10, "{settings:?}: {all} of 1000");
        }
        let minimum = RetryBudget { percent: 0, min_per_second: 5 };
        let all = sum(&all_fail(&Budget::default(), &minimum, steady(60, 100, 1_000)));
        assert!((50..=55).contains(&all), "ten seconds of five, and one in store: {all}");
    }
}
