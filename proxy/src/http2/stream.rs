//! What is known of one stream.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, StatusCode};

use super::flow::{ReceiveWindow, SendWindow};
use super::{Error, Limits};
use crate::clock::Tick;
use crate::http::interim::INTERIM_MAX;
use crate::telemetry::alive::{Alive, Kind};

/// Parts of a body below this are put together while they wait, so that a burst of small ones costs little memory.
const SMALL: usize = 512;

/// Responses before the response that wait to be taken. They wait for no longer than it takes to come to it.
const WAITING_MAX: usize = 32;

/// One direction of a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Direction {
    /// Its head is to come.
    Waiting,
    Open,
    Ended,
}

pub(super) struct Stream {
    pub(super) opened: Tick,

    // What comes.
    pub(super) receiving: Direction,
    /// Responses before the response, if there were any.
    pub(super) interim: Option<Box<Interim>>,
    /// The head of a response, until it is taken.
    pub(super) response: Option<(StatusCode, HeaderMap)>,
    received: VecDeque<Bytes>,
    pub(super) trailers: Option<HeaderMap>,
    /// What is to come by what its head says.
    content_left: Option<u64>,
    pub(super) receive: ReceiveWindow,
    pub(super) receiver: Option<Waker>,
    /// Nobody takes what comes.
    pub(super) is_deaf: bool,

    // What goes.
    pub(super) sending: Direction,
    /// The head of a request that is to be sent when the peer takes one more, and the length of its body.
    pub(super) request: Option<Box<(Parts, Option<u64>)>>,
    pub(super) pending: VecDeque<Bytes>,
    /// What is behind that ends the stream: trailers, if there are any.
    pub(super) end: Option<Option<HeaderMap>>,
    pub(super) send: SendWindow,
    pub(super) sender: Option<Waker>,
    /// It is in the queue of those that can send.
    pub(super) is_queued: bool,

    /// Why it is over.
    pub(super) error: Option<Error>,
    /// Halves that somebody holds.
    pub(super) halves: u8,
    /// No content comes with the response (RFC 9110 9.3.2).
    pub(super) is_head: bool,
    _alive: Alive,
}

/// Responses before a response.
#[derive(Default)]
pub(super) struct Interim {
    /// How many have come.
    count: u32,
    /// Those that were not taken yet.
    pub(super) waiting: VecDeque<(StatusCode, HeaderMap)>,
}

/// Content that the head did not speak of.
#[derive(Debug)]
pub(super) struct WrongLength;

// === impl Interim ===

impl Interim {
    /// Keeps one more, if few wait. Whether there are too many of them.
    pub(super) fn push(&mut self, status: StatusCode, headers: HeaderMap) -> bool {
        self.count += 1;
        if self.waiting.len() < WAITING_MAX {
            self.waiting.push_back((status, headers));
        }
        self.count > INTERIM_MAX
    }
}

// === impl Stream ===

impl Stream {
    pub(super) fn new(kind: Kind, limits: &Limits, send_window: i32) -> Self {
        Self {
            opened: Tick::now(),
            receiving: Direction::Waiting,
            interim: None,
            response: None,
            received: VecDeque::new(),
            trailers: None,
            content_left: None,
            receive: ReceiveWindow::new(limits.stream_window),
            receiver: None,
            is_deaf: false,
            sending: Direction::Waiting,
            request: None,
            pending: VecDeque::new(),
            end: None,
            send: SendWindow::new(send_window),
            sender: None,
            is_queued: false,
            error: None,
            halves: 0,
            is_head: false,
            _alive: Alive::new(kind),
        }
    }

    /// Nothing more goes either way.
    pub(super) fn is_closed(&self) -> bool {
        self.error.is_some() || (self.receiving == Direction::Ended && self.sending == Direction::Ended)
    }

    /// Nothing more of it is to be taken.
    pub(super) fn has_been_taken(&self) -> bool {
        self.receiving == Direction::Ended && self.received.is_empty() && self.trailers.is_none()
    }

    /// The head has come.
    pub(super) fn begin(&mut self, content: Option<u64>) {
        self.receiving = Direction::Open;
        self.content_left = content;
    }

    /// So much content has come.
    pub(super) fn count(&mut self, octets: usize) -> Result<(), WrongLength> {
        if let Some(left) = &mut self.content_left {
            *left = left.checked_sub(octets as u64).ok_or(WrongLength)?;
        }
        Ok(())
    }

    pub(super) fn store(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        if data.len() < SMALL
            && let Some(last) = self.received.back_mut().filter(|last| last.len() < SMALL)
        {
            let mut joined = std::mem::take(last).try_into_mut().unwrap_or_else(|shared| BytesMut::from(&*shared));
            joined.extend_from_slice(&data);
            *last = joined.freeze();
            return;
        }
        self.received.push_back(data);
    }

    /// The last of it has come.
    pub(super) fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), WrongLength> {
        if self.content_left.is_some_and(|left| left > 0) {
            return Err(WrongLength);
        }
        self.receiving = Direction::Ended;
        self.trailers = trailers;
        Ok(())
    }

    /// The next part of what has come, in front of trailers.
    pub(super) fn take(&mut self) -> Option<Bytes> {
        self.received.pop_front()
    }

    /// Whether content has come that was not taken.
    pub(super) fn has_content(&self) -> bool {
        !self.received.is_empty()
    }

    /// Octets that have come and nobody took, which nobody will.
    pub(super) fn discard(&mut self) -> usize {
        self.received.drain(..).map(|data| data.len()).sum()
    }

    /// Whether something waits to be sent.
    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty() || self.end.is_some()
    }

    pub(super) fn wake(&mut self) {
        for waker in [&mut self.receiver, &mut self.sender] {
            if let Some(waker) = waker.take() {
                waker.wake();
            }
        }
    }
}

/// To be woken.
pub(super) fn wait<T>(place: &mut Option<Waker>, cx: &Context<'_>) -> Poll<T> {
    match place {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *place = Some(cx.waker().clone()),
    }
    Poll::Pending
}
