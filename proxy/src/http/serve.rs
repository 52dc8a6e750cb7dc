//! The server side of a connection: HTTP/1.1 or HTTP/2, request by request, drained when the process is.
//!
//! What differs between them is in [`requests`] and [`streams`]. A [`Watch`] ends what lasts too long.

use std::rc::Rc;
use std::sync::Arc;

use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};

use super::body::ResponseBody;
use super::incoming::Incoming;
use super::watch::{Watch, Watched};
use super::{head, requests, streams};
use crate::http1::parse::BadMessage;
use crate::sniff::Prefixed;
use crate::worker::Shared;

/// Bytes of a request's head, as sent in HTTP/1.1 and as decoded in HTTP/2.
pub(super) const HEAD_BYTES_MAX: u32 = 64 * 1024;

/// Serves a connection until it closes, or until it is drained: open requests are finished, new ones are not taken. What came
/// and is no request is answered here, and noted by `refused`.
pub(crate) async fn serve<F, R>(
    stream: Prefixed,
    http2: bool,
    shared: &Shared,
    handle: F,
    refused: impl Fn(&BadMessage),
) where
    F: Fn(Box<Request<Incoming>>) -> R + 'static,
    R: Future<Output = Response<ResponseBody>> + 'static,
{
    let handle = Rc::new(handle);
    // In HTTP/2 the first bytes are the preface, and a head may be long in coming.
    let watch = Arc::new(Watch::new(shared.timeouts, !http2, stream.has_begun()));
    let answer = |mut request: Request<Incoming>| {
        let open = watch.open();
        head::unify(&mut request);
        let connects = request.method() == Method::CONNECT;
        // In a box, because it is handed on from one future to the next, and each keeps room for it.
        let request = Box::new(request);
        let (handle, memory) = (handle.clone(), shared.memory.clone());
        async move {
            let mut response = handle(request).await;
            if !http2 && !connects && memory.is_scarce() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                // What is not kept open takes no memory. HTTP/2 has no such header; its requests are refused when it must be.
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            response.body_mut().open = Some(open);
            response
        }
    };
    let stream = Watched::new(stream, watch.clone(), shared.memory.clone());
    // Errors of a connection end that connection; what they mean for a request is noted by the request.
    if http2 {
        streams::serve(stream, &watch, shared, answer, refused).await;
    } else {
        requests::serve(stream, &watch, shared, answer, refused).await;
    }
}
