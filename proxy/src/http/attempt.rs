//! One attempt to forward a request: picks an endpoint, sends the request, and tells how that ended.

use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderValue;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Response, StatusCode};
use http_body::Body;
use tokio::time::Instant;
use weft_balance::outlier::Outcome;

use super::head::{ProtectedHeaders, is_grpc};
use super::incoming::Incoming;
use super::request_body::SharedBody;
use super::respond::{GRPC_STATUS, http_status};
use crate::affinity::Affinity;
use crate::reason::UNPROCESSED;
use crate::table::route::{Retry, Rule};
use crate::telemetry::alive;
use crate::upstream::cluster::ClusterState;
use crate::upstream::endpoint::{Endpoint, Lease};
use crate::upstream::error::{LeaseError, SendError};
use crate::worker::Worker;

/// Minimum latency recorded for a failed attempt, so that an endpoint that fails fast is not preferred.
const FAILURE_LATENCY: Duration = Duration::from_secs(1);

/// Connect timeout to the application. It runs in this pod, so a healthy one accepts at once.
pub(crate) const LOCAL_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long to wait for the trailers of a gRPC response after its head, if its status could cause a retry. A server
/// that fails a call before its first message sends head and trailers almost at once.
const TRAILERS_TIMEOUT: Duration = Duration::from_millis(10);

/// How to forward a request.
pub(crate) struct Plan<'a> {
    pub(crate) upstream: Upstream,
    pub(crate) host: Option<HeaderValue>,
    /// None: the request's own.
    pub(crate) path: Option<PathAndQuery>,
    pub(crate) http2: bool,
    /// The matching rule, for its header edits and its `hedge`.
    pub(crate) rule: Option<&'a Rule>,
    /// Headers that `Connection` cannot remove and trailers cannot contain.
    pub(crate) protected: Option<&'a Arc<ProtectedHeaders>>,
    pub(crate) request_timeout: Option<Duration>,
    pub(crate) attempt_timeout: Option<Duration>,
    pub(crate) retry: Option<&'a Retry>,
}

/// Where a request is forwarded to.
pub(crate) enum Upstream {
    /// An endpoint of a cluster, and of its subset if one is named.
    Cluster(Rc<ClusterState>, Option<String>),
    /// The application in this pod.
    Local(Rc<Endpoint>),
}

/// The result of an attempt. The response is boxed, so that the futures that it passes through do not store it.
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
    /// There is no ready endpoint.
    NoEndpoints,
    /// A limit of the cluster is reached.
    Overflow,
    /// Nothing was sent, or the endpoint processed nothing of it.
    Connect {
        /// A connection was established.
        connected: bool,
        /// The connection was closing already, which says nothing about the endpoint.
        closing: bool,
        text: String,
    },
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

// === impl UpstreamResponse ===

impl UpstreamResponse {
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
    worker: &Worker,
    plan: &Plan<'_>,
    affinity: Affinity,
    tried: &mut Vec<SocketAddr>,
    is_retry: bool,
) -> Result<Rc<Endpoint>, Failure> {
    let endpoint = match &plan.upstream {
        Upstream::Local(endpoint) => endpoint.clone(),
        Upstream::Cluster(state, subset) => {
            // A retry uses the current endpoints.
            if is_retry && let Some(cluster) = worker.shared.store.load().cluster_named(&state.cluster().name) {
                state.refresh(cluster, worker.now());
            }
            state
                .pick(subset.as_deref(), tried, affinity, &mut worker.rng.borrow_mut(), worker.now())
                .map_err(|_| Failure::NoEndpoints)?
        }
    };
    tried.push(endpoint.address);
    Ok(endpoint)
}

/// Sends the request to an endpoint once, and records latency and outcome for balancing and outlier detection. `fresh`:
/// not on a pooled connection that has been idle.
pub(super) async fn attempt(
    worker: &Rc<Worker>,
    plan: &Plan<'_>,
    endpoint: Rc<Endpoint>,
    fresh: bool,
    parts: &Parts,
    body: &Rc<SharedBody>,
    deadline: Option<Instant>,
) -> AttemptResult {
    let started = Instant::now();
    let attempt_deadline = plan.attempt_timeout.map(|timeout| started + timeout);
    let until = [attempt_deadline, deadline].into_iter().flatten().min();
    let response_latency = Cell::new(None);
    let leased = Cell::new(false);
    let exchange = async {
        let lease = match &plan.upstream {
            Upstream::Local(endpoint) => match (!fresh).then(|| endpoint.idle(plan.http2)).flatten() {
                Some(lease) => Ok(lease),
                None => Box::pin(connect_local(endpoint, plan.http2)).await,
            },
            Upstream::Cluster(state, _) => state.lease(&endpoint, plan.http2, fresh).await,
        };
        let lease = lease.map_err(|error| match error {
            LeaseError::Overflow => Failure::Overflow,
            other => Failure::Connect { connected: false, closing: false, text: other.to_string() },
        })?;
        leased.set(true);
        let reused = lease.reused;
        match lease.send(parts, body.body(), Some(body.clone())).await {
            Ok(response) => {
                response_latency.set(Some(started.elapsed()));
                let has_proxy = endpoint.has_proxy.get();
                let mut response =
                    Box::new(UpstreamResponse { status: effective_status(&response), response, lease, has_proxy });
                if response.may_fail_in_trailers(plan.retry, &parts.method, body) {
                    // Boxed, so that the futures of other requests do not store it.
                    Box::pin(response.await_trailers(until)).await;
                }
                Ok(response)
            }
            Err(SendError::Unsent(text)) => {
                lease.retire();
                Err(Failure::Connect { connected: true, closing: reused, text })
            }
            Err(error @ SendError::GoAway) => {
                lease.retire();
                Err(Failure::Connect { connected: true, closing: true, text: error.to_string() })
            }
            Err(error @ SendError::Refused) => Err(Failure::Refused(error.to_string())),
            Err(_) if body.has_failed() => Err(Failure::BadRequestBody),
            Err(_) if body.is_too_slow() => Err(Failure::SlowRequestBody),
            Err(SendError::Protocol(text)) => Err(Failure::Protocol(text)),
            Err(SendError::TooLarge(text)) => Err(Failure::TooLarge(text)),
            Err(SendError::Reset(text)) => Err(Failure::Reset { reused, text }),
        }
    };
    let mut outcome = match until {
        None => exchange.await,
        Some(until) => tokio::time::timeout_at(until, exchange).await.unwrap_or_else(|_| {
            let is_of_request = deadline.is_some_and(|deadline| deadline <= until);
            Err(if is_of_request { Failure::RequestTimeout } else { Failure::AttemptTimeout { connected: true } })
        }),
    };
    let (latency, now) = (response_latency.get().unwrap_or_else(|| started.elapsed()), worker.now());
    match &outcome {
        Ok(_) | Err(Failure::TooLarge(_)) => endpoint.observe(latency, now),
        Err(
            Failure::NoEndpoints
            | Failure::Overflow
            | Failure::BadRequestBody
            | Failure::SlowRequestBody
            | Failure::Connect { closing: true, .. },
        ) => {}
        Err(_) => endpoint.observe(FAILURE_LATENCY.max(latency), now),
    }
    if let Upstream::Cluster(state, _) = &plan.upstream {
        // An attempt that timed out in the queue for a connection says nothing about the endpoint.
        let was_queued = !leased.get() && outcome.is_err() && state.cluster().limits.max_connections.is_some();
        if leased.get() {
            state.fallback.connected();
        } else if outcome.is_err() && !was_queued {
            state.fallback.connect_failed();
            if let Err(Failure::AttemptTimeout { connected }) = &mut outcome {
                *connected = false;
            }
        }
        if let Some(outcome) = outlier_outcome(&outcome, was_queued) {
            state.record(&endpoint, outcome, now);
        }
    }
    outcome
}

/// Connects to the application in this pod. An HTTP/2 connection that is being opened is shared.
async fn connect_local(endpoint: &Rc<Endpoint>, http2: bool) -> Result<Lease, LeaseError> {
    let opening = if http2 { endpoint.opening().await } else { None };
    match opening {
        Some(opening) => opening,
        None => endpoint.connect(http2, LOCAL_CONNECT_TIMEOUT, None).await,
    }
}

/// The outcome that outlier detection records for the endpoint. None: the attempt says nothing about it.
fn outlier_outcome(outcome: &AttemptResult, was_queued: bool) -> Option<Outcome> {
    match outcome {
        Ok(response) => Some(Outcome::of_status(response.status)),
        Err(
            Failure::NoEndpoints
            | Failure::Overflow
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

/// Reads and discards the body of an unused response within limits, so that its connection can be reused. If the
/// request is not sent completely, the exchange is aborted instead: no task would send the rest.
pub(super) fn drain_body(response: UpstreamResponse) {
    const BYTES_MAX: usize = 16 * 1024;
    const TIMEOUT: Duration = Duration::from_millis(250);
    let UpstreamResponse { response, lease, .. } = response;
    let mut body = response.into_body();
    if body.take_upload().is_some() {
        return;
    }
    alive::spawn(async move {
        let mut read = 0;
        let rest = async {
            while let Some(Ok(frame)) = http_body_util::BodyExt::frame(&mut body).await {
                read += frame.data_ref().map_or(0, bytes::Bytes::len);
                if read > BYTES_MAX {
                    return false;
                }
            }
            body.is_end_stream()
        };
        if tokio::time::timeout(TIMEOUT, rest).await == Ok(true) {
            lease.give_back();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outlier_outcome_ignores_failures_of_client_and_proxy() {
        let text = String::new;
        for (failure, is_recorded) in [
            (Failure::Protocol(text()), true),
            // The limit is the proxy's.
            (Failure::TooLarge(text()), false),
            (Failure::Reset { reused: true, text: text() }, true),
            (Failure::Connect { connected: true, closing: false, text: text() }, true),
            (Failure::Connect { connected: true, closing: true, text: text() }, false),
            (Failure::BadRequestBody, false),
        ] {
            assert_eq!(outlier_outcome(&Err(failure), false).is_some(), is_recorded);
        }
    }
}
