//! A share that grows: an endpoint that has just joined has cold caches, and gets less than it will.

use std::time::Duration;

use weft_config as wire;

use crate::balance::Chance;

/// How many endpoints one request is offered to: with all of them new at a tenth of their share, the eighth is reached by half
/// of the requests.
const OFFERS: usize = 8;

/// How the share of an endpoint that joins grows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlowStart {
    window: Duration,
    least: f64,
    exponent: f64,
}

impl SlowStart {
    pub(crate) fn compile(start: &wire::SlowStart) -> Self {
        let wire::SlowStart { window_ms, min_percent, aggression_permille } = *start;
        Self {
            window: Duration::from_millis(window_ms),
            least: f64::from(min_percent) / 100.0,
            exponent: 1000.0 / f64::from(aggression_permille.max(1)),
        }
    }

    /// The part of its share that an endpoint gets this long after it joined. None: all of it, from now on.
    pub(crate) fn part(&self, age: Duration) -> Option<f64> {
        if age >= self.window {
            return None;
        }
        let grown = (age.as_secs_f64() / self.window.as_secs_f64()).powf(self.exponent);
        Some(grown.max(self.least))
    }

    /// Which of `count` endpoints gets a request that the balancer gave to `first`. An endpoint takes the part of the requests
    /// that `part` says, and leaves the others to any other one, for which the same holds: so those that joined at
    /// different times share in proportion to their parts. What nobody took is for the one with the largest part.
    pub(crate) fn turn(first: usize, count: usize, part: impl Fn(usize) -> f64, chance: &mut Chance) -> usize {
        let (mut at, mut best, mut best_part) = (first, first, 0.0);
        for _ in 0..OFFERS {
            let own = part(at);
            if own >= 1.0 || f64::from(chance.below(1_000_000)) < own * 1e6 {
                return at;
            }
            if own > best_part {
                (best, best_part) = (at, own);
            }
            if count > 1 {
                let step = chance.below(u32::try_from(count - 1).unwrap_or(u32::MAX)) as usize;
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
    fn those_that_joined_share_by_their_parts() {
        let mut chance = Chance::new(7);
        let mut shares = |parts: &[f64]| {
            let mut counts = vec![0_u32; parts.len()];
            for round in 0..20_000 {
                counts[SlowStart::turn(round % parts.len(), parts.len(), |at| parts[at], &mut chance)] += 1;
            }
            counts.into_iter().map(|count| f64::from(count) / 20_000.0).collect::<Vec<_>>()
        };
        // Expected: the parts in proportion. A single one that is new gets its part of an even share.
        for (parts, expected, within) in [
            (vec![1.0], vec![1.0], 0.0),
            (vec![0.1], vec![1.0], 0.0),
            (vec![1.0, 0.1], vec![0.95, 0.05], 0.01),
            (vec![0.1, 0.1], vec![0.5, 0.5], 0.02),
            (vec![0.6, 0.3], vec![0.67, 0.33], 0.05),
            (vec![1.0, 1.0, 0.1, 0.1], vec![0.455, 0.455, 0.045, 0.045], 0.02),
        ] {
            let shares = shares(&parts);
            let off = shares.iter().zip(&expected).map(|(is, expected): (&f64, &f64)| (is - expected).abs());
            assert!(off.fold(0.0, f64::max) <= within, "{parts:?} gave {shares:?}");
        }
    }

    #[test]
    fn a_share_grows_over_the_window() {
        let part = |aggression_permille, second| {
            let start = wire::SlowStart { window_ms: 100_000, min_percent: 10, aggression_permille };
            SlowStart::compile(&start).part(Duration::from_secs(second))
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
            match (part(aggression, second), expected) {
                (Some(part), Some(expected)) => {
                    assert!((part - expected).abs() < 1e-9, "{aggression} at {second}: {part}");
                }
                (part, expected) => assert_eq!(part, expected, "{aggression} at {second}"),
            }
        }
    }
}
