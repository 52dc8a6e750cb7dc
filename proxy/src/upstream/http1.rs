//! HTTP/1.1 connections to endpoints. The task of the one request that uses a connection reads and writes it; an idle
//! connection has no task and no buffer.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response, StatusCode};
use http_body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use weft_codec::http1::decode::Decoder;
use weft_codec::http1::encode::{self, Outgoing, WriteError};
use weft_codec::http1::parse::{self, BadMessage};
use weft_codec::http1::wire::{ReadError, Wire};
use weft_codec::{BodyError, INTERIM_MAX};

use super::HEAD_TIMEOUT;
use super::error::SendError;
use super::shared_cluster::Permit;
use crate::http::incoming::Incoming;
use crate::http::request_body::{RequestBody, SharedBody};
use crate::http::upload;
use crate::stream::Stream;
use crate::telemetry::alive::{Alive, Kind};
use crate::tls;

/// The error of a body that ends too early or too late.
const WRONG_LENGTH: &str = "the body is not as long as its head says";

/// A connection.
pub(crate) struct Http1 {
    wire: Wire<Stream>,
    /// The request was sent completely.
    sent: Cell<bool>,
    /// The response was received completely.
    received: Cell<bool>,
    /// The server accepts another request.
    keep_alive: Cell<bool>,
    permit: Option<Permit>,
    _alive: Alive,
}

/// A request that is being sent, until the head of its response has arrived.
pub(crate) struct Exchange {
    connection: Rc<Http1>,
    method: Method,
    /// `None`: it was sent completely, or the server reads no more of it.
    request: Option<Outgoing<RequestBody>>,
    /// Receives informational (1xx) responses.
    client: Option<Rc<SharedBody>>,
    /// Informational responses received.
    interim: u32,
    /// The timeout of a partly received head. Most heads arrive at once and need none.
    head_timer: Option<Pin<Box<Sleep>>>,
}

/// The rest of a request whose response has begun.
pub(crate) struct Upload {
    connection: Rc<Http1>,
    request: Outgoing<RequestBody>,
}

/// The body of a response.
pub(crate) struct ResponseBody {
    connection: Rc<Http1>,
    decoder: Decoder,
    /// The rest of the request, if the response began before it was sent.
    upload: Option<Box<upload::Upload>>,
}

/// A connection that has switched from HTTP to another protocol.
pub(crate) struct Upgraded {
    pub(crate) stream: Stream,
    /// Bytes received after the head.
    pub(crate) read: Bytes,
    pub(crate) permit: Option<Permit>,
}

// === impl Http1 ===

impl Http1 {
    pub(crate) fn new(stream: Stream, permit: Option<Permit>) -> Rc<Self> {
        Rc::new(Self {
            wire: Wire::new(stream),
            sent: Cell::new(false),
            received: Cell::new(false),
            keep_alive: Cell::new(false),
            permit,
            _alive: Alive::new(Kind::UpstreamHttp1),
        })
    }

    /// Whether request and response are complete and the connection may carry another request.
    pub(crate) fn is_free(&self) -> bool {
        self.sent.get() && self.received.get() && self.keep_alive.get() && !self.wire.has_buffered()
    }

    /// Whether it is encrypted.
    pub(crate) fn is_tls(&self) -> bool {
        self.wire.with(|stream| stream.is_tls())
    }

    /// Whether the server has neither closed the idle connection nor sent anything on it.
    pub(crate) fn is_usable(&self) -> bool {
        self.wire.is_idle()
    }

    /// Starts to send a request.
    pub(crate) fn send(self: &Rc<Self>, head: &Parts, body: RequestBody, client: Option<Rc<SharedBody>>) -> Exchange {
        for flag in [&self.sent, &self.received, &self.keep_alive] {
            flag.set(false);
        }
        let request = Some(Outgoing::new(encode::request(head, &body), body));
        Exchange {
            connection: self.clone(),
            method: head.method.clone(),
            request,
            client,
            interim: 0,
            head_timer: None,
        }
    }

    /// The stream of a connection that switches protocols. `None` if the response's body still uses the connection.
    pub(crate) fn into_upgraded(self: Rc<Self>) -> Option<Upgraded> {
        let Self { wire, permit, .. } = Rc::into_inner(self)?;
        let (stream, read) = wire.into_parts();
        Some(Upgraded { stream, read, permit })
    }
}

// === impl Exchange ===

impl Exchange {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Result<(), SendError> {
        let Some(request) = &mut self.request else { return Ok(()) };
        match request.poll_send(&self.connection.wire, cx) {
            Poll::Pending => return Ok(()),
            Poll::Ready(Ok(())) => self.connection.sent.set(true),
            Poll::Ready(Err(WriteError::Io(error))) if !request.has_begun => {
                return Err(SendError::Unsent(error.to_string()));
            }
            // A server that rejects a body may close its side after it sent a response, which is read all the same.
            Poll::Ready(Err(WriteError::Io(_))) => {}
            Poll::Ready(Err(WriteError::Body(error))) => {
                let error = error.map_or(WRONG_LENGTH.into(), |error| error.to_string());
                return Err(SendError::Reset(format!("the request was not sent completely: {error}")));
            }
        }
        self.request = None;
        Ok(())
    }

    /// Ready once a partly received head has timed out.
    fn poll_head_timeout(&mut self, cx: &mut Context<'_>) -> Poll<SendError> {
        if !self.connection.wire.has_buffered() {
            return Poll::Pending;
        }
        ready!(self.head_timer.get_or_insert_with(|| Box::pin(sleep(HEAD_TIMEOUT))).as_mut().poll(cx));
        Poll::Ready(SendError::Reset(format!("the response's head was not complete within {HEAD_TIMEOUT:?}")))
    }

    /// The body of the response, with the rest of the request.
    fn receive(&mut self, decoder: Decoder) -> ResponseBody {
        let connection = self.connection.clone();
        let upload = self.request.take().map(|request| {
            let upload = Upload { connection: connection.clone(), request };
            Box::new(upload::Upload::Http1(upload))
        });
        connection.received.set(decoder.has_ended());
        ResponseBody { connection, decoder, upload }
    }
}

impl Future for Exchange {
    type Output = Result<Response<Incoming>, SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.poll_send(cx)?;
        loop {
            let method = &this.method;
            let Poll::Ready(head) = this.connection.wire.poll_head(cx, |bytes| parse::response(bytes, method)) else {
                return this.poll_head_timeout(cx).map(Err);
            };
            let head = head?;
            this.head_timer = None;
            let status = head.response.status();
            if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
                this.interim += 1;
                if this.interim > INTERIM_MAX {
                    let text = format!("more than {INTERIM_MAX} informational (1xx) responses");
                    return Poll::Ready(Err(SendError::Protocol(text)));
                }
                if let Some(client) = &this.client {
                    client.send_interim(status, head.response.into_parts().0.headers);
                }
                // After a 100 Continue the client sends the body: poll for it.
                this.poll_send(cx)?;
                continue;
            }
            this.connection.keep_alive.set(head.keep_alive);
            let body = this.receive(Decoder::new(head.framing));
            return Poll::Ready(Ok(head.response.map(|()| Incoming::FromServer(body))));
        }
    }
}

// === impl Upload ===

impl Upload {
    /// Sends what can be sent. Ready: the rest was sent, or the server reads no more. An error: the body ended early.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        match ready!(self.request.poll_send(&self.connection.wire, cx)) {
            Ok(()) => self.connection.sent.set(true),
            Err(WriteError::Io(_)) => {}
            Err(WriteError::Body(error)) => return Poll::Ready(Err(error.unwrap_or_else(|| WRONG_LENGTH.into()))),
        }
        Poll::Ready(Ok(()))
    }
}

// === impl ResponseBody ===

impl ResponseBody {
    pub(crate) fn take_upload(&mut self) -> Option<Box<upload::Upload>> {
        self.upload.take()
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(self.connection.wire.poll_body(&mut self.decoder, cx));
        if self.decoder.has_ended() {
            self.connection.received.set(true);
        }
        Poll::Ready(frame)
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.decoder.has_ended()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.decoder.size_hint()
    }
}

impl From<ReadError> for SendError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Bad(error) if error.status == BadMessage::TOO_LARGE.status => Self::TooLarge(error.to_string()),
            ReadError::Bad(error) => Self::Protocol(error.to_string()),
            ReadError::Closed => {
                Self::Reset("the server closed the connection before the response was complete".into())
            }
            ReadError::Io(error) if tls::is_refusal(&error) => Self::Refusal(error.to_string()),
            ReadError::Io(error) => Self::Reset(error.to_string()),
        }
    }
}
