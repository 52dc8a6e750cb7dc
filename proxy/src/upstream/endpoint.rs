//! One endpoint as one worker sees it: what it costs, and its connections.
//!
//! An HTTP/1.1 connection carries one request at a time: it is leased, and comes back when request and response are both
//! complete; in any doubt it is closed. An HTTP/2 connection is shared, also while it is being made.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{Either, LocalBoxFuture, Shared};
use http::request::Parts;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use super::http1::{Http1, Switched};
use super::http2::Http2;
use super::load::{Load, Permit};
use crate::balance::PeakEwma;
use crate::balance::outlier::OutlierStats;
use crate::clock::Tick;
use crate::http::body::{self, RequestBody};
use crate::http::incoming::Incoming;
use crate::telemetry::alive::{self, Alive, Kind};

/// How long an HTTP/1.1 connection may idle. Shorter than the idle timeouts of common servers, so that it is this side
/// that closes. Source: Linkerd closes after 3 s.
const IDLE: Duration = Duration::from_secs(4);

/// How long a connection may be silent before the kernel asks the other host whether it is there, how often it asks then, and
/// how many answers may be missing.
const PROBE_AFTER: Duration = Duration::from_secs(10);
const PROBE_EACH: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;

/// Idle connections that one worker keeps for one endpoint.
const IDLE_MAX: usize = 256;

/// Requests that wait for one HTTP/2 connection while it is being made; more make another.
const EXPECTED_MAX: u32 = 100;

/// An endpoint.
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    /// It is a pod with a proxy. Kept by the cluster that it belongs to.
    pub(crate) has_proxy: Cell<bool>,
    in_flight: Cell<u32>,
    ewma: Cell<PeakEwma>,
    /// Its failures. Kept by the cluster that it belongs to.
    pub(crate) tally: Cell<OutlierStats>,
    /// When it joined, while it gets less than its share for that.
    pub(crate) joined: Cell<Option<Duration>>,
    idle: RefCell<Vec<Idle>>,
    shared: RefCell<Vec<Rc<Http2>>>,
    opening: RefCell<Option<Opening>>,
    /// It has ended a connection of HTTP/2 because of too much of something (ENHANCE_YOUR_CALM).
    wants_calm: Rc<Cell<bool>>,
}

struct Idle {
    connection: Rc<Http1>,
    since: Tick,
    _alive: Alive,
}

/// An HTTP/2 connection that is being made. Of a thousand requests that come at once the first makes a connection and a
/// hundred go on it, instead of each on its own.
struct Opening {
    connection: Shared<LocalBoxFuture<'static, Result<Rc<Http2>, LeaseError>>>,
    /// Requests that were promised a place on it.
    expected: u32,
}

/// A connection for one request. Counts as a request in flight until it is dropped.
pub(crate) struct Lease {
    endpoint: Rc<Endpoint>,
    pub(crate) connection: Connection,
    /// Whether the connection has carried a request before.
    pub(crate) reused: bool,
    /// No other request is to take it.
    is_retired: Cell<bool>,
    /// Where connections are limited, and so may be waited for.
    load: Option<Arc<Load>>,
}

/// A connection.
pub(crate) enum Connection {
    /// None once it has gone back or is not to.
    Http1(Option<Rc<Http1>>),
    Http2(Rc<Http2>),
}

/// Why there is no connection. Several requests may have waited for the same.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum LeaseError {
    /// None could be made.
    #[error("{0}")]
    Connect(#[source] Arc<io::Error>),
    /// None could be made in time.
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    /// Too many requests wait already.
    #[error("too many requests wait for a connection")]
    Overflow,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// Nothing of the request was sent.
    #[error("{0}")]
    Unsent(String),
    /// The other side leaves in peace, and says that this request came too late.
    #[error("the connection was given up before")]
    Left,
    /// The other side says that it did nothing for this request.
    #[error("the stream was refused")]
    Refused,
    /// What came is not HTTP.
    #[error("{0}")]
    Protocol(String),
    /// The head of the response is larger than what is taken.
    #[error("{0}")]
    TooLarge(String),
    /// Something may have been sent.
    #[error("{0}")]
    Reset(String),
}

// === impl Endpoint ===

impl Endpoint {
    pub(crate) fn new(address: SocketAddr, now: Duration) -> Self {
        Self {
            address,
            has_proxy: Cell::new(false),
            in_flight: Cell::new(0),
            ewma: Cell::new(PeakEwma::new(now)),
            tally: Cell::default(),
            joined: Cell::new(None),
            idle: RefCell::default(),
            shared: RefCell::default(),
            opening: RefCell::default(),
            wants_calm: Rc::default(),
        }
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    pub(crate) fn cost(&self, now: Duration) -> f64 {
        self.ewma.get().cost(self.in_flight.get(), now)
    }

    pub(crate) fn observe(&self, sample: Duration, now: Duration) {
        let mut ewma = self.ewma.get();
        ewma.observe(sample, now);
        self.ewma.set(ewma);
    }

    /// Notes a request that was not waited for to its end.
    pub(crate) fn observe_at_least(&self, sample: Duration, now: Duration) {
        let mut ewma = self.ewma.get();
        ewma.observe_at_least(sample, now);
        self.ewma.set(ewma);
    }

    /// A connection that is there already.
    pub(crate) fn idle(self: &Rc<Self>, http2: bool) -> Option<Lease> {
        if http2 {
            let shared = self.shared.borrow();
            let connection = shared.iter().find(|connection| connection.has_room())?.clone();
            return Some(self.lease(Connection::Http2(connection), true));
        }
        let mut idle = self.idle.borrow_mut();
        // The newest is at the end: if that one is too old, all are.
        if idle.last().is_some_and(|newest| newest.since.elapsed() > IDLE) {
            idle.clear();
        }
        let usable = std::iter::from_fn(|| idle.pop()).find(|idle| idle.connection.is_usable())?;
        drop(idle);
        Some(self.lease(Connection::Http1(Some(usable.connection)), true))
    }

    /// An HTTP/2 connection that is being made already.
    pub(crate) async fn opening(self: &Rc<Self>) -> Option<Result<Lease, LeaseError>> {
        let connection = {
            let mut opening = self.opening.borrow_mut();
            let opening = (opening.as_mut())
                .filter(|opening| opening.expected < EXPECTED_MAX && opening.connection.peek().is_none())?;
            opening.expected += 1;
            opening.connection.clone()
        };
        Some(connection.await.map(|connection| self.lease(Connection::Http2(connection), false)))
    }

    /// A new connection. The permit lives as long as it does.
    pub(crate) async fn connect(
        self: &Rc<Self>,
        http2: bool,
        timeout: Duration,
        permit: Option<Permit>,
    ) -> Result<Lease, LeaseError> {
        if http2 {
            // A task of its own: whoever began it may leave before the others.
            let task = alive::spawn(connect_http2(self.clone(), timeout, permit));
            let gone = |error| LeaseError::Connect(Arc::new(io::Error::other(error)));
            let connection = async move { task.await.unwrap_or_else(|error| Err(gone(error))) }.boxed_local().shared();
            *self.opening.borrow_mut() = Some(Opening { connection: connection.clone(), expected: 1 });
            let connected = connection.await;
            self.opening.borrow_mut().take_if(|opening| opening.connection.peek().is_some());
            return Ok(self.lease(Connection::Http2(connected?), false));
        }
        let connection = Http1::new(open(self.address, timeout).await?, permit);
        Ok(self.lease(Connection::Http1(Some(connection)), false))
    }

    /// Keeps a connection for the next request.
    fn keep(&self, connection: Rc<Http1>) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < IDLE_MAX {
            idle.push(Idle { connection, since: Tick::now(), _alive: Alive::new(Kind::UpstreamHttp1Idle) });
        }
    }

    /// Closes what has idled for too long, and what the server has closed.
    pub(crate) fn close_idle(&self) {
        self.idle.borrow_mut().retain(|idle| idle.since.elapsed() <= IDLE && idle.connection.is_usable());
        self.shared.borrow_mut().retain(|connection| !connection.is_over());
    }

    /// Closes the connection that has idled for longest, if there is one.
    pub(crate) fn close_one_idle(&self) -> bool {
        let mut idle = self.idle.borrow_mut();
        !idle.is_empty() && {
            idle.remove(0);
            true
        }
    }

    /// Lets no further request onto so many of its HTTP/2 connections, or all. Each closes when its last request is over.
    pub(crate) fn retire_http2(&self, most: usize) -> usize {
        let mut shared = self.shared.borrow_mut();
        // Requests go to the first that has room, so the last are used least.
        let kept = shared.len().saturating_sub(most);
        shared.drain(kept..).count()
    }

    fn lease(self: &Rc<Self>, connection: Connection, reused: bool) -> Lease {
        self.in_flight.set(self.in_flight.get() + 1);
        if let Connection::Http2(connection) = &connection {
            connection.enter();
        }
        Lease { endpoint: self.clone(), connection, reused, is_retired: Cell::new(false), load: None }
    }
}

// === impl Lease ===

impl Lease {
    /// Tells those who wait for a connection when this one is free again.
    pub(crate) fn awaited(mut self, load: Arc<Load>) -> Self {
        self.load = Some(load);
        self
    }

    /// Sends a request. `client`: where responses before the response go.
    pub(crate) fn send(
        &self,
        head: &Parts,
        body: RequestBody,
        client: Option<Rc<body::Shared>>,
    ) -> impl Future<Output = Result<http::Response<Incoming>, SendError>> + use<> {
        // The request is on its way before there is a future that would have to keep it.
        match &self.connection {
            Connection::Http1(Some(connection)) => Either::Left(connection.send(head, body, client)),
            Connection::Http2(connection) => Either::Right(connection.send(head, body, client)),
            Connection::Http1(None) => unreachable!("a lease is given back once, when its response is complete"),
        }
    }

    /// Sees to it that no other request takes this connection, which is about to end or leads to a pod that is. HTTP/2 shares them,
    /// and one that has said GOAWAY looks open until its last stream is over.
    pub(crate) fn retire(&self) {
        self.is_retired.set(true);
        if let Connection::Http2(leaving) = &self.connection {
            self.endpoint.shared.borrow_mut().retain(|connection| !Rc::ptr_eq(connection, leaving));
        }
    }

    /// Gives an HTTP/1.1 connection back once its request and response are complete. In any doubt it is closed.
    pub(crate) fn give_back(mut self) {
        let Connection::Http1(connection) = &mut self.connection else { return };
        let is_retired = self.is_retired.get();
        let Some(connection) = connection.take().filter(|connection| connection.is_free() && !is_retired) else {
            return;
        };
        self.endpoint.keep(connection);
        if let Some(load) = &self.load {
            load.freed.notify_one();
        }
    }

    /// Takes an HTTP/1.1 connection that is HTTP no more. The request counts as in flight still.
    pub(crate) fn switch(&mut self) -> Option<Switched> {
        match &mut self.connection {
            Connection::Http1(connection) => connection.take()?.into_switched(),
            Connection::Http2(_) => None,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.in_flight.set(self.endpoint.in_flight.get() - 1);
        if let Connection::Http2(connection) = &self.connection {
            connection.leave();
        }
    }
}

async fn connect_http2(
    endpoint: Rc<Endpoint>,
    timeout: Duration,
    permit: Option<Permit>,
) -> Result<Rc<Http2>, LeaseError> {
    let stream = open(endpoint.address, timeout).await?;
    let connection = Http2::new(stream, permit, endpoint.wants_calm.clone())?;
    endpoint.shared.borrow_mut().push(connection.clone());
    Ok(connection)
}

/// Opens a TCP connection, on which the kernel finds out that the other host is gone.
pub(crate) async fn open(address: SocketAddr, timeout: Duration) -> Result<TcpStream, LeaseError> {
    let stream = tokio::time::timeout(timeout, TcpStream::connect(address))
        .await
        .map_err(|_| LeaseError::Timeout(timeout))??;
    stream.set_nodelay(true)?;
    let probes = TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EACH).with_retries(PROBES);
    SockRef::from(&stream).set_tcp_keepalive(&probes)?;
    Ok(stream)
}

// === impl LeaseError ===

impl From<io::Error> for LeaseError {
    fn from(error: io::Error) -> Self {
        Self::Connect(Arc::new(error))
    }
}
