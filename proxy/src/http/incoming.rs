//! A message body as it arrives, over either version of HTTP, from a client or a server.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use weft_codec::BodyError;
use weft_codec::http2::{self, RecvStream};

use super::from_client::FromClient;
use super::upload::Upload;
use crate::upstream::http1::ResponseBody;

/// A body that this proxy receives. The enum is closed: it names each kind of connection that produces bodies. For this
/// reason it, the bodies of requests, uploads and `upstream/http1` import each other, as nothing else here does.
pub(crate) enum Incoming {
    /// A request body over HTTP/1.1.
    FromClient(FromClient),
    /// A response body over HTTP/1.1.
    FromServer(ResponseBody),
    /// A request or response body over HTTP/2.
    Http2(StreamBody),
}

/// A body on an HTTP/2 stream. Reading it releases flow-control window to the peer.
pub(crate) struct StreamBody {
    stream: RecvStream,
    size: SizeHint,
    /// The unsent rest of the request, if the response arrived before it was sent.
    upload: Option<Box<Upload>>,
}

// === impl Incoming ===

impl Incoming {
    /// The body of a message on an HTTP/2 stream.
    pub(crate) fn of_stream(stream: RecvStream, head: &HeaderMap, upload: Option<Box<Upload>>) -> Self {
        let length = head.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let size = match length {
            Some(length) => SizeHint::with_exact(length),
            None if stream.is_end_stream() => SizeHint::with_exact(0),
            None => SizeHint::default(),
        };
        Self::Http2(StreamBody { stream, size, upload })
    }

    /// Takes the unsent rest of the request that this body's response belongs to; the caller sends it. If it is not
    /// taken, dropping this body aborts the request.
    pub(crate) fn take_upload(&mut self) -> Option<Box<Upload>> {
        match self {
            Self::FromClient(_) => None,
            Self::FromServer(body) => body.take_upload(),
            Self::Http2(body) => body.upload.take(),
        }
    }

    /// Sends an interim response to the client that sends this body. It is dropped if too much unsent data is queued
    /// already.
    pub(crate) fn send_interim(&self, status: StatusCode, headers: &HeaderMap) {
        match self {
            Self::FromClient(body) => body.send_interim(status, headers),
            Self::Http2(body) => body.stream.send_interim(status, headers),
            Self::FromServer(_) => {}
        }
    }

    /// Waits for the first frame without consuming it. Returns the trailer of this name, if the first frame is
    /// trailers. HTTP/1.1 bodies always return None.
    pub(crate) fn poll_trailer(&mut self, name: &HeaderName, cx: &Context<'_>) -> Poll<Option<HeaderValue>> {
        match self {
            Self::Http2(body) => body.stream.poll_trailer(name, cx),
            Self::FromClient(_) | Self::FromServer(_) => Poll::Ready(None),
        }
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
        // A reset is an error whatever its code, NO_ERROR included: the body is incomplete.
        let frame = ready!(self.poll_next(cx));
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, http2::Error>>> {
        match ready!(self.stream.poll_data(cx)) {
            Some(Ok(data)) => {
                self.stream.release_capacity(data.len());
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => Poll::Ready(self.stream.take_trailers().map(|trailers| Ok(Frame::trailers(trailers)))),
        }
    }
}
