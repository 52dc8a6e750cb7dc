//! The metrics of the data path: names, labels and HELP texts. [`super::handles`] records them.
//!
//! docs/reference/metrics.md is generated from them.

use std::cell::Cell;
use std::sync::atomic::AtomicU64;

use hashbrown::HashSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::labels::{
    BytesLabels, CauseLabels, ClientLabels, ConnectionLabels, DetectorLabels, DirectionLabels, MirrorLabels,
    RequestLabels, ServerLabels, ServiceLabels,
};
use super::series::Series;

/// Upper bounds of the buckets of request durations, in seconds. Source: the conventions for HTTP metrics.
const BUCKETS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// The metrics of the data path. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    pub(super) server_durations: Series<ServerLabels, Histogram>,
    pub(super) client_durations: Series<ClientLabels, Histogram>,
    pub(super) requests: Series<RequestLabels, Counter>,
    pub(super) retries: Series<CauseLabels, Counter>,
    pub(super) retries_refused: Series<CauseLabels, Counter>,
    pub(super) mirrored: Series<MirrorLabels, Counter>,
    pub(super) service_address: Series<ServiceLabels, Counter>,
    ejections: Series<DetectorLabels, Counter>,
    ejected: Series<ServiceLabels, Gauge>,
    healthy: Series<ServiceLabels, Gauge>,
    unhealthy: Series<ServiceLabels, Gauge>,
    pub(super) open: Series<DirectionLabels, Gauge>,
    pub(super) accepted: Series<DirectionLabels, Counter>,
    pub(super) connections: Series<ConnectionLabels, Counter>,
    pub(super) sent: Series<BytesLabels, Counter>,
    pub(super) received: Series<BytesLabels, Counter>,
    /// Memory in use, as a share of the limit.
    pub(crate) memory: Gauge<f64, AtomicU64>,
}

/// One worker's handles for the endpoints of one Service port.
pub(crate) struct EndpointHandles {
    service: String,
    ejections: Series<DetectorLabels, Counter>,
    ejected: Gauge,
    /// What this worker adds to the gauge.
    count: Cell<i64>,
}

// === impl Metrics ===

impl Metrics {
    /// Registers them.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            server_durations: Series::new(|| Histogram::new(BUCKETS)),
            client_durations: Series::new(|| Histogram::new(BUCKETS)),
            requests: Series::default(),
            retries: Series::default(),
            retries_refused: Series::default(),
            mirrored: Series::default(),
            service_address: Series::default(),
            ejections: Series::default(),
            ejected: Series::default(),
            healthy: Series::default(),
            unhealthy: Series::default(),
            open: Series::default(),
            accepted: Series::default(),
            connections: Series::default(),
            sent: Series::default(),
            received: Series::default(),
            memory: Gauge::default(),
        };
        let Self {
            server_durations,
            client_durations,
            requests,
            retries,
            retries_refused,
            mirrored,
            service_address,
            ejections,
            ejected,
            healthy,
            unhealthy,
            open,
            accepted,
            connections,
            sent,
            received,
            memory,
        } = metrics.clone();
        registry.register_with_unit(
            "http_server_request_duration",
            "Duration of requests to this pod, from the head of the request to the end of the response",
            Unit::Seconds,
            server_durations,
        );
        registry.register_with_unit(
            "http_client_request_duration",
            "Duration of requests from this pod, from the head of the request to the end of the response, with retries",
            Unit::Seconds,
            client_durations,
        );
        let registry = registry.sub_registry_with_prefix("weft");
        registry.register("requests", "Completed requests, by the rule that decided them", requests);
        registry.register("retries", "Retries and hedged attempts, by cause", retries);
        registry.register(
            "retries_refused",
            "Retries and hedged attempts that a rule wanted, by the limit that refused them",
            retries_refused,
        );
        registry.register("mirrored_requests", "Mirrored requests, by outcome", mirrored);
        registry.register(
            "service_address_attempts",
            "Attempts sent to the Service's own address (ClusterIP), because no endpoint could be used",
            service_address,
        );
        registry.register("outlier_ejections", "Ejections of endpoints by outlier detection, by detector", ejections);
        registry.register("endpoints_ejected", "Endpoints ejected by outlier detection, summed over workers", ejected);
        registry.register(
            "endpoints_healthy",
            "Endpoints that requests may go to and that do not fail their health checks, of Service ports in use",
            healthy,
        );
        registry.register("endpoints_unhealthy", "Endpoints that fail their health checks", unhealthy);
        registry.register("downstream_connections_open", "Open connections from clients", open);
        registry.register("downstream_connections_accepted", "Accepted connections from clients", accepted);
        registry.register(
            "tcp_connections",
            "TCP connections that were closed, or refused before they carried data",
            connections,
        );
        registry.register("tcp_sent_bytes", "Bytes that closed TCP connections sent to the server", sent);
        registry.register("tcp_received_bytes", "Bytes that closed TCP connections received from the server", received);
        registry.register(
            "memory_utilization_ratio",
            "Memory in use, as a share of the container's limit; 0 without a limit",
            memory,
        );
        metrics
    }

    /// The rules that series are of.
    pub(crate) fn sources(&self) -> HashSet<String> {
        let mut sources = HashSet::new();
        let mut add = |source: &String| {
            if !sources.contains(source) {
                sources.insert(source.clone());
            }
        };
        self.requests.for_each(|labels| add(&labels.source));
        self.mirrored.for_each(|labels| add(&labels.source));
        self.connections.for_each(|labels| add(&labels.source));
        sources
    }

    /// Removes the series of Services and rules that no longer exist. See [`Series::sweep`].
    pub(crate) fn sweep(&self, is_service: impl Fn(&str) -> bool, is_source: impl Fn(&str) -> bool) {
        let Self {
            server_durations,
            client_durations,
            requests,
            retries,
            retries_refused,
            mirrored,
            service_address,
            ejections,
            ejected,
            healthy,
            unhealthy,
            // Not of a Service.
            open: _,
            accepted: _,
            connections,
            sent,
            received,
            memory: _,
        } = self;
        let is_service = |name: &str| name.is_empty() || is_service(name);
        let is_source = |name: &str| name.is_empty() || is_source(name);
        server_durations.sweep(|labels| is_service(&labels.service));
        client_durations.sweep(|labels| is_service(&labels.request.service));
        requests.sweep(|labels| is_service(&labels.service) && is_source(&labels.source));
        retries.sweep(|labels| is_service(&labels.service));
        retries_refused.sweep(|labels| is_service(&labels.service));
        mirrored.sweep(|labels| is_service(&labels.service) && is_source(&labels.source));
        service_address.sweep(|labels| is_service(&labels.service));
        ejections.sweep(|labels| is_service(&labels.service));
        ejected.sweep(|labels| is_service(&labels.service));
        healthy.sweep(|labels| is_service(&labels.service));
        unhealthy.sweep(|labels| is_service(&labels.service));
        connections.sweep(|labels| is_service(&labels.service) && is_source(&labels.source));
        sent.sweep(|labels| is_service(&labels.service));
        received.sweep(|labels| is_service(&labels.service));
    }

    /// Handles for the endpoints of one Service port.
    pub(crate) fn endpoints(&self, service: &str) -> EndpointHandles {
        let labels = ServiceLabels { service: service.to_owned() };
        EndpointHandles {
            ejected: self.ejected.get_or_create(&labels),
            ejections: self.ejections.clone(),
            service: labels.service,
            count: Cell::new(0),
        }
    }

    /// Sets the number of a Service port's endpoints that requests may go to.
    pub(crate) fn set_healthy(&self, service: &str, count: usize) {
        let labels = ServiceLabels { service: service.to_owned() };
        self.healthy.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Sets the number of a Service port's endpoints that fail their health checks.
    pub(crate) fn set_unhealthy(&self, service: &str, count: usize) {
        let labels = ServiceLabels { service: service.to_owned() };
        self.unhealthy.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}

// === impl EndpointHandles ===

impl EndpointHandles {
    /// Counts an ejection.
    pub(crate) fn ejected(&self, detector: &'static str) {
        self.ejections.get_or_create(&DetectorLabels { service: self.service.clone(), detector }).inc();
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
