//! Forwards a request to an endpoint: attempts, timeouts, retries, and the record for metrics and the access log.
//!
//! A request for which there is no endpoint, or none that can be connected to, is handled by [`fallback`].
//!
//! What is retried, and why:
//!
//! | failure | retry |
//! |---|---|
//! | no connection in time; the connection ended before anything of the request was sent; the endpoint did not process it (REFUSED_STREAM, or a GOAWAY with any code whose last stream is lower) | transparent: any request, without a rule, up to [`TRANSPARENT_RETRIES_MAX`] times. A sidecar does not retry when it cannot connect to its application, and retries once what the application refuses |
//! | the endpoint's sidecar says that the application never received the request (`weft-unprocessed`) | transparent: any request, without a rule, up to [`TRANSPARENT_RETRIES_MAX`] times, or [`UNPROCESSED_RETRIES_MAX`] while there are untried endpoints or the kernel picks the endpoint |
//! | the server closed an idle connection just as the request was sent on it | transparent: idempotent requests, without a rule, as RFC 9110 9.2.2 allows |
//! | a reset, an attempt timeout, or a status that the rule lists, also as the equivalent of a gRPC status | by the rule's `retry`, for its methods |
//! | no response yet | by the rule's `hedge` ([`hedge`]) |
//!
//! After a failure because the server closed an idle connection, the retry uses a new connection: other idle ones may
//! be closed too. A POST that may have been sent is not retried (RFC 9110 9.2.2); its client gets 502 with
//! `weft-reason: upstream-reset`. A POST that was not sent, because the end of the connection was seen in time, is
//! retried.
//!
//! A request is retried only while all of its body is in the replay buffer (64 KiB). Retries by rule are also limited
//! by the cluster's retry budget (`balance/budget`). Transparent retries are not: no backend has processed the request,
//! so they add no load.

use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::Body;
use tokio::time::Instant;

use super::guard::RequestGuard;
use super::head::{self, MaxForwards, ProtectedHeaders, is_grpc};
use super::incoming::Incoming;
use super::interim::{self, InterimFilter};
use super::pace::UploadRate;
use super::request_body::SharedBody;
use super::respond::{Answer, GRPC_STATUS, http_status};
use super::response_body::ResponseBody;
use super::{hedge, upgrade};
use crate::balance::affinity::Affinity;
use crate::balance::outlier::Outcome;
use crate::direction::Direction;
use crate::http1::framing::BadHead;
use crate::reason::{Reason, UNPROCESSED};
use crate::table::route::{Retry, Rule};
use crate::telemetry::{access, alive};
use crate::upstream::cluster::ClusterState;
use crate::upstream::endpoint::{Endpoint, Lease};
use crate::upstream::error::{LeaseError, SendError};
use crate::upstream::fallback::{self, Fallback, Next};
use crate::worker::Worker;

/// Maximum transparent retries: retries of what no backend has processed (gRPC's term).
const TRANSPARENT_RETRIES_MAX: u32 = 3;

/// Maximum transparent retries while endpoints are untried and the sidecars of those tried respond that their
/// applications accept no connection. They respond within a millisecond, and while a Service is scaled down most
/// endpoints may do so.
const UNPROCESSED_RETRIES_MAX: u32 = 10;

/// Backoff of transparent retries once every endpoint has been tried; doubles up to eight times this.
const TRANSPARENT_BACKOFF: Duration = Duration::from_millis(20);

/// Minimum latency recorded for a failed attempt, so that an endpoint that fails fast is not preferred.
const FAILURE_LATENCY: Duration = Duration::from_secs(1);

/// Connect timeout to the application. It runs in this pod, so a healthy one accepts at once.
pub(crate) const LOCAL_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long to wait for the trailers of a gRPC response after its head, if its status could cause a retry. A server
/// that fails a call before its first message sends head and trailers almost at once.
const TRAILERS_TIMEOUT: Duration = Duration::from_millis(10);

/// The label in metrics and logs for a retry that the exhausted retry budget denied.
pub(super) const BUDGET: &str = "budget";

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
    has_proxy: bool,
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

/// The retries of a request: those made, and those left.
struct RetryState<'a> {
    worker: &'a Worker,
    upstream: &'a Upstream,
    retry: Option<&'a Retry>,
    /// Transparent retries made.
    transparent_retries: u32,
    /// Retries that the rule still allows.
    rule_retries_left: u32,
    /// The retry budget denied a retry that the rule allows.
    budget_exhausted: bool,
    /// The last attempt was sent to the Service's own address, where the kernel picks the endpoint.
    via_service_address: bool,
}

/// A request that is ready to be sent, once or more. Boxed, so that the futures that it passes through do not store it.
struct PreparedRequest<'a> {
    worker: Rc<Worker>,
    plan: Plan<'a>,
    guard: Box<RequestGuard>,
    parts: Parts,
    body: Rc<SharedBody>,
    deadline: Option<Instant>,
    /// The protocols of the request's Upgrade header, if it is forwarded.
    upgrade: Option<HeaderValue>,
    affinity: Affinity,
}

/// Forwards a request and returns the response for the client.
pub(crate) fn forward<'a>(
    request: Box<Request<Incoming>>,
    plan: Plan<'a>,
    guard: Box<RequestGuard>,
) -> impl Future<Output = Response<ResponseBody>> + use<'a> {
    let prepared = prepare(request, plan, guard);
    async move {
        match prepared {
            Ok(prepared) => send(prepared).await,
            Err(answer) => *answer,
        }
    }
}

/// Prepares a request for sending. Err: the response, if it is not forwarded.
fn prepare(
    request: Box<Request<Incoming>>,
    plan: Plan<'_>,
    mut guard: Box<RequestGuard>,
) -> Result<Box<PreparedRequest<'_>>, Box<Response<ResponseBody>>> {
    let worker = guard.worker().clone();
    let deadline = plan.request_timeout.map(|timeout| guard.log.started + timeout);
    let upgrade = head::wants_upgrade(request.version(), request.headers());
    let max_forwards = head::max_forwards(request.method(), request.headers());
    let (mut parts, body) = request.into_parts();
    let refuse = |answer: Answer, guard| Err(Box::new(answer.into_response(guard)));
    match max_forwards {
        Ok(MaxForwards::Unlimited) => {}
        Ok(MaxForwards::Left(left)) => drop(parts.headers.insert(header::MAX_FORWARDS, left.into())),
        Ok(MaxForwards::Reached) => return refuse(Answer::max_forwards_reached(&parts.method), guard),
        Err(BadHead(text)) => return refuse(Answer::new(Reason::BadRequest, text), guard),
    }
    let affinity = match &plan.upstream {
        Upstream::Local(_) => Affinity::default(),
        Upstream::Cluster(state, _) => state.affinity(&parts, guard.log.downstream.peer.ip()),
    };
    // Before `for_upstream`, which removes `Expect`.
    let is_hedged = plan.rule.is_some_and(|rule| rule.hedge.is_some());
    let has_body = !body.is_end_stream();
    let interim_filter = InterimFilter::new(&parts, has_body, is_hedged);
    // HTTP/1.0 requests may have no host: the destination address is sent instead.
    let host = plan.host.clone().or_else(|| HeaderValue::try_from(guard.log.downstream.destination.to_string()).ok());
    let protected = plan.protected.and_then(|protected| protected.request.as_ref());
    if let Err(BadHead(text)) = head::for_upstream(&mut parts, host, plan.path.clone(), plan.http2, protected) {
        return refuse(Answer::new(Reason::BadRequest, text), guard);
    }
    // After `for_upstream`, so that a client's `Connection` cannot remove what a rule sets.
    if let Some(rule) = plan.rule {
        rule.request_edit.apply_to_request(&mut parts.headers);
    }
    if let Some(protocol) = &upgrade {
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, protocol.clone());
    }
    if interim_filter.awaits_continue() {
        parts.headers.insert(header::EXPECT, interim::CONTINUE);
    }
    // A request without a body has no trailers.
    let protected = if has_body { plan.protected.cloned() } else { None };
    let upload_rate = UploadRate::new(worker.shared.timeouts.upload);
    let body = SharedBody::new(body, worker.shared.memory.clone(), interim_filter, upload_rate, protected);
    if let Some(shadows) = guard.shadows.take() {
        let shadows = shadows.with_head(&parts, plan.host.as_ref());
        body.when_kept(Box::new(move |chunks| match chunks {
            Some(chunks) => shadows.send(chunks),
            None => shadows.cancel(),
        }));
    }
    if let Upstream::Cluster(state, _) = &plan.upstream {
        state.deposit_retry();
    }
    Ok(Box::new(PreparedRequest { worker, plan, guard, parts, body, deadline, upgrade, affinity }))
}

async fn send(mut prepared: Box<PreparedRequest<'_>>) -> Response<ResponseBody> {
    let PreparedRequest { worker, plan, guard, parts, body, deadline, upgrade, affinity } = &mut *prepared;
    let (worker, plan, parts, body, deadline, affinity) = (&*worker, &*plan, &*parts, &*body, *deadline, *affinity);
    let mut retries = RetryState {
        worker,
        upstream: &plan.upstream,
        retry: plan.retry,
        transparent_retries: 0,
        rule_retries_left: plan.retry.map_or(0, |retry| retry.attempts),
        budget_exhausted: false,
        via_service_address: false,
    };
    let mut tried: Vec<SocketAddr> = Vec::new();
    let mut fresh = false;
    let mut fallback = match &plan.upstream {
        Upstream::Local(_) => None,
        Upstream::Cluster(state, subset) => Some(Fallback::new(worker, state, subset.as_deref())),
    };
    // The Service's own address, if it is tried next.
    let mut service_address = fallback.as_mut().and_then(Fallback::first);
    let outcome = loop {
        guard.log.attempts += 1;
        let via_service_address = service_address.is_some();
        let picked = match service_address.take() {
            Some(endpoint) => Ok(endpoint),
            None => pick_endpoint(worker, plan, affinity, &mut tried, guard.log.attempts > 1),
        };
        if let (Err(Failure::NoEndpoints), Some(fallback)) = (&picked, &mut fallback) {
            // Boxed, so that the future of a request that finds an endpoint does not store it.
            let next = Box::pin(fallback.without_endpoints(deadline)).await;
            if let Some(next) = next {
                guard.log.attempts -= 1;
                if let Next::ServiceAddress(endpoint) = next {
                    service_address = Some(endpoint);
                }
                continue;
            }
        }
        // An upgrade is not hedged: it takes its connection over.
        let hedge =
            plan.rule.and_then(|rule| rule.hedge.as_ref()).filter(|_| upgrade.is_none() && !via_service_address);
        let outcome = match picked {
            Err(failure) => Err(failure),
            Ok(endpoint) => {
                guard.log.endpoint = Some(endpoint.address);
                guard.log.via = via_service_address.then_some(access::SERVICE_ADDRESS);
                match hedge {
                    None => attempt(worker, plan, endpoint, fresh, parts, body, deadline).await,
                    Some(hedge) => {
                        let request = hedge::HedgedRequest { worker, plan, fresh, parts, body };
                        let (tried, log) = (&mut tried, &mut guard.log);
                        // Boxed, so that the futures of requests without hedging do not store it.
                        Box::pin(hedge::attempt(request, hedge, endpoint, affinity, deadline, tried, log)).await
                    }
                }
            }
        };
        fresh |= outcome.as_ref().is_err_and(Failure::is_stale_connection) && !plan.http2;
        if let Some(fallback) = &mut fallback {
            let is_unreachable = matches!(
                outcome,
                Err(Failure::Connect { connected: false, .. } | Failure::AttemptTimeout { connected: false })
            );
            if via_service_address && (is_unreachable || outcome.is_ok()) {
                fallback.address_tried(outcome.is_ok());
            } else if is_unreachable && let Some(endpoint) = fallback.after_failures(tried.len()) {
                service_address = Some(endpoint);
            }
            // Nothing was sent, so this is no retry: the Service's address is next, or the endpoints if none was tried.
            if service_address.is_some() || via_service_address && is_unreachable && tried.is_empty() {
                continue;
            }
        }
        // The kernel picked a terminating pod: a new connection to the Service's address lets it pick another.
        let kernel_picks_again = match &outcome {
            Ok(response) if via_service_address && response.is_unprocessed() => {
                response.lease.retire();
                true
            }
            _ => false,
        };
        fresh |= kernel_picks_again;
        retries.budget_exhausted = false;
        retries.via_service_address = via_service_address;
        let label = match &outcome {
            Ok(response) => retries.after_response(response, &parts.method, body, &tried),
            Err(failure) => retries.after_failure(failure, &parts.method, body),
        };
        let Some(label) = label else { break outcome };
        let backoff = retries.backoff(&tried);
        if deadline.is_some_and(|deadline| Instant::now() + backoff >= deadline) {
            break outcome;
        }
        worker.handles.retried(guard.log.cluster.as_deref(), label);
        if let Some(fallback) = fallback.as_ref().filter(|_| kernel_picks_again) {
            service_address = fallback.address_again();
        }
        if let Ok(response) = outcome {
            drain_body(*response);
        }
        // Boxed, so that the future of a request without retries does not store the timer.
        Box::pin(tokio::time::sleep(backoff)).await;
    };
    if retries.budget_exhausted {
        worker.handles.retry_refused(guard.log.cluster.as_deref(), BUDGET);
        guard.log.retry_refused = Some(BUDGET);
    }
    let UpstreamResponse { mut response, lease, has_proxy, .. } = match outcome {
        Ok(response) => *response,
        Err(failure) => {
            let PreparedRequest { plan, guard, .. } = *prepared;
            return failure.into_response(&plan, guard);
        }
    };
    if body.awaits_continue() {
        // The endpoint responded without the body, and the client still waits for 100 Continue.
        drop(response.body_mut().take_upload());
    }
    strip_weft_headers(response.headers_mut(), has_proxy);
    if let (Upstream::Cluster(state, _), Some(endpoint)) = (&plan.upstream, guard.log.endpoint)
        && let Some(cookie) = state.cookie(affinity, endpoint)
    {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    let PreparedRequest { plan, guard, upgrade, deadline, .. } = *prepared;
    client_response(response, lease, &plan, deadline, upgrade, guard)
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

/// Turns the endpoint's response into the client's.
fn client_response(
    response: Response<Incoming>,
    lease: Lease,
    plan: &Plan<'_>,
    deadline: Option<Instant>,
    upgrade: Option<HeaderValue>,
    mut guard: Box<RequestGuard>,
) -> Response<ResponseBody> {
    guard.log.status = response.status().as_u16();
    let (mut parts, mut body) = response.into_parts();
    let is_upgrade = parts.status == StatusCode::SWITCHING_PROTOCOLS;
    let accepted = if is_upgrade { parts.headers.get(header::UPGRADE).cloned() } else { None };
    if let Err(BadHead(text)) = head::check_response(parts.version, &mut parts.headers) {
        return Answer::new(Reason::UpstreamProtocol, text).into_response(guard);
    }
    head::strip_hop_by_hop(&mut parts.headers, plan.protected.and_then(|protected| protected.response.as_ref()));
    if let Some(rule) = plan.rule {
        rule.response_edit.apply(&mut parts.headers);
    }
    if is_upgrade {
        // The unsent rest of a request body belongs to the old protocol.
        let is_sent = body.take_upload().is_none();
        let text = match upgrade.filter(|_| is_sent) {
            Some(requested) if accepted.as_ref().is_none_or(|accepted| head::is_requested(&requested, accepted)) => {
                // The lease must hold the last reference to the connection.
                drop(body);
                return upgrade::switch(parts.headers, lease, accepted.unwrap_or(requested), guard);
            }
            Some(_) => "the endpoint upgraded to a protocol that was not requested",
            None => "the endpoint upgraded the connection without a request, or before it received all of the request",
        };
        return Answer::new(Reason::UpstreamProtocol, text).into_response(guard);
    }
    if !body.is_end_stream() {
        guard.protected = plan.protected.cloned();
    }
    parts.extensions.clear();
    parts.version = Version::HTTP_11;
    guard.lease = Some(lease);
    Response::from_parts(parts, ResponseBody::incoming(body, deadline, guard))
}

/// Removes mesh headers that the endpoint's sidecar did not set. Applications cannot set them.
fn strip_weft_headers(headers: &mut HeaderMap, has_proxy: bool) {
    if has_proxy {
        headers.remove(&UNPROCESSED);
    } else {
        head::strip_weft_headers(headers);
    }
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

// === impl RetryState ===

impl RetryState<'_> {
    /// Whether a response is discarded and the request retried: the label of the retry.
    fn after_response(
        &mut self,
        response: &UpstreamResponse,
        method: &Method,
        body: &SharedBody,
        tried: &[SocketAddr],
    ) -> Option<&'static str> {
        if !body.can_replay() {
            return None;
        }
        if response.is_unprocessed() {
            let has_untried = self.via_service_address || self.has_untried(tried);
            let max = if has_untried { UNPROCESSED_RETRIES_MAX } else { TRANSPARENT_RETRIES_MAX };
            return self.retry_transparently_up_to(max, "unprocessed");
        }
        let retry = self.retry?;
        if retry.codes.contains(&response.status) { self.retry_by_rule(method, "status") } else { None }
    }

    /// Whether a failed attempt is retried: the label of the retry.
    fn after_failure(&mut self, failure: &Failure, method: &Method, body: &SharedBody) -> Option<&'static str> {
        if !body.can_replay() {
            return None;
        }
        let is_local = matches!(self.upstream, Upstream::Local(_));
        match failure {
            // The client's proxy is told of these and picks another pod: if both proxies retried, attempts would
            // multiply. Not so if the application closed an idle connection as usual: a new one can be had at once.
            Failure::Connect { connected: false, .. } if is_local => None,
            Failure::Connect { closing: false, .. } | Failure::Refused(_)
                if is_local && self.transparent_retries > 0 =>
            {
                None
            }
            Failure::Connect { .. } | Failure::Refused(_) => {
                self.retry_transparently("connect").or_else(|| self.retry_by_rule(method, "connect"))
            }
            Failure::Reset { reused, .. } => self
                .retry_by_rule(method, "reset")
                .or_else(|| if *reused && method.is_idempotent() { self.retry_transparently("reset") } else { None }),
            Failure::AttemptTimeout { connected: false } => {
                self.retry_transparently("connect").or_else(|| self.retry_by_rule(method, "timeout"))
            }
            Failure::AttemptTimeout { connected: true } => self.retry_by_rule(method, "timeout"),
            Failure::NoEndpoints
            | Failure::Overflow
            | Failure::BadRequestBody
            | Failure::SlowRequestBody
            | Failure::Protocol(_)
            | Failure::TooLarge(_)
            | Failure::RequestTimeout => None,
        }
    }

    /// A transparent retry, if the maximum is not reached.
    fn retry_transparently(&mut self, label: &'static str) -> Option<&'static str> {
        self.retry_transparently_up_to(TRANSPARENT_RETRIES_MAX, label)
    }

    fn retry_transparently_up_to(&mut self, max: u32, label: &'static str) -> Option<&'static str> {
        (self.transparent_retries < max).then(|| {
            self.transparent_retries += 1;
            label
        })
    }

    /// A retry by the rule, if its methods, its attempts and the retry budget allow it.
    fn retry_by_rule(&mut self, method: &Method, label: &'static str) -> Option<&'static str> {
        self.retry.filter(|retry| retry.methods.contains(method))?;
        let left = self.rule_retries_left.checked_sub(1)?;
        if let Upstream::Cluster(state, _) = self.upstream
            && !state.try_spend_retry(self.worker.now())
        {
            self.budget_exhausted = true;
            return None;
        }
        self.rule_retries_left = left;
        Some(label)
    }

    /// The number of endpoints to try.
    fn endpoint_count(&self) -> usize {
        match self.upstream {
            Upstream::Local(_) => 1,
            Upstream::Cluster(state, subset) => state.candidate_count(subset.as_deref()),
        }
    }

    /// How long to wait before the retry that was just allowed.
    fn backoff(&self, tried: &[SocketAddr]) -> Duration {
        let rule_retries = self.retry.map_or(0, |retry| retry.attempts - self.rule_retries_left);
        if let (Some(retry), 1..) = (self.retry, rule_retries) {
            let base = retry.backoff * 2u32.saturating_pow(rule_retries - 1);
            let jitter = retry.backoff.mul_f64(f64::from(self.worker.rng.borrow_mut().below(1000)) / 2000.0);
            return base.min(retry.backoff * 10) + jitter;
        }
        if self.has_untried(tried) {
            Duration::ZERO
        } else {
            TRANSPARENT_BACKOFF * 2u32.pow(self.transparent_retries.clamp(1, 4) - 1)
        }
    }

    /// Whether there is an untried endpoint.
    fn has_untried(&self, tried: &[SocketAddr]) -> bool {
        !self.via_service_address && tried.len() < self.endpoint_count()
    }
}

// === impl Failure ===

impl Failure {
    /// Whether the server may have closed a connection that was idle in the pool, or was about to.
    fn is_stale_connection(&self) -> bool {
        matches!(self, Self::Reset { reused: true, .. } | Self::Connect { closing: true, .. })
    }

    /// The response for the client.
    fn into_response(self, plan: &Plan<'_>, guard: Box<RequestGuard>) -> Response<ResponseBody> {
        let inbound = guard.log.downstream.direction == Direction::Inbound;
        let target = match (&guard.log.cluster, &plan.upstream) {
            (Some(cluster), Upstream::Cluster(_, Some(subset))) => format!("{cluster} subset {subset}"),
            (Some(cluster), _) => cluster.to_string(),
            (None, _) => "the application".to_owned(),
        };
        let (reason, detail) = match self {
            Self::NoEndpoints => match &plan.upstream {
                Upstream::Cluster(state, _) if fallback::reason(&state.cluster()) == Reason::NoLocalEndpoints => {
                    let text = "has no ready endpoint on this node, and internalTrafficPolicy is Local";
                    (Reason::NoLocalEndpoints, format!("{target} {text}"))
                }
                Upstream::Cluster(..) | Upstream::Local(_) => {
                    (Reason::NoEndpoints, format!("{target} has no ready endpoint"))
                }
            },
            Self::Overflow => (Reason::Overflow, format!("{target} has reached a limit of its MeshCluster")),
            Self::Connect { text, .. } | Self::Refused(text) => {
                (Reason::ConnectFailed, format!("connecting to {target} failed: {text}"))
            }
            Self::Reset { text, .. } => (Reason::UpstreamReset, format!("{target} closed the connection: {text}")),
            Self::BadRequestBody => (Reason::BadRequest, "the request body is incomplete or malformed".to_owned()),
            Self::SlowRequestBody => (Reason::SlowRequest, "the request body arrives too slowly".to_owned()),
            Self::Protocol(text) => (Reason::UpstreamProtocol, format!("invalid HTTP response from {target}: {text}")),
            Self::TooLarge(text) => {
                (Reason::UpstreamProtocol, format!("response head from {target} is too large: {text}"))
            }
            Self::AttemptTimeout { .. } => {
                (Reason::AttemptTimeout, format!("{target} did not respond within the attempt timeout"))
            }
            Self::RequestTimeout => {
                (Reason::RequestTimeout, format!("{target} did not respond within the request timeout"))
            }
        };
        let exhausted = guard.log.retry_refused == Some(BUDGET);
        let budget = if exhausted { "; not retried: the retry budget is exhausted" } else { "" };
        let mut answer = Answer::new(reason, format!("{detail}{budget}"));
        if inbound && reason == Reason::ConnectFailed {
            answer.headers.insert(UNPROCESSED, HeaderValue::from_static("true"));
        }
        answer.into_response(guard)
    }
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
