//! Sending a request on: attempts, timeouts, retries, and the note of what came of it.
//!
//! A request that finds no endpoint, or none that can be connected to, goes on as [`fallback`] says.
//!
//! What may be sent again, and why:
//!
//! | what happened | who may repeat it |
//! |---|---|
//! | no connection in its time, or nothing of the request was sent, or the backend says that it was not processed (REFUSED_STREAM, a GOAWAY of whatever reason), or the proxy beside it that it was never seen | anybody, up to [`SAFE_RETRIES_MAX`] times, and at endpoints that were not tried, or where the kernel chooses, up to [`UNPROCESSED_RETRIES_MAX`] times; the proxy beside the backend not where it gets no connection, and once where the backend refuses |
//! | a connection that had idled was closed under the request | an idempotent request without a rule's word, as RFC 9110 9.2.2 allows |
//! | a reset, a timed-out attempt, a status that the rule lists, or one of gRPC that it stands for | what the rule's `retry` allows, for its methods |
//! | nothing yet | what the rule's `hedge` allows ([`hedge`]) |
//!
//! What a server that closes idle connections does to a request is repeated on a connection of its own: any other that
//! idled may be closed as well. A POST that may have been sent is not repeated, as RFC 9110 9.2.2 says; its client gets 502
//! with `weft-reason: upstream-reset`. One that was not sent, because the end of the connection was seen in time, is.
//!
//! A body can be sent again only as long as all of it is kept (64 KiB). What a rule allows is also bound by the budget of
//! the cluster (`balance/budget`); what no backend has seen adds nothing to its load and is not.

use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body;
use tokio::time::Instant;

use super::body::{ResponseBody, SharedBody};
use super::head::{self, Forwards, ProtectedHeaders};
use super::hedge;
use super::incoming::Incoming;
use super::interim::{self, Hears};
use super::pace::Pace;
use super::respond::{Answer, GRPC_STATUS, Reason, http_status};
use super::upgrade;
use crate::balance::affinity::Affinity;
use crate::balance::outlier::Outcome;
use crate::downstream::Downstream;
use crate::filter::mirror::Copies;
use crate::table::route::{Origin, Retry, Rule};
use crate::telemetry::access;
use crate::telemetry::alive::{self, Alive, Kind};
use crate::telemetry::metrics::Direction;
use crate::upstream::cluster::ClusterState;
use crate::upstream::endpoint::{Endpoint, Lease, LeaseError, SendError};
use crate::upstream::fallback::{self, Fallback, Next};
use crate::upstream::load::Permit;
use crate::worker::Worker;

/// Repetitions of what no backend has seen.
const SAFE_RETRIES_MAX: u32 = 3;

/// The same while there is an endpoint that was not tried, and the proxies beside those that were say that their applications
/// take no connection. They say so within a millisecond, and of a Service that is scaled down most endpoints may be such.
const UNPROCESSED_RETRIES_MAX: u32 = 10;

/// The wait when every endpoint has been tried and one is tried again; doubles up to eight times as long.
const SAFE_BACKOFF: Duration = Duration::from_millis(20);

/// What an endpoint that fails is taken to cost: about what its callers lose.
const FAILURE_COST: Duration = Duration::from_secs(1);

/// How long a connection to the application may take to be made. It is this pod's: a healthy one answers at once.
pub(crate) const LOCAL_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the trailers of a gRPC response are waited for when its head has come and a retry may be due. A server that
/// fails a call before its first message sends both at once, or nearly.
const TRAILERS_PATIENCE: Duration = Duration::from_millis(10);

/// The word of metrics and logs for a budget that is spent.
pub(super) const BUDGET: &str = "budget";

/// nginx's word for a client that did not wait.
const CLIENT_CLOSED: u16 = 499;

/// How a request is to be sent.
pub(crate) struct Plan<'a> {
    pub(crate) upstream: Upstream,
    pub(crate) host: Option<HeaderValue>,
    /// Absent: the request's.
    pub(crate) path: Option<PathAndQuery>,
    pub(crate) http2: bool,
    /// For its edits, and for how it hedges.
    pub(crate) rule: Option<&'a Rule>,
    /// Headers that it was decided by, and that edits change.
    pub(crate) protected: Option<&'a Arc<ProtectedHeaders>>,
    pub(crate) request_timeout: Option<Duration>,
    pub(crate) attempt_timeout: Option<Duration>,
    pub(crate) retry: Option<&'a Retry>,
}

/// Where it is to be sent.
pub(crate) enum Upstream {
    /// To one of a cluster's endpoints.
    Cluster(Rc<ClusterState>, Option<String>),
    /// To the application in this pod.
    Local(Rc<Endpoint>),
}

/// What is known of a request, noted once when it is dropped: in the metrics and in the access log.
pub(crate) struct RequestGuard {
    pub(crate) log: RequestLog,
    pub(crate) bytes: u64,
    lease: Option<Lease>,
    permit: Option<Permit>,
    copies: Option<Box<Copies>>,
    /// What must not stand behind the body of the response.
    pub(super) protected: Option<Arc<ProtectedHeaders>>,
    _alive: Alive,
}

/// What is noted.
pub(crate) struct RequestLog {
    pub(crate) downstream: Rc<Downstream>,
    pub(crate) started: Instant,
    pub(crate) version: Version,
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) host: Option<HeaderValue>,
    pub(crate) rule: u64,
    pub(crate) origin: Option<Arc<Origin>>,
    pub(crate) cluster: Option<Arc<str>>,
    pub(crate) endpoint: Option<SocketAddr>,
    /// How it got there, where that is not the proxy's choice of an endpoint.
    pub(crate) via: Option<&'static str>,
    pub(crate) attempts: u32,
    /// How many of them ran beside others.
    pub(crate) hedges: u32,
    /// What did not allow a repetition that a rule would have made.
    pub(crate) retry_refused: Option<&'static str>,
    pub(crate) status: u16,
    pub(crate) reason: Option<Reason>,
    /// How long a fault made it wait.
    pub(crate) fault_delay: Option<Duration>,
    /// What went wrong after the head of the response was sent.
    pub(crate) body_error: Option<&'static str>,
    pub(crate) response_complete: bool,
    grpc: bool,
}

/// What came of an attempt. A response is in a box, so that no future on its way has room for it.
pub(super) type Attempted = Result<Box<Answered>, Failure>;

/// A response, and what it is judged by.
pub(super) struct Answered {
    pub(super) response: Response<Incoming>,
    pub(super) lease: Lease,
    /// The response's, or where gRPC says in it that a call failed, the HTTP status that stands for that.
    pub(super) status: StatusCode,
    /// It comes through the proxy beside the backend, whose word counts.
    has_proxy: bool,
}

/// What came of one attempt, if not a response.
pub(super) enum Failure {
    /// Nobody to send to.
    NoEndpoints,
    Overflow,
    /// Nothing was sent, or nothing of it was looked at.
    Connect {
        /// There was a connection.
        connected: bool,
        /// The connection was about to end anyway, which says nothing about the endpoint.
        ended: bool,
        text: String,
    },
    /// The endpoint says that it did nothing for the request.
    Refused(String),
    /// Something may have been sent.
    Reset {
        reused: bool,
        text: String,
    },
    /// The client broke its body off, which says nothing about the endpoint.
    BrokenRequest,
    /// The client took too long to send its body, which says nothing about it either.
    SlowRequest,
    /// The answer was not HTTP.
    Protocol(String),
    /// The head of the answer is larger than what is taken.
    TooLarge(String),
    AttemptTimeout {
        /// There was a connection, or none was asked for because of a limit.
        connected: bool,
    },
    RequestTimeout,
}

/// How many repetitions are left.
struct Allowance<'a> {
    worker: &'a Worker,
    upstream: &'a Upstream,
    retry: Option<&'a Retry>,
    /// Repetitions of what no backend has seen, so far.
    safe: u32,
    /// Repetitions that the rule allows still.
    ruled: u32,
    /// The budget did not allow one that the rule would have made.
    spent: bool,
    /// The last attempt went to the Service's own address.
    by_address: bool,
}

/// A request that is ready to be sent, as often as it takes. In a box: the futures around it are moved several times, and each
/// would have room for it.
struct Sending<'a> {
    worker: Rc<Worker>,
    plan: Plan<'a>,
    guard: Box<RequestGuard>,
    parts: Parts,
    body: Rc<SharedBody>,
    deadline: Option<Instant>,
    /// The protocol that it asks to change to.
    upgrade: Option<HeaderValue>,
    affinity: Affinity,
}

/// Sends a request on and gives back what the client gets.
pub(crate) fn forward<'a>(
    request: Box<Request<Incoming>>,
    plan: Plan<'a>,
    guard: Box<RequestGuard>,
) -> impl Future<Output = Response<ResponseBody>> + use<'a> {
    let prepared = prepare(request, plan, guard);
    async move {
        match prepared {
            Ok(sending) => send(sending).await,
            Err(answer) => *answer,
        }
    }
}

/// Makes a request ready, or answers it here.
fn prepare(
    request: Box<Request<Incoming>>,
    plan: Plan<'_>,
    mut guard: Box<RequestGuard>,
) -> Result<Box<Sending<'_>>, Box<Response<ResponseBody>>> {
    let worker = guard.worker().clone();
    let deadline = plan.request_timeout.map(|timeout| guard.log.started + timeout);
    let upgrade = head::wants_upgrade(request.version(), request.headers());
    let forwards = head::forwards(request.method(), request.headers());
    let (mut parts, body) = request.into_parts();
    let refuse = |answer: Answer, guard| Err(Box::new(answer.into_response(guard)));
    match forwards {
        Ok(Forwards::Unlimited) => {}
        Ok(Forwards::Left(left)) => drop(parts.headers.insert(header::MAX_FORWARDS, left.into())),
        Ok(Forwards::Ended) => return refuse(Answer::to_last_forward(&parts.method), guard),
        Err(head::BadHead(text)) => return refuse(Answer::new(Reason::BadRequest, text), guard),
    }
    let affinity = match &plan.upstream {
        Upstream::Local(_) => Affinity::default(),
        Upstream::Cluster(state, _) => state.affinity(&parts, guard.log.downstream.peer.ip()),
    };
    // Before the head is made ready, which takes the expectation away.
    let is_hedged = plan.rule.is_some_and(|rule| rule.hedge.is_some());
    let has_body = !body.is_end_stream();
    let hears = Hears::of(&parts, has_body, is_hedged);
    // HTTP/1.0 came without hosts: what was meant is the address.
    let host = plan.host.clone().or_else(|| HeaderValue::try_from(guard.log.downstream.destination.to_string()).ok());
    let looked_at = plan.protected.and_then(|protected| protected.request.as_ref());
    if let Err(head::BadHead(text)) = head::for_upstream(&mut parts, host, plan.path.clone(), plan.http2, looked_at) {
        return refuse(Answer::new(Reason::BadRequest, text), guard);
    }
    // Behind that, so that a client takes nothing away which a rule puts there.
    if let Some(rule) = plan.rule {
        rule.request_edit.apply_to_request(&mut parts.headers);
    }
    if let Some(protocol) = &upgrade {
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, protocol.clone());
    }
    if hears.waits() {
        parts.headers.insert(header::EXPECT, interim::CONTINUE);
    }
    // What has no body has no trailers.
    let protected = if has_body { plan.protected.cloned() } else { None };
    let pace = Pace::new(worker.shared.timeouts.upload);
    let body = SharedBody::new(body, worker.shared.memory.clone(), hears, pace, protected);
    if let Some(copies) = guard.copies.take() {
        body.copy_to(copies.of(&parts, plan.host.as_ref()));
    }
    if let Upstream::Cluster(state, _) = &plan.upstream {
        state.deposit_retry();
    }
    Ok(Box::new(Sending { worker, plan, guard, parts, body, deadline, upgrade, affinity }))
}

async fn send(mut sending: Box<Sending<'_>>) -> Response<ResponseBody> {
    let Sending { worker, plan, guard, parts, body, deadline, upgrade, affinity } = &mut *sending;
    let (worker, plan, parts, body, deadline, affinity) = (&*worker, &*plan, &*parts, &*body, *deadline, *affinity);
    let mut allowance = Allowance {
        worker,
        upstream: &plan.upstream,
        retry: plan.retry,
        safe: 0,
        ruled: plan.retry.map_or(0, |retry| retry.attempts),
        spent: false,
        by_address: false,
    };
    let mut tried: Vec<SocketAddr> = Vec::new();
    let mut fresh = false;
    let mut fallback = match &plan.upstream {
        Upstream::Local(_) => None,
        Upstream::Cluster(state, subset) => Some(Fallback::new(worker, state, subset.as_deref())),
    };
    // The Service's own address, where that is tried next.
    let mut address = fallback.as_mut().and_then(Fallback::first);
    let outcome = loop {
        guard.log.attempts += 1;
        let by_address = address.is_some();
        let chosen = match address.take() {
            Some(address) => Ok(address),
            None => choose(worker, plan, affinity, &mut tried, guard.log.attempts > 1),
        };
        if let (Err(Failure::NoEndpoints), Some(fallback)) = (&chosen, &mut fallback) {
            // Apart, so that requests that find an endpoint do not carry the room for it.
            let next = Box::pin(fallback.without_endpoints(deadline)).await;
            if let Some(next) = next {
                guard.log.attempts -= 1;
                if let Next::Address(own) = next {
                    address = Some(own);
                }
                continue;
            }
        }
        // A connection that is to change its protocol is had once.
        let hedge = plan.rule.and_then(|rule| rule.hedge.as_ref()).filter(|_| upgrade.is_none() && !by_address);
        let outcome = match chosen {
            Err(failure) => Err(failure),
            Ok(endpoint) => {
                guard.log.endpoint = Some(endpoint.address);
                guard.log.via = by_address.then_some(access::SERVICE_ADDRESS);
                match hedge {
                    None => attempt(worker, plan, endpoint, fresh, parts, body, deadline).await,
                    Some(hedge) => {
                        let request = hedge::Request { worker, plan, fresh, parts, body };
                        let (tried, log) = (&mut tried, &mut guard.log);
                        // Apart, so that requests of other rules do not carry the room for it.
                        Box::pin(hedge::attempt(request, hedge, endpoint, affinity, deadline, tried, log)).await
                    }
                }
            }
        };
        fresh |= outcome.as_ref().is_err_and(Failure::is_of_an_idle_connection) && !plan.http2;
        if let Some(fallback) = &mut fallback {
            let is_unreachable = matches!(
                outcome,
                Err(Failure::Connect { connected: false, .. } | Failure::AttemptTimeout { connected: false })
            );
            if by_address && (is_unreachable || outcome.is_ok()) {
                fallback.address_tried(outcome.is_ok());
            } else if is_unreachable && let Some(own) = fallback.after_failures(tried.len()) {
                address = Some(own);
            }
            // Nothing was sent. Where no endpoint was tried before, it is now.
            if address.is_some() || by_address && is_unreachable && tried.is_empty() {
                continue;
            }
        }
        // The kernel has chosen a pod that is ending: a new connection lets it choose another, and this one leads nowhere else.
        let chooses_again = match &outcome {
            Ok(answered) if by_address && answered.is_unprocessed() => {
                answered.lease.retire();
                true
            }
            _ => false,
        };
        fresh |= chooses_again;
        allowance.spent = false;
        allowance.by_address = by_address;
        let again = match &outcome {
            Ok(answered) => allowance.after_response(answered, &parts.method, body, &tried),
            Err(failure) => allowance.after_failure(failure, &parts.method, body),
        };
        let Some(why) = again else { break outcome };
        let wait = allowance.wait(&tried);
        if deadline.is_some_and(|deadline| Instant::now() + wait >= deadline) {
            break outcome;
        }
        worker.handles.retried(guard.log.cluster.as_deref(), why);
        if let Some(fallback) = fallback.as_ref().filter(|_| chooses_again) {
            address = fallback.address_again();
        }
        if let Ok(answered) = outcome {
            discard(*answered);
        }
        // Apart, so that requests that are sent once do not carry the room for the timer.
        Box::pin(tokio::time::sleep(wait)).await;
    };
    if allowance.spent {
        worker.handles.retry_refused(guard.log.cluster.as_deref(), BUDGET);
        guard.log.retry_refused = Some(BUDGET);
    }
    let Answered { mut response, lease, has_proxy, .. } = match outcome {
        Ok(answered) => *answered,
        Err(failure) => {
            let Sending { plan, guard, .. } = *sending;
            return failure.answer(&plan, guard);
        }
    };
    if body.is_unasked() {
        // The endpoint has answered without it, and the client has not begun to send it.
        drop(response.body_mut().take_upload());
    }
    strip_own(response.headers_mut(), has_proxy);
    if let (Upstream::Cluster(state, _), Some(endpoint)) = (&plan.upstream, guard.log.endpoint)
        && let Some(cookie) = state.cookie(affinity, endpoint)
    {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    let Sending { plan, guard, upgrade, deadline, .. } = *sending;
    accept(response, lease, &plan, deadline, upgrade, guard)
}

/// Whom the next attempt goes to.
pub(super) fn choose(
    worker: &Worker,
    plan: &Plan<'_>,
    affinity: Affinity,
    tried: &mut Vec<SocketAddr>,
    again: bool,
) -> Result<Rc<Endpoint>, Failure> {
    let endpoint = match &plan.upstream {
        Upstream::Local(endpoint) => endpoint.clone(),
        Upstream::Cluster(state, subset) => {
            // A retry sees the endpoints as they are now.
            if again && let Some(cluster) = worker.shared.store.load().cluster_named(&state.cluster().name) {
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

pub(super) async fn attempt(
    worker: &Rc<Worker>,
    plan: &Plan<'_>,
    endpoint: Rc<Endpoint>,
    fresh: bool,
    parts: &Parts,
    body: &Rc<SharedBody>,
    deadline: Option<Instant>,
) -> Attempted {
    let started = Instant::now();
    let of_attempt = plan.attempt_timeout.map(|timeout| started + timeout);
    let until = [of_attempt, deadline].into_iter().flatten().min();
    let took = Cell::new(None);
    let leased = Cell::new(false);
    let sending = async {
        let lease = match &plan.upstream {
            Upstream::Local(endpoint) => match (!fresh).then(|| endpoint.idle(plan.http2)).flatten() {
                Some(lease) => Ok(lease),
                None => Box::pin(connect_local(endpoint, plan.http2)).await,
            },
            Upstream::Cluster(state, _) => state.lease(&endpoint, plan.http2, fresh).await,
        };
        let lease = lease.map_err(|error| match error {
            LeaseError::Overflow => Failure::Overflow,
            other => Failure::Connect { connected: false, ended: false, text: other.to_string() },
        })?;
        leased.set(true);
        let reused = lease.reused;
        match lease.send(parts, body.body(), Some(body.clone())).await {
            Ok(response) => {
                took.set(Some(started.elapsed()));
                let has_proxy = endpoint.has_proxy.get();
                let mut answered = Box::new(Answered { status: status_of(&response), response, lease, has_proxy });
                if answered.may_fail_in_trailers(plan.retry, &parts.method, body) {
                    // Apart, so that other requests do not carry the room for it.
                    Box::pin(answered.await_trailers(until)).await;
                }
                Ok(answered)
            }
            Err(SendError::Unsent(text)) => {
                lease.retire();
                Err(Failure::Connect { connected: true, ended: reused, text })
            }
            Err(error @ SendError::GoAway) => {
                lease.retire();
                Err(Failure::Connect { connected: true, ended: true, text: error.to_string() })
            }
            Err(error @ SendError::Refused) => Err(Failure::Refused(error.to_string())),
            Err(_) if body.is_broken() => Err(Failure::BrokenRequest),
            Err(_) if body.is_slow() => Err(Failure::SlowRequest),
            Err(SendError::Protocol(text)) => Err(Failure::Protocol(text)),
            Err(SendError::TooLarge(text)) => Err(Failure::TooLarge(text)),
            Err(SendError::Reset(text)) => Err(Failure::Reset { reused, text }),
        }
    };
    let mut outcome = match until {
        None => sending.await,
        Some(until) => tokio::time::timeout_at(until, sending).await.unwrap_or_else(|_| {
            let is_of_request = deadline.is_some_and(|deadline| deadline <= until);
            Err(if is_of_request { Failure::RequestTimeout } else { Failure::AttemptTimeout { connected: true } })
        }),
    };
    let (took, now) = (took.get().unwrap_or_else(|| started.elapsed()), worker.now());
    match &outcome {
        Ok(_) | Err(Failure::TooLarge(_)) => endpoint.observe(took, now),
        Err(
            Failure::NoEndpoints
            | Failure::Overflow
            | Failure::BrokenRequest
            | Failure::SlowRequest
            | Failure::Connect { ended: true, .. },
        ) => {}
        Err(_) => endpoint.observe(FAILURE_COST.max(took), now),
    }
    if let Upstream::Cluster(state, _) = &plan.upstream {
        // Whoever waited for its turn in vain knows nothing about the endpoint.
        let waited = !leased.get() && outcome.is_err() && state.cluster().limits.max_connections.is_some();
        if leased.get() {
            state.fallback.connected();
        } else if outcome.is_err() && !waited {
            state.fallback.connect_failed();
            if let Err(Failure::AttemptTimeout { connected }) = &mut outcome {
                *connected = false;
            }
        }
        if let Some(outcome) = judge(&outcome, waited) {
            state.record(&endpoint, outcome, now);
        }
    }
    outcome
}

async fn connect_local(endpoint: &Rc<Endpoint>, http2: bool) -> Result<Lease, LeaseError> {
    let opening = if http2 { endpoint.opening().await } else { None };
    match opening {
        Some(opening) => opening,
        None => endpoint.connect(http2, LOCAL_CONNECT_TIMEOUT, None).await,
    }
}

/// What an attempt says about its endpoint, if anything.
fn judge(outcome: &Attempted, waited: bool) -> Option<Outcome> {
    match outcome {
        Ok(answered) => Some(Outcome::of_status(answered.status)),
        Err(
            Failure::NoEndpoints
            | Failure::Overflow
            | Failure::BrokenRequest
            | Failure::SlowRequest
            | Failure::Connect { ended: true, .. },
        ) => None,
        // The endpoint did answer, and each of them would answer so: the limit is this proxy's.
        Err(Failure::TooLarge(_)) => None,
        Err(Failure::AttemptTimeout { .. } | Failure::RequestTimeout) if waited => None,
        Err(Failure::AttemptTimeout { .. } | Failure::RequestTimeout) => Some(Outcome::Local),
        Err(Failure::Connect { .. } | Failure::Refused(_) | Failure::Reset { .. } | Failure::Protocol(_)) => {
            Some(Outcome::Local)
        }
    }
}

/// What a response is judged by, as far as its head tells.
fn status_of(response: &Response<Incoming>) -> StatusCode {
    let grpc_status = response.headers().get(&GRPC_STATUS).filter(|_| response.status() == StatusCode::OK);
    grpc_status.and_then(|status| http_status(status.as_bytes())).unwrap_or(response.status())
}

/// Whether a message is one of gRPC.
fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Makes the client's response of the backend's.
fn accept(
    response: Response<Incoming>,
    lease: Lease,
    plan: &Plan<'_>,
    deadline: Option<Instant>,
    upgrade: Option<HeaderValue>,
    mut guard: Box<RequestGuard>,
) -> Response<ResponseBody> {
    guard.log.status = response.status().as_u16();
    let (mut parts, mut body) = response.into_parts();
    let switches = parts.status == StatusCode::SWITCHING_PROTOCOLS;
    let agreed = if switches { parts.headers.get(header::UPGRADE).cloned() } else { None };
    if let Err(head::BadHead(text)) = head::check_response(parts.version, &mut parts.headers) {
        return Answer::new(Reason::UpstreamProtocol, text).into_response(guard);
    }
    head::strip_hop_by_hop(&mut parts.headers, plan.protected.and_then(|protected| protected.response.as_ref()));
    if let Some(rule) = plan.rule {
        rule.response_edit.apply(&mut parts.headers);
    }
    if switches {
        // What comes behind the head of a request that is not sent yet is of the old protocol.
        let is_sent = body.take_upload().is_none();
        let text = match upgrade.filter(|_| is_sent) {
            Some(asked) if agreed.as_ref().is_none_or(|agreed| head::is_asked_for(&asked, agreed)) => {
                // So that the connection is the lease's alone.
                drop(body);
                return upgrade::switch(parts.headers, lease, agreed.unwrap_or(asked), guard);
            }
            Some(_) => "the backend changed to another protocol than it was asked for",
            None => "the backend changed the protocol unasked, or before it had all of the request",
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

/// An application cannot speak for a proxy, whether there is one beside it or not.
fn strip_own(headers: &mut HeaderMap, has_proxy: bool) {
    if has_proxy {
        headers.remove(&head::UNPROCESSED);
    } else {
        head::strip_own(headers);
    }
}

/// Reads the rest of a response that nobody wants, so that its connection can be used again; gives up soon. With a request that is
/// not sent to its end both are cut: no task would send the rest.
pub(super) fn discard(answered: Answered) {
    const BYTES_MAX: usize = 16 * 1024;
    const PATIENCE: Duration = Duration::from_millis(250);
    let Answered { response, lease, .. } = answered;
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
        if tokio::time::timeout(PATIENCE, rest).await == Ok(true) {
            lease.give_back();
        }
    });
}

// === impl Answered ===

impl Answered {
    /// Whether the proxy beside the backend says that the backend never saw the request.
    pub(super) fn is_unprocessed(&self) -> bool {
        self.has_proxy && self.response.headers().contains_key(&head::UNPROCESSED)
    }

    /// Whether it may be a call of gRPC that failed and says so in trailers, where that would be a reason to repeat the
    /// request. While the request has not ended, the server may wait for more of it.
    fn may_fail_in_trailers(&self, retry: Option<&Retry>, method: &Method, request: &SharedBody) -> bool {
        let (is_ok, headers) = (self.response.status() == StatusCode::OK, self.response.headers());
        retry.is_some_and(|retry| retry.methods.contains(method))
            && is_ok
            && is_grpc(headers)
            && !headers.contains_key(&GRPC_STATUS)
            && request.is_kept()
    }

    /// Looks into the trailers if they come soon, no later than `until`, and nothing comes before them.
    async fn await_trailers(&mut self, until: Option<Instant>) {
        let patience = Instant::now() + TRAILERS_PATIENCE;
        let body = self.response.body_mut();
        let first = poll_fn(|cx| body.poll_trailer(&GRPC_STATUS, cx));
        let until = until.map_or(patience, |until| until.min(patience));
        if let Ok(Some(status)) = tokio::time::timeout_at(until, first).await {
            self.status = http_status(status.as_bytes()).unwrap_or(self.status);
        }
    }
}

// === impl Allowance ===

impl Allowance<'_> {
    /// Why a response is not taken, if a repetition is allowed.
    fn after_response(
        &mut self,
        answered: &Answered,
        method: &Method,
        body: &SharedBody,
        tried: &[SocketAddr],
    ) -> Option<&'static str> {
        if !body.can_replay() {
            return None;
        }
        if answered.is_unprocessed() {
            let has_others = self.by_address || self.has_untried(tried);
            let most = if has_others { UNPROCESSED_RETRIES_MAX } else { SAFE_RETRIES_MAX };
            return self.safely_at_most(most, "unprocessed");
        }
        let retry = self.retry?;
        if retry.codes.contains(&answered.status) { self.by_rule(method, "status") } else { None }
    }

    /// Why an attempt is repeated, if that is allowed.
    fn after_failure(&mut self, failure: &Failure, method: &Method, body: &SharedBody) -> Option<&'static str> {
        if !body.can_replay() {
            return None;
        }
        let is_local = matches!(self.upstream, Upstream::Local(_));
        match failure {
            // The client's proxy hears of these, and can choose another pod: if both proxies retried, their tries would multiply.
            // A connection that the application ended as it ends each of them is not of that kind: another is there at once.
            Failure::Connect { connected: false, .. } if is_local => None,
            Failure::Connect { ended: false, .. } | Failure::Refused(_) if is_local && self.safe > 0 => None,
            Failure::Connect { .. } | Failure::Refused(_) => {
                self.safely("connect").or_else(|| self.by_rule(method, "connect"))
            }
            Failure::Reset { reused, .. } => self
                .by_rule(method, "reset")
                .or_else(|| if *reused && method.is_idempotent() { self.safely("reset") } else { None }),
            Failure::AttemptTimeout { connected: false } => {
                self.safely("connect").or_else(|| self.by_rule(method, "timeout"))
            }
            Failure::AttemptTimeout { connected: true } => self.by_rule(method, "timeout"),
            Failure::NoEndpoints
            | Failure::Overflow
            | Failure::BrokenRequest
            | Failure::SlowRequest
            | Failure::Protocol(_)
            | Failure::TooLarge(_)
            | Failure::RequestTimeout => None,
        }
    }

    fn safely(&mut self, why: &'static str) -> Option<&'static str> {
        self.safely_at_most(SAFE_RETRIES_MAX, why)
    }

    fn safely_at_most(&mut self, most: u32, why: &'static str) -> Option<&'static str> {
        (self.safe < most).then(|| {
            self.safe += 1;
            why
        })
    }

    fn by_rule(&mut self, method: &Method, why: &'static str) -> Option<&'static str> {
        self.retry.filter(|retry| retry.methods.contains(method))?;
        let left = self.ruled.checked_sub(1)?;
        if let Upstream::Cluster(state, _) = self.upstream
            && !state.try_spend_retry(self.worker.now())
        {
            self.spent = true;
            return None;
        }
        self.ruled = left;
        Some(why)
    }

    /// Endpoints that there are to try.
    fn endpoints(&self) -> usize {
        match self.upstream {
            Upstream::Local(_) => 1,
            Upstream::Cluster(state, subset) => state.candidate_count(subset.as_deref()),
        }
    }

    /// How long to wait before the repetition that was just allowed.
    fn wait(&self, tried: &[SocketAddr]) -> Duration {
        let ruled = self.retry.map_or(0, |retry| retry.attempts - self.ruled);
        if let (Some(retry), 1..) = (self.retry, ruled) {
            let base = retry.backoff * 2u32.saturating_pow(ruled - 1);
            let jitter = retry.backoff.mul_f64(f64::from(self.worker.rng.borrow_mut().below(1000)) / 2000.0);
            return base.min(retry.backoff * 10) + jitter;
        }
        if self.has_untried(tried) { Duration::ZERO } else { SAFE_BACKOFF * 2u32.pow(self.safe.clamp(1, 4) - 1) }
    }

    /// Whether another endpoint may be tried at once.
    fn has_untried(&self, tried: &[SocketAddr]) -> bool {
        !self.by_address && tried.len() < self.endpoints()
    }
}

// === impl Failure ===

impl Failure {
    /// Whether it may be because the server closed a connection that had idled.
    fn is_of_an_idle_connection(&self) -> bool {
        matches!(self, Self::Reset { reused: true, .. } | Self::Connect { ended: true, .. })
    }

    fn answer(self, plan: &Plan<'_>, guard: Box<RequestGuard>) -> Response<ResponseBody> {
        let inbound = guard.log.downstream.direction == Direction::Inbound;
        let whom = match (&guard.log.cluster, &plan.upstream) {
            (Some(cluster), Upstream::Cluster(_, Some(subset))) => format!("{cluster} subset {subset}"),
            (Some(cluster), _) => cluster.to_string(),
            (None, _) => "the application".to_owned(),
        };
        let (reason, detail) = match self {
            Self::NoEndpoints => match &plan.upstream {
                Upstream::Cluster(state, _) if fallback::reason(&state.cluster()) == Reason::NoLocalEndpoints => {
                    let text = "has no ready endpoint on this node, where its internalTrafficPolicy has traffic stay";
                    (Reason::NoLocalEndpoints, format!("{whom} {text}"))
                }
                Upstream::Cluster(..) | Upstream::Local(_) => {
                    (Reason::NoEndpoints, format!("{whom} has no ready endpoint"))
                }
            },
            Self::Overflow => (Reason::Overflow, format!("a limit for {whom} is reached")),
            Self::Connect { text, .. } | Self::Refused(text) => {
                (Reason::ConnectFailed, format!("no connection to {whom}: {text}"))
            }
            Self::Reset { text, .. } => (Reason::UpstreamReset, format!("{whom} closed the connection: {text}")),
            Self::BrokenRequest => (Reason::BadRequest, "the body of the request broke off, or is none".to_owned()),
            Self::SlowRequest => (Reason::SlowRequest, "the body of the request comes too slowly".to_owned()),
            Self::Protocol(text) => (Reason::UpstreamProtocol, format!("{whom} did not answer in HTTP: {text}")),
            Self::TooLarge(text) => {
                (Reason::UpstreamProtocol, format!("the answer of {whom} is not passed on: {text}"))
            }
            Self::AttemptTimeout { .. } => (Reason::AttemptTimeout, format!("{whom} did not answer in time")),
            Self::RequestTimeout => (Reason::RequestTimeout, format!("{whom} did not answer in time")),
        };
        let spent = if guard.log.retry_refused == Some(BUDGET) { ", and the retry budget is spent" } else { "" };
        let mut answer = Answer::new(reason, format!("{detail}{spent}"));
        if inbound && reason == Reason::ConnectFailed {
            answer.headers.insert(head::UNPROCESSED, HeaderValue::from_static("true"));
        }
        answer.into_response(guard)
    }
}

// === impl RequestGuard ===

impl RequestGuard {
    pub(crate) fn new(downstream: Rc<Downstream>, parts: &Request<Incoming>, host: Option<HeaderValue>) -> Box<Self> {
        let grpc = is_grpc(parts.headers());
        let log = RequestLog {
            downstream,
            started: Instant::now(),
            version: parts.version(),
            method: parts.method().clone(),
            uri: parts.uri().clone(),
            host,
            rule: 0,
            origin: None,
            cluster: None,
            endpoint: None,
            via: None,
            attempts: 0,
            hedges: 0,
            retry_refused: None,
            status: CLIENT_CLOSED,
            reason: None,
            fault_delay: None,
            body_error: None,
            response_complete: false,
            grpc,
        };
        Box::new(Self {
            log,
            bytes: 0,
            lease: None,
            permit: None,
            copies: None,
            protected: None,
            _alive: Alive::new(Kind::Request),
        })
    }

    /// Says whose word the request's fate is.
    pub(crate) fn set_rule(&mut self, rule: u64, origin: &Arc<Origin>) {
        self.log.rule = rule;
        self.log.origin = Some(origin.clone());
    }

    /// Counts the request against a limit until it is over.
    pub(crate) fn hold_permit(&mut self, permit: Permit) {
        self.permit = Some(permit);
    }

    /// Has copies made of the request when it is sent.
    pub(crate) fn mirror(&mut self, copies: Box<Copies>) {
        self.copies = Some(copies);
    }

    pub(crate) fn worker(&self) -> &Rc<Worker> {
        &self.log.downstream.worker
    }

    pub(crate) fn origin(&self) -> Option<&Arc<Origin>> {
        self.log.origin.as_ref()
    }

    pub(crate) fn is_grpc(&self) -> bool {
        self.log.grpc
    }

    /// The proxy answers by itself.
    pub(crate) fn answered(&mut self, reason: Reason, status: StatusCode) {
        self.log.reason = Some(reason);
        self.log.status = status.as_u16();
    }

    /// The response was sent whole.
    pub(crate) fn complete(&mut self) {
        self.log.response_complete = true;
    }

    /// Request and response are over: their connection can be used again if both were whole.
    pub(crate) fn give_back(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }

    /// The client broke its request off while the response was being sent.
    pub(crate) fn request_broken(&mut self) {
        self.log.body_error = Some("downstream-reset");
    }

    pub(crate) fn timed_out(&mut self) {
        self.log.body_error = Some("request-timeout");
    }

    pub(crate) fn broken(&mut self) {
        self.log.body_error = Some("upstream-reset");
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.worker().handles.finished(&self.log);
        access::request(&self.log, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_blamed_for_what_it_did() {
        let text = String::new;
        for (failure, is_blamed) in [
            (Failure::Protocol(text()), true),
            // The limit is the proxy's.
            (Failure::TooLarge(text()), false),
            (Failure::Reset { reused: true, text: text() }, true),
            (Failure::Connect { connected: true, ended: false, text: text() }, true),
            (Failure::Connect { connected: true, ended: true, text: text() }, false),
            (Failure::BrokenRequest, false),
        ] {
            assert_eq!(judge(&Err(failure), false).is_some(), is_blamed);
        }
    }
}
