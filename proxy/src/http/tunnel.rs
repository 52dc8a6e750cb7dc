//! CONNECT: a tunnel to an endpoint of the backend that a rule selects, not to the host that the client names.
//!
//! The proxy terminates the tunnel and relays its bytes to the endpoint unchanged. It responds 200 once the endpoint is
//! connected; bytes that the client sends earlier wait. Neither connection returns to a pool. Over HTTP/2 the tunnel is
//! one stream.

use std::future::pending;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::Either;
use http::{Request, Response, StatusCode};
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use super::guard::RequestGuard;
use super::incoming::Incoming;
use super::respond::{Answer, Reply};
use super::response_body::{Content, Handover};
use crate::downstream::Downstream;
use crate::multiplexed::Multiplexed;
use crate::reason::Reason;
use crate::stream::Stream;
use crate::table::Cluster;
use crate::table::backend::BackendFilters;
use crate::table::route::Rule;
use crate::tcp::{self, End};
use crate::telemetry::access::SERVICE_ADDRESS;
use crate::telemetry::alive;
use crate::upstream::connect::{Connected, NotConnected, connect};
use crate::upstream::fallback;
use crate::upstream::shared_cluster::{Kind, Permit};

/// The answer to a CONNECT that no rule matches.
pub(crate) fn refusal() -> Box<Answer> {
    Answer::new(Reason::ConnectRefused, "no route rule matches this CONNECT: a match with method CONNECT is required")
}

/// Connects to an endpoint of the cluster, responds 200, and relays bytes in both directions until one side closes.
pub(crate) async fn open(
    request: Box<Request<Incoming>>,
    cluster: &Arc<Cluster>,
    subset: Option<&str>,
    rule: &Rule,
    backend: Option<&BackendFilters>,
    guard: &mut RequestGuard,
) -> Reply {
    let worker = guard.worker().clone();
    let state = worker.cluster(cluster);
    let Some(permit) = state.shared.admit(Kind::Connection, cluster.limits.max_connections) else {
        let text =
            format!("{} has reached maxConnections ({})", cluster.name, cluster.limits.max_connections.unwrap_or(0));
        return Err(Answer::new(Reason::Overflow, text));
    };
    let (parts, body) = request.into_parts();
    let affinity = state.affinity(&parts, guard.log.downstream.peer.ip());
    let started = guard.log.started;
    let connecting = connect(&worker, cluster, subset, affinity, &mut guard.log.attempts);
    let connected = match rule.request_timeout {
        None => connecting.await,
        Some(timeout) => timeout_at(started + timeout, connecting).await.unwrap_or(Err(NotConnected {
            reason: Reason::RequestTimeout,
            endpoint: None,
            error: None,
        })),
    };
    let upstream = match connected {
        Ok(Connected { endpoint, stream, security }) => {
            (guard.log.endpoint, guard.log.security) = (Some(endpoint), security);
            guard.log.via = (Some(endpoint) == cluster.address).then_some(SERVICE_ADDRESS);
            stream
        }
        Err(NotConnected { reason, endpoint, error }) => {
            guard.log.endpoint = endpoint;
            let name = &cluster.name;
            let text = match reason {
                Reason::NoEndpoints | Reason::NoLocalEndpoints => fallback::text(reason, name),
                Reason::RequestTimeout => format!("connecting to {name} timed out"),
                _ => match error {
                    Some(error) => format!("connecting to {name} failed: {error}"),
                    None => format!("connecting to {name} failed"),
                },
            };
            return Err(Answer::new(reason, text));
        }
    };
    let handover = spawn_relay(body, upstream, permit, guard.log.downstream.clone());
    let mut response = Response::new(());
    rule.edit_response(backend, response.headers_mut());
    guard.log.status = StatusCode::OK.as_u16();
    Ok(response.map(|()| Content::Handover(handover)))
}

/// Starts the task that relays the tunnel, once the client's connection or stream is handed over to it.
fn spawn_relay(body: Incoming, upstream: Stream, permit: Permit, downstream: Rc<Downstream>) -> Handover {
    let (end, handover) = match body {
        Incoming::Http2(body) => {
            let ((next, sent), received) = (oneshot::channel(), body.into_stream());
            let stream = async { Some(Stream::Multiplexed(Box::new(Multiplexed::new(sent.await.ok()?, received)))) };
            let end = async { Some(End { stream: stream.await?, read: Bytes::new() }) };
            (Either::Left(end), Handover::Stream(next))
        }
        Incoming::FromClient(_) | Incoming::FromServer(_) => {
            let (next, end) = oneshot::channel();
            (Either::Right(async { end.await.ok() }), Handover::Connection(next))
        }
    };
    alive::spawn(async move {
        // Held for the duration of the tunnel: it counts as a connection of the cluster.
        let _permit = permit;
        let shared = &downstream.worker.shared;
        match end.await {
            Some(end) => drop(tcp::relay(end, upstream.into(), shared.timeouts.idle, &shared.drain, pending()).await),
            // The client disconnected before the handover.
            None => upstream.abort(),
        }
    });
    handover
}
