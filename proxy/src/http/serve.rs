//! The server side of a connection: HTTP/1.1 or HTTP/2, request by request, drained when the process is.
//!
//! hyper reads and writes; what it leaves to others is done here. A connection on which nothing moves, a head that does not
//! come to its end, and a client that takes nothing of what is sent to it are closed ([`Watch`]). A connection that is
//! closed while its client still sends is first read for a moment, because a reset would take the answer away from the
//! client ([`Watched`]). A stream of HTTP/2 on which nothing moves is reset ([`StreamExecutor`]).

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};

use super::body::ResponseBody;
use super::gradual::Gradual;
use super::{CONNECTION_WINDOW, STREAM_WINDOW, head};
use crate::bootstrap::Timeouts;
use crate::sniff::Prefixed;
use crate::worker::Shared;

/// Bytes of a request's head, as sent in HTTP/1.1 and as decoded in HTTP/2.
const HEAD_BYTES_MAX: u32 = 64 * 1024;

/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 1000;

/// Bytes of a response that wait in one HTTP/2 stream for a client that does not take them. hyper's default, 400 KiB,
/// would let one connection hold 400 MB.
const SEND_BYTES_MAX: usize = 64 * 1024;

/// How long a connection that is being closed is read, so that its client gets the answer instead of a reset. Source:
/// nginx gives each read 5 s and all of them 30; here the answer is small and the client near.
const LINGER: Duration = Duration::from_secs(1);

/// Bytes that are read meanwhile. A client that sends more is reset.
const LINGER_BYTES_MAX: usize = 1024 * 1024;

/// What moves on a connection, noted by its stream and its requests. All of it happens on one thread, but a stream that may
/// be upgraded is to be `Send`; so these are atomics that nobody contends for. Moments are milliseconds since `begun`,
/// and 0 is none.
struct Watch {
    timeouts: Timeouts,
    begun: Instant,
    /// In HTTP/1.1 what comes between requests is a head.
    times_heads: bool,
    /// Requests that are not answered to their end.
    open: AtomicU32,
    /// When a byte last went either way.
    moved: AtomicU64,
    /// When a head began to arrive that is not complete.
    head: AtomicU64,
    /// Since when the client has taken nothing of what is to be written.
    stalled: AtomicU64,
    /// Since when the connection is being closed.
    closing: AtomicU64,
}

/// The client's stream, under watch.
pub(crate) struct Watched {
    stream: Prefixed,
    watch: Arc<Watch>,
    discarded: usize,
}

/// A request that is open until this is dropped.
pub(crate) struct Open(Arc<Watch>);

/// Runs the tasks of HTTP/2 streams on the worker's own thread, and ends those in which nothing happens for `idle`.
#[derive(Clone, Copy, Debug)]
struct StreamExecutor {
    idle: Duration,
}

/// Serves a connection until it closes, or until it is drained: open requests are finished, new ones are not taken.
pub(crate) async fn serve<F, R>(stream: Prefixed, http2: bool, shared: &Shared, handle: F)
where
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<ResponseBody>> + 'static,
{
    // The sniffer has seen the first bytes of a head. In HTTP/2 they were the preface, and a head may be long in coming.
    let watch = Arc::new(Watch::new(shared.timeouts, !http2));
    let service = service_fn(|mut request: Request<Incoming>| {
        let open = watch.open();
        head::unify(&mut request);
        let response = handle(request);
        let memory = shared.memory.clone();
        async move {
            let mut response = response.await;
            if !http2 && memory.is_scarce() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                // What is not kept open takes no memory. HTTP/2 has no such header; its requests are refused when it must be.
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            response.body_mut().open = Some(open);
            Ok::<_, Infallible>(response)
        }
    });
    let stream = Watched { stream, watch: watch.clone(), discarded: 0 };
    // Errors of a connection end that connection; what they mean for a request is noted by the request.
    if http2 {
        let mut connection = pin!(
            http2::Builder::new(StreamExecutor { idle: shared.timeouts.idle })
                .timer(TokioTimer::new())
                .max_concurrent_streams(STREAMS_MAX)
                .max_header_list_size(HEAD_BYTES_MAX)
                .max_send_buf_size(SEND_BYTES_MAX)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .serve_connection(TokioIo::new(Gradual::new(stream)), service)
        );
        tokio::select! {
            () = watch.until_overdue(connection.as_mut()) => return,
            () = shared.drain.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        watch.until_overdue(connection).await;
    } else {
        let mut connection = pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                // Heads are timed by the watch, which tells a head that has begun from a client that says nothing.
                .header_read_timeout(None::<Duration>)
                .max_headers(head::HEADERS_MAX)
                .max_buf_size(HEAD_BYTES_MAX as usize)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades()
        );
        tokio::select! {
            () = watch.until_overdue(connection.as_mut()) => return,
            () = shared.drain.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        watch.until_overdue(connection).await;
    }
}

// === impl Watch ===

impl Watch {
    fn new(timeouts: Timeouts, times_heads: bool) -> Self {
        Self {
            timeouts,
            begun: Instant::now(),
            times_heads,
            open: AtomicU32::new(0),
            moved: AtomicU64::new(1),
            head: AtomicU64::new(u64::from(times_heads)),
            stalled: AtomicU64::new(0),
            closing: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX) + 1
    }

    /// A head was read.
    fn open(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, Relaxed);
        self.head.store(0, Relaxed);
        Open(self.clone())
    }

    /// Bytes were read.
    fn read(&self) {
        let now = self.now();
        self.moved.store(now, Relaxed);
        if self.times_heads && self.open.load(Relaxed) == 0 && self.head.load(Relaxed) == 0 {
            self.head.store(now, Relaxed);
        }
    }

    /// When the connection has lasted too long as it is.
    fn deadline(&self) -> Instant {
        let after = |since: &AtomicU64, time: Duration| match since.load(Relaxed) {
            0 => None,
            since => Some(self.begun + Duration::from_millis(since) + time),
        };
        let Timeouts { head, idle, stall } = self.timeouts;
        let deadlines = [
            after(&self.closing, LINGER),
            after(&self.head, head),
            after(&self.stalled, stall),
            after(&self.moved, idle),
        ];
        deadlines.into_iter().flatten().min().unwrap_or(self.begun + idle)
    }

    /// Runs a connection to its end, or until it is overdue.
    async fn until_overdue<C: Future>(&self, mut connection: Pin<&mut C>) {
        let mut timer = pin!(sleep_until(self.deadline()));
        poll_fn(|cx| {
            if connection.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            // The timer may ring too early, never too late: most requests do not touch it.
            let mut deadline = self.deadline();
            if deadline < timer.deadline() {
                timer.as_mut().reset(deadline);
            }
            while timer.as_mut().poll(cx).is_ready() {
                deadline = self.deadline();
                if deadline <= Instant::now() {
                    return Poll::Ready(());
                }
                timer.as_mut().reset(deadline);
            }
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

// === impl Watched ===

impl Watched {
    /// The stream, HTTP no more.
    pub(crate) fn into_inner(self) -> Prefixed {
        self.stream
    }

    fn note_write(&self, written: &Poll<io::Result<usize>>) {
        let watch = &self.watch;
        match written {
            Poll::Ready(_) => {
                watch.moved.store(watch.now(), Relaxed);
                watch.stalled.store(0, Relaxed);
            }
            Poll::Pending if watch.stalled.load(Relaxed) == 0 => watch.stalled.store(watch.now(), Relaxed),
            Poll::Pending => {}
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, out);
        if out.filled().len() > before {
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
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Closes this side's half, and reads on until the client has closed the other. A socket that is closed while bytes
    /// wait in it sends a reset, and a reset may overtake the answer.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.watch.closing.load(Relaxed) == 0 {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.watch.stalled.store(0, Relaxed);
            self.watch.closing.store(self.watch.now(), Relaxed);
        }
        let mut space = [0; 4096];
        while self.discarded < LINGER_BYTES_MAX {
            let mut space = ReadBuf::new(&mut space);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut space));
            if read.is_err() || space.filled().is_empty() {
                break;
            }
            self.discarded += space.filled().len();
        }
        Poll::Ready(Ok(()))
    }
}

// === impl StreamExecutor ===

impl<F> Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, stream: F) {
        let idle = self.idle;
        tokio::task::spawn_local(async move {
            let mut stream = pin!(stream);
            let mut moved = Instant::now();
            let mut timer = pin!(sleep_until(moved + idle));
            poll_fn(|cx| {
                // Whatever wakes the stream is news of it, but for the timer.
                while timer.as_mut().poll(cx).is_ready() {
                    if moved.elapsed() >= idle {
                        return Poll::Ready(());
                    }
                    timer.as_mut().reset(moved + idle);
                }
                moved = Instant::now();
                stream.as_mut().poll(cx)
            })
            .await;
        });
    }
}
