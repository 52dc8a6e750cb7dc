//! The server side of an HTTP/2 connection: requests run concurrently, each in its own task on the worker's thread.

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
use weft_codec::Tick;
use weft_codec::http1::parse::BadMessage;
use weft_codec::http2::{Connection, Reason, SendStream};

use super::incoming::Incoming;
use super::pipe::{Pipe, PipeError};
use super::response_body::{Handover, ResponseBody};
use super::watch::{ConnectionTimers, TimedStream};
use super::{date, limits, respond};
use crate::downstream::Downstream;
use crate::judge;
use crate::telemetry::{access, alive};

/// Concurrent streams of one downstream connection.
const STREAMS_MAX: u32 = 1000;

/// How often a client that has closed its sending half (FIN) is probed while responses are pending. If it has closed
/// its socket completely, the first probe finds a reset: what was sent to it after the FIN has caused one.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// For the access log: a malformed request, whose stream was reset (RFC 9113 8.1.1) and which gets no response.
const MALFORMED: BadMessage =
    BadMessage { text: "malformed head, or Content-Length does not match the body", status: StatusCode::BAD_REQUEST };

/// One request. Ends early when the client resets its stream.
enum Stream<R> {
    /// The handler runs. Boxed: short-lived, as a stream spends most of its time sending the response.
    Handling(Option<SendStream>, Pin<Box<R>>),
    /// The response body is sent.
    Sending(Pipe<ResponseBody>),
}

/// Serves a connection until it closes or is drained: open requests complete, new ones are not accepted.
pub(super) fn serve<F, R>(
    stream: TimedStream,
    timers: Rc<ConnectionTimers>,
    downstream: Rc<Downstream>,
    service: F,
) -> impl Future<Output = ()>
where
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<ResponseBody>> + 'static,
{
    let limits = limits(STREAMS_MAX, downstream.multiplexes_http1());
    let connection = Box::new(Connection::server(stream, limits, alive::count_downstream_streams));
    async move {
        let draining = Cell::new(false);
        let mut accepting = pin!(accept(connection, &timers, &downstream, &draining, &service));
        timers.run(accepting.as_mut(), &downstream.worker.shared.drain, &draining, downstream.changes()).await;
    }
}

async fn accept<F, R>(
    mut connection: Box<Connection<TimedStream>>,
    timers: &ConnectionTimers,
    downstream: &Downstream,
    draining: &Cell<bool>,
    service: &F,
) where
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<ResponseBody>> + 'static,
{
    let mut is_shutting_down = false;
    let seen = Cell::new(downstream.worker.changes.seen());
    let mut timer: Option<Pin<Box<Sleep>>> = None;
    loop {
        let accepted = poll_fn(|cx| {
            if downstream.worker.changes.seen() != seen.get() {
                // Each judges its request again.
                connection.wake_streams();
            }
            if judge::is_over(downstream, &seen) {
                draining.set(true);
            }
            if draining.get() && !is_shutting_down {
                is_shutting_down = true;
                connection.graceful_shutdown();
            }
            let mut accepted = connection.poll_accept(cx);
            while accepted.is_pending() && connection.is_read_closed() {
                let timer = timer.get_or_insert_with(|| Box::pin(sleep(PROBE_INTERVAL)));
                ready!(timer.as_mut().poll(cx));
                timer.as_mut().reset(Instant::now() + PROBE_INTERVAL);
                connection.probe();
                accepted = connection.poll_accept(cx);
            }
            timers.set_head_since(connection.incomplete_since());
            (0..connection.take_malformed()).for_each(|_| access::refused(downstream, &MALFORMED));
            accepted
        });
        let Some((request, mut sending, receiving)) = accepted.await else { return };
        let Ok(request) = request else {
            access::refused(downstream, &BadMessage::TOO_LARGE);
            // Fails if the client has disconnected.
            let _ = sending.respond(BadMessage::TOO_LARGE.status, &respond::bad_message_headers(), true);
            continue;
        };
        let (head, ()) = request.into_parts();
        let body = Incoming::of_stream(receiving, &head.headers, None);
        let stream = Stream::Handling(Some(sending), Box::pin(service(Request::from_parts(head, body))));
        alive::spawn(with_idle_timeout(stream, downstream.worker.shared.timeouts.idle));
    }
}

/// Runs a stream until it completes, or resets it when it is idle for too long.
async fn with_idle_timeout<R: Future<Output = Response<ResponseBody>>>(mut stream: Stream<R>, idle: Duration) {
    let mut active_at = Tick::now();
    let mut timer = pin!(sleep(idle));
    poll_fn(|cx| {
        // A wakeup other than the timer's is activity.
        while timer.as_mut().poll(cx).is_ready() {
            let left = idle.saturating_sub(active_at.elapsed());
            if left.is_zero() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(Instant::now() + left);
        }
        active_at = Tick::now();
        Pin::new(&mut stream).poll(cx)
    })
    .await;
}

// === impl Stream ===

impl<R: Future<Output = Response<ResponseBody>>> Future for Stream<R> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Self::Handling(sending, handling) = &mut *self {
            let Poll::Ready(response) = handling.as_mut().poll(cx) else {
                // Wakes this task when the client resets the stream.
                return sending.as_mut().map_or(Poll::Ready(()), |sending| sending.poll_error(cx).map(|_| ()));
            };
            match sending.take().and_then(|sending| send_head(sending, response)) {
                Some(pipe) => *self = Self::Sending(pipe),
                None => return Poll::Ready(()),
            }
        }
        let Self::Sending(pipe) = &mut *self else { return Poll::Ready(()) };
        if pipe.body_mut().is_refused() {
            pipe.reset(Reason::INADEQUATE_SECURITY);
            return Poll::Ready(());
        }
        // Polled even if the client does not read the response: it may send all of its request first.
        let uploaded = pipe.body_mut().poll_upload(cx);
        match ready!(pipe.poll_send(cx)) {
            Ok(()) if uploaded.is_pending() => pipe.poll_reset(cx),
            Ok(()) | Err(PipeError::Body(_)) => Poll::Ready(()),
            Err(PipeError::Stream(error)) => {
                tracing::debug!(%error, "stream ended before the response was complete");
                Poll::Ready(())
            }
        }
    }
}

/// Sends the head of a response. None: there is nothing more to send here.
fn send_head(mut sending: SendStream, response: Response<ResponseBody>) -> Option<Pipe<ResponseBody>> {
    let (mut head, mut body) = response.into_parts();
    // RFC 9110 6.6.1: a proxy adds Date to a response without one.
    head.headers.entry(header::DATE).or_insert_with(date::now);
    let handover = body.take_handover();
    let ends = body.is_end_stream() && handover.is_none();
    if !body.is_end_stream()
        && let Some(length) = body.size_hint().exact()
    {
        head.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
    if let Err(error) = sending.respond(head.status, &head.headers, ends) {
        tracing::debug!(%error, "response not sent");
        return None;
    }
    match handover {
        // If the receiver is gone, the stream is dropped and so reset.
        Some(Handover::Stream(next)) => drop(next.send(sending)),
        Some(Handover::Connection(_)) => {}
        None if ends && body.has_upload() => return Some(Pipe::after_end(sending, body)),
        None if ends => {}
        None => return Some(Pipe::new(sending, body, Reason::INTERNAL_ERROR)),
    }
    None
}
