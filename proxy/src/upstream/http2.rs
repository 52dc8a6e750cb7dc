//! A connection of HTTP/2 to an endpoint. Requests go onto it at once, without a task between them and it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use h2::client::{self, Connection, ResponseFuture};
use h2::{Ping, PingPong, Reason};
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response};
use http_body::Body;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::endpoint::SendError;
use super::load::Permit;
use crate::http::body::RequestBody;
use crate::http::gradual::Gradual;
use crate::http::incoming::{Incoming, Sending};
use crate::http::pipe::Pipe;
use crate::http::{CONNECTION_WINDOW, STREAM_WINDOW};

/// Requests on one connection before another is opened, if the server allows as many. Source: what common servers allow.
const STREAMS_MAX: u32 = 100;

/// How long a connection without requests is kept. Source: nginx's `keepalive_timeout` for upstreams.
const IDLE: Duration = Duration::from_secs(60);

/// How often a connection with requests on it is looked at. One on which nothing came from one look to the next is asked
/// whether it lives, and given up if nothing has come by the next: after 10 to 15 s.
const LOOK: Duration = Duration::from_secs(5);

/// Bytes of a response's head, decoded. Source: hyper's default.
const HEAD_BYTES_MAX: u32 = 16 * 1024;

/// Bytes of a request that wait in one stream for a server that does not take them. Source: hyper's default.
const SEND_BYTES_MAX: usize = 1024 * 1024;

/// A connection with several requests on it.
pub(crate) struct Http2 {
    sender: RefCell<client::SendRequest<Bytes>>,
    streams: Cell<u32>,
    /// Since when there are none.
    idle: Cell<Instant>,
    state: Rc<State>,
    /// Bytes that the server has sent.
    read: Rc<Cell<u64>>,
}

/// What a connection's handle and its task know of each other.
#[derive(Default)]
struct State {
    ended: Cell<bool>,
    /// There are requests on it.
    busy: Cell<bool>,
}

/// A request that was sent.
pub(crate) enum Sent {
    Failed(Option<SendError>),
    Waiting { response: ResponseFuture, sending: Option<Sending> },
}

/// Whether the other side lives.
struct Pulse {
    pings: Option<PingPong>,
    /// Bytes read at the last look.
    read: u64,
    asked: bool,
}

// === impl Http2 ===

impl Http2 {
    /// Begins to speak HTTP/2 on a stream. The permit lives as long as the connection does.
    pub(crate) async fn handshake(stream: TcpStream, permit: Option<Permit>) -> Result<Rc<Self>, h2::Error> {
        let stream = Gradual::new(stream);
        let read = stream.count();
        let (sender, connection) = client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(HEAD_BYTES_MAX)
            .max_send_buffer_size(SEND_BYTES_MAX)
            .enable_push(false)
            // Until the server has said how many it takes; others wait for that word.
            .initial_max_send_streams(1)
            .handshake(stream)
            .await?;
        let state = Rc::<State>::default();
        let task = drive(connection, state.clone(), read.clone());
        let ended = state.clone();
        tokio::task::spawn_local(async move {
            task.await;
            ended.ended.set(true);
            drop(permit);
        });
        let idle = Cell::new(Instant::now());
        Ok(Rc::new(Self { sender: RefCell::new(sender), streams: Cell::new(0), idle, state, read }))
    }

    /// Whether one more request may go onto it.
    pub(crate) fn has_room(&self) -> bool {
        let streams = self.streams.get();
        // The first that a server sends is how many it takes. Who takes none at all may do so for a moment, and a request can
        // wait for that.
        let is_allowed =
            || self.read.get() == 0 || (streams as usize) < self.sender.borrow().current_max_send_streams().max(1);
        !self.state.ended.get() && streams < STREAMS_MAX && is_allowed()
    }

    /// Whether it is of use to nobody any more.
    pub(crate) fn is_over(&self) -> bool {
        self.state.ended.get() || (self.streams.get() == 0 && self.idle.get().elapsed() >= IDLE)
    }

    /// A request takes its place on it.
    pub(crate) fn enter(&self) {
        self.streams.set(self.streams.get() + 1);
        self.state.busy.set(true);
    }

    /// A request gives its place back.
    pub(crate) fn leave(&self) {
        self.streams.set(self.streams.get() - 1);
        if self.streams.get() == 0 {
            self.idle.set(Instant::now());
            self.state.busy.set(false);
        }
    }

    /// Sends a request, and of its body what is there already; a task sends the rest.
    pub(crate) fn send(&self, head: &Parts, body: RequestBody) -> Sent {
        let mut parts = head.clone();
        let defined = matches!(parts.method, Method::POST | Method::PUT | Method::PATCH);
        if let Some(length) = body.size_hint().exact().filter(|length| *length > 0 || defined) {
            parts.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
        }
        // A clone has no place of its own in the queue of those that wait until the server allows one more.
        let mut sender = self.sender.borrow().clone();
        let (response, stream) = match sender.send_request(Request::from_parts(parts, ()), body.is_end_stream()) {
            Ok(sent) => sent,
            Err(error) => return Sent::Failed(Some(SendError::Unsent(error.to_string()))),
        };
        let mut sending = None;
        if !body.is_end_stream() {
            let mut pipe = Pipe::new(stream, body, Reason::CANCEL);
            if (&mut pipe).now_or_never().is_none() {
                sending = Some(Sending::new(tokio::task::spawn_local(pipe).abort_handle()));
            }
        }
        Sent::Waiting { response, sending }
    }
}

/// Runs a connection until it is over: closed by either side, or silent for too long.
async fn drive(mut connection: Connection<Gradual<TcpStream>, Bytes>, state: Rc<State>, read: Rc<Cell<u64>>) {
    let mut pulse = Pulse { pings: connection.ping_pong(), read: 0, asked: false };
    let mut timer = pin!(sleep(LOOK));
    poll_fn(|cx| {
        loop {
            // Without requests and without anybody who could make one, it ends itself when it is asked.
            if let Poll::Ready(ended) = Pin::new(&mut connection).poll(cx) {
                return Poll::Ready(ended);
            }
            ready!(timer.as_mut().poll(cx));
            timer.as_mut().reset(Instant::now() + LOOK);
            if !pulse.look(state.busy.get(), read.get(), cx) {
                return Poll::Ready(Ok(()));
            }
        }
    })
    .await
    .unwrap_or_else(|error| tracing::debug!(%error, "a connection broke"));
}

// === impl Pulse ===

impl Pulse {
    /// Looks once, and asks if need be. False: the other side is gone.
    fn look(&mut self, busy: bool, read: u64, cx: &mut Context<'_>) -> bool {
        let silent = self.read == read;
        self.read = read;
        if !silent || !busy {
            self.asked = false;
            return true;
        }
        if self.asked {
            return false;
        }
        if let Some(pings) = &mut self.pings {
            // The answer to an earlier one is taken first. One that has none yet is not asked again, and counts as asked: what
            // came since may have been on its way before the other side went.
            let _ = pings.poll_pong(cx);
            let _ = pings.send_ping(Ping::opaque());
            self.asked = true;
        }
        true
    }
}

// === impl Sent ===

impl Future for Sent {
    type Output = Result<Response<Incoming>, SendError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (response, sending) = match self.get_mut() {
            Self::Failed(error) => return error.take().map_or(Poll::Pending, |error| Poll::Ready(Err(error))),
            Self::Waiting { response, sending } => (response, sending),
        };
        let response = ready!(Pin::new(response).poll(cx)).map_err(|error| SendError::of_stream(&error))?;
        let (head, stream) = response.into_parts();
        let body = Incoming::of_stream(stream, &head.headers, sending.take());
        Poll::Ready(Ok(Response::from_parts(head, body)))
    }
}

impl SendError {
    /// What the end of a stream says about its request.
    fn of_stream(error: &h2::Error) -> Self {
        if error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR) {
            return Self::Left;
        }
        if error.reason() == Some(Reason::REFUSED_STREAM) {
            return Self::Refused;
        }
        Self::Reset(match error.get_io() {
            Some(error) if error.kind() == io::ErrorKind::BrokenPipe => "the connection was closed".into(),
            _ => error.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[tokio::test]
    async fn who_is_silent_is_asked_and_then_given_up() {
        let (near, _far) = tokio::io::duplex(4096);
        let (_sender, mut connection) = client::handshake(near).await.expect("writes its preface");
        let mut pulse = Pulse { pings: connection.ping_pong(), read: 0, asked: false };
        let mut cx = Context::from_waker(Waker::noop());
        for (look, (busy, read, lives)) in [
            (true, 10, true),
            // Silent: asked.
            (true, 10, true),
            // What comes is not the answer, but a sign of life all the same.
            (true, 20, true),
            // Silent again: the answer is still awaited.
            (true, 20, true),
            (true, 20, false),
            // Nobody waits for it.
            (false, 20, true),
            (false, 20, true),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(pulse.look(busy, read, &mut cx), lives, "look {look}");
        }
    }
}
