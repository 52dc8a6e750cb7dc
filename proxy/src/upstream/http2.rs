//! A connection of HTTP/2 to an endpoint. Requests go onto it at once, without a task between them and it.

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
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use super::HEAD;
use super::endpoint::SendError;
use super::load::Permit;
use crate::clock::Tick;
use crate::http::body::{RequestBody, Shared};
use crate::http::incoming::Incoming;
use crate::http::pipe::Pipe;
use crate::http::upload::Upload;
use crate::http::{CONNECTION_WINDOW, STREAM_WINDOW};
use crate::http1::HEAD_BYTES_MAX;
use crate::http2::{Connection, Error, Limits, Reason, RecvStream, Requests};
use crate::telemetry::alive::{self, Alive, Kind};

/// Requests on one connection before another is opened, if the server allows as many. Source: what common servers allow.
const STREAMS_MAX: u32 = 100;

/// How long a connection without requests is kept. Source: nginx's `keepalive_timeout` for upstreams.
const IDLE: Duration = Duration::from_secs(60);

/// How often a connection with requests on it is looked at. One on which nothing came from one look to the next may be asked
/// whether it lives, and is given up if nothing has come by the next: after 10 to 15 s.
const LOOK: Duration = Duration::from_secs(5);

/// The same for a server that has closed its sending half while requests to it are under way. One that has closed its connection
/// altogether is noticed at the first look: what was said when it did has made a reset of it.
const LOOK_AFTER_END: Duration = Duration::from_secs(1);

/// How long one is not asked again on which nothing but answers to that has come since. Common servers bear a PING without
/// data each 5 minutes, and end connections that send more (gRPC's enforcement of keepalive); one right behind a head or data
/// of theirs costs nothing there. That a host is gone, which each PING would find out too, the kernel finds out.
const ASK_WITHOUT_DATA: Duration = Duration::from_secs(6 * 60);

/// How long a host may acknowledge nothing of what was sent to it. It is for HTTP/2, where a server takes what comes at any
/// time: one of HTTP/1.1 may leave a body where it is for longer, which looks the same to the kernel.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

/// How long requests wait for a server that takes none at once (SETTINGS_MAX_CONCURRENT_STREAMS of 0).
const TURN_AWAY: Duration = Duration::from_secs(1);

/// What a server may send.
const LIMITS: Limits = Limits {
    // Servers open none.
    streams: 0,
    stream_window: STREAM_WINDOW,
    connection_window: CONNECTION_WINDOW,
    head_bytes: HEAD_BYTES_MAX as u32,
};

/// A connection with several requests on it.
pub(crate) struct Http2 {
    requests: Requests,
    streams: Cell<u32>,
    /// Since when there are none.
    idle: Cell<Tick>,
    state: Rc<State>,
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
    Waiting {
        response: Option<RecvStream>,
        upload: Option<Pipe<RequestBody>>,
        /// Where responses before the response go.
        client: Option<Rc<Shared>>,
    },
}

/// Whether the other side lives.
#[derive(Default)]
struct Pulse {
    /// Bytes read at the last look.
    read: u64,
    asked: bool,
    /// When it was asked last, and how many heads and data had come by then.
    last: Option<(Instant, u64)>,
}

/// What a look at a connection found.
#[derive(Debug, PartialEq)]
enum Look {
    Lives,
    /// It is silent, and to be asked.
    Ask,
    /// It was asked, and is silent.
    Gone,
}

// === impl Http2 ===

impl Http2 {
    /// Begins to speak HTTP/2 on a stream. The permit lives as long as the connection does. `wants_calm`: whether the server has
    /// ever ended a connection because of too much of something; it is not asked then whether it lives.
    pub(crate) fn new(stream: TcpStream, permit: Option<Permit>, wants_calm: Rc<Cell<bool>>) -> io::Result<Rc<Self>> {
        SockRef::from(&stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
        let (connection, requests) = Connection::client(stream, LIMITS);
        let state = Rc::<State>::default();
        let task = drive(connection, state.clone(), wants_calm);
        let ended = state.clone();
        let alive = Alive::new(Kind::UpstreamHttp2);
        alive::spawn(async move {
            task.await;
            ended.ended.set(true);
            drop((permit, alive));
        });
        let idle = Cell::new(Tick::now());
        Ok(Rc::new(Self { requests, streams: Cell::new(0), idle, state }))
    }

    /// Whether one more request may go onto it.
    pub(crate) fn has_room(&self) -> bool {
        let streams = self.streams();
        // A server that takes none may do so for a moment, and one request waits for that: see `TURN_AWAY`.
        let is_allowed = || self.requests.max_concurrent_streams().is_none_or(|most| (streams as usize) < most.max(1));
        !self.is_gone() && streams < STREAMS_MAX && is_allowed()
    }

    /// Requests on it: those that hold a lease, or streams that are open, whichever are more. A lease waits for its stream, and a
    /// stream that outlived its lease would take its room all the same.
    fn streams(&self) -> u32 {
        self.streams.get().max(u32::try_from(self.requests.open_streams()).unwrap_or(u32::MAX))
    }

    fn is_gone(&self) -> bool {
        self.state.ended.get() || self.requests.is_closed()
    }

    /// Whether it is of use to nobody any more.
    pub(crate) fn is_over(&self) -> bool {
        self.is_gone() || (self.streams() == 0 && self.idle.get().elapsed() >= IDLE)
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
            self.idle.set(Tick::now());
            self.state.busy.set(false);
        }
    }

    /// Sends a request, and of its body what is there already; what is given back sends the rest.
    pub(crate) fn send(&self, head: &Parts, body: RequestBody, client: Option<Rc<Shared>>) -> Sent {
        let defined = matches!(head.method, Method::POST | Method::PUT | Method::PATCH);
        let length = body.size_hint().exact().filter(|length| *length > 0 || defined);
        let (stream, response) = match self.requests.send(head, length, body.is_end_stream()) {
            Ok(halves) => halves,
            Err(Error::GoAway(Reason::NO_ERROR)) => return Sent::Failed(Some(SendError::Left)),
            Err(error) => return Sent::Failed(Some(SendError::Unsent(error.to_string()))),
        };
        let mut upload = None;
        if !body.is_end_stream() {
            let mut pipe = Pipe::new(stream, body, Reason::CANCEL);
            upload = pipe.poll_send(&mut Context::from_waker(Waker::noop())).is_pending().then_some(pipe);
        }
        Sent::Waiting { response: Some(response), upload, client }
    }
}

/// Runs a connection until it is over: closed by either side, silent for too long, or too slow with a head.
async fn drive(mut connection: Connection<TcpStream>, state: Rc<State>, wants_calm: Rc<Cell<bool>>) {
    let mut pulse = Pulse::default();
    let mut period = LOOK;
    let mut look = Instant::now() + period;
    let mut turn_away: Option<Instant> = None;
    let mut timer = pin!(sleep_until(look));
    poll_fn(|cx| {
        loop {
            // Without requests and without anybody who could make one, it ends itself.
            if connection.poll_run(cx).is_ready() {
                return Poll::Ready(());
            }
            if connection.is_read_closed() && period == LOOK {
                period = LOOK_AFTER_END;
                look = Instant::now() + period;
            }
            turn_away =
                connection.has_blocked_requests().then(|| turn_away.unwrap_or_else(|| Instant::now() + TURN_AWAY));
            let head = connection.incomplete_since().map(|begun| begun + HEAD);
            let deadline = [Some(look), turn_away, head].into_iter().flatten().min().unwrap_or(look);
            // The timer may ring too early, never too late: most requests do not touch it.
            if deadline < timer.deadline() {
                timer.as_mut().reset(deadline);
            }
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            let has_come = |moment: Option<Instant>| moment.is_some_and(|moment| moment <= now);
            if has_come(head) {
                connection.time_out();
                return Poll::Ready(());
            }
            if has_come(turn_away) {
                connection.reject_blocked_requests();
            }
            if has_come(Some(look)) {
                look = now + period;
                if connection.is_read_closed() {
                    // It says nothing more, but may read on.
                    connection.probe();
                    continue;
                }
                let may_ask = !wants_calm.get();
                match pulse.look(state.busy.get(), connection.bytes_read(), connection.message_frames(), may_ask, now) {
                    Look::Lives => {}
                    Look::Ask => connection.ping(),
                    Look::Gone => {
                        connection.time_out();
                        return Poll::Ready(());
                    }
                }
            }
            // The nearest of what is to come; the next turn looks what that is.
            timer.as_mut().reset(look);
        }
    })
    .await;
    if connection.got_enhance_your_calm() {
        wants_calm.set(true);
    }
}

// === impl Pulse ===

impl Pulse {
    /// Looks once. One that was asked is not asked again, and has until the next look for any sign of life. `answers`: heads and
    /// data that have come.
    fn look(&mut self, busy: bool, read: u64, answers: u64, may_ask: bool, now: Instant) -> Look {
        let is_silent = busy && self.read == read;
        self.read = read;
        let was_asked = std::mem::take(&mut self.asked);
        if !is_silent {
            return Look::Lives;
        }
        if was_asked {
            return Look::Gone;
        }
        let is_welcome = self.last.is_none_or(|(at, before)| before != answers || now - at >= ASK_WITHOUT_DATA);
        if !(may_ask && is_welcome) {
            return Look::Lives;
        }
        self.asked = true;
        self.last = Some((now, answers));
        Look::Ask
    }
}

// === impl Sent ===

impl Future for Sent {
    type Output = Result<Response<Incoming>, SendError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (response, upload, client) = match self.get_mut() {
            Self::Failed(error) => return error.take().map_or(Poll::Pending, |error| Poll::Ready(Err(error))),
            Self::Waiting { response, upload, client } => (response, upload, client),
        };
        while let Some((status, headers)) = response.as_mut().and_then(RecvStream::take_interim) {
            if let Some(client) = client {
                client.inform(status, headers);
            }
        }
        // Where the stream was reset, by whichever side, the response tells why.
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
    /// What the end of a stream says about its request.
    fn of_stream(error: &Error) -> Self {
        match error {
            Error::GoAway(Reason::NO_ERROR) => Self::Left,
            // RFC 9113 6.8: what is beyond the last stream that a server names was not processed, whatever made it leave.
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
    fn who_is_silent_is_asked_and_then_given_up() {
        let mut pulse = Pulse::default();
        let begun = Instant::now();
        for (look, (busy, read, answers, seconds, expected)) in [
            (true, 10, 0, 0, Look::Lives),
            (true, 10, 0, 5, Look::Ask),
            // What comes is not the answer, but a sign of life all the same.
            (true, 20, 0, 10, Look::Lives),
            // Without data it is not asked again for some minutes.
            (true, 20, 0, 15, Look::Lives),
            (true, 20, 0, 360, Look::Lives),
            (true, 20, 0, 365, Look::Ask),
            (true, 37, 0, 370, Look::Lives),
            // A head or data came since.
            (true, 50, 1, 375, Look::Lives),
            (true, 50, 1, 380, Look::Ask),
            (true, 50, 1, 385, Look::Gone),
            // No request waits for it.
            (false, 50, 1, 390, Look::Lives),
            (false, 50, 1, 395, Look::Lives),
        ]
        .into_iter()
        .enumerate()
        {
            let now = begun + Duration::from_secs(seconds);
            assert_eq!(pulse.look(busy, read, answers, true, now), expected, "look {look}");
        }
        for look in 0..3 {
            assert_eq!(Pulse::default().look(true, 0, 0, false, begun), Look::Lives, "it wants calm: look {look}");
        }
    }
}
