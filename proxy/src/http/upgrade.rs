//! HTTP upgrades (WebSocket and the like). After the backend's 101 the connection is relayed as TCP and never returns
//! to a pool.

use std::cell::OnceCell;
use std::future::pending;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};
use tokio::sync::oneshot;

use super::guard::RequestGuard;
use super::response_body::{Content, Handover};
use crate::judge::{self, RefusedRequest};
use crate::table::Inbound;
use crate::tcp::{self, End};
use crate::telemetry::access::{self, ConnectionLog, RequestLog};
use crate::telemetry::alive;
use crate::upstream::endpoint::Lease;
use crate::upstream::http1::Upgraded;

/// Forwards a 101 with these headers, then relays bytes in both directions until one side closes. `judged`: the headers
/// of an inbound request and the changes after which it was judged; when it is no longer allowed, the relay ends.
pub(crate) fn switch(
    mut headers: HeaderMap,
    mut lease: Lease,
    protocol: HeaderValue,
    judged: Option<(HeaderMap, u64)>,
    guard: &mut RequestGuard,
) -> Response<Content> {
    let upstream = lease.upgrade();
    let (next, end) = oneshot::channel();
    let RequestLog { downstream, method, uri, cluster, endpoint, .. } = &guard.log;
    let (downstream, method, uri) = (downstream.clone(), method.clone(), uri.clone());
    let mut log = ConnectionLog::new(&downstream);
    (log.cluster, log.endpoint) = (cluster.clone(), *endpoint);
    alive::spawn(async move {
        // Held for the duration of the relay: counts as in flight at the endpoint and against the connection limit.
        let _lease = lease;
        let (end, Some(Upgraded { stream, read, permit: _permit })) = (end.await, upstream) else { return };
        let Ok(end) = end else {
            // The client disconnected before the handover.
            return stream.abort();
        };
        let refusal = OnceCell::new();
        let refused = async {
            let Some((headers, seen)) = judged else { return pending().await };
            let judge = |inbound: &Inbound| judge::request(&downstream, inbound, &method, &uri, &headers);
            let _ = refusal.set(judge::refused(&downstream, seen, judge).await);
        };
        let shared = &downstream.worker.shared;
        let relayed = tcp::relay(end, End { stream, read }, shared.timeouts.idle, &shared.drain, refused).await;
        // The request has its own entry in the log, which was written with the 101.
        if let Some(RefusedRequest { refusal, .. }) = refusal.get() {
            log.relayed(relayed);
            log.refused(refusal);
            access::connection(log);
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
