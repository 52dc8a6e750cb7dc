//! The server side of a connection: HTTP/1.1 or HTTP/2, request by request, drained when the process is.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};

use super::body::ResponseBody;
use super::{CONNECTION_WINDOW, STREAM_WINDOW};
use crate::sniff::Prefixed;
use crate::upstream::endpoint::LocalExecutor;
use crate::worker::Shared;

/// How long a client may take for a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Headers of a request. Source: Envoy's default.
const HEADERS_MAX: usize = 100;

/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 1000;

/// Serves a connection until it closes, or until it is drained: open requests are finished, new ones are not taken.
pub(crate) async fn serve<F, R>(stream: Prefixed, http2: bool, shared: &Arc<Shared>, handle: F)
where
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<ResponseBody>> + 'static,
{
    let drain = &shared.drain;
    let memory = shared.memory.clone();
    let service = service_fn(move |request| {
        let response = handle(request);
        let memory = memory.clone();
        async move {
            let mut response = response.await;
            // What is not kept open takes no memory. HTTP/2 has no such header; its requests are refused when it must be.
            if !http2 && memory.is_scarce() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let io = TokioIo::new(stream);
    // Errors of a connection end that connection; what they mean for a request is noted by the request.
    if http2 {
        let mut connection = pin!(
            http2::Builder::new(LocalExecutor)
                .timer(TokioTimer::new())
                .max_concurrent_streams(STREAMS_MAX)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .serve_connection(io, service)
        );
        tokio::select! {
            _ = &mut connection => return,
            () = drain.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    } else {
        let mut connection = pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_headers(HEADERS_MAX)
                .max_buf_size(HEAD_BYTES_MAX)
                .serve_connection(io, service)
                .with_upgrades()
        );
        tokio::select! {
            _ = &mut connection => return,
            () = drain.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    }
}
