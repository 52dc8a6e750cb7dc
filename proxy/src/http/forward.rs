//! Forwards a request to an endpoint: its attempts ([`attempt`](super::attempt)), until one succeeds or is not retried
//! ([`retry`](super::retry)).
//!
//! A request for which there is no endpoint, or none that can be connected to, is handled by [`fallback`].

use std::net::SocketAddr;
use std::rc::Rc;

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body::Body;
use tokio::time::Instant;
use weft_codec::http1::framing::BadHead;

use super::attempt::{Failure, Plan, Upstream, UpstreamResponse, attempt, drain_body, pick_endpoint};
use super::guard::RequestGuard;
use super::head::{self, MaxForwards};
use super::incoming::Incoming;
use super::interim::{self, InterimFilter};
use super::pace::UploadRate;
use super::request_body::SharedBody;
use super::respond::Answer;
use super::response_body::ResponseBody;
use super::retry::{BUDGET, RetryState};
use super::{hedge, upgrade};
use crate::balance::affinity::Affinity;
use crate::direction::Direction;
use crate::reason::{Reason, UNPROCESSED};
use crate::telemetry::access;
use crate::upstream::endpoint::Lease;
use crate::upstream::fallback::{self, Fallback, Next};
use crate::worker::Worker;

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
    let mut retries = RetryState::new(worker, &plan.upstream, plan.retry);
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
            return failure_response(failure, &plan, guard);
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

/// The response to the client of a request that failed.
fn failure_response(failure: Failure, plan: &Plan<'_>, guard: Box<RequestGuard>) -> Response<ResponseBody> {
    let inbound = guard.log.downstream.direction == Direction::Inbound;
    let target = match (&guard.log.cluster, &plan.upstream) {
        (Some(cluster), Upstream::Cluster(_, Some(subset))) => format!("{cluster} subset {subset}"),
        (Some(cluster), _) => cluster.to_string(),
        (None, _) => "the application".to_owned(),
    };
    let (reason, detail) = match failure {
        Failure::NoEndpoints => match &plan.upstream {
            Upstream::Cluster(state, _) if fallback::reason(&state.cluster()) == Reason::NoLocalEndpoints => {
                let text = "has no ready endpoint on this node, and internalTrafficPolicy is Local";
                (Reason::NoLocalEndpoints, format!("{target} {text}"))
            }
            Upstream::Cluster(..) | Upstream::Local(_) => {
                (Reason::NoEndpoints, format!("{target} has no ready endpoint"))
            }
        },
        Failure::Overflow => (Reason::Overflow, format!("{target} has reached a limit of its MeshCluster")),
        Failure::Connect { text, .. } | Failure::Refused(text) => {
            (Reason::ConnectFailed, format!("connecting to {target} failed: {text}"))
        }
        Failure::Reset { text, .. } => (Reason::UpstreamReset, format!("{target} closed the connection: {text}")),
        Failure::BadRequestBody => (Reason::BadRequest, "the request body is incomplete or malformed".to_owned()),
        Failure::SlowRequestBody => (Reason::SlowRequest, "the request body arrives too slowly".to_owned()),
        Failure::Protocol(text) => (Reason::UpstreamProtocol, format!("invalid HTTP response from {target}: {text}")),
        Failure::TooLarge(text) => {
            (Reason::UpstreamProtocol, format!("response head from {target} is too large: {text}"))
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
    answer.into_response(guard)
}
