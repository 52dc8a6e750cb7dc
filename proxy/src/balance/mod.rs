//! Load balancing: which endpoint gets the next request. Pure: time and random numbers are passed in.
//!
//! - [`outlier`]: ejection of endpoints that fail.
//! - [`affinity`], [`hash`]: what ties a request to an endpoint, and consistent hashing from keys to endpoints.
//! - [`level`]: priorities: endpoints of the local node and zone first, others as needed.
//! - [`slow_start`]: the growing share of a new endpoint.
//! - [`budget`]: how much retries may add to the load of a Service.
//!
//! Source of the formulas: peak EWMA as in Finagle and tower (`cost = rtt · (in flight + 1)`; the estimate jumps to a
//! slower sample and decays towards a faster one), power of two choices as in Mitzenmacher.

pub(crate) mod affinity;
pub(crate) mod budget;
pub(crate) mod hash;
pub(crate) mod level;
pub(crate) mod outlier;
pub(crate) mod slow_start;

use std::time::Duration;

/// The estimate for an endpoint without samples. Source: Linkerd.
const RTT_DEFAULT_SECONDS: f64 = 0.030;

/// Time constant of the decay after a slow sample. Source: Linkerd.
const DECAY: Duration = Duration::from_secs(10);

/// An estimate of an endpoint's response time: the moving average of its samples, except that a slower sample
/// replaces it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeakEwma {
    estimate_seconds: f64,
    updated: Duration,
}

impl PeakEwma {
    /// The default estimate. `now` counts from any fixed moment.
    pub(crate) fn new(now: Duration) -> Self {
        Self { estimate_seconds: RTT_DEFAULT_SECONDS, updated: now }
    }

    /// Adds a sample.
    pub(crate) fn observe(&mut self, sample: Duration, now: Duration) {
        let sample = sample.as_secs_f64();
        self.estimate_seconds = if sample > self.estimate_seconds {
            sample
        } else {
            let decay = self.decay(now);
            self.estimate_seconds * decay + sample * (1.0 - decay)
        };
        self.updated = now;
    }

    /// Adds the lower bound of a sample, from a request that was cancelled. It can only raise the estimate.
    pub(crate) fn observe_at_least(&mut self, sample: Duration, now: Duration) {
        if sample.as_secs_f64() > self.cost(0, now) {
            *self = Self { estimate_seconds: sample.as_secs_f64(), updated: now };
        }
    }

    /// The expected cost of one more request.
    pub(crate) fn cost(&self, in_flight: u32, now: Duration) -> f64 {
        // Decays as if a sample of 0 were added now, so that a slow endpoint without requests is tried again.
        self.estimate_seconds * self.decay(now) * f64::from(in_flight + 1)
    }

    /// The weight of the estimate at `now`.
    fn decay(&self, now: Duration) -> f64 {
        (-now.saturating_sub(self.updated).as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

/// A pseudo-random number generator (xorshift64*). For balancing only: its numbers can be predicted.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// Generators with different seeds give different numbers.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next number.
    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `bound`, which is above 0.
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        let high = (self.next_u64() >> 32) as u32;
        ((u64::from(high) * u64::from(bound)) >> 32) as u32
    }
}

/// Two different positions below `count`, which is at least 2.
pub(crate) fn pick_two(rng: &mut Rng, count: usize) -> (usize, usize) {
    let bound = u32::try_from(count).unwrap_or(u32::MAX);
    let first = rng.below(bound);
    let second = (first + 1 + rng.below(bound - 1)) % bound;
    (first as usize, second as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peak_ewma_jumps_to_slow_samples_and_decays() {
        let at = Duration::from_secs;
        let mut ewma = PeakEwma::new(at(0));
        ewma.observe(Duration::from_secs(1), at(1));
        assert!((ewma.cost(0, at(1)) - 1.0).abs() < 1e-9);
        ewma.observe(Duration::from_millis(10), at(11));
        let expected = (-1.0f64).exp() + 0.010 * (1.0 - (-1.0f64).exp());
        assert!((ewma.cost(0, at(11)) - expected).abs() < 1e-9, "one time constant later");
        assert!((ewma.cost(3, at(11)) - 4.0 * expected).abs() < 1e-9, "requests in flight count");
        assert!(ewma.cost(0, at(100)) < 0.01, "without samples the cost decays");
    }

    #[test]
    fn cancelled_requests_can_only_raise_the_estimate() {
        let at = Duration::from_secs;
        let mut ewma = PeakEwma::new(at(0));
        ewma.observe_at_least(Duration::from_millis(200), at(0));
        assert!((ewma.cost(0, at(0)) - 0.2).abs() < 1e-9, "above the estimate");
        ewma.observe_at_least(Duration::from_millis(50), at(1));
        assert!((ewma.cost(0, at(1)) - 0.2 * (-0.1f64).exp()).abs() < 1e-9, "below the estimate: ignored");
        ewma.observe_at_least(Duration::from_millis(50), at(20));
        assert!((ewma.cost(0, at(20)) - 0.05).abs() < 1e-9, "above the decayed estimate");
    }

    #[test]
    fn pick_two_gives_each_pair_equally_often() {
        let mut rng = Rng::new(7);
        let mut seen = [[0u32; 3]; 3];
        for _ in 0..9_000 {
            let (first, second) = pick_two(&mut rng, 3);
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
    fn rng_is_uniform() {
        let mut rng = Rng::new(1);
        let mut seen = [0u32; 10];
        for _ in 0..100_000 {
            seen[rng.below(10) as usize] += 1;
        }
        assert!(seen.iter().all(|count| (9_500..10_500).contains(count)), "{seen:?}");
    }
}
