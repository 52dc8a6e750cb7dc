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

impl<B> Pipe<B> {
    pub(crate) fn new(stream: SendStream, body: B, broken: Reason) -> Self {
        Self { stream, body, ended: false, broken }
    }
}

impl<B> Pipe<B>
where
    B: Body<Data = Bytes, Error = BodyError> + Unpin,
{
    /// Sends what there is. An error is the end of the stream, which the body that comes the other way tells as well.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), http2::Error>> {
        loop {
            ready!(self.stream.poll_sent(cx))?;
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                // To be woken when the peer resets the stream.
                return self.stream.poll_error(cx).map(Err);
            };
            match frame.map(|frame| frame.map(http_body::Frame::into_data)) {
                None => {
                    self.ended = true;
                    self.stream.send_data(Bytes::new(), true)?;
                }
                Some(Err(error)) => {
                    self.stream.reset(reason_of(&*error).unwrap_or(self.broken));
                    return Poll::Ready(Ok(()));
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

impl<B> Future for Pipe<B>
where
    B: Body<Data = Bytes, Error = BodyError> + Unpin,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_send(cx).map(|sent| {
            if let Err(error) = sent {
                tracing::debug!(%error, "the rest of a body has nowhere to go");
            }
        })
    }
}

/// The reason that a reset had, if it was one that broke a body off.
fn reason_of(error: &(dyn Error + 'static)) -> Option<Reason> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<http2::Error>() {
            return error.reason();
        }
        cause = error.source();
    }
    None
}
