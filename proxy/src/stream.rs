//! A connection as a byte stream: a plain socket, TLS, or one HTTP/2 stream. One enum for all, so that the code above
//! it is not generic. Only this module, those that make the other two kinds (`tls`, `upstream/endpoint`, `http/tunnel`)
//! and `tcp` (which splices plain sockets) know the difference.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::multiplexed::Multiplexed;

/// Size of a read by [`Stream::read_more`].
const READ_MORE_BYTES: usize = 2048;

/// A byte stream to a peer.
pub(crate) enum Stream {
    Plain(TcpStream),
    /// Boxed: large.
    Tls(Box<TlsStream<TcpStream>>),
    /// One stream of an HTTP/2 connection.
    Multiplexed(Box<Multiplexed>),
}

impl Stream {
    /// Reads more and appends it to `read`. Holds no buffer while it waits. Returns 0 at the end of the stream.
    pub(crate) async fn read_more(&mut self, read: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => {
                stream.readable().await?;
                read.reserve(READ_MORE_BYTES);
                stream.read_buf(read).await
            }
            // The socket may be readable without application data, for example in a handshake.
            Self::Tls(_) | Self::Multiplexed(_) => {
                poll_fn(|cx| {
                    let mut buffer = [0; READ_MORE_BYTES];
                    let mut buffer = ReadBuf::new(&mut buffer);
                    ready!(Pin::new(&mut *self).poll_read(cx, &mut buffer))?;
                    read.extend_from_slice(buffer.filled());
                    Poll::Ready(Ok(buffer.filled().len()))
                })
                .await
            }
        }
    }

    /// Waits until there is something to read, or the end of the stream.
    pub(crate) async fn readable(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.readable().await,
            Self::Tls(stream) => poll_fn(|cx| Pin::new(&mut **stream).poll_fill_buf(cx).map_ok(drop)).await,
            // Only downstream, whose bytes are read and not waited for.
            Self::Multiplexed(_) => Ok(()),
        }
    }

    /// Whether it is encrypted.
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Ends an idle connection cleanly: `close_notify` in TLS, END_STREAM in HTTP/2. A plain socket needs nothing
    /// before it is closed; in TLS, an end without `close_notify` counts as a truncated stream.
    pub(crate) fn poll_close_notify(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Plain(_) => Poll::Ready(()),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(cx).map(drop),
            Self::Multiplexed(stream) => Pin::new(&mut **stream).poll_shutdown(cx).map(drop),
        }
    }

    /// The socket below. None for an HTTP/2 stream, which shares its connection.
    pub(crate) fn socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(stream) => Some(stream),
            Self::Tls(stream) => Some(stream.get_ref().0),
            Self::Multiplexed(_) => None,
        }
    }

    /// Closes a connection so that the peer sees an error and not a clean end: a reset of the socket or stream. In
    /// TLS, closing without `close_notify` is enough.
    pub(crate) fn abort(self) {
        match self {
            Self::Plain(stream) => {
                let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            }
            Self::Tls(_) => {}
            Self::Multiplexed(stream) => stream.reset(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, out),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_read(cx, out),
            Self::Multiplexed(stream) => Pin::new(&mut **stream).poll_read(cx, out),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_write(cx, bytes),
            Self::Multiplexed(stream) => Pin::new(&mut **stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_flush(cx),
            Self::Multiplexed(stream) => Pin::new(&mut **stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
            Self::Multiplexed(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_write_vectored(cx, slices),
            Self::Multiplexed(stream) => Pin::new(&mut **stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Multiplexed(stream) => stream.is_write_vectored(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every connection holds one, and plain ones are most.
    #[test]
    fn stream_is_as_small_as_a_socket() {
        assert_eq!(size_of::<Stream>(), size_of::<TcpStream>());
    }
}
