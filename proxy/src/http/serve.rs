//! The server side of a connection: HTTP/1.1 or HTTP/2, request by request, drained when the process is.
//!
//! What differs between them is in [`requests`] and [`streams`]. A [`Watch`] ends what lasts too long.

use std::rc::Rc;

use futures_util::future::Either;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};

use super::body::ResponseBody;
use super::incoming::Incoming;
use super::watch::{Watch, Watched};
use super::{head, requests, streams};
use crate::downstream::Downstream;
use crate::sniff::Prefixed;

/// Bytes of a request's head, as sent in HTTP/1.1 and as decoded in HTTP/2.
pub(super) const HEAD_BYTES_MAX: u32 = 64 * 1024;

/// Serves a connection until it closes, or until it is drained: open requests are finished, new ones are not taken. What came
/// and is no request is answered and noted here.
///
/// What can be done before the first wait is, so that the future has no room for it: it is what an idle connection costs.
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
    // In HTTP/2 the first bytes are the preface, and what is timed is for the connection to say.
    let watch = Rc::new(Watch::new(shared.timeouts, !http2, stream.has_begun()));
    let stream = Watched::new(stream, watch.clone(), shared.memory.clone());
    let (opening, answered) = (watch.clone(), downstream.clone());
    let answer = move |mut request: Request<Incoming>| {
        let open = opening.open();
        head::unify(&mut request);
        let connects = request.method() == Method::CONNECT;
        // In a box, because it is handed on from one future to the next, and each keeps room for it.
        let request = Box::new(request);
        let (handle, downstream) = (handle.clone(), answered.clone());
        async move {
            let mut response = handle(request).await;
            let is_scarce = || downstream.worker.shared.memory.is_scarce();
            if !http2 && !connects && response.status() != StatusCode::SWITCHING_PROTOCOLS && is_scarce() {
                // What is not kept open takes no memory. HTTP/2 has no such header; its requests are refused when it must be.
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            response.body_mut().open = Some(open);
            response
        }
    };
    // Errors of a connection end that connection; what they mean for a request is noted by the request.
    if http2 {
        // In a box, so that a connection of HTTP/1.1, which serves fewer requests, takes no more memory than it needs.
        Either::Left(Box::pin(streams::serve(stream, watch, downstream, answer)))
    } else {
        Either::Right(requests::serve(stream, watch, downstream, answer))
    }
}
