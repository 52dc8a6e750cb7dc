//! Metrics: their names, labels and HELP texts, and the handles that requests use.
//!
//! Label values come from configuration only, never from what a client sends, so that clients cannot create series.
//! Each worker caches handles by rule, service and status: a request compares integers and pointers and formats no
//! label.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use hashbrown::HashMap;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::direction::Direction;
use crate::reason::Reason;

/// Upper bounds of the buckets of `request_duration_seconds`.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Handles that a worker caches. When there are more, it clears the cache.
const HANDLES_MAX: usize = 4096;

/// The metrics of the data path. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    requests: Family<RequestLabels, Counter>,
    durations: Family<ServiceLabels, Histogram, fn() -> Histogram>,
    retries: Family<ReasonLabels, Counter>,
    mirrored: Family<MirrorLabels, Counter>,
    retries_refused: Family<ReasonLabels, Counter>,
    service_address: Family<NameLabels, Counter>,
    ejections: Family<ReasonLabels, Counter>,
    ejected: Family<NameLabels, Gauge>,
    unhealthy: Family<NameLabels, Gauge>,
    pub(crate) memory: Gauge,
    open: Family<DirectionLabels, Gauge>,
    accepted: Family<DirectionLabels, Counter>,
    connections: Family<ConnectionLabels, Counter>,
    bytes: Family<BytesLabels, Counter>,
}

/// The metrics of configuration.
#[derive(Clone, Debug)]
pub(crate) struct ConfigMetrics {
    generations: Family<DocumentLabels, Gauge<u64, AtomicU64>>,
    pub(crate) refusals: Counter,
    pub(crate) stale: Gauge,
    pub(crate) source_errors: Counter,
}

/// One worker's handles for the endpoints of one Service port.
pub(crate) struct EndpointHandles {
    service: String,
    ejections: Family<ReasonLabels, Counter>,
    ejected: Gauge,
    /// What this worker adds to the gauge.
    count: Cell<i64>,
}

/// One worker's handles.
pub(crate) struct Handles {
    metrics: Metrics,
    inbound: DirectionHandle,
    outbound: DirectionHandle,
    by_request: RefCell<HashMap<RequestKey, RequestHandle>>,
}

/// A completed request.
pub(crate) struct FinishedRequest<'a> {
    pub(crate) direction: Direction,
    /// The rule that decided; unique.
    pub(crate) rule: u64,
    /// The name of that rule, if any decided.
    pub(crate) source: Option<&'a str>,
    pub(crate) service: Option<&'a Arc<str>>,
    pub(crate) status: u16,
    /// Why the proxy responded itself, if it did.
    pub(crate) reason: Option<Reason>,
    pub(crate) duration: Duration,
}

struct DirectionHandle {
    accepted: Counter,
    open: Gauge,
}

struct RequestHandle {
    counter: Counter,
    histogram: Histogram,
    /// Keeps the name allocated, so that no other name gets the address in the key.
    _service: Option<Arc<str>>,
}

/// Counts an open connection until it is dropped.
pub(crate) struct Open(Gauge);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct RequestKey {
    direction: Direction,
    rule: u64,
    /// The address of the name.
    service: usize,
    status: u16,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    direction: Direction,
    service: String,
    source: String,
    reason: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceLabels {
    direction: Direction,
    service: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    service: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MirrorLabels {
    service: String,
    source: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NameLabels {
    service: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabels {
    direction: Direction,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConnectionLabels {
    direction: Direction,
    service: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BytesLabels {
    direction: Direction,
    service: String,
    way: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DocumentLabels {
    document: String,
}

// === impl Metrics ===

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            retries: Family::default(),
            mirrored: Family::default(),
            retries_refused: Family::default(),
            service_address: Family::default(),
            ejections: Family::default(),
            ejected: Family::default(),
            unhealthy: Family::default(),
            memory: Gauge::default(),
            open: Family::default(),
            accepted: Family::default(),
            connections: Family::default(),
            bytes: Family::default(),
        };
        let Self {
            requests,
            durations,
            retries,
            mirrored,
            retries_refused,
            service_address,
            ejections,
            ejected,
            unhealthy,
            memory,
            open,
            accepted,
            connections,
            bytes,
        } = metrics.clone();
        registry.register("requests", "Completed requests, by the rule that decided them", requests);
        registry.register(
            "request_duration_seconds",
            "Time from a request's head to the end of its response",
            durations,
        );
        registry.register("retries", "Retries and hedged attempts, by cause", retries);
        registry.register("mirrored_requests", "Mirrored requests, by outcome", mirrored);
        registry.register(
            "retries_refused",
            "Retries and hedged attempts that a rule wanted, by the limit that refused them",
            retries_refused,
        );
        registry.register(
            "service_address_attempts",
            "Attempts sent to the Service's own address (ClusterIP), because no endpoint could be used",
            service_address,
        );
        registry.register("outlier_ejections", "Endpoint ejections, by detector", ejections);
        registry.register("endpoints_ejected", "Ejected endpoints, summed over workers", ejected);
        registry.register("endpoints_unwell", "Endpoints that fail their health checks", unhealthy);
        registry.register(
            "memory_percent",
            "Memory in use, in percent of the container's limit; 0 without a limit",
            memory,
        );
        registry.register("connections_open", "Open connections from downstream", open);
        registry.register("connections_accepted", "Accepted connections from downstream", accepted);
        registry.register(
            "tcp_connections",
            "TCP connections that were closed, or refused before they carried data",
            connections,
        );
        registry.register("tcp_bytes", "Bytes relayed by closed TCP connections", bytes);
        metrics
    }

    /// Handles for the endpoints of one Service port.
    pub(crate) fn endpoints(&self, service: &str) -> EndpointHandles {
        let labels = NameLabels { service: service.to_owned() };
        EndpointHandles {
            ejected: self.ejected.get_or_create(&labels).clone(),
            ejections: self.ejections.clone(),
            service: labels.service,
            count: Cell::new(0),
        }
    }

    /// Sets the number of a Service port's endpoints that fail their health checks.
    pub(crate) fn set_unhealthy(&self, service: &str, count: usize) {
        let labels = NameLabels { service: service.to_owned() };
        self.unhealthy.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

// === impl ConfigMetrics ===

impl ConfigMetrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            generations: Family::default(),
            refusals: Counter::default(),
            stale: Gauge::default(),
            source_errors: Counter::default(),
        };
        let Self { generations, refusals, stale, source_errors } = metrics.clone();
        registry.register("config_generation", "Generation in use of each configuration document", generations);
        registry.register("config_refusals", "Rejected versions of configuration documents", refusals);
        registry.register("config_troubled", "Configuration documents whose newest version is not in use", stale);
        registry.register("config_source_errors", "Failed reads of the configuration source", source_errors);
        metrics
    }

    pub(crate) fn generation(&self, document: &str, generation: u64) {
        self.generations.get_or_create(&DocumentLabels { document: document.to_owned() }).set(generation);
    }
}

// === impl EndpointHandles ===

impl EndpointHandles {
    /// Counts an ejection.
    pub(crate) fn ejected(&self, reason: &'static str) {
        self.ejections.get_or_create(&ReasonLabels { service: self.service.clone(), reason }).inc();
    }

    /// Sets the number of endpoints that this worker has ejected.
    pub(crate) fn set_ejected(&self, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.ejected.inc_by(count - self.count.replace(count));
    }
}

impl Drop for EndpointHandles {
    fn drop(&mut self) {
        self.set_ejected(0);
    }
}

// === impl Handles ===

impl Handles {
    pub(crate) fn new(metrics: Metrics) -> Self {
        let of = |direction| {
            let labels = DirectionLabels { direction };
            DirectionHandle {
                accepted: metrics.accepted.get_or_create(&labels).clone(),
                open: metrics.open.get_or_create(&labels).clone(),
            }
        };
        Self {
            inbound: of(Direction::Inbound),
            outbound: of(Direction::Outbound),
            by_request: RefCell::default(),
            metrics,
        }
    }

    /// Counts a connection from downstream as open until the result is dropped.
    pub(crate) fn connection(&self, direction: Direction) -> Open {
        let DirectionHandle { accepted, open } = match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        };
        accepted.inc();
        open.inc();
        Open(open.clone())
    }

    /// Counts a completed request.
    pub(crate) fn finished(&self, request: &FinishedRequest<'_>) {
        let FinishedRequest { direction, rule, source, service, status, reason, duration } = *request;
        let key = RequestKey {
            direction,
            rule,
            service: service.map_or(0, |name| name.as_ptr() as usize),
            status,
            reason: reason.map_or("", |reason| reason.as_str()),
        };
        let mut handles = self.by_request.borrow_mut();
        if handles.len() >= HANDLES_MAX {
            handles.clear();
        }
        let handle = handles.entry(key).or_insert_with_key(|key| {
            let name = service.map(|name| name.to_string()).unwrap_or_default();
            let labels = RequestLabels {
                direction: key.direction,
                service: name.clone(),
                source: source.unwrap_or_default().to_owned(),
                reason: key.reason,
                status: key.status,
            };
            let service_labels = ServiceLabels { direction: key.direction, service: name };
            RequestHandle {
                counter: self.metrics.requests.get_or_create(&labels).clone(),
                histogram: self.metrics.durations.get_or_create(&service_labels).clone(),
                _service: service.cloned(),
            }
        });
        handle.counter.inc();
        handle.histogram.observe(duration.as_secs_f64());
    }

    /// Counts input that is not a valid HTTP request.
    pub(crate) fn refused(&self, direction: Direction, status: u16) {
        let labels = RequestLabels {
            direction,
            service: String::new(),
            source: String::new(),
            reason: Reason::BadRequest.as_str(),
            status,
        };
        self.metrics.requests.get_or_create(&labels).inc();
    }

    /// Counts a retry or a hedged attempt.
    pub(crate) fn retried(&self, service: Option<&str>, reason: &'static str) {
        let labels = ReasonLabels { service: service.unwrap_or_default().to_owned(), reason };
        self.metrics.retries.get_or_create(&labels).inc();
    }

    /// Counts a mirrored request.
    pub(crate) fn mirrored(&self, service: &str, source: &str, outcome: &'static str) {
        let labels = MirrorLabels { service: service.to_owned(), source: source.to_owned(), outcome };
        self.metrics.mirrored.get_or_create(&labels).inc();
    }

    /// Counts an attempt sent to a Service's own address (ClusterIP).
    pub(crate) fn by_service_address(&self, service: &str) {
        let labels = NameLabels { service: service.to_owned() };
        self.metrics.service_address.get_or_create(&labels).inc();
    }

    /// Counts a retry or hedged attempt that a limit refused.
    pub(crate) fn retry_refused(&self, service: Option<&str>, reason: &'static str) {
        let labels = ReasonLabels { service: service.unwrap_or_default().to_owned(), reason };
        self.metrics.retries_refused.get_or_create(&labels).inc();
    }

    /// Counts a TCP connection that was closed or refused, and the bytes that it carried upstream and back.
    pub(crate) fn connection_finished(
        &self,
        direction: Direction,
        service: Option<&str>,
        reason: Option<Reason>,
        sent: u64,
        received: u64,
    ) {
        let service = service.unwrap_or_default().to_owned();
        let reason = reason.map_or("", |reason| reason.as_str());
        let labels = ConnectionLabels { direction, service: service.clone(), reason };
        self.metrics.connections.get_or_create(&labels).inc();
        for (way, count) in [("sent", sent), ("received", received)] {
            let labels = BytesLabels { direction, service: service.clone(), way };
            self.metrics.bytes.get_or_create(&labels).inc_by(count);
        }
    }
}
