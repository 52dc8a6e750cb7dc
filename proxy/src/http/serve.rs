//! The server side of a connection, HTTP/1.1 ([`requests`]) or HTTP/2 ([`streams`]), with timeouts
//! ([`ConnectionTimers`]) and draining.

use std::rc::Rc;

use futures_util::future::Either;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};

use super::incoming::Incoming;
use super::response_body::ResponseBody;
use super::watch::{ConnectionTimers, TimedStream};
use super::{head, requests, streams};
use crate::downstream::Downstream;
use crate::sniff::Prefixed;

/// Serves a connection until it closes or is drained: open requests complete, new ones are not accepted. Invalid
/// requests are answered and logged here and do not reach `handle`.
///
/// The set-up runs before the future is created, so that the future, which is what an idle connection costs, does not
/// store it.
pub(crate) fn serve<F, R>(
    stream: Prefixed,
    http2: bool,
    downstream: Rc<Downstream>,
    handle: F,
) -> impl Future<Output = ()>
where
    F: Fn(Box<Request<Incoming>>) -> R + 'static,
    R: Future<Output = Response<ResponseBody>> + 'static,
{
    let shared = &downstream.worker.shared;
    let handle = Rc::new(handle);
    // In HTTP/2 the first bytes are the preface, and the connection reports which heads are timed.
    let timers = Rc::new(ConnectionTimers::new(shared.timeouts, !http2, stream.has_unread()));
    let stream = TimedStream::new(stream, timers.clone(), shared.memory.clone());
    let (request_timers, request_downstream) = (timers.clone(), downstream.clone());
    let service = move |mut request: Request<Incoming>| {
        let open_request = request_timers.open_request();
        head::normalize(&mut request);
        let is_connect = request.method() == Method::CONNECT;
        // Boxed: large.
        let request = Box::new(request);
        let (handle, downstream) = (handle.clone(), request_downstream.clone());
        async move {
            let mut response = handle(request).await;
            let is_scarce = || downstream.worker.shared.memory.is_scarce();
            if !http2 && !is_connect && response.status() != StatusCode::SWITCHING_PROTOCOLS && is_scarce() {
                // Frees the connection's memory. HTTP/2 has no such header; there, requests are refused if memory runs
                // out.
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            response.body_mut().open_request = Some(open_request);
            response
        }
    };
    // A connection error ends the connection; each request logs what the error means for it.
    if http2 {
        // Boxed: large.
        Either::Left(Box::pin(streams::serve(stream, timers, downstream, service)))
    } else {
        Either::Right(requests::serve(stream, timers, downstream, service))
    }
}
