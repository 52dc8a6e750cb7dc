//! One worker: a thread with its own runtime, listener sockets, connection pools and balancer state. Workers share
//! only what [`Shared`] holds.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_balance::Rng;
use weft_codec::Tick;
use weft_config::bootstrap::AccessLog;

use crate::bootstrap::Timeouts;
use crate::callers::Callers;
use crate::changes::Changes;
use crate::filter::rate_limit::Limiters;
use crate::identity::Slot;
use crate::memory::Memory;
use crate::table::Cluster;
use crate::table::store::Store;
use crate::telemetry::alive;
use crate::telemetry::handles::Handles;
use crate::telemetry::metrics::Metrics;
use crate::upstream::cluster::ClusterState;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::shared_cluster::SharedClusters;

/// How often idle connections are closed, and ejected endpoints whose ejection is over are returned.
const SWEEP: Duration = Duration::from_secs(1);

/// Destinations in this pod that a worker keeps pools for. A pod has few ports; more are attempts to fill memory.
const LOCAL_MAX: usize = 1024;

/// State shared by all workers.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Arc<Store>,
    pub(crate) clusters: SharedClusters,
    /// Of mirrored requests, which have limits of their own.
    pub(crate) mirror_clusters: SharedClusters,
    pub(crate) limiters: Limiters,
    pub(crate) metrics: Metrics,
    pub(crate) memory: Arc<Memory>,
    pub(crate) timeouts: Timeouts,
    pub(crate) opaque_ports: HashSet<u16>,
    pub(crate) pod_ips: Vec<IpAddr>,
    /// Destination of inbound connections that were not redirected. Only outside of a pod.
    pub(crate) application: Option<SocketAddr>,
    /// Destination of outbound connections that were not redirected, and are to no Service. Only outside of a pod.
    pub(crate) destination: Option<SocketAddr>,
    /// TLS for inbound connections. None: they are not terminated.
    pub(crate) tls: Option<Arc<ServerConfig>>,
    /// Whether inbound TLS is mutual also with clients that are no proxies. Only outside of a pod.
    pub(crate) mutual_tls: bool,
    /// Who this pod is, for mutual TLS with other pods.
    pub(crate) identity: Arc<Slot>,
    /// Who calls this pod in plaintext.
    pub(crate) callers: Arc<Callers>,
    /// Ports of the proxy itself: connections to them are refused.
    pub(crate) own_ports: HashSet<u16>,
    pub(crate) access_log: AccessLog,
    /// Cancelled when the process is asked to stop.
    pub(crate) drain: CancellationToken,
    /// Open connections.
    pub(crate) connections: TaskTracker,
    /// When the process started.
    pub(crate) started: Tick,
}

impl Shared {
    /// Whether the proxy itself listens on an address: a connection there would loop.
    pub(crate) fn is_own(&self, address: SocketAddr) -> bool {
        let ip = address.ip();
        let is_here = ip.is_loopback() || ip.is_unspecified() || self.pod_ips.is_empty() || self.pod_ips.contains(&ip);
        is_here && self.own_ports.contains(&address.port())
    }
}

/// State of one worker.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) rng: RefCell<Rng>,
    pub(crate) handles: Handles,
    /// Changes to what inbound calls are allowed.
    pub(crate) changes: Rc<Changes>,
    /// Mirrored requests in flight.
    pub(crate) shadows_in_flight: Cell<u32>,
    clusters: RefCell<HashMap<Arc<str>, Rc<ClusterState>>>,
    mirrors: RefCell<HashMap<Arc<str>, Rc<ClusterState>>>,
    local: RefCell<HashMap<SocketAddr, Rc<Endpoint>>>,
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, number: u64) -> Rc<Self> {
        let seed = number ^ u64::from(std::process::id()) << 16;
        let worker = Rc::new(Self {
            handles: Handles::new(shared.metrics.clone(), shared.tls.is_some()),
            shared,
            rng: RefCell::new(Rng::new(seed)),
            changes: Rc::default(),
            shadows_in_flight: Cell::new(0),
            clusters: RefCell::default(),
            mirrors: RefCell::default(),
            local: RefCell::default(),
        });
        alive::spawn(sweep(Rc::downgrade(&worker)));
        alive::spawn(announce_changes(worker.shared.store.clone(), Rc::downgrade(&worker)));
        worker
    }

    /// The balancer and pools of a cluster, updated to its newest endpoints.
    pub(crate) fn cluster(&self, cluster: &Arc<Cluster>) -> Rc<ClusterState> {
        self.state(&self.clusters, &self.shared.clusters, cluster)
    }

    /// The same for mirrored requests. Their connections, limits and latency estimates are separate, so that they do
    /// not affect the requests of clients.
    pub(crate) fn mirror(&self, cluster: &Arc<Cluster>) -> Rc<ClusterState> {
        self.state(&self.mirrors, &self.shared.mirror_clusters, cluster)
    }

    fn state(
        &self,
        states: &RefCell<HashMap<Arc<str>, Rc<ClusterState>>>,
        shared: &SharedClusters,
        cluster: &Arc<Cluster>,
    ) -> Rc<ClusterState> {
        let mut states = states.borrow_mut();
        let state = (states.entry_ref(&cluster.name)).or_insert_with(|| {
            Rc::new(ClusterState::new(cluster, shared, &self.shared.metrics, &self.shared.identity, self.now()))
        });
        state.refresh(cluster, self.now());
        state.clone()
    }

    /// The pool for an address of this pod.
    pub(crate) fn local(&self, address: SocketAddr) -> Rc<Endpoint> {
        let mut local = self.local.borrow_mut();
        if local.len() >= LOCAL_MAX {
            local.clear();
        }
        local.entry(address).or_insert_with(|| Rc::new(Endpoint::new(address, None, self.now()))).clone()
    }

    /// Time since the process started, by the coarse clock.
    pub(crate) fn now(&self) -> Duration {
        self.shared.started.elapsed()
    }

    fn sweep(&self) {
        self.local.borrow().values().for_each(|endpoint| endpoint.close_idle());
        let table = self.shared.store.load();
        for states in [&self.clusters, &self.mirrors] {
            states.borrow_mut().retain(|name, state| {
                state.close_idle();
                state.tick(self.now());
                // A cluster that is in no table any more is removed once it is not in use.
                Rc::strong_count(state) > 1 || table.cluster_named(name).is_some()
            });
        }
    }
}

/// Tells a worker of each change to what inbound calls are allowed.
async fn announce_changes(store: Arc<Store>, worker: Weak<Worker>) {
    let mut snapshots = store.subscribe();
    let mut before = store.load().inbound.clone();
    while snapshots.changed().await.is_ok() {
        let inbound = store.load().inbound.clone();
        if !Arc::ptr_eq(&before, &inbound) && !before.judges_as(&inbound) {
            let Some(worker) = worker.upgrade() else { return };
            worker.changes.announce();
        }
        before = inbound;
    }
}

async fn sweep(worker: Weak<Worker>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        match worker.upgrade() {
            Some(worker) => worker.sweep(),
            None => return,
        }
    }
}
