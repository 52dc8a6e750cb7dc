//! A histogram of request latencies.

use std::fmt;
use std::time::Duration;

/// Buckets for each power of two: values are exact to 1.6 %.
const STEPS: usize = 64;

/// Latencies in nanoseconds, counted in buckets.
pub(crate) struct Latency {
    buckets: Vec<u64>,
    count: u64,
    largest: Duration,
}

impl Latency {
    pub(crate) fn new() -> Self {
        Self { buckets: vec![0; STEPS * STEPS], count: 0, largest: Duration::ZERO }
    }

    pub(crate) fn add(&mut self, time: Duration) {
        self.buckets[bucket(time.as_nanos() as u64)] += 1;
        self.count += 1;
        self.largest = self.largest.max(time);
    }

    /// The latency that this share of the requests did not exceed, in microseconds.
    fn quantile(&self, share: f64) -> f64 {
        let wanted = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.buckets.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        found.map_or(0.0, |bucket| lower_bound(bucket) as f64 / 1e3)
    }
}

impl fmt::Display for Latency {
    /// Writes the members of a JSON object.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, share) in [("p50_us", 0.5), ("p90_us", 0.9), ("p99_us", 0.99), ("p999_us", 0.999)] {
            write!(f, "\"{name}\":{:.1},", self.quantile(share))?;
        }
        write!(f, "\"max_us\":{:.1}", self.largest.as_secs_f64() * 1e6)
    }
}

/// Values below [`STEPS`] have a bucket each; above, the bucket is made of the exponent and the bits after the first.
fn bucket(value: u64) -> usize {
    if value < STEPS as u64 {
        return value as usize;
    }
    let exponent = value.ilog2() as usize;
    let step = (value >> (exponent - 6)) as usize - STEPS;
    ((exponent - 5) * STEPS + step).min(STEPS * STEPS - 1)
}

fn lower_bound(bucket: usize) -> u64 {
    if bucket < STEPS {
        return bucket as u64;
    }
    let exponent = bucket / STEPS + 5;
    ((STEPS + bucket % STEPS) as u64) << (exponent - 6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lower_bounds_are_within_a_64th_of_their_values() {
        for value in [0, 1, 63, 64, 65, 127, 128, 1_000, 123_456, 9_999_999, 12_345_678_901] {
            let lower = lower_bound(bucket(value));
            assert!(lower <= value && value - lower <= value / 64, "{value} falls into the bucket from {lower}");
        }
    }

    #[test]
    fn quantiles_are_exact_to_1_6_percent() {
        let mut latency = Latency::new();
        (1..=1000).for_each(|micros| latency.add(Duration::from_micros(micros)));
        for (share, expected) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let found = latency.quantile(share);
            assert!((expected * 0.984..=expected).contains(&found), "{share}: {found}");
        }
    }
}
