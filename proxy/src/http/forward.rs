//! Forwards a request to an endpoint: its attempts ([`attempt`](super::attempt)), until one succeeds or is not retried
//! ([`retry`](super::retry)).
//!
//! A request for which there is no endpoint, or none that can be connected to, is handled by [`fallback`].

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use http::header::{self, HeaderValue};
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body::Body;
use weft_codec::http1::framing::BadHead;

use super::attempt::{
    AttemptResult, Failure, Plan, PreparedRequest, Upstream, UpstreamResponse, attempt, pick_endpoint,
};
use super::guard::RequestGuard;
use super::head::{self, GRPC_STATUS, MaxForwards};
use super::incoming::Incoming;
use super::interim::{self, InterimFilter};
use super::pace::UploadRate;
use super::request_body::SharedBody;
use super::respond::{Answer, Reply};
use super::response_body::Content;
use super::retry::{AllowedRetry, BUDGET, RetryState};
use super::{hedge, upgrade};
use crate::affinity::Affinity;
use crate::direction::Direction;
use crate::downstream::Downstream;
use crate::judge::{self, RefusedRequest};
use crate::reason::{REASON, Reason, UNPROCESSED};
use crate::table::Inbound;
use crate::telemetry::access;
use crate::upstream::endpoint::{Endpoint, Lease};
use crate::upstream::fallback::{self, Fallback, Next};

/// The gRPC status DEADLINE_EXCEEDED.
const DEADLINE_EXCEEDED: HeaderValue = HeaderValue::from_static("4");

/// The attempts of a request, one after the other.
struct Attempts<'a> {
    request: &'a PreparedRequest<'a>,
    retries: RetryState<'a>,
    fallback: Option<Fallback<'a>>,
    /// The endpoints that the request was sent to.
    tried: Vec<SocketAddr>,
    /// Attempts do not use pooled connections that have been idle.
    fresh: bool,
    /// The Service's own address, if it is tried next.
    service_address: Option<Rc<Endpoint>>,
    /// The last attempt was sent there.
    via_service_address: bool,
}

/// Forwards a request and returns the response for the client.
pub(crate) fn forward<'a>(
    request: Box<Request<Incoming>>,
    plan: Plan<'a>,
    guard: &'a mut RequestGuard,
) -> impl Future<Output = Reply> + use<'a> {
    let prepared = prepare(request, plan, guard);
    async move { send(prepared?, guard).await }
}

/// Prepares a request for sending.
fn prepare<'a>(
    request: Box<Request<Incoming>>,
    plan: Plan<'a>,
    guard: &mut RequestGuard,
) -> Result<Box<PreparedRequest<'a>>, Box<Answer>> {
    let worker = guard.worker().clone();
    let deadline = plan.request_timeout.map(|timeout| guard.log.started + timeout);
    let upgrade = head::wants_upgrade(request.version(), request.headers());
    let max_forwards = head::max_forwards(request.method(), request.headers()).map_err(Answer::bad_request)?;
    let (mut parts, body) = request.into_parts();
    match max_forwards {
        MaxForwards::Unlimited => {}
        MaxForwards::Left(left) => drop(parts.headers.insert(header::MAX_FORWARDS, left.into())),
        MaxForwards::Reached => return Err(Answer::max_forwards_reached(&parts.method)),
    }
    let affinity = match &plan.upstream {
        Upstream::Local(_) => Affinity::default(),
        Upstream::Cluster(state, _) => state.affinity(&parts, guard.log.downstream.peer.ip()),
    };
    // Before `for_upstream`, which removes `Expect`.
    let is_hedged = plan.rule.is_some_and(|rule| rule.hedge.is_some());
    let has_body = !body.is_end_stream();
    let interim_filter = InterimFilter::new(&parts, has_body, is_hedged);
    let named_host = plan.host.as_ref().or(guard.log.host.as_ref());
    // HTTP/1.0 requests may have no host: the destination address is sent instead.
    let host = named_host.cloned().or_else(|| HeaderValue::try_from(guard.log.downstream.destination.to_string()).ok());
    let protected = plan.protected.and_then(|protected| protected.request.as_ref());
    head::for_upstream(&mut parts, host, plan.path.clone(), plan.http2, protected).map_err(Answer::bad_request)?;
    // After `for_upstream`, so that a client's `Connection` cannot remove what a rule sets.
    if let Some(rule) = plan.rule {
        rule.edit_request(plan.backend, &mut parts.headers);
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
        let shadows = shadows.with_head(&parts, named_host);
        body.when_kept(Box::new(move |chunks| match chunks {
            Some(chunks) => shadows.send(chunks),
            None => shadows.cancel(),
        }));
    }
    if let Upstream::Cluster(state, _) = &plan.upstream {
        state.deposit_retry();
    }
    Ok(Box::new(PreparedRequest { worker, plan, parts, body, deadline, upgrade, affinity }))
}

/// Sends a request, until an attempt succeeds or is not retried.
async fn send(mut prepared: Box<PreparedRequest<'_>>, guard: &mut RequestGuard) -> Reply {
    let downstream = guard.log.downstream.clone();
    let mut attempts = Attempts::new(&prepared);
    let outcome = loop {
        guard.log.attempts += 1;
        let outcome = match while_allowed(&prepared, &downstream, attempts.next(guard)).await {
            Ok(outcome) => outcome,
            Err(refused) => {
                guard.log.rule_name = refused.refusal.rule_name().cloned();
                return Err(Answer::refused(&refused, prepared.parts.uri.path()));
            }
        };
        if attempts.falls_back(&outcome) {
            continue;
        }
        let Some(AllowedRetry { label, backoff }) = attempts.retry(&outcome) else { break outcome };
        prepared.worker.handles.retried(guard.log.cluster.as_deref(), label);
        if let Ok(response) = outcome {
            response.discard();
        }
        // Boxed: rare.
        Box::pin(tokio::time::sleep(backoff)).await;
    };
    if attempts.retries.budget_exhausted {
        prepared.worker.handles.retry_refused(guard.log.cluster.as_deref(), BUDGET);
        guard.log.retry_refused = Some(BUDGET);
    }
    match outcome {
        Ok(response) => {
            let reply = client_response(*response, &prepared, guard);
            if let (Some(seen), Ok(_)) = (&prepared.plan.judged, &reply) {
                let seen = seen.get();
                guard.judge_again(std::mem::take(&mut prepared.parts.headers), seen);
            }
            reply
        }
        Err(failure) => {
            let is_reset = matches!(failure, Failure::Reset { .. });
            let mut answer = failure_answer(failure, &prepared.plan, guard);
            if is_reset && guard.is_grpc() && is_past_deadline(&prepared.parts.headers, guard) {
                answer.headers.insert(GRPC_STATUS, DEADLINE_EXCEEDED);
            }
            Err(answer)
        }
    }
}

/// Waits for an attempt. Err: an inbound request is no longer allowed. The task is woken by changes.
async fn while_allowed(
    request: &PreparedRequest<'_>,
    downstream: &Downstream,
    attempt: impl Future<Output = AttemptResult>,
) -> Result<AttemptResult, RefusedRequest> {
    let PreparedRequest { plan, parts, .. } = request;
    let mut attempt = pin!(attempt);
    poll_fn(|cx| {
        if let Poll::Ready(outcome) = attempt.as_mut().poll(cx) {
            return Poll::Ready(Ok(outcome));
        }
        let Some(seen) = &plan.judged else { return Poll::Pending };
        let judge = |inbound: &Inbound| judge::request(downstream, inbound, &parts.method, &parts.uri, &parts.headers);
        judge::again(downstream, seen, judge).map_or(Poll::Pending, |refused| Poll::Ready(Err(refused)))
    })
    .await
}

// === impl Attempts ===

impl<'a> Attempts<'a> {
    fn new(request: &'a PreparedRequest<'a>) -> Self {
        let mut fallback = match &request.plan.upstream {
            Upstream::Local(_) => None,
            Upstream::Cluster(state, subset) => Some(Fallback::new(&request.worker, state, *subset)),
        };
        Self {
            request,
            retries: RetryState::new(request),
            service_address: fallback.as_mut().and_then(Fallback::first),
            fallback,
            tried: Vec::new(),
            fresh: false,
            via_service_address: false,
        }
    }

    /// Picks an endpoint and sends the request there, hedged if the rule says so.
    async fn next(&mut self, guard: &mut RequestGuard) -> AttemptResult {
        let is_retry = guard.log.attempts > 1;
        let endpoint = match self.pick(is_retry) {
            // Boxed: rare.
            Err(Failure::NoEndpoints(reason)) => Box::pin(self.pick_without_endpoints(reason, is_retry)).await?,
            picked => picked?,
        };
        guard.log.endpoint = Some(endpoint.address);
        guard.log.via = self.via_service_address.then_some(access::SERVICE_ADDRESS);
        let request = self.request;
        // An upgrade is not hedged: it takes its connection over.
        let is_single = self.via_service_address || request.upgrade.is_some();
        let outcome = match request.plan.rule.and_then(|rule| rule.hedge.as_ref()).filter(|_| !is_single) {
            None => attempt(request, endpoint, self.fresh).await,
            Some(hedge) => {
                let (tried, log) = (&mut self.tried, &mut guard.log);
                // Boxed: rare.
                Box::pin(hedge::attempt(request, hedge, endpoint, self.fresh, tried, log)).await
            }
        };
        self.fresh |= outcome.as_ref().is_err_and(Failure::is_stale_connection) && !request.plan.http2;
        outcome
    }

    /// Picks where the next attempt is sent.
    fn pick(&mut self, is_retry: bool) -> Result<Rc<Endpoint>, Failure> {
        self.via_service_address = self.service_address.is_some();
        match self.service_address.take() {
            Some(endpoint) => Ok(endpoint),
            None => pick_endpoint(self.request, &mut self.tried, is_retry),
        }
    }

    /// Picks again after there was no endpoint: the Service's own address, or an endpoint that is added in time.
    async fn pick_without_endpoints(&mut self, mut reason: Reason, is_retry: bool) -> Result<Rc<Endpoint>, Failure> {
        loop {
            let Some(fallback) = &mut self.fallback else { return Err(Failure::NoEndpoints(reason)) };
            match fallback.without_endpoints(self.request.deadline).await {
                None => return Err(Failure::NoEndpoints(reason)),
                Some(Next::ServiceAddress(endpoint)) => self.service_address = Some(endpoint),
                Some(Next::PickAgain) => {}
            }
            match self.pick(is_retry) {
                Err(Failure::NoEndpoints(again)) => reason = again,
                picked => return picked,
            }
        }
    }

    /// Whether the next endpoint is tried at once, because nothing was sent: the Service's own address after the
    /// endpoints, or the endpoints after that.
    fn falls_back(&mut self, outcome: &AttemptResult) -> bool {
        let Some(fallback) = &mut self.fallback else { return false };
        let is_unreachable = matches!(
            outcome,
            Err(Failure::Connect { connected: false, .. } | Failure::AttemptTimeout { connected: false })
        );
        if self.via_service_address && (is_unreachable || outcome.is_ok()) {
            fallback.address_tried(outcome.is_ok());
        } else if is_unreachable && let Some(endpoint) = fallback.after_failures(self.tried.len()) {
            self.service_address = Some(endpoint);
        }
        if self.retries.is_off() {
            return false;
        }
        self.service_address.is_some() || self.via_service_address && is_unreachable && self.tried.is_empty()
    }

    /// The retry after an outcome. None: the outcome is final.
    fn retry(&mut self, outcome: &AttemptResult) -> Option<AllowedRetry> {
        // The kernel picked a terminating pod: a new connection to the Service's address lets it pick another.
        let kernel_picks_again = match outcome {
            Ok(response) if self.via_service_address && response.is_unprocessed() => {
                response.lease.retire();
                true
            }
            _ => false,
        };
        self.fresh |= kernel_picks_again;
        let retry = self.retries.after(outcome, &self.tried, self.via_service_address)?;
        if let Some(fallback) = self.fallback.as_ref().filter(|_| kernel_picks_again) {
            self.service_address = fallback.address_again();
        }
        Some(retry)
    }
}

/// Turns the endpoint's response into the client's.
fn client_response(upstream: UpstreamResponse, request: &PreparedRequest<'_>, guard: &mut RequestGuard) -> Reply {
    let UpstreamResponse { response, lease, has_proxy, .. } = upstream;
    if let Upstream::Cluster(..) = request.plan.upstream {
        guard.log.security = lease.security();
    }
    let plan = &request.plan;
    let (mut parts, mut body) = response.into_parts();
    if request.body.awaits_continue() {
        // The endpoint responded without the body, and the client still waits for 100 Continue.
        drop(body.take_upload());
    }
    strip_weft_headers(&mut parts.headers, has_proxy);
    if let (Upstream::Cluster(state, _), Some(endpoint)) = (&plan.upstream, guard.log.endpoint)
        && let Some(cookie) = state.cookie(request.affinity, endpoint)
    {
        parts.headers.append(header::SET_COOKIE, cookie);
    }
    guard.log.status = parts.status.as_u16();
    let is_upgrade = parts.status == StatusCode::SWITCHING_PROTOCOLS;
    let accepted = if is_upgrade { parts.headers.get(header::UPGRADE).cloned() } else { None };
    head::check_response(parts.version, &mut parts.headers)
        .map_err(|BadHead(text)| Answer::new(Reason::UpstreamProtocol, text))?;
    if body.is_end_stream() {
        guard.record_rpc_status(&parts.headers);
    }
    if has_proxy && let Some(reason) = parts.headers.get(REASON) {
        guard.log.set_upstream_reason(reason.clone());
    }
    head::strip_hop_by_hop(&mut parts.headers, plan.protected.and_then(|protected| protected.response.as_ref()));
    if let Some(rule) = plan.rule {
        rule.edit_response(plan.backend, &mut parts.headers);
    }
    if is_upgrade {
        return switch_protocols(parts.headers, body, accepted, lease, request, guard);
    }
    if !body.is_end_stream() {
        guard.protected = plan.protected.cloned();
    }
    parts.extensions.clear();
    parts.version = Version::HTTP_11;
    guard.lease = Some(lease);
    Ok(Response::from_parts(parts, Content::Incoming(body, request.deadline)))
}

/// Hands the connection over to the protocol that the endpoint accepted, if it was requested.
fn switch_protocols(
    headers: HeaderMap,
    mut body: Incoming,
    accepted: Option<HeaderValue>,
    lease: Lease,
    request: &PreparedRequest<'_>,
    guard: &mut RequestGuard,
) -> Reply {
    // The unsent rest of a request body belongs to the old protocol.
    let is_sent = body.take_upload().is_none();
    let text = match request.upgrade.as_ref().filter(|_| is_sent) {
        Some(requested) if accepted.as_ref().is_none_or(|accepted| head::is_requested(requested, accepted)) => {
            // The lease must hold the last reference to the connection.
            drop(body);
            let protocol = accepted.unwrap_or_else(|| requested.clone());
            let judged = request.plan.judged.as_ref().map(|seen| (request.parts.headers.clone(), seen.get()));
            return Ok(upgrade::switch(headers, lease, protocol, judged, guard));
        }
        Some(_) => "the endpoint upgraded to a protocol that was not requested",
        None => "the endpoint upgraded the connection without a request, or before it received all of the request",
    };
    Err(Answer::new(Reason::UpstreamProtocol, text))
}

/// Removes mesh headers that the endpoint's sidecar did not set. Applications cannot set them.
fn strip_weft_headers(headers: &mut HeaderMap, has_proxy: bool) {
    if has_proxy {
        headers.remove(&UNPROCESSED);
    } else {
        head::strip_weft_headers(headers);
    }
}

/// Whether a gRPC call has taken longer than its client allows. A server that ends such a call resets its stream, and the
/// client, whose own timer may be late, would take another status for an answer of the server.
fn is_past_deadline(headers: &HeaderMap, guard: &RequestGuard) -> bool {
    head::grpc_timeout(headers).is_some_and(|timeout| guard.log.started.elapsed() >= timeout)
}

/// The answer to a request that failed.
fn failure_answer(failure: Failure, plan: &Plan<'_>, guard: &RequestGuard) -> Box<Answer> {
    let inbound = guard.log.downstream.direction == Direction::Inbound;
    let target = match (&guard.log.cluster, &plan.upstream) {
        (Some(cluster), Upstream::Cluster(_, Some(subset))) => format!("{cluster} subset {subset}"),
        (Some(cluster), Upstream::Cluster(_, None)) => cluster.to_string(),
        (None, _) | (_, Upstream::Local(_)) => "the application".to_owned(),
    };
    let (reason, detail) = match failure {
        Failure::NoEndpoints(reason) => (reason, fallback::text(reason, &target)),
        Failure::Overflow => (Reason::Overflow, format!("{target} has reached a limit of its MeshCluster")),
        Failure::Connect { reason, text, .. } => (reason, format!("connecting to {target} failed: {text}")),
        Failure::NoCertificate(text) => (Reason::NoCertificate, format!("connecting to {target} failed: {text}")),
        Failure::Refused(text) => (Reason::ConnectFailed, format!("connecting to {target} failed: {text}")),
        Failure::Reset { text, .. } => (Reason::UpstreamReset, format!("{target} closed the connection: {text}")),
        Failure::BadRequestBody => (Reason::BadRequest, "the request body is incomplete or malformed".to_owned()),
        Failure::SlowRequestBody => (Reason::SlowRequest, "the request body arrives too slowly".to_owned()),
        Failure::Protocol(text) => (Reason::UpstreamProtocol, format!("invalid HTTP response from {target}: {text}")),
        Failure::TooLarge(text) => {
            (Reason::ResponseTooLarge, format!("response head from {target} is too large: {text}"))
        }
        Failure::AttemptTimeout { .. } => {
            (Reason::AttemptTimeout, format!("{target} did not respond within the attempt timeout"))
        }
        Failure::RequestTimeout => {
            (Reason::RequestTimeout, format!("{target} did not respond within the request timeout"))
        }
    };
    let exhausted = guard.log.retry_refused == Some(BUDGET);
    let budget = if exhausted { "; not retried: the retry budget is exhausted" } else { "" };
    let mut answer = Answer::new(reason, format!("{detail}{budget}"));
    if inbound && reason == Reason::ConnectFailed {
        answer.headers.insert(UNPROCESSED, HeaderValue::from_static("true"));
    }
    answer
}
