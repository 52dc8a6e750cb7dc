//! Slow start: the share of a new endpoint grows over a window, because its caches are cold. The formula of the
//! growth is Envoy's.

use std::time::Duration;

use weft_config as wire;

use crate::rng::Rng;

/// Most endpoints that one request is offered to. If all of them are at a tenth of their share, half of the requests
/// get to the eighth.
const OFFERS_MAX: usize = 8;

/// How the share of a new endpoint grows.
#[derive(Clone, Copy, Debug)]
pub struct SlowStart {
    window: Duration,
    min_weight: f64,
    exponent: f64,
}

impl SlowStart {
    /// From the document.
    pub fn compile(start: &wire::SlowStart) -> Self {
        let wire::SlowStart { window_ms, min_percent, aggression_permille } = *start;
        Self {
            window: Duration::from_millis(window_ms),
            min_weight: f64::from(min_percent) / 100.0,
            exponent: 1000.0 / f64::from(aggression_permille.max(1)),
        }
    }

    /// The weight of an endpoint, relative to its full share, at this age. `None`: the window is over.
    #[inline]
    pub(crate) fn weight(&self, age: Duration) -> Option<f64> {
        if age >= self.window {
            return None;
        }
        let grown = (age.as_secs_f64() / self.window.as_secs_f64()).powf(self.exponent);
        Some(grown.max(self.min_weight))
    }

    /// Which of `count` endpoints gets a request for which the balancer picked `first`. An endpoint takes an offered
    /// request with a probability of its weight; otherwise the request is offered to another endpoint at random. So
    /// endpoints share by their weights. After `OFFERS_MAX` offers the one with the largest weight takes it.
    pub(crate) fn offer(first: usize, count: usize, weight: impl Fn(usize) -> f64, rng: &mut Rng) -> usize {
        let (mut at, mut best, mut best_weight) = (first, first, 0.0);
        for _ in 0..OFFERS_MAX {
            let own = weight(at);
            if own >= 1.0 || f64::from(rng.below(1_000_000)) < own * 1e6 {
                return at;
            }
            if own > best_weight {
                (best, best_weight) = (at, own);
            }
            if count > 1 {
                let step = rng.below(u32::try_from(count - 1).unwrap_or(u32::MAX)) as usize;
                at = (at + 1 + step) % count;
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_share_by_their_weights() {
        let mut rng = Rng::new(7);
        let mut shares = |weights: &[f64]| {
            let mut counts = vec![0_u32; weights.len()];
            for round in 0..20_000 {
                counts[SlowStart::offer(round % weights.len(), weights.len(), |at| weights[at], &mut rng)] += 1;
            }
            counts.into_iter().map(|count| f64::from(count) / 20_000.0).collect::<Vec<_>>()
        };
        // Expected: in proportion to the weights. A single new endpoint gets its weight of an even share.
        for (weights, expected, within) in [
            (vec![1.0], vec![1.0], 0.0),
            (vec![0.1], vec![1.0], 0.0),
            (vec![1.0, 0.1], vec![0.95, 0.05], 0.01),
            (vec![0.1, 0.1], vec![0.5, 0.5], 0.02),
            (vec![0.6, 0.3], vec![0.67, 0.33], 0.05),
            (vec![1.0, 1.0, 0.1, 0.1], vec![0.455, 0.455, 0.045, 0.045], 0.02),
        ] {
            let shares = shares(&weights);
            let off = shares.iter().zip(&expected).map(|(is, expected): (&f64, &f64)| (is - expected).abs());
            assert!(off.fold(0.0, f64::max) <= within, "{weights:?} gave {shares:?}");
        }
    }

    #[test]
    fn weights_grow_over_the_window() {
        let weight = |aggression_permille, second| {
            let start = wire::SlowStart { window_ms: 100_000, min_percent: 10, aggression_permille };
            SlowStart::compile(&start).weight(Duration::from_secs(second))
        };
        for (aggression, second, expected) in [
            (1_000, 0, Some(0.1)),
            (1_000, 5, Some(0.1)),
            (1_000, 50, Some(0.5)),
            (1_000, 99, Some(0.99)),
            (1_000, 100, None),
            (2_000, 25, Some(0.5)), // the square root
            (500, 50, Some(0.25)),  // the square
        ] {
            match (weight(aggression, second), expected) {
                (Some(weight), Some(expected)) => {
                    assert!((weight - expected).abs() < 1e-9, "{aggression} at {second}: {weight}");
                }
                (weight, expected) => assert_eq!(weight, expected, "{aggression} at {second}"),
            }
        }
    }
}
