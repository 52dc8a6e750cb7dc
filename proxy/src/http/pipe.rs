//! Sending a body in a stream of HTTP/2.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Body;

use super::body::BodyError;
use crate::http2::{self, Reason, SendStream};

/// Sends a body to its end, or until the peer wants no more of it. One part of it is kept for a peer that does not take it yet.
pub(crate) struct Pipe<B> {
    stream: SendStream,
    body: B,
    ended: bool,
    /// What the peer is told if the body breaks off, and nobody said why.
    broken: Reason,
}

/// Why a body was not sent to its end.
pub(crate) enum Broken {
    /// The peer takes no more, which what comes the other way tells as well.
    Stream(http2::Error),
    /// The body broke off; the stream was reset.
    Body(BodyError),
}

impl<B> Pipe<B> {
    pub(crate) fn new(stream: SendStream, body: B, broken: Reason) -> Self {
        Self { stream, body, ended: false, broken }
    }

    /// Of a stream that has ended with its head.
    pub(crate) fn after_end(stream: SendStream, body: B) -> Self {
        Self { stream, body, ended: true, broken: Reason::INTERNAL_ERROR }
    }

    pub(crate) fn body_mut(&mut self) -> &mut B {
        &mut self.body
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
    /// Sends what there is, and is done when all of it is on its way.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        loop {
            ready!(self.stream.poll_sent(cx))?;
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                // To be woken when the peer resets the stream.
                return self.stream.poll_error(cx).map(|error| Err(Broken::Stream(error)));
            };
            match frame.map(|frame| frame.map(http_body::Frame::into_data)) {
                None => {
                    self.ended = true;
                    self.stream.send_data(Bytes::new(), true)?;
                }
                Some(Err(error)) => {
                    self.stream.reset(reason_of(&*error).unwrap_or(self.broken));
                    return Poll::Ready(Err(Broken::Body(error)));
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

impl From<http2::Error> for Broken {
    fn from(error: http2::Error) -> Self {
        Self::Stream(error)
    }
}

/// The reason that a reset had, if it was one that broke a body off. NO_ERROR is none: behind an incomplete body it would say that
/// the body is complete.
fn reason_of(error: &(dyn Error + 'static)) -> Option<Reason> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<http2::Error>() {
            return error.reason().filter(|reason| *reason != Reason::NO_ERROR);
        }
        cause = error.source();
    }
    None
}
