//! Reading frames, and writing them.

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

use super::frame::{self, HEAD, Head, PAYLOAD_MAX, PREFACE};
use super::half::{RecvStream, Requests, SendStream, halves};
use super::state::{Payload, Side, State};
use super::{Error, Limits, Reason, TooLarge};
use crate::space::{self, READ};

/// The same when frames come that are longer than that.
const READ_LONG: usize = 64 * 1024;

/// A peer that sends this much at once is likely to send more.
const BULK: usize = READ / 4 * 3;

/// Content from here on stays where it was read to; shorter is copied, so that it does not hold so much memory.
const LONG: usize = 4096;

/// Octets that are read before the streams get their turn.
const BURST: usize = 64 * 1024;

/// A connection, which is polled by one task.
pub(crate) struct Connection<S> {
    stream: S,
    state: Rc<RefCell<State>>,
    /// The beginning of a frame whose end is to come.
    rest: BytesMut,
    /// The last read was a long one.
    is_bulk: bool,
    /// Since when that is the beginning of another frame than one of data.
    rest_begun: Option<Instant>,
    /// When the peer began to speak; for a server, which is to speak at once, when the connection began.
    begun: Option<Instant>,
    /// What is to come before the first frame.
    preface: &'static [u8],
    /// The peer sends nothing more; it may read on.
    has_ended: bool,
    /// Nothing more is read, nor begun.
    is_closing: bool,
}

/// A request, or why it is none, and both directions of its stream.
type Accepted = (Result<Request<()>, TooLarge>, SendStream, RecvStream);

/// Why nothing more is read.
enum Stop {
    Broken(Reason),
    /// The peer has closed its sending half.
    Ended,
    Gone(io::ErrorKind),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// The server side.
    pub(crate) fn server(stream: S, limits: Limits) -> Self {
        Self::new(stream, Side::Server, limits, PREFACE)
    }

    /// The client side, and how to ask on it. Requests may be sent at once.
    pub(crate) fn client(stream: S, limits: Limits) -> (Self, Requests) {
        let connection = Self::new(stream, Side::Client, limits, b"");
        let requests = Requests(connection.state.clone());
        (connection, requests)
    }

    fn new(stream: S, side: Side, limits: Limits, preface: &'static [u8]) -> Self {
        let state = Rc::new(RefCell::new(State::new(side, limits)));
        let begun = (side == Side::Client).then(Instant::now);
        Self {
            stream,
            state,
            rest: BytesMut::new(),
            is_bulk: false,
            rest_begun: None,
            begun,
            preface,
            has_ended: false,
            is_closing: false,
        }
    }

    /// The next request, while all others are carried on. None: the connection is over.
    pub(crate) fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Accepted>> {
        let accept = |state: &Rc<RefCell<State>>| {
            let (stream, request) = state.borrow_mut().accept()?;
            let (sending, receiving) = halves(state, stream);
            Some((request, sending, receiving))
        };
        if let Some(accepted) = accept(&self.state) {
            return Poll::Ready(Some(accepted));
        }
        let turn = self.poll_turn(cx);
        if let Some(accepted) = accept(&self.state) {
            return Poll::Ready(Some(accepted));
        }
        turn.map(|()| None)
    }

    /// How many requests came since this was asked last that are none. Their streams were reset.
    pub(crate) fn take_malformed(&mut self) -> u32 {
        mem::take(&mut self.state.borrow_mut().malformed)
    }

    /// Carries everything on until the connection is over.
    pub(crate) fn poll_run(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_turn(cx)
    }

    /// Tells the client to open no more streams; the connection is over when those that are there have ended.
    pub(crate) fn leave(&mut self) {
        self.state.borrow_mut().announce_leave();
    }

    /// Asks the other side for a sign of life.
    pub(crate) fn ping(&mut self) {
        self.state.borrow_mut().ping();
    }

    /// Octets that have come so far.
    pub(crate) fn read(&self) -> u64 {
        self.state.borrow().read
    }

    /// Whether the peer sends nothing more, while streams are open that wait for nothing from it.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Says goodbye to a peer that sends nothing more, once again: to one that is gone altogether it makes a reset of the
    /// connection.
    pub(crate) fn probe(&mut self) {
        self.state.borrow_mut().say_goodbye_again();
    }

    /// Heads and data of streams that have come so far.
    pub(crate) fn answers(&self) -> u64 {
        self.state.borrow().answers
    }

    /// Since when something is to come that is timed as a head of HTTP/1.1 is: preface and settings, the rest of a header block,
    /// or the rest of a frame that carries no data.
    pub(crate) fn unfinished(&self) -> Option<Instant> {
        if self.is_closing || self.has_ended {
            return None;
        }
        let of_state = self.state.borrow().unfinished(self.begun);
        of_state.into_iter().chain(self.rest_begun).min()
    }

    /// Whether requests wait for a server that takes none.
    pub(crate) fn takes_none(&self) -> bool {
        self.state.borrow().takes_none()
    }

    /// Ends their wait: nothing of them was sent.
    pub(crate) fn turn_away(&mut self) {
        self.state.borrow_mut().turn_away();
    }

    /// Whether the peer left because of too much of something.
    pub(crate) fn wants_calm(&self) -> bool {
        self.state.borrow().wants_calm
    }

    /// Ends the connection for what is not coming.
    pub(crate) fn time_out(&mut self) {
        let mut state = self.state.borrow_mut();
        if state.error.is_none() {
            state.fail(Error::Closed(io::ErrorKind::TimedOut));
        }
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.state.borrow_mut().run(cx);
        let mut burst = 0;
        loop {
            if !self.is_closing && !self.has_ended && !self.state.borrow().is_full() {
                match self.poll_read(cx) {
                    Poll::Ready(Ok(count)) => {
                        burst += count;
                        if burst < BURST {
                            continue;
                        }
                        cx.waker().wake_by_ref();
                    }
                    Poll::Ready(Err(stop)) => self.stop(&stop),
                    Poll::Pending => {}
                }
            }
            let written = {
                let mut state = self.state.borrow_mut();
                state.fill();
                let was_full = state.is_full();
                let written = state.output.poll_write(&mut self.stream, cx);
                match written {
                    Poll::Ready(Ok(())) if was_full && !self.is_closing => continue,
                    Poll::Ready(Ok(())) => {
                        if state.has_more() {
                            continue;
                        }
                        true
                    }
                    Poll::Ready(Err(error)) => {
                        if state.error.is_none() {
                            state.fail(Error::Closed(error.kind()));
                        }
                        return Poll::Ready(());
                    }
                    Poll::Pending => false,
                }
            };
            if !self.is_closing && self.state.borrow().is_done() {
                self.state.borrow_mut().end();
                self.is_closing = true;
                continue;
            }
            if written && self.has_ended {
                // What has no window now will never have one.
                self.state.borrow_mut().fail_stuck();
            }
            if self.is_closing && written {
                // Whatever comes of it: there is nothing more to be done.
                return Pin::new(&mut self.stream).poll_shutdown(cx).map(|_| ());
            }
            return Poll::Pending;
        }
    }

    fn stop(&mut self, stop: &Stop) {
        let mut state = self.state.borrow_mut();
        self.is_closing = !matches!(stop, Stop::Ended);
        match stop {
            Stop::Ended => {
                self.has_ended = true;
                state.end_input();
            }
            Stop::Broken(reason) => {
                tracing::debug!(%reason, "a connection of HTTP/2 is given up");
                state.give_up(*reason);
            }
            Stop::Gone(kind) => state.fail(Error::Closed(*kind)),
        }
    }

    /// Reads once, and looks at all frames that are there. How much came.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Stop>> {
        let count = if self.rest.is_empty() {
            space::lend(|space| {
                let mut space = ReadBuf::new(space);
                ready!(Pin::new(&mut self.stream).poll_read(cx, &mut space))?;
                let came = space.filled();
                self.state.borrow_mut().read += came.len() as u64;
                self.is_bulk = came.len() >= BULK;
                self.begun.get_or_insert_with(Instant::now);
                let used = self.take_borrowed(came)?;
                self.rest.extend_from_slice(&came[used..]);
                self.note_rest(true);
                Poll::Ready(Ok::<_, Stop>(came.len()))
            })
        } else {
            let missing = self.missing();
            // Of a peer that sends little at once no frame is to hold a large buffer.
            if missing > LONG && self.is_bulk {
                self.rest.reserve(READ_LONG.max(missing));
            } else if self.rest.capacity() - self.rest.len() < missing {
                self.rest.reserve(READ.max(missing));
            }
            let count = ready!(poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.rest)).map_err(Stop::from)?;
            self.is_bulk = count >= BULK;
            self.state.borrow_mut().read += count as u64;
            let before = self.rest.len();
            self.take_owned()?;
            self.note_rest(self.rest.len() < before);
            Poll::Ready(Ok(count))
        };
        match ready!(count)? {
            0 => Poll::Ready(Err(Stop::Ended)),
            count => Poll::Ready(Ok(count)),
        }
    }

    /// Notes since when the frame that has begun is waited for. `is_another`: than the one before.
    fn note_rest(&mut self, is_another: bool) {
        // Data moves at its sender's pace; what is too slow is for the bounds of streams and connections.
        if self.rest.is_empty() || self.rest.get(3) == Some(&frame::DATA) {
            self.rest_begun = None;
        } else if is_another || self.rest_begun.is_none() {
            self.rest_begun = Some(Instant::now());
        }
    }

    /// Looks at the frames that are whole. How much of it that was.
    fn take_borrowed(&mut self, octets: &[u8]) -> Result<usize, Reason> {
        let mut used = self.take_preface(octets)?;
        while let Some((octets, rest)) = octets[used..].split_first_chunk::<HEAD>() {
            let head = known(*octets)?;
            let Some(payload) = rest.get(..head.length) else { break };
            self.state.borrow_mut().take_frame(head, &Payload::Borrowed(payload))?;
            used += HEAD + head.length;
        }
        Ok(used)
    }

    /// The same with what was kept.
    fn take_owned(&mut self) -> Result<(), Reason> {
        if !self.preface.is_empty() {
            let beginning = self.rest.split();
            let used = self.take_preface(&beginning)?;
            self.rest.unsplit(beginning);
            self.rest.advance(used);
        }
        while let Some(octets) = self.rest.first_chunk::<HEAD>() {
            let head = known(*octets)?;
            if self.rest.len() < HEAD + head.length {
                return Ok(());
            }
            if head.length >= LONG {
                let payload = Payload::Owned(self.frame(head.length));
                self.state.borrow_mut().take_frame(head, &payload)?;
            } else {
                let payload = Payload::Borrowed(&self.rest[HEAD..HEAD + head.length]);
                self.state.borrow_mut().take_frame(head, &payload)?;
                self.rest.advance(HEAD + head.length);
            }
        }
        if self.rest.is_empty() {
            self.rest = BytesMut::new();
        }
        Ok(())
    }

    fn frame(&mut self, length: usize) -> Bytes {
        self.rest.advance(HEAD);
        self.rest.split_to(length).freeze()
    }

    /// What is missing of the frame that has begun.
    fn missing(&self) -> usize {
        let whole = self.rest.first_chunk().map_or(HEAD, |octets| HEAD + Head::read(*octets).length);
        // What is not all here of the preface is no frame, and looks like a long one.
        whole.min(HEAD + PAYLOAD_MAX).saturating_sub(self.rest.len())
    }

    fn take_preface(&mut self, octets: &[u8]) -> Result<usize, Reason> {
        let count = self.preface.len().min(octets.len());
        let (expected, rest) = self.preface.split_at(count);
        if *expected != octets[..count] {
            return Err(Reason::PROTOCOL_ERROR);
        }
        self.preface = rest;
        Ok(count)
    }
}

/// A frame that is not longer than we allow.
fn known(octets: [u8; HEAD]) -> Result<Head, Reason> {
    let head = Head::read(octets);
    if head.length > PAYLOAD_MAX { Err(Reason::FRAME_SIZE_ERROR) } else { Ok(head) }
}

impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        // Whoever waits for a stream of it waits in vain.
        let mut state = self.state.borrow_mut();
        if state.error.is_none() {
            state.fail(Error::Closed(io::ErrorKind::BrokenPipe));
        }
    }
}

impl From<Reason> for Stop {
    fn from(reason: Reason) -> Self {
        Self::Broken(reason)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Gone(error.kind())
    }
}

/// What a client may send, and in which pieces it comes. What is answered is kept.
#[cfg(any(test, fuzzing))]
struct Client<'a> {
    sends: &'a [u8],
    piece: usize,
    answer: Rc<RefCell<Vec<u8>>>,
}

#[cfg(any(test, fuzzing))]
impl AsyncRead for Client<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (now, later) = self.sends.split_at(self.piece.min(self.sends.len()).min(out.remaining()));
        out.put_slice(now);
        self.sends = later;
        Poll::Ready(Ok(()))
    }
}

#[cfg(any(test, fuzzing))]
impl AsyncWrite for Client<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        self.answer.borrow_mut().extend_from_slice(octets);
        Poll::Ready(Ok(octets.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What a server says to a client that sends these octets in pieces of so many, and what it takes as requests and bodies.
#[cfg(any(test, fuzzing))]
fn serve(sends: &[u8], piece: usize) -> (Vec<u8>, Vec<String>) {
    let limits = Limits { streams: 10, stream_window: 65_535, connection_window: 200_000, head_bytes: 2000 };
    let answer = Rc::<RefCell<Vec<u8>>>::default();
    let mut connection = Connection::server(Client { sends, piece, answer: answer.clone() }, limits);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let (mut streams, mut taken) = (Vec::new(), Vec::new());
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
            receiving.taken(data.len());
            seen.extend(data.iter().map(|&octet| char::from(octet)));
        }
        taken.push(format!("{seen} {} {:?}", receiving.is_end_stream(), receiving.take_trailers()));
        // Whatever has become of the stream, it can be answered and let go.
        let _ = sending.respond(http::StatusCode::OK, &headers, false);
        let _ = sending.send_data(Bytes::from_static(b"x"), true);
    }
    (answer.take(), taken)
}

/// However what a client sends is cut into pieces, it means the same; and no head is taken that is larger than is allowed.
#[cfg(any(test, fuzzing))]
pub(crate) fn check_laws(frames: &[u8]) {
    let mut sends = PREFACE.to_vec();
    sends.extend_from_slice(&Head::octets(super::frame::SETTINGS, 0, 0, 0));
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
    use crate::http::interim::INTERIM_MAX;

    const LIMITS: Limits =
        Limits { streams: 3, stream_window: 65_535, connection_window: 70_000, head_bytes: 16 * 1024 };

    fn request(method: &str) -> http::request::Parts {
        Request::builder().method(method).uri("http://app/x").body(()).expect("a request").into_parts().0
    }

    /// Takes a body to its end.
    async fn body(receiving: &mut RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), Error> {
        let mut whole = Vec::new();
        while let Some(data) = poll_fn(|cx| receiving.poll_data(cx)).await {
            let data = data?;
            receiving.taken(data.len());
            whole.extend_from_slice(&data);
        }
        Ok((whole, receiving.take_trailers()))
    }

    /// Sends parts one after the other, each when there is room, and trailers behind them.
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

    /// A server that sends each body back.
    async fn echo(stream: DuplexStream) {
        let mut connection = Connection::server(stream, LIMITS);
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

    /// A client of that server, over a pipe that takes so many octets at once.
    fn client(pipe: usize) -> Requests {
        let (near, far) = duplex(pipe);
        tokio::task::spawn_local(echo(far));
        let (mut connection, requests) = Connection::client(near, LIMITS);
        tokio::task::spawn_local(async move { poll_fn(|cx| connection.poll_run(cx)).await });
        requests
    }

    proptest! {
        /// Whatever bodies are made of and however they come, several at once arrive as they were; more streams than the server
        /// takes wait for their turn.
        #[test]
        fn bodies_arrive_as_they_were(
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
        fn laws(frames in prop::collection::vec(
            (prop::sample::select(vec![0u8, 1, 1, 2, 3, 4, 6, 7, 8, 9, 200]), any::<u8>(), 0u32..8,
             prop::collection::vec(prop::sample::select(vec![0u8, 1, 4, 16, 65, 0x40, 0x82, 0x84, 0x86, 0x87, 255]), 0..40)),
            0..12,
        )) {
            let put = |(kind, flags, stream, payload): &(u8, u8, u32, Vec<u8>)| {
                [&Head::octets(*kind, *flags & 0b0010_1101, *stream, payload.len())[..], payload].concat()
            };
            check_laws(&frames.iter().flat_map(put).collect::<Vec<_>>());
        }
    }

    /// The frames that a peer of ours is sent, until `count` have come.
    async fn frames(stream: &mut DuplexStream, count: usize) -> Vec<(u8, u32, Vec<u8>)> {
        let mut found = Vec::new();
        while found.len() < count {
            let mut octets = [0; HEAD];
            stream.read_exact(&mut octets).await.expect("a frame");
            let head = Head::read(octets);
            let mut payload = vec![0; head.length];
            stream.read_exact(&mut payload).await.expect("its payload");
            found.push((head.kind, head.stream, payload));
        }
        found
    }

    fn put(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        [&Head::octets(kind, flags, stream, payload.len())[..], payload].concat()
    }

    /// A client side whose server is the test; its preface and first frames are read.
    async fn asked(settings: &[u8]) -> (Requests, DuplexStream) {
        let (near, mut far) = duplex(100_000);
        let (mut connection, requests) = Connection::client(near, LIMITS);
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
    fn what_a_server_says_at_its_end_is_what_became_of_a_request() {
        let goaway =
            |last: u32, reason: u32| put(frame::GOAWAY, 0, 0, &[last.to_be_bytes(), reason.to_be_bytes()].concat());
        let reset = |reason: u32| put(frame::RST_STREAM, 0, 1, &reason.to_be_bytes());
        for (said, expected) in [
            (goaway(0, 0), "the peer has left: NO_ERROR"),
            (goaway(0, 11), "the peer has left: ENHANCE_YOUR_CALM"),
            (reset(7), "the stream was reset: REFUSED_STREAM"),
            (reset(99), "the stream was reset: error code 99"),
            (put(frame::HEADERS, 5, 1, &[0x82]), "what came in the stream is not HTTP/2: PROTOCOL_ERROR"),
            (put(frame::HEADERS, 5, 1, &[0xff]), "the connection broke the rules: COMPRESSION_ERROR"),
            (put(frame::HEADERS, 5, 9, &[0x88]), "the connection broke the rules: PROTOCOL_ERROR"),
            (put(frame::DATA, 0, 1, b"early"), "what came in the stream is not HTTP/2: PROTOCOL_ERROR"),
            (Vec::new(), "the connection was closed: unexpected end of file"),
        ] {
            let found = run(async {
                let (requests, mut far) = asked(&[]).await;
                let (_sending, mut receiving) = requests.send(&request("GET"), None, true).expect("sent");
                far.write_all(&said).await.expect("written");
                if said.is_empty() {
                    drop(far);
                }
                poll_fn(|cx| receiving.poll_response(cx)).await
            });
            assert_eq!(found.map(|_| ()).expect_err("no response").to_string(), expected);
        }
    }

    #[test]
    fn requests_wait_until_the_server_takes_one_more() {
        run(async {
            let (requests, mut far) = asked(&[0, 3, 0, 0, 0, 1]).await;
            assert_eq!(frames(&mut far, 1).await[0].0, frame::SETTINGS, "the acknowledgement");
            assert_eq!(requests.streams_max(), Some(1));
            let mut calls: Vec<_> = (0..3).map(|_| requests.send(&request("GET"), None, true).expect("sent")).collect();
            // The second is given up while it waits: the server never hears of it.
            calls.remove(1);
            for (stream, (_, receiving)) in [1, 5].into_iter().zip(&mut calls) {
                let (kind, id, _) = frames(&mut far, 1).await.remove(0);
                assert_eq!((kind, id), (frame::HEADERS, stream));
                far.write_all(&put(frame::HEADERS, 5, stream, &[0x88])).await.expect("written");
                poll_fn(|cx| receiving.poll_response(cx)).await.expect("a response");
            }
            // Nobody asks any more: the connection says goodbye and ends.
            drop((requests, calls));
            assert_eq!(frames(&mut far, 1).await[0].0, frame::GOAWAY);
            assert_eq!(far.read(&mut [0]).await.expect("read"), 0, "the end");
        });
    }

    /// What is sent never is more than the windows of stream and connection, and goes on when they grow; also when the peer has
    /// made them smaller than nothing meanwhile.
    #[test]
    fn windows_hold() {
        run(async {
            let (requests, mut far) = asked(&[0, 4, 0, 0, 0, 10]).await;
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

    /// A server that leaves tells its client, answers what is open and what was on its way, and takes nothing after that.
    #[test]
    fn a_server_leaves_in_peace() {
        run(async {
            let (near, mut far) = duplex(100_000);
            let mut connection = Connection::server(near, LIMITS);
            far.write_all(PREFACE).await.expect("written");
            far.write_all(&put(frame::SETTINGS, 0, 0, &[])).await.expect("written");
            far.write_all(&put(frame::HEADERS, 5, 1, &[0x82, 0x84, 0x86])).await.expect("written");
            let (_, mut first, _first) = poll_fn(|cx| connection.poll_accept(cx)).await.expect("a request");
            connection.leave();
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

    /// Requests that are taken back before anybody has seen them cost the connection nothing, until there are too many of them.
    #[test]
    fn what_is_taken_back_does_not_count() {
        for (count, ends) in [(400, false), (600, true)] {
            let one = |number: u32| {
                let id = 2 * number + 1;
                let head = put(frame::HEADERS, frame::END_HEADERS, id, &[0x83, 0x84, 0x86]);
                let body = put(frame::DATA, 0, id, &[1; 5000]);
                [head, body, put(frame::RST_STREAM, 0, id, &Reason::CANCEL.0.to_be_bytes())].concat()
            };
            // Each comes whole, in one piece: what comes first is made as long.
            let piece = one(0).len();
            let settings = put(frame::SETTINGS, 0, 0, &[]);
            let unknown = put(0xee, 0, 0, &vec![0; piece - PREFACE.len() - settings.len() - HEAD]);
            let sends = [PREFACE.to_vec(), settings, unknown].into_iter().chain((0..count).map(one));
            let (mut answer, taken) = serve(&sends.collect::<Vec<_>>().concat(), piece);
            assert!(taken.is_empty());
            let mut last = None;
            while let Some(octets) = answer.first_chunk::<HEAD>() {
                let head = Head::read(*octets);
                last = (head.kind == frame::GOAWAY).then(|| answer[HEAD + 7]).or(last);
                answer.drain(..HEAD + head.length);
            }
            assert_eq!(last, ends.then_some(Reason::ENHANCE_YOUR_CALM.0 as u8), "{count} requests");
        }
    }

    /// Of a peer that sends little at once no frame holds the room for much, however long it waits to be taken.
    #[test]
    fn short_frames_hold_little_memory() {
        run(async {
            let (near, mut far) = duplex(100_000);
            let mut connection = Connection::server(near, LIMITS);
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
                let data = data.try_into_mut().expect("nobody else has it");
                assert!(data.len() == 5000 && data.capacity() < 2 * READ, "{} bytes are held", data.capacity());
            }
        });
    }

    /// Octets that nobody takes are given back to the connection, or it would stand still after a few of such streams.
    #[test]
    fn what_is_given_up_does_not_count() {
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

    /// The reason of the GOAWAY that a server sends to a client that sends these frames.
    fn goodbye(frames: &[u8]) -> Option<u8> {
        let settings = put(frame::SETTINGS, 0, 0, &[]);
        let (answer, _) = serve(&[PREFACE, &settings, frames].concat(), 10_000);
        let mut rest = &answer[..];
        let mut reason = None;
        while let Some(octets) = rest.first_chunk::<HEAD>() {
            let head = Head::read(*octets);
            reason = (head.kind == frame::GOAWAY).then(|| rest[HEAD + 7]).or(reason);
            rest = &rest[HEAD + head.length..];
        }
        reason
    }

    /// Frames that carry nothing for a stream may come in their hundreds, and not without end.
    #[test]
    fn frames_that_carry_nothing_are_bounded() {
        let increment = 1u32.to_be_bytes();
        let get = [0x82, 0x84, 0x86];
        let ended = |id: u32| {
            let request = put(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, id, &get);
            [request, put(frame::RST_STREAM, 0, id, &Reason::CANCEL.0.to_be_bytes())].concat()
        };
        let open = put(frame::HEADERS, frame::END_HEADERS, 3, &get);
        // Its padding is longer than the frame: it is reset, and what was on its way is ignored.
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
            ("farewells", Vec::new(), put(frame::GOAWAY, 0, 0, &[0; 8])),
            ("increments of the connection", Vec::new(), put(frame::WINDOW_UPDATE, 0, 0, &increment)),
            ("increments of a stream", open, put(frame::WINDOW_UPDATE, 0, 3, &increment)),
            ("increments of a stream that is over", ended(1), put(frame::WINDOW_UPDATE, 0, 1, &increment)),
            ("unknown frames", Vec::new(), put(0xee, 0, 0, &[0; 8])),
        ] {
            let times = |count: usize| goodbye(&[before.clone(), frame.repeat(count)].concat());
            assert_eq!(times(900), None, "900 {desc}");
            assert_eq!(times(2_000), Some(Reason::ENHANCE_YOUR_CALM.0 as u8), "2,000 {desc}");
        }
    }

    /// A change of the initial window is one of all streams: only the last value of a frame is made, and many frames of it are
    /// not taken.
    #[test]
    fn changes_of_the_initial_window_are_bounded() {
        let value = |size: u32| [&[0, 4][..], &size.to_be_bytes()].concat();
        let open: Vec<u8> =
            (0..10).flat_map(|at| put(frame::HEADERS, frame::END_HEADERS, 2 * at + 1, &[0x82, 0x84, 0x86])).collect();
        let full = put(frame::WINDOW_UPDATE, 0, 1, &(0x7fff_ffff_u32 - 65_535).to_be_bytes());
        let beyond = [value(0x7fff_ffff), value(65_535)].concat();
        assert_eq!(goodbye(&[&open[..], &full, &put(frame::SETTINGS, 0, 0, &beyond)].concat()), None);
        let beyond = put(frame::SETTINGS, 0, 0, &value(65_536));
        let found = goodbye(&[&open[..], &full, &beyond].concat());
        assert_eq!(found, Some(Reason::FLOW_CONTROL_ERROR.0 as u8));
        let change = [put(frame::SETTINGS, 0, 0, &value(1)), put(frame::SETTINGS, 0, 0, &value(2))].concat();
        assert_eq!(goodbye(&[&open[..], &change.repeat(200)].concat()), None);
        let found = goodbye(&[&open[..], &change.repeat(1_000)].concat());
        assert_eq!(found, Some(Reason::ENHANCE_YOUR_CALM.0 as u8));
    }

    /// What becomes of a request whose answer is these frames.
    fn answered(method: &str, answer: &[u8]) -> Result<(StatusCode, Vec<u8>), String> {
        run(async {
            let (requests, mut far) = asked(&[]).await;
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
        let found = answered("GET", &[early.repeat(many), last.clone()].concat());
        assert_eq!(found, Ok((StatusCode::OK, Vec::new())));
        let found = answered("GET", &[early.repeat(many + 1), last].concat());
        assert_eq!(found, Err("what came in the stream is not HTTP/2: PROTOCOL_ERROR".to_owned()));
    }

    /// RFC 9110 6.4.1: whatever length the head gives, no content is behind it.
    #[test]
    fn responses_without_content_have_none() {
        // `content-length: 5`, and data or an empty end.
        let length = b"\x0f\x0d\x015";
        for (method, status, is_bodiless) in
            [("GET", 0x88, false), ("HEAD", 0x88, true), ("GET", 0x89, true), ("GET", 0x8b, true), ("POST", 0x89, true)]
        {
            let head = put(frame::HEADERS, frame::END_HEADERS, 1, &[&[status][..], length].concat());
            let found = |data: &[u8]| answered(method, &[&head[..], &put(frame::DATA, 1, 1, data)].concat());
            assert_eq!(found(b"hello").is_err(), is_bodiless, "{method} {status:#x}: {:?}", found(b"hello"));
            assert_eq!(found(b"").is_ok(), is_bodiless, "{method} {status:#x}: {:?}", found(b""));
            let head = put(frame::HEADERS, frame::END_HEADERS, 1, &[status]);
            let found = |data: &[u8]| answered(method, &[&head[..], &put(frame::DATA, 1, 1, data)].concat());
            assert_eq!(found(b"hello").is_err(), is_bodiless, "{method} {status:#x}: {:?}", found(b"hello"));
            assert!(found(b"").is_ok(), "{method} {status:#x}");
        }
    }

    /// A limit of this side is no fault of a server's: the stream alone is reset, however often that happens.
    #[test]
    fn large_heads_and_trailers_end_their_stream() {
        // `a: vvv...`, whose length takes two octets behind the first.
        let field = |length: usize| {
            let rest = length - 127;
            [&b"\0\x01a\x7f"[..], &[(rest % 128) as u8 | 0x80, (rest / 128) as u8], &vec![b'v'; length]].concat()
        };
        let many = |count: usize| b"\0\x01a\x01b".repeat(count);
        // `:status: 200` counts 42 octets, and each field 32 beyond what it says.
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
                let (requests, mut far) = asked(&[]).await;
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

    /// RFC 9113 6.5.2: a server cannot say that it takes pushes.
    #[test]
    fn a_server_takes_no_pushes() {
        for (value, error) in [(0, None), (1, Some("the connection broke the rules: PROTOCOL_ERROR"))] {
            let push = put(frame::SETTINGS, 0, 0, &[0, 2, 0, 0, 0, value]);
            let found = answered("GET", &[push, put(frame::HEADERS, 5, 1, &[0x88])].concat());
            assert_eq!(found.err().as_deref(), error, "{value}");
        }
        assert_eq!(goodbye(&put(frame::SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 1])), None, "a client can");
    }

    /// Requests that are given up while they wait leave nothing behind that the connection would wait for.
    #[test]
    fn requests_that_are_given_up_while_they_wait_are_forgotten() {
        run(async {
            let (requests, mut far) = asked(&[0, 3, 0, 0, 0, 0]).await;
            frames(&mut far, 1).await;
            for _ in 0..3 {
                drop(requests.send(&request("GET"), None, true).expect("waits"));
            }
            drop(requests);
            assert_eq!(frames(&mut far, 1).await[0].0, frame::GOAWAY);
        });
    }

    /// What was not sent can be sent elsewhere, however the connection ends.
    #[test]
    fn requests_that_wait_were_not_sent() {
        run(async {
            let (requests, mut far) = asked(&[0, 3, 0, 0, 0, 1]).await;
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

    /// The end of a stream needs no window: it does not wait for streams that do.
    #[test]
    fn ends_wait_for_no_window() {
        run(async {
            let (requests, mut far) = asked(&[]).await;
            frames(&mut far, 1).await;
            let mut calls = [(); 4].map(|()| requests.send(&request("POST"), None, false).expect("sent").0);
            calls[0].send_data(Bytes::from(vec![1; 60_000]), false).expect("taken");
            calls[1].send_data(Bytes::from(vec![1; 60_000]), false).expect("kept");
            let mut trailers = HeaderMap::new();
            trailers.insert("a", http::HeaderValue::from_static("b"));
            calls[2].send_data(Bytes::new(), true).expect("taken");
            calls[3].send_trailers(trailers).expect("taken");
            let mut ended = Vec::new();
            let mut octets = 0;
            while ended.len() < 2 {
                let mut head = [0; HEAD];
                far.read_exact(&mut head).await.expect("a frame");
                let head = Head::read(head);
                let mut payload = vec![0; head.length];
                far.read_exact(&mut payload).await.expect("its payload");
                octets += if head.kind == frame::DATA { head.length } else { 0 };
                if head.has(frame::END_STREAM) && matches!(head.kind, frame::DATA | frame::HEADERS) {
                    ended.push((head.kind, head.stream));
                }
            }
            assert_eq!(ended, [(frame::DATA, 5), (frame::HEADERS, 7)]);
            assert!(octets <= 65_535);
        });
    }

    /// Behind a farewell nothing is sent, whoever takes or drops what came before: the connection may be closed for writing.
    #[test]
    fn nothing_is_sent_behind_a_farewell() {
        run(async {
            let (near, mut far) = duplex(100_000);
            let mut connection = Connection::server(near, LIMITS);
            let body = vec![1; 16_000];
            let data: Vec<u8> = (0..4).flat_map(|at| put(frame::DATA, u8::from(at == 3), 1, &body)).collect();
            let head = put(frame::HEADERS, frame::END_HEADERS, 1, &[0x83, 0x84, 0x86]);
            far.write_all(&[PREFACE, &put(frame::SETTINGS, 0, 0, &[]), &head, &data].concat()).await.expect("written");
            let (_, mut sending, mut receiving) = poll_fn(|cx| connection.poll_accept(cx)).await.expect("a request");
            let polled = poll_fn(|cx| Poll::Ready(connection.poll_accept(cx).is_pending()));
            assert!(polled.await);
            connection.leave();
            sending.respond(StatusCode::OK, &HeaderMap::new(), true).expect("answered");
            far.write_all(&put(frame::PING, frame::ACK, 0, b"farewell")).await.expect("written");
            drop(poll_fn(|cx| connection.poll_accept(cx)).await);
            while let Poll::Ready(Some(Ok(data))) = poll_fn(|cx| Poll::Ready(receiving.poll_data(cx))).await {
                receiving.taken(data.len());
            }
            drop((sending, receiving, connection));
            let mut kinds = Vec::new();
            let mut head = [0; HEAD];
            while far.read_exact(&mut head).await.is_ok() {
                let head = Head::read(head);
                far.read_exact(&mut vec![0; head.length]).await.expect("its payload");
                kinds.push(head.kind);
            }
            assert_eq!(kinds.last(), Some(&frame::GOAWAY), "{kinds:?}");
        });
    }

    /// What is timed as a head is: all that is to come whole before anything can be done with it, but for data.
    #[test]
    fn unfinished_heads_are_known() {
        let settings = put(frame::SETTINGS, 0, 0, &[]);
        let begun = [PREFACE, &settings].concat();
        let headers = put(frame::HEADERS, frame::END_HEADERS, 1, &[0x83, 0x84, 0x86]);
        let block = put(frame::HEADERS, 0, 1, &[0x83, 0x84, 0x86]);
        let more = put(frame::CONTINUATION, 0, 1, &[]);
        let last = put(frame::CONTINUATION, frame::END_HEADERS, 1, &[]);
        for (desc, frames, is_unfinished) in [
            ("nothing", vec![], false),
            ("a part of the preface", PREFACE[..20].to_vec(), true),
            ("the preface", PREFACE.to_vec(), true),
            ("a part of the settings", begun[..begun.len() - 1].to_vec(), true),
            ("the settings", begun.clone(), false),
            ("a part of a frame's head", [&begun[..], &[0, 0]].concat(), true),
            ("a part of a frame", [&begun[..], &headers[..headers.len() - 1]].concat(), true),
            ("a request", [&begun[..], &headers].concat(), false),
            ("a part of a block", [&begun[..], &block].concat(), true),
            ("more of it", [&begun[..], &block, &more].concat(), true),
            ("the block", [&begun[..], &block, &more, &last].concat(), false),
            ("a part of data", [&begun[..], &headers, &[0, 0, 9, 0, 0, 0, 0, 0, 1, 0]].concat(), false),
        ] {
            run(async {
                let (near, mut far) = duplex(100_000);
                let mut connection = Connection::server(near, LIMITS);
                for piece in frames.chunks(1) {
                    far.write_all(piece).await.expect("written");
                    poll_fn(|cx| Poll::Ready(connection.poll_accept(cx).is_pending())).await;
                }
                assert_eq!(connection.unfinished().is_some(), is_unfinished, "{desc}");
            });
        }
    }
}
