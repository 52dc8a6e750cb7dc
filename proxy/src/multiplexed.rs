//! One HTTP/2 stream as a byte stream, for tunnels (CONNECT).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use weft_codec::http2::{Reason, RecvStream, SendStream};

/// Bytes that one write hands over at most.
const WRITE_MAX: usize = 16 * 1024;

/// An HTTP/2 stream as a byte stream. Reading returns flow control window to the peer. Dropped before its end, the
/// stream is reset.
pub(crate) struct Multiplexed {
    sending: SendStream,
    receiving: RecvStream,
    /// Received and not read yet.
    unread: Bytes,
}

impl Multiplexed {
    pub(crate) fn new(sending: SendStream, receiving: RecvStream) -> Self {
        Self { sending, receiving, unread: Bytes::new() }
    }

    /// Resets the stream, as for a TCP reset on the other side of a tunnel (RFC 9113 8.5).
    pub(crate) fn reset(mut self) {
        self.sending.reset(Reason::CONNECT_ERROR);
    }
}

impl AsyncRead for Multiplexed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.receiving.poll_data(cx)) {
                Some(Ok(data)) => self.unread = data,
                // Whatever the code: only END_STREAM is a clean end (RFC 9113 8.5).
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.unread.len().min(out.remaining());
        out.put_slice(&self.unread[..count]);
        self.unread.advance(count);
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
