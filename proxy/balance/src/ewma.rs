//! Peak EWMA, as in Finagle and tower: `cost = response time · (requests in flight + 1)`. The estimate of the response
//! time jumps to a slower sample and decays towards a faster one.

use std::time::Duration;

/// The estimate for an endpoint without samples. Source: Linkerd.
const RTT_DEFAULT_SECONDS: f64 = 0.030;

/// Time constant of the decay after a slow sample. Source: Linkerd.
const DECAY: Duration = Duration::from_secs(10);

/// An estimate of an endpoint's response time: the moving average of its samples, except that a slower sample
/// replaces it.
#[derive(Clone, Copy, Debug)]
pub struct PeakEwma {
    estimate_seconds: f64,
    updated: Duration,
}

impl PeakEwma {
    /// The default estimate. `now` counts from any fixed moment.
    pub fn new(now: Duration) -> Self {
        Self { estimate_seconds: RTT_DEFAULT_SECONDS, updated: now }
    }

    /// Adds a sample.
    #[inline]
    pub fn observe(&mut self, sample: Duration, now: Duration) {
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
    #[inline]
    pub fn observe_at_least(&mut self, sample: Duration, now: Duration) {
        if sample.as_secs_f64() > self.cost(0, now) {
            *self = Self { estimate_seconds: sample.as_secs_f64(), updated: now };
        }
    }

    /// The expected cost of one more request.
    #[inline]
    pub fn cost(&self, in_flight: u32, now: Duration) -> f64 {
        // Decays as if a sample of 0 were added now, so that a slow endpoint without requests is tried again.
        self.estimate_seconds * self.decay(now) * f64::from(in_flight + 1)
    }

    /// The weight of the estimate at `now`.
    #[inline]
    fn decay(&self, now: Duration) -> f64 {
        (-now.saturating_sub(self.updated).as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
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
}
