//! How much each service account and each address may ask for, so that a flood of one delays no other. The time is a
//! parameter.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Certificates of one service account in a second, on average: a deployment of 10,000 pods renews twice a day.
const RATE: f64 = 50.0;
/// Certificates of one service account at once: a deployment that is scaled up.
const BURST: f64 = 1000.0;
/// Maximum number of accounts that are remembered; those that asked for nothing lately are forgotten first.
const ACCOUNTS_MAX: usize = 65_536;

/// A token bucket for each service account.
#[derive(Debug)]
pub struct Rates<K> {
    buckets: HashMap<K, Bucket>,
}

/// How many of each key are inside at a time.
#[derive(Debug)]
pub struct Shares<K> {
    inside: HashMap<K, usize>,
    max: usize,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

// === impl Rates ===

impl<K> Default for Rates<K> {
    fn default() -> Self {
        Self { buckets: HashMap::new() }
    }
}

impl<K: Eq + Hash> Rates<K> {
    /// Takes one of the certificates of an account; false: it has none left.
    pub fn take(&mut self, account: K, now: Instant) -> bool {
        if self.buckets.len() >= ACCOUNTS_MAX && !self.buckets.contains_key(&account) {
            self.buckets.retain(|_, bucket| bucket.filled(now) < BURST);
            if self.buckets.len() >= ACCOUNTS_MAX {
                return false;
            }
        }
        let bucket = self.buckets.entry(account).or_insert(Bucket { left: BURST, at: now });
        *bucket = Bucket { left: bucket.filled(now), at: now };
        if bucket.left < 1.0 {
            return false;
        }
        bucket.left -= 1.0;
        true
    }
}

// === impl Bucket ===

impl Bucket {
    fn filled(self, now: Instant) -> f64 {
        let since: Duration = now.saturating_duration_since(self.at);
        (self.left + since.as_secs_f64() * RATE).min(BURST)
    }
}

// === impl Shares ===

impl<K: Eq + Hash + Clone> Shares<K> {
    /// At most `max` of each key.
    pub fn new(max: usize) -> Self {
        Self { inside: HashMap::new(), max }
    }

    /// Lets one in; false: there are as many of this key already as may be.
    pub fn enter(&mut self, key: &K) -> bool {
        let inside = self.inside.entry(key.clone()).or_default();
        let admitted = *inside < self.max;
        *inside += usize::from(admitted);
        admitted
    }

    /// One that was let in leaves.
    pub fn leave(&mut self, key: &K) {
        if let Some(inside) = self.inside.get_mut(key) {
            *inside = inside.saturating_sub(1);
            if *inside == 0 {
                self.inside.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flood_of_one_account_takes_nothing_from_another() {
        let start = Instant::now();
        let mut rates = Rates::default();
        let granted = (0..10_000).filter(|_| rates.take("flood", start)).count();
        assert_eq!(granted, 1000);
        assert!(rates.take("other", start));
        let later = start + Duration::from_secs(2);
        assert_eq!((0..10_000).filter(|_| rates.take("flood", later)).count(), 100, "50 a second");
        let much_later = start + Duration::from_secs(86_400);
        assert_eq!((0..10_000).filter(|_| rates.take("flood", much_later)).count(), 1000, "never more than the burst");
    }

    #[test]
    fn accounts_that_asked_long_ago_are_forgotten() {
        let start = Instant::now();
        let mut rates = Rates::default();
        assert!((0..ACCOUNTS_MAX).all(|account| rates.take(account, start)));
        assert!(!rates.take(ACCOUNTS_MAX, start), "all have just asked");
        assert!(rates.take(0, start), "one that is known may go on");
        assert!(rates.take(ACCOUNTS_MAX, start + Duration::from_secs(1)));
        assert!(rates.buckets.len() < 10);
    }

    #[test]
    fn shares_are_given_back() {
        let mut shares = Shares::new(2);
        assert!(shares.enter(&"a") && shares.enter(&"a") && !shares.enter(&"a") && shares.enter(&"b"));
        shares.leave(&"a");
        assert!(shares.enter(&"a") && !shares.enter(&"a"));
        for key in ["a", "a", "b"] {
            shares.leave(&key);
        }
        assert!(shares.inside.is_empty(), "nothing is remembered of those that left");
    }
}
