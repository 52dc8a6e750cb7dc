//! Reading a connection of HTTP/2 bit by bit, and writing a head with the body that follows it.

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
///
/// Where a body is said to follow, others go first before a write as well. h2 wakes a connection as soon as there is a head,
/// before it can take anything of the body; so each would cost a system call and a segment.
pub(crate) struct Gradual<S> {
    stream: S,
    read: usize,
    body_follows: Rc<Cell<bool>>,
}

impl<S> Gradual<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, read: 0, body_follows: Rc::default() }
    }

    /// Set when a request with a body is about to be written; cleared when others have had their turn.
    pub(crate) fn body_follows(&self) -> Rc<Cell<bool>> {
        self.body_follows.clone()
    }

    fn gather(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.body_follows.take() {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
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
        self.read += out.filled().len() - before;
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gradual<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.gather(cx));
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.gather(cx));
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
