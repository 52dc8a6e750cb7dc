//! What the handles of streams and of client connections call.

use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, StatusCode};

use super::super::error::{Error, Reason};
use super::super::frame::PAYLOAD_MAX;
use super::super::head;
use super::super::stream::{HalfState, Stream, register};
use super::{GoAway, OUTPUT_MAX, State};

// === impl State ===

impl State {
    /// Whether another request can be sent on this connection.
    #[inline]
    pub(in crate::http2) fn can_open(&self) -> bool {
        self.error.is_none() && self.go_away == GoAway::None && !self.rejects_requests && self.next_id < 0x7fff_fff0
    }

    pub(in crate::http2) fn wake_streams(&mut self) {
        self.streams.values_mut().for_each(|stream| stream.wake());
    }

    /// Streams that are open.
    #[inline]
    pub(in crate::http2) fn open_streams(&self) -> usize {
        self.open
    }

    /// The peer's SETTINGS_MAX_CONCURRENT_STREAMS. None: its SETTINGS have not arrived.
    #[inline]
    pub(in crate::http2) fn max_concurrent_streams(&self) -> Option<usize> {
        self.has_peer_settings.then_some(self.peer_max_streams)
    }

    /// Opens a stream with a request, or queues it until the peer accepts another stream. `length`: the
    /// `content-length` to send if the headers have none.
    pub(in crate::http2) fn request(&mut self, head: &Parts, length: Option<u64>, ends: bool) -> Result<u32, Error> {
        if !self.can_open() {
            return Err(self.error.clone().unwrap_or(Error::GoAway(Reason::NO_ERROR)));
        }
        let id = self.next_id;
        self.next_id += 2;
        let mut stream = Box::new(Stream::new(self.count_streams, &self.limits, self.peer_initial_window));
        stream.handles = 2;
        stream.is_head_request = head.method == Method::HEAD;
        stream.send = if ends { HalfState::Closed } else { HalfState::Open };
        if self.open < self.peer_max_streams && self.pending_open.is_empty() {
            self.open += 1;
            head::put_request(&mut self.encoder, id, head, length, ends, self.output.buffer());
        } else {
            stream.unsent_request = Some(Box::new((head.clone(), length)));
            self.pending_open.push_back(id);
        }
        self.streams.insert(id, stream);
        self.wake();
        Ok(id)
    }

    /// Sends the head of a response.
    pub(in crate::http2) fn respond(
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
        stream.send = HalfState::Open;
        head::put_response(&mut self.encoder, id, status, headers, ends, self.output.buffer());
        if ends {
            self.close_send(id);
        }
        self.wake();
        Ok(())
    }

    /// Sends an interim (1xx) response, unless too much output waits.
    pub(in crate::http2) fn send_interim(&mut self, id: u32, status: StatusCode, headers: &HeaderMap) {
        let is_open = |stream: &Stream| stream.error.is_none() && stream.send == HalfState::AwaitingHead;
        if self.output.len() < OUTPUT_MAX && self.streams.get(&id).is_some_and(|stream| is_open(stream)) {
            head::put_response(&mut self.encoder, id, status, headers, false, self.output.buffer());
            self.wake();
        }
    }

    pub(in crate::http2) fn send_data(&mut self, id: u32, data: Bytes, ends: bool) -> Result<(), Error> {
        let stream = self.streams.get_mut(&id).ok_or(Error::Reset(Reason::CANCEL))?;
        if let Some(error) = &stream.error {
            return Err(error.clone());
        }
        if data.is_empty() && !ends {
            return Ok(());
        }
        let is_first = !stream.has_pending() && stream.unsent_request.is_none();
        // Queued streams go first: they may be waiting for the window that this one would use.
        let fits_now = self.send_queue.is_empty()
            && self.output.len() < OUTPUT_MAX
            && data.len() <= stream.send_window.available().min(self.send_window.available()).min(PAYLOAD_MAX);
        if is_first && (fits_now || data.is_empty()) {
            self.put_data(id, data, ends);
        } else {
            if !data.is_empty() {
                stream.pending_data.push_back(data);
            }
            if ends {
                stream.pending_end = Some(None);
            }
            self.enqueue(id);
        }
        self.wake();
        Ok(())
    }

    pub(in crate::http2) fn send_trailers(&mut self, id: u32, trailers: HeaderMap) -> Result<(), Error> {
        let stream = self.streams.get_mut(&id).ok_or(Error::Reset(Reason::CANCEL))?;
        if let Some(error) = &stream.error {
            return Err(error.clone());
        }
        let is_next = !stream.has_pending() && stream.unsent_request.is_none();
        stream.pending_end = Some(Some(trailers));
        if is_next {
            self.send_end_stream(id);
        } else {
            self.enqueue(id);
        }
        self.wake();
        Ok(())
    }

    /// Waits until all buffered data was put into the output.
    pub(in crate::http2) fn poll_sent(&mut self, id: u32, cx: &Context<'_>) -> Poll<Result<(), Error>> {
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Ready(Ok(())) };
        match &stream.error {
            Some(error) => Poll::Ready(Err(error.clone())),
            None if stream.has_pending() => register(&mut stream.send_waker, cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Waits until the stream ends early.
    pub(in crate::http2) fn poll_error(&mut self, id: u32, cx: &Context<'_>) -> Poll<Error> {
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Pending };
        match &stream.error {
            Some(error) => Poll::Ready(error.clone()),
            None => register(&mut stream.send_waker, cx),
        }
    }

    pub(in crate::http2) fn poll_response(
        &mut self,
        id: u32,
        cx: &Context<'_>,
    ) -> Poll<Result<(StatusCode, HeaderMap), Error>> {
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Ready(Err(Error::Reset(Reason::CANCEL))) };
        match (stream.response.take(), &stream.error) {
            (Some(response), _) => Poll::Ready(Ok(response)),
            (None, Some(error)) => Poll::Ready(Err(error.clone())),
            (None, None) => register(&mut stream.recv_waker, cx),
        }
    }

    pub(in crate::http2) fn take_interim(&mut self, id: u32) -> Option<(StatusCode, HeaderMap)> {
        self.streams.get_mut(&id)?.interim.as_mut()?.pending.pop_front()
    }

    /// The next received part of the body. None: only trailers may remain.
    pub(in crate::http2) fn poll_data(&mut self, id: u32, cx: &Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Ready(None) };
        if let Some(data) = stream.pop_received() {
            return Poll::Ready(Some(Ok(data)));
        }
        match &stream.error {
            _ if stream.recv == HalfState::Closed => Poll::Ready(None),
            Some(error) => Poll::Ready(Some(Err(error.clone()))),
            None => register(&mut stream.recv_waker, cx),
        }
    }

    /// Waits for trailers or content behind the head, without consuming them. Returns the trailer `name` if trailers
    /// come without content.
    pub(in crate::http2) fn poll_trailer(
        &mut self,
        id: u32,
        name: &HeaderName,
        cx: &Context<'_>,
    ) -> Poll<Option<HeaderValue>> {
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Ready(None) };
        if stream.has_received() || stream.error.is_some() {
            return Poll::Ready(None);
        }
        match stream.recv {
            HalfState::Closed => Poll::Ready(stream.trailers.as_ref().and_then(|trailers| trailers.get(name).cloned())),
            HalfState::AwaitingHead | HalfState::Open => register(&mut stream.recv_waker, cx),
        }
    }

    /// The trailers, once there is no more data.
    pub(in crate::http2) fn take_trailers(&mut self, id: u32) -> Option<HeaderMap> {
        self.streams.get_mut(&id)?.trailers.take()
    }

    pub(in crate::http2) fn is_end_stream(&self, id: u32) -> bool {
        self.streams.get(&id).is_none_or(|stream| stream.is_fully_read())
    }

    /// Credits bytes that were read to the flow control windows.
    pub(in crate::http2) fn release_capacity(&mut self, id: u32, count: usize) {
        let before = self.output.len();
        self.release(Some(id), count);
        if self.output.len() > before {
            self.wake();
        }
    }

    pub(in crate::http2) fn send_reset(&mut self, id: u32, reason: Reason) {
        if self.streams.get(&id).is_some_and(|stream| !stream.is_closed()) {
            self.reset(id, reason, Error::Reset(reason));
        }
    }

    /// A handle was dropped.
    pub(in crate::http2) fn drop_handle(&mut self, id: u32, is_receiving: bool) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.handles -= 1;
        let last = stream.handles == 0;
        if is_receiving {
            stream.recv_dropped = true;
            stream.recv_waker = None;
            let count = stream.discard_received();
            self.release(None, count);
            self.wake();
        } else {
            stream.send_waker = None;
        }
        if last {
            self.drop_stream(id);
        }
    }

    /// The [`super::super::Requests`] handle was dropped: no stream will be opened.
    pub(in crate::http2) fn drop_requests(&mut self) {
        self.requests_dropped = true;
        self.wake();
    }
}
