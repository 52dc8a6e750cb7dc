//! What becomes of a request that finds no endpoint, or none that it can be connected to.
//!
//! It goes to the Service's own address (ClusterIP), where the kernel chooses, by what kube-proxy or its like has heard by
//! now: with the operator away that is newer than what the proxy knows. Only without a subset, which the kernel knows
//! nothing of. Where there is no endpoint at all it waits after that for one to come, because the proxy may hear of a pod a
//! moment later than whoever sends the request did. A Service that stays empty is not waited for by each request:
//!
//! ```text
//! no endpoint        own address ── refused ──> wait, unless requests have waited in vain of late ──> no-endpoints
//! none connectable   own address ── connected ──> further requests go there at once, one in 10 s tries endpoints first
//! ```
//!
//! Never any other address: what stood behind an endpoint that is gone may be another workload by now.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use hashbrown::HashMap;
use tokio::time::{Instant, timeout_at};

use super::cluster::ClusterState;
use super::endpoint::Endpoint;
use crate::http::respond::Reason;
use crate::table::Cluster;
use crate::worker::Worker;

/// How long a request waits for an endpoint to come. Source: Linkerd's failfast timeout.
const WAIT: Duration = Duration::from_secs(3);

/// Requests of one worker that wait for endpoints of one cluster at once.
const WAITING_MAX: u32 = 1024;

/// For how long nothing waits after a request has waited in vain, unless an endpoint comes.
const VAIN: Duration = Duration::from_secs(60);

/// How often an endpoint is tried first while requests go to the Service's own address.
const PROBE: Duration = Duration::from_secs(10);

/// Endpoints that must have failed to connect before a request goes to the Service's own address; fewer where there are
/// fewer.
const FAILED_MIN: usize = 3;

/// How it stands with one cluster, for one worker.
#[derive(Default)]
pub(crate) struct Standing {
    /// When an endpoint was last tried first, while requests go to the Service's own address.
    by_address: Cell<Option<Duration>>,
    /// Connections in a row that could not be made, to any endpoint.
    failed: Cell<usize>,
    /// Connections to that address.
    address: RefCell<Option<Rc<Endpoint>>>,
    waiting: Cell<u32>,
    /// When requests to a subset, or to any, have waited in vain.
    vain: RefCell<HashMap<Option<String>, Duration>>,
}

/// What one request may do.
pub(crate) struct Fallback<'a> {
    worker: &'a Worker,
    state: &'a ClusterState,
    subset: Option<&'a str>,
    address_tried: bool,
    waited: bool,
}

/// What a request that finds no endpoint does next.
pub(crate) enum Next {
    /// It goes to the Service's own address.
    Address(Rc<Endpoint>),
    /// It chooses again: an endpoint has come.
    Choose,
}

/// A request that waits.
struct Waiting<'a>(&'a Cell<u32>);

/// Why a request without an endpoint is refused.
pub(crate) fn reason(cluster: &Cluster) -> Reason {
    if cluster.has_endpoints_elsewhere { Reason::NoLocalEndpoints } else { Reason::NoEndpoints }
}

// === impl Standing ===

impl Standing {
    /// Whether requests go to the Service's own address.
    pub(super) fn is_by_address(&self) -> bool {
        self.by_address.get().is_some()
    }

    /// Lets requests go to the endpoints again.
    pub(super) fn end(&self) {
        self.by_address.set(None);
        self.failed.set(0);
    }

    /// A connection was made, or there was one.
    pub(crate) fn connected(&self) {
        self.failed.set(0);
    }

    /// A connection could not be made.
    pub(crate) fn not_connected(&self) {
        self.failed.set(self.failed.get().saturating_add(1));
    }

    /// Takes in that there are other endpoints than before.
    pub(super) fn endpoints_changed(&self, cluster: &Cluster) {
        self.end();
        self.vain.borrow_mut().retain(|subset, _| !cluster.has_endpoints(subset.as_deref()));
    }

    pub(super) fn close_idle(&self) {
        self.address.borrow().iter().for_each(|address| address.close_idle());
    }

    /// Closes a connection that idles, unless it is to this endpoint.
    pub(super) fn close_one_idle(&self, except: &Rc<Endpoint>) -> bool {
        self.address.borrow().as_ref().is_some_and(|address| !Rc::ptr_eq(address, except) && address.close_one_idle())
    }

    /// The Service's own address, if requests have gone there.
    pub(super) fn address(&self) -> Option<Rc<Endpoint>> {
        self.address.borrow().clone()
    }

    /// Behind the Service's own address are proxies if all endpoints that are known have one.
    pub(super) fn note_proxies(&self, cluster: &Cluster) {
        let all = !cluster.with_proxy.is_empty() && cluster.with_proxy.iter().all(|has_proxy| *has_proxy);
        self.address.borrow().iter().for_each(|address| address.has_proxy.set(all));
    }

    /// The Service's own address, with the connections that there are.
    fn endpoint(&self, address: SocketAddr, cluster: &Cluster, now: Duration) -> Rc<Endpoint> {
        if let Some(endpoint) = self.address.borrow().as_ref().filter(|endpoint| endpoint.address == address) {
            return endpoint.clone();
        }
        let endpoint = Rc::new(Endpoint::new(address, now));
        *self.address.borrow_mut() = Some(endpoint.clone());
        self.note_proxies(cluster);
        endpoint
    }

    /// Leave to wait for an endpoint.
    fn wait(&self, subset: Option<&str>, now: Duration) -> Option<Waiting<'_>> {
        let vain = self.vain.borrow().get(&subset.map(str::to_owned)).copied();
        let is_vain = vain.is_some_and(|at| now.saturating_sub(at) < VAIN);
        if is_vain || self.waiting.get() >= WAITING_MAX {
            return None;
        }
        self.waiting.set(self.waiting.get() + 1);
        Some(Waiting(&self.waiting))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

// === impl Fallback ===

impl<'a> Fallback<'a> {
    pub(crate) fn new(worker: &'a Worker, state: &'a ClusterState, subset: Option<&'a str>) -> Self {
        Self { worker, state, subset, address_tried: false, waited: false }
    }

    /// The Service's own address, where requests go there for now, or where as many connections in a row could not be made as
    /// there are endpoints: each request may have had less time than it takes to try them all.
    pub(crate) fn first(&mut self) -> Option<Rc<Endpoint>> {
        let standing = &self.state.standing;
        let Some(since) = standing.by_address.get() else {
            let failed = standing.failed.get();
            return if failed > 0 && failed >= self.state.choices(None) { self.address() } else { None };
        };
        let now = self.worker.now();
        if now.saturating_sub(since) >= PROBE {
            standing.by_address.set(Some(now));
            return None;
        }
        self.address()
    }

    /// The Service's own address, for a request that could not be connected to so many endpoints.
    pub(crate) fn after_failures(&mut self, failed: usize) -> Option<Rc<Endpoint>> {
        if failed < FAILED_MIN && failed < self.state.choices(self.subset) { None } else { self.address() }
    }

    /// The Service's own address once more, where the pod that the kernel chose did not process the request.
    pub(crate) fn address_again(&self) -> Option<Rc<Endpoint>> {
        self.state.standing.address()
    }

    /// What to do where there is no endpoint to choose. None: nothing more.
    pub(crate) async fn without_endpoints(&mut self, deadline: Option<Instant>) -> Option<Next> {
        // Endpoints that are all left alone because they fail are no better by way of the kernel.
        if self.state.cluster().has_endpoints(self.subset) {
            return None;
        }
        if let Some(address) = self.address() {
            return Some(Next::Address(address));
        }
        (!std::mem::replace(&mut self.waited, true) && self.await_endpoint(deadline).await).then_some(Next::Choose)
    }

    /// Takes in whether a connection to the Service's own address was made.
    pub(crate) fn address_tried(&self, is_connected: bool) {
        let standing = &self.state.standing;
        let cluster = self.state.cluster();
        if !is_connected {
            standing.end();
        } else if cluster.has_endpoints(self.subset) && !standing.is_by_address() {
            tracing::warn!(
                dst.service = %cluster.name,
                "no endpoint can be connected to: requests without a subset go to the Service's own address"
            );
            standing.by_address.set(Some(self.worker.now()));
        }
    }

    /// The Service's own address, once, if the request may go there.
    fn address(&mut self) -> Option<Rc<Endpoint>> {
        let (cluster, shared) = (self.state.cluster(), &self.worker.shared);
        let address = cluster.address.filter(|address| !shared.is_own(*address))?;
        // Where traffic is to stay on the node the kernel drops what finds no endpoint there, and the client would wait.
        let is_dropped = cluster.has_endpoints_elsewhere && !cluster.has_endpoints(None);
        if self.subset.is_some() || is_dropped || std::mem::replace(&mut self.address_tried, true) {
            return None;
        }
        self.worker.handles.by_service_address(&cluster.name);
        Some(self.state.standing.endpoint(address, &cluster, self.worker.now()))
    }

    async fn await_endpoint(&self, deadline: Option<Instant>) -> bool {
        let (state, worker, subset) = (self.state, self.worker, self.subset);
        let cluster = state.cluster();
        // A subset that is not declared does not come.
        if subset.is_some_and(|name| !cluster.subsets.contains_key(name)) {
            return false;
        }
        let Some(_waiting) = state.standing.wait(subset, worker.now()) else { return false };
        let until = Instant::now() + WAIT;
        let found = worker
            .shared
            .store
            .find(|table| table.cluster_named(&cluster.name).filter(|cluster| cluster.has_endpoints(subset)).cloned());
        match timeout_at(deadline.map_or(until, |deadline| deadline.min(until)), found).await {
            Ok(Some(cluster)) => {
                state.refresh(&cluster, worker.now());
                true
            }
            Ok(None) | Err(_) => {
                // A request with less time than that has not waited for long enough to tell.
                if Instant::now() >= until {
                    state.standing.vain.borrow_mut().insert(subset.map(str::to_owned), worker.now());
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap::Pod;
    use crate::table::Namespace;

    const NOW: Duration = Duration::from_secs(100);

    fn cluster(endpoints: serde_json::Value) -> std::sync::Arc<Cluster> {
        let export = serde_json::json!({"services": [{
            "name": "s", "settings": {"subsets": ["a"]}, "ports": [{"port": 80, "endpoints": endpoints}]
        }]});
        let export = serde_json::from_value(export).expect("a document");
        Namespace::compile(&Pod::default(), "n", export).expect("compiles").only_cluster()
    }

    #[test]
    fn so_many_requests_wait_at_once() {
        let standing = Standing::default();
        let mut waiting: Vec<_> = (0..WAITING_MAX).map(|_| standing.wait(None, NOW).expect("one of them")).collect();
        assert!(standing.wait(None, NOW).is_none() && standing.wait(Some("a"), NOW).is_none());
        waiting.pop();
        assert!(standing.wait(None, NOW).is_some());
    }

    #[test]
    fn nothing_waits_for_a_minute_after_a_wait_in_vain_unless_an_endpoint_came() {
        let standing = Standing::default();
        let waits = |subset, seconds| standing.wait(subset, NOW + Duration::from_secs(seconds)).is_some();
        for subset in [None, Some("a".to_owned())] {
            standing.vain.borrow_mut().insert(subset, NOW);
        }
        assert_eq!((waits(None, 1), waits(Some("a"), 59), waits(Some("b"), 1)), (false, false, true));
        assert_eq!((waits(None, 60), waits(Some("a"), 60)), (true, true));
        standing.endpoints_changed(&cluster(serde_json::json!([])));
        assert_eq!((waits(None, 1), waits(Some("a"), 1)), (false, false), "still none");
        standing.endpoints_changed(&cluster(serde_json::json!([{"address": "198.18.128.2:80"}])));
        assert_eq!((waits(None, 1), waits(Some("a"), 1)), (true, false), "none of the subset");
        standing.endpoints_changed(&cluster(serde_json::json!([{"address": "198.18.128.2:80", "subsets": ["a"]}])));
        assert!(waits(Some("a"), 1));
    }
}
