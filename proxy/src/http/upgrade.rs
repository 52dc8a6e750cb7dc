//! HTTP upgrades (WebSocket and the like). After the backend's 101 the connection is relayed as TCP and never returns
//! to a pool.

use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};
use tokio::sync::oneshot;

use super::guard::RequestGuard;
use super::response_body::{Content, Handover};
use crate::tcp::{self, End};
use crate::telemetry::alive;
use crate::upstream::endpoint::Lease;
use crate::upstream::http1::Upgraded;

/// Forwards a 101 with these headers, then relays bytes in both directions until one side closes.
pub(crate) fn switch(
    mut headers: HeaderMap,
    mut lease: Lease,
    protocol: HeaderValue,
    guard: &mut RequestGuard,
) -> Response<Content> {
    let upstream = lease.upgrade();
    let (next, end) = oneshot::channel();
    let downstream = guard.log.downstream.clone();
    alive::spawn(async move {
        // Held for the duration of the relay: counts as in flight at the endpoint and against the connection limit.
        let _lease = lease;
        let (end, Some(Upgraded { stream, read, permit: _permit })) = (end.await, upstream) else { return };
        let shared = &downstream.worker.shared;
        match end {
            Ok(end) => drop(tcp::relay(end, End { stream, read }, shared.timeouts.idle, &shared.drain).await),
            // The client disconnected before the handover.
            Err(_) => stream.abort(),
        }
    });
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers;
    guard.log.status = StatusCode::SWITCHING_PROTOCOLS.as_u16();
    response.map(|()| Content::Handover(Handover::Connection(next)))
}
