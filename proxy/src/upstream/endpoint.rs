//! One worker's view of an endpoint: its latency, its failures and its connection pool.
//!
//! An HTTP/1.1 connection carries one request at a time. It returns to the pool when both request and response are
//! complete; otherwise it is closed. An HTTP/2 connection is shared by several requests, also while it is being
//! opened. Requests of HTTP/1.1 to a busy proxy of the mesh share connections too, as streams of HTTP/2: many of them
//! then take one system call and one TLS record (docs/adr/007-multiplexed-http1.md).

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
use weft_config::MtlsMode;
use weft_identity::{Account, SpiffeId, UnixTime};

use super::error::{LeaseError, SendError};
use super::http1::{Http1, Upgraded};
use super::http2::Http2;
use super::shared_cluster::{Permit, SharedCluster};
use crate::http::incoming::Incoming;
use crate::http::request_body::{RequestBody, SharedBody};
use crate::identity::{Identity, Protocol, Slot};
use crate::security::{Security, Why};
use crate::stream::Stream;
use crate::table::Cluster;
use crate::telemetry::alive::{self, Alive, Kind};
use crate::tls;

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

/// Requests in flight from which on further ones of HTTP/1.1 are multiplexed. With fewer, there is little to save.
const MULTIPLEX_FROM: u32 = 8;

/// Who is at the other end of a cluster's connections, and who at this one.
#[derive(Clone)]
pub(crate) struct Peer {
    /// Whom the endpoint must prove to be. None: it has no identity.
    pub(super) account: Option<Account>,
    pub(super) identity: Arc<Slot>,
}

/// An endpoint.
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    /// None: it is in this pod.
    peer: Option<Peer>,
    /// It is a pod with a proxy. Set by the cluster.
    pub(crate) has_proxy: Cell<bool>,
    /// Its pod excludes the port from its proxy. Set by the cluster.
    pub(super) is_excluded: Cell<bool>,
    /// Mode of mutual TLS that policies set for its port. None: that of this pod holds. Set by the cluster.
    pub(super) mode: Cell<Option<MtlsMode>>,
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
    protocol: Protocol,
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
    /// `peer`: None for what is in this pod.
    pub(crate) fn new(address: SocketAddr, peer: Option<Peer>, now: Duration) -> Self {
        Self {
            address,
            peer,
            has_proxy: Cell::new(false),
            is_excluded: Cell::new(false),
            mode: Cell::new(None),
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

    /// Whom it must prove to be.
    pub(super) fn account(&self) -> Option<&Account> {
        self.peer.as_ref()?.account.as_ref()
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

    /// Whether a further request of HTTP/1.1 is to be multiplexed: the other side is a proxy of the mesh, and many are in
    /// flight.
    pub(crate) fn multiplexes_http1(&self) -> bool {
        let is_proxy = |peer: &Peer| peer.account.is_some() && peer.identity.is_expected();
        self.in_flight.get() >= MULTIPLEX_FROM && self.peer.as_ref().is_some_and(is_proxy)
    }

    /// A lease of an open connection.
    pub(crate) fn idle(self: &Rc<Self>, protocol: Protocol) -> Option<Lease> {
        if protocol.is_multiplexed() {
            let shared = self.shared.borrow();
            let is_usable = |connection: &&Rc<Http2>| {
                connection.protocol == protocol && connection.has_capacity() && self.may_use(connection.is_tls)
            };
            let connection = shared.iter().find(is_usable)?.clone();
            return Some(self.lease(Connection::Http2(connection), true));
        }
        let mut idle = self.idle.borrow_mut();
        // The newest is last: if that one has timed out, all have.
        if idle.last().is_some_and(|newest| newest.since.elapsed() > IDLE_TIMEOUT) {
            idle.clear();
        }
        let is_usable = |idle: &Idle| idle.connection.is_usable() && self.may_use(idle.connection.is_tls());
        let usable = std::iter::from_fn(|| idle.pop()).find(is_usable)?;
        drop(idle);
        Some(self.lease(Connection::Http1(Some(usable.connection)), true))
    }

    /// A lease of the HTTP/2 connection that is being opened, if there is one with capacity.
    pub(crate) async fn opening(self: &Rc<Self>, protocol: Protocol) -> Option<Result<Lease, LeaseError>> {
        loop {
            let connection = {
                let mut opening = self.opening.borrow_mut();
                let opening = (opening.as_mut().filter(|opening| opening.protocol == protocol))
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
        protocol: Protocol,
        timeout: Duration,
        permit: Option<Permit>,
    ) -> Result<Lease, LeaseError> {
        if protocol.is_multiplexed() {
            // A task of its own, because this request may be cancelled while others wait for the connection.
            let own = Rc::<Cell<Option<Lease>>>::default();
            let task = alive::spawn(connect_http2(self.clone(), protocol, timeout, permit, own.clone()));
            let failed = |error| LeaseError::Connect(Arc::new(io::Error::other(error)));
            let connection =
                async move { task.await.unwrap_or_else(|error| Err(failed(error))) }.boxed_local().shared();
            *self.opening.borrow_mut() = Some(Opening { protocol, connection: connection.clone(), requests: 1 });
            let connected = connection.await;
            self.opening.borrow_mut().take_if(|opening| opening.connection.peek().is_some());
            let connected = connected?;
            return Ok(own.take().unwrap_or_else(|| self.lease(Connection::Http2(connected), false)));
        }
        let connection = Http1::new(self.open(protocol, timeout).await?, permit);
        Ok(self.lease(Connection::Http1(Some(connection)), false))
    }

    /// Opens a connection: with mutual TLS if both sides have an identity, else in plaintext, unless the mode is Strict.
    pub(crate) async fn open(&self, protocol: Protocol, timeout: Duration) -> Result<Stream, LeaseError> {
        match self.peer.as_ref().map_or(Ok(None), |peer| peer.required(self.mode.get()))? {
            None => open(self.address, timeout).await.map(Stream::Plain),
            // Boxed: short-lived.
            Some(security) => Box::pin(open_tls(self.address, security, protocol, timeout)).await,
        }
    }

    /// Whether a request may use an open connection. The mode may have changed since it was made.
    fn may_use(&self, is_tls: bool) -> bool {
        is_tls || self.peer.as_ref().is_none_or(|peer| peer.may_send_plaintext(self.mode.get()))
    }

    /// How a connection to it is secured.
    pub(crate) fn security(&self, is_tls: bool) -> Security {
        match &self.peer {
            None => Security::Plaintext(Why::SamePod),
            Some(_) if is_tls => Security::Mtls,
            Some(peer) if !peer.identity.is_expected() => Security::Plaintext(Why::NoIdentity),
            Some(_) if self.is_excluded.get() => Security::Plaintext(Why::Excluded),
            Some(_) => Security::Plaintext(Why::OutsideMesh),
        }
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

// === impl Peer ===

impl Peer {
    /// The peer at an endpoint of a cluster. None: this pod itself.
    pub(super) fn of(cluster: &Cluster, at: usize, identity: &Arc<Slot>) -> Option<Self> {
        let account = cluster.account(at).cloned();
        (!cluster.is_own(at)).then(|| Self { account, identity: identity.clone() })
    }

    /// Who must prove what on a new connection. None: it is in plaintext. `mode`: what policies set for the port.
    pub(super) fn required(&self, mode: Option<MtlsMode>) -> Result<Option<(Arc<Identity>, SpiffeId)>, LeaseError> {
        match &self.account {
            // A certificate that is expected and not there yet is no reason for plaintext.
            Some(account) if self.identity.is_expected() => {
                let own = self.identity.load().ok_or(LeaseError::NoCertificate(None))?;
                if own.is_expired(UnixTime::now()) {
                    return Err(LeaseError::NoCertificate(Some(own.not_after)));
                }
                let peer = account.in_domain(own.id.trust_domain());
                Ok(Some((own, peer)))
            }
            _ if self.may_send_plaintext(mode) => Ok(None),
            _ => Err(LeaseError::Plaintext),
        }
    }

    /// Whether requests may be sent to it in plaintext. The port's mode comes before that of this pod.
    fn may_send_plaintext(&self, mode: Option<MtlsMode>) -> bool {
        mode.map_or_else(|| self.identity.may_send_plaintext(), |mode| mode == MtlsMode::Permissive)
    }
}

// === impl Lease ===

impl Lease {
    /// How its connection is secured.
    pub(crate) fn security(&self) -> Security {
        let is_tls = match &self.connection {
            Connection::Http1(connection) => connection.as_ref().is_some_and(|connection| connection.is_tls()),
            Connection::Http2(connection) => connection.is_tls,
        };
        self.endpoint.security(is_tls)
    }

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
    protocol: Protocol,
    timeout: Duration,
    permit: Option<Permit>,
    own: Rc<Cell<Option<Lease>>>,
) -> Result<Rc<Http2>, LeaseError> {
    let stream = endpoint.open(protocol, timeout).await?;
    let connection = Http2::new(stream, protocol, permit, endpoint.no_pings.clone())?;
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

/// Opens a TCP connection and makes the handshake, both within `timeout`.
async fn open_tls(
    address: SocketAddr,
    (own, peer): (Arc<Identity>, SpiffeId),
    protocol: Protocol,
    timeout: Duration,
) -> Result<Stream, LeaseError> {
    let opening = async {
        let stream = open(address, timeout).await?;
        let stream = tls::connect(stream, &own, peer, protocol).await.map_err(|error| {
            let is_other = tls::is_other_identity(&error);
            let error = Arc::new(error);
            if is_other { LeaseError::WrongIdentity(error) } else { LeaseError::Handshake(error) }
        })?;
        Ok(Stream::Tls(Box::new(stream.into())))
    };
    tokio::time::timeout(timeout, opening).await.unwrap_or(Err(LeaseError::Timeout(timeout)))
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

    #[test]
    fn http_1_is_multiplexed_to_proxies_with_an_identity_that_are_busy() {
        let account = Account::new("shop", "web").ok();
        for (desc, account, is_expected, in_flight, expected) in [
            ("busy", account.clone(), true, MULTIPLEX_FROM, true),
            ("not busy", account.clone(), true, MULTIPLEX_FROM - 1, false),
            ("this side has no identity", account, false, MULTIPLEX_FROM, false),
            ("the other side has none", None, true, MULTIPLEX_FROM, false),
        ] {
            let peer = Peer { account, identity: Arc::new(Slot::new(is_expected)) };
            let endpoint = Endpoint::new(([198, 18, 128, 1], 80).into(), Some(peer), Duration::ZERO);
            endpoint.in_flight.set(in_flight);
            assert_eq!(endpoint.multiplexes_http1(), expected, "{desc}");
        }
        let own = Endpoint::new(([198, 18, 128, 1], 80).into(), None, Duration::ZERO);
        own.in_flight.set(MULTIPLEX_FROM);
        assert!(!own.multiplexes_http1(), "it is in this pod");
    }

    /// Requests that wait for an HTTP/2 connection and requests that come when it is open share its slots: none is put on a
    /// connection that is full, where it would wait for streams that may never end.
    #[tokio::test]
    async fn http2_connections_get_no_more_requests_than_slots() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let endpoint = Rc::new(Endpoint::new(listener.local_addr().expect("an address"), None, Duration::ZERO));
        let run = async {
            let mut first = Box::pin(endpoint.connect(Protocol::Http2, TIMEOUT, None));
            assert!(poll_fn(|cx| Poll::Ready(first.as_mut().poll(cx).is_pending())).await);
            let mut waiting: Vec<_> =
                (1..OPENING_REQUESTS_MAX).map(|_| Box::pin(endpoint.opening(Protocol::Http2))).collect();
            for request in &mut waiting {
                assert!(poll_fn(|cx| Poll::Ready(request.as_mut().poll(cx).is_pending())).await);
            }
            let mut late = Vec::new();
            while late.is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
                late.extend((0..60).map_while(|_| endpoint.idle(Protocol::Http2)));
            }
            assert_eq!(late.len(), 60);
            let first = first.await.expect("connected");
            let leases: Vec<Lease> = join_all(waiting).await.into_iter().flatten().flatten().collect();
            assert_eq!(leases.len(), 39, "slots that are left");
            assert!(endpoint.idle(Protocol::Http2).is_none());
            drop((first, leases, late));
            assert_eq!(
                (0..200).map_while(|_| endpoint.idle(Protocol::Http2)).collect::<Vec<_>>().len(),
                100,
                "all slots are free"
            );
        };
        LocalSet::new().run_until(run).await;
    }

    #[tokio::test]
    async fn cancelled_connect_releases_its_slot() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let endpoint = Rc::new(Endpoint::new(listener.local_addr().expect("an address"), None, Duration::ZERO));
        let run = async {
            let mut first = Box::pin(endpoint.connect(Protocol::Http2, TIMEOUT, None));
            assert!(poll_fn(|cx| Poll::Ready(first.as_mut().poll(cx).is_pending())).await);
            drop(first);
            let mut leases = Vec::new();
            while leases.is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
                leases.extend((0..200).map_while(|_| endpoint.idle(Protocol::Http2)));
            }
            assert_eq!((leases.len(), endpoint.in_flight.get()), (100, 100));
        };
        LocalSet::new().run_until(run).await;
    }
}
