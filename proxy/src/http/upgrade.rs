//! What was HTTP and is bytes from now on (WebSocket and its like). Bytes pass only after the backend's own 101, and the
//! connections never go back to a pool.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::body::ResponseBody;
use super::forward::Finish;
use super::head;
use super::watch::Watched;
use crate::stream::Stream;
use crate::tcp::{self, End};
use crate::upstream::endpoint::Lease;
use crate::upstream::patient::Patient;
use crate::worker::Shared;

/// Passes a 101 on, and then bytes both ways until one side has had enough.
pub(crate) fn switch(
    response: Response<Incoming>,
    lease: Lease,
    protocol: HeaderValue,
    downstream: OnUpgrade,
    mut finish: Box<Finish>,
) -> Response<ResponseBody> {
    let mut headers = response.headers().clone();
    let upstream = hyper::upgrade::on(response);
    let shared = finish.worker().shared.clone();
    carry(&finish.worker().shared, async move {
        // The endpoint counts it as in flight as long as it lasts.
        let _lease = lease;
        let (Some(downstream), Ok(upstream)) = (client(downstream).await, upstream.await) else { return };
        // It is what `Endpoint::connect` gave to hyper.
        let Ok(upstream) = upstream.downcast::<TokioIo<Patient>>() else { return };
        let upstream = End { stream: Stream::Plain(upstream.io.into_inner().into_inner()), read: upstream.read_buf };
        tcp::relay(downstream, upstream, shared.timeouts.idle, &shared.drain).await;
    });
    let agreed = headers.get(header::UPGRADE).cloned().unwrap_or(protocol);
    head::strip_hop_by_hop(&mut headers);
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, agreed);
    let mut switched = Response::new(());
    *switched.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *switched.headers_mut() = headers;
    finish.note.status = StatusCode::SWITCHING_PROTOCOLS.as_u16();
    switched.map(|()| ResponseBody::full(Bytes::new(), finish))
}

/// Carries bytes in a task of its own. The process waits for it when it is drained.
pub(crate) fn carry(shared: &Shared, bytes: impl Future<Output = ()> + 'static) {
    tokio::task::spawn_local(shared.connections.track_future(bytes));
}

/// The client's end of an HTTP/1.1 connection that was answered and is bytes from now on, with those that came early.
pub(crate) async fn client(downstream: OnUpgrade) -> Option<End> {
    // It is what `serve` gave to hyper.
    let downstream = downstream.await.ok()?.downcast::<TokioIo<Watched>>().ok()?;
    let End { stream, read } = downstream.io.into_inner().into_inner().into_end();
    Some(End { stream, read: [downstream.read_buf, read].concat().into() })
}
