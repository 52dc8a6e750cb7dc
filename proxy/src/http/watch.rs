//! Timeouts of a downstream connection.
//!
//! A connection is closed when it is idle, when a request head is incomplete, or when the client reads nothing of what
//! is sent to it for too long. Closing lingers: the proxy reads for a moment what the client still sends, because a TCP
//! reset would discard the response before the client reads it.

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
use weft_codec::Tick;
use weft_codec::read_buffer::with_read_buffer;

use crate::bootstrap::Timeouts;
use crate::changes::Changes;
use crate::memory::Memory;
use crate::sniff::Prefixed;

/// How long a closing connection is read, so that its client gets the response instead of a reset. There is no limit in
/// bytes: a client in a long upload would exceed it within milliseconds and see the reset only. Source: nginx's
/// `lingering_time`, which is longer; here the client is near.
const LINGER: Duration = Duration::from_secs(1);

/// TCP keepalive for a client that has closed its sending half and waits for a response: idle time and interval. If the
/// client has closed its socket completely, its kernel acknowledges probes for a minute (Linux `tcp_fin_timeout`) and
/// resets after that.
const KEEPALIVE_TIME: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// The activity of a connection, recorded by its stream and its requests, and the timeouts that follow from it. Moments
/// are milliseconds since `started`, plus 1; 0 is none.
pub(crate) struct ConnectionTimers {
    timeouts: Timeouts,
    started: Instant,
    started_tick: Tick,
    /// In HTTP/1.1, bytes between requests begin a head. In HTTP/2 the connection reports heads:
    /// [`Self::set_head_since`].
    http1: bool,
    /// Requests without a complete response.
    open_requests: Cell<u32>,
    /// When a byte was last read or written.
    active_at: Cell<u64>,
    /// When the incomplete head began to arrive.
    head_since: Cell<u64>,
    /// Since when writes have been blocked.
    stalled_since: Cell<u64>,
    /// Since when the connection is being closed.
    closing_since: Cell<u64>,
}

/// The client's stream; records its activity in the connection's timers.
pub(crate) struct TimedStream {
    stream: Prefixed,
    timers: Rc<ConnectionTimers>,
    memory: Arc<Memory>,
    /// A flush is blocked: TLS holds written bytes that the client has not read.
    flush_pending: bool,
}

/// Counts a request as open until it is dropped.
pub(crate) struct OpenRequest(Rc<ConnectionTimers>);

/// Why [`ConnectionTimers::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The connection completed.
    Done,
    /// A timeout expired.
    TimedOut,
}

// === impl ConnectionTimers ===

impl ConnectionTimers {
    /// `has_bytes`: the first bytes of a request were read already.
    pub(crate) fn new(timeouts: Timeouts, http1: bool, has_bytes: bool) -> Self {
        Self {
            timeouts,
            started: Instant::now(),
            started_tick: Tick::now(),
            http1,
            open_requests: Cell::new(0),
            active_at: Cell::new(1),
            head_since: Cell::new(u64::from(http1 && has_bytes)),
            stalled_since: Cell::new(0),
            closing_since: Cell::new(0),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started_tick.elapsed().as_millis()).unwrap_or(u64::MAX) + 1
    }

    /// A complete head was read.
    pub(crate) fn open_request(self: &Rc<Self>) -> OpenRequest {
        self.open_requests.set(self.open_requests.get() + 1);
        self.head_since.set(0);
        OpenRequest(self.clone())
    }

    /// Bytes were read.
    fn bytes_read(&self) {
        let now = self.now();
        self.active_at.set(now);
        self.head_started(now);
    }

    /// The first bytes of a head are there.
    fn head_started(&self, now: u64) {
        if self.http1 && self.open_requests.get() == 0 && self.head_since.get() == 0 {
            self.head_since.set(now);
        }
    }

    /// Sets since when something in HTTP/2 that is timed as a head is incomplete: preface, settings, header block,
    /// other frame.
    pub(crate) fn set_head_since(&self, started: Option<Instant>) {
        let since = |started: Instant| started.saturating_duration_since(self.started).as_millis();
        self.head_since.set(started.map_or(0, |started| u64::try_from(since(started)).unwrap_or(u64::MAX) + 1));
    }

    /// When the earliest timeout expires.
    pub(crate) fn deadline(&self) -> Instant {
        let after = |since: &Cell<u64>, time: Duration| match since.get() {
            0 => None,
            since => Some(self.started + Duration::from_millis(since) + time),
        };
        let Timeouts { head, idle, stall, upload: _ } = self.timeouts;
        let deadlines = [
            after(&self.closing_since, LINGER),
            after(&self.head_since, head),
            after(&self.stalled_since, stall),
            after(&self.active_at, idle),
        ];
        deadlines.into_iter().flatten().min().unwrap_or(self.started + idle)
    }

    /// Whether no request, head, blocked write or close is in progress.
    pub(crate) fn is_idle(&self) -> bool {
        let is_active =
            [&self.head_since, &self.stalled_since, &self.closing_since].iter().any(|since| since.get() != 0);
        !is_active && self.open_requests.get() == 0
    }

    /// Runs a connection until it completes or a timeout expires. Sets `draining` when the process shuts down. Polls the
    /// connection again at each of the `changes`.
    pub(crate) async fn run<C: Future>(
        &self,
        mut connection: Pin<&mut C>,
        drain: &CancellationToken,
        draining: &Cell<bool>,
        changes: Option<&Rc<Changes>>,
    ) -> Ended {
        let mut timer = pin!(sleep_until(self.deadline()));
        let mut drained = pin!(drain.cancelled());
        let (mut is_registered, mut _registration) = (false, None);
        poll_fn(|cx| {
            // Polled once to register the waker; afterwards `is_cancelled` is cheaper.
            if !is_registered {
                is_registered = true;
                _registration = changes.map(|changes| changes.register(cx.waker().clone()));
                draining.set(drained.as_mut().poll(cx).is_ready());
            } else if !draining.get() {
                draining.set(drain.is_cancelled());
            }
            if connection.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ended::Done);
            }
            let deadline = self.deadline();
            // The timer may fire early, never late: most requests do not reset it.
            if deadline < timer.deadline() {
                timer.as_mut().reset(deadline);
            }
            while timer.as_mut().poll(cx).is_ready() {
                if self.deadline() <= Instant::now() {
                    return Poll::Ready(Ended::TimedOut);
                }
                timer.as_mut().reset(self.deadline());
            }
            Poll::Pending
        })
        .await
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.open_requests.set(self.0.open_requests.get() - 1);
    }
}

// === impl TimedStream ===

impl TimedStream {
    pub(crate) fn new(stream: Prefixed, timers: Rc<ConnectionTimers>, memory: Arc<Memory>) -> Self {
        Self { stream, timers, memory, flush_pending: false }
    }

    /// The first bytes of the next head were read already.
    pub(crate) fn head_started(&self) {
        self.timers.head_started(self.timers.now());
    }

    /// Sends TLS close_notify: see [`Stream::poll_close_notify`](crate::stream::Stream::poll_close_notify).
    pub(crate) fn poll_close_notify(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.poll_close_notify(cx)
    }

    /// Whether the client has reset the connection. Reads nothing: after a reset, `getpeername` fails.
    pub(crate) fn is_reset(&self) -> bool {
        self.stream.socket().is_some_and(|socket| socket.peer_addr().is_err())
    }

    /// Enables TCP keepalive, so that the kernel resets the connection if the client is gone.
    pub(crate) fn enable_keepalive(&self) {
        if let Some(socket) = self.stream.socket() {
            let keepalive =
                TcpKeepalive::new().with_time(KEEPALIVE_TIME).with_interval(KEEPALIVE_INTERVAL).with_retries(3);
            // If this fails, a client that is gone is noticed when the response is written.
            let _ = SockRef::from(socket).set_tcp_keepalive(&keepalive);
        }
    }

    /// The stream, for another protocol.
    pub(crate) fn into_inner(self) -> Prefixed {
        self.stream
    }

    fn record_write(&self, written: &Poll<io::Result<usize>>) {
        let timers = &self.timers;
        match written {
            Poll::Ready(_) => {
                timers.active_at.set(timers.now());
                timers.stalled_since.set(0);
            }
            Poll::Pending => self.record_stall(),
        }
    }

    fn record_stall(&self) {
        if self.timers.stalled_since.get() == 0 {
            self.timers.stalled_since.set(self.timers.now());
        }
    }
}

impl AsyncRead for TimedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.memory.is_full() {
            self.memory.wait(cx.waker().clone());
            return Poll::Pending;
        }
        let before = out.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, out);
        let count = out.filled().len() - before;
        if count > 0 {
            self.memory.record_read(count);
            self.timers.bytes_read();
        }
        read
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.record_write(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.record_write(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if flushed.is_pending() {
            self.flush_pending = true;
            self.record_stall();
        } else if self.flush_pending {
            self.flush_pending = false;
            self.timers.stalled_since.set(0);
        }
        flushed
    }

    /// Closes the sending half, and reads until the client closes the other. A socket that is closed with unread bytes
    /// sends a reset, which may overtake the response.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.timers.closing_since.get() == 0 {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.timers.stalled_since.set(0);
            self.timers.closing_since.set(self.timers.now());
        }
        with_read_buffer(|scratch| {
            loop {
                let mut scratch = ReadBuf::new(scratch);
                let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut scratch));
                if read.is_err() || scratch.filled().is_empty() {
                    return Poll::Ready(Ok(()));
                }
            }
        })
    }
}
