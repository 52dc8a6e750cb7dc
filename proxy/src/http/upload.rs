//! The rest of a request whose response came first.
//!
//! It belongs to the task of its request, together with the response: the code that sends the response downstream polls this
//! too, whether the client takes the response or not, because a client may send all of its request before it reads. So a body has
//! one reader at any time, and nothing of a request outlives it. Dropped before its end, the stream is reset or the connection
//! closed: what is incomplete is never ended cleanly.

use std::task::{Context, Poll, ready};

use super::body::{BodyError, RequestBody};
use super::pipe::{self, Pipe};
use crate::upstream::http1;

/// The rest of a request on its way to a server that answers already.
pub(crate) enum Upload {
    Http1(http1::Upload),
    Http2(Pipe<RequestBody>),
}

impl Upload {
    /// Sends what there is. Ready: all of it is sent, or the server takes no more. An error: the body broke off.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        match self {
            Self::Http1(upload) => upload.poll_send(cx),
            Self::Http2(pipe) => match ready!(pipe.poll_send(cx)) {
                Ok(()) | Err(pipe::Broken::Stream(_)) => Poll::Ready(Ok(())),
                Err(pipe::Broken::Body(error)) => Poll::Ready(Err(error)),
            },
        }
    }
}
