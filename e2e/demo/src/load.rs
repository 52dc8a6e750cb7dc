//! The load generator. Workers take request numbers from one counter; number n is due at n / rate. A request is
//! counted at its end: with a response, or with a transport error.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::Incoming;
use serde::Serialize;
use tokio::task::LocalSet;

use crate::client::{Connection, RequestArgs, millis};

/// Number of requests if neither a number nor a duration is given.
const DEFAULT_REQUESTS: u64 = 100;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    request: RequestArgs,
    /// Number of requests. Default: 100, or unlimited with --duration.
    #[arg(long)]
    requests: Option<u64>,
    /// Time during which requests are started. Default: unlimited.
    #[arg(long, value_parser = crate::duration::parse)]
    duration: Option<Duration>,
    /// Concurrent requests, each on its own connection.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,
    /// Maximum of requests started per second. Default: unlimited.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Size of each request's body in bytes.
    #[arg(long, default_value_t = 0)]
    body_bytes: usize,
    /// Use a new connection for each request.
    #[arg(long)]
    connection_per_request: bool,
    /// Print an entry per request too: start (ms), status (0: no response), version, latency (ms).
    #[arg(long)]
    timeline: bool,
}

/// Output of `load`.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    requests: u64,
    /// Requests answered 2xx or 3xx.
    ok: u64,
    /// Requests answered with another status, or without a complete response.
    failed: u64,
    by_status: BTreeMap<u16, u64>,
    /// By `x-version` of the response.
    by_version: BTreeMap<String, u64>,
    /// By `x-pod` of the response.
    by_pod: BTreeMap<String, u64>,
    /// By `weft-reason` of the response: why a proxy answered instead of the service.
    by_reason: BTreeMap<String, u64>,
    /// Requests without a complete response, by error.
    errors: BTreeMap<String, u64>,
    latency_ms: Latency,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeline: Option<Vec<(u64, u16, String, f64)>>,
    #[serde(skip)]
    latencies: Vec<Duration>,
}

#[derive(Debug, Default, Serialize)]
struct Latency {
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

/// The result of one request.
struct Outcome {
    began: Duration,
    latency: Duration,
    result: Result<Head, String>,
}

struct Head {
    status: u16,
    version: String,
    pod: String,
    reason: String,
}

pub(crate) async fn run(args: Args) -> Report {
    let concurrency = args.concurrency;
    let report = Report { timeline: args.timeline.then(Vec::new), ..Report::default() };
    let (args, report, next) = (Rc::new(args), Rc::new(RefCell::new(report)), Rc::new(Cell::new(0)));
    let start = Instant::now();
    let workers = LocalSet::new();
    for _ in 0..concurrency {
        let (args, report, next) = (args.clone(), report.clone(), next.clone());
        workers.spawn_local(async move { work(&args, start, &next, &report).await });
    }
    workers.await;
    let report = report.take();
    report.finish(start.elapsed())
}

async fn work(args: &Args, start: Instant, next: &Cell<u64>, report: &RefCell<Report>) {
    let body = Bytes::from(vec![b'x'; args.body_bytes]);
    let mut connection = None;
    while let Some(due) = args.due(next.replace(next.get() + 1)) {
        tokio::time::sleep_until((start + due).into()).await;
        let began = start.elapsed();
        if args.duration.is_some_and(|duration| began >= duration) {
            return;
        }
        let exchange = exchange(&args.request, body.clone(), &mut connection);
        let result = match tokio::time::timeout(args.request.timeout, exchange).await {
            Ok(result) => result.map_err(|error| format!("{error:#}")),
            Err(_) => Err("timed out".to_owned()),
        };
        if result.is_err() || args.connection_per_request {
            connection = None;
        }
        report.borrow_mut().record(Outcome { began, latency: start.elapsed() - began, result });
    }
}

async fn exchange(args: &RequestArgs, body: Bytes, reusable: &mut Option<Connection>) -> anyhow::Result<Head> {
    let open = match reusable {
        Some(connection) => connection.is_open().await,
        None => false,
    };
    let connection = match reusable {
        Some(connection) if open => connection,
        _ => reusable.insert(Connection::open(&args.url, args.http2).await?),
    };
    let mut response = connection.send(args.request(body)).await?;
    while let Some(frame) = response.body_mut().frame().await {
        frame.context("in the response's body")?;
    }
    Ok(Head::of(&response))
}

/// The percentile of sorted values (nearest rank).
fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    rank.checked_sub(1).and_then(|index| sorted.get(index)).copied().map_or(0.0, fractional_millis)
}

fn fractional_millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

// === impl Args ===

impl Args {
    /// When to start request number `number`; `None` after the last.
    fn due(&self, number: u64) -> Option<Duration> {
        let requests = match (self.requests, self.duration) {
            (Some(requests), _) => requests,
            (None, Some(_)) => u64::MAX,
            (None, None) => DEFAULT_REQUESTS,
        };
        let due = self.rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(number as f64 / f64::from(rate)));
        (number < requests).then_some(due)
    }
}

// === impl Head ===

impl Head {
    fn of(response: &Response<Incoming>) -> Self {
        let header = |name: &str| {
            let value = response.headers().get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let status = response.status().as_u16();
        Self { status, version: header("x-version"), pod: header("x-pod"), reason: header("weft-reason") }
    }
}

// === impl Report ===

impl Report {
    fn record(&mut self, outcome: Outcome) {
        let Outcome { began, latency, result } = outcome;
        self.requests += 1;
        self.latencies.push(latency);
        let (status, version) = match result {
            Ok(Head { status, version, pod, reason }) => {
                let sum = if (200..400).contains(&status) { &mut self.ok } else { &mut self.failed };
                *sum += 1;
                *self.by_status.entry(status).or_default() += 1;
                for (counts, key) in
                    [(&mut self.by_version, &version), (&mut self.by_pod, &pod), (&mut self.by_reason, &reason)]
                {
                    if !key.is_empty() {
                        *counts.entry(key.clone()).or_default() += 1;
                    }
                }
                (status, version)
            }
            Err(error) => {
                self.failed += 1;
                *self.errors.entry(error).or_default() += 1;
                (0, String::new())
            }
        };
        if let Some(timeline) = &mut self.timeline {
            timeline.push((millis(began), status, version, fractional_millis(latency)));
        }
    }

    fn finish(mut self, took: Duration) -> Self {
        let mut sorted = std::mem::take(&mut self.latencies);
        sorted.sort_unstable();
        let [p50, p90, p99, max] = [50, 90, 99, 100].map(|percent| percentile(&sorted, percent));
        self.latency_ms = Latency { p50, p90, p99, max };
        self.seconds = fractional_millis(took) / 1e3;
        if let Some(timeline) = &mut self.timeline {
            timeline.sort_by_key(|(began, ..)| *began);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_values() {
        let sorted: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        for (percent, expected) in [(50, 100.0), (90, 180.0), (99, 198.0), (100, 200.0)] {
            assert_eq!(percentile(&sorted, percent), expected, "{percent}");
        }
        assert_eq!(percentile(&sorted[..1], 50), 1.0, "one value is every percentile");
        assert_eq!(percentile(&[], 99), 0.0, "no values");
    }

    #[test]
    fn every_request_counts_as_ok_or_failed() {
        let mut report = Report { timeline: Some(Vec::new()), ..Report::default() };
        let head = |status| Head { status, version: "v1".into(), pod: "a".into(), reason: String::new() };
        for result in [Ok(head(200)), Ok(head(302)), Ok(head(404)), Ok(head(503)), Err("timed out".to_owned())] {
            report.record(Outcome { began: Duration::ZERO, latency: Duration::from_millis(2), result });
        }
        let report = report.finish(Duration::from_secs(1));
        assert_eq!((report.requests, report.ok, report.failed), (5, 2, 3));
        assert_eq!(report.by_version["v1"], 4);
        assert_eq!(report.errors["timed out"], 1);
        assert!(report.by_reason.is_empty(), "no proxy answered");
        assert_eq!(report.timeline.unwrap().last(), Some(&(0, 0, String::new(), 2.0)));
    }
}
