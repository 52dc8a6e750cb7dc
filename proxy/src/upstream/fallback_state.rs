//! One worker's memory of the [`fallback`](super::fallback) of a cluster, between requests.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use hashbrown::HashMap;

use super::endpoint::{Endpoint, Peer};
use crate::table::Cluster;

/// Requests of one worker that may wait for endpoints of one cluster at a time.
const WAITING_MAX: u32 = 1024;

/// How long after a wait timed out no other request waits, unless an endpoint is added.
const NO_WAIT_PERIOD: Duration = Duration::from_secs(60);

/// One worker's fallback state of a cluster.
#[derive(Default)]
pub(crate) struct FallbackState {
    /// Set while requests go to the ClusterIP: when the endpoints were last tried first.
    pub(super) endpoints_tried_at: Cell<Option<Duration>>,
    /// Connection attempts in a row that failed, to any endpoint.
    pub(super) connect_failures: Cell<usize>,
    /// The ClusterIP, with its connections.
    service_address: RefCell<Option<Rc<Endpoint>>>,
    waiting: Cell<u32>,
    /// When a wait last timed out, by subset; `None` for requests without one.
    pub(super) wait_timed_out_at: RefCell<HashMap<Option<String>, Duration>>,
}

/// Counts one waiting request until it is dropped.
pub(super) struct Waiting<'a>(&'a Cell<u32>);

// === impl FallbackState ===

impl FallbackState {
    /// Whether requests go to the ClusterIP.
    pub(super) fn is_active(&self) -> bool {
        self.endpoints_tried_at.get().is_some()
    }

    /// Requests go to the endpoints again.
    pub(super) fn deactivate(&self) {
        self.endpoints_tried_at.set(None);
        self.connect_failures.set(0);
    }

    /// Records that an endpoint was connected to, or that an open connection was used.
    pub(crate) fn connected(&self) {
        self.connect_failures.set(0);
    }

    /// Records that connecting to an endpoint failed.
    pub(crate) fn connect_failed(&self) {
        self.connect_failures.set(self.connect_failures.get().saturating_add(1));
    }

    /// Endpoints were added or removed: requests go to endpoints again, and may wait again where there is one.
    pub(super) fn endpoints_changed(&self, cluster: &Cluster) {
        self.deactivate();
        self.wait_timed_out_at.borrow_mut().retain(|subset, _| !cluster.members.has_any(subset.as_deref()));
    }

    pub(super) fn close_idle(&self) {
        self.service_address.borrow().iter().for_each(|address| address.close_idle());
    }

    /// Closes one idle connection to the ClusterIP, unless that is `except`.
    pub(super) fn close_one_idle(&self, except: &Rc<Endpoint>) -> bool {
        (self.service_address.borrow().as_ref())
            .is_some_and(|address| !Rc::ptr_eq(address, except) && address.close_one_idle())
    }

    /// The ClusterIP, if a request has gone there.
    pub(super) fn service_address(&self) -> Option<Rc<Endpoint>> {
        self.service_address.borrow().clone()
    }

    /// Pods behind the ClusterIP count as having a proxy if all known endpoints have one.
    pub(super) fn update_address(&self, cluster: &Cluster) {
        let all = !cluster.with_proxy.is_empty() && cluster.with_proxy.iter().all(|has_proxy| *has_proxy);
        for address in self.service_address.borrow().iter() {
            address.has_proxy.set(all);
            address.mode.set(cluster.mtls);
        }
    }

    /// The endpoint for the ClusterIP, made on first use and when the address or the identity changes.
    pub(super) fn endpoint(&self, address: SocketAddr, peer: Peer, cluster: &Cluster, now: Duration) -> Rc<Endpoint> {
        let is_same = |known: &&Rc<Endpoint>| known.address == address && known.account() == peer.account.as_ref();
        if let Some(endpoint) = self.service_address.borrow().as_ref().filter(is_same) {
            return endpoint.clone();
        }
        let endpoint = Rc::new(Endpoint::new(address, Some(peer), now));
        *self.service_address.borrow_mut() = Some(endpoint.clone());
        self.update_address(cluster);
        endpoint
    }

    /// Permission to wait for an endpoint.
    pub(super) fn wait(&self, subset: Option<&str>, now: Duration) -> Option<Waiting<'_>> {
        let timed_out_at = self.wait_timed_out_at.borrow().get(&subset.map(str::to_owned)).copied();
        let timed_out = timed_out_at.is_some_and(|at| now.saturating_sub(at) < NO_WAIT_PERIOD);
        if timed_out || self.waiting.get() >= WAITING_MAX {
            return None;
        }
        self.waiting.set(self.waiting.get() + 1);
        Some(Waiting(&self.waiting))
    }
}

// === impl Waiting ===

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
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
    fn waiting_requests_are_bounded() {
        let fallback = FallbackState::default();
        let mut waiting: Vec<_> =
            (0..WAITING_MAX).map(|_| fallback.wait(None, NOW).expect("below the limit")).collect();
        assert!(fallback.wait(None, NOW).is_none() && fallback.wait(Some("a"), NOW).is_none());
        waiting.pop();
        assert!(fallback.wait(None, NOW).is_some());
    }

    #[test]
    fn requests_do_not_wait_for_a_minute_after_a_wait_timed_out_unless_an_endpoint_is_added() {
        let fallback = FallbackState::default();
        let waits = |subset, seconds| fallback.wait(subset, NOW + Duration::from_secs(seconds)).is_some();
        for subset in [None, Some("a".to_owned())] {
            fallback.wait_timed_out_at.borrow_mut().insert(subset, NOW);
        }
        assert_eq!((waits(None, 1), waits(Some("a"), 59), waits(Some("b"), 1)), (false, false, true));
        assert_eq!((waits(None, 60), waits(Some("a"), 60)), (true, true));
        fallback.endpoints_changed(&cluster(serde_json::json!([])));
        assert_eq!((waits(None, 1), waits(Some("a"), 1)), (false, false), "still no endpoint");
        fallback.endpoints_changed(&cluster(serde_json::json!([{"address": "198.18.128.2:80"}])));
        assert_eq!((waits(None, 1), waits(Some("a"), 1)), (true, false), "no endpoint of the subset");
        fallback.endpoints_changed(&cluster(serde_json::json!([{"address": "198.18.128.2:80", "subsets": ["a"]}])));
        assert!(waits(Some("a"), 1));
    }
}
