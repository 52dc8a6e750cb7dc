//! The server side of an HTTP/1.1 connection: one request after the other.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::Either;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, Version};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use tokio::time::{Instant, Sleep, sleep};
use weft_codec::http1::encode::{self, Outgoing, RequestLine, WriteError};
use weft_codec::http1::framing::Framing;
use weft_codec::http1::parse::{self, BadMessage, RequestHead};
use weft_codec::http1::wire::{ReadError, Wire};

use super::from_client::{BodyReader, FromClient};
use super::incoming::Incoming;
use super::response_body::{Handover, RefusedError, ResponseBody};
use super::watch::{ConnectionTimers, Ended, TimedStream};
use super::{date, head, respond};
use crate::downstream::Downstream;
use crate::judge;
use crate::tcp::End;
use crate::telemetry::access;

/// How often the proxy checks whether the client has disconnected when it does not read from it: the client has closed
/// its sending half, the read-ahead buffer is full, or the upstream reads none of the body.
const DISCONNECT_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Longest response body, in bytes, after which a connection is closed without lingering. With its head it fits into
/// the ten segments of TCP's initial window (RFC 6928), so it was sent before a reset can occur.
const SHORT_RESPONSE_MAX: u64 = 8 * 1024;

/// Detects that the client disconnects while its request is in progress.
///
/// A reset is a disconnect. A FIN is not: a client may close its sending half after its last request and wait for the
/// response, and a FIN from a fully closed socket looks the same. Such a request continues until writing to the client
/// causes a reset, TCP keepalive finds the client gone, or a timeout expires. A FIN within a body is a disconnect.
struct DisconnectDetector<'a> {
    wire: &'a Wire<TimedStream>,
    reader: Option<&'a BodyReader>,
    timer: Option<Pin<Box<Sleep>>>,
    /// TCP keepalive was enabled.
    has_keepalive: bool,
}

/// What to do with a connection after a response.
enum NextAction {
    /// Wait for another request.
    KeepAlive,
    /// Close it, and read on until the client closes: closing a socket with unread bytes would reset it.
    Linger,
    /// Close it at once: the client sends nothing more, and the response was sent.
    CloseNow,
}

/// Serves a connection until it closes or is drained: an open request completes, no other is accepted.
pub(super) fn serve<F, R>(
    stream: TimedStream,
    timers: Rc<ConnectionTimers>,
    downstream: Rc<Downstream>,
    service: F,
) -> impl Future<Output = ()>
where
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<ResponseBody>>,
{
    let wire = Rc::new(Wire::new(stream));
    async move {
        let draining = Cell::new(false);
        let idle_wire = Rc::downgrade(&wire);
        let mut serving = pin!(serve_requests(wire, &downstream, &draining, &service));
        let ended =
            timers.run(serving.as_mut(), &downstream.worker.shared.drain, &draining, downstream.changes()).await;
        if ended == Ended::TimedOut
            && timers.is_idle()
            && let Some(wire) = idle_wire.upgrade()
        {
            poll_fn(|cx| wire.with(|stream| stream.poll_close_notify(cx))).now_or_never();
        }
    }
}

async fn serve_requests<F, R>(
    mut wire: Rc<Wire<TimedStream>>,
    downstream: &Downstream,
    draining: &Cell<bool>,
    service: &F,
) where
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<ResponseBody>>,
{
    let seen = Cell::new(downstream.worker.changes.seen());
    let last_action = loop {
        if wire.has_buffered() {
            // The head arrived during the previous request; its timeout starts now.
            wire.with(|stream| stream.head_started());
        }
        let head = poll_fn(|cx| {
            if judge::is_over(downstream, &seen) {
                draining.set(true);
            }
            let head = wire.poll_head(cx, parse::request);
            // Drained between requests: no response is pending.
            if head.is_pending() && draining.get() && !wire.has_buffered() { Poll::Ready(None) } else { head.map(Some) }
        });
        // Boxed: short-lived. No arm awaits: the future would store the head.
        let serving = match head.await {
            Some(Ok(head)) => Either::Left(Box::pin(serve_request(wire, head, draining, service))),
            Some(Err(ReadError::Bad(bad))) => {
                access::refused(downstream, &bad);
                Either::Right(Box::pin(refuse(wire, bad)))
            }
            // The client has closed its sending half; it may still read close_notify.
            Some(Err(ReadError::Closed)) => break NextAction::CloseNow,
            Some(Err(ReadError::Io(_))) => return,
            None => break NextAction::Linger,
        };
        let Some((returned, action)) = serving.await else { return };
        wire = returned;
        if !matches!(action, NextAction::KeepAlive) {
            break action;
        }
    };
    // Errors are ignored: the connection ends either way.
    if let NextAction::CloseNow = last_action {
        poll_fn(|cx| wire.with(|stream| stream.poll_close_notify(cx))).await;
    } else {
        let _ = poll_fn(|cx| wire.poll_shutdown(cx)).await;
    }
}

/// Serves one request. Returns the connection and what to do with it. None: the client disconnected, or the connection
/// was handed over.
async fn serve_request<F, R>(
    wire: Rc<Wire<TimedStream>>,
    head: RequestHead,
    draining: &Cell<bool>,
    service: &F,
) -> Option<(Rc<Wire<TimedStream>>, NextAction)>
where
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<ResponseBody>>,
{
    let RequestHead { request, framing, keep_alive } = head;
    let request_line = RequestLine { method: request.method().clone(), version: request.version() };
    // The client announces that this request, which has no body, is its last one.
    let is_last = !keep_alive && framing == Framing::Length(0);
    let reader = BodyReader::new(&wire, framing, request.headers());
    let body = FromClient { wire: wire.clone(), reader: reader.clone() };
    let mut handling = Box::pin(service(request.map(|()| Incoming::FromClient(body))));
    let mut disconnect =
        DisconnectDetector { wire: &wire, reader: reader.as_deref(), timer: None, has_keepalive: false };
    let response = poll_fn(|cx| match handling.as_mut().poll(cx) {
        Poll::Ready(response) => Poll::Ready(Some(response)),
        Poll::Pending => {
            // Interim responses. A write error is ignored: `poll_disconnect` finds it too.
            let _ = wire.poll_interim(cx);
            disconnect.poll_disconnect(true, cx).map(|()| None)
        }
    })
    .await?;
    drop(handling);
    let (parts, mut body) = response.into_parts();
    let mut headers = parts.headers;
    let handover = body.take_handover();
    let length = body.size_hint().exact();
    // A client that got no 100 Continue may send its body or not.
    let awaits_continue = reader.as_ref().is_some_and(|reader| reader.awaits_continue.get());
    let close_requested = headers.get(header::CONNECTION).is_some_and(|value| head::has_token(value, "close"));
    let needs_close = length.is_none() && request_line.version == Version::HTTP_10 && !body.is_end_stream();
    let persists = keep_alive && !close_requested && !awaits_continue && !needs_close && !draining.get();
    let connection = match request_line.version {
        _ if handover.is_some() || close_requested => None,
        Version::HTTP_10 => persists.then_some("keep-alive"),
        _ => (!persists).then_some("close"),
    };
    if !parts.status.is_informational() {
        // RFC 9110 6.6.1: a proxy adds Date to a response without one.
        headers.entry(header::DATE).or_insert_with(date::now);
    }
    let mut head = encode::response(&request_line, parts.status, &headers, length, connection);
    drop(headers);
    if let Some(mut first) = wire.take_interim() {
        first.unsplit(head.0);
        head.0 = *first;
    }
    let is_close_delimited = head.1 == Framing::Close;
    if awaits_continue {
        body.abort_upload();
    }
    let mut outgoing = Outgoing::new(head, body);
    let mut is_upload_first = false;
    let sent = poll_fn(|cx| match poll_response_and_upload(&mut outgoing, &wire, &mut is_upload_first, cx) {
        Poll::Ready(sent) => Poll::Ready(Some(sent)),
        Poll::Pending => disconnect.poll_disconnect(outgoing.body_mut().has_upload(), cx).map(|()| None),
    })
    .await?;
    drop(outgoing);
    if let Err(error) = sent {
        // A truncated response must not look complete: where its framing does not show the truncation, a reset does.
        if is_close_delimited && matches!(error, WriteError::Body(_)) {
            drop(reader);
            Rc::into_inner(wire)?.into_parts().0.into_inner().into_end().stream.abort();
        }
        return None;
    }
    if let Some(Handover::Connection(next)) = handover {
        drop(reader);
        // The last reference: the request had no body, or all of it was read.
        let (stream, read) = Rc::into_inner(wire)?.into_parts();
        let End { stream, read: before } = stream.into_inner().into_end();
        // If the receiver is gone, the connection is dropped and so closed.
        let _ = next.send(End { stream, read: [read, before].concat().into() });
        return None;
    }
    // Response and upload are dropped, so nothing else reads the body.
    let is_drained = match reader.map(Rc::into_inner) {
        None => true,
        Some(Some(reader)) => persists && reader.drain().await,
        Some(None) => false,
    };
    let action = if persists && is_drained {
        NextAction::KeepAlive
    } else if is_last && length.is_some_and(|length| length <= SHORT_RESPONSE_MAX) && wire.is_idle() {
        NextAction::CloseNow
    } else {
        NextAction::Linger
    };
    Some((wire, action))
}

/// Sends a response and the rest of its request body, which a client may send completely before it reads. The two
/// alternate in being polled first, so that neither starves the other.
fn poll_response_and_upload(
    response: &mut Outgoing<ResponseBody>,
    wire: &Wire<TimedStream>,
    is_upload_first: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<Result<(), WriteError>> {
    if response.body_mut().is_refused() {
        return Poll::Ready(Err(WriteError::Body(Some(RefusedError.into()))));
    }
    *is_upload_first = !*is_upload_first;
    let before = if *is_upload_first { response.body_mut().poll_upload(cx) } else { Poll::Pending };
    let sent = response.poll_send(wire, cx)?;
    let uploaded = if *is_upload_first { before } else { response.body_mut().poll_upload(cx) };
    if uploaded.is_ready() { sent.map(Ok) } else { Poll::Pending }
}

/// Responds to an invalid request head.
async fn refuse(wire: Rc<Wire<TimedStream>>, bad: BadMessage) -> Option<(Rc<Wire<TimedStream>>, NextAction)> {
    let mut headers = respond::bad_message_headers();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    let text = format!("{bad}\n");
    let request_line = RequestLine { method: Method::GET, version: Version::HTTP_11 };
    let head = encode::response(&request_line, bad.status, &headers, Some(text.len() as u64), Some("close"));
    let mut outgoing = Outgoing::new(head, Full::new(Bytes::from(text)).map_err(|never| match never {}));
    // A write error is ignored: the connection closes anyway.
    let _ = poll_fn(|cx| outgoing.poll_send(&wire, cx)).await;
    Some((wire, NextAction::Linger))
}

// === impl DisconnectDetector ===

impl DisconnectDetector<'_> {
    /// Waits until the client disconnects. `is_uploading`: the body is still being sent upstream, so that its
    /// truncation ends the request.
    fn poll_disconnect(&mut self, is_uploading: bool, cx: &mut Context<'_>) -> Poll<()> {
        let Self { wire, .. } = *self;
        let unread = self.reader.filter(|reader| !reader.decoder.borrow().has_ended());
        if unread.is_none() {
            if wire.poll_disconnect(cx).is_ready() {
                return Poll::Ready(());
            }
            if !wire.has_stopped_reading() {
                return Poll::Pending;
            }
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(DISCONNECT_CHECK_INTERVAL)));
        while timer.as_mut().poll(cx).is_ready() {
            timer.as_mut().reset(Instant::now() + DISCONNECT_CHECK_INTERVAL);
            let is_truncated = |reader: &BodyReader| {
                wire.poll_disconnect(cx).is_ready() || wire.is_truncated(&reader.decoder.borrow())
            };
            if unread.filter(|_| is_uploading).is_some_and(is_truncated) || wire.with(|stream| stream.is_reset()) {
                return Poll::Ready(());
            }
            if wire.is_read_closed() && !self.has_keepalive {
                self.has_keepalive = true;
                wire.with(|stream| stream.enable_keepalive());
            }
        }
        Poll::Pending
    }
}
