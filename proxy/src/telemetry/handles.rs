//! One worker's handles of metrics. They are cached by what a request is about: a request compares integers and
//! pointers and formats no label.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use http::{Method, Version};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::labels::{
    self, BytesLabels, CauseLabels, ClientLabels, ConnectionLabels, DirectionLabels, ErrorType, MirrorLabels,
    ReasonValue, RequestLabels, RpcStatus, RpcValue, ServerLabels, ServiceLabels,
};
use super::metrics::Metrics;
use crate::direction::Direction;
use crate::reason::Reason;
use crate::security::Security;
use crate::value::RuleName;

/// Handles that a worker caches. When there are more, it clears the cache.
const HANDLES_MAX: usize = 4096;

/// One worker's handles.
pub(crate) struct Handles {
    metrics: Metrics,
    /// `http` or `https`: what clients use to call this pod.
    inbound_scheme: &'static str,
    inbound: DirectionHandle,
    outbound: DirectionHandle,
    by_request: RefCell<HashMap<RequestKey, RequestHandle>>,
}

/// A completed request.
pub(crate) struct FinishedRequest<'a> {
    pub(crate) direction: Direction,
    pub(crate) security: Security,
    pub(crate) method: &'a Method,
    pub(crate) version: Version,
    /// The rule that decided, if any did.
    pub(crate) rule_name: Option<&'a Arc<RuleName>>,
    pub(crate) service: Option<&'a Arc<str>>,
    pub(crate) status: u16,
    /// Of a gRPC call, if it has one.
    pub(crate) rpc_status: Option<RpcStatus>,
    /// Why the proxy responded itself, if it did.
    pub(crate) reason: Option<Reason>,
    /// Why the response is incomplete, if it is.
    pub(crate) body_error: Option<Reason>,
    pub(crate) duration: Duration,
}

/// A TCP connection that was closed or refused.
pub(crate) struct FinishedConnection<'a> {
    pub(crate) direction: Direction,
    pub(crate) service: Option<&'a str>,
    pub(crate) security: Security,
    pub(crate) rule_name: Option<&'a Arc<RuleName>>,
    /// Why it did not end by itself, if it did not.
    pub(crate) reason: Option<Reason>,
    /// Bytes that it carried upstream.
    pub(crate) sent: u64,
    /// Bytes that it carried back.
    pub(crate) received: u64,
}

struct DirectionHandle {
    accepted: Counter,
    open: Gauge,
}

struct RequestHandle {
    counter: Counter,
    histogram: Histogram,
    /// These keep the names allocated, so that no others get the addresses in the key.
    _rule_name: Option<Arc<RuleName>>,
    _service: Option<Arc<str>>,
}

/// Counts an open connection until it is dropped.
pub(crate) struct Open(Gauge);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct RequestKey {
    direction: Direction,
    security: Security,
    method: &'static str,
    version: Version,
    /// The addresses of the names of rule and service.
    rule: usize,
    service: usize,
    status: u16,
    rpc_status: Option<RpcStatus>,
    reason: Option<Reason>,
    body_error: Option<Reason>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

// === impl Handles ===

impl Handles {
    /// `inbound_tls`: clients call this pod over TLS.
    pub(crate) fn new(metrics: Metrics, inbound_tls: bool) -> Self {
        let of = |direction| {
            let labels = DirectionLabels { direction };
            DirectionHandle {
                accepted: metrics.accepted.get_or_create(&labels),
                open: metrics.open.get_or_create(&labels),
            }
        };
        Self {
            inbound_scheme: if inbound_tls { "https" } else { "http" },
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
        let key = RequestKey {
            direction: request.direction,
            security: request.security,
            method: labels::method(request.method),
            version: request.version,
            rule: request.rule_name.map_or(0, |name| Arc::as_ptr(name) as usize),
            service: request.service.map_or(0, |name| name.as_ptr() as usize),
            status: request.status,
            rpc_status: request.rpc_status,
            reason: request.reason,
            body_error: request.body_error,
        };
        let mut handles = self.by_request.borrow_mut();
        if handles.len() >= HANDLES_MAX {
            handles.clear();
        }
        let handle = handles.entry(key).or_insert_with_key(|key| self.request(key, request));
        handle.counter.inc();
        handle.histogram.observe(request.duration.as_secs_f64());
    }

    /// The handle of a request like this one.
    fn request(&self, key: &RequestKey, request: &FinishedRequest<'_>) -> RequestHandle {
        let service = request.service.map(|name| name.to_string()).unwrap_or_default();
        let labels = RequestLabels {
            direction: key.direction,
            service: service.clone(),
            source: request.rule_name.map(|name| name.text.clone()).unwrap_or_default(),
            reason: ReasonValue(key.reason),
            http_response_status_code: key.status,
            rpc_status_code: RpcValue(key.rpc_status),
            security: key.security.into(),
        };
        let of_http = |url_scheme| ServerLabels {
            service,
            http_request_method: key.method,
            http_response_status_code: key.status,
            error_type: ErrorType::of(key.direction, key.status, key.reason, key.body_error),
            network_protocol_version: labels::protocol_version(key.version),
            url_scheme,
        };
        let histogram = match key.direction {
            Direction::Inbound => self.metrics.server_durations.get_or_create(&of_http(self.inbound_scheme)),
            Direction::Outbound => self.metrics.client_durations.get_or_create(&ClientLabels::new(of_http("http"))),
        };
        RequestHandle {
            counter: self.metrics.requests.get_or_create(&labels),
            histogram,
            _rule_name: request.rule_name.cloned(),
            _service: request.service.cloned(),
        }
    }

    /// Counts input that is not a valid HTTP request.
    pub(crate) fn refused(&self, direction: Direction, security: Security, status: u16) {
        let labels = RequestLabels {
            direction,
            service: String::new(),
            source: String::new(),
            reason: ReasonValue(Some(Reason::BadRequest)),
            http_response_status_code: status,
            rpc_status_code: RpcValue(None),
            security: security.into(),
        };
        self.metrics.requests.get_or_create(&labels).inc();
    }

    /// Counts a retry or a hedged attempt.
    pub(crate) fn retried(&self, service: Option<&str>, reason: &'static str) {
        let labels = CauseLabels { service: service.unwrap_or_default().to_owned(), reason };
        self.metrics.retries.get_or_create(&labels).inc();
    }

    /// Counts a retry or hedged attempt that a limit refused.
    pub(crate) fn retry_refused(&self, service: Option<&str>, reason: &'static str) {
        let labels = CauseLabels { service: service.unwrap_or_default().to_owned(), reason };
        self.metrics.retries_refused.get_or_create(&labels).inc();
    }

    /// Counts a mirrored request.
    pub(crate) fn mirrored(&self, service: &str, source: &str, outcome: &'static str) {
        let labels = MirrorLabels { service: service.to_owned(), source: source.to_owned(), outcome };
        self.metrics.mirrored.get_or_create(&labels).inc();
    }

    /// Counts an attempt sent to a Service's own address (ClusterIP).
    pub(crate) fn by_service_address(&self, service: &str) {
        let labels = ServiceLabels { service: service.to_owned() };
        self.metrics.service_address.get_or_create(&labels).inc();
    }

    /// Counts a TCP connection, and the bytes that it carried.
    pub(crate) fn connection_finished(&self, connection: &FinishedConnection<'_>) {
        let FinishedConnection { direction, service, security, rule_name, reason, sent, received } = *connection;
        let service = service.unwrap_or_default().to_owned();
        let bytes = BytesLabels { direction, service: service.clone() };
        self.metrics.sent.get_or_create(&bytes).inc_by(sent);
        self.metrics.received.get_or_create(&bytes).inc_by(received);
        let source = rule_name.map(|name| name.text.clone()).unwrap_or_default();
        let (reason, security) = (ReasonValue(reason), security.into());
        let labels = ConnectionLabels { direction, service, source, reason, security };
        self.metrics.connections.get_or_create(&labels).inc();
    }
}
