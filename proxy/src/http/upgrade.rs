//! What was HTTP and is bytes from now on (WebSocket and its like). Bytes pass only after the backend's own 101, and the
//! connections never go back to a pool.

use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};
use tokio::sync::oneshot;

use super::body::{Handover, ResponseBody};
use super::forward::RequestGuard;
use crate::stream::Stream;
use crate::tcp::{self, End};
use crate::telemetry::alive;
use crate::upstream::endpoint::Lease;
use crate::upstream::http1::Upgraded;

/// Passes a 101 on with these headers, and then bytes both ways until one side has had enough.
pub(crate) fn switch(
    mut headers: HeaderMap,
    mut lease: Lease,
    agreed: HeaderValue,
    mut guard: Box<RequestGuard>,
) -> Response<ResponseBody> {
    let upstream = lease.upgrade();
    let (next, end) = oneshot::channel();
    let downstream = guard.log.downstream.clone();
    alive::spawn(async move {
        // The endpoint counts it as in flight as long as it lasts, and its limits count the connection.
        let _lease = lease;
        let (end, Some(Upgraded { stream, read, permit: _permit })) = (end.await, upstream) else { return };
        let (stream, shared) = (Stream::Plain(stream), &downstream.worker.shared);
        match end {
            Ok(end) => drop(tcp::relay(end, End { stream, read }, shared.timeouts.idle, &shared.drain).await),
            // The client left before the connection was handed over.
            Err(_) => stream.cut(),
        }
    });
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, agreed);
    let mut switched = Response::new(());
    *switched.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *switched.headers_mut() = headers;
    guard.log.status = StatusCode::SWITCHING_PROTOCOLS.as_u16();
    switched.map(|()| ResponseBody::handover(Handover::Connection(next), guard))
}
