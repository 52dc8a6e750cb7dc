//! A connection that messages are read from and written to, by turns or at once.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes, BytesMut};
use http_body::Frame;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::decode::{Decoder, Step};
use super::parse::{BadMessage, Parsed};
use crate::http::body::BodyError;
use crate::space::{self, READ};

/// Bytes of a long body that are read at once, to where they stay.
const READ_LONG: usize = 64 * 1024;

/// Bytes that wait to be written first before more are left out.
const FIRST_MAX: usize = 64 * 1024;

/// Bytes within which it shows whether a message begins as one of HTTP does, so that what does not is not waited for.
const FIRST_WORD: usize = 9;

/// A connection, shared by what reads it and what writes it.
pub(crate) struct Wire<S> {
    stream: RefCell<S>,
    /// What was read and is of the next message, or of one that is not all here.
    rest: RefCell<Bytes>,
    /// How much of that was found to be no whole head.
    tried: Cell<usize>,
    /// The other side sends nothing more. It may read on.
    has_ended: Cell<bool>,
    /// What is to be written before anything else.
    first: RefCell<Option<Box<BytesMut>>>,
}

/// Why there is no head.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The other side ended the connection; something of a head may have come.
    #[error("the connection was closed before the end of the head")]
    Closed,
    #[error("{0}")]
    Bad(#[from] BadMessage),
}

// === impl Wire ===

impl<S> Wire<S> {
    /// A connection of which nothing was read yet.
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream: RefCell::new(stream),
            rest: RefCell::default(),
            tried: Cell::new(0),
            has_ended: Cell::new(false),
            first: RefCell::default(),
        }
    }

    /// Whether something was read that nobody has looked at.
    pub(crate) fn has_rest(&self) -> bool {
        !self.rest.borrow().is_empty()
    }

    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut S) -> T) -> T {
        work(&mut self.stream.borrow_mut())
    }

    /// Has something written before all that is not written yet, unless much waits for that already.
    pub(crate) fn put_first(&self, message: BytesMut) {
        let mut first = self.first.borrow_mut();
        match &mut *first {
            Some(waiting) if waiting.len() < FIRST_MAX => waiting.unsplit(message),
            Some(_) => {}
            None => *first = Some(Box::new(message)),
        }
    }

    /// What is left of that, for whoever writes the next.
    pub(crate) fn take_first(&self) -> Option<Box<BytesMut>> {
        self.first.take()
    }

    /// The connection and what was read from it, for another protocol.
    pub(crate) fn into_parts(self) -> (S, Bytes) {
        (self.stream.into_inner(), self.rest.into_inner())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Reads a head.
    pub(crate) fn poll_head<T>(
        &self,
        cx: &mut Context<'_>,
        parse: impl Fn(&[u8]) -> Parsed<T>,
    ) -> Poll<Result<T, ReadError>> {
        let mut rest = self.rest.borrow_mut();
        loop {
            // A head ends with a line; whether it is one at all shows before.
            let tried = self.tried.get();
            if rest.len() > tried
                && (tried < FIRST_WORD || rest[tried..].contains(&b'\n') || rest.len() > super::HEAD_BYTES_MAX)
            {
                if let Some((head, length)) = parse(&rest)? {
                    self.take(&mut rest, length);
                    return Poll::Ready(Ok(head));
                }
                self.tried.set(rest.len());
            }
            if rest.is_empty() {
                let read = space::lend(|space| {
                    let count = ready!(self.poll_read(cx, space))?;
                    let read = &space[..count];
                    if count == 0 {
                        return Poll::Ready(Err(ReadError::Closed));
                    }
                    let parsed = parse(read)?;
                    let used = parsed.as_ref().map_or(0, |(_, length)| *length);
                    if used < count {
                        *rest = space.keep(used..count);
                    }
                    Poll::Ready(Ok(parsed))
                });
                if let Some((head, _)) = ready!(read)? {
                    return Poll::Ready(Ok(head));
                }
                self.tried.set(rest.len());
            } else if ready!(self.poll_more(cx, &mut rest))? == 0 {
                return Poll::Ready(Err(ReadError::Closed));
            }
        }
    }

    /// Reads the next part of a body. Nothing: it has ended.
    pub(crate) fn poll_body(
        &self,
        decoder: &mut Decoder,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut rest = self.rest.borrow_mut();
        loop {
            if !rest.is_empty() || decoder.has_ended() {
                let (step, length) = match decoder.decode(&rest) {
                    Ok(found) => found,
                    Err(error) => return Poll::Ready(Some(Err(error.into()))),
                };
                let frame = match step {
                    // Nothing is behind it: no need to share.
                    Step::Data(part) if part.len() == rest.len() => Some(Some(Frame::data(mem::take(&mut *rest)))),
                    Step::Data(part) => {
                        let mut data = rest.split_to(length);
                        data.truncate(part.end);
                        data.advance(part.start);
                        Some(Some(Frame::data(data)))
                    }
                    Step::Trailers(trailers) => {
                        rest.advance(length);
                        Some(Some(Frame::trailers(trailers)))
                    }
                    Step::End => {
                        rest.advance(length);
                        Some(None)
                    }
                    Step::More => {
                        rest.advance(length);
                        None
                    }
                };
                if rest.is_empty() {
                    *rest = Bytes::new();
                }
                if let Some(frame) = frame {
                    return Poll::Ready(frame.map(Ok));
                }
            }
            let read = if decoder.expects() > READ as u64 {
                // It stays where it is read to.
                let mut more = BytesMut::from(mem::take(&mut *rest));
                more.reserve(READ_LONG);
                let read = poll_read_buf(Pin::new(&mut *self.stream.borrow_mut()), cx, &mut more);
                // What is short is copied, so that it does not hold so much memory if it has to wait.
                if more.len() >= READ {
                    *rest = more.freeze();
                } else if !more.is_empty() {
                    *rest = Bytes::copy_from_slice(&more);
                }
                ready!(read).map(|count| (None, count))
            } else {
                ready!(space::lend(|space| {
                    let count = ready!(self.poll_read(cx, space))?;
                    let (step, length) = decoder.decode(&space[..count]).map_err(io::Error::other)?;
                    let left = &space[length..count];
                    if !left.is_empty() {
                        *rest = [&**rest, left].concat().into();
                    }
                    let found = match step {
                        Step::Data(part) => Some(Some(Frame::data(space.keep(part)))),
                        Step::Trailers(trailers) => Some(Some(Frame::trailers(trailers))),
                        Step::End => Some(None),
                        Step::More => None,
                    };
                    Poll::Ready(Ok((found, count)))
                }))
            };
            match read {
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
                Ok((_, 0)) => {
                    if matches!(decoder, Decoder::Close) {
                        *decoder = Decoder::Length(0);
                        return Poll::Ready(None);
                    }
                    let error = io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed within a body");
                    return Poll::Ready(Some(Err(error.into())));
                }
                Ok((Some(found), _)) => return Poll::Ready(found.map(Ok)),
                Ok((None, _)) => {}
            }
        }
    }

    /// Whether the other side has said nothing since, and has not left.
    pub(crate) fn is_silent(&self) -> bool {
        let mut byte = [0];
        let mut cx = Context::from_waker(Waker::noop());
        !self.has_rest() && self.poll_read(&mut cx, &mut byte).is_pending()
    }

    /// Waits until the connection breaks, and keeps what the other side says meanwhile, up to what is read at once. The end of
    /// its sending half is no break: a client that has asked for all that it wants may close that, and wait for its answers.
    pub(crate) fn poll_break(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut rest = self.rest.borrow_mut();
        while !self.has_ended.get() && rest.len() < READ {
            match ready!(self.poll_more(cx, &mut rest)) {
                Ok(1..) => {}
                Ok(0) => self.has_ended.set(true),
                Err(_) => return Poll::Ready(()),
            }
        }
        Poll::Pending
    }

    /// Whether [`Self::poll_break`] reads nothing more, and so hears of nothing.
    pub(crate) fn is_deaf(&self) -> bool {
        self.has_ended.get() || self.rest.borrow().len() >= READ
    }

    /// Whether the other side sends nothing more.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.get()
    }

    /// Whether a body can never come to its end, because the other side sends nothing more.
    pub(crate) fn is_cut_within(&self, body: &Decoder) -> bool {
        self.has_ended.get() && !body.ends_within(&self.rest.borrow())
    }

    /// Writes what is to be written first.
    pub(crate) fn poll_first(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut first = self.first.borrow_mut();
        while let Some(waiting) = &mut *first {
            let written = ready!(self.poll_write(cx, &[IoSlice::new(waiting)]))?;
            waiting.advance(written);
            if waiting.is_empty() {
                *first = None;
                return self.poll_flush(cx);
            }
        }
        Poll::Ready(Ok(()))
    }

    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut stream = self.stream.borrow_mut();
        let stream = Pin::new(&mut *stream);
        let written = match slices {
            [one] => stream.poll_write(cx, one),
            _ => stream.poll_write_vectored(cx, slices),
        };
        match ready!(written)? {
            0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            count => Poll::Ready(Ok(count)),
        }
    }

    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_flush(cx)
    }

    pub(crate) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_shutdown(cx)
    }

    fn poll_read(&self, cx: &mut Context<'_>, space: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut space = ReadBuf::new(space);
        ready!(Pin::new(&mut *self.stream.borrow_mut()).poll_read(cx, &mut space))?;
        Poll::Ready(Ok(space.filled().len()))
    }

    /// Reads behind what is there.
    fn poll_more(&self, cx: &mut Context<'_>, rest: &mut Bytes) -> Poll<io::Result<usize>> {
        space::lend(|space| {
            let count = ready!(self.poll_read(cx, space))?;
            let mut more = BytesMut::from(mem::take(rest));
            more.extend_from_slice(&space[..count]);
            *rest = more.freeze();
            Poll::Ready(Ok(count))
        })
    }

    /// Takes what was looked at away, and gives the room back when nothing is left.
    fn take(&self, rest: &mut Bytes, length: usize) {
        self.tried.set(0);
        rest.advance(length);
        if rest.is_empty() {
            *rest = Bytes::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use http::{Method, Request, StatusCode, Version};
    use http_body_util::{BodyExt, StreamBody};
    use proptest::prelude::*;
    use tokio::io::{DuplexStream, duplex};

    use super::super::encode::{self, Asked, Outgoing};
    use super::super::parse;
    use super::*;

    /// What a body of these parts is on the other side of a pipe that takes so many bytes at once, and how often it came.
    async fn through(parts: Vec<Vec<u8>>, known: bool, pipe: usize) -> (Vec<u8>, bool) {
        let (near, far) = duplex(pipe);
        let (near, far) = (Wire::new(near), Wire::new(far));
        let length = known.then(|| parts.iter().map(|part| part.len() as u64).sum());
        let asked = Asked { method: Method::GET, version: Version::HTTP_11 };
        let head = encode::response(&asked, StatusCode::OK, &http::HeaderMap::new(), length, None);
        let frames = parts.into_iter().map(|part| Ok::<_, BodyError>(Frame::data(Bytes::from(part))));
        let mut outgoing = Outgoing::new(head, StreamBody::new(futures_util::stream::iter(frames)));
        let sending = async {
            poll_fn(|cx| outgoing.poll_send(&near, cx)).await.expect("sent");
        };
        let receiving = async {
            let parse = |bytes: &[u8]| parse::response(bytes, &Method::GET);
            let head = poll_fn(|cx| far.poll_head(cx, parse)).await.expect("a head");
            let (mut decoder, mut body) = (head.framing.decoder(), Vec::new());
            while let Some(frame) = poll_fn(|cx| far.poll_body(&mut decoder, cx)).await {
                body.extend_from_slice(frame.expect("whole").data_ref().expect("no trailers"));
            }
            (body, head.keep_alive && !far.has_rest())
        };
        tokio::join!(sending, receiving).1
    }

    proptest! {
        /// Whatever a body is made of and however it comes, it arrives as it was, and ends where it ends.
        #[test]
        fn bodies_arrive_as_they_were(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..6000), 0..6),
            known in any::<bool>(),
            pipe in 1usize..20_000,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let found = runtime.block_on(through(parts.clone(), known, pipe));
            prop_assert_eq!(found, (parts.concat(), true));
        }
    }

    /// A write may stop between any two bytes: before a head, a size, a part, what ends it, or the last chunk.
    #[tokio::test]
    async fn long_parts_arrive_byte_by_byte() {
        for known in [false, true] {
            let parts = vec![vec![7; 5000], vec![8; 10], vec![9; 6000]];
            assert_eq!(through(parts.clone(), known, 1).await, (parts.concat(), true));
        }
    }

    #[tokio::test]
    async fn long_bodies_and_trailers_arrive() {
        let (near, far) = duplex(50_000);
        let (near, far) = (Wire::new(near), Wire::new(far));
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-sum", http::HeaderValue::from_static("1"));
        let frames = [Frame::data(Bytes::from(vec![7; 300_000])), Frame::trailers(trailers)];
        let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, BodyError>)));
        let (parts, body) = Request::post("http://app/x").body(body).expect("a request").into_parts();
        let mut outgoing = Outgoing::new(encode::request(&parts, &body), body);
        let receiving = async {
            let head = poll_fn(|cx| far.poll_head(cx, parse::request)).await.expect("a head");
            let (mut decoder, mut length, mut last) = (head.framing.decoder(), 0, None);
            while let Some(frame) = poll_fn(|cx| far.poll_body(&mut decoder, cx)).await {
                let frame = frame.expect("whole");
                length += frame.data_ref().map_or(0, Bytes::len);
                last = frame.into_trailers().ok();
            }
            (length, last)
        };
        let (sent, (length, last)) = tokio::join!(poll_fn(|cx| outgoing.poll_send(&near, cx)), receiving);
        sent.expect("sent");
        assert_eq!(length, 300_000);
        assert_eq!(last.expect("trailers")["x-sum"], "1");
    }

    /// Of a long body that comes little by little no part holds the room for much, however long it is kept.
    #[tokio::test]
    async fn short_parts_hold_little_memory() {
        let (near, far): (DuplexStream, DuplexStream) = duplex(1000);
        let (near, far) = (Wire::new(near), Wire::new(far));
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n";
        poll_fn(|cx| near.poll_write(cx, &[IoSlice::new(head.as_bytes())])).await.expect("written");
        let parse = |bytes: &[u8]| parse::response(bytes, &Method::GET);
        let mut decoder = poll_fn(|cx| far.poll_head(cx, parse)).await.expect("a head").framing.decoder();
        for _ in 0..3 {
            poll_fn(|cx| near.poll_write(cx, &[IoSlice::new(b"x")])).await.expect("written");
            let frame = poll_fn(|cx| far.poll_body(&mut decoder, cx)).await.expect("more").expect("whole");
            let data = frame.into_data().expect("data").try_into_mut().expect("nobody else has it");
            assert!(data.len() == 1 && data.capacity() < 100, "{} bytes are held", data.capacity());
        }
    }

    #[tokio::test]
    async fn what_is_cut_short_is_no_end() {
        for (text, whole) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", false),
            ("HTTP/1.1 200 OK\r\n\r\nhello", true),
        ] {
            let (near, far): (DuplexStream, DuplexStream) = duplex(1000);
            let (near, far) = (Wire::new(near), Wire::new(far));
            poll_fn(|cx| near.poll_write(cx, &[IoSlice::new(text.as_bytes())])).await.expect("written");
            drop(near);
            let parse = |bytes: &[u8]| parse::response(bytes, &Method::GET);
            let mut decoder = poll_fn(|cx| far.poll_head(cx, parse)).await.expect("a head").framing.decoder();
            let body = StreamBody::new(futures_util::stream::poll_fn(|cx| far.poll_body(&mut decoder, cx)));
            assert_eq!(body.collect().await.is_ok(), whole, "{text:?}");
        }
    }
}
