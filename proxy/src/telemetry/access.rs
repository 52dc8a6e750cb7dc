//! The access log: one event (target `access`) for each request and each TCP connection, by default only for those
//! that failed. `source` is the object and rule that decided the outcome, `reason` why the proxy itself responded or
//! closed. docs/reference/access-log.md has all fields.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use http::header::{HeaderMap, HeaderValue};
use http::{Method, Uri, Version};
use weft_codec::http1::parse::BadMessage;
use weft_config::bootstrap::AccessLog;
use weft_identity::SpiffeId;

use super::RpcStatus;
use super::handles::FinishedConnection;
use crate::downstream::Downstream;
use crate::judge::Refusal;
use crate::reason::Reason;
use crate::security::Security;
use crate::tcp::{RelayError, Relayed};
use crate::tls;
use crate::value::RuleName;

/// The value of `via` for the Service's own address (ClusterIP), where the kernel picks the endpoint.
pub(crate) const SERVICE_ADDRESS: &str = "service-address";

/// The header in which clients, and proxies at the edge, give a request an id. Source: Envoy.
const REQUEST_ID: &str = "x-request-id";

/// Headers with a trace id, the first of which is used. Sources: W3C Trace Context, and Zipkin's B3 in its single and
/// multiple form.
const TRACEPARENT: &str = "traceparent";
const B3: &str = "b3";
const B3_TRACE_ID: &str = "x-b3-traceid";

/// Longest request id that is logged, in bytes. A client may send any.
const REQUEST_ID_MAX: usize = 128;

/// All fields, with the events that may have them and their meaning, for docs/reference/access-log.md.
#[cfg(test)]
pub(super) const FIELDS: &[(&str, &str, &str)] = &[
    ("direction", "both", "`inbound`: to the pod of this proxy; `outbound`: from it"),
    ("src.addr", "both", "address of the client"),
    ("dst.addr", "both", "address that the client connected to, before redirection"),
    ("dst.service", "both", "Service port, `namespace/service:port`; inbound: the one that this pod is an endpoint of"),
    ("dst.endpoint", "both", "address that the request or connection was sent to last"),
    (
        "security",
        "both",
        "`mtls`: encrypted, and both sides proved who they are; `plaintext`; `passthrough`: not to the mesh; `tls`: by a \
         certificate of a proxy outside of a pod. Inbound: from the client; outbound: to the endpoint",
    ),
    (
        "plaintext",
        "both",
        "why: `permissive`: the client proved no identity, and need not; `declared`: a policy names its address for this port; \
         `outside-mesh`: the endpoint has no identity; `excluded`: the endpoint's pod excludes the port from its proxy; \
         `same-pod`: it does not leave the pod; `no-identity`: this proxy has none",
    ),
    ("src.identity", "both", "who the client is, by its certificate; inbound only"),
    (
        "dst.identity",
        "connection",
        "who the pod is, by its certificate; outbound, if the client connected to its address",
    ),
    ("via", "both", "`service-address`: the Service's own address was used instead of an endpoint"),
    (
        "source",
        "both",
        "object and rule that decided, as `MeshRoute/namespace/name/rule`; an HTTPRoute, MeshPolicy, ... likewise",
    ),
    ("reason", "both", "why this proxy responded itself, or closed the connection ([reasons](reasons.md))"),
    ("upstream_reason", "request", "why the proxy beside the endpoint responded itself ([reasons](reasons.md))"),
    ("error", "both", "what is wrong with input that is not an HTTP request, or the I/O error behind `reason`"),
    ("server_name", "connection", "server name (SNI) of a TLS client, if TLS rules had to match it"),
    ("request_id", "request", "the header `x-request-id`, if it is at most 128 bytes long"),
    ("trace_id", "request", "trace id from `traceparent`, else from `b3` or `x-b3-traceid`"),
    ("version", "request", "version of HTTP that the client speaks"),
    ("method", "request", "method"),
    ("host", "request", "host that the client names"),
    ("path", "request", "path without query"),
    ("status", "request", "status of the response; 499: the client disconnected before there was one"),
    ("rpc_status_code", "request", "status of a gRPC call, from the head or the trailers of the response"),
    ("attempts", "request", "attempts, with retries and hedged ones"),
    ("hedges", "request", "hedged attempts, if any"),
    ("retry_refused", "request", "the limit that refused a retry or hedged attempt: `budget` or `overflow`"),
    ("fault_delay_ms", "request", "delay that a fault filter added, in milliseconds"),
    ("body_error", "request", "why the response broke off after its head ([reasons](reasons.md))"),
    ("response_complete", "request", "whether the whole response was sent"),
    ("response_bytes", "request", "bytes of the response's body"),
    ("sent_bytes", "connection", "bytes sent to the server"),
    ("received_bytes", "connection", "bytes received from the server"),
    (
        "duration_ms",
        "both",
        "time from the head of the request, or the start of the connection, to the end, in milliseconds",
    ),
];

/// The log entry of a TCP connection, or of any connection that was refused before it carried data.
pub(crate) struct ConnectionLog {
    pub(crate) downstream: Rc<Downstream>,
    pub(crate) cluster: Option<Arc<str>>,
    pub(crate) endpoint: Option<SocketAddr>,
    /// Of the connection from downstream if that is from another pod, else of the one to upstream.
    pub(crate) security: Security,
    /// Who is at the endpoint, if that is an address that the client connected to and has proven it.
    pub(crate) server: Option<Box<SpiffeId>>,
    /// How the connection was routed, if not by picking an endpoint.
    pub(crate) via: Option<&'static str>,
    pub(crate) rule_name: Option<Arc<RuleName>>,
    pub(crate) reason: Option<Reason>,
    /// The error behind `reason`, if there is one.
    pub(crate) error: Option<Box<dyn std::error::Error>>,
    /// The server name (SNI) of a TLS client, if a rule had to match it.
    pub(crate) server_name: Option<String>,
    /// Bytes sent upstream.
    pub(crate) sent: u64,
    /// Bytes received from upstream.
    pub(crate) received: u64,
    started: Instant,
}

/// What metrics and the access log record of a request.
pub(crate) struct RequestLog {
    pub(crate) downstream: Rc<Downstream>,
    pub(crate) started: tokio::time::Instant,
    pub(crate) version: Version,
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) host: Option<HeaderValue>,
    pub(crate) rule_name: Option<Arc<RuleName>>,
    pub(crate) cluster: Option<Arc<str>>,
    pub(crate) endpoint: Option<SocketAddr>,
    /// As for connections.
    pub(crate) security: Security,
    /// How `endpoint` was reached, if the proxy did not pick it.
    pub(crate) via: Option<&'static str>,
    /// All attempts, hedges included.
    pub(crate) attempts: u32,
    pub(crate) hedges: u32,
    /// What denied a retry that the rule would have made.
    pub(crate) retry_refused: Option<&'static str>,
    pub(crate) status: u16,
    pub(crate) reason: Option<Reason>,
    /// The delay that a fault filter added.
    pub(crate) fault_delay: Option<Duration>,
    /// The error after the head of the response was sent.
    pub(crate) body_error: Option<Reason>,
    /// The whole response was sent.
    pub(crate) response_complete: bool,
    pub(crate) grpc: bool,
    /// The status of a gRPC call, from the head or the trailers of the response.
    pub(crate) rpc_status: Option<RpcStatus>,
    /// Boxed, because few requests have any.
    pub(crate) headers: Option<Box<LoggedHeaders>>,
}

/// Header values for the access log.
#[derive(Debug, Default)]
pub(crate) struct LoggedHeaders {
    request_id: Option<HeaderValue>,
    /// Of [`TRACEPARENT`], else [`B3`], else [`B3_TRACE_ID`].
    trace: Option<HeaderValue>,
    /// The reason in a response that the proxy beside the endpoint generated.
    upstream_reason: Option<HeaderValue>,
}

impl ConnectionLog {
    pub(crate) fn new(downstream: &Rc<Downstream>) -> Self {
        Self {
            downstream: downstream.clone(),
            cluster: None,
            endpoint: None,
            security: downstream.security(),
            server: None,
            via: None,
            rule_name: None,
            reason: None,
            error: None,
            server_name: None,
            sent: 0,
            received: 0,
            started: Instant::now(),
        }
    }

    /// Records why the connection is not, or no longer, allowed.
    pub(crate) fn refused(&mut self, refusal: &Refusal) {
        (self.reason, self.rule_name) = (Some(refusal.reason()), refusal.rule_name().cloned());
    }

    /// Records the result of the relay.
    pub(crate) fn relayed(&mut self, Relayed { sent, received, outcome }: Relayed) {
        (self.sent, self.received) = (sent, received);
        let Err(error) = outcome else { return };
        let (reason, error) = match error {
            RelayError::Downstream(error) => (Reason::DownstreamReset, Some(error)),
            // The endpoint's proxy refused this one's certificate.
            RelayError::Upstream(error) if tls::is_refusal(&error) => (Reason::MtlsHandshake, Some(error)),
            RelayError::Upstream(error) => (Reason::UpstreamReset, Some(error)),
            RelayError::IdleTimeout => (Reason::IdleTimeout, None),
            RelayError::Refused => (Reason::PolicyDenied, None),
            RelayError::Drained => (Reason::Draining, None),
        };
        (self.reason, self.error) = (Some(reason), error.map(Into::into));
    }
}

// === impl LoggedHeaders ===

impl LoggedHeaders {
    /// The ids of a request. None: it has none. One pass over the names costs less than a lookup of each.
    pub(crate) fn of_request(headers: &HeaderMap) -> Option<Box<Self>> {
        let (mut request_id, mut traces) = (None, [None; 3]);
        for (name, value) in headers {
            let found = match name.as_str() {
                REQUEST_ID => &mut request_id,
                TRACEPARENT => &mut traces[0],
                B3 => &mut traces[1],
                B3_TRACE_ID => &mut traces[2],
                _ => continue,
            };
            found.get_or_insert(value);
        }
        let trace = traces.into_iter().flatten().next();
        let own = || Self { request_id: request_id.cloned(), trace: trace.cloned(), upstream_reason: None };
        (request_id.is_some() || trace.is_some()).then(|| Box::new(own()))
    }

    fn request_id(&self) -> Option<&str> {
        self.request_id.as_ref()?.to_str().ok().filter(|id| id.len() <= REQUEST_ID_MAX)
    }

    fn trace_id(&self) -> Option<&str> {
        trace_id(self.trace.as_ref()?.to_str().ok()?)
    }

    fn upstream_reason(&self) -> Option<&str> {
        self.upstream_reason.as_ref()?.to_str().ok()
    }
}

// === impl RequestLog ===

impl RequestLog {
    /// Records the reason of a response that the proxy beside the endpoint generated.
    pub(crate) fn set_upstream_reason(&mut self, reason: HeaderValue) {
        self.headers.get_or_insert_default().upstream_reason = Some(reason);
    }

    /// Whether the access log counts the request as a failure.
    fn is_failure(&self) -> bool {
        // A reason that only a newer proxy knows counts as one.
        let upstream_reason = self.headers.as_deref().and_then(LoggedHeaders::upstream_reason);
        self.status >= 500
            || self.body_error.is_some()
            || self.reason.is_some_and(Reason::is_failure)
            || self.rpc_status.is_some_and(RpcStatus::is_failure)
            || upstream_reason.is_some_and(|code| Reason::parse(code.as_bytes()).is_none_or(Reason::is_failure))
    }
}

/// The trace id in the value of such a header: `version-TRACE-span-flags`, `TRACE-span-sampled` or `TRACE`.
fn trace_id(value: &str) -> Option<&str> {
    let mut parts = value.split('-');
    let first = parts.next()?;
    let id = if first.len() == 2 { parts.next()? } else { first };
    let is_id = matches!(id.len(), 16 | 32) && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then_some(id)
}

/// A text that is logged unless it is empty.
fn text(text: &'static str) -> Option<&'static str> {
    (!text.is_empty()).then_some(text)
}

/// Milliseconds, to the microsecond.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

fn is_logged(log: AccessLog, failed: bool) -> bool {
    match log {
        AccessLog::On => true,
        AccessLog::Failures => failed,
        AccessLog::Off => false,
    }
}

/// Logs a request that has completed.
pub(crate) fn request(note: &RequestLog, bytes: u64) {
    let downstream = &note.downstream;
    if !is_logged(downstream.worker.shared.access_log, note.is_failure()) {
        return;
    }
    let headers = note.headers.as_deref();
    tracing::info!(
        target: "access",
        direction = downstream.direction.as_str(),
        src.addr = %downstream.peer,
        dst.addr = %downstream.destination,
        version = ?note.version,
        method = %note.method,
        host = note.host.as_ref().and_then(|host| host.to_str().ok()),
        path = note.uri.path(),
        request_id = headers.and_then(LoggedHeaders::request_id),
        trace_id = headers.and_then(LoggedHeaders::trace_id),
        status = note.status,
        rpc_status_code = note.rpc_status.map(RpcStatus::as_str),
        source = note.rule_name.as_ref().map(|rule_name| rule_name.text.as_str()),
        reason = note.reason.map(Reason::as_str),
        upstream_reason = headers.and_then(LoggedHeaders::upstream_reason),
        fault_delay_ms = note.fault_delay.map(milliseconds),
        body_error = note.body_error.map(Reason::as_str),
        response_complete = note.response_complete,
        dst.service = note.cluster.as_deref(),
        dst.endpoint = note.endpoint.map(tracing::field::display),
        security = text(note.security.as_str()),
        plaintext = text(note.security.why()),
        src.identity = downstream.caller.get().map(|caller| tracing::field::display(&caller.id)),
        via = note.via,
        attempts = note.attempts,
        hedges = (note.hedges > 0).then_some(note.hedges),
        retry_refused = note.retry_refused,
        response_bytes = bytes,
        duration_ms = milliseconds(note.started.elapsed()),
        "request"
    );
}

/// Logs and counts input that is not a valid HTTP request.
pub(crate) fn refused(downstream: &Downstream, bad: &BadMessage) {
    let status = bad.status.as_u16();
    downstream.worker.handles.refused(downstream.direction, downstream.security(), status);
    if !is_logged(downstream.worker.shared.access_log, true) {
        return;
    }
    tracing::info!(
        target: "access",
        direction = downstream.direction.as_str(),
        src.addr = %downstream.peer,
        dst.addr = %downstream.destination,
        status = status,
        reason = Reason::BadRequest.as_str(),
        error = bad.text,
        "request"
    );
}

/// Logs and counts a TCP connection that was closed or refused.
pub(crate) fn connection(note: ConnectionLog) {
    let downstream = &note.downstream;
    let service = note.cluster.as_deref();
    downstream.worker.handles.connection_finished(&FinishedConnection {
        direction: downstream.direction,
        service,
        security: note.security,
        rule_name: note.rule_name.as_ref(),
        reason: note.reason,
        sent: note.sent,
        received: note.received,
    });
    if !is_logged(downstream.worker.shared.access_log, note.reason.is_some_and(Reason::is_failure)) {
        return;
    }
    tracing::info!(
        target: "access",
        direction = downstream.direction.as_str(),
        src.addr = %downstream.peer,
        dst.addr = %downstream.destination,
        source = note.rule_name.as_ref().map(|rule_name| rule_name.text.as_str()),
        reason = note.reason.map(Reason::as_str),
        error = note.error.as_ref().map(tracing::field::display),
        server_name = note.server_name.as_deref(),
        dst.service = note.cluster.as_deref(),
        dst.endpoint = note.endpoint.map(tracing::field::display),
        security = text(note.security.as_str()),
        plaintext = text(note.security.why()),
        src.identity = downstream.caller.get().map(|caller| tracing::field::display(&caller.id)),
        dst.identity = note.server.as_ref().map(tracing::field::display),
        via = note.via,
        sent_bytes = note.sent,
        received_bytes = note.received,
        duration_ms = milliseconds(note.started.elapsed()),
        "connection"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trace_id_is_read_from_each_format() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        for (value, expected) in [
            (format!("00-{id}-00f067aa0ba902b7-01"), Some(id)),
            (format!("{id}-00f067aa0ba902b7-1"), Some(id)),
            (id.to_owned(), Some(id)),
            ("a3ce929d0e0e4736".to_owned(), Some("a3ce929d0e0e4736")),
            ("0".to_owned(), None),
            ("00".to_owned(), None),
            (format!("00-{id}x-1"), None),
            ("00-\"}{-1".to_owned(), None),
        ] {
            assert_eq!(trace_id(&value), expected, "{value}");
        }
    }

    #[test]
    fn long_request_ids_and_requests_without_ids_are_not_kept() {
        let mut headers = HeaderMap::new();
        assert!(LoggedHeaders::of_request(&headers).is_none());
        headers.insert(REQUEST_ID, HeaderValue::from_static("a7"));
        let logged = LoggedHeaders::of_request(&headers).expect("an id");
        assert_eq!((logged.request_id(), logged.trace_id()), (Some("a7"), None));
        headers.insert(REQUEST_ID, "x".repeat(REQUEST_ID_MAX + 1).parse().expect("a value"));
        let logged = LoggedHeaders::of_request(&headers).expect("an id");
        assert_eq!(logged.request_id(), None);
    }
}
