//! The server side of a connection of HTTP/2: requests as they come, each in a task of its own, on the worker's thread.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body::Body;
use tokio::time::{Instant, Sleep, sleep};

use super::body::{Handover, ResponseBody};
use super::incoming::Incoming;
use super::pipe::{Broken, Pipe};
use super::serve::HEAD_BYTES_MAX;
use super::watch::{Watch, Watched};
use super::{CONNECTION_WINDOW, STREAM_WINDOW, date, respond};
use crate::clock::Tick;
use crate::downstream::Downstream;
use crate::http1::parse::BadMessage;
use crate::http2::{Connection, Limits, Reason, SendStream};
use crate::telemetry::access;
use crate::telemetry::alive;

/// What one connection may ask of us.
const LIMITS: Limits = Limits {
    streams: 1000,
    stream_window: STREAM_WINDOW,
    connection_window: CONNECTION_WINDOW,
    head_bytes: HEAD_BYTES_MAX,
};

/// How often a client that sends nothing more, and waits for answers, is looked for. One that has closed its connection altogether
/// is noticed at the first look: what was said when it did has made a reset of it.
const LOOK: Duration = Duration::from_secs(1);

/// A request whose stream was reset: HTTP/2 has no answer to it that a client would have to read (RFC 9113 8.1.1).
const MALFORMED: BadMessage = BadMessage {
    text: "the head is malformed, or its length is not that of the body",
    status: StatusCode::BAD_REQUEST,
};

/// What becomes of one request. Ends when its client wants no more of it.
enum Stream<R> {
    /// In a box, which is given back when there is an answer: most of a stream's time goes into sending that.
    Answering(Option<SendStream>, Pin<Box<R>>),
    Sending(Pipe<ResponseBody>),
}

/// Serves a connection until it closes, or until it is drained: open requests are finished, new ones are not taken.
pub(super) fn serve<F, R>(
    stream: Watched,
    watch: Rc<Watch>,
    downstream: Rc<Downstream>,
    answer: F,
) -> impl Future<Output = ()>
where
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<ResponseBody>> + 'static,
{
    let connection = Box::new(Connection::server(stream, LIMITS));
    async move {
        let leaves = Cell::new(false);
        let mut accepting = pin!(accept(connection, &watch, &downstream, &leaves, &answer));
        watch.look_after(accepting.as_mut(), &downstream.worker.shared.drain, &leaves).await;
    }
}

async fn accept<F, R>(
    mut connection: Box<Connection<Watched>>,
    watch: &Watch,
    downstream: &Downstream,
    leaves: &Cell<bool>,
    answer: &F,
) where
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<ResponseBody>> + 'static,
{
    let mut left = false;
    let mut look: Option<Pin<Box<Sleep>>> = None;
    loop {
        let accepted = poll_fn(|cx| {
            if leaves.get() && !left {
                left = true;
                connection.graceful_shutdown();
            }
            let mut accepted = connection.poll_accept(cx);
            while accepted.is_pending() && connection.is_read_closed() {
                let look = look.get_or_insert_with(|| Box::pin(sleep(LOOK)));
                ready!(look.as_mut().poll(cx));
                look.as_mut().reset(Instant::now() + LOOK);
                connection.probe();
                accepted = connection.poll_accept(cx);
            }
            watch.note_head(connection.incomplete_since());
            (0..connection.take_malformed()).for_each(|_| access::refused(downstream, &MALFORMED));
            accepted
        });
        let Some((request, mut sending, receiving)) = accepted.await else { return };
        let Ok(request) = request else {
            access::refused(downstream, &BadMessage::TOO_LARGE);
            // The client may have left.
            let _ = sending.respond(BadMessage::TOO_LARGE.status, &respond::to_bad_message(), true);
            continue;
        };
        let (head, ()) = request.into_parts();
        let body = Incoming::of_stream(receiving, &head.headers, None);
        let stream = Stream::Answering(Some(sending), Box::pin(answer(Request::from_parts(head, body))));
        alive::spawn(unless_idle(stream, downstream.worker.shared.timeouts.idle));
    }
}

/// Runs a stream to its end, and ends it when nothing happens in it for too long. It is reset then.
async fn unless_idle<R: Future<Output = Response<ResponseBody>>>(mut stream: Stream<R>, idle: Duration) {
    let mut moved = Tick::now();
    let mut timer = pin!(sleep(idle));
    poll_fn(|cx| {
        // Whatever wakes the stream is news of it, but for the timer.
        while timer.as_mut().poll(cx).is_ready() {
            let left = idle.saturating_sub(moved.elapsed());
            if left.is_zero() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(Instant::now() + left);
        }
        moved = Tick::now();
        Pin::new(&mut stream).poll(cx)
    })
    .await;
}

// === impl Stream ===

impl<R: Future<Output = Response<ResponseBody>>> Future for Stream<R> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Self::Answering(sending, answering) = &mut *self {
            let Poll::Ready(response) = answering.as_mut().poll(cx) else {
                // To be woken when the client resets the stream.
                return sending.as_mut().map_or(Poll::Ready(()), |sending| sending.poll_error(cx).map(|_| ()));
            };
            match sending.take().and_then(|sending| begin(sending, response)) {
                Some(pipe) => *self = Self::Sending(pipe),
                None => return Poll::Ready(()),
            }
        }
        let Self::Sending(pipe) = &mut *self else { return Poll::Ready(()) };
        // Whether the client takes the response or not: it may send all of its request before it reads.
        let uploaded = pipe.body_mut().poll_upload(cx);
        match ready!(pipe.poll_send(cx)) {
            Ok(()) if uploaded.is_pending() => pipe.poll_reset(cx),
            Ok(()) | Err(Broken::Body(_)) => Poll::Ready(()),
            Err(Broken::Stream(error)) => {
                tracing::debug!(%error, "the rest of a response has nowhere to go");
                Poll::Ready(())
            }
        }
    }
}

/// Sends the head of a response. None: nothing follows, or nothing that is sent from here.
fn begin(mut sending: SendStream, response: Response<ResponseBody>) -> Option<Pipe<ResponseBody>> {
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
    if let Err(error) = sending.respond(head.status, &head.headers, ends) {
        tracing::debug!(%error, "a response could not be sent");
        return None;
    }
    match handover {
        // Who asked for it may have given up meanwhile: the stream is reset then.
        Some(Handover::Stream(next)) => drop(next.send(sending)),
        Some(Handover::Connection(_)) => {}
        None if ends && body.has_upload() => return Some(Pipe::after_end(sending, body)),
        None if ends => {}
        None => return Some(Pipe::new(sending, body, Reason::INTERNAL_ERROR)),
    }
    None
}
