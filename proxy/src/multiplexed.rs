//! The bytes of one stream of HTTP/2, for tunnels.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are handed to h2 at once.
const WRITE_MAX: usize = 16 * 1024;

/// A stream of HTTP/2 as bytes. What the peer may send more of is what was read here. Dropped before its end, it is reset.
pub(crate) struct Multiplexed {
    sent: SendStream<Bytes>,
    received: RecvStream,
    /// What came and was not read yet.
    rest: Bytes,
}

impl Multiplexed {
    pub(crate) fn new(sent: SendStream<Bytes>, received: RecvStream) -> Self {
        Self { sent, received, rest: Bytes::new() }
    }
}

impl AsyncRead for Multiplexed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.received.poll_data(cx)) {
                Some(Ok(data)) => self.rest = data,
                // The peer ends it in peace.
                Some(Err(error)) if matches!(error.reason(), Some(Reason::NO_ERROR | Reason::CANCEL)) => {
                    return Poll::Ready(Ok(()));
                }
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.rest.len().min(out.remaining());
        out.put_slice(&self.rest[..count]);
        self.rest.advance(count);
        // An error means that the stream is over, which reading on will tell.
        let _ = self.received.flow_control().release_capacity(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Multiplexed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.sent.reserve_capacity(bytes.len().min(WRITE_MAX));
        while self.sent.capacity() == 0 {
            match ready!(self.sent.poll_capacity(cx)) {
                Some(granted) => granted.map_err(broken)?,
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let count = self.sent.capacity().min(bytes.len()).min(WRITE_MAX);
        self.sent.send_data(Bytes::copy_from_slice(&bytes[..count]), false).map_err(broken)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.sent.send_data(Bytes::new(), true).map_err(broken))
    }
}

fn broken(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
    }
    io::Error::other(error)
}
