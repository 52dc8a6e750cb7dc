//! One attempt to forward a request: picks an endpoint, sends the request, and tells how that ended.

use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Response, StatusCode};
use tokio::time::Instant;
use weft_balance::outlier::Outcome;

use super::drain::drain;
use super::head::{GRPC_STATUS, ProtectedHeaders, is_grpc};
use super::incoming::Incoming;
use super::request_body::SharedBody;
use super::respond::http_status;
use crate::affinity::Affinity;
use crate::identity::Protocol;
use crate::reason::{Reason, UNPROCESSED};
use crate::table::backend::BackendFilters;
use crate::table::route::{Retry, Rule};
use crate::telemetry::alive;
use crate::upstream::cluster::ClusterState;
use crate::upstream::endpoint::{Endpoint, Lease};
use crate::upstream::error::{LeaseError, SendError};
use crate::upstream::fallback;
use crate::worker::Worker;

/// Minimum latency recorded for a failed attempt, so that an endpoint that fails fast is not preferred.
const FAILURE_LATENCY: Duration = Duration::from_secs(1);

/// Connect timeout to the application. It runs in this pod, so a healthy one accepts at once.
pub(crate) const LOCAL_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long an unused response is drained for its connection to be reused.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(250);

/// How long to wait for the trailers of a gRPC response after its head, if its status could cause a retry. A server
/// that fails a call before its first message sends head and trailers almost at once.
const TRAILERS_TIMEOUT: Duration = Duration::from_millis(10);

/// How to forward a request.
pub(crate) struct Plan<'a> {
    pub(crate) upstream: Upstream<'a>,
    /// None: the request's own.
    pub(crate) host: Option<HeaderValue>,
    /// None: the request's own.
    pub(crate) path: Option<PathAndQuery>,
    pub(crate) http2: bool,
    /// The matching rule, for its header edits and its `hedge`.
    pub(crate) rule: Option<&'a Rule>,
    /// The filters of the rule's backend, for their header edits.
    pub(crate) backend: Option<&'a BackendFilters>,
    /// Headers that `Connection` cannot remove and trailers cannot contain.
    pub(crate) protected: Option<&'a Arc<ProtectedHeaders>>,
    /// Of an inbound request: the changes after which it was judged last.
    pub(crate) judged: Option<Cell<u64>>,
    pub(crate) request_timeout: Option<Duration>,
    pub(crate) attempt_timeout: Option<Duration>,
    pub(crate) retry: Option<&'a Retry>,
}

/// Where a request is forwarded to.
pub(crate) enum Upstream<'a> {
    /// An endpoint of a cluster, and of its subset if one is named.
    Cluster(Rc<ClusterState>, Option<&'a str>),
    /// The application in this pod.
    Local(Rc<Endpoint>),
}

/// A request that is ready to be sent, once or more. Boxed: large.
pub(super) struct PreparedRequest<'a> {
    pub(super) worker: Rc<Worker>,
    pub(super) plan: Plan<'a>,
    pub(super) parts: Parts,
    pub(super) body: Rc<SharedBody>,
    pub(super) deadline: Option<Instant>,
    /// The protocols of the request's Upgrade header, if it is forwarded.
    pub(super) upgrade: Option<HeaderValue>,
    pub(super) affinity: Affinity,
}

/// The result of an attempt. The response is boxed: large.
pub(super) type AttemptResult = Result<Box<UpstreamResponse>, Failure>;

/// An endpoint's response, with what decides about retries.
pub(super) struct UpstreamResponse {
    pub(super) response: Response<Incoming>,
    pub(super) lease: Lease,
    /// The response's status, or the HTTP equivalent of the gRPC status of a failed call.
    pub(super) status: StatusCode,
    /// The endpoint has a sidecar, whose mesh headers are trusted.
    pub(super) has_proxy: bool,
}

/// Why an attempt got no response.
pub(super) enum Failure {
    /// There is no ready endpoint, for this reason.
    NoEndpoints(Reason),
    /// A limit of the cluster is reached.
    Overflow,
    /// Nothing was sent, or the endpoint processed nothing of it.
    Connect {
        /// A connection was established.
        connected: bool,
        /// The connection was closing already, which says nothing about the endpoint.
        closing: bool,
        reason: Reason,
        text: String,
    },
    /// This proxy has no certificate yet, which says nothing about the endpoint.
    NoCertificate(String),
    /// The endpoint says that it did not process the request.
    Refused(String),
    /// The connection or stream ended after something may have been sent.
    Reset {
        reused: bool,
        text: String,
    },
    /// Reading the request body failed, which says nothing about the endpoint.
    BadRequestBody,
    /// The client sent the request body below the minimum rate, which says nothing about the endpoint.
    SlowRequestBody,
    /// The response is invalid HTTP.
    Protocol(String),
    /// The head of the response exceeds the proxy's limits.
    TooLarge(String),
    AttemptTimeout {
        /// A connection was established, or the attempt was queued for one because of a limit.
        connected: bool,
    },
    RequestTimeout,
}

/// How far an attempt came.
struct Progress {
    started: Instant,
    /// It has a connection.
    leased: Cell<bool>,
    /// Time to the head of the response.
    response_latency: Cell<Option<Duration>>,
}

// === impl PreparedRequest ===

impl PreparedRequest<'_> {
    /// Whether it may be sent as a stream of HTTP/2 to a proxy that hands it on in HTTP/1.1. Not if the connection becomes
    /// its own, if several Cookie headers would be joined, or if a limit of connections is meant to limit requests.
    fn may_multiplex(&self, state: &ClusterState) -> bool {
        !self.plan.http2
            && self.upgrade.is_none()
            && self.parts.method != Method::CONNECT
            && self.parts.headers.get_all(header::COOKIE).iter().nth(1).is_none()
            && state.cluster().limits.max_connections.is_none()
    }
}

// === impl Plan ===

impl<'a> Plan<'a> {
    /// Forwards to this upstream over HTTP/1.1, without a rule.
    pub(crate) fn new(upstream: Upstream<'a>) -> Self {
        Self {
            upstream,
            host: None,
            path: None,
            http2: false,
            rule: None,
            backend: None,
            protected: None,
            judged: None,
            request_timeout: None,
            attempt_timeout: None,
            retry: None,
        }
    }

    /// The same, with the timeouts, retries and header edits of a rule and its backend.
    pub(crate) fn by_rule(self, rule: &'a Rule, backend: Option<&'a BackendFilters>) -> Self {
        Self {
            rule: Some(rule),
            backend,
            protected: rule.protected.as_ref(),
            request_timeout: rule.request_timeout,
            attempt_timeout: rule.attempt_timeout,
            retry: rule.retry.as_ref(),
            ..self
        }
    }
}

// === impl UpstreamResponse ===

impl UpstreamResponse {
    /// Discards a response that no client gets. What is left of it is drained, so that its connection can be reused.
    /// If the request is not sent completely, the exchange is aborted instead: no task would send the rest.
    pub(super) fn discard(self) {
        let Self { response, lease, .. } = self;
        let mut body = response.into_body();
        if body.take_upload().is_some() {
            return;
        }
        alive::spawn(async move {
            if tokio::time::timeout(DRAIN_TIMEOUT, drain(&mut body)).await == Ok(true) {
                lease.give_back();
            }
        });
    }

    /// Whether the endpoint's sidecar says that the application never received the request.
    pub(super) fn is_unprocessed(&self) -> bool {
        self.has_proxy && self.response.headers().contains_key(&UNPROCESSED)
    }

    /// Whether this may be a failed gRPC call with its status in trailers, and could be retried. False while the
    /// request body is incomplete: the server may be waiting for more of it.
    fn may_fail_in_trailers(&self, retry: Option<&Retry>, method: &Method, request: &SharedBody) -> bool {
        let (is_ok, headers) = (self.response.status() == StatusCode::OK, self.response.headers());
        retry.is_some_and(|retry| retry.methods.contains(method))
            && is_ok
            && is_grpc(headers)
            && !headers.contains_key(&GRPC_STATUS)
            && request.is_buffered()
    }

    /// Waits up to [`TRAILERS_TIMEOUT`], and no later than `until`, for trailers without content, and takes the status
    /// from them.
    async fn await_trailers(&mut self, until: Option<Instant>) {
        let timeout = Instant::now() + TRAILERS_TIMEOUT;
        let body = self.response.body_mut();
        let first = poll_fn(|cx| body.poll_trailer(&GRPC_STATUS, cx));
        let until = until.map_or(timeout, |until| until.min(timeout));
        if let Ok(Some(status)) = tokio::time::timeout_at(until, first).await {
            self.status = http_status(status.as_bytes()).unwrap_or(self.status);
        }
    }
}

// === impl Failure ===

impl Failure {
    /// Whether the server may have closed a connection that was idle in the pool, or was about to.
    pub(super) fn is_stale_connection(&self) -> bool {
        matches!(self, Self::Reset { reused: true, .. } | Self::Connect { closing: true, .. })
    }
}

/// Picks the endpoint of the next attempt.
pub(super) fn pick_endpoint(
    request: &PreparedRequest<'_>,
    tried: &mut Vec<SocketAddr>,
    is_retry: bool,
) -> Result<Rc<Endpoint>, Failure> {
    let PreparedRequest { worker, plan, affinity, .. } = request;
    let endpoint = match &plan.upstream {
        Upstream::Local(endpoint) => endpoint.clone(),
        Upstream::Cluster(state, subset) => {
            // A retry uses the current endpoints.
            if is_retry && let Some(cluster) = worker.shared.store.load().cluster_named(&state.cluster().name) {
                state.refresh(cluster, worker.now());
            }
            state
                .pick(*subset, tried, *affinity, &mut worker.rng.borrow_mut(), worker.now())
                .map_err(|_| Failure::NoEndpoints(fallback::reason(&state.cluster())))?
        }
    };
    tried.push(endpoint.address);
    Ok(endpoint)
}

/// Sends the request to an endpoint once, and records latency and outcome for balancing and outlier detection. `fresh`:
/// not on a pooled connection that has been idle.
pub(super) async fn attempt(request: &PreparedRequest<'_>, endpoint: Rc<Endpoint>, fresh: bool) -> AttemptResult {
    let started = Instant::now();
    let progress = Progress { started, leased: Cell::new(false), response_latency: Cell::new(None) };
    let (attempt_timeout, deadline) = (request.plan.attempt_timeout, request.deadline);
    let until = [attempt_timeout.map(|timeout| started + timeout), deadline].into_iter().flatten().min();
    let exchange = exchange(request, &endpoint, fresh, until, &progress);
    let mut outcome = match until {
        None => exchange.await,
        Some(until) => tokio::time::timeout_at(until, exchange).await.unwrap_or_else(|_| {
            let is_of_request = deadline.is_some_and(|deadline| deadline <= until);
            Err(if is_of_request { Failure::RequestTimeout } else { Failure::AttemptTimeout { connected: true } })
        }),
    };
    record(request, &endpoint, &progress, &mut outcome);
    outcome
}

/// Leases a connection to the endpoint, sends the request on it, and waits for the head of the response, and for what
/// else decides about retries, until `until`.
async fn exchange(
    request: &PreparedRequest<'_>,
    endpoint: &Rc<Endpoint>,
    fresh: bool,
    until: Option<Instant>,
    progress: &Progress,
) -> AttemptResult {
    let PreparedRequest { plan, parts, body, .. } = request;
    let protocol = Protocol::of_version(plan.http2);
    let lease = match &plan.upstream {
        Upstream::Local(endpoint) => match (!fresh).then(|| endpoint.idle(protocol)).flatten() {
            Some(lease) => Ok(lease),
            None => Box::pin(connect_local(endpoint, protocol)).await,
        },
        Upstream::Cluster(state, _) if endpoint.multiplexes_http1() && request.may_multiplex(state) => {
            state.lease(endpoint, Protocol::MultiplexedHttp1, fresh).await
        }
        Upstream::Cluster(state, _) => state.lease(endpoint, protocol, fresh).await,
    };
    let lease = lease.map_err(|error| match error {
        LeaseError::Overflow => Failure::Overflow,
        LeaseError::NoCertificate(_) => Failure::NoCertificate(error.to_string()),
        other => Failure::Connect { connected: false, closing: false, reason: other.reason(), text: other.to_string() },
    })?;
    progress.leased.set(true);
    let reused = lease.reused;
    match lease.send(parts, body.body(), Some(body.clone())).await {
        Ok(response) => {
            progress.response_latency.set(Some(progress.started.elapsed()));
            let has_proxy = endpoint.has_proxy.get();
            let mut response =
                Box::new(UpstreamResponse { status: effective_status(&response), response, lease, has_proxy });
            if response.may_fail_in_trailers(plan.retry, &parts.method, body) {
                // Boxed: rare.
                Box::pin(response.await_trailers(until)).await;
            }
            Ok(response)
        }
        Err(SendError::Unsent(text)) => {
            lease.retire();
            Err(Failure::Connect { connected: true, closing: reused, reason: Reason::ConnectFailed, text })
        }
        Err(SendError::Refusal(text)) => {
            lease.retire();
            Err(Failure::Connect { connected: false, closing: false, reason: Reason::MtlsHandshake, text })
        }
        Err(error @ SendError::GoAway) => {
            lease.retire();
            let (reason, text) = (Reason::ConnectFailed, error.to_string());
            Err(Failure::Connect { connected: true, closing: true, reason, text })
        }
        Err(error @ SendError::Refused) => Err(Failure::Refused(error.to_string())),
        Err(_) if body.has_failed() => Err(Failure::BadRequestBody),
        Err(_) if body.is_too_slow() => Err(Failure::SlowRequestBody),
        Err(SendError::Protocol(text)) => Err(Failure::Protocol(text)),
        Err(SendError::TooLarge(text)) => Err(Failure::TooLarge(text)),
        Err(SendError::Reset(text)) => Err(Failure::Reset { reused, text }),
    }
}

/// Records how an attempt ended, for balancing, the fallback and outlier detection.
fn record(request: &PreparedRequest<'_>, endpoint: &Rc<Endpoint>, progress: &Progress, outcome: &mut AttemptResult) {
    let (latency, now) =
        (progress.response_latency.get().unwrap_or_else(|| progress.started.elapsed()), request.worker.now());
    match &outcome {
        Ok(_) | Err(Failure::TooLarge(_)) => endpoint.observe(latency, now),
        Err(
            Failure::NoEndpoints(_)
            | Failure::Overflow
            | Failure::NoCertificate(_)
            | Failure::BadRequestBody
            | Failure::SlowRequestBody
            | Failure::Connect { closing: true, .. },
        ) => {}
        Err(_) => endpoint.observe(FAILURE_LATENCY.max(latency), now),
    }
    let Upstream::Cluster(state, _) = &request.plan.upstream else { return };
    let is_leased = progress.leased.get();
    // An attempt that timed out in the queue for a connection says nothing about the endpoint.
    let was_queued = !is_leased && outcome.is_err() && state.cluster().limits.max_connections.is_some();
    if is_leased {
        state.fallback.connected();
    } else if outcome.is_err() && !was_queued {
        state.fallback.connect_failed();
        if let Err(Failure::AttemptTimeout { connected }) = outcome {
            *connected = false;
        }
    }
    if let Some(outcome) = outlier_outcome(outcome, was_queued) {
        state.record(endpoint, outcome, now);
    }
}

/// Connects to the application in this pod. An HTTP/2 connection that is being opened is shared.
async fn connect_local(endpoint: &Rc<Endpoint>, protocol: Protocol) -> Result<Lease, LeaseError> {
    let opening = if protocol.is_multiplexed() { endpoint.opening(protocol).await } else { None };
    match opening {
        Some(opening) => opening,
        None => endpoint.connect(protocol, LOCAL_CONNECT_TIMEOUT, None).await,
    }
}

/// The outcome that outlier detection records for the endpoint. None: the attempt says nothing about it.
fn outlier_outcome(outcome: &AttemptResult, was_queued: bool) -> Option<Outcome> {
    match outcome {
        Ok(response) => Some(Outcome::of_status(response.status)),
        Err(
            Failure::NoEndpoints(_)
            | Failure::Overflow
            | Failure::NoCertificate(_)
            | Failure::BadRequestBody
            | Failure::SlowRequestBody
            | Failure::Connect { closing: true, .. },
        ) => None,
        // The endpoint responded; the limit is this proxy's, and every endpoint would exceed it.
        Err(Failure::TooLarge(_)) => None,
        Err(Failure::AttemptTimeout { .. } | Failure::RequestTimeout) if was_queued => None,
        Err(Failure::AttemptTimeout { .. } | Failure::RequestTimeout) => Some(Outcome::Local),
        Err(Failure::Connect { .. } | Failure::Refused(_) | Failure::Reset { .. } | Failure::Protocol(_)) => {
            Some(Outcome::Local)
        }
    }
}

/// The status that decides about retries, as far as the head tells: a gRPC status as its HTTP equivalent.
fn effective_status(response: &Response<Incoming>) -> StatusCode {
    let grpc_status = response.headers().get(&GRPC_STATUS).filter(|_| response.status() == StatusCode::OK);
    grpc_status.and_then(|status| http_status(status.as_bytes())).unwrap_or(response.status())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outlier_outcome_ignores_failures_of_client_and_proxy() {
        let text = String::new;
        let reason = Reason::ConnectFailed;
        let connect = |closing| Failure::Connect { connected: true, closing, reason, text: text() };
        for (failure, is_recorded) in [
            (Failure::Protocol(text()), true),
            // The limit is the proxy's.
            (Failure::TooLarge(text()), false),
            (Failure::Reset { reused: true, text: text() }, true),
            (connect(false), true),
            (connect(true), false),
            (Failure::BadRequestBody, false),
        ] {
            assert_eq!(outlier_outcome(&Err(failure), false).is_some(), is_recorded);
        }
    }
}
