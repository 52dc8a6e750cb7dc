//! What a request does when its cluster has no endpoint, or when no endpoint can be connected to.
//!
//! It goes to the Service's own address (ClusterIP), where the kernel picks a pod by what kube-proxy or its
//! replacement knows: while the operator is down that is newer than what the proxy knows. Requests to a subset do
//! not, because the kernel knows no subsets. If there is no endpoint at all, the request then waits for one to be
//! added, because the client may learn of a pod a moment before the proxy does. After a wait timed out, further
//! requests do not wait for a minute:
//!
//! ```text
//! no endpoint           ClusterIP ── refused ──> wait, unless a recent wait timed out ──> 503 no-endpoints
//! none can be reached   ClusterIP ── connected ──> further requests go there at once, one every 10 s tries endpoints first
//! ```
//!
//! A request never goes to the address of an endpoint that was removed: another workload may have it by now. At the
//! ClusterIP it demands the identity that all endpoints have; if they have different ones, it does not go there.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::cluster::ClusterState;
use super::endpoint::{Endpoint, Peer};
use crate::reason::Reason;
use crate::table::Cluster;
use crate::worker::Worker;

/// How long a request waits for an endpoint to be added. Source: Linkerd's failfast timeout.
const WAIT_TIMEOUT: Duration = Duration::from_secs(3);

/// While requests go to the ClusterIP: how often one of them tries the endpoints first.
const RETRY_ENDPOINTS_INTERVAL: Duration = Duration::from_secs(10);

/// How many endpoints a request must fail to connect to before it goes to the ClusterIP; all of them if there are
/// fewer.
const CONNECT_FAILURES_MIN: usize = 3;

/// What one request has tried, and may still try.
pub(crate) struct Fallback<'a> {
    worker: &'a Worker,
    state: &'a ClusterState,
    subset: Option<&'a str>,
    address_tried: bool,
    waited: bool,
}

/// What a request without an endpoint does next.
pub(crate) enum Next {
    /// It goes to the ClusterIP.
    ServiceAddress(Rc<Endpoint>),
    /// An endpoint was added: the request picks again.
    PickAgain,
}

/// The reason of the 503 for a request without an endpoint: `no-endpoints` is decided here and nowhere else.
pub(crate) fn reason(cluster: &Cluster) -> Reason {
    if cluster.has_endpoints_elsewhere { Reason::NoLocalEndpoints } else { Reason::NoEndpoints }
}

/// What the 503 says of the backend.
pub(crate) fn text(reason: Reason, backend: &str) -> String {
    match reason {
        Reason::NoLocalEndpoints => {
            format!("{backend} has no ready endpoint on this node, and internalTrafficPolicy is Local")
        }
        _ => format!("{backend} has no ready endpoint"),
    }
}

// === impl Fallback ===

impl<'a> Fallback<'a> {
    pub(crate) fn new(worker: &'a Worker, state: &'a ClusterState, subset: Option<&'a str>) -> Self {
        Self { worker, state, subset, address_tried: false, waited: false }
    }

    /// The ClusterIP, if a request is to go there first: the fallback is active, or as many connection attempts in a
    /// row failed as there are endpoints. The latter counts across requests, because one may lack the time to try
    /// them all.
    pub(crate) fn first(&mut self) -> Option<Rc<Endpoint>> {
        let fallback = &self.state.fallback;
        let Some(tried_at) = fallback.endpoints_tried_at.get() else {
            let failed = fallback.connect_failures.get();
            return if failed > 0 && failed >= self.state.candidate_count(None) { self.address() } else { None };
        };
        let now = self.worker.now();
        if now.saturating_sub(tried_at) >= RETRY_ENDPOINTS_INTERVAL {
            fallback.endpoints_tried_at.set(Some(now));
            return None;
        }
        self.address()
    }

    /// The ClusterIP, once a request has failed to connect to enough endpoints.
    pub(crate) fn after_failures(&mut self, failed: usize) -> Option<Rc<Endpoint>> {
        let is_enough = failed >= CONNECT_FAILURES_MIN || failed >= self.state.candidate_count(self.subset);
        if is_enough { self.address() } else { None }
    }

    /// The ClusterIP once more, when the pod that the kernel picked did not process the request.
    pub(crate) fn address_again(&self) -> Option<Rc<Endpoint>> {
        self.state.fallback.service_address()
    }

    /// What a request without an endpoint does next. `None`: it fails.
    pub(crate) async fn without_endpoints(&mut self, deadline: Option<Instant>) -> Option<Next> {
        // All endpoints are ejected or unhealthy: the kernel would send the request to one of the same pods.
        if self.state.cluster().members.has_any(self.subset) {
            return None;
        }
        if let Some(address) = self.address() {
            return Some(Next::ServiceAddress(address));
        }
        (!std::mem::replace(&mut self.waited, true) && self.await_endpoint(deadline).await).then_some(Next::PickAgain)
    }

    /// Records whether connecting to the ClusterIP succeeded: if so further requests skip the endpoints, if not they
    /// try them again.
    pub(crate) fn address_tried(&self, is_connected: bool) {
        let fallback = &self.state.fallback;
        let cluster = self.state.cluster();
        if !is_connected {
            fallback.deactivate();
        } else if cluster.members.has_any(self.subset) && !fallback.is_active() {
            tracing::warn!(
                dst.service = %cluster.name,
                "cannot connect to any endpoint, sending requests without a subset to the Service's own address"
            );
            fallback.endpoints_tried_at.set(Some(self.worker.now()));
        }
    }

    /// The ClusterIP, once for each request, if the request may go there.
    fn address(&mut self) -> Option<Rc<Endpoint>> {
        let (cluster, shared) = (self.state.cluster(), &self.worker.shared);
        let address = cluster.address.filter(|address| !shared.is_own(*address))?;
        // With a node-local traffic policy the kernel drops connections if the node has no endpoint, and the client
        // would wait.
        let is_dropped = cluster.has_endpoints_elsewhere && !cluster.members.has_any(None);
        // The kernel may pick any of the pods. If they are not one account, nobody could be demanded, and plaintext is no
        // fallback for mutual TLS.
        let account = cluster.common_account()?.cloned();
        if self.subset.is_some() || is_dropped || std::mem::replace(&mut self.address_tried, true) {
            return None;
        }
        self.worker.handles.by_service_address(&cluster.name);
        let peer = Peer { account, identity: shared.identity.clone() };
        Some(self.state.fallback.endpoint(address, peer, &cluster, self.worker.now()))
    }

    /// Waits until an endpoint is added, at most `WAIT_TIMEOUT`. Returns whether one was.
    async fn await_endpoint(&self, deadline: Option<Instant>) -> bool {
        let (state, worker, subset) = (self.state, self.worker, self.subset);
        let cluster = state.cluster();
        // No endpoint can join a subset that is not declared.
        if subset.is_some_and(|name| !cluster.members.subsets.contains_key(name)) {
            return false;
        }
        let Some(_waiting) = state.fallback.wait(subset, worker.now()) else { return false };
        let until = Instant::now() + WAIT_TIMEOUT;
        let found = worker.shared.store.find(|table| {
            table.cluster_named(&cluster.name).filter(|cluster| cluster.members.has_any(subset)).cloned()
        });
        match timeout_at(deadline.map_or(until, |deadline| deadline.min(until)), found).await {
            Ok(Some(cluster)) => {
                state.refresh(&cluster, worker.now());
                true
            }
            Ok(None) | Err(_) => {
                // A request with an earlier deadline has not waited the whole time: others may still wait.
                if Instant::now() >= until {
                    state.fallback.wait_timed_out_at.borrow_mut().insert(subset.map(str::to_owned), worker.now());
                }
                false
            }
        }
    }
}
