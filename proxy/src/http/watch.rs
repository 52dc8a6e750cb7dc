//! What moves on a connection from downstream, and when it has lasted too long as it is.
//!
//! A connection on which nothing moves, a head that does not come to its end, and a client that takes nothing of what is
//! sent to it are closed. A connection that is closed while its client still sends is first read for a moment, because a
//! reset would take the answer away from the client.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::bootstrap::Timeouts;
use crate::clock::Tick;
use crate::memory::Memory;
use crate::sniff::Prefixed;
use crate::space;

/// How long a connection that is being closed is read, so that its client gets the response instead of a reset. There is no bound
/// in bytes: a client in the middle of a long upload fills any such bound within milliseconds, and would see the reset only.
/// Source: nginx (`lingering_time`), which waits longer; here the client is near.
const LINGER: Duration = Duration::from_secs(1);

/// After how long, and how often, the kernel asks a client that has closed its sending half and waits for an answer. Linux answers
/// for a socket that is closed altogether for a minute (`tcp_fin_timeout`), and with a reset afterwards.
const ASK_AFTER: Duration = Duration::from_secs(30);
const ASK_AGAIN: Duration = Duration::from_secs(15);

/// What moves on a connection, noted by its stream and its requests. Moments are milliseconds since `begun`, and 0 is none.
pub(crate) struct Watch {
    timeouts: Timeouts,
    begun: Instant,
    begun_tick: Tick,
    /// In HTTP/1.1 what comes between requests is a head. In HTTP/2 the connection says when one is to come: [`Self::note_head`].
    http1: bool,
    /// Requests that are not answered to their end.
    open: Cell<u32>,
    /// When a byte last went either way.
    moved: Cell<u64>,
    /// When a head began to arrive that is not complete.
    head: Cell<u64>,
    /// Since when the client has taken nothing of what is to be written.
    stalled: Cell<u64>,
    /// Since when the connection is being closed.
    closing: Cell<u64>,
}

/// The client's stream, under watch.
pub(crate) struct Watched {
    stream: Prefixed,
    watch: Rc<Watch>,
    memory: Arc<Memory>,
    /// What was accepted of writes waits for the client, in TLS.
    waiting: bool,
}

/// A request that is open until this is dropped.
pub(crate) struct Open(Rc<Watch>);

/// Why a connection is not looked after any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// It is over.
    Done,
    /// It has lasted too long as it is.
    Overdue,
}

// === impl Watch ===

impl Watch {
    /// `begun`: something of a first request has come.
    pub(crate) fn new(timeouts: Timeouts, http1: bool, begun: bool) -> Self {
        Self {
            timeouts,
            begun: Instant::now(),
            begun_tick: Tick::now(),
            http1,
            open: Cell::new(0),
            moved: Cell::new(1),
            head: Cell::new(u64::from(http1 && begun)),
            stalled: Cell::new(0),
            closing: Cell::new(0),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun_tick.elapsed().as_millis()).unwrap_or(u64::MAX) + 1
    }

    /// A head was read.
    pub(crate) fn open(self: &Rc<Self>) -> Open {
        self.open.set(self.open.get() + 1);
        self.head.set(0);
        Open(self.clone())
    }

    /// Bytes were read.
    fn read(&self) {
        let now = self.now();
        self.moved.set(now);
        self.begin_head(now);
    }

    /// Something of a head is here.
    fn begin_head(&self, now: u64) {
        if self.http1 && self.open.get() == 0 && self.head.get() == 0 {
            self.head.set(now);
        }
    }

    /// Since when something is to come in HTTP/2 that is timed as a head.
    pub(crate) fn note_head(&self, begun: Option<Instant>) {
        let since = |begun: Instant| begun.saturating_duration_since(self.begun).as_millis();
        self.head.set(begun.map_or(0, |begun| u64::try_from(since(begun)).unwrap_or(u64::MAX) + 1));
    }

    /// When the connection has lasted too long as it is.
    pub(crate) fn deadline(&self) -> Instant {
        let after = |since: &Cell<u64>, time: Duration| match since.get() {
            0 => None,
            since => Some(self.begun + Duration::from_millis(since) + time),
        };
        let Timeouts { head, idle, stall, upload: _ } = self.timeouts;
        let deadlines = [
            after(&self.closing, LINGER),
            after(&self.head, head),
            after(&self.stalled, stall),
            after(&self.moved, idle),
        ];
        deadlines.into_iter().flatten().min().unwrap_or(self.begun + idle)
    }

    /// Whether the client is answered and silent: nothing is under way.
    pub(crate) fn is_at_rest(&self) -> bool {
        let under_way = [&self.head, &self.stalled, &self.closing].iter().any(|since| since.get() != 0);
        !under_way && self.open.get() == 0
    }

    /// Runs a connection until it is over or overdue. When the process is asked to stop, the connection is told by `leaves`.
    pub(crate) async fn look_after<C: Future>(
        &self,
        mut connection: Pin<&mut C>,
        drain: &CancellationToken,
        leaves: &Cell<bool>,
    ) -> Left {
        let mut timer = pin!(sleep_until(self.deadline()));
        let mut drained = pin!(drain.cancelled());
        let mut is_heard = false;
        poll_fn(|cx| {
            // It is polled once, to wake this task; to ask whether it did costs less than to poll it each time.
            if !is_heard {
                is_heard = true;
                leaves.set(drained.as_mut().poll(cx).is_ready());
            } else if !leaves.get() {
                leaves.set(drain.is_cancelled());
            }
            if connection.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Left::Done);
            }
            let deadline = self.deadline();
            // The timer may ring too early, never too late: most requests do not touch it.
            if deadline < timer.deadline() {
                timer.as_mut().reset(deadline);
            }
            while timer.as_mut().poll(cx).is_ready() {
                if self.deadline() <= Instant::now() {
                    return Poll::Ready(Left::Overdue);
                }
                timer.as_mut().reset(self.deadline());
            }
            Poll::Pending
        })
        .await
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
    }
}

// === impl Watched ===

impl Watched {
    pub(crate) fn new(stream: Prefixed, watch: Rc<Watch>, memory: Arc<Memory>) -> Self {
        Self { stream, watch, memory, waiting: false }
    }

    /// Notes that something of the next head is here already.
    pub(crate) fn begin_head(&self) {
        self.watch.begin_head(self.watch.now());
    }

    /// See [`Stream::poll_farewell`](crate::stream::Stream::poll_farewell).
    pub(crate) fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.poll_farewell(cx)
    }

    /// Whether the client has reset the connection. Nothing is read: the kernel knows no peer of such a socket any more.
    pub(crate) fn is_reset(&self) -> bool {
        self.stream.socket().is_some_and(|socket| socket.peer_addr().is_err())
    }

    /// Has the kernel ask a client that sends nothing more whether it is there, and reset the connection if it is not.
    pub(crate) fn keep_asking(&self) {
        if let Some(socket) = self.stream.socket() {
            let keepalive = TcpKeepalive::new().with_time(ASK_AFTER).with_interval(ASK_AGAIN).with_retries(3);
            // Without it the client is noticed to be gone when something is written to it.
            let _ = SockRef::from(socket).set_tcp_keepalive(&keepalive);
        }
    }

    /// The stream, HTTP no more.
    pub(crate) fn into_inner(self) -> Prefixed {
        self.stream
    }

    fn note_write(&self, written: &Poll<io::Result<usize>>) {
        let watch = &self.watch;
        match written {
            Poll::Ready(_) => {
                watch.moved.set(watch.now());
                watch.stalled.set(0);
            }
            Poll::Pending => self.note_stall(),
        }
    }

    fn note_stall(&self) {
        if self.watch.stalled.get() == 0 {
            self.watch.stalled.set(self.watch.now());
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.memory.is_full() {
            self.memory.wait(cx.waker().clone());
            return Poll::Pending;
        }
        let before = out.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, out);
        let came = out.filled().len() - before;
        if came > 0 {
            self.memory.note_read(came);
            self.watch.read();
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note_write(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.note_write(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if flushed.is_pending() {
            self.waiting = true;
            self.note_stall();
        } else if self.waiting {
            self.waiting = false;
            self.watch.stalled.set(0);
        }
        flushed
    }

    /// Closes this side's half, and reads on until the client has closed the other. A socket that is closed while bytes
    /// wait in it sends a reset, and a reset may overtake the answer.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.watch.closing.get() == 0 {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.watch.stalled.set(0);
            self.watch.closing.set(self.watch.now());
        }
        space::lend(|space| {
            loop {
                let mut space = ReadBuf::new(space);
                let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut space));
                if read.is_err() || space.filled().is_empty() {
                    return Poll::Ready(Ok(()));
                }
            }
        })
    }
}
