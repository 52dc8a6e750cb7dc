//! The task of a connection: reads frames and writes the output.

use std::cell::RefCell;
use std::io;
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tokio_util::io::poll_read_buf;

use super::error::{Error, Reason};
use super::frame::{self, FrameHeader, HEADER_BYTES, PAYLOAD_MAX, PREFACE};
use super::half::{RecvStream, Requests, SendStream, handles};
use super::limits::{Limits, TooLarge};
use super::state::{Payload, Side, State};
use super::stream::CountStreams;
use crate::read_buffer::{READ_BYTES, with_read_buffer};

/// Capacity of a read when frames longer than [`READ_BYTES`] are likely.
const READ_BULK: usize = 64 * 1024;

/// A read of at least this many bytes suggests that more will follow.
const BULK_MIN: usize = READ_BYTES / 4 * 3;

/// Payloads from this length are kept in the buffer that they were read to. Shorter ones are copied, so that they do
/// not keep a large buffer alive.
const ZERO_COPY_MIN: usize = 4096;

/// Bytes that are read before streams are served.
const READ_BUDGET: usize = 64 * 1024;

/// A connection. One task polls it.
pub struct Connection<S> {
    stream: S,
    state: Rc<RefCell<State>>,
    /// The bytes of an incomplete frame.
    partial: BytesMut,
    /// The last read was a long one.
    is_bulk: bool,
    /// Since when `partial` holds the beginning of a frame other than DATA.
    partial_since: Option<Instant>,
    /// When the first bytes came. On a client, whose server must send SETTINGS at once: when the connection was made.
    started: Option<Instant>,
    /// What remains of the client connection preface.
    preface: &'static [u8],
    /// The peer has closed its sending half. It may still read.
    is_read_closed: bool,
    /// Nothing more is read, and no streams are opened.
    is_closing: bool,
}

/// A request, or [`TooLarge`], with the handles of its stream.
pub type Accepted = (Result<Request<()>, TooLarge>, SendStream, RecvStream);

/// Why reading ends.
enum CloseReason {
    Protocol(Reason),
    /// The peer has closed its sending half.
    Eof,
    Io(io::ErrorKind),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// The server side.
    pub fn server(stream: S, limits: Limits, count_streams: CountStreams) -> Self {
        Self::new(stream, Side::Server, limits, count_streams, PREFACE)
    }

    /// The client side. Requests may be sent at once.
    pub fn client(stream: S, limits: Limits, count_streams: CountStreams) -> (Self, Requests) {
        let connection = Self::new(stream, Side::Client, limits, count_streams, b"");
        let requests = Requests(connection.state.clone());
        (connection, requests)
    }

    fn new(stream: S, side: Side, limits: Limits, count_streams: CountStreams, preface: &'static [u8]) -> Self {
        let state = Rc::new(RefCell::new(State::new(side, limits, count_streams)));
        let started = (side == Side::Client).then(Instant::now);
        Self {
            stream,
            state,
            partial: BytesMut::new(),
            is_bulk: false,
            partial_since: None,
            started,
            preface,
            is_read_closed: false,
            is_closing: false,
        }
    }

    /// The next request. Drives all streams meanwhile. None: the connection is closed.
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Accepted>> {
        let accept = |state: &Rc<RefCell<State>>| {
            let (stream, request) = state.borrow_mut().accept()?;
            let (sending, receiving) = handles(state, stream);
            Some((request, sending, receiving))
        };
        if let Some(accepted) = accept(&self.state) {
            return Poll::Ready(Some(accepted));
        }
        let closed = self.poll_io(cx);
        if let Some(accepted) = accept(&self.state) {
            return Poll::Ready(Some(accepted));
        }
        closed.map(|()| None)
    }

    /// The number of malformed requests since the last call. Their streams were reset.
    pub fn take_malformed(&mut self) -> u32 {
        mem::take(&mut self.state.borrow_mut().malformed)
    }

    /// Drives the connection until it is closed.
    pub fn poll_run(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_io(cx)
    }

    /// Starts a graceful shutdown (RFC 9113 6.8): the connection closes when the streams in flight have ended.
    pub fn graceful_shutdown(&mut self) {
        self.state.borrow_mut().start_graceful_shutdown();
    }

    /// Wakes the tasks of all streams.
    pub fn wake_streams(&self) {
        self.state.borrow_mut().wake_streams();
    }

    /// Sends a PING, to check whether the peer is alive.
    pub fn ping(&mut self) {
        self.state.borrow_mut().ping();
    }

    /// Bytes received so far.
    pub fn bytes_read(&self) -> u64 {
        self.state.borrow().bytes_read
    }

    /// Whether the peer has closed its sending half while streams are open that need nothing from it.
    pub fn is_read_closed(&self) -> bool {
        self.is_read_closed
    }

    /// Sends GOAWAY again to a peer that has closed its sending half. If the peer has closed the connection
    /// altogether, its host answers with a TCP reset.
    pub fn probe(&mut self) {
        self.state.borrow_mut().resend_go_away();
    }

    /// HEADERS and DATA frames of streams received so far.
    pub fn message_frames(&self) -> u64 {
        self.state.borrow().message_frames
    }

    /// Since when the preface, the first SETTINGS, the rest of a header block or the rest of a frame other than DATA
    /// is awaited. The caller times that like the head of an HTTP/1.1 message.
    pub fn incomplete_since(&self) -> Option<Instant> {
        if self.is_closing || self.is_read_closed {
            return None;
        }
        let of_state = self.state.borrow().incomplete_since(self.started);
        of_state.into_iter().chain(self.partial_since).min()
    }

    /// Whether requests wait for a server that allows no streams (SETTINGS_MAX_CONCURRENT_STREAMS of 0).
    pub fn has_blocked_requests(&self) -> bool {
        self.state.borrow().has_blocked_requests()
    }

    /// Fails these requests. Nothing of them was sent.
    pub fn reject_blocked_requests(&mut self) {
        self.state.borrow_mut().reject_blocked_requests();
    }

    /// Whether the peer has sent GOAWAY with ENHANCE_YOUR_CALM.
    pub fn got_enhance_your_calm(&self) -> bool {
        self.state.borrow().got_enhance_your_calm
    }

    /// Closes the connection because the peer took too long.
    pub fn time_out(&mut self) {
        let mut state = self.state.borrow_mut();
        if state.error.is_none() {
            state.close_all(Error::Closed(io::ErrorKind::TimedOut));
        }
    }

    fn poll_io(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.state.borrow_mut().run(cx);
        let mut total = 0;
        loop {
            if !self.is_closing && !self.is_read_closed && !self.state.borrow().is_full() {
                match self.poll_read(cx) {
                    Poll::Ready(Ok(count)) => {
                        total += count;
                        if total < READ_BUDGET {
                            continue;
                        }
                        cx.waker().wake_by_ref();
                    }
                    Poll::Ready(Err(reason)) => self.stop_reading(&reason),
                    Poll::Pending => {}
                }
            }
            let written = {
                let mut state = self.state.borrow_mut();
                state.fill_output();
                let was_full = state.is_full();
                let written = state.output.poll_write(&mut self.stream, cx);
                match written {
                    Poll::Ready(Ok(())) if was_full && !self.is_closing => continue,
                    Poll::Ready(Ok(())) => {
                        if state.can_send_more() {
                            continue;
                        }
                        true
                    }
                    Poll::Ready(Err(error)) => {
                        if state.error.is_none() {
                            state.close_all(Error::Closed(error.kind()));
                        }
                        return Poll::Ready(());
                    }
                    Poll::Pending => false,
                }
            };
            if !self.is_closing && self.state.borrow().is_done() {
                self.state.borrow_mut().finish();
                self.is_closing = true;
                continue;
            }
            if written && self.is_read_closed {
                // No WINDOW_UPDATE will come.
                self.state.borrow_mut().fail_blocked_sends();
            }
            if self.is_closing && written {
                // An error does not matter: the connection is closed anyway.
                return Pin::new(&mut self.stream).poll_shutdown(cx).map(|_| ());
            }
            return Poll::Pending;
        }
    }

    fn stop_reading(&mut self, reason: &CloseReason) {
        let mut state = self.state.borrow_mut();
        self.is_closing = !matches!(reason, CloseReason::Eof);
        match reason {
            CloseReason::Eof => {
                self.is_read_closed = true;
                state.recv_eof();
            }
            CloseReason::Protocol(reason) => {
                tracing::debug!(%reason, "HTTP/2 connection error");
                state.send_go_away_and_close(*reason);
            }
            CloseReason::Io(kind) => state.close_all(Error::Closed(*kind)),
        }
    }

    /// Reads once, and passes complete frames on. Returns the number of bytes read.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, CloseReason>> {
        let count = if self.partial.is_empty() {
            with_read_buffer(|scratch| {
                let mut scratch = ReadBuf::new(scratch);
                ready!(Pin::new(&mut self.stream).poll_read(cx, &mut scratch))?;
                let came = scratch.filled();
                self.state.borrow_mut().bytes_read += came.len() as u64;
                self.is_bulk = came.len() >= BULK_MIN;
                self.started.get_or_insert_with(Instant::now);
                let used = self.recv_frames(came)?;
                self.partial.extend_from_slice(&came[used..]);
                self.track_partial(true);
                Poll::Ready(Ok::<_, CloseReason>(came.len()))
            })
        } else {
            let missing = self.missing_bytes();
            // If the peer sends little at once, a frame must not hold a large buffer.
            if missing > ZERO_COPY_MIN && self.is_bulk {
                self.partial.reserve(READ_BULK.max(missing));
            } else if self.partial.capacity() - self.partial.len() < missing {
                self.partial.reserve(READ_BYTES.max(missing));
            }
            let count =
                ready!(poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.partial)).map_err(CloseReason::from)?;
            self.is_bulk = count >= BULK_MIN;
            self.state.borrow_mut().bytes_read += count as u64;
            let before = self.partial.len();
            self.recv_buffered()?;
            self.track_partial(self.partial.len() < before);
            Poll::Ready(Ok(count))
        };
        match ready!(count)? {
            0 => Poll::Ready(Err(CloseReason::Eof)),
            count => Poll::Ready(Ok(count)),
        }
    }

    /// Tracks since when the incomplete frame is awaited. `is_another`: it is not the same frame as before.
    fn track_partial(&mut self, is_another: bool) {
        // DATA comes at its sender's pace; idle timeouts of streams and connections bound it.
        if self.partial.is_empty() || self.partial.get(3) == Some(&frame::DATA) {
            self.partial_since = None;
        } else if is_another || self.partial_since.is_none() {
            self.partial_since = Some(Instant::now());
        }
    }

    /// Passes complete frames on, and returns their length.
    fn recv_frames(&mut self, bytes: &[u8]) -> Result<usize, Reason> {
        let mut used = self.recv_preface(bytes)?;
        while let Some((bytes, rest)) = bytes[used..].split_first_chunk::<HEADER_BYTES>() {
            let head = parse_header(*bytes)?;
            let Some(payload) = rest.get(..head.length) else { break };
            self.state.borrow_mut().recv_frame(head, &Payload::Borrowed(payload))?;
            used += HEADER_BYTES + head.length;
        }
        Ok(used)
    }

    /// Passes complete frames of `partial` on.
    fn recv_buffered(&mut self) -> Result<(), Reason> {
        if !self.preface.is_empty() {
            let beginning = self.partial.split();
            let used = self.recv_preface(&beginning)?;
            self.partial.unsplit(beginning);
            self.partial.advance(used);
        }
        while let Some(bytes) = self.partial.first_chunk::<HEADER_BYTES>() {
            let head = parse_header(*bytes)?;
            if self.partial.len() < HEADER_BYTES + head.length {
                return Ok(());
            }
            if head.length >= ZERO_COPY_MIN {
                let payload = Payload::Owned(self.split_payload(head.length));
                self.state.borrow_mut().recv_frame(head, &payload)?;
            } else {
                let payload = Payload::Borrowed(&self.partial[HEADER_BYTES..HEADER_BYTES + head.length]);
                self.state.borrow_mut().recv_frame(head, &payload)?;
                self.partial.advance(HEADER_BYTES + head.length);
            }
        }
        if self.partial.is_empty() {
            self.partial = BytesMut::new();
        }
        Ok(())
    }

    fn split_payload(&mut self, length: usize) -> Bytes {
        self.partial.advance(HEADER_BYTES);
        self.partial.split_to(length).freeze()
    }

    /// The number of bytes that the incomplete frame lacks.
    fn missing_bytes(&self) -> usize {
        let whole =
            self.partial.first_chunk().map_or(HEADER_BYTES, |bytes| HEADER_BYTES + FrameHeader::parse(*bytes).length);
        // An incomplete preface would parse as a long frame.
        whole.min(HEADER_BYTES + PAYLOAD_MAX).saturating_sub(self.partial.len())
    }

    fn recv_preface(&mut self, bytes: &[u8]) -> Result<usize, Reason> {
        let count = self.preface.len().min(bytes.len());
        let (expected, rest) = self.preface.split_at(count);
        if *expected != bytes[..count] {
            return Err(Reason::PROTOCOL_ERROR);
        }
        self.preface = rest;
        Ok(count)
    }
}

/// Parses the header of a frame, and checks its length.
fn parse_header(bytes: [u8; HEADER_BYTES]) -> Result<FrameHeader, Reason> {
    let head = FrameHeader::parse(bytes);
    if head.length > PAYLOAD_MAX { Err(Reason::FRAME_SIZE_ERROR) } else { Ok(head) }
}

impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        // Wakes the handles of all streams.
        let mut state = self.state.borrow_mut();
        if state.error.is_none() {
            state.close_all(Error::Closed(io::ErrorKind::BrokenPipe));
        }
    }
}

impl From<Reason> for CloseReason {
    fn from(reason: Reason) -> Self {
        Self::Protocol(reason)
    }
}

impl From<io::Error> for CloseReason {
    fn from(error: io::Error) -> Self {
        Self::Io(error.kind())
    }
}

#[cfg(test)]
mod tests;
