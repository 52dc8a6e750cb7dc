//! The two directions of a stream, and those who may open streams.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;

use super::state::State;
use super::{Error, Reason};

/// What this side sends. Dropped before its end, with the other half gone too, the stream is reset.
pub(crate) struct SendStream(Half);

/// What the peer sends.
pub(crate) struct RecvStream(Half);

/// Requests of a client. The connection ends when this is dropped and all that was asked is answered.
pub(crate) struct Requests(pub(super) Rc<RefCell<State>>);

struct Half {
    state: Rc<RefCell<State>>,
    stream: u32,
    is_receiving: bool,
}

pub(super) fn halves(state: &Rc<RefCell<State>>, stream: u32) -> (SendStream, RecvStream) {
    let half = |is_receiving| Half { state: state.clone(), stream, is_receiving };
    (SendStream(half(false)), RecvStream(half(true)))
}

// === impl Half ===

impl Drop for Half {
    fn drop(&mut self) {
        self.state.borrow_mut().drop_half(self.stream, self.is_receiving);
    }
}

// === impl SendStream ===

impl SendStream {
    /// Sends the head of a response.
    pub(crate) fn respond(&mut self, status: StatusCode, headers: &HeaderMap, ends: bool) -> Result<(), Error> {
        self.0.state.borrow_mut().respond(self.0.stream, status, headers, ends)
    }

    /// Sends a part of a body. What the peer does not take yet is kept: see [`Self::poll_sent`].
    pub(crate) fn send_data(&mut self, data: Bytes, ends: bool) -> Result<(), Error> {
        self.0.state.borrow_mut().send_data(self.0.stream, data, ends)
    }

    /// Sends trailers, which end the stream.
    pub(crate) fn send_trailers(&mut self, trailers: HeaderMap) -> Result<(), Error> {
        self.0.state.borrow_mut().send_trailers(self.0.stream, trailers)
    }

    /// Waits until nothing is kept.
    pub(crate) fn poll_sent(&mut self, cx: &Context<'_>) -> Poll<Result<(), Error>> {
        self.0.state.borrow_mut().poll_sent(self.0.stream, cx)
    }

    /// Waits until the stream is over before its end.
    pub(crate) fn poll_error(&mut self, cx: &Context<'_>) -> Poll<Error> {
        self.0.state.borrow_mut().poll_error(self.0.stream, cx)
    }

    /// Ends the stream here and now, both ways.
    pub(crate) fn reset(&mut self, reason: Reason) {
        self.0.state.borrow_mut().send_reset(self.0.stream, reason);
    }
}

// === impl RecvStream ===

impl RecvStream {
    /// Waits for the head of a response.
    pub(crate) fn poll_response(&mut self, cx: &Context<'_>) -> Poll<Result<(StatusCode, HeaderMap), Error>> {
        self.0.state.borrow_mut().poll_response(self.0.stream, cx)
    }

    /// A response before the response, if one has come.
    pub(crate) fn take_interim(&mut self) -> Option<(StatusCode, HeaderMap)> {
        self.0.state.borrow_mut().take_interim(self.0.stream)
    }

    /// Sends a response before the response to the peer whose request this is. It is left out if the peer does not take what
    /// was sent already.
    pub(crate) fn inform(&self, status: StatusCode, headers: &HeaderMap) {
        self.0.state.borrow_mut().inform(self.0.stream, status, headers);
    }

    /// The next part of a body; the peer sends as much more once it is said to be [`Self::taken`]. None: only trailers may be
    /// left.
    pub(crate) fn poll_data(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        self.0.state.borrow_mut().poll_data(self.0.stream, cx)
    }

    /// Waits for what comes behind the head, without taking it: this trailer, if trailers come without content.
    pub(crate) fn poll_trailer(&mut self, name: &HeaderName, cx: &Context<'_>) -> Poll<Option<HeaderValue>> {
        self.0.state.borrow_mut().poll_trailer(self.0.stream, name, cx)
    }

    pub(crate) fn taken(&mut self, count: usize) {
        self.0.state.borrow_mut().taken(self.0.stream, count);
    }

    /// The trailers, once there is no more data.
    pub(crate) fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.0.state.borrow_mut().take_trailers(self.0.stream)
    }

    /// Whether nothing more is to be taken.
    pub(crate) fn is_end_stream(&self) -> bool {
        self.0.state.borrow().is_end_stream(self.0.stream)
    }
}

// === impl Requests ===

impl Requests {
    /// Sends the head of a request, at once or when the server takes one more. `length`: what is said of the body's length if
    /// the headers say nothing.
    pub(crate) fn send(
        &self,
        head: &Parts,
        length: Option<u64>,
        ends: bool,
    ) -> Result<(SendStream, RecvStream), Error> {
        let stream = self.0.borrow_mut().request(head, length, ends)?;
        Ok(halves(&self.0, stream))
    }

    /// Whether the server leaves, or is gone.
    pub(crate) fn is_over(&self) -> bool {
        !self.0.borrow().may_open()
    }

    /// Streams that are open.
    pub(crate) fn open(&self) -> usize {
        self.0.borrow().open_streams()
    }

    /// Requests at once that the server takes. None: it has not said yet.
    pub(crate) fn streams_max(&self) -> Option<usize> {
        self.0.borrow().streams_max()
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.0.borrow_mut().abandon();
    }
}
