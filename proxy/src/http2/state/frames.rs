//! What frames mean. An error ends the connection.

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http::header::HeaderMap;
use tokio::time::Instant;

use super::super::frame::{self, Head, Setting};
use super::super::head::{self, Fields, Malformed};
use super::super::stream::{Direction, Stream};
use super::super::{Error, Reason, TooLarge};
use super::{Block, CONTINUATIONS_MAX, FAREWELL, Leaving, Payload, SOON, SPARE_EARNED, SPARE_STREAMS, Side, State};
use crate::telemetry::alive::Kind;

// === impl State ===

impl State {
    pub(in crate::http2) fn take_frame(&mut self, head: Head, payload: &Payload<'_>) -> Result<(), Reason> {
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
                5 => self.spend(1),
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
            _ => self.spend(1),
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
            self.spend(1)?;
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
        self.answers += 1;
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
        if length > 0 {
            self.earn(SPARE_EARNED);
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
        let octets = BytesMut::from(&octets[content]);
        self.block = Some(Block { head, octets, frames: 0, begun: Instant::now() });
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
        self.answers += 1;
        let Some(stream) = self.streams.get_mut(&id) else {
            return match self.side {
                Side::Server => self.take_request(id, fields, ends),
                Side::Client if self.is_idle(id) => Err(Reason::PROTOCOL_ERROR),
                // Of a stream that was given up.
                Side::Client => self.spend(1),
            };
        };
        if stream.is_closed() {
            // What was reset from here may be answered by what was on its way.
            let is_late = self.side == Side::Client || self.forgotten.contains(&id);
            return if is_late { self.spend(1) } else { Err(Reason::STREAM_CLOSED) };
        }
        let receiving = stream.receiving;
        self.earn(SPARE_EARNED);
        match receiving {
            Direction::Ended => self.provoked(id, Reason::STREAM_CLOSED),
            Direction::Waiting => self.take_response(id, fields, ends),
            Direction::Open if fields.is_too_large() => self.reset_too_large(id),
            Direction::Open => match fields.into_trailers() {
                Ok(trailers) if ends => self.finish_receiving(id, Some(trailers)),
                _ => self.provoked(id, Reason::PROTOCOL_ERROR),
            },
        }
    }

    fn take_request(&mut self, id: u32, fields: Fields, ends: bool) -> Result<(), Reason> {
        if !self.is_idle(id) {
            if self.forgotten.contains(&id) {
                return self.spend(1);
            }
            // The last is known to have been opened; of others nobody knows.
            return Err(if id == self.last() { Reason::STREAM_CLOSED } else { Reason::PROTOCOL_ERROR });
        }
        self.next = id + 2;
        if self.leaving == Leaving::Final {
            // The client was told that this one is not looked at.
            self.forget(id);
            return self.spend(1);
        }
        if self.open >= self.limits.streams as usize {
            return self.refuse(id, Reason::REFUSED_STREAM);
        }
        let (request, content) = if fields.is_oversized {
            (Err(TooLarge), None)
        } else {
            let request = fields
                .into_request()
                .and_then(|request| head::content_length(request.headers()).map(|content| (Ok(request), content)));
            let Ok(request) = request else { return self.refuse_malformed(id) };
            request
        };
        let mut stream = Stream::new(Kind::DownstreamStream, &self.limits, self.peer_window);
        stream.begin(content);
        if ends && stream.finish(None).is_err() {
            return self.refuse_malformed(id);
        }
        self.streams.insert(id, stream);
        self.open += 1;
        self.earn(SPARE_EARNED);
        self.accepted.push_back((id, request));
        Ok(())
    }

    fn refuse_malformed(&mut self, id: u32) -> Result<(), Reason> {
        self.malformed += 1;
        self.refuse(id, Reason::PROTOCOL_ERROR)
    }

    /// A head or trailers are larger than what is taken. That is this side's limit: a server has done nothing wrong, and as it sent
    /// them for a request from here, it cannot do so without end.
    fn reset_too_large(&mut self, id: u32) -> Result<(), Reason> {
        self.reset(id, Reason::CANCEL, Error::TooLarge);
        if self.side == Side::Server { self.lose_patience() } else { Ok(()) }
    }

    fn take_response(&mut self, id: u32, fields: Fields, ends: bool) -> Result<(), Reason> {
        if fields.is_too_large() {
            return self.reset_too_large(id);
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        let Ok((status, headers)) = fields.into_response() else { return self.provoked(id, Reason::PROTOCOL_ERROR) };
        if status.is_informational() {
            let is_flood = stream.interim.get_or_insert_default().push(status, headers);
            if ends || is_flood {
                return self.provoked(id, Reason::PROTOCOL_ERROR);
            }
            if let Some(receiver) = stream.receiver.take() {
                receiver.wake();
            }
            return Ok(());
        }
        // RFC 9110 6.4.1: no content comes with these, whatever length their head gives.
        let is_bodiless = stream.is_head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let content = match head::content_length(&headers) {
            Err(Malformed) => return self.provoked(id, Reason::PROTOCOL_ERROR),
            Ok(_) if is_bodiless => Some(0),
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
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.is_closed()) else { return self.spend(1) };
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
            return if octets.is_empty() { self.spend(1) } else { Err(Reason::FRAME_SIZE_ERROR) };
        }
        let (settings, []) = octets.as_chunks::<6>() else { return Err(Reason::FRAME_SIZE_ERROR) };
        if !self.is_settled {
            self.is_settled = true;
            // What is not said is not limited.
            self.peer_streams = usize::MAX;
        }
        let mut window = self.peer_window;
        for setting in settings {
            match frame::setting(*setting)? {
                Some(Setting::TableSize(size)) => self.encoder.set_size_max(size as usize),
                Some(Setting::Streams(count)) => self.peer_streams = count as usize,
                // The last one counts: each change is one of all streams.
                Some(Setting::Window(size)) => window = size as i32,
                // RFC 9113 6.5.2: a server never promises to take pushes.
                Some(Setting::Push(true)) if self.side == Side::Client => return Err(Reason::PROTOCOL_ERROR),
                Some(Setting::Push(_) | Setting::Payload(_)) | None => {}
            }
        }
        self.spend(1)?;
        if window != self.peer_window {
            self.change_window(window)?;
        }
        self.put(frame::SETTINGS, frame::ACK, 0, &[]);
        self.open_waiting();
        Ok(())
    }

    /// The peer takes more in each stream than before, or less.
    fn change_window(&mut self, window: i32) -> Result<(), Reason> {
        self.spend(u32::try_from(self.streams.len() / SPARE_STREAMS).unwrap_or(u32::MAX))?;
        let by = window - self.peer_window;
        self.peer_window = window;
        let mut ready = Vec::new();
        for (id, stream) in &mut self.streams {
            stream.send.grow(by)?;
            if !stream.pending.is_empty() {
                ready.push(*id);
            }
        }
        ready.into_iter().for_each(|id| self.queue(id));
        Ok(())
    }

    fn take_ping(&mut self, head: &Head, octets: &[u8]) -> Result<(), Reason> {
        self.spend(1)?;
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
        self.spend(1)?;
        if self.side == Side::Server {
            return Ok(());
        }
        self.leaving = Leaving::Final;
        let mut octets = [0; 4];
        octets.copy_from_slice(reason);
        let reason = Reason(u32::from_be_bytes(octets));
        self.wants_calm |= reason == Reason::ENHANCE_YOUR_CALM;
        let error = Error::Left(reason);
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
        self.spend(1)?;
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
        self.queue(id);
        Ok(())
    }
}
