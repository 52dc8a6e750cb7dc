//! HTTP/2 connections to endpoints. Requests write to the connection's state directly; one task for each connection
//! does its I/O, keepalive and timeouts.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use http::request::Parts;
use http::{Method, Response};
use http_body::Body;
use socket2::SockRef;
use tokio::time::{Instant, sleep_until};
use weft_codec::Tick;
use weft_codec::http2::{Connection, Error, Reason, RecvStream, Requests};

use super::HEAD_TIMEOUT;
use super::error::SendError;
use super::shared_cluster::Permit;
use crate::http::incoming::Incoming;
use crate::http::limits;
use crate::http::pipe::Pipe;
use crate::http::request_body::{RequestBody, SharedBody};
use crate::http::upload::Upload;
use crate::identity::Protocol;
use crate::stream::Stream;
use crate::telemetry::alive::{self, Alive, Kind};

/// Requests on one connection before another is opened, unless the server allows fewer. Source: what common servers
/// allow.
const STREAMS_MAX: u32 = 100;

/// Idle timeout of a connection without requests. Source: nginx's `keepalive_timeout` for upstreams.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How often keepalive checks a connection with requests. If nothing was received since the last check it may send a
/// PING; if nothing was received by the check after that, it closes the connection: after 10 to 15 s of silence.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// The same for a server that has closed its sending half while requests are in flight. If it has closed the whole
/// connection, the first check finds that out, because the GOAWAY sent to it was answered with a TCP reset.
const CHECK_INTERVAL_HALF_CLOSED: Duration = Duration::from_secs(1);

/// Least time between two PINGs without HEADERS or DATA from the server in between. Common servers allow a PING
/// without data every 5 minutes and close connections that send more (gRPC's keepalive enforcement); a PING after
/// HEADERS or DATA of theirs does not count. That a host is gone is also found out by the kernel
/// (`TCP_USER_TIMEOUT`).
const PING_INTERVAL_WITHOUT_DATA: Duration = Duration::from_secs(6 * 60);

/// How long sent data may stay unacknowledged before the kernel closes the connection. Only for HTTP/2, where a
/// server always reads: a server of HTTP/1.1 may leave a body unread for longer, which looks the same to the kernel.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(20);

/// How long requests wait for a server that allows no streams (SETTINGS_MAX_CONCURRENT_STREAMS of 0).
const NO_STREAMS_TIMEOUT: Duration = Duration::from_secs(1);

/// A handle to a connection, shared by its requests.
pub(crate) struct Http2 {
    requests: Requests,
    /// Slots taken: requests that hold a lease.
    slots: Cell<u32>,
    /// When the last slot was released.
    idle_since: Cell<Tick>,
    /// It is encrypted.
    pub(crate) is_tls: bool,
    /// What its requests are.
    pub(crate) protocol: Protocol,
    state: Rc<State>,
}

/// State that a connection's handle and its task share.
#[derive(Default)]
struct State {
    /// The task has ended.
    is_closed: Cell<bool>,
    /// Slots are taken.
    is_busy: Cell<bool>,
}

/// The response to a request.
pub(crate) enum ResponseFuture {
    Failed(Option<SendError>),
    Waiting {
        response: Option<RecvStream>,
        /// The rest of the request's body.
        upload: Option<Pipe<RequestBody>>,
        /// Receives informational (1xx) responses.
        client: Option<Rc<SharedBody>>,
    },
}

/// Finds out whether the server is alive.
#[derive(Default)]
struct Keepalive {
    /// Bytes received by the last check.
    read: u64,
    /// The last check sent a PING.
    is_pinging: bool,
    /// When the last PING was sent, and the count of HEADERS and DATA frames received by then.
    last_ping: Option<(Instant, u64)>,
}

/// The result of a keepalive check.
#[derive(Debug, PartialEq)]
enum Liveness {
    Alive,
    /// Nothing was received since the last check: send a PING.
    Ping,
    /// Nothing was received since the PING.
    Dead,
}

// === impl Http2 ===

impl Http2 {
    /// Starts an HTTP/2 connection, which holds the permit, and its task. `no_pings`: the server has closed a
    /// connection with ENHANCE_YOUR_CALM; then no keepalive PINGs are sent.
    pub(crate) fn new(
        stream: Stream,
        protocol: Protocol,
        permit: Option<Permit>,
        no_pings: Rc<Cell<bool>>,
    ) -> io::Result<Rc<Self>> {
        if let Some(socket) = stream.socket() {
            SockRef::from(socket).set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
        }
        let is_tls = stream.is_tls();
        // Servers do not open streams.
        let limits = limits(0, protocol == Protocol::MultiplexedHttp1);
        let (connection, requests) = Connection::client(stream, limits, alive::count_upstream_streams);
        let state = Rc::<State>::default();
        let task = drive(connection, state.clone(), no_pings);
        let shared = state.clone();
        let alive = Alive::new(Kind::UpstreamHttp2);
        alive::spawn(async move {
            task.await;
            shared.is_closed.set(true);
            drop((permit, alive));
        });
        let idle_since = Cell::new(Tick::now());
        Ok(Rc::new(Self { requests, slots: Cell::new(0), idle_since, is_tls, protocol, state }))
    }

    /// Whether one more request may use the connection.
    pub(crate) fn has_capacity(&self) -> bool {
        let streams = self.streams();
        // While a server allows no streams, one request waits for it to allow some: see `NO_STREAMS_TIMEOUT`.
        let is_allowed = || self.requests.max_concurrent_streams().is_none_or(|most| (streams as usize) < most.max(1));
        !self.is_closed() && streams < STREAMS_MAX && is_allowed()
    }

    /// Taken slots or open streams, whichever are more: a slot is taken before its stream opens, and a stream may
    /// outlive its slot.
    fn streams(&self) -> u32 {
        self.slots.get().max(u32::try_from(self.requests.open_streams()).unwrap_or(u32::MAX))
    }

    fn is_closed(&self) -> bool {
        self.state.is_closed.get() || self.requests.is_closed()
    }

    /// Whether the connection is closed or was idle for too long.
    pub(crate) fn is_closed_or_idle(&self) -> bool {
        self.is_closed() || (self.streams() == 0 && self.idle_since.get().elapsed() >= IDLE_TIMEOUT)
    }

    /// Takes a slot for a request.
    pub(crate) fn acquire_slot(&self) {
        self.slots.set(self.slots.get() + 1);
        self.state.is_busy.set(true);
    }

    /// Releases the slot of a request.
    pub(crate) fn release_slot(&self) {
        self.slots.set(self.slots.get() - 1);
        if self.slots.get() == 0 {
            self.idle_since.set(Tick::now());
            self.state.is_busy.set(false);
        }
    }

    /// Sends a request with as much of its body as is available. The returned future sends the rest.
    pub(crate) fn send(&self, head: &Parts, body: RequestBody, client: Option<Rc<SharedBody>>) -> ResponseFuture {
        let defined = matches!(head.method, Method::POST | Method::PUT | Method::PATCH);
        let length = body.size_hint().exact().filter(|length| *length > 0 || defined);
        let (stream, response) = match self.requests.send(head, length, body.is_end_stream()) {
            Ok(halves) => halves,
            Err(Error::GoAway(Reason::NO_ERROR)) => return ResponseFuture::Failed(Some(SendError::GoAway)),
            Err(error) => return ResponseFuture::Failed(Some(SendError::Unsent(error.to_string()))),
        };
        let mut upload = None;
        if !body.is_end_stream() {
            let mut pipe = Pipe::new(stream, body, Reason::CANCEL);
            upload = pipe.poll_send(&mut Context::from_waker(Waker::noop())).is_pending().then_some(pipe);
        }
        ResponseFuture::Waiting { response: Some(response), upload, client }
    }
}

/// Runs a connection until either side closes it, keepalive finds the server dead, or a head times out.
async fn drive(mut connection: Connection<Stream>, state: Rc<State>, no_pings: Rc<Cell<bool>>) {
    let mut keepalive = Keepalive::default();
    let mut interval = CHECK_INTERVAL;
    let mut check = Instant::now() + interval;
    let mut no_streams: Option<Instant> = None;
    let mut timer = pin!(sleep_until(check));
    poll_fn(|cx| {
        loop {
            // Also ready once there are no streams and no handles that could open one.
            if connection.poll_run(cx).is_ready() {
                return Poll::Ready(());
            }
            if connection.is_read_closed() && interval == CHECK_INTERVAL {
                interval = CHECK_INTERVAL_HALF_CLOSED;
                check = Instant::now() + interval;
            }
            no_streams = connection
                .has_blocked_requests()
                .then(|| no_streams.unwrap_or_else(|| Instant::now() + NO_STREAMS_TIMEOUT));
            let head = connection.incomplete_since().map(|begun| begun + HEAD_TIMEOUT);
            let deadline = [Some(check), no_streams, head].into_iter().flatten().min().unwrap_or(check);
            // The timer may fire too early but not too late. So most requests need not reset it.
            if deadline < timer.deadline() {
                timer.as_mut().reset(deadline);
            }
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            let has_passed = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
            if has_passed(head) {
                connection.time_out();
                return Poll::Ready(());
            }
            if has_passed(no_streams) {
                connection.reject_blocked_requests();
            }
            if has_passed(Some(check)) {
                check = now + interval;
                if connection.is_read_closed() {
                    // The server sends nothing more but may still read: a GOAWAY finds out whether it does.
                    connection.probe();
                    continue;
                }
                let may_ping = !no_pings.get();
                match keepalive.check(
                    state.is_busy.get(),
                    connection.bytes_read(),
                    connection.message_frames(),
                    may_ping,
                    now,
                ) {
                    Liveness::Alive => {}
                    Liveness::Ping => connection.ping(),
                    Liveness::Dead => {
                        connection.time_out();
                        return Poll::Ready(());
                    }
                }
            }
            // The next turn of the loop sets an earlier deadline if there is one.
            timer.as_mut().reset(check);
        }
    })
    .await;
    if connection.got_enhance_your_calm() {
        no_pings.set(true);
    }
}

// === impl Keepalive ===

impl Keepalive {
    /// Checks a connection once. After a PING, anything received by the next check means that the server is alive.
    /// `read`: bytes received so far; `frames`: HEADERS and DATA frames among them.
    fn check(&mut self, is_busy: bool, read: u64, frames: u64, may_ping: bool, now: Instant) -> Liveness {
        let is_silent = is_busy && self.read == read;
        self.read = read;
        let was_pinging = std::mem::take(&mut self.is_pinging);
        if !is_silent {
            return Liveness::Alive;
        }
        if was_pinging {
            return Liveness::Dead;
        }
        let is_due = |(at, before): (Instant, u64)| before != frames || now - at >= PING_INTERVAL_WITHOUT_DATA;
        if !(may_ping && self.last_ping.is_none_or(is_due)) {
            return Liveness::Alive;
        }
        self.is_pinging = true;
        self.last_ping = Some((now, frames));
        Liveness::Ping
    }
}

// === impl ResponseFuture ===

impl Future for ResponseFuture {
    type Output = Result<Response<Incoming>, SendError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (response, upload, client) = match self.get_mut() {
            Self::Failed(error) => return error.take().map_or(Poll::Pending, |error| Poll::Ready(Err(error))),
            Self::Waiting { response, upload, client } => (response, upload, client),
        };
        while let Some((status, headers)) = response.as_mut().and_then(RecvStream::take_interim) {
            if let Some(client) = client {
                client.send_interim(status, headers);
            }
        }
        // If either side has reset the stream, the response has the error.
        if upload.as_mut().is_some_and(|upload| upload.poll_send(cx).is_ready()) {
            *upload = None;
        }
        let Some(stream) = response else { return Poll::Pending };
        let (status, headers) = ready!(stream.poll_response(cx)).map_err(|error| SendError::of_stream(&error))?;
        let Some(stream) = response.take() else { return Poll::Pending };
        let mut response = Response::new(Incoming::of_stream(
            stream,
            &headers,
            upload.take().map(|pipe| Box::new(Upload::Http2(pipe))),
        ));
        *response.status_mut() = status;
        *response.version_mut() = http::Version::HTTP_2;
        *response.headers_mut() = headers;
        Poll::Ready(Ok(response))
    }
}

impl SendError {
    /// The error of a request whose stream ended with `error`.
    fn of_stream(error: &Error) -> Self {
        match error {
            Error::GoAway(Reason::NO_ERROR) => Self::GoAway,
            // RFC 9113 6.8: streams above the last one that a GOAWAY names were not processed, whatever its error
            // code.
            Error::GoAway(_) | Error::Reset(Reason::REFUSED_STREAM) => Self::Refused,
            Error::Unsent(_) => Self::Unsent(error.to_string()),
            Error::Malformed(_) => Self::Protocol(error.to_string()),
            Error::TooLarge => Self::TooLarge(error.to_string()),
            error => Self::Reset(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_connections_are_pinged_and_then_closed() {
        let mut keepalive = Keepalive::default();
        let begun = Instant::now();
        for (check, (is_busy, read, frames, seconds, expected)) in [
            (true, 10, 0, 0, Liveness::Alive),
            (true, 10, 0, 5, Liveness::Ping),
            // Something other than the PING's acknowledgement was received: the server is alive all the same.
            (true, 20, 0, 10, Liveness::Alive),
            // No HEADERS or DATA since the last PING: none is sent for six minutes.
            (true, 20, 0, 15, Liveness::Alive),
            (true, 20, 0, 360, Liveness::Alive),
            (true, 20, 0, 365, Liveness::Ping),
            (true, 37, 0, 370, Liveness::Alive),
            // HEADERS or DATA were received since the last PING.
            (true, 50, 1, 375, Liveness::Alive),
            (true, 50, 1, 380, Liveness::Ping),
            (true, 50, 1, 385, Liveness::Dead),
            // No request is in flight.
            (false, 50, 1, 390, Liveness::Alive),
            (false, 50, 1, 395, Liveness::Alive),
        ]
        .into_iter()
        .enumerate()
        {
            let now = begun + Duration::from_secs(seconds);
            assert_eq!(keepalive.check(is_busy, read, frames, true, now), expected, "check {check}");
        }
        for check in 0..3 {
            let found = Keepalive::default().check(true, 0, 0, false, begun);
            assert_eq!(found, Liveness::Alive, "PINGs are not allowed: check {check}");
        }
    }
}
