//! One worker's view of an endpoint: its latency, its failures and its connection pool.
//!
//! An HTTP/1.1 connection carries one request at a time. It returns to the pool when both request and response are
//! complete; otherwise it is closed. An HTTP/2 connection is shared by several requests, also while it is being
//! opened.

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
use weft_balance::outlier::OutlierStats;
use weft_balance::{EndpointView, PeakEwma};
use weft_codec::Tick;

use super::error::{LeaseError, SendError};
use super::http1::{Http1, Upgraded};
use super::http2::Http2;
use super::shared_cluster::{Permit, SharedCluster};
use crate::http::incoming::Incoming;
use crate::http::request_body::{RequestBody, SharedBody};
use crate::telemetry::alive::{self, Alive, Kind};

/// Idle timeout of HTTP/1.1 connections. Shorter than that of common servers, so that the proxy closes first. Source:
/// Linkerd closes after 3 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// TCP keepalive: idle time before the first probe, time between probes, and unanswered probes that close the
/// connection.
const KEEPALIVE_TIME: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;

/// Idle HTTP/1.1 connections that one worker keeps for one endpoint.
const IDLE_MAX: usize = 256;

/// Requests that may wait for one HTTP/2 connection while it is being opened; further ones open another.
const OPENING_REQUESTS_MAX: u32 = 100;

/// An endpoint.
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    /// It is a pod with a proxy. Set by the cluster.
    pub(crate) has_proxy: Cell<bool>,
    in_flight: Cell<u32>,
    ewma: Cell<PeakEwma>,
    /// Updated by the cluster.
    pub(crate) outlier_stats: Cell<OutlierStats>,
    /// When its slow start began: it was added, or unejected. `None`: it gets its whole share.
    pub(super) joined: Cell<Option<Duration>>,
    /// Idle HTTP/1.1 connections, the newest last.
    idle: RefCell<Vec<Idle>>,
    /// HTTP/2 connections.
    shared: RefCell<Vec<Rc<Http2>>>,
    opening: RefCell<Option<Opening>>,
    /// The server has closed an HTTP/2 connection with ENHANCE_YOUR_CALM: it is sent no keepalive PINGs.
    no_pings: Rc<Cell<bool>>,
}

struct Idle {
    connection: Rc<Http1>,
    since: Tick,
    _alive: Alive,
}

/// An HTTP/2 connection that is being opened. Requests that arrive meanwhile share it instead of opening one each.
struct Opening {
    connection: Shared<LocalBoxFuture<'static, Result<Rc<Http2>, LeaseError>>>,
    /// Requests that wait for it.
    requests: u32,
}

/// A connection for one request. Counts as a request in flight until it is dropped.
pub(crate) struct Lease {
    endpoint: Rc<Endpoint>,
    pub(crate) connection: Connection,
    /// Whether the connection has carried a request before.
    pub(crate) reused: bool,
    /// No other request may use the connection.
    is_retired: Cell<bool>,
    /// Set if connections are limited, so that requests may wait for this one.
    waiters: Option<Arc<SharedCluster>>,
}

/// A connection.
pub(crate) enum Connection {
    /// `None` once it was returned to the pool, closed, or taken for another protocol.
    Http1(Option<Rc<Http1>>),
    Http2(Rc<Http2>),
}

// === impl Endpoint ===

impl Endpoint {
    pub(crate) fn new(address: SocketAddr, now: Duration) -> Self {
        Self {
            address,
            has_proxy: Cell::new(false),
            in_flight: Cell::new(0),
            ewma: Cell::new(PeakEwma::new(now)),
            outlier_stats: Cell::default(),
            joined: Cell::new(None),
            idle: RefCell::default(),
            shared: RefCell::default(),
            opening: RefCell::default(),
            no_pings: Rc::default(),
        }
    }

    /// What balancing looks at.
    #[inline]
    pub(super) fn view(&self) -> EndpointView<'_> {
        EndpointView { address: self.address, in_flight: self.in_flight.get(), ewma: &self.ewma, joined: &self.joined }
    }

    pub(crate) fn observe(&self, sample: Duration, now: Duration) {
        let mut ewma = self.ewma.get();
        ewma.observe(sample, now);
        self.ewma.set(ewma);
    }

    /// Records a request that was cancelled after `sample`: its latency would have been at least that.
    pub(crate) fn observe_at_least(&self, sample: Duration, now: Duration) {
        let mut ewma = self.ewma.get();
        ewma.observe_at_least(sample, now);
        self.ewma.set(ewma);
    }

    /// A lease of an open connection.
    pub(crate) fn idle(self: &Rc<Self>, http2: bool) -> Option<Lease> {
        if http2 {
            let shared = self.shared.borrow();
            let connection = shared.iter().find(|connection| connection.has_capacity())?.clone();
            return Some(self.lease(Connection::Http2(connection), true));
        }
        let mut idle = self.idle.borrow_mut();
        // The newest is last: if that one has timed out, all have.
        if idle.last().is_some_and(|newest| newest.since.elapsed() > IDLE_TIMEOUT) {
            idle.clear();
        }
        let usable = std::iter::from_fn(|| idle.pop()).find(|idle| idle.connection.is_usable())?;
        drop(idle);
        Some(self.lease(Connection::Http1(Some(usable.connection)), true))
    }

    /// A lease of the HTTP/2 connection that is being opened, if there is one with capacity.
    pub(crate) async fn opening(self: &Rc<Self>) -> Option<Result<Lease, LeaseError>> {
        loop {
            let connection = {
                let mut opening = self.opening.borrow_mut();
                let opening = (opening.as_mut())
                    .filter(|opening| opening.requests < OPENING_REQUESTS_MAX && opening.connection.peek().is_none())?;
                opening.requests += 1;
                opening.connection.clone()
            };
            match connection.await {
                // Requests that came later may have been first to use it.
                Ok(connection) if !connection.has_capacity() => {}
                connected => return Some(connected.map(|it| self.lease(Connection::Http2(it), false))),
            }
        }
    }

    /// A lease of a new connection. The connection holds the permit.
    pub(crate) async fn connect(
        self: &Rc<Self>,
        http2: bool,
        timeout: Duration,
        permit: Option<Permit>,
    ) -> Result<Lease, LeaseError> {
        if http2 {
            // A task of its own, because this request may be cancelled while others wait for the connection.
            let own = Rc::<Cell<Option<Lease>>>::default();
            let task = alive::spawn(connect_http2(self.clone(), timeout, permit, own.clone()));
            let failed = |error| LeaseError::Connect(Arc::new(io::Error::other(error)));
            let connection =
                async move { task.await.unwrap_or_else(|error| Err(failed(error))) }.boxed_local().shared();
            *self.opening.borrow_mut() = Some(Opening { connection: connection.clone(), requests: 1 });
            let connected = connection.await;
            self.opening.borrow_mut().take_if(|opening| opening.connection.peek().is_some());
            let connected = connected?;
            return Ok(own.take().unwrap_or_else(|| self.lease(Connection::Http2(connected), false)));
        }
        let connection = Http1::new(open(self.address, timeout).await?, permit);
        Ok(self.lease(Connection::Http1(Some(connection)), false))
    }

    /// Puts a connection into the pool, or closes it if the pool is full.
    fn keep(&self, connection: Rc<Http1>) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < IDLE_MAX {
            idle.push(Idle { connection, since: Tick::now(), _alive: Alive::new(Kind::UpstreamHttp1Idle) });
        }
    }

    /// Closes connections that were idle for too long or were closed by the server.
    pub(crate) fn close_idle(&self) {
        self.idle.borrow_mut().retain(|idle| idle.since.elapsed() <= IDLE_TIMEOUT && idle.connection.is_usable());
        self.shared.borrow_mut().retain(|connection| !connection.is_closed_or_idle());
    }

    /// Closes the HTTP/1.1 connection that was idle for longest. Returns whether there was one.
    pub(crate) fn close_one_idle(&self) -> bool {
        let mut idle = self.idle.borrow_mut();
        !idle.is_empty() && {
            idle.remove(0);
            true
        }
    }

    /// Removes up to `most` HTTP/2 connections from the pool. Each closes when its last request is complete. Returns
    /// how many.
    pub(crate) fn retire_http2(&self, most: usize) -> usize {
        let mut shared = self.shared.borrow_mut();
        // Requests use the first connection with capacity, so the last ones are used least.
        let kept = shared.len().saturating_sub(most);
        shared.drain(kept..).count()
    }

    fn lease(self: &Rc<Self>, connection: Connection, reused: bool) -> Lease {
        self.in_flight.set(self.in_flight.get() + 1);
        if let Connection::Http2(connection) = &connection {
            connection.acquire_slot();
        }
        Lease { endpoint: self.clone(), connection, reused, is_retired: Cell::new(false), waiters: None }
    }
}

// === impl Lease ===

impl Lease {
    /// Notifies requests that wait for a connection when this one returns to the pool.
    pub(crate) fn with_waiters(mut self, cluster: Arc<SharedCluster>) -> Self {
        self.waiters = Some(cluster);
        self
    }

    /// Sends a request. `client`: receives informational (1xx) responses.
    pub(crate) fn send(
        &self,
        head: &Parts,
        body: RequestBody,
        client: Option<Rc<SharedBody>>,
    ) -> impl Future<Output = Result<http::Response<Incoming>, SendError>> + use<> {
        // Sending begins before the future exists, so the future does not have to hold the request's head.
        match &self.connection {
            Connection::Http1(Some(connection)) => Either::Left(connection.send(head, body, client)),
            Connection::Http2(connection) => Either::Right(connection.send(head, body, client)),
            Connection::Http1(None) => unreachable!("a lease is returned once, when its response is complete"),
        }
    }

    /// Removes this connection from the pool, because it or the pod behind it is about to end. After GOAWAY a shared
    /// HTTP/2 connection looks open until its last stream ends.
    pub(crate) fn retire(&self) {
        self.is_retired.set(true);
        if let Connection::Http2(retired) = &self.connection {
            self.endpoint.shared.borrow_mut().retain(|connection| !Rc::ptr_eq(connection, retired));
        }
    }

    /// Returns an HTTP/1.1 connection to the pool if its request and response are complete; otherwise closes it.
    pub(crate) fn give_back(mut self) {
        let Connection::Http1(connection) = &mut self.connection else { return };
        let is_retired = self.is_retired.get();
        let Some(connection) = connection.take().filter(|connection| connection.is_free() && !is_retired) else {
            return;
        };
        self.endpoint.keep(connection);
        if let Some(cluster) = &self.waiters {
            cluster.freed.notify_one();
        }
    }

    /// Takes the stream of an HTTP/1.1 connection that switches protocols. The request stays in flight until the
    /// lease drops.
    pub(crate) fn upgrade(&mut self) -> Option<Upgraded> {
        match &mut self.connection {
            Connection::Http1(connection) => connection.take()?.into_upgraded(),
            Connection::Http2(_) => None,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.in_flight.set(self.endpoint.in_flight.get() - 1);
        if let Connection::Http2(connection) = &self.connection {
            connection.release_slot();
        }
    }
}

/// Opens an HTTP/2 connection. The request that it is opened for gets its lease through `own`, before others can take all
/// slots; if that request is cancelled, the lease is dropped with `own`.
async fn connect_http2(
    endpoint: Rc<Endpoint>,
    timeout: Duration,
    permit: Option<Permit>,
    own: Rc<Cell<Option<Lease>>>,
) -> Result<Rc<Http2>, LeaseError> {
    let stream = open(endpoint.address, timeout).await?;
    let connection = Http2::new(stream, permit, endpoint.no_pings.clone())?;
    own.set(Some(endpoint.lease(Connection::Http2(connection.clone()), false)));
    endpoint.shared.borrow_mut().push(connection.clone());
    Ok(connection)
}

/// Opens a TCP connection with keepalive, so that the kernel closes it if the other host is gone.
pub(crate) async fn open(address: SocketAddr, timeout: Duration) -> Result<TcpStream, LeaseError> {
    let stream = tokio::time::timeout(timeout, TcpStream::connect(address))
        .await
        .map_err(|_| LeaseError::Timeout(timeout))??;
    stream.set_nodelay(true)?;
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_TIME).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_PROBES);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use futures_util::future::join_all;
    use tokio::net::TcpListener;
    use tokio::task::LocalSet;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    /// Requests that wait for an HTTP/2 connection and requests that come when it is open share its slots: none is put on a
    /// connection that is full, where it would wait for streams that may never end.
    #[tokio::test]
    async fn http2_connections_get_no_more_requests_than_slots() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let endpoint = Rc::new(Endpoint::new(listener.local_addr().expect("an address"), Duration::ZERO));
        let run = async {
            let mut first = Box::pin(endpoint.connect(true, TIMEOUT, None));
            assert!(poll_fn(|cx| Poll::Ready(first.as_mut().poll(cx).is_pending())).await);
            let mut waiting: Vec<_> = (1..OPENING_REQUESTS_MAX).map(|_| Box::pin(endpoint.opening())).collect();
            for request in &mut waiting {
                assert!(poll_fn(|cx| Poll::Ready(request.as_mut().poll(cx).is_pending())).await);
            }
            let mut late = Vec::new();
            while late.is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
                late.extend((0..60).map_while(|_| endpoint.idle(true)));
            }
            assert_eq!(late.len(), 60);
            let first = first.await.expect("connected");
            let leases: Vec<Lease> = join_all(waiting).await.into_iter().flatten().flatten().collect();
            assert_eq!(leases.len(), 39, "slots that are left");
            assert!(endpoint.idle(true).is_none());
            drop((first, leases, late));
            assert_eq!(
                (0..200).map_while(|_| endpoint.idle(true)).collect::<Vec<_>>().len(),
                100,
                "all slots are free"
            );
        };
        LocalSet::new().run_until(run).await;
    }

    #[tokio::test]
    async fn cancelled_connect_releases_its_slot() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let endpoint = Rc::new(Endpoint::new(listener.local_addr().expect("an address"), Duration::ZERO));
        let run = async {
            let mut first = Box::pin(endpoint.connect(true, TIMEOUT, None));
            assert!(poll_fn(|cx| Poll::Ready(first.as_mut().poll(cx).is_pending())).await);
            drop(first);
            let mut leases = Vec::new();
            while leases.is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
                leases.extend((0..200).map_while(|_| endpoint.idle(true)));
            }
            assert_eq!((leases.len(), endpoint.in_flight.get()), (100, 100));
        };
        LocalSet::new().run_until(run).await;
    }
}
