//! The server side of a connection: HTTP/1.1 or HTTP/2, request by request, drained when the process is.
//!
//! hyper reads and writes; a [`Watch`] ends what lasts too long. A stream of HTTP/2 on which nothing moves is reset
//! ([`StreamExecutor`]). A connection of HTTP/1.1 that rests between requests gives back all that was held for it, about
//! 20 KB, and is no more than a socket that is waited for: most connections in a mesh rest most of the time.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::{Body, Incoming};
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::{Instant, sleep_until};

use super::body::ResponseBody;
use super::gradual::Gradual;
use super::watch::{Left, Watch, Watched};
use super::{CONNECTION_WINDOW, STREAM_WINDOW, head};
use crate::sniff::Prefixed;
use crate::worker::Shared;

/// Bytes of a request's head, as sent in HTTP/1.1 and as decoded in HTTP/2.
const HEAD_BYTES_MAX: u32 = 64 * 1024;

/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 1000;

/// Bytes of a response that wait in one HTTP/2 stream for a client that does not take them. hyper's default, 400 KiB,
/// would let one connection hold 400 MB.
const SEND_BYTES_MAX: usize = 64 * 1024;

/// Runs the tasks of HTTP/2 streams on the worker's own thread, and ends those in which nothing happens for `idle`.
#[derive(Clone, Copy, Debug)]
struct StreamExecutor {
    idle: Duration,
}

/// Serves a connection until it closes, or until it is drained: open requests are finished, new ones are not taken.
pub(crate) async fn serve<F, R>(stream: Prefixed, http2: bool, shared: &Shared, handle: F)
where
    F: Fn(Box<Request<Incoming>>) -> R + 'static,
    R: Future<Output = Response<ResponseBody>> + 'static,
{
    let handle = Rc::new(handle);
    // In HTTP/2 the first bytes are the preface, and a head may be long in coming.
    let watch = Arc::new(Watch::new(shared.timeouts, !http2, stream.has_begun()));
    let service = service_fn(|mut request: Request<Incoming>| {
        let open = watch.open(request.body().is_end_stream());
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
            Ok::<_, Infallible>(response)
        }
    });
    let stream = Watched::new(stream, watch.clone(), shared.memory.clone());
    // Errors of a connection end that connection; what they mean for a request is noted by the request.
    if http2 {
        serve_http2(stream, &watch, shared, service).await;
    } else {
        serve_http1(stream, &watch, shared, service).await;
    }
}

async fn serve_http1<S>(mut stream: Watched, watch: &Watch, shared: &Shared, mut service: S)
where
    S: HttpService<Incoming, ResBody = ResponseBody, Error = Infallible>,
{
    let mut drained = pin!(shared.drain.cancelled());
    loop {
        // In a box, to be given back when the connection rests.
        let mut connection = Box::pin(
            http1::Builder::new()
                .timer(TokioTimer::new())
                // Heads are timed by the watch, which tells a head that has begun from a client that says nothing.
                .header_read_timeout(None::<Duration>)
                .max_headers(head::HEADERS_MAX)
                .max_buf_size(HEAD_BYTES_MAX as usize)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades(),
        );
        tokio::select! {
            left = watch.look_after(connection.as_mut()) => if left != Left::Resting { return },
            () = drained.as_mut() => {
                connection.as_mut().graceful_shutdown();
                while watch.look_after(connection.as_mut()).await == Left::Resting {}
                return;
            }
        }
        let Some(parts) = Pin::into_inner(connection).into_parts() else { return };
        (stream, service) = (parts.io.into_inner(), parts.service);
        // Empty or not, it holds the buffer that it is a part of.
        let read = Some(parts.read_buf).filter(|read| !read.is_empty());
        let next = async {
            match read {
                None => stream.wake().await,
                Some(read) => stream.put_back(&read),
            }
        };
        let awake = tokio::select! {
            awake = next => awake,
            () = sleep_until(watch.deadline()) => false,
            () = drained.as_mut() => false,
        };
        if !awake {
            return stream.farewell().await;
        }
    }
}

async fn serve_http2<S>(stream: Watched, watch: &Watch, shared: &Shared, service: S)
where
    S: HttpService<Incoming, ResBody = ResponseBody, Error = Infallible>,
    S::Future: 'static,
{
    let mut connection = Box::pin(
        http2::Builder::new(StreamExecutor { idle: shared.timeouts.idle })
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEAD_BYTES_MAX)
            .max_send_buf_size(SEND_BYTES_MAX)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .serve_connection(TokioIo::new(Gradual::new(stream)), service),
    );
    tokio::select! {
        _ = watch.look_after(connection.as_mut()) => return,
        () = shared.drain.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    watch.look_after(connection.as_mut()).await;
}

// === impl StreamExecutor ===

impl<F> Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, stream: F) {
        let idle = self.idle;
        let mut stream = Box::pin(stream);
        tokio::task::spawn_local(async move {
            let mut moved = Instant::now();
            let mut timer = pin!(sleep_until(moved + idle));
            poll_fn(|cx| {
                // Whatever wakes the stream is news of it, but for the timer.
                while timer.as_mut().poll(cx).is_ready() {
                    if moved.elapsed() >= idle {
                        return Poll::Ready(());
                    }
                    timer.as_mut().reset(moved + idle);
                }
                moved = Instant::now();
                stream.as_mut().poll(cx)
            })
            .await;
        });
    }
}
