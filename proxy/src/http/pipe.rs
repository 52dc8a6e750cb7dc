//! Sending a body in a stream of HTTP/2.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body;

use super::body::BodyError;

/// Bytes of a body that are handed over without asking whether the peer takes them yet. Most messages are shorter, and what
/// is there already goes out in one write with its head. What waits in a stream is bounded all the same: a longer body is
/// handed over as the peer takes it.
const EAGER: usize = 16 * 1024;

/// Sends a body to its end, or until the peer wants no more of it.
pub(crate) struct Pipe<B> {
    stream: SendStream<Bytes>,
    body: B,
    eager: usize,
    /// Waits for the peer to take more; whether it is the last.
    held: Option<(Bytes, bool)>,
    /// What the peer is told if the body breaks off, and nobody said why.
    broken: Reason,
}

impl<B> Pipe<B> {
    pub(crate) fn new(stream: SendStream<Bytes>, body: B, broken: Reason) -> Self {
        Self { stream, body, eager: EAGER, held: None, broken }
    }
}

impl<B> Pipe<B>
where
    B: Body<Data = Bytes, Error = BodyError> + Unpin,
{
    /// Sends what there is. An error is the end of the stream, which the body that comes the other way tells as well.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        loop {
            if self.held.is_some() && self.stream.capacity() == 0 {
                match ready!(self.stream.poll_capacity(cx)) {
                    Some(granted) => granted?,
                    None => return Poll::Ready(Ok(())),
                };
                continue;
            }
            if let Some((data, last)) = self.held.take() {
                self.stream.send_data(data, last)?;
                if last {
                    return Poll::Ready(Ok(()));
                }
            }
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                // To be woken when the peer resets the stream.
                ready!(self.stream.poll_reset(cx))?;
                return Poll::Ready(Ok(()));
            };
            match frame.map(|frame| frame.map(http_body::Frame::into_data)) {
                None => {
                    self.stream.send_data(Bytes::new(), true)?;
                    return Poll::Ready(Ok(()));
                }
                Some(Err(error)) => {
                    self.stream.send_reset(reason_of(&*error).unwrap_or(self.broken));
                    return Poll::Ready(Ok(()));
                }
                Some(Ok(Ok(data))) => {
                    let last = self.body.is_end_stream();
                    if let Some(eager) = self.eager.checked_sub(data.len()) {
                        self.eager = eager;
                        self.stream.send_data(data, last)?;
                        if last {
                            return Poll::Ready(Ok(()));
                        }
                    } else {
                        // One byte is enough to be told when there is room; h2 asks for the rest when it has it.
                        self.stream.reserve_capacity(1);
                        self.held = Some((data, last));
                    }
                }
                Some(Ok(Err(frame))) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        self.stream.reserve_capacity(0);
                        self.stream.send_trailers(trailers)?;
                        return Poll::Ready(Ok(()));
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
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.reason();
        }
        cause = error.source();
    }
    None
}
