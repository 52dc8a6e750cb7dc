//! Gauges of what exists in this process: tasks, requests, HTTP/2 streams and connections to endpoints. A count that
//! stays up when no client is connected shows a leak.
//!
//! Each thread counts on a cache line of its own; a scrape adds them up.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::task::JoinHandle;

/// What is counted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Task,
    Request,
    /// An HTTP/2 stream that a client opened.
    DownstreamStream,
    /// An HTTP/2 stream to an endpoint.
    UpstreamStream,
    UpstreamHttp1,
    /// An idle HTTP/1.1 connection in a pool; also counted as `UpstreamHttp1`.
    UpstreamHttp1Idle,
    UpstreamHttp2,
}

const KINDS: usize = 7;

/// One thread's counts, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Counts([AtomicI64; KINDS]);

static ALL: Mutex<Vec<Arc<Counts>>> = Mutex::new(Vec::new());

thread_local! {
    static OWN: Arc<Counts> = {
        let own = Arc::<Counts>::default();
        ALL.lock().unwrap_or_else(PoisonError::into_inner).push(own.clone());
        own
    };
}

/// Counts one until it is dropped.
#[derive(Debug)]
pub(crate) struct Alive(Kind);

pin_project! {
    /// A future that counts as a task. Not an async block, which would be twice the size of the future.
    struct Task<F> {
        #[pin]
        future: F,
        _alive: Alive,
    }
}

/// Spawns a task on this worker's thread, and counts it.
pub(crate) fn spawn<F: Future + 'static>(future: F) -> JoinHandle<F::Output> {
    tokio::task::spawn_local(Task { future, _alive: Alive::new(Kind::Task) })
}

/// Adds to the HTTP/2 streams that clients opened.
pub(crate) fn count_downstream_streams(by: i64) {
    add(Kind::DownstreamStream, by);
}

/// Adds to the HTTP/2 streams to endpoints.
pub(crate) fn count_upstream_streams(by: i64) {
    add(Kind::UpstreamStream, by);
}

/// Registers the gauges of this module.
pub(crate) fn register(registry: &mut Registry) {
    registry.sub_registry_with_prefix("weft").register_collector(Box::new(Totals));
}

fn add(kind: Kind, count: i64) {
    // Does nothing once a thread's locals are destroyed. Only the thread writes its counts, so no atomic addition is
    // needed.
    let _ = OWN.try_with(|own| {
        let counter = &own.0[kind as usize];
        counter.store(counter.load(Ordering::Relaxed) + count, Ordering::Relaxed);
    });
}

fn total(kind: Kind) -> i64 {
    let all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    all.iter().map(|counts| counts.0[kind as usize].load(Ordering::Relaxed)).sum()
}

// === impl Task ===

impl<F: Future> Future for Task<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.project().future.poll(cx)
    }
}

// === impl Alive ===

impl Alive {
    pub(crate) fn new(kind: Kind) -> Self {
        add(kind, 1);
        Self(kind)
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        add(self.0, -1);
    }
}

/// Gauges of what this module counts.
#[derive(Debug)]
struct Totals;

impl Collector for Totals {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, kind) in [
            ("tasks_alive", "Tasks of the workers that have not ended", Kind::Task),
            ("requests_in_flight", "Requests whose response is not complete", Kind::Request),
            ("upstream_connections_idle", "Idle HTTP/1.1 connections to endpoints", Kind::UpstreamHttp1Idle),
        ] {
            let gauge = ConstGauge::new(total(kind));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        for (name, help, label, series) in [
            (
                "http2_streams_open",
                "Open HTTP/2 streams",
                "side",
                [("downstream", Kind::DownstreamStream), ("upstream", Kind::UpstreamStream)],
            ),
            (
                "upstream_connections_open",
                "Open connections to endpoints",
                "protocol",
                [("http1", Kind::UpstreamHttp1), ("http2", Kind::UpstreamHttp2)],
            ),
        ] {
            let series = series.map(|(value, kind)| ([(label, value)], ConstGauge::new(total(kind))));
            let mut family = encoder.encode_descriptor(name, help, None, series[0].1.metric_type())?;
            for (labels, gauge) in &series {
                gauge.encode(family.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;

    use super::*;

    #[test]
    fn gauges_count_until_drop_on_any_thread() {
        let mut registry = Registry::default();
        register(&mut registry);
        // No other test in this process has idle connections.
        let line = |count: u32| format!("\nweft_upstream_connections_idle {count}\n");
        let page = || {
            let mut page = String::new();
            text::encode(&mut page, &registry).expect("encodes");
            page
        };
        let alive = std::thread::spawn(|| Alive::new(Kind::UpstreamHttp1Idle)).join().expect("no panic");
        assert!(page().contains(&line(1)), "{}", page());
        assert!(page().contains("weft_http2_streams_open{side=\"upstream\"}"), "{}", page());
        drop(alive);
        assert!(page().contains(&line(0)), "counted by another thread, dropped by this one: {}", page());
    }
}
