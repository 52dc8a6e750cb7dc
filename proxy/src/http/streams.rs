//! The server side of a connection of HTTP/2: requests as they come, each in a task of its own, on the worker's thread.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{self, SendResponse};
use h2::{Reason, RecvStream};
use http::header::{self, HeaderValue};
use http::{Request, Response};
use http_body::Body;
use tokio::time::{Instant, sleep_until};

use super::body::{Handover, ResponseBody};
use super::gradual::Gradual;
use super::incoming::Incoming;
use super::pipe::Pipe;
use super::serve::HEAD_BYTES_MAX;
use super::watch::{Watch, Watched};
use super::{CONNECTION_WINDOW, STREAM_WINDOW, date};
use crate::worker::Shared;

/// Requests at once on one connection.
const STREAMS_MAX: u32 = 1000;

/// Bytes of a response that wait in one stream for a client that does not take them.
const SEND_BYTES_MAX: usize = 64 * 1024;

/// What becomes of one request. Ends when its client wants no more of it.
enum Stream<R> {
    /// In a box, which is given back when there is an answer: most of a stream's time goes into sending that.
    Answering(SendResponse<Bytes>, Pin<Box<R>>),
    Sending(Pipe<ResponseBody>),
}

/// Serves a connection until it closes, or until it is drained: open requests are finished, new ones are not taken.
pub(super) async fn serve<F, R>(stream: Watched, watch: &Watch, shared: &Shared, answer: F)
where
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<ResponseBody>> + 'static,
{
    let leaves = Cell::new(false);
    let mut accepting = Box::pin(accept(stream, shared.timeouts.idle, &leaves, answer));
    watch.look_after(accepting.as_mut(), &shared.drain, &leaves).await;
}

async fn accept<F, R>(stream: Watched, idle: Duration, leaves: &Cell<bool>, answer: F)
where
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<ResponseBody>> + 'static,
{
    let handshake = server::Builder::new()
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX)
        .max_send_buffer_size(SEND_BYTES_MAX)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .handshake(Gradual::new(stream));
    // What is wrong with a connection ends it; h2 has said why to the client.
    let Ok(mut connection) = handshake.await else { return };
    let mut left = false;
    loop {
        let accepted = poll_fn(|cx| {
            if leaves.get() && !left {
                left = true;
                connection.graceful_shutdown();
            }
            connection.poll_accept(cx)
        });
        let Some(Ok((request, respond))) = accepted.await else { return };
        let stream = Stream::Answering(respond, Box::pin(answer(with_body(request))));
        tokio::task::spawn_local(unless_idle(stream, idle));
    }
}

fn with_body(request: Request<RecvStream>) -> Request<Incoming> {
    let (head, stream) = request.into_parts();
    let body = Incoming::of_stream(stream, &head.headers, None);
    Request::from_parts(head, body)
}

/// Runs a stream to its end, and ends it when nothing happens in it for too long. It is reset then.
async fn unless_idle<R: Future<Output = Response<ResponseBody>>>(mut stream: Stream<R>, idle: Duration) {
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
        Pin::new(&mut stream).poll(cx)
    })
    .await;
}

// === impl Stream ===

impl<R: Future<Output = Response<ResponseBody>>> Future for Stream<R> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Self::Answering(respond, answering) = &mut *self {
            let Poll::Ready(response) = answering.as_mut().poll(cx) else {
                // To be woken when the client resets the stream.
                return respond.poll_reset(cx).map(|_| ());
            };
            match begin(respond, response) {
                Some(pipe) => *self = Self::Sending(pipe),
                None => return Poll::Ready(()),
            }
        }
        let Self::Sending(pipe) = &mut *self else { return Poll::Ready(()) };
        ready!(Pin::new(pipe).poll(cx));
        Poll::Ready(())
    }
}

/// Sends the head of a response. None: nothing follows, or nothing that is sent from here.
fn begin(respond: &mut SendResponse<Bytes>, response: Response<ResponseBody>) -> Option<Pipe<ResponseBody>> {
    let (mut head, mut body) = response.into_parts();
    // RFC 9110 6.6.1: who passes a response on gives it a date if it has none.
    head.headers.entry(header::DATE).or_insert_with(date::now);
    let handover = body.take_handover();
    let ends = body.is_end_stream() && handover.is_none();
    if !body.is_end_stream()
        && let Some(length) = body.size_hint().exact()
    {
        head.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
    let stream = match respond.send_response(Response::from_parts(head, ()), ends) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, "a response could not be sent");
            respond.send_reset(Reason::INTERNAL_ERROR);
            return None;
        }
    };
    match handover {
        // Who asked for it may have given up meanwhile: the stream is reset then.
        Some(Handover::Stream(next)) => drop(next.send(stream)),
        Some(Handover::Connection(_)) => {}
        None if ends => {}
        None => return Some(Pipe::new(stream, body, Reason::INTERNAL_ERROR)),
    }
    None
}
