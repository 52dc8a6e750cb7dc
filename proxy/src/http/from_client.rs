//! The body of an HTTP/1.1 request, read from the client's connection.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::{Frame, SizeHint};
use tokio::time::timeout;
use weft_codec::BodyError;
use weft_codec::http1::decode::Decoder;
use weft_codec::http1::encode;
use weft_codec::http1::framing::Framing;
use weft_codec::http1::wire::Wire;

use super::interim;
use super::watch::TimedStream;

/// How long the unread rest of a request body is drained after the response, so that the connection can be kept alive.
const BODY_DRAIN_TIMEOUT: Duration = Duration::from_millis(250);

/// Maximum bytes that are drained; for more, the connection is closed.
const BODY_DRAIN_BYTES_MAX: usize = 64 * 1024;

/// The body of an HTTP/1.1 request, if it has one, and the connection that it arrives on.
pub(crate) struct FromClient {
    pub(super) wire: Rc<Wire<TimedStream>>,
    pub(super) reader: Option<Rc<BodyReader>>,
}

/// Reads a request body. Shared by the request and its connection, which drains what the request leaves.
pub(crate) struct BodyReader {
    wire: Rc<Wire<TimedStream>>,
    pub(super) decoder: RefCell<Decoder>,
    /// The client waits for 100 Continue before it sends the body.
    pub(super) awaits_continue: Cell<bool>,
}

// === impl BodyReader ===

impl BodyReader {
    /// A reader for the body of a request with this framing. None: it has no body.
    pub(super) fn new(wire: &Rc<Wire<TimedStream>>, framing: Framing, headers: &HeaderMap) -> Option<Rc<Self>> {
        if framing == Framing::Length(0) {
            return None;
        }
        let decoder = RefCell::new(Decoder::new(framing));
        Some(Rc::new(Self {
            wire: wire.clone(),
            decoder,
            awaits_continue: Cell::new(interim::expects_continue(headers)),
        }))
    }

    fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(self.wire.poll_body(&mut self.decoder.borrow_mut(), cx));
        // The client sends the body without waiting for 100 Continue.
        self.awaits_continue.set(false);
        Poll::Ready(frame)
    }

    /// Reads and discards the rest of the body. Returns whether it ended within the limits.
    pub(super) async fn drain(self) -> bool {
        let mut read = 0;
        let rest = async {
            while !self.decoder.borrow().has_ended() {
                match poll_fn(|cx| self.poll_frame(cx)).await {
                    Some(Ok(frame)) => read += frame.data_ref().map_or(0, Bytes::len),
                    Some(Err(_)) => return false,
                    None => {}
                }
                if read > BODY_DRAIN_BYTES_MAX {
                    return false;
                }
            }
            true
        };
        self.decoder.borrow().has_ended() || timeout(BODY_DRAIN_TIMEOUT, rest).await == Ok(true)
    }
}

// === impl FromClient ===

impl FromClient {
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.reader.as_ref().map_or(Poll::Ready(None), |reader| reader.poll_frame(cx))
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.reader.as_ref().is_none_or(|reader| reader.decoder.borrow().has_ended())
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.reader.as_ref().map_or(SizeHint::with_exact(0), |reader| reader.decoder.borrow().size_hint())
    }

    /// Sends an interim response to the client.
    pub(crate) fn send_interim(&self, status: StatusCode, headers: &HeaderMap) {
        if status == StatusCode::CONTINUE
            && let Some(reader) = &self.reader
        {
            reader.awaits_continue.set(false);
        }
        self.wire.queue_interim(encode::interim(status, headers));
    }
}
