//! The two handles of a stream, and the handle that opens streams on a client connection.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;

use super::error::{Error, Reason};
use super::state::State;

/// Sends on a stream. When both handles are dropped before the stream has ended, it is reset.
pub struct SendStream(Handle);

/// Receives from a stream.
pub struct RecvStream(Handle);

/// Sends requests on a client connection. The connection closes once this is dropped and all its streams have ended.
pub struct Requests(pub(super) Rc<RefCell<State>>);

struct Handle {
    state: Rc<RefCell<State>>,
    stream: u32,
    is_receiving: bool,
}

pub(super) fn handles(state: &Rc<RefCell<State>>, stream: u32) -> (SendStream, RecvStream) {
    let handle = |is_receiving| Handle { state: state.clone(), stream, is_receiving };
    (SendStream(handle(false)), RecvStream(handle(true)))
}

// === impl Handle ===

impl Drop for Handle {
    fn drop(&mut self) {
        self.state.borrow_mut().drop_handle(self.stream, self.is_receiving);
    }
}

// === impl SendStream ===

impl SendStream {
    /// Sends the head of a response.
    #[inline]
    pub fn respond(&mut self, status: StatusCode, headers: &HeaderMap, ends: bool) -> Result<(), Error> {
        self.0.state.borrow_mut().respond(self.0.stream, status, headers, ends)
    }

    /// Sends a part of a body. What flow control does not allow yet is buffered: see [`Self::poll_sent`].
    #[inline]
    pub fn send_data(&mut self, data: Bytes, ends: bool) -> Result<(), Error> {
        self.0.state.borrow_mut().send_data(self.0.stream, data, ends)
    }

    /// Sends trailers, which end the stream.
    #[inline]
    pub fn send_trailers(&mut self, trailers: HeaderMap) -> Result<(), Error> {
        self.0.state.borrow_mut().send_trailers(self.0.stream, trailers)
    }

    /// Waits until nothing is buffered.
    #[inline]
    pub fn poll_sent(&mut self, cx: &Context<'_>) -> Poll<Result<(), Error>> {
        self.0.state.borrow_mut().poll_sent(self.0.stream, cx)
    }

    /// Waits until the stream ends early.
    #[inline]
    pub fn poll_error(&mut self, cx: &Context<'_>) -> Poll<Error> {
        self.0.state.borrow_mut().poll_error(self.0.stream, cx)
    }

    /// Resets the stream.
    pub fn reset(&mut self, reason: Reason) {
        self.0.state.borrow_mut().send_reset(self.0.stream, reason);
    }
}

// === impl RecvStream ===

impl RecvStream {
    /// Waits for the head of a response.
    #[inline]
    pub fn poll_response(&mut self, cx: &Context<'_>) -> Poll<Result<(StatusCode, HeaderMap), Error>> {
        self.0.state.borrow_mut().poll_response(self.0.stream, cx)
    }

    /// The next interim (1xx) response that has arrived.
    pub fn take_interim(&mut self) -> Option<(StatusCode, HeaderMap)> {
        self.0.state.borrow_mut().take_interim(self.0.stream)
    }

    /// Sends an interim (1xx) response on the stream of this request. Dropped if the peer does not read fast enough.
    pub fn send_interim(&self, status: StatusCode, headers: &HeaderMap) {
        self.0.state.borrow_mut().send_interim(self.0.stream, status, headers);
    }

    /// The next part of a body. [`Self::release_capacity`] lets the peer send as much again. None: only trailers may
    /// remain.
    #[inline]
    pub fn poll_data(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        self.0.state.borrow_mut().poll_data(self.0.stream, cx)
    }

    /// Waits for trailers or content behind the head, without consuming them. Returns the trailer `name` if trailers
    /// come without content.
    #[inline]
    pub fn poll_trailer(&mut self, name: &HeaderName, cx: &Context<'_>) -> Poll<Option<HeaderValue>> {
        self.0.state.borrow_mut().poll_trailer(self.0.stream, name, cx)
    }

    /// Credits bytes of [`Self::poll_data`] to the flow control windows.
    #[inline]
    pub fn release_capacity(&mut self, count: usize) {
        self.0.state.borrow_mut().release_capacity(self.0.stream, count);
    }

    /// The trailers, once there is no more data.
    #[inline]
    pub fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.0.state.borrow_mut().take_trailers(self.0.stream)
    }

    /// Whether everything was read.
    #[inline]
    pub fn is_end_stream(&self) -> bool {
        self.0.state.borrow().is_end_stream(self.0.stream)
    }
}

// === impl Requests ===

impl Requests {
    /// Sends the head of a request, or queues it until the server accepts another stream. `length`: the
    /// `content-length` to send if the headers have none.
    #[inline]
    pub fn send(&self, head: &Parts, length: Option<u64>, ends: bool) -> Result<(SendStream, RecvStream), Error> {
        let stream = self.0.borrow_mut().request(head, length, ends)?;
        Ok(handles(&self.0, stream))
    }

    /// Whether no more requests can be sent: the server sent GOAWAY, or the connection closed.
    #[inline]
    pub fn is_closed(&self) -> bool {
        !self.0.borrow().can_open()
    }

    /// Streams that are open.
    #[inline]
    pub fn open_streams(&self) -> usize {
        self.0.borrow().open_streams()
    }

    /// The server's SETTINGS_MAX_CONCURRENT_STREAMS. None: its SETTINGS have not arrived.
    #[inline]
    pub fn max_concurrent_streams(&self) -> Option<usize> {
        self.0.borrow().max_concurrent_streams()
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.0.borrow_mut().drop_requests();
    }
}
