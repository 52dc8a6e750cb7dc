//! A body as it comes, over either version of HTTP and from either side.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http::header;
use http_body::{Body, Frame, SizeHint};
use tokio::task::AbortHandle;

use super::body::BodyError;
use super::requests::FromClient;
use crate::http2::{self, Reason, RecvStream};
use crate::upstream::http1::Receiving;

/// A body that somebody sends to this proxy.
pub(crate) enum Incoming {
    /// Over HTTP/1.1, from a client.
    FromClient(FromClient),
    /// Over HTTP/1.1, from a server.
    FromServer(Receiving),
    Http2(StreamBody),
}

/// The body that comes in a stream of HTTP/2. What was read of it is what the peer may send more of.
pub(crate) struct StreamBody {
    stream: RecvStream,
    size: SizeHint,
    /// What sends the other side's body still. Whoever drops this one before its end wants nothing of that either.
    sending: Option<Sending>,
}

/// A task that sends a body; dropping this ends it, and so resets the stream.
pub(crate) struct Sending(Option<AbortHandle>);

// === impl Incoming ===

impl Incoming {
    /// The body in a stream whose head was this.
    pub(crate) fn of_stream(stream: RecvStream, head: &HeaderMap, sending: Option<Sending>) -> Self {
        let length = head.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let size = match length {
            Some(length) => SizeHint::with_exact(length),
            None if stream.is_end_stream() => SizeHint::with_exact(0),
            None => SizeHint::default(),
        };
        Self::Http2(StreamBody { stream, size, sending })
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::FromClient(body) => body.poll_frame(cx),
            Self::FromServer(body) => body.poll_frame(cx),
            Self::Http2(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::FromClient(body) => body.is_end_stream(),
            Self::FromServer(body) => body.is_end_stream(),
            Self::Http2(body) => body.stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::FromClient(body) => body.size_hint(),
            Self::FromServer(body) => body.size_hint(),
            Self::Http2(body) => body.size,
        }
    }
}

// === impl StreamBody ===

impl StreamBody {
    /// The stream, for a tunnel.
    pub(crate) fn into_stream(self) -> RecvStream {
        self.stream
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(self.poll_next(cx));
        if frame.is_none() || self.stream.is_end_stream() {
            self.finish();
        }
        match frame {
            // The peer has said all it wants to say, and wants to hear no more (RFC 9113 8.1).
            Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => {
                self.finish();
                Poll::Ready(None)
            }
            frame => Poll::Ready(frame.map(|frame| frame.map_err(Into::into))),
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, http2::Error>>> {
        match ready!(self.stream.poll_data(cx)) {
            Some(Ok(data)) => {
                self.stream.taken(data.len());
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => Poll::Ready(self.stream.take_trailers().map(|trailers| Ok(Frame::trailers(trailers)))),
        }
    }

    /// What is sent the other way is sent to its end.
    fn finish(&mut self) {
        if let Some(mut sending) = self.sending.take() {
            sending.0 = None;
        }
    }
}

// === impl Sending ===

impl Sending {
    pub(crate) fn new(task: AbortHandle) -> Self {
        Self(Some(task))
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}
