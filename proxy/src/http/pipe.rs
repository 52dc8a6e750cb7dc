//! Sends a body on an HTTP/2 stream.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Body;
use weft_codec::BodyError;
use weft_codec::http2::{self, Reason, SendStream};

/// Sends a body to its end, or until the peer resets the stream. At most one part waits for the peer's window.
pub(crate) struct Pipe<B> {
    stream: SendStream,
    body: B,
    ended: bool,
    /// The code of RST_STREAM if reading the body fails without a code of its own.
    abort_reason: Reason,
}

/// Why a body was not sent to its end.
pub(crate) enum PipeError {
    /// The peer accepts no more. The receiving side of the stream reports this too.
    Stream(http2::Error),
    /// Reading the body failed; the stream was reset.
    Body(BodyError),
}

impl<B> Pipe<B> {
    pub(crate) fn new(stream: SendStream, body: B, abort_reason: Reason) -> Self {
        Self { stream, body, ended: false, abort_reason }
    }

    /// A pipe for a stream whose head carried END_STREAM: nothing of the body is sent.
    pub(crate) fn after_end(stream: SendStream, body: B) -> Self {
        Self { stream, body, ended: true, abort_reason: Reason::INTERNAL_ERROR }
    }

    pub(crate) fn body_mut(&mut self) -> &mut B {
        &mut self.body
    }

    /// Resets the stream.
    pub(crate) fn reset(&mut self, reason: Reason) {
        self.stream.reset(reason);
    }

    /// Waits until the stream is reset.
    pub(crate) fn poll_reset(&mut self, cx: &Context<'_>) -> Poll<()> {
        self.stream.poll_error(cx).map(drop)
    }
}

impl<B> Pipe<B>
where
    B: Body<Data = Bytes, Error = BodyError> + Unpin,
{
    /// Sends what is available. Ready: all of it was sent.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PipeError>> {
        loop {
            ready!(self.stream.poll_sent(cx))?;
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                // Wakes this task when the peer resets the stream.
                return self.stream.poll_error(cx).map(|error| Err(PipeError::Stream(error)));
            };
            match frame.map(|frame| frame.map(http_body::Frame::into_data)) {
                None => {
                    self.ended = true;
                    self.stream.send_data(Bytes::new(), true)?;
                }
                Some(Err(error)) => {
                    self.stream.reset(reset_reason(&*error).unwrap_or(self.abort_reason));
                    return Poll::Ready(Err(PipeError::Body(error)));
                }
                Some(Ok(Ok(data))) => {
                    self.ended = self.body.is_end_stream();
                    self.stream.send_data(data, self.ended)?;
                }
                Some(Ok(Err(frame))) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        self.ended = true;
                        self.stream.send_trailers(trailers)?;
                    }
                }
            }
        }
    }
}

impl From<http2::Error> for PipeError {
    fn from(error: http2::Error) -> Self {
        Self::Stream(error)
    }
}

/// The code of the reset that made reading a body fail, if a reset did. NO_ERROR is not passed on: after an incomplete
/// body it would say that the body is complete.
fn reset_reason(error: &(dyn Error + 'static)) -> Option<Reason> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<http2::Error>() {
            return error.reason().filter(|reason| *reason != Reason::NO_ERROR);
        }
        cause = error.source();
    }
    None
}
