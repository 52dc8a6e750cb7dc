//! Reading a connection of HTTP/2 bit by bit.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are read before the streams get their turn. h2 gives a connection up when too many small DATA frames wait to
/// be taken out of it (about 2,000, with [`super::CONNECTION_WINDOW`]): so many fit into twice this at their smallest.
const BURST: usize = 16 * 1024;

/// A stream that lets others go first after each [`BURST`]. Otherwise one task takes in all that has arrived before those
/// that forward it have run once, and a burst of small messages looks like an attack. (It still does where they wait because
/// the far side is slower.)
pub(crate) struct Gradual<S> {
    stream: S,
    read: usize,
    count: Rc<Cell<u64>>,
}

impl<S> Gradual<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, read: 0, count: Rc::default() }
    }

    /// How many bytes were read so far.
    pub(crate) fn count(&self) -> Rc<Cell<u64>> {
        self.count.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gradual<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read >= BURST {
            self.read = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = out.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, out));
        let came = out.filled().len() - before;
        self.read += came;
        self.count.set(self.count.get() + came as u64);
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gradual<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
