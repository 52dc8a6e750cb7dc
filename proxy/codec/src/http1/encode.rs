//! Writes heads, and bodies behind them (RFC 9112).

use std::fmt::Write;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::header::{self, HeaderMap};
use http::request::Parts;
use http::{Method, StatusCode, Version};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite};

use super::framing::Framing;
use super::wire::Wire;
use crate::body::BodyError;

/// Capacity for a head of common size.
const HEAD_CAPACITY: usize = 768;

/// Shorter parts of a body are copied into the buffer; longer ones are written from where they are.
const COPY_BELOW: usize = 4096;

/// The buffer is written when it has this many bytes.
const BUFFER_MAX: usize = 16 * 1024;

const LINE_END: &[u8] = b"\r\n";
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// A message that is being sent: its head, and its body as it comes.
pub struct Outgoing<B> {
    buffer: BytesMut,
    /// A long part of the body, written after `buffer`.
    chunk: Bytes,
    /// The end of that chunk.
    chunk_end: &'static [u8],
    body: B,
    /// Everything is in the buffer, or was sent.
    is_done: bool,
    framing: Framing,
    /// Some of it was written.
    pub has_begun: bool,
}

/// Why a message could not be sent.
#[derive(Debug)]
pub enum WriteError {
    /// The peer accepts no more.
    Io(std::io::Error),
    /// The body failed, or is not as long as `content-length` says.
    Body(Option<BodyError>),
}

/// What of a request determines the framing of its response.
#[derive(Clone, Debug)]
pub struct RequestLine {
    /// A response to HEAD has no body, and one to CONNECT begins a tunnel.
    pub method: Method,
    /// A client of HTTP/1.0 does not know chunks.
    pub version: Version,
}

/// The head of a request, and the framing of its body. A request without a body has `content-length: 0` if its method
/// commonly has one (RFC 9110 8.6).
pub fn request(head: &Parts, body: &impl Body) -> (BytesMut, Framing) {
    let mut out = BytesMut::with_capacity(HEAD_CAPACITY);
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.extend_from_slice(b" ");
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    if target.starts_with('?') {
        out.extend_from_slice(b"/");
    }
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    fields(&head.headers, &mut out);
    let common = || matches!(head.method, Method::POST | Method::PUT | Method::PATCH);
    let framing = match body.size_hint().exact() {
        Some(0) if !common() => Framing::Length(0),
        Some(length) => content_length(length, &mut out),
        None => chunked(&mut out),
    };
    out.extend_from_slice(LINE_END);
    (out, framing)
}

/// The head of a response, and the framing of its body. `length`: that of the body in bytes, if it is known.
/// `connection`: the value of a Connection header to add.
pub fn response(
    request: &RequestLine,
    status: StatusCode,
    headers: &HeaderMap,
    length: Option<u64>,
    connection: Option<&'static str>,
) -> (BytesMut, Framing) {
    // A short body follows in the same buffer.
    let short = length.and_then(|length| usize::try_from(length).ok()).filter(|length| *length < COPY_BELOW);
    let mut out = BytesMut::with_capacity(HEAD_CAPACITY + short.unwrap_or_default());
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(LINE_END);
    fields(headers, &mut out);
    if let Some(connection) = connection {
        field(header::CONNECTION.as_str(), connection.as_bytes(), &mut out);
    }
    let tunnel = request.method == Method::CONNECT && status.is_success();
    let framing = if status.is_informational() || status == StatusCode::NO_CONTENT || tunnel {
        Framing::Length(0)
    } else if request.method == Method::HEAD || status == StatusCode::NOT_MODIFIED {
        // The length that the body of a GET would have.
        if let Some(length) = headers.get(header::CONTENT_LENGTH) {
            field(header::CONTENT_LENGTH.as_str(), length.as_bytes(), &mut out);
        }
        Framing::Length(0)
    } else {
        match length {
            Some(length) => content_length(length, &mut out),
            None if request.version == Version::HTTP_10 => Framing::Close,
            None => chunked(&mut out),
        }
    };
    out.extend_from_slice(LINE_END);
    (out, framing)
}

/// The head of an interim (1xx) response.
pub fn interim(status: StatusCode, headers: &HeaderMap) -> BytesMut {
    let mut out = BytesMut::new();
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(LINE_END);
    fields(headers, &mut out);
    out.extend_from_slice(LINE_END);
    out
}

/// Writes headers, without those of the framing.
fn fields(headers: &HeaderMap, out: &mut BytesMut) {
    for (name, value) in headers {
        if *name != header::CONTENT_LENGTH && *name != header::TRANSFER_ENCODING {
            field(name.as_str(), value.as_bytes(), out);
        }
    }
}

fn field(name: &str, value: &[u8], out: &mut BytesMut) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(LINE_END);
}

fn content_length(length: u64, out: &mut BytesMut) -> Framing {
    // Writing to memory does not fail.
    let _ = write!(out, "content-length: {length}\r\n");
    Framing::Length(length)
}

fn chunked(out: &mut BytesMut) -> Framing {
    out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    Framing::Chunked
}

// === impl Outgoing ===

impl<B> Outgoing<B>
where
    B: Body<Data = Bytes, Error = BodyError> + Unpin,
{
    /// A message with this head. If the framing says that there is no body, none is sent.
    pub fn new((head, framing): (BytesMut, Framing), body: B) -> Self {
        let is_done = framing == Framing::Length(0);
        Self { buffer: head, chunk: Bytes::new(), chunk_end: b"", body, is_done, framing, has_begun: false }
    }

    /// The body.
    pub fn body_mut(&mut self) -> &mut B {
        &mut self.body
    }

    /// Sends what is available. Ready when all was sent.
    pub fn poll_send<S>(&mut self, wire: &Wire<S>, cx: &mut Context<'_>) -> Poll<Result<(), WriteError>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            let is_body_pending = self.fill_buffer(cx).map_err(WriteError::Body)?;
            while self.has_unwritten() {
                let slices = [IoSlice::new(&self.buffer), IoSlice::new(&self.chunk), IoSlice::new(self.chunk_end)];
                let count = if self.chunk.is_empty() && self.chunk_end.is_empty() { 1 } else { 3 };
                let written = ready!(wire.poll_write(cx, &slices[..count])).map_err(WriteError::Io)?;
                self.advance(written);
            }
            if is_body_pending || self.is_done {
                ready!(wire.poll_flush(cx)).map_err(WriteError::Io)?;
                return if self.is_done { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
        }
    }

    fn has_unwritten(&self) -> bool {
        !self.buffer.is_empty() || !self.chunk.is_empty() || !self.chunk_end.is_empty()
    }

    fn advance(&mut self, mut written: usize) {
        self.has_begun = true;
        let count = written.min(self.buffer.len());
        self.buffer.advance(count);
        written -= count;
        let count = written.min(self.chunk.len());
        self.chunk.advance(count);
        written -= count;
        self.chunk_end = &self.chunk_end[written..];
        if self.buffer.is_empty() && self.chunk.is_empty() && self.chunk_end.is_empty() && !self.is_done {
            // While the body is pending, no buffer is held.
            self.buffer = BytesMut::new();
        }
    }

    /// Fills the buffer from the body. Returns whether the body is pending.
    fn fill_buffer(&mut self, cx: &mut Context<'_>) -> Result<bool, Option<BodyError>> {
        while !self.is_done {
            if !self.chunk.is_empty() || !self.chunk_end.is_empty() || self.buffer.len() >= BUFFER_MAX {
                return Ok(false);
            }
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else { return Ok(true) };
            match frame.transpose().map_err(Some)?.map(http_body::Frame::into_data) {
                None => self.finish(None)?,
                Some(Ok(data)) => {
                    let last = self.body.is_end_stream();
                    self.push(data)?;
                    if last {
                        self.finish(None)?;
                    }
                }
                Some(Err(frame)) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        self.finish(Some(&trailers))?;
                    }
                }
            }
        }
        Ok(false)
    }

    fn push(&mut self, data: Bytes) -> Result<(), Option<BodyError>> {
        if data.is_empty() {
            return Ok(());
        }
        let mut end: &[u8] = b"";
        match &mut self.framing {
            Framing::Length(left) => *left = left.checked_sub(data.len() as u64).ok_or(None)?,
            Framing::Chunked => {
                // Writing to memory does not fail.
                let _ = write!(self.buffer, "{:x}\r\n", data.len());
                end = LINE_END;
            }
            Framing::Close => {}
        }
        if data.len() < COPY_BELOW {
            self.buffer.extend_from_slice(&data);
            self.buffer.extend_from_slice(end);
        } else {
            self.chunk = data;
            self.chunk_end = end;
        }
        Ok(())
    }

    fn finish(&mut self, trailers: Option<&HeaderMap>) -> Result<(), Option<BodyError>> {
        self.is_done = true;
        match (self.framing, trailers) {
            // Shorter than `content-length`.
            (Framing::Length(1..), _) => return Err(None),
            (Framing::Chunked, None) if self.chunk.is_empty() => self.buffer.extend_from_slice(LAST_CHUNK),
            (Framing::Chunked, None) => self.chunk_end = b"\r\n0\r\n\r\n",
            // Trailers follow the data, so no long part is waiting.
            (Framing::Chunked, Some(trailers)) => {
                self.buffer.extend_from_slice(b"0\r\n");
                fields(trailers, &mut self.buffer);
                self.buffer.extend_from_slice(LINE_END);
            }
            (Framing::Length(0) | Framing::Close, _) => {}
        }
        Ok(())
    }
}
