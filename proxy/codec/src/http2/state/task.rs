//! What the connection's task calls, besides passing frames on.

use std::io;
use std::task::{Context, Poll};

use http::Request;
use tokio::time::Instant;

use super::super::error::{Error, Reason};
use super::super::frame::{self, PAYLOAD_MAX};
use super::super::limits::TooLarge;
use super::super::stream::{HalfState, Stream, register};
use super::{GoAway, KEEPALIVE_PING, OUTPUT_MAX, OUTPUT_READ_STOP, SHUTDOWN_PING, State};

/// The error of requests that waited when their connection closed.
const UNSENT: &str = "connection closed before the request was sent";

// === impl State ===

impl State {
    /// Registers the connection's task, which is running.
    #[inline]
    pub(in crate::http2) fn run(&mut self, cx: &Context<'_>) {
        self.is_woken = false;
        let _: Poll<()> = register(&mut self.waker, cx);
    }

    /// Whether to stop reading until output was written.
    #[inline]
    pub(in crate::http2) fn is_full(&self) -> bool {
        self.output.len() >= OUTPUT_READ_STOP
    }

    /// Whether only the output remains to be written.
    #[inline]
    pub(in crate::http2) fn is_done(&self) -> bool {
        let is_last = self.go_away == GoAway::Final || self.requests_dropped;
        self.error.is_some() || (is_last && self.open == 0 && self.pending_open.is_empty())
    }

    /// The next received request that was not reset since.
    pub(in crate::http2) fn accept(&mut self) -> Option<(u32, Result<Request<()>, TooLarge>)> {
        while let Some((id, request)) = self.accepted.pop_front() {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            if stream.error.is_some() {
                self.remove(id);
                continue;
            }
            stream.handles = 2;
            return Some((id, request));
        }
        None
    }

    /// Whether a queued stream can send.
    #[inline]
    pub(in crate::http2) fn can_send_more(&self) -> bool {
        self.send_window.available() > 0 && !self.send_queue.is_empty()
    }

    /// Puts data of queued streams into the output, as far as the windows and [`OUTPUT_MAX`] allow.
    pub(in crate::http2) fn fill_output(&mut self) {
        while self.output.len() < OUTPUT_MAX
            && let Some(id) = self.send_queue.pop_front()
        {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            stream.is_queued = false;
            if stream.error.is_some() {
                continue;
            }
            let window = stream.send_window.available().min(self.send_window.available()).min(PAYLOAD_MAX);
            let Some(data) = stream.pending_data.front_mut() else { continue };
            let part = data.split_to(window.min(data.len()));
            if part.is_empty() && !data.is_empty() {
                if stream.send_window.available() > 0 {
                    // The connection's window is used up.
                    stream.is_queued = true;
                    self.send_queue.push_front(id);
                    return;
                }
                continue;
            }
            if data.is_empty() {
                stream.pending_data.pop_front();
            }
            let is_last = stream.pending_data.is_empty() && matches!(stream.pending_end, Some(None));
            if is_last {
                stream.pending_end = None;
            }
            let (has_more, has_trailers) = (!stream.pending_data.is_empty(), stream.pending_end.is_some());
            if !has_more
                && !has_trailers
                && let Some(waker) = stream.send_waker.take()
            {
                waker.wake();
            }
            self.put_data(id, part, is_last);
            if has_more {
                self.enqueue(id);
            } else if has_trailers {
                self.send_end_stream(id);
            }
        }
    }

    /// Whether requests wait for a peer that allows no streams.
    #[inline]
    pub(in crate::http2) fn has_blocked_requests(&self) -> bool {
        self.has_peer_settings && self.peer_max_streams == 0 && !self.pending_open.is_empty()
    }

    /// Fails requests that wait for a peer that allows no streams: they can be sent on another connection. Streams
    /// that are open go on.
    pub(in crate::http2) fn reject_blocked_requests(&mut self) {
        self.rejects_requests = true;
        while let Some(id) = self.pending_open.pop_front() {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.error = Some(Error::Unsent(
                    "server allows no requests on this connection (SETTINGS_MAX_CONCURRENT_STREAMS is 0)",
                ));
                self.close(id);
            }
        }
    }

    /// Since when SETTINGS or the rest of a header block are awaited. `started`: when the connection started.
    #[inline]
    pub(in crate::http2) fn incomplete_since(&self, started: Option<Instant>) -> Option<Instant> {
        if self.has_peer_settings { self.header_block.as_ref().map(|block| block.started) } else { started }
    }

    /// Closes the connection and all streams.
    pub(in crate::http2) fn close_all(&mut self, error: Error) {
        self.accepted.clear();
        self.pending_open.clear();
        self.open = 0;
        self.streams.retain(|_, stream| {
            if stream.unsent_request.take().is_some() {
                stream.error = Some(Error::Unsent(UNSENT));
            } else if !stream.is_closed() {
                stream.error = Some(error.clone());
            }
            stream.pending_data.clear();
            stream.pending_end = None;
            stream.wake();
            stream.handles > 0
        });
        self.error = Some(error);
    }

    /// The peer has closed its sending half (FIN). Streams that were received completely go on, as the peer may still
    /// read. All others fail, and no new ones are opened.
    pub(in crate::http2) fn recv_eof(&mut self) {
        let error = Error::Closed(io::ErrorKind::UnexpectedEof);
        self.fail_streams(&error, |stream| stream.recv != HalfState::Closed);
        self.pending_open.clear();
        if self.open > 0 {
            self.put_go_away(self.last_peer_stream(), Reason::NO_ERROR);
        }
        self.go_away = GoAway::Final;
    }

    /// After the peer's FIN: fails streams that wait for a window, as no WINDOW_UPDATE will come.
    pub(in crate::http2) fn fail_blocked_sends(&mut self) {
        let window = self.send_window.available();
        let error = Error::Closed(io::ErrorKind::UnexpectedEof);
        self.fail_streams(&error, |stream| {
            !stream.pending_data.is_empty() && window.min(stream.send_window.available()) == 0
        });
    }

    /// Fails the open streams for which `is_over` holds, and all requests that were not sent.
    fn fail_streams(&mut self, error: &Error, is_over: impl Fn(&Stream) -> bool) {
        let over: Vec<u32> = self
            .streams
            .iter()
            .filter(|(_, stream)| !stream.is_closed() && (stream.unsent_request.is_some() || is_over(stream)))
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.error =
                    Some(if stream.unsent_request.is_some() { Error::Unsent(UNSENT) } else { error.clone() });
                self.close(id);
            }
        }
    }

    /// Sends the same GOAWAY again.
    pub(in crate::http2) fn resend_go_away(&mut self) {
        self.put_go_away(self.last_peer_stream(), Reason::NO_ERROR);
    }

    /// Sends the last GOAWAY, and closes the connection. Nothing is sent after that.
    pub(in crate::http2) fn finish(&mut self) {
        self.send_go_away();
        if self.error.is_none() {
            self.close_all(Error::Closed(io::ErrorKind::NotConnected));
        }
    }

    /// Sends GOAWAY with an error code, and closes the connection.
    pub(in crate::http2) fn send_go_away_and_close(&mut self, reason: Reason) {
        self.put_go_away(self.last_peer_stream(), reason);
        self.close_all(Error::Protocol(reason));
    }

    /// Sends the final GOAWAY, once.
    pub(in crate::http2) fn send_go_away(&mut self) {
        if self.error.is_none() && self.go_away != GoAway::Final {
            self.go_away = GoAway::Final;
            self.put_go_away(self.last_peer_stream(), Reason::NO_ERROR);
        }
    }

    /// Starts a graceful shutdown: GOAWAY with the highest stream identifier, then a PING (RFC 9113 6.8).
    pub(in crate::http2) fn start_graceful_shutdown(&mut self) {
        if self.go_away == GoAway::None {
            self.go_away = GoAway::Announced;
            self.put_go_away(0x7fff_ffff, Reason::NO_ERROR);
            self.put(frame::PING, 0, 0, SHUTDOWN_PING);
        }
    }

    /// Sends a PING, to check whether the peer is alive.
    pub(in crate::http2) fn ping(&mut self) {
        self.put(frame::PING, 0, 0, KEEPALIVE_PING);
    }

    fn put_go_away(&mut self, last: u32, reason: Reason) {
        let mut payload = [0; 8];
        payload[..4].copy_from_slice(&last.to_be_bytes());
        payload[4..].copy_from_slice(&reason.0.to_be_bytes());
        self.put(frame::GOAWAY, 0, 0, &payload);
    }
}
