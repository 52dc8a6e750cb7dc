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

/// Capacity of a read when frames longer than [`READ`] are likely.
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

/// A client that sends `sends` in pieces of `piece` bytes, and records what the server sends.
#[cfg(any(test, fuzzing))]
struct ScriptedClient<'a> {
    sends: &'a [u8],
    piece: usize,
    answer: Rc<RefCell<Vec<u8>>>,
}

#[cfg(any(test, fuzzing))]
impl AsyncRead for ScriptedClient<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (now, later) = self.sends.split_at(self.piece.min(self.sends.len()).min(out.remaining()));
        out.put_slice(now);
        self.sends = later;
        Poll::Ready(Ok(()))
    }
}

#[cfg(any(test, fuzzing))]
impl AsyncWrite for ScriptedClient<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.answer.borrow_mut().extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What a server sends to a client that sends these bytes in pieces, and the requests and bodies that it receives.
#[cfg(any(test, fuzzing))]
fn serve(sends: &[u8], piece: usize) -> (Vec<u8>, Vec<String>) {
    let limits = Limits { streams: 10, stream_window: 65_535, connection_window: 200_000, head_bytes: 2000 };
    let answer = Rc::<RefCell<Vec<u8>>>::default();
    let mut connection = Connection::server(ScriptedClient { sends, piece, answer: answer.clone() }, limits, |_| {});
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let (mut streams, mut requests) = (Vec::new(), Vec::new());
    for _ in 0..100_000 {
        match connection.poll_accept(&mut cx) {
            Poll::Ready(Some((request, sending, receiving))) => streams.push((request, sending, receiving)),
            Poll::Ready(None) => break,
            Poll::Pending => {}
        }
    }
    for (request, mut sending, mut receiving) in streams {
        let mut seen = format!("{request:?}");
        let headers = request.map(|request| request.headers().clone()).unwrap_or_default();
        while let Poll::Ready(Some(Ok(data))) = receiving.poll_data(&cx) {
            receiving.release_capacity(data.len());
            seen.extend(data.iter().map(|&byte| char::from(byte)));
        }
        requests.push(format!("{seen} {} {:?}", receiving.is_end_stream(), receiving.take_trailers()));
        // Whatever state the stream is in, it can be answered and dropped.
        let _ = sending.respond(http::StatusCode::OK, &headers, false);
        let _ = sending.send_data(Bytes::from_static(b"x"), true);
    }
    (answer.take(), requests)
}

/// A server behaves the same however its input is split into reads.
#[cfg(any(test, fuzzing))]
pub fn check_laws(frames: &[u8]) {
    let mut sends = PREFACE.to_vec();
    sends.extend_from_slice(&FrameHeader::encode(super::frame::SETTINGS, 0, 0, 0));
    sends.extend_from_slice(frames);
    let whole = serve(&sends, usize::MAX);
    for piece in [1, 7, 1000] {
        assert_eq!(serve(&sends, piece), whole, "in pieces of {piece}");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future::poll_fn;

    use http::{HeaderMap, StatusCode};
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;
    use crate::limits::INTERIM_MAX;

    const LIMITS: Limits =
        Limits { streams: 3, stream_window: 65_535, connection_window: 70_000, head_bytes: 16 * 1024 };

    fn request(method: &str) -> http::request::Parts {
        Request::builder().method(method).uri("http://app/x").body(()).expect("a request").into_parts().0
    }

    /// Reads a body to its end.
    async fn body(receiving: &mut RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), Error> {
        let mut whole = Vec::new();
        while let Some(data) = poll_fn(|cx| receiving.poll_data(cx)).await {
            let data = data?;
            receiving.release_capacity(data.len());
            whole.extend_from_slice(&data);
        }
        Ok((whole, receiving.take_trailers()))
    }

    /// Sends parts one after the other, each once the last was sent, and then trailers.
    async fn send(sending: &mut SendStream, parts: Vec<Vec<u8>>, trailers: bool) -> Result<(), Error> {
        let mut parts = VecDeque::from(parts);
        while let Some(part) = parts.pop_front() {
            sending.send_data(part.into(), parts.is_empty() && !trailers)?;
            poll_fn(|cx| sending.poll_sent(cx)).await?;
        }
        if trailers {
            let mut map = HeaderMap::new();
            map.insert("grpc-status", http::HeaderValue::from_static("0"));
            sending.send_trailers(map)?;
        }
        poll_fn(|cx| sending.poll_sent(cx)).await
    }

    /// A server that echoes each body.
    async fn echo(stream: DuplexStream) {
        let mut connection = Connection::server(stream, LIMITS, |_| {});
        while let Some((request, mut sending, mut receiving)) = poll_fn(|cx| connection.poll_accept(cx)).await {
            let request = request.expect("a request that is not too large");
            tokio::task::spawn_local(async move {
                let (whole, trailers) = body(&mut receiving).await?;
                sending.respond(StatusCode::OK, request.headers(), false)?;
                send(&mut sending, vec![whole], trailers.is_some()).await
            });
        }
    }

    fn run<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime.expect("a runtime"), async {
            tokio::time::timeout(std::time::Duration::from_secs(60), work).await.expect("it ends")
        })
    }

    /// A client of the echo server, over a pipe with a buffer of `pipe` bytes.
    fn client(pipe: usize) -> Requests {
        let (near, far) = duplex(pipe);
        tokio::task::spawn_local(echo(far));
        let (mut connection, requests) = Connection::client(near, LIMITS, |_| {});
        tokio::task::spawn_local(async move { poll_fn(|cx| connection.poll_run(cx)).await });
        requests
    }

    proptest! {
        /// Concurrent bodies arrive unchanged, whatever their parts and the pipe's buffer. Requests beyond
        /// SETTINGS_MAX_CONCURRENT_STREAMS wait.
        #[test]
        fn bodies_arrive_unchanged(
            bodies in prop::collection::vec(prop::collection::vec(0usize..100_000, 1..4), 1..8),
            trailers in any::<bool>(),
            pipe in 1usize..50_000,
        ) {
            let part = |length: &usize| (0..*length).map(|at| (at % 251) as u8).collect::<Vec<_>>();
            let bodies: Vec<Vec<Vec<u8>>> = bodies.iter().map(|parts| parts.iter().map(part).collect()).collect();
            let expected: Vec<Vec<u8>> = bodies.iter().map(|parts| parts.concat()).collect();
            let found = run(async {
                let requests = client(pipe);
                let calls = bodies.into_iter().map(|parts| {
                    let (mut sending, mut receiving) = requests.send(&request("POST"), None, false).expect("sent");
                    async move {
                        send(&mut sending, parts, trailers).await.expect("sent");
                        let (status, _) = poll_fn(|cx| receiving.poll_response(cx)).await.expect("a response");
                        assert_eq!(status, StatusCode::OK);
                        let (whole, end) = body(&mut receiving).await.expect("whole");
                        assert_eq!(end.is_some(), trailers);
                        assert!(receiving.is_end_stream());
                        whole
                    }
                });
                futures_util::future::join_all(calls).await
            });
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn split_input_gives_the_same_result(frames in prop::collection::vec(
            (prop::sample::select(vec![0u8, 1, 1, 2, 3, 4, 6, 7, 8, 9, 200]), any::<u8>(), 0u32..8,
             prop::collection::vec(prop::sample::select(vec![0u8, 1, 4, 16, 65, 0x40, 0x82, 0x84, 0x86, 0x87, 255]), 0..40)),
            0..12,
        )) {
            let put = |(kind, flags, stream, payload): &(u8, u8, u32, Vec<u8>)| {
                [&FrameHeader::encode(*kind, *flags & 0b0010_1101, *stream, payload.len())[..], payload].concat()
            };
            check_laws(&frames.iter().flat_map(put).collect::<Vec<_>>());
        }
    }

    /// The next `count` frames on `stream`.
    async fn frames(stream: &mut DuplexStream, count: usize) -> Vec<(u8, u32, Vec<u8>)> {
        let mut found = Vec::new();
        while found.len() < count {
            let mut bytes = [0; HEADER_BYTES];
            stream.read_exact(&mut bytes).await.expect("a frame");
            let head = FrameHeader::parse(bytes);
            let mut payload = vec![0; head.length];
            stream.read_exact(&mut payload).await.expect("its payload");
            found.push((head.kind, head.stream, payload));
        }
        found
    }

    fn put(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        [&FrameHeader::encode(kind, flags, stream, payload.len())[..], payload].concat()
    }

    /// A client whose server is the test. Its preface and first frames were read.
    async fn connect_client(settings: &[u8]) -> (Requests, DuplexStream) {
        let (near, mut far) = duplex(100_000);
        let (mut connection, requests) = Connection::client(near, LIMITS, |_| {});
        tokio::task::spawn_local(async move { poll_fn(|cx| connection.poll_run(cx)).await });
        let mut preface = [0; PREFACE.len()];
        far.read_exact(&mut preface).await.expect("a preface");
        assert_eq!(preface, PREFACE);
        let kinds: Vec<u8> = frames(&mut far, 2).await.iter().map(|(kind, ..)| *kind).collect();
        assert_eq!(kinds, [frame::SETTINGS, frame::WINDOW_UPDATE]);
        far.write_all(&put(frame::SETTINGS, 0, 0, settings)).await.expect("written");
        (requests, far)
    }

    #[test]
    fn requests_fail_with_the_error_of_the_server() {
        let goaway =
            |last: u32, reason: u32| put(frame::GOAWAY, 0, 0, &[last.to_be_bytes(), reason.to_be_bytes()].concat());
        let reset = |reason: u32| put(frame::RST_STREAM, 0, 1, &reason.to_be_bytes());
        for (frames, expected) in [
            (goaway(0, 0), "peer sent GOAWAY: NO_ERROR"),
            (goaway(0, 11), "peer sent GOAWAY: ENHANCE_YOUR_CALM"),
            (reset(7), "stream reset: REFUSED_STREAM"),
            (reset(99), "stream reset: error code 99"),
            (put(frame::HEADERS, 5, 1, &[0x82]), "HTTP/2 stream error: PROTOCOL_ERROR"),
            (put(frame::HEADERS, 5, 1, &[0xff]), "HTTP/2 connection error: COMPRESSION_ERROR"),
            (put(frame::HEADERS, 5, 9, &[0x88]), "HTTP/2 connection error: PROTOCOL_ERROR"),
            (put(frame::DATA, 0, 1, b"early"), "HTTP/2 stream error: PROTOCOL_ERROR"),
            (Vec::new(), "connection closed: unexpected end of file"),
        ] {
            let found = run(async {
                let (requests, mut far) = connect_client(&[]).await;
                let (_sending, mut receiving) = requests.send(&request("GET"), None, true).expect("sent");
                far.write_all(&frames).await.expect("written");
                if frames.is_empty() {
                    drop(far);
                }
                poll_fn(|cx| receiving.poll_response(cx)).await
            });
            assert_eq!(found.map(|_| ()).expect_err("no response").to_string(), expected);
        }
    }

    #[test]
    fn requests_wait_for_max_concurrent_streams() {
        run(async {
            let (requests, mut far) = connect_client(&[0, 3, 0, 0, 0, 1]).await;
            assert_eq!(frames(&mut far, 1).await[0].0, frame::SETTINGS, "the acknowledgement");
            assert_eq!(requests.max_concurrent_streams(), Some(1));
            let mut calls: Vec<_> = (0..3).map(|_| requests.send(&request("GET"), None, true).expect("sent")).collect();
            // The second is cancelled while it waits: the server never sees it.
            calls.remove(1);
            for (stream, (_, receiving)) in [1, 5].into_iter().zip(&mut calls) {
                let (kind, id, _) = frames(&mut far, 1).await.remove(0);
                assert_eq!((kind, id), (frame::HEADERS, stream));
                far.write_all(&put(frame::HEADERS, 5, stream, &[0x88])).await.expect("written");
                poll_fn(|cx| receiving.poll_response(cx)).await.expect("a response");
            }
            // No request can come any more: the connection sends GOAWAY and closes.
            drop((requests, calls));
            assert_eq!(frames(&mut far, 1).await[0].0, frame::GOAWAY);
            assert_eq!(far.read(&mut [0]).await.expect("read"), 0, "the end");
        });
    }

    /// DATA never exceeds the windows of stream and connection, and continues when they grow, also after the peer has
    /// made a window negative.
    #[test]
    fn data_never_exceeds_the_windows() {
        run(async {
            let (requests, mut far) = connect_client(&[0, 4, 0, 0, 0, 10]).await;
            frames(&mut far, 1).await;
            let (mut sending, _receiving) = requests.send(&request("POST"), Some(25), false).expect("sent");
            sending.send_data(Bytes::from_static(b"0123456789abcdefghijklmno"), true).expect("kept");
            let data = frames(&mut far, 2).await.remove(1);
            assert_eq!(data, (frame::DATA, 1, b"0123456789".to_vec()));
            assert!(poll_fn(|cx| Poll::Ready(sending.poll_sent(cx).is_pending())).await, "the rest is kept");
            far.write_all(&put(frame::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 3])).await.expect("written");
            far.write_all(&put(frame::WINDOW_UPDATE, 0, 1, &9u32.to_be_bytes())).await.expect("written");
            let got = frames(&mut far, 2).await;
            assert_eq!(got[1], (frame::DATA, 1, b"ab".to_vec()), "10 - 7 + 9 - 10");
            far.write_all(&put(frame::WINDOW_UPDATE, 0, 1, &100u32.to_be_bytes())).await.expect("written");
            assert_eq!(frames(&mut far, 1).await[0], (frame::DATA, 1, b"cdefghijklmno".to_vec()));
            poll_fn(|cx| sending.poll_sent(cx)).await.expect("all of it");
        });
    }

    /// A graceful shutdown sends two GOAWAYs, answers open requests and those in flight, and accepts none after that.
    #[test]
    fn graceful_shutdown_answers_requests_in_flight() {
        run(async {
            let (near, mut far) = duplex(100_000);
            let mut connection = Connection::server(near, LIMITS, |_| {});
            far.write_all(PREFACE).await.expect("written");
            far.write_all(&put(frame::SETTINGS, 0, 0, &[])).await.expect("written");
            far.write_all(&put(frame::HEADERS, 5, 1, &[0x82, 0x84, 0x86])).await.expect("written");
            let (_, mut first, _first) = poll_fn(|cx| connection.poll_accept(cx)).await.expect("a request");
            connection.graceful_shutdown();
            assert!(poll_fn(|cx| Poll::Ready(connection.poll_accept(cx).is_pending())).await);
            let got = frames(&mut far, 5).await;
            let kinds: Vec<u8> = got.iter().map(|(kind, ..)| *kind).collect();
            assert_eq!(kinds, [frame::SETTINGS, frame::WINDOW_UPDATE, frame::SETTINGS, frame::GOAWAY, frame::PING]);
            assert_eq!(got[3].2[..4], 0x7fff_ffffu32.to_be_bytes());
            far.write_all(&put(frame::HEADERS, 5, 3, &[0x82, 0x84, 0x86])).await.expect("written");
            far.write_all(&put(frame::PING, frame::ACK, 0, &got[4].2)).await.expect("written");
            far.write_all(&put(frame::HEADERS, 5, 5, &[0x82, 0x84, 0x86])).await.expect("written");
            let (_, mut second, _second) = poll_fn(|cx| connection.poll_accept(cx)).await.expect("it was on its way");
            assert!(
                poll_fn(|cx| Poll::Ready(connection.poll_accept(cx).is_pending())).await,
                "the third came too late"
            );
            assert_eq!(frames(&mut far, 1).await[0].2[..4], 3u32.to_be_bytes(), "the last that counts");
            for sending in [&mut first, &mut second] {
                sending.respond(StatusCode::OK, &HeaderMap::new(), true).expect("answered");
            }
            assert!(poll_fn(|cx| connection.poll_accept(cx)).await.is_none());
            assert_eq!(frames(&mut far, 2).await.iter().map(|it| it.1).collect::<Vec<_>>(), [1, 3]);
            assert_eq!(far.read(&mut [0]).await.expect("read"), 0, "the end");
        });
    }

    /// Rapidly cancelled requests are harmless up to the reset budget.
    #[test]
    fn cancelled_requests_do_not_close_the_connection() {
        for (count, ends) in [(400, false), (600, true)] {
            let one = |number: u32| {
                let id = 2 * number + 1;
                let head = put(frame::HEADERS, frame::END_HEADERS, id, &[0x83, 0x84, 0x86]);
                let body = put(frame::DATA, 0, id, &[1; 5000]);
                [head, body, put(frame::RST_STREAM, 0, id, &Reason::CANCEL.0.to_be_bytes())].concat()
            };
            // Each request comes in one read: the first read is made as long.
            let piece = one(0).len();
            let settings = put(frame::SETTINGS, 0, 0, &[]);
            let unknown = put(0xee, 0, 0, &vec![0; piece - PREFACE.len() - settings.len() - HEADER_BYTES]);
            let sends = [PREFACE.to_vec(), settings, unknown].into_iter().chain((0..count).map(one));
            let (mut answer, requests) = serve(&sends.collect::<Vec<_>>().concat(), piece);
            assert!(requests.is_empty());
            let mut last = None;
            while let Some(bytes) = answer.first_chunk::<HEADER_BYTES>() {
                let head = FrameHeader::parse(*bytes);
                last = (head.kind == frame::GOAWAY).then(|| answer[HEADER_BYTES + 7]).or(last);
                answer.drain(..HEADER_BYTES + head.length);
            }
            assert_eq!(last, ends.then_some(Reason::ENHANCE_YOUR_CALM.0 as u8), "{count} requests");
        }
    }

    /// If a peer sends little at once, a frame holds no large buffer, however long it waits to be read.
    #[test]
    fn short_reads_hold_little_memory() {
        run(async {
            let (near, mut far) = duplex(100_000);
            let mut connection = Connection::server(near, LIMITS, |_| {});
            far.write_all(PREFACE).await.expect("written");
            far.write_all(&put(frame::SETTINGS, 0, 0, &[])).await.expect("written");
            far.write_all(&put(frame::HEADERS, 4, 1, &[0x83, 0x84, 0x86])).await.expect("written");
            let (_, _sending, mut receiving) = poll_fn(|cx| connection.poll_accept(cx)).await.expect("a request");
            for _ in 0..3 {
                for part in put(frame::DATA, 0, 1, &[1; 5000]).chunks(2000) {
                    far.write_all(part).await.expect("written");
                    assert!(poll_fn(|cx| Poll::Ready(connection.poll_accept(cx).is_pending())).await);
                }
                let data = poll_fn(|cx| receiving.poll_data(cx)).await.expect("data").expect("whole");
                let data = data.try_into_mut().expect("not shared");
                assert!(data.len() == 5000 && data.capacity() < 2 * READ_BYTES, "{} bytes are held", data.capacity());
            }
        });
    }

    /// Bytes that are never read return to the connection's window, or a few such streams would block the connection.
    #[test]
    fn unread_bytes_return_to_the_connection_window() {
        run(async {
            let requests = client(5000);
            for _ in 0..30 {
                let (mut sending, mut receiving) = requests.send(&request("POST"), None, false).expect("sent");
                sending.send_data(Bytes::from(vec![1; 60_000]), true).expect("kept");
                poll_fn(|cx| receiving.poll_response(cx)).await.expect("a response");
            }
            let (mut sending, mut receiving) = requests.send(&request("POST"), None, false).expect("sent");
            send(&mut sending, vec![vec![1; 60_000]; 3], false).await.expect("sent");
            assert_eq!(body(&mut receiving).await.expect("whole").0.len(), 180_000);
        });
    }

    /// The error code of the GOAWAY that a server sends to a client that sends these frames.
    fn go_away_reason(frames: &[u8]) -> Option<u8> {
        let settings = put(frame::SETTINGS, 0, 0, &[]);
        let (answer, _) = serve(&[PREFACE, &settings, frames].concat(), 10_000);
        let mut rest = &answer[..];
        let mut reason = None;
        while let Some(bytes) = rest.first_chunk::<HEADER_BYTES>() {
            let head = FrameHeader::parse(*bytes);
            reason = (head.kind == frame::GOAWAY).then(|| rest[HEADER_BYTES + 7]).or(reason);
            rest = &rest[HEADER_BYTES + head.length..];
        }
        reason
    }

    /// Frames that carry no message spend the control budget.
    #[test]
    fn control_frames_are_bounded() {
        let increment = 1u32.to_be_bytes();
        let get = [0x82, 0x84, 0x86];
        let ended = |id: u32| {
            let request = put(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, id, &get);
            [request, put(frame::RST_STREAM, 0, id, &Reason::CANCEL.0.to_be_bytes())].concat()
        };
        let open = put(frame::HEADERS, frame::END_HEADERS, 3, &get);
        // An increment of zero: the stream is reset, and its frames in flight are ignored.
        let window = [open.clone(), put(frame::WINDOW_UPDATE, 0, 3, &[0; 4])].concat();
        for (desc, before, frame) in [
            ("empty data", open.clone(), put(frame::DATA, 0, 3, &[])),
            ("data that is padding", open.clone(), put(frame::DATA, frame::PADDED, 3, &[3, 0, 0, 0])),
            ("data of a stream that was reset", window, put(frame::DATA, 0, 3, b"x")),
            ("priorities", Vec::new(), put(frame::PRIORITY, 0, 3, &[0; 5])),
            ("resets of a stream that is over", ended(1), put(frame::RST_STREAM, 0, 1, &[0; 4])),
            ("settings", Vec::new(), put(frame::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])),
            ("acknowledged settings", Vec::new(), put(frame::SETTINGS, frame::ACK, 0, &[])),
            ("pings", Vec::new(), put(frame::PING, 0, 0, &[0; 8])),
            ("answered pings", Vec::new(), put(frame::PING, frame::ACK, 0, &[0; 8])),
            ("GOAWAYs", Vec::new(), put(frame::GOAWAY, 0, 0, &[0; 8])),
            ("increments of the connection", Vec::new(), put(frame::WINDOW_UPDATE, 0, 0, &increment)),
            ("increments of a stream", open, put(frame::WINDOW_UPDATE, 0, 3, &increment)),
            ("increments of a stream that is over", ended(1), put(frame::WINDOW_UPDATE, 0, 1, &increment)),
            ("unknown frames", Vec::new(), put(0xee, 0, 0, &[0; 8])),
        ] {
            let times = |count: usize| go_away_reason(&[before.clone(), frame.repeat(count)].concat());
            assert_eq!(times(900), None, "900 {desc}");
            assert_eq!(times(2_000), Some(Reason::ENHANCE_YOUR_CALM.0 as u8), "2,000 {desc}");
        }
    }

    /// A change of SETTINGS_INITIAL_WINDOW_SIZE touches all streams: only the last value of a frame is applied, and
    /// the control budget bounds the frames.
    #[test]
    fn initial_window_changes_are_bounded() {
        let value = |size: u32| [&[0, 4][..], &size.to_be_bytes()].concat();
        let open: Vec<u8> =
            (0..10).flat_map(|at| put(frame::HEADERS, frame::END_HEADERS, 2 * at + 1, &[0x82, 0x84, 0x86])).collect();
        let full = put(frame::WINDOW_UPDATE, 0, 1, &(0x7fff_ffff_u32 - 65_535).to_be_bytes());
        let beyond = [value(0x7fff_ffff), value(65_535)].concat();
        assert_eq!(go_away_reason(&[&open[..], &full, &put(frame::SETTINGS, 0, 0, &beyond)].concat()), None);
        let beyond = put(frame::SETTINGS, 0, 0, &value(65_536));
        let found = go_away_reason(&[&open[..], &full, &beyond].concat());
        assert_eq!(found, Some(Reason::FLOW_CONTROL_ERROR.0 as u8));
        let change = [put(frame::SETTINGS, 0, 0, &value(1)), put(frame::SETTINGS, 0, 0, &value(2))].concat();
        assert_eq!(go_away_reason(&[&open[..], &change.repeat(200)].concat()), None);
        let found = go_away_reason(&[&open[..], &change.repeat(1_000)].concat());
        assert_eq!(found, Some(Reason::ENHANCE_YOUR_CALM.0 as u8));
    }

    /// The outcome of a request that these frames answer.
    fn response_to(method: &str, answer: &[u8]) -> Result<(StatusCode, Vec<u8>), String> {
        run(async {
            let (requests, mut far) = connect_client(&[]).await;
            let (_sending, mut receiving) = requests.send(&request(method), None, true).expect("sent");
            far.write_all(answer).await.expect("written");
            let (status, _) = poll_fn(|cx| receiving.poll_response(cx)).await.map_err(|error| error.to_string())?;
            let (whole, _) = body(&mut receiving).await.map_err(|error| error.to_string())?;
            Ok((status, whole))
        })
    }

    #[test]
    fn informational_responses_are_bounded() {
        let early = put(frame::HEADERS, frame::END_HEADERS, 1, b"\x08\x03103");
        let last = put(frame::HEADERS, 5, 1, &[0x88]);
        let many = INTERIM_MAX as usize;
        let found = response_to("GET", &[early.repeat(many), last.clone()].concat());
        assert_eq!(found, Ok((StatusCode::OK, Vec::new())));
        let found = response_to("GET", &[early.repeat(many + 1), last].concat());
        assert_eq!(found, Err("HTTP/2 stream error: PROTOCOL_ERROR".to_owned()));
    }

    /// RFC 9110 6.4.1: no content follows, whatever `content-length` says.
    #[test]
    fn content_of_bodiless_responses_is_an_error() {
        // `content-length: 5`, then DATA with or without content.
        let length = b"\x0f\x0d\x015";
        for (method, status, is_bodiless) in
            [("GET", 0x88, false), ("HEAD", 0x88, true), ("GET", 0x89, true), ("GET", 0x8b, true), ("POST", 0x89, true)]
        {
            let head = put(frame::HEADERS, frame::END_HEADERS, 1, &[&[status][..], length].concat());
            let found = |data: &[u8]| response_to(method, &[&head[..], &put(frame::DATA, 1, 1, data)].concat());
            assert_eq!(found(b"hello").is_err(), is_bodiless, "{method} {status:#x}: {:?}", found(b"hello"));
            assert_eq!(found(b"").is_ok(), is_bodiless, "{method} {status:#x}: {:?}", found(b""));
            let head = put(frame::HEADERS, frame::END_HEADERS, 1, &[status]);
            let found = |data: &[u8]| response_to(method, &[&head[..], &put(frame::DATA, 1, 1, data)].concat());
            assert_eq!(found(b"hello").is_err(), is_bodiless, "{method} {status:#x}: {:?}", found(b"hello"));
            assert!(found(b"").is_ok(), "{method} {status:#x}");
        }
    }

    /// These limits are ours, so a server that exceeds them has not violated the protocol: only the stream is reset,
    /// any number of times.
    #[test]
    fn oversized_headers_reset_only_their_stream() {
        // `a: vvv...`, whose length takes two bytes after the first.
        let field = |length: usize| {
            let rest = length - 127;
            [&b"\0\x01a\x7f"[..], &[(rest % 128) as u8 | 0x80, (rest / 128) as u8], &vec![b'v'; length]].concat()
        };
        let many = |count: usize| b"\0\x01a\x01b".repeat(count);
        // `:status: 200` counts 42 bytes, and each field 32 more than its name and value.
        let most = LIMITS.head_bytes as usize - 42 - 33;
        for (desc, fields, is_trailer, is_taken) in [
            ("a head of 16 KiB", field(most), false, true),
            ("a larger head", field(most + 1), false, false),
            ("a head of 100 fields", many(100), false, true),
            ("a head of 101 fields", many(101), false, false),
            ("trailers of 16 KiB", field(most + 42), true, true),
            ("larger trailers", field(most + 43), true, false),
            ("trailers of 100 fields", many(100), true, true),
            ("trailers of 101 fields", many(101), true, false),
        ] {
            run(async {
                let (requests, mut far) = connect_client(&[]).await;
                frames(&mut far, 1).await;
                for id in (1..).step_by(2).take(600) {
                    let (_sending, mut receiving) = requests.send(&request("GET"), None, true).expect("sent");
                    frames(&mut far, 1).await;
                    let status = [0x88];
                    let block = if is_trailer { fields.clone() } else { [&status[..], &fields].concat() };
                    let (first, rest) = block.split_at(block.len().min(16_000));
                    if is_trailer {
                        far.write_all(&put(frame::HEADERS, frame::END_HEADERS, id, &status)).await.expect("written");
                    }
                    let block = [
                        put(frame::HEADERS, frame::END_STREAM, id, first),
                        put(frame::CONTINUATION, frame::END_HEADERS, id, rest),
                    ];
                    far.write_all(&block.concat()).await.expect("written");
                    let found = async {
                        poll_fn(|cx| receiving.poll_response(cx)).await?;
                        body(&mut receiving).await
                    };
                    match found.await {
                        Ok(_) => assert!(is_taken, "{desc}"),
                        Err(Error::TooLarge) => {
                            assert!(!is_taken, "{desc}");
                            assert_eq!(frames(&mut far, 1).await[0].0, frame::RST_STREAM, "{desc}");
                        }
                        Err(error) => panic!("{desc}: {error}"),
                    }
                }
            });
        }
    }

    /// RFC 9113 6.5.2: a server must not enable push.
    #[test]
    fn enable_push_from_a_server_is_an_error() {
        for (value, error) in [(0, None), (1, Some("HTTP/2 connection error: PROTOCOL_ERROR"))] {
            let push = put(frame::SETTINGS, 0, 0, &[0, 2, 0, 0, 0, value]);
            let found = response_to("GET", &[push, put(frame::HEADERS, 5, 1, &[0x88])].concat());
            assert_eq!(found.err().as_deref(), error, "{value}");
        }
        assert_eq!(go_away_reason(&put(frame::SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 1])), None, "a client can");
    }

    /// Requests that are cancelled while they wait do not keep the connection open.
    #[test]
    fn cancelled_waiting_requests_do_not_keep_the_connection() {
        run(async {
            let (requests, mut far) = connect_client(&[0, 3, 0, 0, 0, 0]).await;
            frames(&mut far, 1).await;
            for _ in 0..3 {
                drop(requests.send(&request("GET"), None, true).expect("waits"));
            }
            drop(requests);
            assert_eq!(frames(&mut far, 1).await[0].0, frame::GOAWAY);
        });
    }

    /// Requests that were not sent can be sent elsewhere, however the connection closes.
    #[test]
    fn waiting_requests_fail_as_unsent() {
        run(async {
            let (requests, mut far) = connect_client(&[0, 3, 0, 0, 0, 1]).await;
            frames(&mut far, 1).await;
            let mut calls = [(); 2].map(|()| requests.send(&request("POST"), None, true).expect("sent"));
            frames(&mut far, 1).await;
            drop(far);
            let mut errors = Vec::new();
            for (_, receiving) in &mut calls {
                errors.push(poll_fn(|cx| receiving.poll_response(cx)).await.expect_err("no response"));
            }
            assert!(matches!(errors[..], [Error::Closed(_), Error::Unsent(_)]), "{errors:?}");
        });
    }

    /// END_STREAM needs no window, so it does not wait for streams that do.
    #[test]
    fn end_stream_needs_no_window() {
        run(async {
            let (requests, mut far) = connect_client(&[]).await;
            frames(&mut far, 1).await;
            let mut calls = [(); 4].map(|()| requests.send(&request("POST"), None, false).expect("sent").0);
            calls[0].send_data(Bytes::from(vec![1; 60_000]), false).expect("sent");
            calls[1].send_data(Bytes::from(vec![1; 60_000]), false).expect("kept");
            let mut trailers = HeaderMap::new();
            trailers.insert("a", http::HeaderValue::from_static("b"));
            calls[2].send_data(Bytes::new(), true).expect("sent");
            calls[3].send_trailers(trailers).expect("sent");
            let mut ended = Vec::new();
            let mut bytes = 0;
            while ended.len() < 2 {
                let mut head = [0; HEADER_BYTES];
                far.read_exact(&mut head).await.expect("a frame");
                let head = FrameHeader::parse(head);
                let mut payload = vec![0; head.length];
                far.read_exact(&mut payload).await.expect("its payload");
                bytes += if head.kind == frame::DATA { head.length } else { 0 };
                if head.has(frame::END_STREAM) && matches!(head.kind, frame::DATA | frame::HEADERS) {
                    ended.push((head.kind, head.stream));
                }
            }
            assert_eq!(ended, [(frame::DATA, 5), (frame::HEADERS, 7)]);
            assert!(bytes <= 65_535);
        });
    }

    /// Nothing is sent after the last GOAWAY, whatever is read or dropped later: the write side may be shut down.
    #[test]
    fn nothing_is_sent_after_the_last_goaway() {
        run(async {
            let (near, mut far) = duplex(100_000);
            let mut connection = Connection::server(near, LIMITS, |_| {});
            let body = vec![1; 16_000];
            let data: Vec<u8> = (0..4).flat_map(|at| put(frame::DATA, u8::from(at == 3), 1, &body)).collect();
            let head = put(frame::HEADERS, frame::END_HEADERS, 1, &[0x83, 0x84, 0x86]);
            far.write_all(&[PREFACE, &put(frame::SETTINGS, 0, 0, &[]), &head, &data].concat()).await.expect("written");
            let (_, mut sending, mut receiving) = poll_fn(|cx| connection.poll_accept(cx)).await.expect("a request");
            let polled = poll_fn(|cx| Poll::Ready(connection.poll_accept(cx).is_pending()));
            assert!(polled.await);
            connection.graceful_shutdown();
            sending.respond(StatusCode::OK, &HeaderMap::new(), true).expect("answered");
            far.write_all(&put(frame::PING, frame::ACK, 0, b"shutdown")).await.expect("written");
            drop(poll_fn(|cx| connection.poll_accept(cx)).await);
            while let Poll::Ready(Some(Ok(data))) = poll_fn(|cx| Poll::Ready(receiving.poll_data(cx))).await {
                receiving.release_capacity(data.len());
            }
            drop((sending, receiving, connection));
            let mut kinds = Vec::new();
            let mut head = [0; HEADER_BYTES];
            while far.read_exact(&mut head).await.is_ok() {
                let head = FrameHeader::parse(head);
                far.read_exact(&mut vec![0; head.length]).await.expect("its payload");
                kinds.push(head.kind);
            }
            assert_eq!(kinds.last(), Some(&frame::GOAWAY), "{kinds:?}");
        });
    }

    /// Everything but DATA is timed like a head until it is complete.
    #[test]
    fn incomplete_heads_are_timed() {
        let settings = put(frame::SETTINGS, 0, 0, &[]);
        let started = [PREFACE, &settings].concat();
        let headers = put(frame::HEADERS, frame::END_HEADERS, 1, &[0x83, 0x84, 0x86]);
        let block = put(frame::HEADERS, 0, 1, &[0x83, 0x84, 0x86]);
        let more = put(frame::CONTINUATION, 0, 1, &[]);
        let last = put(frame::CONTINUATION, frame::END_HEADERS, 1, &[]);
        for (desc, frames, is_unfinished) in [
            ("nothing", vec![], false),
            ("a part of the preface", PREFACE[..20].to_vec(), true),
            ("the preface", PREFACE.to_vec(), true),
            ("a part of the settings", started[..started.len() - 1].to_vec(), true),
            ("the settings", started.clone(), false),
            ("a part of a frame's head", [&started[..], &[0, 0]].concat(), true),
            ("a part of a frame", [&started[..], &headers[..headers.len() - 1]].concat(), true),
            ("a request", [&started[..], &headers].concat(), false),
            ("a part of a block", [&started[..], &block].concat(), true),
            ("more of it", [&started[..], &block, &more].concat(), true),
            ("the block", [&started[..], &block, &more, &last].concat(), false),
            ("a part of data", [&started[..], &headers, &[0, 0, 9, 0, 0, 0, 0, 0, 1, 0]].concat(), false),
        ] {
            run(async {
                let (near, mut far) = duplex(100_000);
                let mut connection = Connection::server(near, LIMITS, |_| {});
                for piece in frames.chunks(1) {
                    far.write_all(piece).await.expect("written");
                    poll_fn(|cx| Poll::Ready(connection.poll_accept(cx).is_pending())).await;
                }
                assert_eq!(connection.incomplete_since().is_some(), is_unfinished, "{desc}");
            });
        }
    }
}
