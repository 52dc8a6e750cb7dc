//! The state of a connection and its streams.
//!
//! - [`frames`]: what received frames do.
//! - [`api`]: what the handles of streams call.
//! - [`task`]: what the connection's task calls besides.

mod api;
mod frames;
mod task;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::task::Waker;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Request;
use tokio::time::Instant;

use super::error::{Error, Reason};
use super::flow::{RecvWindow, SendWindow, WINDOW};
use super::frame::{self, FrameHeader};
use super::head;
use super::limits::{Limits, TooLarge};
use super::output::Output;
use super::stream::{CountStreams, HalfState, Stream};
use crate::hpack::TABLE_BYTES_MAX;
use crate::hpack::decode::Decoder;
use crate::hpack::encode::Encoder;
use crate::tick::Tick;

/// Bytes of output beyond which no more DATA is added.
const OUTPUT_MAX: usize = 64 * 1024;

/// Bytes of output beyond which nothing is read: what is received can make this side send frames (PING and SETTINGS
/// acknowledgements, RST_STREAM).
const OUTPUT_READ_STOP: usize = 256 * 1024;

/// Budget against rapid resets. Each reset that the peer forces, and each stream that it cancels within
/// [`RAPID_RESET`] before its response, spends one; each stream that completes refunds one. Source: the count from
/// which Envoy checks for premature resets (`overload.premature_reset_total_stream_count`).
const RESET_BUDGET: u32 = 500;

/// A stream that the peer cancels sooner, and before its response, spends [`RESET_BUDGET`]. Source: Envoy
/// (`overload.premature_reset_min_stream_lifetime_seconds`).
const RAPID_RESET: Duration = Duration::from_secs(1);

/// Budget of received frames that carry no message: SETTINGS, PING, PRIORITY, WINDOW_UPDATE, GOAWAY, empty DATA,
/// frames of closed streams, and unknown types.
const CONTROL_BUDGET: u32 = 1000;

/// Refund for each HEADERS received and for each DATA with content, sent or received. Source: what Envoy allows for
/// each DATA that it sends (`max_inbound_window_update_frames_per_data_frame_sent`).
const CONTROL_BUDGET_PER_DATA: u32 = 10;

/// Refund for each second, for connections that are idle for days.
const CONTROL_BUDGET_PER_SECOND: u64 = 10;

/// Largest budget: enough for a receiver that returns a window of 16 MiB in increments of 2 KiB.
const CONTROL_BUDGET_MAX: u32 = 10_000;

/// A change of SETTINGS_INITIAL_WINDOW_SIZE touches all streams, and spends one more for each this many streams.
const STREAMS_PER_CONTROL_FRAME: usize = 8;

/// CONTINUATION frames of one header block. A block of the largest size needs far fewer.
const CONTINUATIONS_MAX: u32 = 100;

/// Streams reset by this side that are remembered: their frames may still be in flight.
const RECENTLY_RESET_MAX: usize = 1000;

/// The side of a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Side {
    Client,
    Server,
}

pub(super) struct State {
    side: Side,
    limits: Limits,
    count_streams: CountStreams,
    pub(super) output: Output,
    encoder: Encoder,
    decoder: Decoder,
    /// Boxed: the map is sparse, and moves its values when it grows.
    streams: HashMap<u32, Box<Stream>, BuildHasherDefault<StreamIdHasher>>,
    /// Streams that are not closed.
    open: usize,
    send_window: SendWindow,
    recv_window: RecvWindow,
    /// The peer's SETTINGS_INITIAL_WINDOW_SIZE.
    peer_initial_window: i32,
    /// The peer's SETTINGS_MAX_CONCURRENT_STREAMS.
    peer_max_streams: usize,
    /// The peer's first SETTINGS have come.
    has_peer_settings: bool,
    /// The lowest stream identifier that was not used yet.
    next_id: u32,
    /// Requests that were received and not yet accepted.
    accepted: VecDeque<(u32, Result<Request<()>, TooLarge>)>,
    /// Malformed requests, whose streams were reset, since they were last counted.
    pub(super) malformed: u32,
    /// Requests that wait for the peer's SETTINGS_MAX_CONCURRENT_STREAMS.
    pending_open: VecDeque<u32>,
    /// Streams with data to send that do not wait for their own window.
    send_queue: VecDeque<u32>,
    recently_reset: VecDeque<u32>,
    header_block: Option<HeaderBlock>,
    reset_budget: u32,
    /// See [`CONTROL_BUDGET`].
    control_budget: u32,
    /// When [`CONTROL_BUDGET_PER_SECOND`] was last added.
    control_refilled: Tick,
    /// HEADERS and DATA frames of streams that were received.
    pub(super) message_frames: u64,
    /// The peer allows no streams: waiting requests have failed, and no others are accepted.
    rejects_requests: bool,
    /// The peer has sent GOAWAY with ENHANCE_YOUR_CALM.
    pub(super) got_enhance_your_calm: bool,
    pub(super) go_away: GoAway,
    /// Why the connection is closed.
    pub(super) error: Option<Error>,
    /// The [`super::Requests`] handle was dropped: no more requests will be sent.
    pub(super) requests_dropped: bool,
    /// Bytes received.
    pub(super) bytes_read: u64,
    waker: Option<Waker>,
    is_woken: bool,
}

/// How far a graceful shutdown is (RFC 9113 6.8).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum GoAway {
    None,
    /// Sent with the highest stream identifier: requests in flight are still accepted.
    Announced,
    /// Sent with the last stream, or received: no new streams.
    Final,
}

/// A header block whose CONTINUATION frames have not all come.
struct HeaderBlock {
    head: FrameHeader,
    bytes: BytesMut,
    continuations: u32,
    started: Instant,
}

/// The payload of a frame: in the shared read buffer, or in a buffer that can be kept.
pub(super) enum Payload<'a> {
    Borrowed(&'a [u8]),
    Owned(Bytes),
}

/// A hasher for stream identifiers: they are consecutive, so one multiplication spreads them well enough.
#[derive(Default)]
pub(super) struct StreamIdHasher(u64);

/// Payload of the PING behind the first GOAWAY. Its acknowledgement shows that the client has seen the GOAWAY.
const SHUTDOWN_PING: &[u8; 8] = b"shutdown";

/// Payload of the PING that checks whether the peer is alive.
const KEEPALIVE_PING: &[u8; 8] = b"liveness";

// === impl StreamIdHasher ===

impl Hasher for StreamIdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

// === impl Payload ===

impl Payload<'_> {
    #[inline]
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }

    /// A part that outlives the frame: copied if it is borrowed.
    fn slice(&self, part: std::ops::Range<usize>) -> Bytes {
        match self {
            Self::Borrowed(bytes) => Bytes::copy_from_slice(&bytes[part]),
            Self::Owned(bytes) => bytes.slice(part),
        }
    }
}

// === impl State ===

impl State {
    pub(super) fn new(side: Side, limits: Limits, count_streams: CountStreams) -> Self {
        let mut output = Output::default();
        let out = output.buffer();
        // Settings by their identifiers (RFC 9113 6.5.2).
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
            count_streams,
            output,
            encoder: Encoder::new(),
            decoder: Decoder::new(TABLE_BYTES_MAX),
            streams: HashMap::default(),
            open: 0,
            send_window: SendWindow::new(WINDOW),
            recv_window: RecvWindow::new(limits.connection_window),
            peer_initial_window: WINDOW,
            // One until the server's SETTINGS come; further requests wait for them.
            peer_max_streams: 1,
            has_peer_settings: false,
            next_id: 1,
            accepted: VecDeque::new(),
            malformed: 0,
            pending_open: VecDeque::new(),
            send_queue: VecDeque::new(),
            recently_reset: VecDeque::new(),
            header_block: None,
            reset_budget: RESET_BUDGET,
            control_budget: CONTROL_BUDGET,
            control_refilled: Tick::now(),
            message_frames: 0,
            rejects_requests: false,
            got_enhance_your_calm: false,
            go_away: GoAway::None,
            error: None,
            requests_dropped: false,
            bytes_read: 0,
            waker: None,
            is_woken: false,
        }
    }

    /// Credits bytes that were read or discarded to the flow control windows.
    fn release(&mut self, stream: Option<u32>, count: usize) {
        // A closed connection sends nothing: its write side may already be shut down.
        if count == 0 || self.error.is_some() {
            return;
        }
        if let Some(increment) = self.recv_window.release(count) {
            self.put(frame::WINDOW_UPDATE, 0, 0, &increment.to_be_bytes());
        }
        if let Some(id) = stream
            && let Some(stream) = self.streams.get_mut(&id)
            && stream.recv == HalfState::Open
            && stream.error.is_none()
            && let Some(increment) = stream.recv_window.release(count)
        {
            self.put(frame::WINDOW_UPDATE, 0, id, &increment.to_be_bytes());
        }
    }

    /// A frame came for a stream that is closed.
    fn recv_on_closed(&mut self, id: u32) -> Result<(), Reason> {
        if self.recently_reset.contains(&id) {
            self.spend_control(1)
        } else {
            self.reset_unknown(id, Reason::STREAM_CLOSED)
        }
    }

    /// Spends the control budget for a frame.
    fn spend_control(&mut self, count: u32) -> Result<(), Reason> {
        if self.control_budget < count {
            let earned = self.control_refilled.elapsed().as_secs().saturating_mul(CONTROL_BUDGET_PER_SECOND);
            if earned > 0 {
                self.refund_control(u32::try_from(earned).unwrap_or(CONTROL_BUDGET_MAX));
                self.control_refilled = Tick::now();
            }
        }
        self.control_budget = self.control_budget.checked_sub(count).ok_or(Reason::ENHANCE_YOUR_CALM)?;
        Ok(())
    }

    /// Refunds the control budget.
    fn refund_control(&mut self, count: u32) {
        self.control_budget = self.control_budget.saturating_add(count).min(CONTROL_BUDGET_MAX);
    }

    /// Resets a stream that has no state.
    fn reset_unknown(&mut self, id: u32, reason: Reason) -> Result<(), Reason> {
        self.put(frame::RST_STREAM, 0, id, &reason.0.to_be_bytes());
        self.remember_reset(id);
        self.spend_reset_budget()
    }

    /// Resets a stream because the peer violated the protocol.
    fn reset_for_peer_error(&mut self, id: u32, reason: Reason) -> Result<(), Reason> {
        if self.streams.get(&id).is_some_and(|stream| stream.is_closed()) {
            self.put(frame::RST_STREAM, 0, id, &reason.0.to_be_bytes());
        } else {
            self.reset(id, reason, Error::Malformed(reason));
        }
        self.spend_reset_budget()
    }

    fn spend_reset_budget(&mut self) -> Result<(), Reason> {
        self.reset_budget = self.reset_budget.checked_sub(1).ok_or(Reason::ENHANCE_YOUR_CALM)?;
        Ok(())
    }

    fn remember_reset(&mut self, id: u32) {
        if self.recently_reset.len() == RECENTLY_RESET_MAX {
            self.recently_reset.pop_front();
        }
        self.recently_reset.push_back(id);
    }

    /// Resets a stream that is not closed. Its handles see `error`.
    fn reset(&mut self, id: u32, reason: Reason, error: Error) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.is_closed()) else { return };
        stream.error = Some(error);
        if stream.unsent_request.is_none() {
            self.put(frame::RST_STREAM, 0, id, &reason.0.to_be_bytes());
            self.remember_reset(id);
        }
        self.close(id);
        self.wake();
    }

    /// Cleans up a stream that has become closed, and removes it if it has no handles.
    fn close(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.pending_data.clear();
        stream.pending_end = None;
        stream.wake();
        if stream.unsent_request.take().is_none() {
            self.open -= 1;
        } else {
            self.pending_open.retain(|other| *other != id);
        }
        if stream.error.is_none() {
            self.reset_budget = (self.reset_budget + 1).min(RESET_BUDGET);
        }
        if stream.handles == 0 && !(self.side == Side::Server && self.accepted.iter().any(|(other, _)| *other == id)) {
            self.remove(id);
        }
        self.open_pending();
        if self.open == 0 && (self.go_away == GoAway::Final || self.requests_dropped) {
            self.wake();
        }
    }

    fn remove(&mut self, id: u32) {
        if let Some(mut stream) = self.streams.remove(&id) {
            let count = stream.discard_received();
            self.release(None, count);
        }
    }

    /// Sends requests that waited, as many as the peer allows.
    fn open_pending(&mut self) {
        while self.open < self.peer_max_streams
            && let Some(id) = self.pending_open.pop_front()
        {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            let Some(request) = stream.unsent_request.take() else { continue };
            let (head, length) = *request;
            self.open += 1;
            let ends = stream.send == HalfState::Closed;
            let (has_data, has_end) = (!stream.pending_data.is_empty(), stream.pending_end.is_some());
            head::put_request(&mut self.encoder, id, &head, length, ends, self.output.buffer());
            if has_data {
                self.enqueue(id);
            } else if has_end {
                self.send_end_stream(id);
            }
        }
    }

    /// Queues a stream that has data to send. A stream that has only its end to send is never queued: it needs no
    /// window, and would wait behind streams that do.
    fn enqueue(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.pending_data.is_empty() || stream.unsent_request.is_some() || stream.is_queued {
            return;
        }
        stream.is_queued = true;
        self.send_queue.push_back(id);
        // Streams that were reset stay queued while the connection has no window.
        if self.send_queue.len() > 2 * self.streams.len() {
            self.send_queue.retain(|id| self.streams.contains_key(id));
        }
    }

    /// END_STREAM was put into the output.
    fn close_send(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.send = HalfState::Closed;
        if let Some(waker) = stream.send_waker.take() {
            waker.wake();
        }
        if stream.recv == HalfState::Closed {
            self.close(id);
        } else if stream.handles == 0 {
            self.drop_stream(id);
        }
    }

    /// Sends END_STREAM, with trailers if there are any, after all data.
    fn send_end_stream(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        match stream.pending_end.take() {
            None => return,
            Some(None) => self.put(frame::DATA, frame::END_STREAM, id, &[]),
            Some(Some(trailers)) => {
                head::put_trailers(&mut self.encoder, id, &trailers, self.output.buffer());
            }
        }
        self.close_send(id);
    }

    /// The last handle of a stream was dropped. Resets the stream, unless its end is still to be sent.
    fn drop_stream(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.is_closed() {
            self.remove(id);
        } else if stream.send == HalfState::Closed && self.side == Side::Server {
            // RFC 9113 8.1: the response is complete, and the rest of the request is not needed.
            self.reset(id, Reason::NO_ERROR, Error::Reset(Reason::NO_ERROR));
        } else if self.side == Side::Client || stream.pending_end.is_none() {
            self.reset(id, Reason::CANCEL, Error::Reset(Reason::CANCEL));
        }
    }

    /// Wakes the connection's task to write.
    fn wake(&mut self) {
        if !self.is_woken
            && let Some(waker) = &self.waker
        {
            self.is_woken = true;
            waker.wake_by_ref();
        }
    }

    fn put(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        frame::put(kind, flags, stream, payload, self.output.buffer());
    }

    /// The last stream that the peer opened.
    fn last_peer_stream(&self) -> u32 {
        match self.side {
            Side::Client => 0,
            Side::Server => self.next_id.saturating_sub(2),
        }
    }

    /// Puts data into the output. The windows must allow it.
    fn put_data(&mut self, id: u32, data: Bytes, ends: bool) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.send_window.consume(data.len());
        }
        self.send_window.consume(data.len());
        if !data.is_empty() {
            self.refund_control(CONTROL_BUDGET_PER_DATA);
        }
        let flags = if ends { frame::END_STREAM } else { 0 };
        self.output.buffer().extend_from_slice(&FrameHeader::encode(frame::DATA, flags, id, data.len()));
        self.output.push(data);
        if ends {
            self.close_send(id);
        }
    }
}
