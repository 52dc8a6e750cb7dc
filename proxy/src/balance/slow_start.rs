//! A share that grows: an endpoint that has just joined has cold caches, and gets less than it will.

use std::time::Duration;

use weft_config as wire;

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
}

#[cfg(test)]
mod tests {
    use super::*;

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
