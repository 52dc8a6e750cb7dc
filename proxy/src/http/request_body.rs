//! Request bodies that can be replayed for retries, hedges and mirrors.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame, SizeHint};
use weft_codec::BodyError;

use super::head::{self, Names, ProtectedHeaders};
use super::incoming::Incoming;
use super::interim::InterimFilter;
use super::kept::ReplayBuffer;
use super::pace::UploadRate;
use crate::memory::Memory;

/// Maximum bytes of a request body that are kept for replay. Source: Linkerd.
pub(crate) const REPLAY_BYTES_MAX: usize = 64 * 1024;

/// Receives the parts of a whole body. None: the body is not kept.
pub(crate) type OnKept = Box<dyn FnOnce(Option<&[Bytes]>)>;

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
    /// Called once it is known whether the buffer holds all of the body.
    on_kept: RefCell<Option<OnKept>>,
}

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
            on_kept: RefCell::default(),
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

    /// Calls `on_kept` once all of the body is in the buffer, or does not fit.
    pub(crate) fn when_kept(&self, on_kept: OnKept) {
        *self.on_kept.borrow_mut() = Some(on_kept);
        if self.ended.get() {
            self.tell_kept();
        }
    }

    fn fits(&self, data: &Bytes) -> bool {
        !self.unreplayable.get()
            && self.buffer.borrow().len() + data.len() <= REPLAY_BYTES_MAX
            && !self.memory.is_scarce()
    }

    fn end(&self) {
        if !self.ended.replace(true) {
            self.tell_kept();
        }
    }

    fn tell_kept(&self) {
        let Some(on_kept) = self.on_kept.take() else { return };
        if self.unreplayable.get() { on_kept(None) } else { on_kept(Some(self.buffer.borrow_mut().parts())) }
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

// === impl RequestBody ===

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
                    shared.tell_kept();
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

/// Removes forbidden and protected fields from trailers, in both directions.
pub(crate) fn strip_trailers<E>(frame: &mut Option<Result<Frame<Bytes>, E>>, protected: Option<&Names>) {
    if let Some(Ok(frame)) = frame
        && let Some(trailers) = frame.trailers_mut()
    {
        head::strip_trailers(trailers, protected);
    }
}
