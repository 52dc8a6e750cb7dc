//! One worker's view of a cluster: it picks the endpoint of each request, ejects endpoints that fail, and leases
//! connections.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use http::HeaderValue;
use http::request::Parts;
use weft_balance::outlier::{Detector, Outcome, OutlierStats};
use weft_balance::{Candidates, Request, Rng, hash};

use super::endpoint::{Endpoint, Lease, Peer};
use super::error::LeaseError;
use super::fallback_state::FallbackState;
use super::shared_cluster::{Kind, SharedCluster, SharedClusters};
use crate::affinity::Affinity;
use crate::identity::{Protocol, Slot};
use crate::table::Cluster;
use crate::telemetry::metrics::{EndpointHandles, Metrics};

/// One worker's view of a cluster.
pub(crate) struct ClusterState {
    cluster: RefCell<Arc<Cluster>>,
    /// In the cluster's order.
    endpoints: RefCell<Vec<Rc<Endpoint>>>,
    candidates: RefCell<Candidates>,
    ejected: Cell<usize>,
    /// The version of endpoint health that `candidates` was built from.
    health_version: Cell<u32>,
    /// When success rates are compared next.
    interval_ends: Cell<Duration>,
    pub(crate) fallback: FallbackState,
    pub(crate) shared: Arc<SharedCluster>,
    handles: EndpointHandles,
    identity: Arc<Slot>,
}

/// No endpoint can be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoEndpoints;

impl ClusterState {
    pub(crate) fn new(
        cluster: &Arc<Cluster>,
        shared: &SharedClusters,
        metrics: &Metrics,
        identity: &Arc<Slot>,
        now: Duration,
    ) -> Self {
        let endpoint = |(at, address)| Rc::new(Endpoint::new(address, Peer::of(cluster, at, identity), now));
        let state = Self {
            endpoints: RefCell::new(cluster.endpoints.iter().copied().enumerate().map(endpoint).collect()),
            identity: identity.clone(),
            cluster: RefCell::new(cluster.clone()),
            candidates: RefCell::default(),
            ejected: Cell::new(0),
            health_version: Cell::new(0),
            interval_ends: Cell::new(now + cluster.outliers.interval),
            fallback: FallbackState::default(),
            shared: shared.get_or_create(&cluster.name),
            handles: metrics.endpoints(&cluster.name),
        };
        state.update_endpoints();
        state.rebuild_candidates();
        state
    }

    /// Applies a newer version of the cluster, and changes in endpoint health. Endpoints that stay keep their
    /// statistics and connections.
    pub(crate) fn refresh(&self, cluster: &Arc<Cluster>, now: Duration) {
        if Arc::ptr_eq(&self.cluster.borrow(), cluster) {
            if self.shared.health_version() != self.health_version.get() {
                self.rebuild_candidates();
            }
            return;
        }
        let is_changed = {
            let current = self.cluster.borrow();
            current.endpoints != cluster.endpoints || current.accounts != cluster.accounts
        };
        if is_changed {
            let mut endpoints = self.endpoints.borrow_mut();
            let mut known: HashMap<SocketAddr, Rc<Endpoint>> =
                endpoints.drain(..).map(|endpoint| (endpoint.address, endpoint)).collect();
            let joined = |at: usize| {
                let peer = Peer::of(cluster, at, &self.identity);
                let endpoint = Rc::new(Endpoint::new(cluster.endpoints[at], peer, now));
                endpoint.joined.set(Some(now));
                endpoint
            };
            // Somebody else at the same address is another endpoint, with connections of its own.
            let kept = |at: usize| {
                let known = known.remove(&cluster.endpoints[at]);
                known
                    .filter(|known| cluster.is_own(at) || known.account() == cluster.account(at))
                    .unwrap_or_else(|| joined(at))
            };
            *endpoints = (0..cluster.endpoints.len()).map(kept).collect();
            self.fallback.endpoints_changed(cluster);
        }
        if !cluster.outliers.is_on() {
            self.endpoints.borrow().iter().for_each(|endpoint| with_outlier_stats(endpoint, OutlierStats::uneject));
        }
        *self.cluster.borrow_mut() = cluster.clone();
        self.update_endpoints();
        self.rebuild_candidates();
        // Surplus HTTP/2 connections are retired here; `lease` closes surplus HTTP/1.1 connections.
        let mut surplus = self.shared.surplus(Kind::Connection, cluster.limits.max_connections) as usize;
        if surplus > 0 {
            for endpoint in self.endpoints.borrow().iter().chain(&self.fallback.service_address()) {
                surplus -= endpoint.retire_http2(surplus);
            }
        }
    }

    /// Sets what may change of endpoints that stay.
    fn update_endpoints(&self) {
        let cluster = self.cluster.borrow();
        for (at, endpoint) in self.endpoints.borrow().iter().enumerate() {
            endpoint.has_proxy.set(cluster.with_proxy[at]);
            endpoint.is_excluded.set(cluster.excluding[at]);
            endpoint.mode.set(cluster.mtls);
        }
        self.fallback.update_address(&cluster);
    }

    pub(crate) fn cluster(&self) -> Arc<Cluster> {
        self.cluster.borrow().clone()
    }

    /// What ties a request to an endpoint: its hash key, session cookie or client address.
    pub(crate) fn affinity(&self, request: &Parts, peer: IpAddr) -> Affinity {
        let cluster = self.cluster.borrow();
        let Parts { uri, headers, .. } = request;
        Affinity {
            key: cluster.hash_on.as_ref().and_then(|on| on.of_request(uri, headers, peer)),
            session: cluster.sticky.as_ref().and_then(|sticky| sticky.session(headers)),
            client: cluster.client_ip.map(|_| peer),
        }
    }

    /// What ties a TCP connection to an endpoint.
    pub(crate) fn tcp_affinity(&self, peer: IpAddr) -> Affinity {
        let cluster = self.cluster.borrow();
        let key = cluster.hash_on.as_ref().and_then(|on| on.of_connection(peer));
        Affinity { key, session: None, client: cluster.client_ip.map(|_| peer) }
    }

    /// The `Set-Cookie` value that ties a client to the endpoint that responded, unless the request has that cookie.
    pub(crate) fn cookie(&self, affinity: Affinity, endpoint: SocketAddr) -> Option<HeaderValue> {
        let cluster = self.cluster.borrow();
        let sticky = cluster.sticky.as_ref()?;
        if affinity.session == Some(hash::session(endpoint)) { None } else { sticky.set_cookie(endpoint) }
    }

    /// Picks an endpoint for a request, if possible one that it has not tried.
    pub(crate) fn pick(
        &self,
        subset: Option<&str>,
        tried: &[SocketAddr],
        affinity: Affinity,
        rng: &mut Rng,
        now: Duration,
    ) -> Result<Rc<Endpoint>, NoEndpoints> {
        // With client IP affinity, the session is the endpoint that the client went to last.
        let client = affinity.client.map(|client| (client, subset.map_or(0, |name| hash::hash(name.as_bytes()))));
        let session = match client {
            None => affinity.session,
            Some((client, subset)) => {
                let timeout = self.cluster.borrow().client_ip.unwrap_or_default();
                self.shared.client_endpoint(client, subset, timeout, now).map(hash::session)
            }
        };
        let (endpoints, candidates) = (self.endpoints.borrow(), self.candidates.borrow());
        let request = Request { subset, tried, key: affinity.key, session };
        let picked = candidates.pick(&request, |at| endpoints[at].view(), rng, now);
        let endpoint = &endpoints[picked.ok_or(NoEndpoints)?];
        if let Some((client, subset)) = client {
            self.shared.set_client_endpoint(client, subset, endpoint.address, now);
        }
        Ok(endpoint.clone())
    }

    /// How many endpoints a request may go to.
    pub(crate) fn candidate_count(&self, subset: Option<&str>) -> usize {
        self.candidates.borrow().count(subset)
    }

    /// Records a request's outcome and ejects the endpoint if a detector trips.
    pub(crate) fn record(&self, endpoint: &Endpoint, outcome: Outcome, now: Duration) {
        if self.fallback.is_active() && outcome != Outcome::Local && !self.is_service_address(endpoint) {
            self.fallback.deactivate();
        }
        let tripped = with_outlier_stats(endpoint, |stats| stats.record(outcome, &self.cluster.borrow().outliers));
        if let Some(detector) = tripped
            && self.eject(endpoint, detector, now)
        {
            self.rebuild_candidates();
        }
    }

    /// Adds a request's share to the retry budget, at its first attempt.
    pub(crate) fn deposit_retry(&self) {
        self.shared.budget.deposit(&self.cluster.borrow().retry_budget);
    }

    /// Spends one retry of the budget. Returns whether the budget allowed it.
    pub(crate) fn try_spend_retry(&self, now: Duration) -> bool {
        self.shared.budget.try_spend(&self.cluster.borrow().retry_budget, now)
    }

    /// Unejects endpoints whose ejection time is over, and compares success rates at the end of each interval.
    pub(crate) fn tick(&self, now: Duration) {
        let settings = self.cluster.borrow().outliers;
        let mut changed = false;
        if self.ejected.get() > 0 {
            for endpoint in self.endpoints.borrow().iter() {
                if with_outlier_stats(endpoint, |stats| stats.uneject_if_due(now)) {
                    endpoint.joined.set(Some(now));
                    changed = true;
                }
            }
        }
        if now >= self.interval_ends.get() {
            self.interval_ends.set(now + settings.interval);
            let endpoints = self.endpoints.borrow();
            for at in settings.low_success_rates(endpoints.iter().map(|endpoint| endpoint.outlier_stats.get())) {
                changed |= self.eject(&endpoints[at], Detector::SuccessRate, now);
            }
            for endpoint in endpoints.iter() {
                with_outlier_stats(endpoint, OutlierStats::next_interval);
            }
        }
        if changed {
            self.rebuild_candidates();
        }
    }

    /// Whether this is the Service's own address (ClusterIP) and not one of its endpoints.
    pub(super) fn is_service_address(&self, endpoint: &Endpoint) -> bool {
        self.cluster.borrow().address == Some(endpoint.address)
    }

    /// Ejects an endpoint. Returns false if it is ejected already, or if the limit of ejections is reached.
    fn eject(&self, endpoint: &Endpoint, detector: Detector, now: Duration) -> bool {
        if self.is_service_address(endpoint) {
            return false;
        }
        let (cluster, ejected) = (self.cluster.borrow(), self.ejected.get());
        let try_eject =
            |stats: &mut OutlierStats| stats.try_eject(&cluster.outliers, ejected, cluster.members.usable, now);
        let Some(time) = with_outlier_stats(endpoint, try_eject) else { return false };
        self.ejected.set(ejected + 1);
        self.handles.ejected(detector.as_str());
        tracing::warn!(
            dst.service = %cluster.name, dst.endpoint = %endpoint.address, reason = detector.as_str(), ?time,
            "endpoint ejected"
        );
        true
    }

    /// Rebuilds the candidates from endpoint health, ejections and priorities.
    fn rebuild_candidates(&self) {
        let (cluster, endpoints) = (self.cluster.borrow(), self.endpoints.borrow());
        self.health_version.set(self.shared.health_version());
        let unhealthy = self.shared.unhealthy();
        let is_ejected = |at: usize| endpoints[at].outlier_stats.get().is_ejected();
        let is_healthy = |at: usize| !is_ejected(at) && !unhealthy.contains(&endpoints[at].address);
        let ejected = (0..endpoints.len()).filter(|at| is_ejected(*at)).count();
        self.ejected.set(ejected);
        self.handles.set_ejected(ejected);
        let address = |at: usize| endpoints[at].address;
        self.candidates.borrow_mut().rebuild(cluster.balancing, &cluster.members, address, is_healthy);
    }

    /// Leases a connection to an endpoint for one request. Waits for one if the limit of connections is reached.
    /// `fresh`: no connection from the pool.
    pub(crate) async fn lease(
        &self,
        endpoint: &Rc<Endpoint>,
        protocol: Protocol,
        fresh: bool,
    ) -> Result<Lease, LeaseError> {
        let cluster = self.cluster();
        let limit = cluster.limits.max_connections;
        let leased = |lease: Lease| if limit.is_some() { lease.with_waiters(self.shared.clone()) } else { lease };
        loop {
            // After the limit was lowered: without this, requests would keep the surplus connections in use for ever.
            while self.shared.surplus(Kind::Connection, limit) > 0
                && (endpoint.close_one_idle() || self.close_one_idle(endpoint))
            {}
            if !fresh && let Some(lease) = endpoint.idle(protocol) {
                return Ok(leased(lease));
            }
            if protocol.is_multiplexed()
                && let Some(opening) = Box::pin(endpoint.opening(protocol)).await
            {
                return opening.map(leased);
            }
            if let Some(permit) = self.shared.admit(Kind::Connection, limit) {
                // Boxed, so that the future of a request that finds a connection is smaller.
                let lease = Box::pin(endpoint.connect(protocol, cluster.connect_timeout, Some(permit))).await?;
                return Ok(leased(lease));
            }
            // At the limit: close an idle connection to another endpoint, or one that `fresh` rules out.
            if !(fresh && endpoint.close_one_idle()) {
                self.close_one_idle(endpoint);
            }
            let Some(_waiting) = self.shared.admit(Kind::Pending, cluster.limits.max_pending) else {
                return Err(LeaseError::Overflow);
            };
            self.shared.freed.notified().await;
        }
    }

    pub(crate) fn close_idle(&self) {
        self.endpoints.borrow().iter().for_each(|endpoint| endpoint.close_idle());
        self.fallback.close_idle();
    }

    /// Closes one idle connection to an endpoint other than `except`. Returns whether there was one.
    fn close_one_idle(&self, except: &Rc<Endpoint>) -> bool {
        let endpoints = self.endpoints.borrow();
        endpoints.iter().any(|endpoint| !Rc::ptr_eq(endpoint, except) && endpoint.close_one_idle())
            || self.fallback.close_one_idle(except)
    }
}

/// Changes an endpoint's outlier statistics in place.
fn with_outlier_stats<T>(endpoint: &Endpoint, change: impl FnOnce(&mut OutlierStats) -> T) -> T {
    let mut stats = endpoint.outlier_stats.get();
    let result = change(&mut stats);
    endpoint.outlier_stats.set(stats);
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap::Pod;
    use crate::table::Namespace;
    use prometheus_client::registry::Registry;

    fn cluster(balancer: &str, endpoints: &[&str]) -> Arc<Cluster> {
        with_settings(serde_json::json!({"balancer": balancer}), endpoints)
    }

    fn with_settings(settings: serde_json::Value, endpoints: &[&str]) -> Arc<Cluster> {
        let endpoints: Vec<_> = endpoints.iter().map(|address| serde_json::json!({"address": address})).collect();
        let export = serde_json::from_value(serde_json::json!({"services": [{
            "name": "s", "settings": settings, "ports": [{"port": 80, "endpoints": endpoints}]
        }]}))
        .expect("a document");
        Namespace::compile(&Pod::default(), "n", export).expect("compiles").only_cluster()
    }

    fn state(cluster: &Arc<Cluster>) -> ClusterState {
        let metrics = Metrics::new(&mut Registry::default());
        ClusterState::new(cluster, &SharedClusters::default(), &metrics, &Arc::new(Slot::new(false)), Duration::ZERO)
    }

    /// The state of a cluster with `count` endpoints.
    fn with_count(settings: serde_json::Value, count: usize) -> ClusterState {
        let addresses: Vec<String> = (1..=count).map(|number| format!("198.18.128.{number}:80")).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        state(&with_settings(settings, &addresses))
    }

    fn record(state: &ClusterState, at: usize, outcome: Outcome, times: u32, now: Duration) {
        let endpoint = state.endpoints.borrow()[at].clone();
        for _ in 0..times {
            state.record(&endpoint, outcome, now);
        }
    }

    /// Positions of the endpoints that requests go to.
    fn picked(state: &ClusterState) -> Vec<usize> {
        let mut rng = Rng::new(1);
        let endpoints = state.endpoints.borrow();
        let mut seen: Vec<usize> = (0..400)
            .filter_map(|_| state.pick(None, &[], Affinity::default(), &mut rng, Duration::ZERO).ok())
            .filter_map(|picked| endpoints.iter().position(|endpoint| Rc::ptr_eq(endpoint, &picked)))
            .collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    const ONE: &str = "198.18.128.1:80";
    const TWO: &str = "198.18.128.2:80";
    const THREE: &str = "198.18.128.3:80";

    /// A connection from the proxy to its own pod reaches the application, which speaks no mutual TLS.
    #[test]
    fn own_pod_is_no_peer() {
        let endpoints = ["198.18.128.2:80", "198.18.128.3:80"]
            .map(|address| serde_json::json!({"address": address, "serviceAccount": "a"}));
        let export = serde_json::json!({"services": [{"name": "s", "ports": [{"port": 80, "endpoints": endpoints}]}]});
        let export = serde_json::from_value(export).expect("a document");
        let pod = Pod { namespace: "n".into(), ips: vec![[198, 18, 128, 3].into()], ..Pod::default() };
        let cluster = Namespace::compile(&pod, "n", export).expect("compiles").only_cluster();
        let identity = Arc::new(Slot::new(true));
        let accounts = [0, 1].map(|at| Peer::of(&cluster, at, &identity).and_then(|peer| peer.account));
        assert_eq!(accounts, [cluster.account(0).cloned(), None]);
        assert!(cluster.account(0).is_some());
    }

    /// A pod's address may belong to another pod next: connections of the old one are not used for it.
    #[test]
    fn another_identity_at_an_address_is_another_endpoint() {
        let of = |account: serde_json::Value| {
            let mut endpoint = serde_json::json!({"address": "198.18.128.2:80"});
            if !account.is_null() {
                endpoint["serviceAccount"] = account;
            }
            let export =
                serde_json::json!({"services": [{"name": "s", "ports": [{"port": 80, "endpoints": [endpoint]}]}]});
            let export = serde_json::from_value(export).expect("a document");
            Namespace::compile(&Pod::default(), "n", export).expect("compiles").only_cluster()
        };
        let state = state(&of("a".into()));
        let mut before = state.endpoints.borrow()[0].clone();
        for (account, stays) in [("a".into(), true), ("b".into(), false), (serde_json::Value::Null, false)] {
            let cluster = of(account);
            state.refresh(&cluster, Duration::ZERO);
            let now = state.endpoints.borrow()[0].clone();
            assert_eq!(Rc::ptr_eq(&before, &now), stays, "{:?}", cluster.account(0));
            assert_eq!(now.account(), cluster.account(0));
            before = now;
        }
    }

    #[test]
    fn endpoints_that_stay_keep_their_state_on_refresh() {
        let state = state(&cluster("peakEwma", &[ONE, TWO]));
        let before = state.endpoints.borrow()[1].clone();
        state.refresh(&cluster("peakEwma", &[TWO, THREE]), Duration::ZERO);
        let endpoints = state.endpoints.borrow();
        assert!(Rc::ptr_eq(&before, &endpoints[0]), "kept");
        assert_eq!(endpoints[1].address, at(THREE));
        assert_eq!(endpoints.len(), 2);
    }

    #[test]
    fn a_failing_endpoint_is_ejected_for_a_growing_time() {
        let state = with_count(serde_json::json!({"balancer": "random"}), 4);
        let seconds = Duration::from_secs;
        record(&state, 2, Outcome::Gateway, 4, seconds(1));
        record(&state, 2, Outcome::Ok, 1, seconds(1));
        record(&state, 2, Outcome::Gateway, 4, seconds(1));
        assert_eq!(picked(&state), [0, 1, 2, 3], "no five in a row");
        record(&state, 2, Outcome::Gateway, 1, seconds(1));
        assert_eq!(picked(&state), [0, 1, 3]);
        record(&state, 1, Outcome::Local, 5, seconds(1));
        assert_eq!(picked(&state), [0, 1, 3], "one of four is more than 10 %");
        state.tick(seconds(30));
        assert_eq!(picked(&state), [0, 1, 3], "29 seconds later");
        state.tick(seconds(31));
        assert_eq!(picked(&state), [0, 1, 2, 3], "30 seconds later");
        record(&state, 2, Outcome::Local, 5, seconds(31));
        state.tick(seconds(90));
        assert_eq!(picked(&state), [0, 1, 3], "the second time in a row takes 60 seconds");
        state.tick(seconds(91));
        assert_eq!(picked(&state), [0, 1, 2, 3]);
    }

    #[test]
    fn panic_threshold_uses_all_endpoints() {
        let settings = |panic: u32| {
            serde_json::json!({
                "balancer": "random", "panicPercent": panic, "outliers": {"maxEjectionPercent": 100}
            })
        };
        let at = Duration::from_secs(1);
        let state = with_count(settings(50), 4);
        record(&state, 0, Outcome::Local, 5, at);
        record(&state, 1, Outcome::Local, 5, at);
        assert_eq!(picked(&state), [2, 3], "half of them");
        record(&state, 2, Outcome::Local, 5, at);
        assert_eq!(picked(&state), [0, 1, 2, 3], "a quarter of them");
        record(&state, 3, Outcome::Local, 5, at);
        assert_eq!(state.ejected.get(), 3, "the last one stays");
        let never = with_count(settings(0), 4);
        (0..4).for_each(|endpoint| record(&never, endpoint, Outcome::Local, 5, at));
        assert_eq!(picked(&never), [3], "the threshold is off");
    }

    #[test]
    fn refresh_keeps_ejections_of_endpoints_that_stay() {
        let state = state(&cluster("random", &[ONE, TWO]));
        record(&state, 1, Outcome::Local, 5, Duration::ZERO);
        assert_eq!((picked(&state), state.ejected.get()), (vec![0], 1));
        state.refresh(&cluster("random", &[ONE, TWO, THREE]), Duration::ZERO);
        assert_eq!((picked(&state), state.ejected.get()), (vec![0, 2], 1));
        let off = with_settings(
            serde_json::json!({"balancer": "random", "outliers": {"maxEjectionPercent": 0}}),
            &[ONE, TWO],
        );
        state.refresh(&off, Duration::ZERO);
        assert_eq!((picked(&state), state.ejected.get()), (vec![0, 1], 0), "switched off");
        state.refresh(&cluster("random", &[ONE, TWO, THREE]), Duration::ZERO);
        record(&state, 1, Outcome::Local, 5, Duration::ZERO);
        assert_eq!(state.ejected.get(), 1);
        state.refresh(&cluster("random", &[ONE, THREE]), Duration::ZERO);
        assert_eq!((picked(&state), state.ejected.get()), (vec![0, 1], 0));
    }

    #[test]
    fn success_rates_are_compared_at_each_interval() {
        let settings = serde_json::json!({"balancer": "random", "outliers": {"consecutive5xx": 0}});
        let state = with_count(settings, 6);
        let at = Duration::from_secs(9);
        for endpoint in 0..6 {
            record(&state, endpoint, Outcome::Ok, if endpoint == 4 { 60 } else { 99 }, at);
            record(&state, endpoint, Outcome::Error, if endpoint == 4 { 40 } else { 1 }, at);
        }
        state.tick(at);
        assert_eq!(picked(&state).len(), 6, "during the interval");
        state.tick(Duration::from_secs(10));
        assert_eq!(picked(&state), [0, 1, 2, 3, 5], "a rate of 60 % while the others have 99 %");
        state.tick(Duration::from_secs(40));
        assert_eq!(picked(&state).len(), 6);
    }

    /// The endpoint that a request with this affinity goes to.
    fn pick_address(state: &ClusterState, affinity: Affinity, tried: &[SocketAddr]) -> SocketAddr {
        let mut rng = Rng::new(7);
        state.pick(None, tried, affinity, &mut rng, Duration::ZERO).expect("an endpoint").address
    }

    #[test]
    fn sticky_sessions_keep_their_endpoint_until_it_is_ejected() {
        let state = with_count(serde_json::json!({"sticky": {"cookie": "s", "path": "/"}}), 4);
        let endpoint = state.endpoints.borrow()[3].address;
        let session = Affinity { key: None, session: Some(hash::session(endpoint)), client: None };
        assert!((0..100).all(|_| pick_address(&state, session, &[]) == endpoint));
        assert!(state.cookie(session, endpoint).is_none(), "the request has that cookie");
        assert_ne!(pick_address(&state, session, &[endpoint]), endpoint, "a retry goes to another endpoint");
        record(&state, 3, Outcome::Local, 5, Duration::ZERO);
        let other = pick_address(&state, session, &[]);
        assert_ne!(other, endpoint);
        assert!(state.cookie(session, other).is_some(), "a new cookie");
        assert!(state.cookie(Affinity::default(), other).is_some());
    }

    #[test]
    fn slow_start_begins_when_an_endpoint_is_added_or_unejected() {
        let seconds = Duration::from_secs;
        let state = state(&cluster("random", &[ONE, TWO]));
        let joined = || state.endpoints.borrow().iter().map(|endpoint| endpoint.joined.get()).collect::<Vec<_>>();
        assert_eq!(joined(), [None, None], "the first ones get their whole share");
        state.refresh(&cluster("random", &[ONE, TWO, THREE]), seconds(1));
        assert_eq!(joined(), [None, None, Some(seconds(1))]);
        record(&state, 0, Outcome::Local, 5, seconds(2));
        state.tick(seconds(32));
        assert_eq!(joined(), [Some(seconds(32)), None, Some(seconds(1))]);
    }

    #[test]
    fn refresh_applies_health_check_results() {
        let state = with_count(serde_json::json!({"balancer": "random"}), 3);
        let cluster = state.cluster();
        let second = cluster.endpoints[1];
        state.shared.set_unhealthy(second, true);
        state.refresh(&cluster, Duration::ZERO);
        assert_eq!(picked(&state), [0, 2]);
        state.shared.retain_unhealthy(&cluster.endpoints);
        state.refresh(&cluster, Duration::ZERO);
        assert_eq!(picked(&state), [0, 2], "it stays, and is unhealthy");
        state.shared.set_unhealthy(second, false);
        state.refresh(&cluster, Duration::ZERO);
        assert_eq!(picked(&state), [0, 1, 2]);
        state.shared.set_unhealthy(second, true);
        state.shared.retain_unhealthy(&[]);
        state.refresh(&cluster, Duration::ZERO);
        assert_eq!(picked(&state), [0, 1, 2], "health checks were switched off");
    }
}
