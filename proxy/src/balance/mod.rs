//! Which endpoint takes the next request. Pure: loads in, choice out; time and chance are passed in.
//!
//! - [`outlier`]: endpoints that fail and are left alone for a while.
//! - [`affinity`], [`hash`]: what ties a request to an endpoint, and tables from keys to endpoints.
//! - [`level`]: endpoints of the own zone first, of others as far as needed.
//! - [`slow_start`]: what an endpoint that joins gets.
//! - [`budget`]: how much repeating requests may add to what a Service is sent.
//!
//! Source of the formulas: peak EWMA as in Finagle and tower (`cost = rtt · (in flight + 1)`, where the estimate jumps to
//! a slower sample and decays towards a faster one), power of two choices as in Mitzenmacher.

pub(crate) mod affinity;
pub(crate) mod budget;
pub(crate) mod hash;
pub(crate) mod level;
pub(crate) mod outlier;
pub(crate) mod slow_start;

use std::time::Duration;

/// What an unknown endpoint is taken to need. Source: Linkerd.
const RTT_DEFAULT_SECONDS: f64 = 0.030;

/// How fast a slow sample is forgotten. Source: Linkerd.
const DECAY: Duration = Duration::from_secs(10);

/// An estimate of an endpoint's response time that is quick to believe bad news.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeakEwma {
    estimate_seconds: f64,
    updated: Duration,
}

impl PeakEwma {
    /// Nothing is known yet at `now` (since any fixed moment).
    pub(crate) fn new(now: Duration) -> Self {
        Self { estimate_seconds: RTT_DEFAULT_SECONDS, updated: now }
    }

    /// Takes a sample in.
    pub(crate) fn observe(&mut self, sample: Duration, now: Duration) {
        let sample = sample.as_secs_f64();
        self.estimate_seconds = if sample > self.estimate_seconds {
            sample
        } else {
            let keep = self.keep(now);
            self.estimate_seconds * keep + sample * (1.0 - keep)
        };
        self.updated = now;
    }

    /// Takes in a sample that was not waited for to its end: it would have been this at least, so it speaks for nobody.
    pub(crate) fn at_least(&mut self, sample: Duration, now: Duration) {
        if sample.as_secs_f64() > self.cost(0, now) {
            *self = Self { estimate_seconds: sample.as_secs_f64(), updated: now };
        }
    }

    /// What a further request is expected to cost, with those that are in flight.
    pub(crate) fn cost(&self, in_flight: u32, now: Duration) -> f64 {
        // Read as if a sample of 0 had come: an endpoint that nobody asks gets another chance.
        self.estimate_seconds * self.keep(now) * f64::from(in_flight + 1)
    }

    fn keep(&self, now: Duration) -> f64 {
        (-now.saturating_sub(self.updated).as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

/// A generator of chance, good enough to balance by and nothing else (xorshift64*).
#[derive(Clone, Debug)]
pub(crate) struct Chance(u64);

impl Chance {
    /// Two generators with different seeds give different numbers.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Any number.
    pub(crate) fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `bound`, which is above 0.
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        let high = (self.number() >> 32) as u32;
        ((u64::from(high) * u64::from(bound)) >> 32) as u32
    }
}

/// Two different positions below `count`, which is at least 2.
pub(crate) fn two(chance: &mut Chance, count: usize) -> (usize, usize) {
    let bound = u32::try_from(count).unwrap_or(u32::MAX);
    let first = chance.below(bound);
    let second = (first + 1 + chance.below(bound - 1)) % bound;
    (first as usize, second as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_believed_at_once_and_forgotten_slowly() {
        let at = Duration::from_secs;
        let mut ewma = PeakEwma::new(at(0));
        ewma.observe(Duration::from_secs(1), at(1));
        assert!((ewma.cost(0, at(1)) - 1.0).abs() < 1e-9);
        ewma.observe(Duration::from_millis(10), at(11));
        let expected = (-1.0f64).exp() + 0.010 * (1.0 - (-1.0f64).exp());
        assert!((ewma.cost(0, at(11)) - expected).abs() < 1e-9, "one time constant later");
        assert!((ewma.cost(3, at(11)) - 4.0 * expected).abs() < 1e-9, "requests in flight count");
        assert!(ewma.cost(0, at(100)) < 0.01, "an endpoint that nobody asks looks cheap again");
    }

    #[test]
    fn who_was_not_waited_for_is_no_faster_than_that() {
        let at = Duration::from_secs;
        let mut ewma = PeakEwma::new(at(0));
        ewma.at_least(Duration::from_millis(200), at(0));
        assert!((ewma.cost(0, at(0)) - 0.2).abs() < 1e-9, "slower than it was taken for");
        ewma.at_least(Duration::from_millis(50), at(1));
        assert!((ewma.cost(0, at(1)) - 0.2 * (-0.1f64).exp()).abs() < 1e-9, "less than it is taken for says nothing");
        ewma.at_least(Duration::from_millis(50), at(20));
        assert!((ewma.cost(0, at(20)) - 0.05).abs() < 1e-9, "more than what is left of the estimate");
    }

    #[test]
    fn two_are_different_and_any() {
        let mut chance = Chance::new(7);
        let mut seen = [[0u32; 3]; 3];
        for _ in 0..9_000 {
            let (first, second) = two(&mut chance, 3);
            assert_ne!(first, second);
            seen[first][second] += 1;
        }
        for first in 0..3 {
            for second in (0..3).filter(|second| *second != first) {
                assert!((1_300..1_700).contains(&seen[first][second]), "{seen:?}");
            }
        }
    }

    #[test]
    fn chance_is_even() {
        let mut chance = Chance::new(1);
        let mut seen = [0u32; 10];
        for _ in 0..100_000 {
            seen[chance.below(10) as usize] += 1;
        }
        assert!(seen.iter().all(|count| (9_500..10_500).contains(count)), "{seen:?}");
    }
}
