//! What is asked of a connection by those that hold halves of streams, or open them.

use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, StatusCode};

use super::super::frame::PAYLOAD_MAX;
use super::super::head;
use super::super::stream::{Direction, Stream, wait};
use super::super::{Error, Reason};
use super::{Leaving, OUTPUT_MAX, State};
use crate::telemetry::alive::Kind;

// === impl State ===

impl State {
    /// Whether one more request can go onto this connection.
    pub(in crate::http2) fn may_open(&self) -> bool {
        self.error.is_none() && self.leaving == Leaving::No && !self.turns_away && self.next < 0x7fff_fff0
    }

    /// Streams that are open.
    pub(in crate::http2) fn open_streams(&self) -> usize {
        self.open
    }

    /// Requests at once that the server takes. None: it has not said yet.
    pub(in crate::http2) fn streams_max(&self) -> Option<usize> {
        self.is_settled.then_some(self.peer_streams)
    }

    /// Opens a stream with a request, now or when the peer takes one more. `length`: what is said of the body's.
    pub(in crate::http2) fn request(&mut self, head: &Parts, length: Option<u64>, ends: bool) -> Result<u32, Error> {
        if !self.may_open() {
            return Err(self.error.clone().unwrap_or(Error::Left(Reason::NO_ERROR)));
        }
        let id = self.next;
        self.next += 2;
        let mut stream = Stream::new(Kind::UpstreamStream, &self.limits, self.peer_window);
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
        stream.sending = Direction::Open;
        head::put_response(&mut self.encoder, id, status, headers, ends, self.output.gathered());
        if ends {
            self.end_sending(id);
        }
        self.wake();
        Ok(())
    }

    /// Says something before the answer.
    pub(in crate::http2) fn inform(&mut self, id: u32, status: StatusCode, headers: &HeaderMap) {
        let is_open = |stream: &Stream| stream.error.is_none() && stream.sending == Direction::Waiting;
        if self.output.len() < OUTPUT_MAX && self.streams.get(&id).is_some_and(is_open) {
            head::put_response(&mut self.encoder, id, status, headers, false, self.output.gathered());
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
        let is_first = !stream.has_pending() && stream.request.is_none();
        // Those that wait already go first: they may wait for what this one would use up.
        let has_room = self.ready.is_empty()
            && self.output.len() < OUTPUT_MAX
            && data.len() <= stream.send.room().min(self.send.room()).min(PAYLOAD_MAX);
        if is_first && (has_room || data.is_empty()) {
            self.put_data(id, data, ends);
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

    pub(in crate::http2) fn send_trailers(&mut self, id: u32, trailers: HeaderMap) -> Result<(), Error> {
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

    /// Waits until all that was given is on its way.
    pub(in crate::http2) fn poll_sent(&mut self, id: u32, cx: &Context<'_>) -> Poll<Result<(), Error>> {
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Ready(Ok(())) };
        match &stream.error {
            Some(error) => Poll::Ready(Err(error.clone())),
            None if stream.has_pending() => wait(&mut stream.sender, cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Waits until the stream is over before its end.
    pub(in crate::http2) fn poll_error(&mut self, id: u32, cx: &Context<'_>) -> Poll<Error> {
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Pending };
        match &stream.error {
            Some(error) => Poll::Ready(error.clone()),
            None => wait(&mut stream.sender, cx),
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
            (None, None) => wait(&mut stream.receiver, cx),
        }
    }

    pub(in crate::http2) fn take_interim(&mut self, id: u32) -> Option<(StatusCode, HeaderMap)> {
        self.streams.get_mut(&id)?.interim.as_mut()?.waiting.pop_front()
    }

    /// The next part of what has come. None: only trailers may be left.
    pub(in crate::http2) fn poll_data(&mut self, id: u32, cx: &Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
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

    /// Waits for what comes behind the head, without taking it: this trailer, if trailers come without content.
    pub(in crate::http2) fn poll_trailer(
        &mut self,
        id: u32,
        name: &HeaderName,
        cx: &Context<'_>,
    ) -> Poll<Option<HeaderValue>> {
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Ready(None) };
        if stream.has_content() || stream.error.is_some() {
            return Poll::Ready(None);
        }
        match stream.receiving {
            Direction::Ended => Poll::Ready(stream.trailers.as_ref().and_then(|trailers| trailers.get(name).cloned())),
            Direction::Waiting | Direction::Open => wait(&mut stream.receiver, cx),
        }
    }

    /// The trailers, when there is no more data.
    pub(in crate::http2) fn take_trailers(&mut self, id: u32) -> Option<HeaderMap> {
        self.streams.get_mut(&id)?.trailers.take()
    }

    pub(in crate::http2) fn is_end_stream(&self, id: u32) -> bool {
        self.streams.get(&id).is_none_or(Stream::has_been_taken)
    }

    /// Octets of what came were taken.
    pub(in crate::http2) fn taken(&mut self, id: u32, count: usize) {
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

    /// Somebody holds a half no more.
    pub(in crate::http2) fn drop_half(&mut self, id: u32, is_receiving: bool) {
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
    pub(in crate::http2) fn abandon(&mut self) {
        self.is_abandoned = true;
        self.wake();
    }
}
