//! All that both ends of a connection have said, and what becomes of its streams.
//!
//! - [`frames`]: what each frame means.
//! - [`calls`]: what is asked by those that hold halves of streams, or open them.
//! - [`task`]: what the connection's task does beside.

mod calls;
mod frames;
mod task;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::task::Waker;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Request;
use tokio::time::Instant;

use super::flow::{ReceiveWindow, SendWindow, WINDOW};
use super::frame::{self, Head};
use super::head;
use super::output::Output;
use super::stream::{Direction, Stream};
use super::{Error, Limits, Reason, TooLarge};
use crate::clock::Tick;
use crate::hpack::decode::Decoder;
use crate::hpack::encode::Encoder;

/// Octets that wait to be written before no more content is put behind them.
const OUTPUT_MAX: usize = 64 * 1024;

/// Octets that wait to be written before nothing more is read from a peer that makes us say so much.
const OUTPUT_STOP: usize = 256 * 1024;

/// Streams that a peer makes us reset, or resets itself so soon that it cannot have wanted an answer, before one comes to its
/// end; each that does gives one back. Source: what Envoy bears before it looks at their share
/// (`overload.premature_reset_total_stream_count`).
const PATIENCE: u32 = 500;

/// A stream that is reset sooner, without an answer, was not meant. Source: Envoy
/// (`overload.premature_reset_min_stream_lifetime_seconds`).
const SOON: Duration = Duration::from_secs(1);

/// Frames that carry nothing for a stream, at once: settings, pings, priorities, empty data, what is for streams that are over, what
/// is unknown, and the increments of windows.
const SPARE: u32 = 1000;

/// How many more of them a frame with something in it allows, whichever side sends it. Source: what Envoy bears for each frame
/// of data that it sends (`max_inbound_window_update_frames_per_data_frame_sent`).
const SPARE_EARNED: u32 = 10;

/// How many more each second allows, for connections on which nothing else is said for days.
const SPARE_PER_SECOND: u64 = 10;

/// The most that is saved up: what a window of 16 MiB takes whose receiver gives it back in pieces of 2 KiB.
const SPARE_MAX: u32 = 10_000;

/// Streams that one of these frames may change as cheaply as none: a change of the initial window changes all.
const SPARE_STREAMS: usize = 8;

/// Frames that one header block comes in. Whole blocks of the largest size come in far fewer.
const CONTINUATIONS_MAX: u32 = 100;

/// Streams reset from here whose frames may be on their way still.
const FORGOTTEN_MAX: usize = 1000;

/// Which end of a connection this is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Side {
    Client,
    Server,
}

pub(super) struct State {
    side: Side,
    limits: Limits,
    pub(super) output: Output,
    encoder: Encoder,
    decoder: Decoder,
    streams: HashMap<u32, Stream, BuildHasherDefault<ById>>,
    /// Streams that are not closed.
    open: usize,
    send: SendWindow,
    receive: ReceiveWindow,
    /// What the peer takes in a stream that begins.
    peer_window: i32,
    /// Streams at once that the peer takes.
    peer_streams: usize,
    /// The peer has sent its settings.
    is_settled: bool,
    /// The first stream that was not opened yet.
    next: u32,
    /// Requests that came.
    accepted: VecDeque<(u32, Result<Request<()>, TooLarge>)>,
    /// Requests that came and are none, whose streams were reset, until somebody notes them.
    pub(super) malformed: u32,
    /// Requests that wait until the peer takes one more.
    waiting: VecDeque<u32>,
    /// Streams with something to send and room for it.
    ready: VecDeque<u32>,
    forgotten: VecDeque<u32>,
    block: Option<Block>,
    patience: u32,
    /// Frames that carry nothing and may still come.
    spare: u32,
    /// When [`SPARE_PER_SECOND`] was last counted.
    spared: Tick,
    /// Heads and data of streams that came.
    pub(super) answers: u64,
    /// The peer takes no requests, and those that wait for it were told to go elsewhere.
    turns_away: bool,
    /// The peer left because of too much of something.
    pub(super) wants_calm: bool,
    pub(super) leaving: Leaving,
    /// Why there is nothing more to be had from this connection.
    pub(super) error: Option<Error>,
    /// Nobody is left who could open a stream.
    pub(super) is_abandoned: bool,
    /// Octets that came.
    pub(super) read: u64,
    waker: Option<Waker>,
    is_woken: bool,
}

/// How far a connection is with its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Leaving {
    No,
    /// The client was told, and what it had sent by then is on its way (RFC 9113 6.8).
    Announced,
    /// Nothing that is new is taken.
    Final,
}

/// A header block that comes in several frames.
struct Block {
    head: Head,
    octets: BytesMut,
    frames: u32,
    begun: Instant,
}

/// The payload of a frame: a place in what others use as well, or octets of its own.
pub(super) enum Payload<'a> {
    Borrowed(&'a [u8]),
    Owned(Bytes),
}

/// Streams are numbered by turns: that spreads them well enough.
#[derive(Default)]
pub(super) struct ById(u64);

/// What a PING of a farewell says.
const FAREWELL: &[u8; 8] = b"farewell";

/// What a PING of ours says otherwise.
const ALIVE: &[u8; 8] = b"are you?";

// === impl ById ===

impl Hasher for ById {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, octets: &[u8]) {
        for octet in octets {
            self.write_u32(u32::from(*octet));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

// === impl Payload ===

impl Payload<'_> {
    pub(super) fn octets(&self) -> &[u8] {
        match self {
            Self::Borrowed(octets) => octets,
            Self::Owned(octets) => octets,
        }
    }

    /// A part of it, as long as somebody wants it.
    fn keep(&self, part: std::ops::Range<usize>) -> Bytes {
        match self {
            Self::Borrowed(octets) => Bytes::copy_from_slice(&octets[part]),
            Self::Owned(octets) => octets.slice(part),
        }
    }
}

// === impl State ===

impl State {
    pub(super) fn new(side: Side, limits: Limits) -> Self {
        let mut output = Output::default();
        let out = output.gathered();
        // RFC 9113 6.5.2, by their numbers.
        match side {
            Side::Client => {
                out.extend_from_slice(frame::PREFACE);
                frame::put_settings(&[(2, 0), (4, limits.stream_window), (6, limits.head_bytes)], out);
            }
            Side::Server => {
                let settings = [(3, limits.streams), (4, limits.stream_window), (6, limits.head_bytes)];
                frame::put_settings(&settings, out);
            }
        }
        let more = limits.connection_window.saturating_sub(WINDOW as u32);
        if more > 0 {
            frame::put(frame::WINDOW_UPDATE, 0, 0, &more.to_be_bytes(), out);
        }
        Self {
            side,
            limits,
            output,
            encoder: Encoder::new(),
            decoder: Decoder::new(4096),
            streams: HashMap::default(),
            open: 0,
            send: SendWindow::new(WINDOW),
            receive: ReceiveWindow::new(limits.connection_window),
            peer_window: WINDOW,
            // Until the server has said how many it takes; others wait for that word.
            peer_streams: 1,
            is_settled: false,
            next: 1,
            accepted: VecDeque::new(),
            malformed: 0,
            waiting: VecDeque::new(),
            ready: VecDeque::new(),
            forgotten: VecDeque::new(),
            block: None,
            patience: PATIENCE,
            spare: SPARE,
            spared: Tick::now(),
            answers: 0,
            turns_away: false,
            wants_calm: false,
            leaving: Leaving::No,
            error: None,
            is_abandoned: false,
            read: 0,
            waker: None,
            is_woken: false,
        }
    }

    /// Somebody has taken octets that came, or nobody will: the peer may send as many more.
    fn release(&mut self, stream: Option<u32>, count: usize) {
        // Nothing is said on a connection that is over: it may be closed for writing already.
        if count == 0 || self.error.is_some() {
            return;
        }
        if let Some(increment) = self.receive.release(count) {
            self.put(frame::WINDOW_UPDATE, 0, 0, &increment.to_be_bytes());
        }
        if let Some(id) = stream
            && let Some(stream) = self.streams.get_mut(&id)
            && stream.receiving == Direction::Open
            && stream.error.is_none()
            && let Some(increment) = stream.receive.release(count)
        {
            self.put(frame::WINDOW_UPDATE, 0, id, &increment.to_be_bytes());
        }
    }

    /// A frame for a stream that is closed.
    fn reset_closed(&mut self, id: u32) -> Result<(), Reason> {
        if self.forgotten.contains(&id) { self.spend(1) } else { self.refuse(id, Reason::STREAM_CLOSED) }
    }

    /// A frame came that carries nothing for a stream, and costs as much as so many.
    fn spend(&mut self, count: u32) -> Result<(), Reason> {
        if self.spare < count {
            let earned = self.spared.elapsed().as_secs().saturating_mul(SPARE_PER_SECOND);
            if earned > 0 {
                self.earn(u32::try_from(earned).unwrap_or(SPARE_MAX));
                self.spared = Tick::now();
            }
        }
        self.spare = self.spare.checked_sub(count).ok_or(Reason::ENHANCE_YOUR_CALM)?;
        Ok(())
    }

    /// So many more frames may carry nothing.
    fn earn(&mut self, count: u32) {
        self.spare = self.spare.saturating_add(count).min(SPARE_MAX);
    }

    /// Resets a stream that is not known.
    fn refuse(&mut self, id: u32, reason: Reason) -> Result<(), Reason> {
        self.put(frame::RST_STREAM, 0, id, &reason.0.to_be_bytes());
        self.forget(id);
        self.lose_patience()
    }

    /// Resets a stream for what the peer did.
    fn provoked(&mut self, id: u32, reason: Reason) -> Result<(), Reason> {
        if self.streams.get(&id).is_some_and(Stream::is_closed) {
            self.put(frame::RST_STREAM, 0, id, &reason.0.to_be_bytes());
        } else {
            self.reset(id, reason, Error::Malformed(reason));
        }
        self.lose_patience()
    }

    fn lose_patience(&mut self) -> Result<(), Reason> {
        self.patience = self.patience.checked_sub(1).ok_or(Reason::ENHANCE_YOUR_CALM)?;
        Ok(())
    }

    fn forget(&mut self, id: u32) {
        if self.forgotten.len() == FORGOTTEN_MAX {
            self.forgotten.pop_front();
        }
        self.forgotten.push_back(id);
    }

    /// Resets a stream that is not closed yet, which those that hold it see as this error.
    fn reset(&mut self, id: u32, reason: Reason, error: Error) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.is_closed()) else { return };
        stream.error = Some(error);
        if stream.request.is_none() {
            self.put(frame::RST_STREAM, 0, id, &reason.0.to_be_bytes());
            self.forget(id);
        }
        self.close(id);
        self.wake();
    }

    /// A stream has become one that nothing more goes through.
    fn close(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.pending.clear();
        stream.end = None;
        stream.wake();
        if stream.request.take().is_none() {
            self.open -= 1;
        } else {
            self.waiting.retain(|other| *other != id);
        }
        if stream.error.is_none() {
            self.patience = (self.patience + 1).min(PATIENCE);
        }
        if stream.halves == 0 && !(self.side == Side::Server && self.accepted.iter().any(|(other, _)| *other == id)) {
            self.remove(id);
        }
        self.open_waiting();
        if self.open == 0 && (self.leaving == Leaving::Final || self.is_abandoned) {
            self.wake();
        }
    }

    fn remove(&mut self, id: u32) {
        if let Some(mut stream) = self.streams.remove(&id) {
            let count = stream.discard();
            self.release(None, count);
        }
    }

    /// Opens streams that waited, as many as the peer takes.
    fn open_waiting(&mut self) {
        while self.open < self.peer_streams
            && let Some(id) = self.waiting.pop_front()
        {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            let Some(request) = stream.request.take() else { continue };
            let (head, length) = *request;
            self.open += 1;
            let ends = stream.sending == Direction::Ended;
            let (has_data, has_end) = (!stream.pending.is_empty(), stream.end.is_some());
            head::put_request(&mut self.encoder, id, &head, length, ends, self.output.gathered());
            if has_data {
                self.queue(id);
            } else if has_end {
                self.finish_sending(id);
            }
        }
    }

    /// Puts a stream in line that has data to send. What has only an end to send is never in line: it needs no window, and
    /// would wait behind streams that do.
    fn queue(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.pending.is_empty() || stream.request.is_some() || stream.is_queued {
            return;
        }
        stream.is_queued = true;
        self.ready.push_back(id);
        // Streams that were reset are in line still, for as long as the connection has no window.
        if self.ready.len() > 2 * self.streams.len() {
            self.ready.retain(|id| self.streams.contains_key(id));
        }
    }

    /// The end of what a stream sends was put behind the rest.
    fn end_sending(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.sending = Direction::Ended;
        if let Some(sender) = stream.sender.take() {
            sender.wake();
        }
        if stream.receiving == Direction::Ended {
            self.close(id);
        } else if stream.halves == 0 {
            self.drop_stream(id);
        }
    }

    /// Sends what ends a stream, behind all of its content.
    fn finish_sending(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        match stream.end.take() {
            None => return,
            Some(None) => self.put(frame::DATA, frame::END_STREAM, id, &[]),
            Some(Some(trailers)) => {
                head::put_trailers(&mut self.encoder, id, &trailers, self.output.gathered());
            }
        }
        self.end_sending(id);
    }

    /// Nobody holds a stream any more that is not closed.
    fn drop_stream(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.is_closed() {
            self.remove(id);
        } else if stream.sending == Direction::Ended && self.side == Side::Server {
            // RFC 9113 8.1: all has been said, and the rest of the request is of no interest.
            self.reset(id, Reason::NO_ERROR, Error::Reset(Reason::NO_ERROR));
        } else if self.side == Side::Client || stream.end.is_none() {
            self.reset(id, Reason::CANCEL, Error::Reset(Reason::CANCEL));
        }
    }

    /// Wakes the connection's task: there is something to write.
    fn wake(&mut self) {
        if !self.is_woken
            && let Some(waker) = &self.waker
        {
            self.is_woken = true;
            waker.wake_by_ref();
        }
    }

    fn put(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        frame::put(kind, flags, stream, payload, self.output.gathered());
    }

    /// The last stream that the peer opened.
    fn last(&self) -> u32 {
        match self.side {
            Side::Client => 0,
            Side::Server => self.next.saturating_sub(2),
        }
    }

    /// Puts content of a stream behind the rest. It is not more than the windows have room for.
    fn put_data(&mut self, id: u32, data: Bytes, ends: bool) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.send.take(data.len());
        }
        self.send.take(data.len());
        if !data.is_empty() {
            self.earn(SPARE_EARNED);
        }
        let flags = if ends { frame::END_STREAM } else { 0 };
        self.output.gathered().extend_from_slice(&Head::octets(frame::DATA, flags, id, data.len()));
        self.output.push(data);
        if ends {
            self.end_sending(id);
        }
    }
}
