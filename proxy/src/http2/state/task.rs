//! What a connection's task does beside taking frames.

use std::io;
use std::task::{Context, Poll};

use http::Request;
use tokio::time::Instant;

use super::super::frame::{self, PAYLOAD_MAX};
use super::super::stream::{Direction, Stream, wait};
use super::super::{Error, Reason, TooLarge};
use super::{ALIVE, FAREWELL, Leaving, OUTPUT_MAX, OUTPUT_STOP, State};

/// What became of requests that waited when their connection ended.
const UNSENT: &str = "the connection ended before the request was sent";

// === impl State ===

impl State {
    /// The task runs, and is to be woken for more.
    pub(in crate::http2) fn run(&mut self, cx: &Context<'_>) {
        self.is_woken = false;
        let _: Poll<()> = wait(&mut self.waker, cx);
    }

    /// Whether nothing more is to be read until something was written.
    pub(in crate::http2) fn is_full(&self) -> bool {
        self.output.len() >= OUTPUT_STOP
    }

    /// Nothing is left to be done but to write what is there.
    pub(in crate::http2) fn is_done(&self) -> bool {
        let leaves = self.leaving == Leaving::Final || self.is_abandoned;
        self.error.is_some() || (leaves && self.open == 0 && self.waiting.is_empty())
    }

    /// A request that came, and that nobody took back since.
    pub(in crate::http2) fn accept(&mut self) -> Option<(u32, Result<Request<()>, TooLarge>)> {
        while let Some((id, request)) = self.accepted.pop_front() {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            if stream.error.is_some() {
                self.remove(id);
                continue;
            }
            stream.halves = 2;
            return Some((id, request));
        }
        None
    }

    /// Whether some stream can send.
    pub(in crate::http2) fn has_more(&self) -> bool {
        self.send.room() > 0 && !self.ready.is_empty()
    }

    /// Puts what streams have to send behind what is to be written, as far as it may be sent.
    pub(in crate::http2) fn fill(&mut self) {
        while self.output.len() < OUTPUT_MAX
            && let Some(id) = self.ready.pop_front()
        {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            stream.is_queued = false;
            if stream.error.is_some() {
                continue;
            }
            let room = stream.send.room().min(self.send.room()).min(PAYLOAD_MAX);
            let Some(data) = stream.pending.front_mut() else { continue };
            let part = data.split_to(room.min(data.len()));
            if part.is_empty() && !data.is_empty() {
                if stream.send.room() > 0 {
                    // All wait for the connection.
                    stream.is_queued = true;
                    self.ready.push_front(id);
                    return;
                }
                continue;
            }
            if data.is_empty() {
                stream.pending.pop_front();
            }
            let is_last = stream.pending.is_empty() && matches!(stream.end, Some(None));
            if is_last {
                stream.end = None;
            }
            let (has_more, has_trailers) = (!stream.pending.is_empty(), stream.end.is_some());
            if !has_more
                && !has_trailers
                && let Some(sender) = stream.sender.take()
            {
                sender.wake();
            }
            self.put_data(id, part, is_last);
            if has_more {
                self.queue(id);
            } else if has_trailers {
                self.finish_sending(id);
            }
        }
    }

    /// Whether requests wait for a peer that takes none.
    pub(in crate::http2) fn takes_none(&self) -> bool {
        self.is_settled && self.peer_streams == 0 && !self.waiting.is_empty()
    }

    /// Ends the wait of requests for a peer that takes none: they may go onto another connection. This one is for the streams
    /// that are open on it.
    pub(in crate::http2) fn turn_away(&mut self) {
        self.turns_away = true;
        while let Some(id) = self.waiting.pop_front() {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.error = Some(Error::Unsent("the server takes no requests on this connection"));
                self.close(id);
            }
        }
    }

    /// Since when something is to come that is timed as a head is: settings, or the rest of a header block.
    pub(in crate::http2) fn unfinished(&self, begun: Option<Instant>) -> Option<Instant> {
        if self.is_settled { self.block.as_ref().map(|block| block.begun) } else { begun }
    }

    /// Ends every stream.
    pub(in crate::http2) fn fail(&mut self, error: Error) {
        self.accepted.clear();
        self.waiting.clear();
        self.open = 0;
        self.streams.retain(|_, stream| {
            if stream.request.take().is_some() {
                stream.error = Some(Error::Unsent(UNSENT));
            } else if !stream.is_closed() {
                stream.error = Some(error.clone());
            }
            stream.pending.clear();
            stream.end = None;
            stream.wake();
            stream.halves > 0
        });
        self.error = Some(error);
    }

    /// The peer sends nothing more. Streams that wait for nothing from it go on: it may have closed its sending half alone. All
    /// others are over, and none is opened any more.
    pub(in crate::http2) fn end_input(&mut self) {
        let error = Error::Closed(io::ErrorKind::UnexpectedEof);
        self.end_streams(&error, |stream| stream.receiving != Direction::Ended);
        self.waiting.clear();
        if self.open > 0 {
            self.put_farewell(self.last(), Reason::NO_ERROR);
        }
        self.leaving = Leaving::Final;
    }

    /// After the peer's end: what waits for a window waits in vain.
    pub(in crate::http2) fn fail_stuck(&mut self) {
        let room = self.send.room();
        let error = Error::Closed(io::ErrorKind::UnexpectedEof);
        self.end_streams(&error, |stream| !stream.pending.is_empty() && room.min(stream.send.room()) == 0);
    }

    /// Ends those of the open streams.
    fn end_streams(&mut self, error: &Error, is_over: impl Fn(&Stream) -> bool) {
        let over: Vec<u32> = self
            .streams
            .iter()
            .filter(|(_, stream)| !stream.is_closed() && (stream.request.is_some() || is_over(stream)))
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.error = Some(if stream.request.is_some() { Error::Unsent(UNSENT) } else { error.clone() });
                self.close(id);
            }
        }
    }

    /// Says once more that nothing is to come, where that was said.
    pub(in crate::http2) fn say_goodbye_again(&mut self) {
        self.put_farewell(self.last(), Reason::NO_ERROR);
    }

    /// Says that nothing more is to come, where all that was to come has come. Nothing is said after that.
    pub(in crate::http2) fn end(&mut self) {
        self.say_goodbye();
        if self.error.is_none() {
            self.fail(Error::Closed(io::ErrorKind::NotConnected));
        }
    }

    /// Says why the connection ends, and ends it.
    pub(in crate::http2) fn give_up(&mut self, reason: Reason) {
        self.put_farewell(self.last(), reason);
        self.fail(Error::Broken(reason));
    }

    /// Says that nothing more is to come, unless that was said.
    pub(in crate::http2) fn say_goodbye(&mut self) {
        if self.error.is_none() && self.leaving != Leaving::Final {
            self.leaving = Leaving::Final;
            self.put_farewell(self.last(), Reason::NO_ERROR);
        }
    }

    /// Tells a client to open no more streams, and waits for those that it has opened by then.
    pub(in crate::http2) fn announce_leave(&mut self) {
        if self.leaving == Leaving::No {
            self.leaving = Leaving::Announced;
            self.put_farewell(0x7fff_ffff, Reason::NO_ERROR);
            self.put(frame::PING, 0, 0, FAREWELL);
        }
    }

    pub(in crate::http2) fn ping(&mut self) {
        self.put(frame::PING, 0, 0, ALIVE);
    }

    fn put_farewell(&mut self, last: u32, reason: Reason) {
        let mut payload = [0; 8];
        payload[..4].copy_from_slice(&last.to_be_bytes());
        payload[4..].copy_from_slice(&reason.0.to_be_bytes());
        self.put(frame::GOAWAY, 0, 0, &payload);
    }
}
