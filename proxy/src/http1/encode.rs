//! Heads into bytes, and a body behind them.

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

use super::parse::Framing;
use super::wire::Wire;
use crate::http::body::BodyError;

/// Room for a head of common size.
const HEAD_BYTES: usize = 768;

/// Parts of a body below this are gathered into one write with what is before them; a longer one is written from where it is.
const SHORT: usize = 4096;

/// What is gathered before it is written.
const GATHERED_MAX: usize = 16 * 1024;

const LINE_END: &[u8] = b"\r\n";
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// A message on its way out: its head, and its body as it comes.
pub(crate) struct Outgoing<B> {
    gathered: BytesMut,
    /// A long part of the body, behind what is gathered.
    long: Bytes,
    /// What ends that part.
    end: &'static [u8],
    body: B,
    /// No more of it is to come.
    is_done: bool,
    framing: Framing,
    /// Something of it was written.
    pub(crate) has_begun: bool,
}

/// Why a message does not go out to its end.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The other side takes no more.
    Io(std::io::Error),
    /// The body broke off, or is not what the head says.
    Body(Option<BodyError>),
}

/// What a response answers.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) version: Version,
}

/// The head of a request, and how its body ends. The length of a body that has one is said, and its absence where a body is
/// common (RFC 9110 8.6).
pub(crate) fn request(head: &Parts, body: &impl Body) -> (BytesMut, Framing) {
    let mut out = BytesMut::with_capacity(HEAD_BYTES);
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

/// The head of a response to that, and how its body ends. `length`: the body's, if it is known.
pub(crate) fn response(
    asked: &Asked,
    status: StatusCode,
    headers: &HeaderMap,
    length: Option<u64>,
    connection: Option<&'static str>,
) -> (BytesMut, Framing) {
    // A short body goes behind it.
    let short = length.and_then(|length| usize::try_from(length).ok()).filter(|length| *length < SHORT);
    let mut out = BytesMut::with_capacity(HEAD_BYTES + short.unwrap_or_default());
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(LINE_END);
    fields(headers, &mut out);
    if let Some(connection) = connection {
        field(header::CONNECTION.as_str(), connection.as_bytes(), &mut out);
    }
    let tunnel = asked.method == Method::CONNECT && status.is_success();
    let framing = if status.is_informational() || status == StatusCode::NO_CONTENT || tunnel {
        Framing::Length(0)
    } else if asked.method == Method::HEAD || status == StatusCode::NOT_MODIFIED {
        // What the body would have been.
        if let Some(length) = headers.get(header::CONTENT_LENGTH) {
            field(header::CONTENT_LENGTH.as_str(), length.as_bytes(), &mut out);
        }
        Framing::Length(0)
    } else {
        match length {
            Some(length) => content_length(length, &mut out),
            None if asked.version == Version::HTTP_10 => Framing::Close,
            None => chunked(&mut out),
        }
    };
    out.extend_from_slice(LINE_END);
    (out, framing)
}

/// Headers but for those that say how long the body is.
/// A response before the response.
pub(crate) fn interim(status: StatusCode, headers: &HeaderMap) -> BytesMut {
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
    // Writing into memory does not fail.
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
    /// A message with this head; of one that has no body none is sent.
    pub(crate) fn new((head, framing): (BytesMut, Framing), body: B) -> Self {
        let is_done = framing == Framing::Length(0);
        Self { gathered: head, long: Bytes::new(), end: b"", body, is_done, framing, has_begun: false }
    }

    pub(crate) fn body_mut(&mut self) -> &mut B {
        &mut self.body
    }

    /// Sends what there is, and is done when all of it is sent.
    pub(crate) fn poll_send<S>(&mut self, wire: &Wire<S>, cx: &mut Context<'_>) -> Poll<Result<(), Broken>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            let waits = self.gather(cx).map_err(Broken::Body)?;
            while self.has_some() {
                let slices = [IoSlice::new(&self.gathered), IoSlice::new(&self.long), IoSlice::new(self.end)];
                let count = if self.long.is_empty() && self.end.is_empty() { 1 } else { 3 };
                let written = ready!(wire.poll_write(cx, &slices[..count])).map_err(Broken::Io)?;
                self.advance(written);
            }
            if waits || self.is_done {
                ready!(wire.poll_flush(cx)).map_err(Broken::Io)?;
                return if self.is_done { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
        }
    }

    fn has_some(&self) -> bool {
        !self.gathered.is_empty() || !self.long.is_empty() || !self.end.is_empty()
    }

    fn advance(&mut self, mut written: usize) {
        self.has_begun = true;
        let count = written.min(self.gathered.len());
        self.gathered.advance(count);
        written -= count;
        let count = written.min(self.long.len());
        self.long.advance(count);
        written -= count;
        self.end = &self.end[written..];
        if self.gathered.is_empty() && self.long.is_empty() && self.end.is_empty() && !self.is_done {
            // Nothing is held for a body that is slow to come.
            self.gathered = BytesMut::new();
        }
    }

    /// Takes of the body what is there, up to what one write is worth. Whether there was no more for now.
    fn gather(&mut self, cx: &mut Context<'_>) -> Result<bool, Option<BodyError>> {
        while !self.is_done {
            if !self.long.is_empty() || !self.end.is_empty() || self.gathered.len() >= GATHERED_MAX {
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
                // Writing into memory does not fail.
                let _ = write!(self.gathered, "{:x}\r\n", data.len());
                end = LINE_END;
            }
            Framing::Close => {}
        }
        if data.len() < SHORT {
            self.gathered.extend_from_slice(&data);
            self.gathered.extend_from_slice(end);
        } else {
            self.long = data;
            self.end = end;
        }
        Ok(())
    }

    fn finish(&mut self, trailers: Option<&HeaderMap>) -> Result<(), Option<BodyError>> {
        self.is_done = true;
        match (self.framing, trailers) {
            // Shorter than was said.
            (Framing::Length(1..), _) => return Err(None),
            (Framing::Chunked, None) if self.long.is_empty() => self.gathered.extend_from_slice(LAST_CHUNK),
            (Framing::Chunked, None) => self.end = b"\r\n0\r\n\r\n",
            // A body in chunks that has trailers has them behind its data: nothing long is waiting.
            (Framing::Chunked, Some(trailers)) => {
                self.gathered.extend_from_slice(b"0\r\n");
                fields(trailers, &mut self.gathered);
                self.gathered.extend_from_slice(LINE_END);
            }
            (Framing::Length(0) | Framing::Close, _) => {}
        }
        Ok(())
    }
}
