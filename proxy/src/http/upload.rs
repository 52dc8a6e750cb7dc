//! The rest of a request body when the response arrives before the request is sent.
//!
//! It stays in the request's task, together with the response: the code that sends the response downstream polls the
//! upload too, whether the client reads the response or not, because a client may send all of its request before it
//! reads. So a body has one reader at any time, and nothing of a request outlives its task. If it is dropped before its
//! end, the stream is reset or the connection closed, so that an incomplete body never ends cleanly.

use std::task::{Context, Poll, ready};

use weft_codec::BodyError;

use super::pipe::{Pipe, PipeError};
use super::request_body::RequestBody;
use crate::upstream::http1;

/// The unsent rest of a request body.
pub(crate) enum Upload {
    Http1(http1::Upload),
    Http2(Pipe<RequestBody>),
}

impl Upload {
    /// Sends what is available. Ready: all is sent, or the server accepts no more. An error: reading the body failed.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        match self {
            Self::Http1(upload) => upload.poll_send(cx),
            Self::Http2(pipe) => match ready!(pipe.poll_send(cx)) {
                Ok(()) | Err(PipeError::Stream(_)) => Poll::Ready(Ok(())),
                Err(PipeError::Body(error)) => Poll::Ready(Err(error)),
            },
        }
    }
}
