//! Summaries of responses by outcome.

use std::collections::BTreeMap;

use super::{Outcome, Stream};

/// Count, share and latency of one outcome of a client's requests.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The outcome.
    pub outcome: Outcome,
    /// Number of requests.
    pub count: usize,
    /// Share of all the client's requests.
    pub share: f64,
    /// Median latency.
    pub median_ms: f64,
    /// 99th percentile of the latency.
    pub p99_ms: f64,
}

/// Summarises the requests that were sent within `[from_ms, until_ms)`.
pub fn summarise(stream: &Stream, from_ms: f64, until_ms: f64) -> Vec<Row> {
    let mut latencies: BTreeMap<&Outcome, Vec<f64>> = BTreeMap::new();
    for answer in stream.answers.iter().filter(|answer| (from_ms..until_ms).contains(&answer.sent_ms)) {
        latencies.entry(&answer.outcome).or_default().push(answer.latency_ms);
    }
    let all: usize = latencies.values().map(Vec::len).sum();
    latencies
        .into_iter()
        .map(|(outcome, mut latencies)| {
            latencies.sort_by(f64::total_cmp);
            Row {
                outcome: outcome.clone(),
                count: latencies.len(),
                share: latencies.len() as f64 / all as f64,
                median_ms: quantile(&latencies, 0.5),
                p99_ms: quantile(&latencies, 0.99),
            }
        })
        .collect()
}

/// The quantile of sorted values (nearest rank): the smallest value that at least `share` of them do not exceed.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::Answer;

    #[test]
    fn only_requests_sent_in_the_window_are_counted() {
        let answer = |sent_ms, version: &str| Answer {
            sent_ms,
            latency_ms: sent_ms / 10.0,
            outcome: Outcome::Version(version.to_owned()),
        };
        let answers =
            vec![answer(0.0, "v1"), answer(10.0, "v1"), answer(20.0, "v2"), answer(30.0, "v1"), answer(40.0, "v2")];
        let stream = Stream { answers, ..Stream::default() };
        let rows = summarise(&stream, 10.0, 40.0);
        assert_eq!(rows.len(), 2, "{rows:?}");
        assert_eq!((rows[0].outcome.label(), rows[0].count), ("v1".to_owned(), 2));
        assert!((rows[0].share - 2.0 / 3.0).abs() < 1e-9, "{rows:?}");
        assert_eq!((rows[0].median_ms, rows[0].p99_ms), (1.0, 3.0));
    }

    #[test]
    fn quantiles_are_measured_values() {
        let sorted: Vec<f64> = (1..=100).map(f64::from).collect();
        for (share, expected) in [(0.0, 1.0), (0.5, 50.0), (0.99, 99.0), (1.0, 100.0)] {
            assert_eq!(quantile(&sorted, share), expected, "{share}");
        }
        assert!(quantile(&[], 0.5).is_nan());
    }
}
