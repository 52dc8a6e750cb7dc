//! Response bodies, which record how they end.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep_until};
use weft_codec::BodyError;
use weft_codec::http2::SendStream;

use super::guard::RequestGuard;
use super::incoming::Incoming;
use super::request_body::strip_trailers;
use super::upload::Upload;
use super::watch::OpenRequest;
use crate::tcp::End;

/// A response body that is sent downstream.
pub(crate) struct ResponseBody {
    source: Source,
    /// When the request timeout expires.
    deadline: Option<Instant>,
    /// Fires at the deadline. Created on the first wait: most bodies never wait.
    timer: Option<Pin<Box<Sleep>>>,
    /// The unsent rest of the request body. Polled together with this body: see [`Self::poll_upload`].
    upload: Option<Box<Upload>>,
    /// None: request and response are complete. Dropped, and so logged, before the last of the response is written.
    guard: Option<Box<RequestGuard>>,
    /// Counts the request as open on the client's connection.
    pub(crate) open_request: Option<OpenRequest>,
}

enum Source {
    Ended,
    Full(Bytes),
    Incoming(Incoming),
    /// Reading the request body failed before the response was complete.
    RequestAborted,
    /// The connection or stream is handed over after the head: there is no body.
    Handover(Handover),
}

/// Receives the client's connection or stream after the response head, for a relay (101 or CONNECT).
pub(crate) enum Handover {
    /// An HTTP/1.1 connection.
    Connection(oneshot::Sender<End>),
    /// The sending side of an HTTP/2 stream.
    Stream(oneshot::Sender<SendStream>),
}

/// The request timeout expired before the response was complete.
#[derive(Debug, thiserror::Error)]
#[error("the request timeout expired before the response was complete")]
struct DeadlineError;

/// The client aborted the request before the response was complete.
#[derive(Debug, thiserror::Error)]
#[error("the client aborted the request before the response was complete")]
struct RequestAbortedError;

// === impl ResponseBody ===

impl ResponseBody {
    /// The body of a response that the proxy generates.
    pub(crate) fn full(bytes: Bytes, guard: Box<RequestGuard>) -> Self {
        let source = if bytes.is_empty() { Source::Ended } else { Source::Full(bytes) };
        let mut body =
            Self { source, deadline: None, timer: None, upload: None, guard: Some(guard), open_request: None };
        if matches!(body.source, Source::Ended) {
            body.end();
        }
        body
    }

    /// The empty body of a response after which the connection or stream is handed over.
    pub(crate) fn handover(next: Handover, guard: Box<RequestGuard>) -> Self {
        let mut body = Self::full(Bytes::new(), guard);
        body.source = Source::Handover(next);
        body
    }

    pub(super) fn take_handover(&mut self) -> Option<Handover> {
        match std::mem::replace(&mut self.source, Source::Ended) {
            Source::Handover(next) => Some(next),
            source => {
                self.source = source;
                None
            }
        }
    }

    /// The body of an endpoint's response.
    pub(crate) fn incoming(mut body: Incoming, deadline: Option<Instant>, guard: Box<RequestGuard>) -> Self {
        let (ended, upload) = (body.is_end_stream(), body.take_upload());
        let mut body = Self {
            source: Source::Incoming(body),
            deadline,
            timer: None,
            upload,
            guard: Some(guard),
            open_request: None,
        };
        if ended {
            body.end();
        }
        body
    }

    /// Sends the rest of the request body. Ready: all is sent, or the server accepts no more.
    pub(crate) fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(upload) = &mut self.upload else { return Poll::Ready(()) };
        let sent = ready!(upload.poll_send(cx));
        self.upload = None;
        match (&self.source, sent) {
            (Source::Ended, _) => self.finish(),
            (Source::Incoming(_), Err(_)) => {
                self.source = Source::RequestAborted;
                self.record(RequestGuard::request_aborted);
                // Wakes the task to abort the response.
                cx.waker().wake_by_ref();
            }
            _ => {}
        }
        Poll::Ready(())
    }

    /// Aborts the request, if a part of it is unsent.
    pub(crate) fn abort_upload(&mut self) {
        self.upload = None;
    }

    pub(crate) fn has_upload(&self) -> bool {
        self.upload.is_some()
    }

    /// The response is complete. The upstream connection is released once the request is complete too.
    fn end(&mut self) {
        self.source = Source::Ended;
        self.record(RequestGuard::response_completed);
        if self.upload.is_none() {
            self.finish();
        }
    }

    /// Request and response are complete.
    fn finish(&mut self) {
        self.record(RequestGuard::release_connection);
        self.guard = None;
    }

    fn record(&mut self, record: impl FnOnce(&mut RequestGuard)) {
        if let Some(guard) = &mut self.guard {
            record(guard);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match &mut this.source {
            Source::Ended | Source::Handover(_) => Poll::Ready(None),
            Source::RequestAborted => Poll::Ready(Some(Err(RequestAbortedError.into()))),
            Source::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.record(|guard| guard.response_bytes += bytes.len() as u64);
                this.end();
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Source::Incoming(incoming) => {
                let Poll::Ready(mut frame) = Pin::new(&mut *incoming).poll_frame(cx) else {
                    let Some(deadline) = this.deadline else { return Poll::Pending };
                    let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
                    ready!(timer.as_mut().poll(cx));
                    this.record(RequestGuard::timed_out);
                    return Poll::Ready(Some(Err(DeadlineError.into())));
                };
                let protected = this.guard.as_ref().and_then(|guard| guard.protected.as_ref()?.response.as_ref());
                strip_trailers(&mut frame, protected);
                let ended = frame.is_none() || incoming.is_end_stream();
                match &frame {
                    Some(Ok(frame)) => {
                        let count = frame.data_ref().map_or(0, |data| data.len() as u64);
                        this.record(|guard| guard.response_bytes += count);
                    }
                    Some(Err(_)) => this.record(RequestGuard::upstream_reset),
                    None => {}
                }
                if ended && !matches!(frame, Some(Err(_))) {
                    this.end();
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.source, Source::Ended | Source::Handover(_))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Ended | Source::Handover(_) => SizeHint::with_exact(0),
            Source::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Incoming(incoming) => incoming.size_hint(),
            Source::RequestAborted => SizeHint::default(),
        }
    }
}
