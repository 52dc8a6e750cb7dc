//! A connection that HTTP/1.1 messages are read from and written to, in turn or at the same time.

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
use crate::body::BodyError;
use crate::limits::HEAD_BYTES_MAX;
use crate::read_buffer::{READ_BYTES, with_read_buffer};

/// Capacity of a read of a long body, which is kept in the buffer that it was read to.
const READ_LONG: usize = 64 * 1024;

/// Interim responses that wait to be written, in bytes; further ones are dropped.
const INTERIM_BYTES_MAX: usize = 64 * 1024;

/// Parsing starts with the first byte until this many have come: within them invalid input shows, and is rejected
/// without waiting for a line end.
const START_BYTES: usize = 9;

/// A connection, shared by its reader and its writer.
pub struct Wire<S> {
    stream: RefCell<S>,
    /// Bytes that were read and not consumed: an incomplete message, or the next ones.
    buffer: RefCell<Bytes>,
    /// Bytes of `buffer` that were parsed without finding a complete head.
    scanned: Cell<usize>,
    /// The peer has closed its sending half. It may still read.
    is_read_closed: Cell<bool>,
    /// Interim (1xx) responses to write before anything else.
    interim: RefCell<Option<Box<BytesMut>>>,
}

/// Why no head was read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Reading failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The peer closed the connection; a part of a head may have come.
    #[error("connection closed before the end of the head")]
    Closed,
    /// The head is invalid or too large.
    #[error("{0}")]
    Bad(#[from] BadMessage),
}

// === impl Wire ===

impl<S> Wire<S> {
    /// A connection of which nothing was read yet.
    pub fn new(stream: S) -> Self {
        Self {
            stream: RefCell::new(stream),
            buffer: RefCell::default(),
            scanned: Cell::new(0),
            is_read_closed: Cell::new(false),
            interim: RefCell::default(),
        }
    }

    /// Whether bytes were read and not consumed.
    pub fn has_buffered(&self) -> bool {
        !self.buffer.borrow().is_empty()
    }

    /// Lends the stream below.
    pub fn with<T>(&self, work: impl FnOnce(&mut S) -> T) -> T {
        work(&mut self.stream.borrow_mut())
    }

    /// Queues an interim (1xx) response, unless 64 KiB of them are waiting.
    pub fn queue_interim(&self, message: BytesMut) {
        let mut interim = self.interim.borrow_mut();
        match &mut *interim {
            Some(waiting) if waiting.len() < INTERIM_BYTES_MAX => waiting.unsplit(message),
            Some(_) => {}
            None => *interim = Some(Box::new(message)),
        }
    }

    /// Takes the interim responses that were not written, to write them with the response.
    pub fn take_interim(&self) -> Option<Box<BytesMut>> {
        self.interim.take()
    }

    /// The connection and the bytes read from it, for another protocol.
    pub fn into_parts(self) -> (S, Bytes) {
        (self.stream.into_inner(), self.buffer.into_inner())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Reads a head.
    pub fn poll_head<T>(&self, cx: &mut Context<'_>, parse: impl Fn(&[u8]) -> Parsed<T>) -> Poll<Result<T, ReadError>> {
        let mut buffer = self.buffer.borrow_mut();
        loop {
            // A head is complete only after a line feed; invalid input shows earlier.
            let scanned = self.scanned.get();
            if buffer.len() > scanned
                && (scanned < START_BYTES || buffer[scanned..].contains(&b'\n') || buffer.len() > HEAD_BYTES_MAX)
            {
                if let Some((head, length)) = parse(&buffer)? {
                    self.consume(&mut buffer, length);
                    return Poll::Ready(Ok(head));
                }
                self.scanned.set(buffer.len());
            }
            if buffer.is_empty() {
                let read = with_read_buffer(|scratch| {
                    let count = ready!(self.poll_read(cx, scratch))?;
                    let read = &scratch[..count];
                    if count == 0 {
                        return Poll::Ready(Err(ReadError::Closed));
                    }
                    let parsed = parse(read)?;
                    let used = parsed.as_ref().map_or(0, |(_, length)| *length);
                    if used < count {
                        *buffer = scratch.keep(used..count);
                    }
                    Poll::Ready(Ok(parsed))
                });
                if let Some((head, _)) = ready!(read)? {
                    return Poll::Ready(Ok(head));
                }
                self.scanned.set(buffer.len());
            } else if ready!(self.poll_more(cx, &mut buffer))? == 0 {
                return Poll::Ready(Err(ReadError::Closed));
            }
        }
    }

    /// Reads the next part of a body. None: the body has ended.
    pub fn poll_body(
        &self,
        decoder: &mut Decoder,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut buffer = self.buffer.borrow_mut();
        loop {
            if !buffer.is_empty() || decoder.has_ended() {
                let (step, length) = match decoder.decode(&buffer) {
                    Ok(found) => found,
                    Err(error) => return Poll::Ready(Some(Err(error.into()))),
                };
                let frame = match step {
                    // It is the whole buffer: no need to share it.
                    Step::Data(part) if part.len() == buffer.len() => Some(Some(Frame::data(mem::take(&mut *buffer)))),
                    Step::Data(part) => {
                        let mut data = buffer.split_to(length);
                        data.truncate(part.end);
                        data.advance(part.start);
                        Some(Some(Frame::data(data)))
                    }
                    Step::Trailers(trailers) => {
                        buffer.advance(length);
                        Some(Some(Frame::trailers(trailers)))
                    }
                    Step::End => {
                        buffer.advance(length);
                        Some(None)
                    }
                    Step::More => {
                        buffer.advance(length);
                        None
                    }
                };
                if buffer.is_empty() {
                    *buffer = Bytes::new();
                }
                if let Some(frame) = frame {
                    return Poll::Ready(frame.map(Ok));
                }
            }
            let read = if decoder.min_remaining() > READ_BYTES as u64 {
                // Read straight into the buffer that will be passed on.
                let mut more = BytesMut::from(mem::take(&mut *buffer));
                more.reserve(READ_LONG);
                let read = poll_read_buf(Pin::new(&mut *self.stream.borrow_mut()), cx, &mut more);
                // A short part is copied, so that it does not hold a large buffer while it waits.
                if more.len() >= READ_BYTES {
                    *buffer = more.freeze();
                } else if !more.is_empty() {
                    *buffer = Bytes::copy_from_slice(&more);
                }
                ready!(read).map(|count| (None, count))
            } else {
                ready!(with_read_buffer(|scratch| {
                    let count = ready!(self.poll_read(cx, scratch))?;
                    let (step, length) = decoder.decode(&scratch[..count]).map_err(io::Error::other)?;
                    let left = &scratch[length..count];
                    if !left.is_empty() {
                        *buffer = [&**buffer, left].concat().into();
                    }
                    let found = match step {
                        Step::Data(part) => Some(Some(Frame::data(scratch.keep(part)))),
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
                    let error =
                        io::Error::new(io::ErrorKind::UnexpectedEof, "connection closed before the end of the body");
                    return Poll::Ready(Some(Err(error.into())));
                }
                Ok((Some(found), _)) => return Poll::Ready(found.map(Ok)),
                Ok((None, _)) => {}
            }
        }
    }

    /// Whether the peer has sent nothing and has not closed the connection.
    pub fn is_idle(&self) -> bool {
        let mut byte = [0];
        let mut cx = Context::from_waker(Waker::noop());
        !self.has_buffered() && self.poll_read(&mut cx, &mut byte).is_pending()
    }

    /// Waits until the connection breaks. Buffers up to [`READ_BYTES`] bytes that the peer sends meanwhile. A FIN does not
    /// count: a client that has sent its last request may close its sending half, and still wait for responses.
    pub fn poll_disconnect(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut buffer = self.buffer.borrow_mut();
        while !self.is_read_closed.get() && buffer.len() < READ_BYTES {
            match ready!(self.poll_more(cx, &mut buffer)) {
                Ok(1..) => {}
                Ok(0) => self.is_read_closed.set(true),
                Err(_) => return Poll::Ready(()),
            }
        }
        Poll::Pending
    }

    /// Whether [`Self::poll_disconnect`] reads no more, and so cannot notice a disconnect.
    pub fn has_stopped_reading(&self) -> bool {
        self.is_read_closed.get() || self.buffer.borrow().len() >= READ_BYTES
    }

    /// Whether the peer has closed its sending half.
    pub fn is_read_closed(&self) -> bool {
        self.is_read_closed.get()
    }

    /// Whether the peer has closed its sending half before the end of a body.
    pub fn is_truncated(&self, body: &Decoder) -> bool {
        self.is_read_closed.get() && !body.ends_within(&self.buffer.borrow())
    }

    /// Writes the queued interim responses.
    pub fn poll_interim(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut interim = self.interim.borrow_mut();
        while let Some(waiting) = &mut *interim {
            let written = ready!(self.poll_write(cx, &[IoSlice::new(waiting)]))?;
            waiting.advance(written);
            if waiting.is_empty() {
                *interim = None;
                return self.poll_flush(cx);
            }
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
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

    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_flush(cx)
    }

    /// Closes the sending half.
    pub fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_shutdown(cx)
    }

    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(&mut *self.stream.borrow_mut()).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    /// Reads more into the buffer.
    fn poll_more(&self, cx: &mut Context<'_>, buffer: &mut Bytes) -> Poll<io::Result<usize>> {
        with_read_buffer(|scratch| {
            let count = ready!(self.poll_read(cx, scratch))?;
            let mut more = BytesMut::from(mem::take(buffer));
            more.extend_from_slice(&scratch[..count]);
            *buffer = more.freeze();
            Poll::Ready(Ok(count))
        })
    }

    /// Consumes bytes, and frees the buffer when it is empty.
    fn consume(&self, buffer: &mut Bytes, length: usize) {
        self.scanned.set(0);
        buffer.advance(length);
        if buffer.is_empty() {
            *buffer = Bytes::new();
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

    use super::super::encode::{self, Outgoing, RequestLine};
    use super::super::parse;
    use super::*;

    /// Sends a body of these parts through a pipe with a buffer of `pipe` bytes. Returns what arrived, and whether
    /// the connection can be used again.
    async fn through(parts: Vec<Vec<u8>>, known: bool, pipe: usize) -> (Vec<u8>, bool) {
        let (near, far) = duplex(pipe);
        let (near, far) = (Wire::new(near), Wire::new(far));
        let length = known.then(|| parts.iter().map(|part| part.len() as u64).sum());
        let line = RequestLine { method: Method::GET, version: Version::HTTP_11 };
        let head = encode::response(&line, StatusCode::OK, &http::HeaderMap::new(), length, None);
        let frames = parts.into_iter().map(|part| Ok::<_, BodyError>(Frame::data(Bytes::from(part))));
        let mut outgoing = Outgoing::new(head, StreamBody::new(futures_util::stream::iter(frames)));
        let sending = async {
            poll_fn(|cx| outgoing.poll_send(&near, cx)).await.expect("sent");
        };
        let receiving = async {
            let parse = |bytes: &[u8]| parse::response(bytes, &Method::GET);
            let head = poll_fn(|cx| far.poll_head(cx, parse)).await.expect("a head");
            let (mut decoder, mut body) = (Decoder::new(head.framing), Vec::new());
            while let Some(frame) = poll_fn(|cx| far.poll_body(&mut decoder, cx)).await {
                body.extend_from_slice(frame.expect("whole").data_ref().expect("no trailers"));
            }
            (body, head.keep_alive && !far.has_buffered())
        };
        tokio::join!(sending, receiving).1
    }

    proptest! {
        /// Bodies arrive unchanged and end where they should, whatever their parts and the pipe's buffer.
        #[test]
        fn bodies_arrive_unchanged(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..6000), 0..6),
            known in any::<bool>(),
            pipe in 1usize..20_000,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let found = runtime.block_on(through(parts.clone(), known, pipe));
            prop_assert_eq!(found, (parts.concat(), true));
        }
    }

    /// A write may stop between any two bytes: before a head, a chunk size, a part, its end, or the last chunk.
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
            let (mut decoder, mut length, mut last) = (Decoder::new(head.framing), 0, None);
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

    /// Parts of a long body that come in small pieces hold no large buffer.
    #[tokio::test]
    async fn short_parts_hold_little_memory() {
        let (near, far): (DuplexStream, DuplexStream) = duplex(1000);
        let (near, far) = (Wire::new(near), Wire::new(far));
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n";
        poll_fn(|cx| near.poll_write(cx, &[IoSlice::new(head.as_bytes())])).await.expect("written");
        let parse = |bytes: &[u8]| parse::response(bytes, &Method::GET);
        let head = poll_fn(|cx| far.poll_head(cx, parse)).await.expect("a head");
        let mut decoder = Decoder::new(head.framing);
        for _ in 0..3 {
            poll_fn(|cx| near.poll_write(cx, &[IoSlice::new(b"x")])).await.expect("written");
            let frame = poll_fn(|cx| far.poll_body(&mut decoder, cx)).await.expect("more").expect("whole");
            let data = frame.into_data().expect("data").try_into_mut().expect("not shared");
            assert!(data.len() == 1 && data.capacity() < 100, "{} bytes are held", data.capacity());
        }
    }

    #[tokio::test]
    async fn truncated_bodies_are_errors() {
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
            let head = poll_fn(|cx| far.poll_head(cx, parse)).await.expect("a head");
            let mut decoder = Decoder::new(head.framing);
            let body = StreamBody::new(futures_util::stream::poll_fn(|cx| far.poll_body(&mut decoder, cx)));
            assert_eq!(body.collect().await.is_ok(), whole, "{text:?}");
        }
    }
}
