//! The access log: one event (target `access`) for each request and each TCP connection, by default only for those
//! that failed. `source` is the object and rule that decided the outcome, `reason` why the proxy itself responded or
//! closed.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use http::header::HeaderValue;
use http::{Method, Uri, Version};
use weft_codec::http1::parse::BadMessage;
use weft_config::bootstrap::AccessLog;

use crate::downstream::Downstream;
use crate::reason::Reason;
use crate::tcp::{RelayError, Relayed};
use crate::value::RuleName;

/// The value of `via` for the Service's own address (ClusterIP), where the kernel picks the endpoint.
pub(crate) const SERVICE_ADDRESS: &str = "service-address";

/// The log entry of a TCP connection, or of any connection that was refused before it carried data.
pub(crate) struct ConnectionLog {
    pub(crate) downstream: Rc<Downstream>,
    pub(crate) cluster: Option<Arc<str>>,
    pub(crate) endpoint: Option<SocketAddr>,
    /// How the connection was routed, if not by picking an endpoint.
    pub(crate) via: Option<&'static str>,
    pub(crate) rule_name: Option<Arc<RuleName>>,
    pub(crate) reason: Option<Reason>,
    /// The I/O error behind `reason`, if there is one.
    pub(crate) error: Option<io::Error>,
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
    pub(crate) rule: u64,
    pub(crate) rule_name: Option<Arc<RuleName>>,
    pub(crate) cluster: Option<Arc<str>>,
    pub(crate) endpoint: Option<SocketAddr>,
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
    pub(crate) body_error: Option<&'static str>,
    /// The whole response was sent.
    pub(crate) response_complete: bool,
    pub(crate) grpc: bool,
}

impl ConnectionLog {
    pub(crate) fn new(downstream: &Rc<Downstream>) -> Self {
        Self {
            downstream: downstream.clone(),
            cluster: None,
            endpoint: None,
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

    /// Records the result of the relay.
    pub(crate) fn relayed(&mut self, Relayed { sent, received, outcome }: Relayed) {
        (self.sent, self.received) = (sent, received);
        let Err(error) = outcome else { return };
        let (reason, error) = match error {
            RelayError::Downstream(error) => (Reason::DownstreamReset, Some(error)),
            RelayError::Upstream(error) => (Reason::UpstreamReset, Some(error)),
            RelayError::IdleTimeout => (Reason::IdleTimeout, None),
            RelayError::Drained => (Reason::Draining, None),
        };
        (self.reason, self.error) = (Some(reason), error);
    }
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
    let failed = note.status >= 500 || note.body_error.is_some() || note.reason.is_some_and(Reason::is_failure);
    if !is_logged(downstream.worker.shared.access_log, failed) {
        return;
    }
    let host = note.host.as_ref().and_then(|host| host.to_str().ok());
    tracing::info!(
        target: "access",
        direction = downstream.direction.as_str(),
        src.addr = %downstream.peer,
        dst.addr = %downstream.destination,
        version = ?note.version,
        method = %note.method,
        host,
        path = note.uri.path(),
        status = note.status,
        source = note.rule_name.as_ref().map(|rule_name| rule_name.text.as_str()),
        reason = note.reason.map(Reason::as_str),
        fault_delay_ms = note.fault_delay.map(|delay| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)),
        broken = note.body_error,
        complete = note.response_complete,
        dst.service = note.cluster.as_deref(),
        dst.endpoint = note.endpoint.map(tracing::field::display),
        via = note.via,
        attempts = note.attempts,
        hedges = (note.hedges > 0).then_some(note.hedges),
        retry_refused = note.retry_refused,
        bytes_sent = bytes,
        duration_us = u64::try_from(note.started.elapsed().as_micros()).unwrap_or(u64::MAX),
        "request"
    );
}

/// Logs and counts input that is not a valid HTTP request.
pub(crate) fn refused(downstream: &Downstream, bad: &BadMessage) {
    let status = bad.status.as_u16();
    downstream.worker.handles.refused(downstream.direction, status);
    if !is_logged(downstream.worker.shared.access_log, true) {
        return;
    }
    tracing::info!(
        target: "access",
        direction = downstream.direction.as_str(),
        src.addr = %downstream.peer,
        dst.addr = %downstream.destination,
        status,
        reason = Reason::BadRequest.as_str(),
        error = bad.text,
        "request"
    );
}

/// Logs and counts a TCP connection that was closed or refused.
pub(crate) fn connection(note: ConnectionLog) {
    let downstream = &note.downstream;
    let service = note.cluster.as_deref();
    downstream.worker.handles.connection_finished(downstream.direction, service, note.reason, note.sent, note.received);
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
        via = note.via,
        bytes_sent = note.sent,
        bytes_recv = note.received,
        duration_us = u64::try_from(note.started.elapsed().as_micros()).unwrap_or(u64::MAX),
        "connection"
    );
}
