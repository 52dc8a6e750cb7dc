//! The server side of a connection of HTTP/1.1: one request after the other.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::Either;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::body::{BodyError, Handover, ResponseBody};
use super::incoming::Incoming;
use super::watch::{Left, Watch, Watched};
use super::{date, head, interim, respond};
use crate::downstream::Downstream;
use crate::http1::decode::Decoder;
use crate::http1::encode::{self, Outgoing, RequestLine, WriteError};
use crate::http1::parse::{self, BadMessage, Framing, RequestHead};
use crate::http1::wire::{ReadError, Wire};
use crate::tcp::End;
use crate::telemetry::access;

/// How long the rest of a body is waited for that nobody wants, so that its connection may go on.
const REST_PATIENCE: Duration = Duration::from_millis(250);

/// Bytes of such a rest.
const REST_BYTES_MAX: usize = 64 * 1024;

/// How often a client is looked for that cannot be heard: it has said all that it will, or more than is read ahead of its turn, or
/// its body waits because the server takes none of it.
const LOOK: Duration = Duration::from_secs(1);

/// The longest body that a connection is closed right behind. With its head it is within the ten segments that TCP sends without
/// waiting (RFC 6928), so that it has gone before anything can make a reset of the end.
const SHORT_ANSWER: u64 = 8 * 1024;

/// A request's connection, and its body, if it has one.
pub(crate) struct FromClient {
    wire: Rc<Wire<Watched>>,
    reading: Option<Rc<Reading>>,
}

/// A body that is being read, for the request and for its connection.
pub(crate) struct Reading {
    wire: Rc<Wire<Watched>>,
    decoder: RefCell<Decoder>,
    /// The client waits to be asked for the body.
    is_unasked: Cell<bool>,
}

/// Notices a client that leaves while its request is under way.
///
/// A reset is a client that has left. The end of what it sends (FIN) is not: `Connection: close` and a closed sending half say
/// that it wants no more than it has asked for, and to it a closed socket looks the same. So a request whose client has closed the
/// connection is carried on until something is written to it, which makes a reset of it, or until the kernel finds out that it
/// is gone, or until the request's time is over. Within a body the end is a cut.
struct Presence<'a> {
    wire: &'a Wire<Watched>,
    reading: Option<&'a Reading>,
    timer: Option<Pin<Box<Sleep>>>,
    is_asked: bool,
}

/// What becomes of a connection when a request on it is answered.
enum Then {
    /// Another request may come.
    Next,
    /// It is closed, and read on meanwhile: what a client still sends would make a reset of it.
    Close,
    /// It is closed at once: the client has sent all that it will, and its answer has gone.
    End,
}

/// Serves a connection until it closes, or until it is drained: a request that is open is finished, and no other is taken.
pub(super) fn serve<F, R>(
    stream: Watched,
    watch: Rc<Watch>,
    downstream: Rc<Downstream>,
    answer: F,
) -> impl Future<Output = ()>
where
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<ResponseBody>>,
{
    let wire = Rc::new(Wire::new(stream));
    async move {
        let leaves = Cell::new(false);
        let at_rest = Rc::downgrade(&wire);
        let mut turns = pin!(take_turns(wire, &downstream, &leaves, &answer));
        let left = watch.look_after(turns.as_mut(), &downstream.worker.shared.drain, &leaves).await;
        if left == Left::Overdue
            && watch.is_at_rest()
            && let Some(wire) = at_rest.upgrade()
        {
            poll_fn(|cx| wire.with(|stream| stream.poll_farewell(cx))).now_or_never();
        }
    }
}

async fn take_turns<F, R>(mut wire: Rc<Wire<Watched>>, downstream: &Downstream, leaves: &Cell<bool>, answer: &F)
where
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<ResponseBody>>,
{
    let end = loop {
        if wire.has_buffered() {
            // It came while the request before it was answered; its time runs from now.
            wire.with(|stream| stream.begin_head());
        }
        let head = poll_fn(|cx| {
            let head = wire.poll_head(cx, parse::request);
            // Nobody waits for an answer.
            if head.is_pending() && leaves.get() && !wire.has_buffered() { Poll::Ready(None) } else { head.map(Some) }
        });
        // In boxes, which are given back when the connection rests. No arm waits: the head would take room in the future.
        let turn = match head.await {
            Some(Ok(head)) => Either::Left(Box::pin(take_turn(wire, head, leaves, answer))),
            Some(Err(ReadError::Bad(bad))) => {
                access::refused(downstream, &bad);
                Either::Right(Box::pin(refuse(wire, bad)))
            }
            // A client that only sends no more is told that this is the end.
            Some(Err(ReadError::Closed)) => break Then::End,
            Some(Err(ReadError::Io(_))) => return,
            None => break Then::Close,
        };
        let Some((same, then)) = turn.await else { return };
        wire = same;
        if !matches!(then, Then::Next) {
            break then;
        }
    };
    // What a client gets of it is its affair.
    if let Then::End = end {
        poll_fn(|cx| wire.with(|stream| stream.poll_farewell(cx))).await;
    } else {
        let _ = poll_fn(|cx| wire.poll_shutdown(cx)).await;
    }
}

/// Answers one request. Gives the connection back, and what becomes of it; nothing if the client has left, or if the
/// connection is somebody else's from now on.
async fn take_turn<F, R>(
    wire: Rc<Wire<Watched>>,
    head: RequestHead,
    leaves: &Cell<bool>,
    answer: &F,
) -> Option<(Rc<Wire<Watched>>, Then)>
where
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<ResponseBody>>,
{
    let RequestHead { request, framing, keep_alive } = head;
    let asked = RequestLine { method: request.method().clone(), version: request.version() };
    // It has no body, and its client says that it will send no other.
    let is_last = !keep_alive && framing == Framing::Length(0);
    let reading = Reading::begin(&wire, framing, request.headers());
    let body = FromClient { wire: wire.clone(), reading: reading.clone() };
    let mut answering = Box::pin(answer(request.map(|()| Incoming::FromClient(body))));
    let mut presence = Presence { wire: &wire, reading: reading.as_deref(), timer: None, is_asked: false };
    let response = poll_fn(|cx| match answering.as_mut().poll(cx) {
        Poll::Ready(response) => Poll::Ready(Some(response)),
        Poll::Pending => {
            // What comes before the response. A client that does not take it is found out otherwise.
            let _ = wire.poll_interim(cx);
            presence.poll_leave(true, cx).map(|()| None)
        }
    })
    .await?;
    drop(answering);
    let (parts, mut body) = response.into_parts();
    let mut headers = parts.headers;
    let handover = body.take_handover();
    let length = body.size_hint().exact();
    // A client that was not asked for its body may send it or not.
    let unasked = reading.as_ref().is_some_and(|reading| reading.is_unasked.get());
    let says_close = headers.get(header::CONNECTION).is_some_and(|value| head::has_token(value, "close"));
    let ends = length.is_none() && asked.version == Version::HTTP_10 && !body.is_end_stream();
    let goes_on = keep_alive && !says_close && !unasked && !ends && !leaves.get();
    let connection = match asked.version {
        _ if handover.is_some() || says_close => None,
        Version::HTTP_10 => goes_on.then_some("keep-alive"),
        _ => (!goes_on).then_some("close"),
    };
    if !parts.status.is_informational() {
        // RFC 9110 6.6.1: who passes a response on gives it a date if it has none.
        headers.entry(header::DATE).or_insert_with(date::now);
    }
    let mut head = encode::response(&asked, parts.status, &headers, length, connection);
    drop(headers);
    if let Some(mut first) = wire.take_interim() {
        first.unsplit(head.0);
        head.0 = *first;
    }
    let ends_with_connection = head.1 == Framing::Close;
    if unasked {
        body.cut_upload();
    }
    let mut outgoing = Outgoing::new(head, body);
    let mut is_upload_first = false;
    let sent = poll_fn(|cx| match poll_both(&mut outgoing, &wire, &mut is_upload_first, cx) {
        Poll::Ready(sent) => Poll::Ready(Some(sent)),
        Poll::Pending => presence.poll_leave(outgoing.body_mut().has_upload(), cx).map(|()| None),
    })
    .await?;
    drop(outgoing);
    if let Err(broken) = sent {
        // What breaks off is not to look whole: where no framing says that something is missing, a reset does.
        if ends_with_connection && matches!(broken, WriteError::Body(_)) {
            drop(reading);
            Rc::into_inner(wire)?.into_parts().0.into_inner().into_end().stream.cut();
        }
        return None;
    }
    if let Some(Handover::Connection(next)) = handover {
        drop(reading);
        // Nobody else has it: the request has had no body, or all of it was read.
        let (stream, read) = Rc::into_inner(wire)?.into_parts();
        let End { stream, read: before } = stream.into_inner().into_end();
        // Who asked for it may have given up meanwhile: it is closed then.
        let _ = next.send(End { stream, read: [read, before].concat().into() });
        return None;
    }
    // With the response, and what was left of the request, all is gone that could read the body beside this.
    let is_read = match reading.map(Rc::into_inner) {
        None => true,
        Some(Some(reading)) => goes_on && reading.finish().await,
        Some(None) => false,
    };
    let then = if goes_on && is_read {
        Then::Next
    } else if is_last && length.is_some_and(|length| length <= SHORT_ANSWER) && wire.is_idle() {
        Then::End
    } else {
        Then::Close
    };
    Some((wire, then))
}

/// Sends a response, and what is left of its request: a client may send all of that before it reads. By turns, so that neither
/// takes all the time that the task has.
fn poll_both(
    response: &mut Outgoing<ResponseBody>,
    wire: &Wire<Watched>,
    is_upload_first: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<Result<(), WriteError>> {
    *is_upload_first = !*is_upload_first;
    let before = if *is_upload_first { response.body_mut().poll_upload(cx) } else { Poll::Pending };
    let sent = response.poll_send(wire, cx)?;
    let uploaded = if *is_upload_first { before } else { response.body_mut().poll_upload(cx) };
    if uploaded.is_ready() { sent.map(Ok) } else { Poll::Pending }
}

/// Answers what is no request.
async fn refuse(wire: Rc<Wire<Watched>>, bad: BadMessage) -> Option<(Rc<Wire<Watched>>, Then)> {
    let mut headers = respond::to_bad_message();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    let text = format!("{bad}\n");
    let asked = RequestLine { method: Method::GET, version: Version::HTTP_11 };
    let head = encode::response(&asked, bad.status, &headers, Some(text.len() as u64), Some("close"));
    let mut outgoing = Outgoing::new(head, Full::new(Bytes::from(text)).map_err(|never| match never {}));
    // Whether the client hears it is its affair.
    let _ = poll_fn(|cx| outgoing.poll_send(&wire, cx)).await;
    Some((wire, Then::Close))
}

// === impl Presence ===

impl Presence<'_> {
    /// Waits until the client has left. `is_sent_on`: the body is still being sent to a server, so that its cut
    /// ends the request.
    fn poll_leave(&mut self, is_sent_on: bool, cx: &mut Context<'_>) -> Poll<()> {
        let Self { wire, .. } = *self;
        let unread = self.reading.filter(|reading| !reading.decoder.borrow().has_ended());
        if unread.is_none() {
            if wire.poll_disconnect(cx).is_ready() {
                return Poll::Ready(());
            }
            if !wire.has_stopped_reading() {
                return Poll::Pending;
            }
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(LOOK)));
        while timer.as_mut().poll(cx).is_ready() {
            timer.as_mut().reset(Instant::now() + LOOK);
            let is_cut =
                |reading: &Reading| wire.poll_disconnect(cx).is_ready() || wire.is_truncated(&reading.decoder.borrow());
            if unread.filter(|_| is_sent_on).is_some_and(is_cut) || wire.with(|stream| stream.is_reset()) {
                return Poll::Ready(());
            }
            if wire.is_read_closed() && !self.is_asked {
                self.is_asked = true;
                wire.with(|stream| stream.keep_asking());
            }
        }
        Poll::Pending
    }
}

// === impl Reading ===

impl Reading {
    /// The body that a request with such a head has, if it has one.
    fn begin(wire: &Rc<Wire<Watched>>, framing: Framing, headers: &HeaderMap) -> Option<Rc<Self>> {
        if framing == Framing::Length(0) {
            return None;
        }
        let decoder = RefCell::new(framing.decoder());
        Some(Rc::new(Self { wire: wire.clone(), decoder, is_unasked: Cell::new(interim::expects_continue(headers)) }))
    }

    fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(self.wire.poll_body(&mut self.decoder.borrow_mut(), cx));
        // A client need not wait for ever.
        self.is_unasked.set(false);
        Poll::Ready(frame)
    }

    /// Reads what is left of a body that nobody wants. Whether it came to its end soon.
    async fn finish(self) -> bool {
        let mut read = 0;
        let rest = async {
            while !self.decoder.borrow().has_ended() {
                match poll_fn(|cx| self.poll_frame(cx)).await {
                    Some(Ok(frame)) => read += frame.data_ref().map_or(0, Bytes::len),
                    Some(Err(_)) => return false,
                    None => {}
                }
                if read > REST_BYTES_MAX {
                    return false;
                }
            }
            true
        };
        self.decoder.borrow().has_ended() || timeout(REST_PATIENCE, rest).await == Ok(true)
    }
}

// === impl FromClient ===

impl FromClient {
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.reading.as_ref().map_or(Poll::Ready(None), |reading| reading.poll_frame(cx))
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.reading.as_ref().is_none_or(|reading| reading.decoder.borrow().has_ended())
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.reading.as_ref().map_or(SizeHint::with_exact(0), |reading| reading.decoder.borrow().size_hint())
    }

    /// Sends a response before the response.
    pub(crate) fn send_interim(&self, status: StatusCode, headers: &HeaderMap) {
        if status == StatusCode::CONTINUE
            && let Some(reading) = &self.reading
        {
            reading.is_unasked.set(false);
        }
        self.wire.queue_interim(encode::interim(status, headers));
    }
}
