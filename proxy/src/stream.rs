//! A connection's bytes: as they are on the wire, as they come out of TLS, or of one stream of HTTP/2. One type for all, so
//! that nothing above it is written twice; what knows the difference is here, in `tls` and `http/tunnel`, which make the other
//! kinds, and in `tcp`, which splices the first.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::multiplexed::Multiplexed;

/// Bytes that [`Stream::more`] reads at once.
const MORE: usize = 2048;

/// A connection.
pub(crate) enum Stream {
    Plain(TcpStream),
    /// In a box, because most of what it is made of is TLS's.
    Tls(Box<TlsStream<TcpStream>>),
    /// One stream of an HTTP/2 connection.
    Multiplexed(Box<Multiplexed>),
}

impl Stream {
    /// Reads some of what comes next, behind what is in `read` already. Nothing is held for a peer that is silent. 0: it
    /// has ended.
    pub(crate) async fn more(&mut self, read: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => {
                stream.readable().await?;
                read.reserve(MORE);
                stream.read_buf(read).await
            }
            // That something has come does not say that it is data.
            Self::Tls(_) | Self::Multiplexed(_) => {
                poll_fn(|cx| {
                    let mut space = [0; MORE];
                    let mut space = ReadBuf::new(&mut space);
                    ready!(Pin::new(&mut *self).poll_read(cx, &mut space))?;
                    read.extend_from_slice(space.filled());
                    Poll::Ready(Ok(space.filled().len()))
                })
                .await
            }
        }
    }

    /// Ends a connection on which nothing is under way. A socket says so when it is closed; in TLS, what ends without a
    /// word was cut short.
    pub(crate) fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Plain(_) => Poll::Ready(()),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(cx).map(drop),
            Self::Multiplexed(stream) => Pin::new(&mut **stream).poll_shutdown(cx).map(drop),
        }
    }

    /// The socket below. None: that of a connection of HTTP/2, which is not this stream's alone.
    pub(crate) fn socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(stream) => Some(stream),
            Self::Tls(stream) => Some(stream.get_ref().0),
            Self::Multiplexed(_) => None,
        }
    }

    /// Closes a connection so that it does not look as if it had ended. In TLS, not to say that it has ended is enough.
    pub(crate) fn cut(self) {
        match self {
            Self::Plain(stream) => {
                let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            }
            Self::Tls(_) => {}
            Self::Multiplexed(stream) => stream.cut(),
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
