//! Request bodies that can be replayed for retries, hedges and mirrors, and response bodies that record how they end.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep_until};

use super::error::BodyError;
use super::guard::RequestGuard;
use super::head::{self, Names, ProtectedHeaders};
use super::incoming::Incoming;
use super::interim::InterimFilter;
use super::kept::ReplayBuffer;
use super::mirror::Shadows;
use super::pace::UploadRate;
use super::upload::Upload;
use super::watch::OpenRequest;
use crate::http2::SendStream;
use crate::memory::Memory;
use crate::tcp::End;

/// Maximum bytes of a request body that are kept for replay. Source: Linkerd.
pub(crate) const REPLAY_BYTES_MAX: usize = 64 * 1024;

/// A request body that is sent upstream.
pub(crate) enum RequestBody {
    Empty,
    Replay(Replay),
    /// A complete body, for mirrors.
    Whole(VecDeque<Bytes>),
}

/// The body of one attempt. Until the body is complete in the buffer, a new attempt makes earlier ones fail with
/// [`SupersededError`], so that only one reads from the client; after that, any number of attempts run concurrently.
pub(crate) struct Replay {
    shared: Rc<SharedBody>,
    /// Number of this attempt, counted from 1.
    attempt: u32,
    /// Bytes sent.
    position: usize,
}

/// The state of a request body that all its attempts share.
pub(crate) struct SharedBody {
    source: RefCell<Incoming>,
    buffer: RefCell<ReplayBuffer>,
    /// The buffer does not hold all that was read.
    unreplayable: Cell<bool>,
    /// Reading from the client failed.
    failed: Cell<bool>,
    interim: InterimFilter,
    rate: RefCell<UploadRate>,
    /// The client sent below the minimum rate.
    too_slow: Cell<bool>,
    memory: Arc<Memory>,
    /// All of the body was read.
    ended: Cell<bool>,
    /// Number of the latest attempt.
    attempt: Cell<u32>,
    size_hint: SizeHint,
    /// Fields that are removed from the trailers.
    protected: Option<Arc<ProtectedHeaders>>,
    /// Mirrored copies of the request: sent once all of the body is in the buffer, abandoned if it does not fit.
    shadows: RefCell<Option<Box<Shadows>>>,
}

/// A response body that is sent downstream.
pub(crate) struct ResponseBody {
    source: Source,
    /// When the request timeout expires.
    deadline: Option<Instant>,
    /// Fires at the deadline. Created on the first wait: most bodies never wait.
    timer: Option<Pin<Box<Sleep>>>,
    /// The unsent rest of the request body. Polled together with this body: see [`Self::poll_upload`].
    upload: Option<Box<Upload>>,
    /// None: request and response are complete. Dropped, and so logged, before the last of the response is written.
    guard: Option<Box<RequestGuard>>,
    /// Counts the request as open on the client's connection.
    pub(crate) open_request: Option<OpenRequest>,
}

enum Source {
    Ended,
    Full(Bytes),
    Incoming(Incoming),
    /// Reading the request body failed before the response was complete.
    RequestAborted,
    /// The connection or stream is handed over after the head: there is no body.
    Handover(Handover),
}

/// Receives the client's connection or stream after the response head, for a relay (101 or CONNECT).
pub(crate) enum Handover {
    /// An HTTP/1.1 connection.
    Connection(oneshot::Sender<End>),
    /// The sending side of an HTTP/2 stream.
    Stream(oneshot::Sender<SendStream>),
}

/// The request timeout expired before the response was complete.
#[derive(Debug, thiserror::Error)]
#[error("the request timeout expired before the response was complete")]
struct DeadlineError;

/// The client aborted the request before the response was complete.
#[derive(Debug, thiserror::Error)]
#[error("the client aborted the request before the response was complete")]
struct RequestAbortedError;

/// The client sent the request body below the minimum rate.
#[derive(Debug, thiserror::Error)]
#[error("the client sent the request body too slowly")]
struct TooSlowError;

/// A newer attempt sends the request body.
#[derive(Debug, thiserror::Error)]
#[error("the request is being retried on another connection")]
struct SupersededError;

// === impl SharedBody ===

impl SharedBody {
    /// The body is replayable as long as the buffer holds all that was read: up to [`REPLAY_BYTES_MAX`], while memory
    /// is not scarce.
    pub(crate) fn new(
        source: Incoming,
        memory: Arc<Memory>,
        interim: InterimFilter,
        rate: UploadRate,
        protected: Option<Arc<ProtectedHeaders>>,
    ) -> Rc<Self> {
        Rc::new(Self {
            size_hint: source.size_hint(),
            ended: Cell::new(source.is_end_stream()),
            source: RefCell::new(source),
            buffer: RefCell::default(),
            unreplayable: Cell::new(false),
            failed: Cell::new(false),
            interim,
            rate: RefCell::new(rate),
            too_slow: Cell::new(false),
            memory,
            attempt: Cell::new(0),
            protected,
            shadows: RefCell::default(),
        })
    }

    /// Whether all of the body was read from the client.
    pub(crate) fn is_complete(&self) -> bool {
        self.ended.get()
    }

    /// Whether reading the body from the client failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.get()
    }

    /// Forwards an interim response to the client, if the filter lets it pass.
    pub(crate) fn send_interim(&self, status: StatusCode, mut headers: HeaderMap) {
        if self.interim.passes(status, &mut headers) {
            self.source.borrow().send_interim(status, &headers);
        }
    }

    /// Whether the client waits for 100 Continue before it sends the body.
    pub(crate) fn awaits_continue(&self) -> bool {
        self.interim.awaits_continue()
    }

    /// Whether the client sent the body below the minimum rate.
    pub(crate) fn is_too_slow(&self) -> bool {
        self.too_slow.get()
    }

    /// Whether the body can be sent again from its beginning.
    pub(crate) fn can_replay(&self) -> bool {
        !self.unreplayable.get()
    }

    /// Whether all of the body is in the buffer.
    pub(crate) fn is_buffered(&self) -> bool {
        self.is_complete() && self.can_replay()
    }

    /// Sends mirrored copies once all of the body is in the buffer.
    pub(crate) fn mirror_to(&self, shadows: Box<Shadows>) {
        *self.shadows.borrow_mut() = Some(shadows);
        if self.ended.get() {
            self.complete_mirrors();
        }
    }

    fn fits(&self, data: &Bytes) -> bool {
        !self.unreplayable.get()
            && self.buffer.borrow().len() + data.len() <= REPLAY_BYTES_MAX
            && !self.memory.is_scarce()
    }

    fn end(&self) {
        if !self.ended.replace(true) {
            self.complete_mirrors();
        }
    }

    fn complete_mirrors(&self) {
        let Some(shadows) = self.shadows.take() else { return };
        if self.unreplayable.get() { shadows.cancel() } else { shadows.send(self.buffer.borrow_mut().parts()) }
    }

    /// The body from its beginning, for a new attempt.
    pub(crate) fn body(self: &Rc<Self>) -> RequestBody {
        if self.ended.get() && self.buffer.borrow().len() == 0 && self.size_hint.exact() == Some(0) {
            return RequestBody::Empty;
        }
        self.attempt.set(self.attempt.get() + 1);
        RequestBody::Replay(Replay { shared: self.clone(), attempt: self.attempt.get(), position: 0 })
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let replay = match self.get_mut() {
            Self::Empty => return Poll::Ready(None),
            Self::Whole(chunks) => return Poll::Ready(chunks.pop_front().map(|chunk| Ok(Frame::data(chunk)))),
            Self::Replay(replay) => replay,
        };
        let shared = &replay.shared;
        if replay.attempt != shared.attempt.get() && !shared.is_buffered() {
            return Poll::Ready(Some(Err(SupersededError.into())));
        }
        let buffered = shared.buffer.borrow().len();
        if replay.position < buffered
            && let Some(part) = shared.buffer.borrow_mut().part_at(replay.position)
        {
            replay.position += part.len();
            return Poll::Ready(Some(Ok(Frame::data(part))));
        }
        if shared.ended.get() {
            return Poll::Ready(None);
        }
        let Poll::Ready(mut frame) = Pin::new(&mut *shared.source.borrow_mut()).poll_frame(cx) else {
            // No minimum rate for bodies of unknown length, nor while the client waits for 100 Continue.
            if shared.size_hint.exact().is_none() || shared.interim.awaits_continue() {
                return Poll::Pending;
            }
            ready!(shared.rate.borrow_mut().poll_too_slow(cx));
            shared.unreplayable.set(true);
            shared.too_slow.set(true);
            return Poll::Ready(Some(Err(TooSlowError.into())));
        };
        shared.interim.body_started();
        strip_trailers(&mut frame, shared.protected.as_ref().and_then(|protected| protected.request.as_ref()));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            shared.rate.borrow_mut().received(data.len());
        }
        match &frame {
            None => shared.end(),
            Some(Err(_)) => {
                shared.unreplayable.set(true);
                shared.failed.set(true);
            }
            Some(Ok(frame)) => match frame.data_ref() {
                Some(data) if shared.fits(data) => {
                    shared.buffer.borrow_mut().push(data);
                    replay.position += data.len();
                }
                // The buffer is full, or these are trailers: a request with trailers is not replayed.
                _ => {
                    shared.unreplayable.set(true);
                    shared.buffer.borrow_mut().clear();
                    shared.complete_mirrors();
                }
            },
        }
        if shared.source.borrow().is_end_stream() {
            shared.end();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(chunks) => chunks.is_empty(),
            Self::Replay(replay) => replay.shared.ended.get() && replay.position >= replay.shared.buffer.borrow().len(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(chunks) => SizeHint::with_exact(chunks.iter().map(|chunk| chunk.len() as u64).sum()),
            Self::Replay(replay) if replay.position == 0 => replay.shared.size_hint,
            Self::Replay(_) => SizeHint::default(),
        }
    }
}

// === impl ResponseBody ===

impl ResponseBody {
    /// The body of a response that the proxy generates.
    pub(crate) fn full(bytes: Bytes, guard: Box<RequestGuard>) -> Self {
        let source = if bytes.is_empty() { Source::Ended } else { Source::Full(bytes) };
        let mut body =
            Self { source, deadline: None, timer: None, upload: None, guard: Some(guard), open_request: None };
        if matches!(body.source, Source::Ended) {
            body.end();
        }
        body
    }

    /// The empty body of a response after which the connection or stream is handed over.
    pub(crate) fn handover(next: Handover, guard: Box<RequestGuard>) -> Self {
        let mut body = Self::full(Bytes::new(), guard);
        body.source = Source::Handover(next);
        body
    }

    pub(super) fn take_handover(&mut self) -> Option<Handover> {
        match std::mem::replace(&mut self.source, Source::Ended) {
            Source::Handover(next) => Some(next),
            source => {
                self.source = source;
                None
            }
        }
    }

    /// The body of an endpoint's response.
    pub(crate) fn incoming(mut body: Incoming, deadline: Option<Instant>, guard: Box<RequestGuard>) -> Self {
        let (ended, upload) = (body.is_end_stream(), body.take_upload());
        let mut body = Self {
            source: Source::Incoming(body),
            deadline,
            timer: None,
            upload,
            guard: Some(guard),
            open_request: None,
        };
        if ended {
            body.end();
        }
        body
    }

    /// Sends the rest of the request body. Ready: all is sent, or the server accepts no more.
    pub(crate) fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(upload) = &mut self.upload else { return Poll::Ready(()) };
        let sent = ready!(upload.poll_send(cx));
        self.upload = None;
        match (&self.source, sent) {
            (Source::Ended, _) => self.finish(),
            (Source::Incoming(_), Err(_)) => {
                self.source = Source::RequestAborted;
                self.record(RequestGuard::request_aborted);
                // Wakes the task to abort the response.
                cx.waker().wake_by_ref();
            }
            _ => {}
        }
        Poll::Ready(())
    }

    /// Aborts the request, if a part of it is unsent.
    pub(crate) fn abort_upload(&mut self) {
        self.upload = None;
    }

    pub(crate) fn has_upload(&self) -> bool {
        self.upload.is_some()
    }

    /// The response is complete. The upstream connection is released once the request is complete too.
    fn end(&mut self) {
        self.source = Source::Ended;
        self.record(RequestGuard::response_completed);
        if self.upload.is_none() {
            self.finish();
        }
    }

    /// Request and response are complete.
    fn finish(&mut self) {
        self.record(RequestGuard::release_connection);
        self.guard = None;
    }

    fn record(&mut self, record: impl FnOnce(&mut RequestGuard)) {
        if let Some(guard) = &mut self.guard {
            record(guard);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match &mut this.source {
            Source::Ended | Source::Handover(_) => Poll::Ready(None),
            Source::RequestAborted => Poll::Ready(Some(Err(RequestAbortedError.into()))),
            Source::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.record(|guard| guard.response_bytes += bytes.len() as u64);
                this.end();
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Source::Incoming(incoming) => {
                let Poll::Ready(mut frame) = Pin::new(&mut *incoming).poll_frame(cx) else {
                    let Some(deadline) = this.deadline else { return Poll::Pending };
                    let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
                    ready!(timer.as_mut().poll(cx));
                    this.record(RequestGuard::timed_out);
                    return Poll::Ready(Some(Err(DeadlineError.into())));
                };
                let protected = this.guard.as_ref().and_then(|guard| guard.protected.as_ref()?.response.as_ref());
                strip_trailers(&mut frame, protected);
                let ended = frame.is_none() || incoming.is_end_stream();
                match &frame {
                    Some(Ok(frame)) => {
                        let count = frame.data_ref().map_or(0, |data| data.len() as u64);
                        this.record(|guard| guard.response_bytes += count);
                    }
                    Some(Err(_)) => this.record(RequestGuard::upstream_reset),
                    None => {}
                }
                if ended && !matches!(frame, Some(Err(_))) {
                    this.end();
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.source, Source::Ended | Source::Handover(_))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Ended | Source::Handover(_) => SizeHint::with_exact(0),
            Source::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Incoming(incoming) => incoming.size_hint(),
            Source::RequestAborted => SizeHint::default(),
        }
    }
}

/// Removes forbidden and protected fields from trailers, in both directions.
fn strip_trailers<E>(frame: &mut Option<Result<Frame<Bytes>, E>>, protected: Option<&Names>) {
    if let Some(Ok(frame)) = frame
        && let Some(trailers) = frame.trailers_mut()
    {
        head::strip_trailers(trailers, protected);
    }
}
