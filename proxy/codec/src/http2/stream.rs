//! The state of one stream (RFC 9113 5.1), without the reserved states: there are no pushes.
//!
//! ```text
//!                      idle             id >= `State::next_id`, or `unsent_request` is set
//!                        |
//!                        | HEADERS
//!                        v
//!                      open             neither `send` nor `recv` is `Closed`
//!                        |
//!       END_STREAM sent  |  END_STREAM received
//!             +----------+----------+
//!             v                     v
//!    half-closed (local)   half-closed (remote)
//!    `send` is `Closed`    `recv` is `Closed`
//!             |                     |
//!             | END_STREAM          | END_STREAM
//!             |  received           |  sent
//!             +----------+----------+
//!                        v
//!                     closed            both are `Closed`, or `error` is set
//! ```
//!
//! RST_STREAM in either direction, a GOAWAY that excludes the stream, and the end of the connection close it from any
//! state, and set `error`. A direction that is not closed is `AwaitingHead` until its final head (not 1xx) was sent or
//! received, then `Open`. A closed stream stays in `State::streams` until its handles are dropped; one that this side
//! has reset stays in `State::recently_reset`, for its frames in flight.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, StatusCode};

use super::error::Error;
use super::flow::{RecvWindow, SendWindow};
use super::limits::Limits;
use crate::limits::INTERIM_MAX;
use crate::tick::Tick;

/// Received parts of a body below this are merged while they wait, so that many small ones cost little memory.
const MERGE_BELOW: usize = 512;

/// Interim responses that are kept until they are read; more are dropped.
const INTERIM_PENDING_MAX: usize = 32;

/// The state of one direction of a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum HalfState {
    /// Its head was not received, or not sent.
    AwaitingHead,
    Open,
    Closed,
}

/// A stream. The module documentation says which fields encode which state.
pub(super) struct Stream {
    pub(super) opened: Tick,

    // Receiving.
    pub(super) recv: HalfState,
    /// Interim responses, if any have come.
    pub(super) interim: Option<Box<Interim>>,
    /// The head of a response, until it is read.
    pub(super) response: Option<(StatusCode, HeaderMap)>,
    received: VecDeque<Bytes>,
    pub(super) trailers: Option<HeaderMap>,
    /// What remains of `content-length`.
    content_left: Option<u64>,
    pub(super) recv_window: RecvWindow,
    pub(super) recv_waker: Option<Waker>,
    /// The receiving handle was dropped: data is discarded.
    pub(super) recv_dropped: bool,

    // Sending.
    pub(super) send: HalfState,
    /// A request that waits for SETTINGS_MAX_CONCURRENT_STREAMS, and its `content-length`.
    pub(super) unsent_request: Option<Box<(Parts, Option<u64>)>>,
    pub(super) pending_data: VecDeque<Bytes>,
    /// The end of the stream, to be sent after `pending_data`: with trailers, if there are any.
    pub(super) pending_end: Option<Option<HeaderMap>>,
    pub(super) send_window: SendWindow,
    pub(super) send_waker: Option<Waker>,
    /// It is in `State::send_queue`.
    pub(super) is_queued: bool,

    /// Why it ended early.
    pub(super) error: Option<Error>,
    /// Handles that exist.
    pub(super) handles: u8,
    /// The request is a HEAD: its response has no content (RFC 9110 9.3.2).
    pub(super) is_head_request: bool,
    _counted: Counted,
}

/// The interim (1xx) responses of a stream.
#[derive(Default)]
pub(super) struct Interim {
    /// How many have come.
    count: u32,
    /// Those that were not read.
    pub(super) pending: VecDeque<(StatusCode, HeaderMap)>,
}

/// Counts open streams: called with 1 for each stream that is opened, and with -1 when it is closed and its handles are
/// dropped.
pub type CountStreams = fn(i64);

/// Counts a stream until it is dropped.
struct Counted(CountStreams);

/// The content is not as long as `content-length` says.
#[derive(Debug)]
pub(super) struct WrongLength;

// === impl Interim ===

impl Interim {
    /// Keeps one, if fewer than [`INTERIM_PENDING_MAX`] wait. Returns whether more than [`INTERIM_MAX`] have come.
    pub(super) fn push(&mut self, status: StatusCode, headers: HeaderMap) -> bool {
        self.count += 1;
        if self.pending.len() < INTERIM_PENDING_MAX {
            self.pending.push_back((status, headers));
        }
        self.count > INTERIM_MAX
    }
}

// === impl Counted ===

impl Counted {
    fn new(count: CountStreams) -> Self {
        count(1);
        Self(count)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.0)(-1);
    }
}

// === impl Stream ===

impl Stream {
    pub(super) fn new(count: CountStreams, limits: &Limits, send_window: i32) -> Self {
        Self {
            opened: Tick::now(),
            recv: HalfState::AwaitingHead,
            interim: None,
            response: None,
            received: VecDeque::new(),
            trailers: None,
            content_left: None,
            recv_window: RecvWindow::new(limits.stream_window),
            recv_waker: None,
            recv_dropped: false,
            send: HalfState::AwaitingHead,
            unsent_request: None,
            pending_data: VecDeque::new(),
            pending_end: None,
            send_window: SendWindow::new(send_window),
            send_waker: None,
            is_queued: false,
            error: None,
            handles: 0,
            is_head_request: false,
            _counted: Counted::new(count),
        }
    }

    /// Whether the stream is closed (RFC 9113 5.1).
    pub(super) fn is_closed(&self) -> bool {
        self.error.is_some() || (self.recv == HalfState::Closed && self.send == HalfState::Closed)
    }

    /// Whether everything was received and read.
    pub(super) fn is_fully_read(&self) -> bool {
        self.recv == HalfState::Closed && self.received.is_empty() && self.trailers.is_none()
    }

    /// The head has come. `content`: its `content-length`.
    pub(super) fn open_recv(&mut self, content: Option<u64>) {
        self.recv = HalfState::Open;
        self.content_left = content;
    }

    /// Counts received content.
    pub(super) fn count_content(&mut self, bytes: usize) -> Result<(), WrongLength> {
        if let Some(left) = &mut self.content_left {
            *left = left.checked_sub(bytes as u64).ok_or(WrongLength)?;
        }
        Ok(())
    }

    pub(super) fn push_received(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        if data.len() < MERGE_BELOW
            && let Some(last) = self.received.back_mut().filter(|last| last.len() < MERGE_BELOW)
        {
            let mut joined = std::mem::take(last).try_into_mut().unwrap_or_else(|shared| BytesMut::from(&*shared));
            joined.extend_from_slice(&data);
            *last = joined.freeze();
            return;
        }
        self.received.push_back(data);
    }

    /// END_STREAM has come.
    pub(super) fn close_recv(&mut self, trailers: Option<HeaderMap>) -> Result<(), WrongLength> {
        if self.content_left.is_some_and(|left| left > 0) {
            return Err(WrongLength);
        }
        self.recv = HalfState::Closed;
        self.trailers = trailers;
        Ok(())
    }

    /// The next received part of the body.
    pub(super) fn pop_received(&mut self) -> Option<Bytes> {
        self.received.pop_front()
    }

    /// Whether received content waits to be read.
    pub(super) fn has_received(&self) -> bool {
        !self.received.is_empty()
    }

    /// Drops received content that was not read. Returns its length.
    pub(super) fn discard_received(&mut self) -> usize {
        self.received.drain(..).map(|data| data.len()).sum()
    }

    /// Whether anything waits to be sent.
    pub(super) fn has_pending(&self) -> bool {
        !self.pending_data.is_empty() || self.pending_end.is_some()
    }

    pub(super) fn wake(&mut self) {
        for waker in [&mut self.recv_waker, &mut self.send_waker] {
            if let Some(waker) = waker.take() {
                waker.wake();
            }
        }
    }
}

/// Registers the task to be woken.
pub(super) fn register<T>(slot: &mut Option<Waker>, cx: &Context<'_>) -> Poll<T> {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
    Poll::Pending
}
