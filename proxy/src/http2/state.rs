//! All that both ends of a connection have said, and what each frame means.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::HeaderMap;
use http::request::Parts;
use http::{Method, Request, StatusCode};

use super::flow::{ReceiveWindow, SendWindow, WINDOW};
use super::frame::{self, Head, PAYLOAD_MAX, Setting};
use super::head::{self, Fields, Malformed};
use super::output::Output;
use super::stream::{Direction, Stream, wait};
use super::{Error, Limits, Reason};
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

/// Frames in a row that carry nothing, and are no cause to answer.
const EMPTY_MAX: u32 = 1000;

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
    accepted: VecDeque<(u32, Request<()>)>,
    /// Requests that wait until the peer takes one more.
    waiting: VecDeque<u32>,
    /// Streams with something to send and room for it.
    ready: VecDeque<u32>,
    forgotten: VecDeque<u32>,
    block: Option<Block>,
    patience: u32,
    empty: u32,
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
            waiting: VecDeque::new(),
            ready: VecDeque::new(),
            forgotten: VecDeque::new(),
            block: None,
            patience: PATIENCE,
            empty: 0,
            leaving: Leaving::No,
            error: None,
            is_abandoned: false,
            read: 0,
            waker: None,
            is_woken: false,
        }
    }

    // What the connection's task does.

    /// The task runs, and is to be woken for more.
    pub(super) fn run(&mut self, cx: &Context<'_>) {
        self.is_woken = false;
        let _: Poll<()> = wait(&mut self.waker, cx);
    }

    /// Whether nothing more is to be read until something was written.
    pub(super) fn is_full(&self) -> bool {
        self.output.len() >= OUTPUT_STOP
    }

    /// Nothing is left to be done but to write what is there.
    pub(super) fn is_done(&self) -> bool {
        let leaves = self.leaving == Leaving::Final || self.is_abandoned;
        self.error.is_some() || (leaves && self.open == 0 && self.waiting.is_empty())
    }

    /// A request that came, and that nobody took back since.
    pub(super) fn accept(&mut self) -> Option<(u32, Request<()>)> {
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
    pub(super) fn has_more(&self) -> bool {
        self.send.room() > 0 && !self.ready.is_empty()
    }

    /// Puts what streams have to send behind what is to be written, as far as it may be sent.
    pub(super) fn fill(&mut self) {
        while self.output.len() < OUTPUT_MAX
            && let Some(id) = self.ready.pop_front()
        {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            stream.is_queued = false;
            if stream.error.is_some() {
                continue;
            }
            let room = stream.send.room().min(self.send.room()).min(PAYLOAD_MAX);
            let Some(data) = stream.pending.front_mut() else {
                self.finish_sending(id);
                continue;
            };
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
            stream.send.take(part.len());
            self.send.take(part.len());
            let flags = if is_last { frame::END_STREAM } else { 0 };
            self.output.gathered().extend_from_slice(&Head::octets(frame::DATA, flags, id, part.len()));
            self.output.push(part);
            if is_last {
                stream.end = None;
                self.end_sending(id);
            } else if stream.has_pending() {
                stream.is_queued = true;
                self.ready.push_back(id);
            } else if let Some(sender) = stream.sender.take() {
                sender.wake();
            }
        }
    }

    /// Ends every stream.
    pub(super) fn fail(&mut self, error: Error) {
        self.accepted.clear();
        self.waiting.clear();
        self.open = 0;
        self.streams.retain(|_, stream| {
            if !stream.is_closed() {
                stream.error = Some(error.clone());
            }
            stream.pending.clear();
            stream.end = None;
            stream.wake();
            stream.halves > 0
        });
        self.error = Some(error);
    }

    /// Says why the connection ends, and ends it.
    pub(super) fn give_up(&mut self, reason: Reason) {
        self.put_farewell(self.last(), reason);
        self.fail(Error::Broken(reason));
    }

    /// Says that nothing more is to come, unless that was said.
    pub(super) fn say_goodbye(&mut self) {
        if self.error.is_none() && self.leaving != Leaving::Final {
            self.leaving = Leaving::Final;
            self.put_farewell(self.last(), Reason::NO_ERROR);
        }
    }

    /// Tells a client to open no more streams, and waits for those that it has opened by then.
    pub(super) fn announce_leave(&mut self) {
        if self.leaving == Leaving::No {
            self.leaving = Leaving::Announced;
            self.put_farewell(0x7fff_ffff, Reason::NO_ERROR);
            self.put(frame::PING, 0, 0, FAREWELL);
        }
    }

    pub(super) fn ping(&mut self) {
        self.put(frame::PING, 0, 0, ALIVE);
    }

    fn put_farewell(&mut self, last: u32, reason: Reason) {
        let mut payload = [0; 8];
        payload[..4].copy_from_slice(&last.to_be_bytes());
        payload[4..].copy_from_slice(&reason.0.to_be_bytes());
        self.put(frame::GOAWAY, 0, 0, &payload);
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

    // What frames mean. An error ends the connection.

    pub(super) fn take_frame(&mut self, head: Head, payload: &Payload<'_>) -> Result<(), Reason> {
        let octets = payload.octets();
        if !self.is_settled && head.kind != frame::SETTINGS {
            return Err(Reason::PROTOCOL_ERROR);
        }
        if let Some(block) = &self.block
            && (head.kind != frame::CONTINUATION || head.stream != block.head.stream)
        {
            return Err(Reason::PROTOCOL_ERROR);
        }
        match head.kind {
            frame::DATA => self.take_data(&head, payload),
            frame::HEADERS => self.take_headers(head, payload),
            frame::CONTINUATION => self.take_continuation(&head, octets),
            frame::PRIORITY => match octets.len() {
                _ if head.stream == 0 || frame::depends_on(octets) == Some(head.stream) => Err(Reason::PROTOCOL_ERROR),
                5 => Ok(()),
                _ => Err(Reason::FRAME_SIZE_ERROR),
            },
            frame::RST_STREAM => {
                let reason = u32::from_be_bytes(octets.try_into().map_err(|_| Reason::FRAME_SIZE_ERROR)?);
                self.take_reset(head.stream, Reason(reason))
            }
            frame::SETTINGS => self.take_settings(&head, octets),
            frame::PING => self.take_ping(&head, octets),
            frame::GOAWAY => self.take_farewell(&head, octets),
            frame::WINDOW_UPDATE => self.take_window_update(head.stream, octets),
            frame::PUSH_PROMISE => Err(Reason::PROTOCOL_ERROR),
            // RFC 9113 5.5: what is unknown is ignored.
            _ => Ok(()),
        }
    }

    /// Whether a stream was not opened yet.
    fn is_idle(&self, id: u32) -> bool {
        id.is_multiple_of(2) || id >= self.next
    }

    fn take_data(&mut self, head: &Head, payload: &Payload<'_>) -> Result<(), Reason> {
        let id = head.stream;
        if self.is_idle(id) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let content = frame::content(head, payload.octets())?;
        self.receive.receive(head.length)?;
        let ends = head.has(frame::END_STREAM);
        if content.is_empty() && !ends {
            self.empty += 1;
            if self.empty > EMPTY_MAX {
                return Err(Reason::ENHANCE_YOUR_CALM);
            }
        } else {
            self.empty = 0;
        }
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.error.is_none()) else {
            self.release(None, head.length);
            return self.reset_closed(id);
        };
        let problem = match stream.receiving {
            Direction::Waiting => Some(Reason::PROTOCOL_ERROR),
            Direction::Ended => Some(Reason::STREAM_CLOSED),
            Direction::Open => stream.receive.receive(head.length).err(),
        };
        if let Some(reason) = problem {
            self.release(None, head.length);
            return self.provoked(id, reason);
        }
        let (length, padding) = (content.len(), head.length - content.len());
        if stream.count(length).is_err() {
            self.release(None, head.length);
            return self.provoked(id, Reason::PROTOCOL_ERROR);
        }
        if stream.is_deaf {
            // The stream's own window stays as it is: more of it is not wanted.
            self.release(None, head.length);
        } else {
            stream.store(payload.keep(content));
            if !ends && let Some(receiver) = stream.receiver.take() {
                receiver.wake();
            }
            self.release(Some(id), padding);
        }
        if ends { self.finish_receiving(id, None) } else { Ok(()) }
    }

    /// The last of what a stream receives has come.
    fn finish_receiving(&mut self, id: u32, trailers: Option<HeaderMap>) -> Result<(), Reason> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        if stream.finish(trailers).is_err() {
            return self.provoked(id, Reason::PROTOCOL_ERROR);
        }
        if let Some(receiver) = stream.receiver.take() {
            receiver.wake();
        }
        if stream.sending == Direction::Ended {
            self.close(id);
        }
        Ok(())
    }

    fn take_headers(&mut self, head: Head, payload: &Payload<'_>) -> Result<(), Reason> {
        let octets = payload.octets();
        if head.stream.is_multiple_of(2) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let content = frame::content(&head, octets)?;
        if head.has(frame::WITH_PRIORITY) && frame::depends_on(&octets[content.start - 5..]) == Some(head.stream) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        if head.has(frame::END_HEADERS) {
            return self.take_block(&head, payload.keep(content));
        }
        self.block = Some(Block { head, octets: BytesMut::from(&octets[content]), frames: 0 });
        Ok(())
    }

    fn take_continuation(&mut self, head: &Head, octets: &[u8]) -> Result<(), Reason> {
        let mut block = self.block.take().ok_or(Reason::PROTOCOL_ERROR)?;
        block.frames += 1;
        let length = block.octets.len() + octets.len();
        if block.frames > CONTINUATIONS_MAX || length > 2 * self.limits.head_bytes as usize {
            return Err(Reason::ENHANCE_YOUR_CALM);
        }
        block.octets.extend_from_slice(octets);
        if head.has(frame::END_HEADERS) {
            return self.take_block(&block.head, block.octets.freeze());
        }
        self.block = Some(block);
        Ok(())
    }

    fn take_block(&mut self, head: &Head, block: Bytes) -> Result<(), Reason> {
        let fields = Fields::decode(&mut self.decoder, block, self.limits.head_bytes)?;
        let (id, ends) = (head.stream, head.has(frame::END_STREAM));
        self.empty = 0;
        let Some(stream) = self.streams.get_mut(&id) else {
            return match self.side {
                Side::Server => self.take_request(id, fields, ends),
                Side::Client if self.is_idle(id) => Err(Reason::PROTOCOL_ERROR),
                // Of a stream that was given up.
                Side::Client => Ok(()),
            };
        };
        if stream.is_closed() {
            // What was reset from here may be answered by what was on its way.
            let is_late = self.side == Side::Client || self.forgotten.contains(&id);
            return if is_late { Ok(()) } else { Err(Reason::STREAM_CLOSED) };
        }
        match stream.receiving {
            Direction::Ended => self.provoked(id, Reason::STREAM_CLOSED),
            Direction::Waiting => self.take_response(id, fields, ends),
            Direction::Open => match fields.into_trailers() {
                Ok(trailers) if ends => self.finish_receiving(id, Some(trailers)),
                _ => self.provoked(id, Reason::PROTOCOL_ERROR),
            },
        }
    }

    fn take_request(&mut self, id: u32, fields: Fields, ends: bool) -> Result<(), Reason> {
        if !self.is_idle(id) {
            if self.forgotten.contains(&id) {
                return Ok(());
            }
            // The last is known to have been opened; of others nobody knows.
            return Err(if id == self.last() { Reason::STREAM_CLOSED } else { Reason::PROTOCOL_ERROR });
        }
        self.next = id + 2;
        if self.leaving == Leaving::Final {
            // The client was told that this one is not looked at.
            self.forget(id);
            return Ok(());
        }
        if self.open >= self.limits.streams as usize {
            return self.refuse(id, Reason::REFUSED_STREAM);
        }
        if fields.is_too_large {
            let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            head::put_response(&mut self.encoder, id, status, &HeaderMap::new(), true, self.output.gathered());
            return if ends { self.lose_patience() } else { self.refuse(id, Reason::NO_ERROR) };
        }
        let request = fields
            .into_request()
            .and_then(|request| head::content_length(request.headers()).map(|content| (request, content)));
        let Ok((request, content)) = request else { return self.refuse(id, Reason::PROTOCOL_ERROR) };
        let mut stream = Stream::new(&self.limits, self.peer_window);
        stream.begin(content);
        if ends && stream.finish(None).is_err() {
            return self.refuse(id, Reason::PROTOCOL_ERROR);
        }
        self.streams.insert(id, stream);
        self.open += 1;
        self.accepted.push_back((id, request));
        Ok(())
    }

    fn take_response(&mut self, id: u32, fields: Fields, ends: bool) -> Result<(), Reason> {
        if fields.is_too_large {
            return self.provoked(id, Reason::PROTOCOL_ERROR);
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        let Ok((status, headers)) = fields.into_response() else { return self.provoked(id, Reason::PROTOCOL_ERROR) };
        if status.is_informational() {
            self.empty += 1;
            if ends || self.empty > EMPTY_MAX {
                return self.provoked(id, Reason::PROTOCOL_ERROR);
            }
            return Ok(());
        }
        let content = match head::content_length(&headers) {
            Err(Malformed) => return self.provoked(id, Reason::PROTOCOL_ERROR),
            Ok(_) if stream.is_head || status == StatusCode::NOT_MODIFIED => None,
            Ok(content) => content,
        };
        stream.begin(content);
        stream.response = Some((status, headers));
        if ends {
            return self.finish_receiving(id, None);
        }
        if let Some(receiver) = stream.receiver.take() {
            receiver.wake();
        }
        Ok(())
    }

    fn take_reset(&mut self, id: u32, reason: Reason) -> Result<(), Reason> {
        if self.is_idle(id) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        if stream.is_closed() {
            return Ok(());
        }
        let soon = stream.sending == Direction::Waiting && stream.opened.elapsed() < SOON;
        stream.error = Some(Error::Reset(reason));
        self.close(id);
        if soon { self.lose_patience() } else { Ok(()) }
    }

    fn take_settings(&mut self, head: &Head, octets: &[u8]) -> Result<(), Reason> {
        if head.stream != 0 {
            return Err(Reason::PROTOCOL_ERROR);
        }
        if head.has(frame::ACK) {
            return if octets.is_empty() { Ok(()) } else { Err(Reason::FRAME_SIZE_ERROR) };
        }
        let (settings, []) = octets.as_chunks::<6>() else { return Err(Reason::FRAME_SIZE_ERROR) };
        if !self.is_settled {
            self.is_settled = true;
            // What is not said is not limited.
            self.peer_streams = usize::MAX;
        }
        for setting in settings {
            match frame::setting(*setting)? {
                Some(Setting::TableSize(size)) => self.encoder.set_size_max(size as usize),
                Some(Setting::Streams(count)) => self.peer_streams = count as usize,
                Some(Setting::Window(size)) => {
                    let (size, before) = (size as i32, self.peer_window);
                    self.peer_window = size;
                    for (id, stream) in &mut self.streams {
                        stream.send.grow(size - before)?;
                        if stream.has_pending() && stream.request.is_none() && !stream.is_queued {
                            stream.is_queued = true;
                            self.ready.push_back(*id);
                        }
                    }
                }
                Some(Setting::Push | Setting::Payload(_)) | None => {}
            }
        }
        self.put(frame::SETTINGS, frame::ACK, 0, &[]);
        self.open_waiting();
        Ok(())
    }

    fn take_ping(&mut self, head: &Head, octets: &[u8]) -> Result<(), Reason> {
        if head.stream != 0 {
            return Err(Reason::PROTOCOL_ERROR);
        }
        if octets.len() != 8 {
            return Err(Reason::FRAME_SIZE_ERROR);
        }
        if !head.has(frame::ACK) {
            self.put(frame::PING, frame::ACK, 0, octets);
        } else if octets == FAREWELL && self.leaving == Leaving::Announced {
            // All that was sent before the client knew is here.
            self.say_goodbye();
        }
        Ok(())
    }

    fn take_farewell(&mut self, head: &Head, octets: &[u8]) -> Result<(), Reason> {
        if head.stream != 0 {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let (Some(last), Some(reason)) = (frame::depends_on(octets), octets.get(4..8)) else {
            return Err(Reason::FRAME_SIZE_ERROR);
        };
        if self.side == Side::Server {
            return Ok(());
        }
        self.leaving = Leaving::Final;
        let mut octets = [0; 4];
        octets.copy_from_slice(reason);
        let error = Error::Left(Reason(u32::from_be_bytes(octets)));
        let late: Vec<u32> = self
            .streams
            .iter()
            .filter(|(id, stream)| (**id > last || stream.request.is_some()) && !stream.is_closed())
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.error = Some(error.clone());
                self.close(id);
            }
        }
        Ok(())
    }

    fn take_window_update(&mut self, id: u32, octets: &[u8]) -> Result<(), Reason> {
        let by = u32::from_be_bytes(octets.try_into().map_err(|_| Reason::FRAME_SIZE_ERROR)?) & 0x7fff_ffff;
        if id == 0 {
            if by == 0 {
                return Err(Reason::PROTOCOL_ERROR);
            }
            return self.send.grow(by as i32);
        }
        if self.is_idle(id) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.error.is_none()) else { return Ok(()) };
        if by == 0 {
            return self.provoked(id, Reason::PROTOCOL_ERROR);
        }
        if let Err(reason) = stream.send.grow(by as i32) {
            return self.provoked(id, reason);
        }
        if stream.has_pending() && stream.request.is_none() && !stream.is_queued {
            stream.is_queued = true;
            self.ready.push_back(id);
        }
        Ok(())
    }

    // What becomes of streams.

    /// Somebody has taken octets that came, or nobody will: the peer may send as many more.
    fn release(&mut self, stream: Option<u32>, count: usize) {
        if count == 0 {
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
        if self.forgotten.contains(&id) { Ok(()) } else { self.refuse(id, Reason::STREAM_CLOSED) }
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
            self.reset(id, reason);
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

    /// Resets a stream that is not closed yet.
    fn reset(&mut self, id: u32, reason: Reason) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.is_closed()) else { return };
        stream.error = Some(Error::Reset(reason));
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
            if stream.has_pending() {
                stream.is_queued = true;
                self.ready.push_back(id);
            }
            head::put_request(&mut self.encoder, id, &head, length, ends, self.output.gathered());
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
            self.reset(id, Reason::NO_ERROR);
        } else if self.side == Side::Client || stream.end.is_none() {
            self.reset(id, Reason::CANCEL);
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

    // What those do that hold halves of streams.

    /// Whether one more request can go onto this connection.
    pub(super) fn may_open(&self) -> bool {
        self.error.is_none() && self.leaving == Leaving::No && self.next < 0x7fff_fff0
    }

    /// Requests at once that the server takes. None: it has not said yet.
    pub(super) fn streams_max(&self) -> Option<usize> {
        self.is_settled.then_some(self.peer_streams)
    }

    /// Opens a stream with a request, now or when the peer takes one more. `length`: what is said of the body's.
    pub(super) fn request(&mut self, head: &Parts, length: Option<u64>, ends: bool) -> Result<u32, Error> {
        if !self.may_open() {
            return Err(self.error.clone().unwrap_or(Error::Left(Reason::NO_ERROR)));
        }
        let id = self.next;
        self.next += 2;
        let mut stream = Stream::new(&self.limits, self.peer_window);
        stream.halves = 2;
        stream.is_head = head.method == Method::HEAD;
        stream.sending = if ends { Direction::Ended } else { Direction::Open };
        if self.open < self.peer_streams && self.waiting.is_empty() {
            self.open += 1;
            head::put_request(&mut self.encoder, id, head, length, ends, self.output.gathered());
        } else {
            stream.request = Some(Box::new((head.clone(), length)));
            self.waiting.push_back(id);
        }
        self.streams.insert(id, stream);
        self.wake();
        Ok(id)
    }

    /// Answers a request.
    pub(super) fn respond(
        &mut self,
        id: u32,
        status: StatusCode,
        headers: &HeaderMap,
        ends: bool,
    ) -> Result<(), Error> {
        let stream = self.streams.get_mut(&id).ok_or(Error::Reset(Reason::CANCEL))?;
        if let Some(error) = &stream.error {
            return Err(error.clone());
        }
        stream.sending = Direction::Open;
        head::put_response(&mut self.encoder, id, status, headers, ends, self.output.gathered());
        if ends {
            self.end_sending(id);
        }
        self.wake();
        Ok(())
    }

    pub(super) fn send_data(&mut self, id: u32, data: Bytes, ends: bool) -> Result<(), Error> {
        let stream = self.streams.get_mut(&id).ok_or(Error::Reset(Reason::CANCEL))?;
        if let Some(error) = &stream.error {
            return Err(error.clone());
        }
        if data.is_empty() && !ends {
            return Ok(());
        }
        let is_next = !stream.has_pending() && stream.request.is_none() && self.output.len() < OUTPUT_MAX;
        if is_next && data.len() <= stream.send.room().min(self.send.room()).min(PAYLOAD_MAX) {
            stream.send.take(data.len());
            self.send.take(data.len());
            let flags = if ends { frame::END_STREAM } else { 0 };
            self.output.gathered().extend_from_slice(&Head::octets(frame::DATA, flags, id, data.len()));
            self.output.push(data);
            if ends {
                self.end_sending(id);
            }
        } else {
            if !data.is_empty() {
                stream.pending.push_back(data);
            }
            if ends {
                stream.end = Some(None);
            }
            self.queue(id);
        }
        self.wake();
        Ok(())
    }

    pub(super) fn send_trailers(&mut self, id: u32, trailers: HeaderMap) -> Result<(), Error> {
        let stream = self.streams.get_mut(&id).ok_or(Error::Reset(Reason::CANCEL))?;
        if let Some(error) = &stream.error {
            return Err(error.clone());
        }
        let is_next = !stream.has_pending() && stream.request.is_none();
        stream.end = Some(Some(trailers));
        if is_next {
            self.finish_sending(id);
        } else {
            self.queue(id);
        }
        self.wake();
        Ok(())
    }

    fn queue(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.request.is_none()
            && !stream.is_queued
        {
            stream.is_queued = true;
            self.ready.push_back(id);
        }
    }

    /// Waits until all that was given is on its way.
    pub(super) fn poll_sent(&mut self, id: u32, cx: &Context<'_>) -> Poll<Result<(), Error>> {
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Ready(Ok(())) };
        match &stream.error {
            Some(error) => Poll::Ready(Err(error.clone())),
            None if stream.has_pending() => wait(&mut stream.sender, cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Waits until the stream is over before its end.
    pub(super) fn poll_error(&mut self, id: u32, cx: &Context<'_>) -> Poll<Error> {
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Pending };
        match &stream.error {
            Some(error) => Poll::Ready(error.clone()),
            None => wait(&mut stream.sender, cx),
        }
    }

    pub(super) fn poll_response(&mut self, id: u32, cx: &Context<'_>) -> Poll<Result<(StatusCode, HeaderMap), Error>> {
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Ready(Err(Error::Reset(Reason::CANCEL))) };
        match (stream.response.take(), &stream.error) {
            (Some(response), _) => Poll::Ready(Ok(response)),
            (None, Some(error)) => Poll::Ready(Err(error.clone())),
            (None, None) => wait(&mut stream.receiver, cx),
        }
    }

    /// The next part of what has come. None: only trailers may be left.
    pub(super) fn poll_data(&mut self, id: u32, cx: &Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Ready(None) };
        if let Some(data) = stream.take() {
            return Poll::Ready(Some(Ok(data)));
        }
        match &stream.error {
            _ if stream.receiving == Direction::Ended => Poll::Ready(None),
            Some(error) => Poll::Ready(Some(Err(error.clone()))),
            None => wait(&mut stream.receiver, cx),
        }
    }

    /// The trailers, when there is no more data.
    pub(super) fn take_trailers(&mut self, id: u32) -> Option<HeaderMap> {
        self.streams.get_mut(&id)?.trailers.take()
    }

    pub(super) fn is_end_stream(&self, id: u32) -> bool {
        self.streams.get(&id).is_none_or(Stream::has_been_taken)
    }

    /// Octets of what came were taken.
    pub(super) fn taken(&mut self, id: u32, count: usize) {
        let before = self.output.len();
        self.release(Some(id), count);
        if self.output.len() > before {
            self.wake();
        }
    }

    pub(super) fn send_reset(&mut self, id: u32, reason: Reason) {
        if self.streams.get(&id).is_some_and(|stream| !stream.is_closed()) {
            self.reset(id, reason);
        }
    }

    /// Somebody holds a half no more.
    pub(super) fn drop_half(&mut self, id: u32, is_receiving: bool) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.halves -= 1;
        let last = stream.halves == 0;
        if is_receiving {
            stream.is_deaf = true;
            stream.receiver = None;
            let count = stream.discard();
            self.release(None, count);
            self.wake();
        } else {
            stream.sender = None;
        }
        if last {
            self.drop_stream(id);
        }
    }

    /// Nobody will open a stream any more.
    pub(super) fn abandon(&mut self) {
        self.is_abandoned = true;
        self.wake();
    }
}
