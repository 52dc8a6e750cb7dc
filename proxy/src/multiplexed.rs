//! The bytes of one stream of HTTP/2, for tunnels.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http2::{Reason, RecvStream, SendStream};

/// Bytes that are handed over at once.
const WRITE_MAX: usize = 16 * 1024;

/// A stream of HTTP/2 as bytes. What the peer may send more of is what was read here. Dropped before its end, it is reset.
pub(crate) struct Multiplexed {
    sending: SendStream,
    receiving: RecvStream,
    /// What came and was not read yet.
    rest: Bytes,
}

impl Multiplexed {
    pub(crate) fn new(sending: SendStream, receiving: RecvStream) -> Self {
        Self { sending, receiving, rest: Bytes::new() }
    }

    /// Resets the stream, as a reset of TCP on the other side of a tunnel does (RFC 9113 8.5).
    pub(crate) fn cut(mut self) {
        self.sending.reset(Reason::CONNECT_ERROR);
    }
}

impl AsyncRead for Multiplexed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.receiving.poll_data(cx)) {
                Some(Ok(data)) => self.rest = data,
                // Whatever the code: the end is END_STREAM, and all else is a cut (RFC 9113 8.5).
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.rest.len().min(out.remaining());
        out.put_slice(&self.rest[..count]);
        self.rest.advance(count);
        self.receiving.release_capacity(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Multiplexed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(self.sending.poll_sent(cx))?;
        let count = bytes.len().min(WRITE_MAX);
        self.sending.send_data(Bytes::copy_from_slice(&bytes[..count]), false)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.sending.send_data(Bytes::new(), true).map_err(io::Error::from))
    }
}
