//! What received frames do. An `Err` is a connection error (RFC 9113 5.4.1).

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http::header::HeaderMap;
use tokio::time::Instant;

use super::super::error::{Error, Reason};
use super::super::frame::{self, FrameHeader, Setting};
use super::super::head::{self, Fields, Malformed};
use super::super::limits::TooLarge;
use super::super::stream::{HalfState, Stream};
use super::{
    CONTINUATIONS_MAX, CONTROL_BUDGET_PER_DATA, GoAway, HeaderBlock, Payload, RAPID_RESET, SHUTDOWN_PING,
    STREAMS_PER_CONTROL_FRAME, Side, State,
};

// === impl State ===

impl State {
    pub(in crate::http2) fn recv_frame(&mut self, head: FrameHeader, payload: &Payload<'_>) -> Result<(), Reason> {
        let bytes = payload.bytes();
        if !self.has_peer_settings && head.kind != frame::SETTINGS {
            return Err(Reason::PROTOCOL_ERROR);
        }
        if let Some(block) = &self.header_block
            && (head.kind != frame::CONTINUATION || head.stream != block.head.stream)
        {
            return Err(Reason::PROTOCOL_ERROR);
        }
        match head.kind {
            frame::DATA => self.recv_data(&head, payload),
            frame::HEADERS => self.recv_headers(head, payload),
            frame::CONTINUATION => self.recv_continuation(&head, bytes),
            frame::PRIORITY => match bytes.len() {
                _ if head.stream == 0 || frame::stream_id(bytes) == Some(head.stream) => Err(Reason::PROTOCOL_ERROR),
                5 => self.spend_control(1),
                _ => Err(Reason::FRAME_SIZE_ERROR),
            },
            frame::RST_STREAM => {
                let reason = u32::from_be_bytes(bytes.try_into().map_err(|_| Reason::FRAME_SIZE_ERROR)?);
                self.recv_reset(head.stream, Reason(reason))
            }
            frame::SETTINGS => self.recv_settings(&head, bytes),
            frame::PING => self.recv_ping(&head, bytes),
            frame::GOAWAY => self.recv_go_away(&head, bytes),
            frame::WINDOW_UPDATE => self.recv_window_update(head.stream, bytes),
            frame::PUSH_PROMISE => Err(Reason::PROTOCOL_ERROR),
            // RFC 9113 5.5: unknown frame types are ignored.
            _ => self.spend_control(1),
        }
    }

    /// Whether a stream was never opened (RFC 9113 5.1).
    fn is_idle(&self, id: u32) -> bool {
        id.is_multiple_of(2) || id >= self.next_id
    }

    fn recv_data(&mut self, head: &FrameHeader, payload: &Payload<'_>) -> Result<(), Reason> {
        let id = head.stream;
        if self.is_idle(id) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let content = frame::content(head, payload.bytes())?;
        self.recv_window.consume(head.length)?;
        let ends = head.has(frame::END_STREAM);
        if content.is_empty() && !ends {
            self.spend_control(1)?;
        }
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.error.is_none()) else {
            self.release(None, head.length);
            return self.recv_on_closed(id);
        };
        let problem = match stream.recv {
            HalfState::AwaitingHead => Some(Reason::PROTOCOL_ERROR),
            HalfState::Closed => Some(Reason::STREAM_CLOSED),
            HalfState::Open => stream.recv_window.consume(head.length).err(),
        };
        self.message_frames += 1;
        if let Some(reason) = problem {
            self.release(None, head.length);
            return self.reset_for_peer_error(id, reason);
        }
        let (length, padding) = (content.len(), head.length - content.len());
        if stream.count_content(length).is_err() {
            self.release(None, head.length);
            return self.reset_for_peer_error(id, Reason::PROTOCOL_ERROR);
        }
        if stream.recv_dropped {
            // Only the connection's window grows: the peer need not send more of this stream.
            self.release(None, head.length);
        } else {
            stream.push_received(payload.slice(content));
            if !ends && let Some(waker) = stream.recv_waker.take() {
                waker.wake();
            }
            self.release(Some(id), padding);
        }
        if length > 0 {
            self.refund_control(CONTROL_BUDGET_PER_DATA);
        }
        if ends { self.close_recv(id, None) } else { Ok(()) }
    }

    /// END_STREAM has come.
    fn close_recv(&mut self, id: u32, trailers: Option<HeaderMap>) -> Result<(), Reason> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        if stream.close_recv(trailers).is_err() {
            return self.reset_for_peer_error(id, Reason::PROTOCOL_ERROR);
        }
        if let Some(waker) = stream.recv_waker.take() {
            waker.wake();
        }
        if stream.send == HalfState::Closed {
            self.close(id);
        }
        Ok(())
    }

    fn recv_headers(&mut self, head: FrameHeader, payload: &Payload<'_>) -> Result<(), Reason> {
        let bytes = payload.bytes();
        if head.stream.is_multiple_of(2) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let content = frame::content(&head, bytes)?;
        if head.has(frame::PRIORITY_FLAG) && frame::stream_id(&bytes[content.start - 5..]) == Some(head.stream) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        if head.has(frame::END_HEADERS) {
            return self.recv_header_block(&head, payload.slice(content));
        }
        let bytes = BytesMut::from(&bytes[content]);
        self.header_block = Some(HeaderBlock { head, bytes, continuations: 0, started: Instant::now() });
        Ok(())
    }

    fn recv_continuation(&mut self, head: &FrameHeader, bytes: &[u8]) -> Result<(), Reason> {
        let mut block = self.header_block.take().ok_or(Reason::PROTOCOL_ERROR)?;
        block.continuations += 1;
        let length = block.bytes.len() + bytes.len();
        if block.continuations > CONTINUATIONS_MAX || length > 2 * self.limits.head_bytes as usize {
            return Err(Reason::ENHANCE_YOUR_CALM);
        }
        block.bytes.extend_from_slice(bytes);
        if head.has(frame::END_HEADERS) {
            return self.recv_header_block(&block.head, block.bytes.freeze());
        }
        self.header_block = Some(block);
        Ok(())
    }

    fn recv_header_block(&mut self, head: &FrameHeader, block: Bytes) -> Result<(), Reason> {
        let fields = Fields::decode(&mut self.decoder, block, self.limits.head_bytes)?;
        let (id, ends) = (head.stream, head.has(frame::END_STREAM));
        self.message_frames += 1;
        let Some(stream) = self.streams.get_mut(&id) else {
            return match self.side {
                Side::Server => self.recv_request(id, fields, ends),
                Side::Client if self.is_idle(id) => Err(Reason::PROTOCOL_ERROR),
                // The response to a request that was cancelled and forgotten.
                Side::Client => self.spend_control(1),
            };
        };
        if stream.is_closed() {
            // The frame may have been sent before the peer saw our RST_STREAM.
            let is_late = self.side == Side::Client || self.recently_reset.contains(&id);
            return if is_late { self.spend_control(1) } else { Err(Reason::STREAM_CLOSED) };
        }
        let recv = stream.recv;
        self.refund_control(CONTROL_BUDGET_PER_DATA);
        match recv {
            HalfState::Closed => self.reset_for_peer_error(id, Reason::STREAM_CLOSED),
            HalfState::AwaitingHead => self.recv_response(id, fields, ends),
            HalfState::Open if fields.is_too_large() => self.reset_too_large(id),
            HalfState::Open => match fields.into_trailers() {
                Ok(trailers) if ends => self.close_recv(id, Some(trailers)),
                _ => self.reset_for_peer_error(id, Reason::PROTOCOL_ERROR),
            },
        }
    }

    fn recv_request(&mut self, id: u32, fields: Fields, ends: bool) -> Result<(), Reason> {
        if !self.is_idle(id) {
            if self.recently_reset.contains(&id) {
                return self.spend_control(1);
            }
            // Of lower identifiers it is not known whether they were ever used.
            return Err(if id == self.last_peer_stream() { Reason::STREAM_CLOSED } else { Reason::PROTOCOL_ERROR });
        }
        self.next_id = id + 2;
        if self.go_away == GoAway::Final {
            // Our GOAWAY has told the client that this stream is not processed.
            self.remember_reset(id);
            return self.spend_control(1);
        }
        if self.open >= self.limits.streams as usize {
            return self.reset_unknown(id, Reason::REFUSED_STREAM);
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
        let mut stream = Box::new(Stream::new(self.count_streams, &self.limits, self.peer_initial_window));
        stream.open_recv(content);
        if ends && stream.close_recv(None).is_err() {
            return self.refuse_malformed(id);
        }
        self.streams.insert(id, stream);
        self.open += 1;
        self.refund_control(CONTROL_BUDGET_PER_DATA);
        self.accepted.push_back((id, request));
        Ok(())
    }

    fn refuse_malformed(&mut self, id: u32) -> Result<(), Reason> {
        self.malformed += 1;
        self.reset_unknown(id, Reason::PROTOCOL_ERROR)
    }

    /// Resets a stream whose headers or trailers exceed our limits. A server has not violated the protocol, and each
    /// such response answers a request of ours, so it costs a server no reset budget.
    fn reset_too_large(&mut self, id: u32) -> Result<(), Reason> {
        self.reset(id, Reason::CANCEL, Error::TooLarge);
        if self.side == Side::Server { self.spend_reset_budget() } else { Ok(()) }
    }

    fn recv_response(&mut self, id: u32, fields: Fields, ends: bool) -> Result<(), Reason> {
        if fields.is_too_large() {
            return self.reset_too_large(id);
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        let Ok((status, headers)) = fields.into_response() else {
            return self.reset_for_peer_error(id, Reason::PROTOCOL_ERROR);
        };
        if status.is_informational() {
            let is_flood = stream.interim.get_or_insert_default().push(status, headers);
            if ends || is_flood {
                return self.reset_for_peer_error(id, Reason::PROTOCOL_ERROR);
            }
            if let Some(waker) = stream.recv_waker.take() {
                waker.wake();
            }
            return Ok(());
        }
        // RFC 9110 6.4.1: these have no content, whatever their `content-length`.
        let is_bodiless = stream.is_head_request || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let content = match head::content_length(&headers) {
            Err(Malformed) => return self.reset_for_peer_error(id, Reason::PROTOCOL_ERROR),
            Ok(_) if is_bodiless => Some(0),
            Ok(content) => content,
        };
        stream.open_recv(content);
        stream.response = Some((status, headers));
        if ends {
            return self.close_recv(id, None);
        }
        if let Some(waker) = stream.recv_waker.take() {
            waker.wake();
        }
        Ok(())
    }

    fn recv_reset(&mut self, id: u32, reason: Reason) -> Result<(), Reason> {
        if self.is_idle(id) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.is_closed()) else {
            return self.spend_control(1);
        };
        let is_rapid = stream.send == HalfState::AwaitingHead && stream.opened.elapsed() < RAPID_RESET;
        stream.error = Some(Error::Reset(reason));
        self.close(id);
        if is_rapid { self.spend_reset_budget() } else { Ok(()) }
    }

    fn recv_settings(&mut self, head: &FrameHeader, bytes: &[u8]) -> Result<(), Reason> {
        if head.stream != 0 {
            return Err(Reason::PROTOCOL_ERROR);
        }
        if head.has(frame::ACK) {
            return if bytes.is_empty() { self.spend_control(1) } else { Err(Reason::FRAME_SIZE_ERROR) };
        }
        let (settings, []) = bytes.as_chunks::<6>() else { return Err(Reason::FRAME_SIZE_ERROR) };
        if !self.has_peer_settings {
            self.has_peer_settings = true;
            // The initial value: no limit (RFC 9113 6.5.2).
            self.peer_max_streams = usize::MAX;
        }
        let mut window = self.peer_initial_window;
        for setting in settings {
            match frame::setting(*setting)? {
                Some(Setting::HeaderTableSize(size)) => self.encoder.set_size_max(size as usize),
                Some(Setting::MaxConcurrentStreams(count)) => self.peer_max_streams = count as usize,
                // Only the last value is applied, as each change touches all streams.
                Some(Setting::InitialWindowSize(size)) => window = size as i32,
                // RFC 9113 6.5.2: a server must not enable push.
                Some(Setting::EnablePush(true)) if self.side == Side::Client => return Err(Reason::PROTOCOL_ERROR),
                Some(Setting::EnablePush(_) | Setting::MaxFrameSize(_)) | None => {}
            }
        }
        self.spend_control(1)?;
        if window != self.peer_initial_window {
            self.set_peer_initial_window(window)?;
        }
        self.put(frame::SETTINGS, frame::ACK, 0, &[]);
        self.open_pending();
        Ok(())
    }

    /// Applies a new SETTINGS_INITIAL_WINDOW_SIZE to all streams (RFC 9113 6.9.2).
    fn set_peer_initial_window(&mut self, window: i32) -> Result<(), Reason> {
        self.spend_control(u32::try_from(self.streams.len() / STREAMS_PER_CONTROL_FRAME).unwrap_or(u32::MAX))?;
        let by = window - self.peer_initial_window;
        self.peer_initial_window = window;
        let mut ready = Vec::new();
        for (id, stream) in &mut self.streams {
            stream.send_window.grow(by)?;
            if !stream.pending_data.is_empty() {
                ready.push(*id);
            }
        }
        ready.into_iter().for_each(|id| self.enqueue(id));
        Ok(())
    }

    fn recv_ping(&mut self, head: &FrameHeader, bytes: &[u8]) -> Result<(), Reason> {
        self.spend_control(1)?;
        if head.stream != 0 {
            return Err(Reason::PROTOCOL_ERROR);
        }
        if bytes.len() != 8 {
            return Err(Reason::FRAME_SIZE_ERROR);
        }
        if !head.has(frame::ACK) {
            self.put(frame::PING, frame::ACK, 0, bytes);
        } else if bytes == SHUTDOWN_PING && self.go_away == GoAway::Announced {
            // Everything that the client sent before it saw the first GOAWAY has come.
            self.send_go_away();
        }
        Ok(())
    }

    fn recv_go_away(&mut self, head: &FrameHeader, bytes: &[u8]) -> Result<(), Reason> {
        if head.stream != 0 {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let (Some(last), Some(reason)) = (frame::stream_id(bytes), bytes.get(4..8)) else {
            return Err(Reason::FRAME_SIZE_ERROR);
        };
        self.spend_control(1)?;
        if self.side == Side::Server {
            return Ok(());
        }
        self.go_away = GoAway::Final;
        let mut bytes = [0; 4];
        bytes.copy_from_slice(reason);
        let reason = Reason(u32::from_be_bytes(bytes));
        self.got_enhance_your_calm |= reason == Reason::ENHANCE_YOUR_CALM;
        let error = Error::GoAway(reason);
        let late: Vec<u32> = self
            .streams
            .iter()
            .filter(|(id, stream)| (**id > last || stream.unsent_request.is_some()) && !stream.is_closed())
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

    fn recv_window_update(&mut self, id: u32, bytes: &[u8]) -> Result<(), Reason> {
        let by = u32::from_be_bytes(bytes.try_into().map_err(|_| Reason::FRAME_SIZE_ERROR)?) & 0x7fff_ffff;
        self.spend_control(1)?;
        if id == 0 {
            if by == 0 {
                return Err(Reason::PROTOCOL_ERROR);
            }
            return self.send_window.grow(by as i32);
        }
        if self.is_idle(id) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.error.is_none()) else { return Ok(()) };
        if by == 0 {
            return self.reset_for_peer_error(id, Reason::PROTOCOL_ERROR);
        }
        if let Err(reason) = stream.send_window.grow(by as i32) {
            return self.reset_for_peer_error(id, reason);
        }
        self.enqueue(id);
        Ok(())
    }
}
