//! Bodies that can be sent again, and bodies that know when they are complete.

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

use super::forward::RequestGuard;
use super::head::{self, HeaderNames, ProtectedHeaders};
use super::incoming::Incoming;
use super::interim::Hears;
use super::kept::Kept;
use super::pace::Pace;
use super::upload::Upload;
use super::watch::Open;
use crate::filter::mirror::Copies;
use crate::http2::SendStream;
use crate::memory::Memory;
use crate::tcp::End;

/// Why a body ended early.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// Bytes of a request that are kept to be sent again. Source: Linkerd.
pub(crate) const REPLAY_BYTES_MAX: usize = 64 * 1024;

/// A request's body on its way up.
pub(crate) enum RequestBody {
    Empty,
    Replay(Replay),
    /// All of it is here.
    Whole(VecDeque<Bytes>),
}

/// One sending of a body. While some of it is to come, a later sending makes an earlier one end in an error, so two never
/// race for the source; once all of it is kept, any number go on side by side.
pub(crate) struct Replay {
    shared: Rc<SharedBody>,
    sending: u32,
    /// In octets.
    position: usize,
}

/// A body and what was sent of it, for all its sendings.
pub(crate) struct SharedBody {
    source: RefCell<Incoming>,
    kept: RefCell<Kept>,
    /// More came than is kept.
    lost: Cell<bool>,
    /// The client broke it off.
    broken: Cell<bool>,
    hears: Hears,
    pace: RefCell<Pace>,
    /// The client took too long.
    slow: Cell<bool>,
    memory: Arc<Memory>,
    ended: Cell<bool>,
    sending: Cell<u32>,
    size: SizeHint,
    /// What must not stand behind it.
    protected: Option<Arc<ProtectedHeaders>>,
    /// Told when all of the body is kept, or that it is not.
    copies: RefCell<Option<Box<Copies>>>,
}

/// A response's body on its way down.
pub(crate) struct ResponseBody {
    source: Source,
    /// When the request's time is over.
    deadline: Option<Instant>,
    /// Rings then. Most bodies are here before anybody has to wait for them.
    timer: Option<Pin<Box<Sleep>>>,
    /// What is left of the request. It is polled together with this body: see [`Self::poll_upload`].
    upload: Option<Box<Upload>>,
    /// None: request and response are over, which is noted before the last of the response is written.
    guard: Option<Box<RequestGuard>>,
    /// Tells the client's connection that the request is open still.
    pub(crate) open: Option<Open>,
}

enum Source {
    Ended,
    Full(Bytes),
    Incoming(Incoming),
    /// The request broke off before the response was complete.
    RequestBroken,
    /// What follows the head is not a body.
    Handover(Handover),
}

/// Whom a connection is given to behind the head of a response, when it is HTTP no more.
pub(crate) enum Handover {
    /// A connection of HTTP/1.1.
    Connection(oneshot::Sender<End>),
    /// What is sent in a stream of HTTP/2.
    Stream(oneshot::Sender<SendStream>),
}

/// The response was not complete when the request's time was over.
#[derive(Debug, thiserror::Error)]
#[error("the response was not complete when the time for the request was over")]
struct DeadlineError;

/// The request was not complete when its client broke it off.
#[derive(Debug, thiserror::Error)]
#[error("the request was broken off before the response was complete")]
struct RequestBrokenError;

/// The client took too long to send the request's body.
#[derive(Debug, thiserror::Error)]
#[error("the client sent the request's body too slowly")]
struct SlowError;

/// The request is being sent again elsewhere.
#[derive(Debug, thiserror::Error)]
#[error("the request is being sent again on another connection")]
struct SupersededError;

// === impl SharedBody ===

impl SharedBody {
    /// It may be sent again as long as all of it is kept: while it is small, and memory is not scarce.
    pub(crate) fn new(
        source: Incoming,
        memory: Arc<Memory>,
        hears: Hears,
        pace: Pace,
        protected: Option<Arc<ProtectedHeaders>>,
    ) -> Rc<Self> {
        Rc::new(Self {
            size: source.size_hint(),
            ended: Cell::new(source.is_end_stream()),
            source: RefCell::new(source),
            kept: RefCell::default(),
            lost: Cell::new(false),
            broken: Cell::new(false),
            hears,
            pace: RefCell::new(pace),
            slow: Cell::new(false),
            memory,
            sending: Cell::new(0),
            protected,
            copies: RefCell::default(),
        })
    }

    /// Whether all of the body was read from downstream.
    pub(crate) fn is_complete(&self) -> bool {
        self.ended.get()
    }

    /// Whether the client broke it off.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.get()
    }

    /// Passes a response before the response on to the client, if it is to hear it.
    pub(crate) fn send_interim(&self, status: StatusCode, mut headers: HeaderMap) {
        if self.hears.pass(status, &mut headers) {
            self.source.borrow().send_interim(status, &headers);
        }
    }

    /// Whether the client waits to be asked for it.
    pub(crate) fn is_unasked(&self) -> bool {
        self.hears.waits()
    }

    /// Whether the client took too long to send it.
    pub(crate) fn is_slow(&self) -> bool {
        self.slow.get()
    }

    /// Whether it can be sent from its beginning.
    pub(crate) fn can_replay(&self) -> bool {
        !self.lost.get()
    }

    /// Whether all of it is here.
    pub(crate) fn is_kept(&self) -> bool {
        self.is_complete() && self.can_replay()
    }

    /// Has copies sent once all of the body is here.
    pub(crate) fn copy_to(&self, copies: Box<Copies>) {
        *self.copies.borrow_mut() = Some(copies);
        if self.ended.get() {
            self.tell_copies();
        }
    }

    fn has_room_for(&self, data: &Bytes) -> bool {
        !self.lost.get() && self.kept.borrow().len() + data.len() <= REPLAY_BYTES_MAX && !self.memory.is_scarce()
    }

    fn end(&self) {
        if !self.ended.replace(true) {
            self.tell_copies();
        }
    }

    fn tell_copies(&self) {
        let Some(copies) = self.copies.take() else { return };
        if self.lost.get() { copies.give_up() } else { copies.send(self.kept.borrow_mut().parts()) }
    }

    /// The body from its beginning.
    pub(crate) fn body(self: &Rc<Self>) -> RequestBody {
        if self.ended.get() && self.kept.borrow().len() == 0 && self.size.exact() == Some(0) {
            return RequestBody::Empty;
        }
        self.sending.set(self.sending.get() + 1);
        RequestBody::Replay(Replay { shared: self.clone(), sending: self.sending.get(), position: 0 })
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
        if replay.sending != shared.sending.get() && !shared.is_kept() {
            return Poll::Ready(Some(Err(SupersededError.into())));
        }
        let kept = shared.kept.borrow().len();
        if replay.position < kept
            && let Some(part) = shared.kept.borrow_mut().part(replay.position)
        {
            replay.position += part.len();
            return Poll::Ready(Some(Ok(Frame::data(part))));
        }
        if shared.ended.get() {
            return Poll::Ready(None);
        }
        let Poll::Ready(mut frame) = Pin::new(&mut *shared.source.borrow_mut()).poll_frame(cx) else {
            // A stream may be silent, and so may a client that was not asked.
            if shared.size.exact().is_none() || shared.hears.waits() {
                return Poll::Pending;
            }
            ready!(shared.pace.borrow_mut().poll_overdue(cx));
            shared.lost.set(true);
            shared.slow.set(true);
            return Poll::Ready(Some(Err(SlowError.into())));
        };
        shared.hears.sends();
        strip_trailers(&mut frame, shared.protected.as_ref().and_then(|protected| protected.request.as_ref()));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            shared.pace.borrow_mut().received(data.len());
        }
        match &frame {
            None => shared.end(),
            Some(Err(_)) => {
                shared.lost.set(true);
                shared.broken.set(true);
            }
            Some(Ok(frame)) => match frame.data_ref() {
                Some(data) if shared.has_room_for(data) => {
                    shared.kept.borrow_mut().push(data);
                    replay.position += data.len();
                }
                // Trailers are not kept either: a request with some is sent once.
                _ => {
                    shared.lost.set(true);
                    shared.kept.borrow_mut().clear();
                    shared.tell_copies();
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
            Self::Replay(replay) => replay.shared.ended.get() && replay.position >= replay.shared.kept.borrow().len(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(chunks) => SizeHint::with_exact(chunks.iter().map(|chunk| chunk.len() as u64).sum()),
            Self::Replay(replay) if replay.position == 0 => replay.shared.size,
            Self::Replay(_) => SizeHint::default(),
        }
    }
}

// === impl ResponseBody ===

impl ResponseBody {
    /// An answer of the proxy's own.
    pub(crate) fn full(bytes: Bytes, guard: Box<RequestGuard>) -> Self {
        let source = if bytes.is_empty() { Source::Ended } else { Source::Full(bytes) };
        let mut body = Self { source, deadline: None, timer: None, upload: None, guard: Some(guard), open: None };
        if matches!(body.source, Source::Ended) {
            body.end();
        }
        body
    }

    /// The answer behind which the connection is somebody else's.
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

    /// A backend's answer.
    pub(crate) fn incoming(mut body: Incoming, deadline: Option<Instant>, guard: Box<RequestGuard>) -> Self {
        let (ended, upload) = (body.is_end_stream(), body.take_upload());
        let mut body =
            Self { source: Source::Incoming(body), deadline, timer: None, upload, guard: Some(guard), open: None };
        if ended {
            body.end();
        }
        body
    }

    /// Carries on with what is left of the request. Ready: nothing is, or the server takes no more of it.
    pub(crate) fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(upload) = &mut self.upload else { return Poll::Ready(()) };
        let sent = ready!(upload.poll_send(cx));
        self.upload = None;
        match (&self.source, sent) {
            (Source::Ended, _) => self.note_end(),
            (Source::Incoming(_), Err(_)) => {
                self.source = Source::RequestBroken;
                self.note(RequestGuard::request_broken);
                // The response is to be cut.
                cx.waker().wake_by_ref();
            }
            _ => {}
        }
        Poll::Ready(())
    }

    /// Cuts the request, if something of it is left.
    pub(crate) fn cut_upload(&mut self) {
        self.upload = None;
    }

    pub(crate) fn has_upload(&self) -> bool {
        self.upload.is_some()
    }

    /// The response is complete. Its connection can be used again once the request is complete too.
    fn end(&mut self) {
        self.source = Source::Ended;
        self.note(RequestGuard::complete);
        if self.upload.is_none() {
            self.note_end();
        }
    }

    fn note_end(&mut self) {
        self.note(RequestGuard::give_back);
        self.guard = None;
    }

    fn note(&mut self, note: impl FnOnce(&mut RequestGuard)) {
        if let Some(guard) = &mut self.guard {
            note(guard);
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
            Source::RequestBroken => Poll::Ready(Some(Err(RequestBrokenError.into()))),
            Source::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.note(|guard| guard.bytes += bytes.len() as u64);
                this.end();
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Source::Incoming(incoming) => {
                let Poll::Ready(mut frame) = Pin::new(&mut *incoming).poll_frame(cx) else {
                    let Some(deadline) = this.deadline else { return Poll::Pending };
                    let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
                    ready!(timer.as_mut().poll(cx));
                    this.note(RequestGuard::timed_out);
                    return Poll::Ready(Some(Err(DeadlineError.into())));
                };
                let protected = this.guard.as_ref().and_then(|guard| guard.protected.as_ref()?.response.as_ref());
                strip_trailers(&mut frame, protected);
                let ended = frame.is_none() || incoming.is_end_stream();
                match &frame {
                    Some(Ok(frame)) => {
                        let count = frame.data_ref().map_or(0, |data| data.len() as u64);
                        this.note(|guard| guard.bytes += count);
                    }
                    Some(Err(_)) => this.note(RequestGuard::broken),
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
            Source::RequestBroken => SizeHint::default(),
        }
    }
}

/// What nobody may say after a body is not passed on, in either direction.
fn strip_trailers<E>(frame: &mut Option<Result<Frame<Bytes>, E>>, protected: Option<&HeaderNames>) {
    if let Some(Ok(frame)) = frame
        && let Some(trailers) = frame.trailers_mut()
    {
        head::strip_trailers(trailers, protected);
    }
}
