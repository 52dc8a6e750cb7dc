//! One worker's view of a cluster: it picks the endpoint of each request, ejects endpoints that fail, and leases
//! connections.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use http::HeaderValue;
use http::request::Parts;
use weft_balance::SlowStart;
use weft_balance::hash::{self, Table};
use weft_balance::outlier::{Detector, Outcome, OutlierStats};
use weft_balance::priority::{self, Priority};
use weft_balance::{Rng, pick_two};
use weft_config::Balancer;

use super::endpoint::{Endpoint, Lease};
use super::error::LeaseError;
use super::fallback_state::FallbackState;
use super::load::{Kind, SharedCluster, SharedClusters};
use crate::affinity::Affinity;
use crate::table::Cluster;
use crate::telemetry::metrics::{EndpointHandles, Metrics};

/// One worker's view of a cluster.
pub(crate) struct ClusterState {
    cluster: RefCell<Arc<Cluster>>,
    /// In the cluster's order.
    endpoints: RefCell<Vec<Rc<Endpoint>>>,
    /// Endpoints that requests may go to. Rebuilt when the cluster, an endpoint's health or an ejection changes, so
    /// that a request checks none of these.
    candidates: RefCell<Candidates>,
    ejected: Cell<usize>,
    /// The version of endpoint health that `candidates` was built from.
    health_version: Cell<u32>,
    /// When success rates are compared next.
    interval_ends: Cell<Duration>,
    /// Position of the last round-robin pick.
    round_robin: Cell<usize>,
    pub(crate) fallback: FallbackState,
    pub(crate) shared: Arc<SharedCluster>,
    handles: EndpointHandles,
}

/// Endpoints that requests may go to, by subset and priority.
#[derive(Default)]
struct Candidates {
    /// For requests without a subset.
    all: Vec<PriorityList>,
    subsets: HashMap<String, Vec<PriorityList>>,
}

/// The candidates of one priority: on the proxy's node, in its zone, or elsewhere.
#[derive(Default)]
struct PriorityList {
    /// Share of the requests that go to this priority.
    percent: u32,
    /// Positions in `endpoints`.
    members: Vec<usize>,
    /// Maps keys to positions in `members`, for balancers that hash. Built by the first request, because a pod sends
    /// nothing to most subsets of most Services.
    table: OnceCell<Table>,
    /// Maps session ids to positions in `endpoints`, for sticky sessions.
    sessions: HashMap<u64, usize>,
}

/// No endpoint can be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoEndpoints;

impl ClusterState {
    pub(crate) fn new(cluster: &Arc<Cluster>, shared: &SharedClusters, metrics: &Metrics, now: Duration) -> Self {
        let state = Self {
            endpoints: RefCell::new(cluster.endpoints.iter().map(|at| Rc::new(Endpoint::new(*at, now))).collect()),
            cluster: RefCell::new(cluster.clone()),
            candidates: RefCell::default(),
            ejected: Cell::new(0),
            health_version: Cell::new(0),
            interval_ends: Cell::new(now + cluster.outliers.interval),
            round_robin: Cell::new(0),
            fallback: FallbackState::default(),
            shared: shared.get_or_create(&cluster.name),
            handles: metrics.endpoints(&cluster.name),
        };
        state.update_has_proxy();
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
        if self.cluster.borrow().endpoints != cluster.endpoints {
            let mut endpoints = self.endpoints.borrow_mut();
            let mut known: HashMap<SocketAddr, Rc<Endpoint>> =
                endpoints.drain(..).map(|endpoint| (endpoint.address, endpoint)).collect();
            let joined = |at: &SocketAddr| {
                let endpoint = Rc::new(Endpoint::new(*at, now));
                endpoint.joined.set(Some(now));
                endpoint
            };
            let kept = |at: &SocketAddr| known.remove(at).unwrap_or_else(|| joined(at));
            *endpoints = cluster.endpoints.iter().map(kept).collect();
            self.fallback.endpoints_changed(cluster);
        }
        if !cluster.outliers.is_on() {
            self.endpoints.borrow().iter().for_each(|endpoint| with_outlier_stats(endpoint, OutlierStats::uneject));
        }
        *self.cluster.borrow_mut() = cluster.clone();
        self.update_has_proxy();
        self.rebuild_candidates();
        // Surplus HTTP/2 connections are retired here; `lease` closes surplus HTTP/1.1 connections.
        let mut surplus = self.shared.surplus(Kind::Connection, cluster.limits.max_connections) as usize;
        if surplus > 0 {
            for endpoint in self.endpoints.borrow().iter().chain(&self.fallback.service_address()) {
                surplus -= endpoint.retire_http2(surplus);
            }
        }
    }

    /// Marks the endpoints that are pods with a proxy.
    fn update_has_proxy(&self) {
        let cluster = self.cluster.borrow();
        for (endpoint, has_proxy) in self.endpoints.borrow().iter().zip(&cluster.with_proxy) {
            endpoint.has_proxy.set(*has_proxy);
        }
        self.fallback.update_has_proxy(&cluster);
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
        let Some(client) = affinity.client else { return self.pick_by(subset, tried, affinity, rng, now) };
        let timeout = self.cluster.borrow().client_ip.unwrap_or_default();
        let key = subset.map_or(0, |name| hash::hash(name.as_bytes()));
        let session = self.shared.client_endpoint(client, key, timeout, now).map(hash::session);
        let endpoint = self.pick_by(subset, tried, Affinity { session, ..affinity }, rng, now)?;
        self.shared.set_client_endpoint(client, key, endpoint.address, now);
        Ok(endpoint)
    }

    /// Picks by session, then priority, then hash key or balancer.
    fn pick_by(
        &self,
        subset: Option<&str>,
        tried: &[SocketAddr],
        affinity: Affinity,
        rng: &mut Rng,
        now: Duration,
    ) -> Result<Rc<Endpoint>, NoEndpoints> {
        let (cluster, endpoints, candidates) =
            (self.cluster.borrow(), self.endpoints.borrow(), self.candidates.borrow());
        let lists = candidates.of(subset);
        let untried = |at: usize| !tried.contains(&endpoints[at].address);
        if let Some(session) = affinity.session
            && let Some(own) =
                lists.iter().find_map(|list| list.sessions.get(&session).copied()).filter(|at| untried(*at))
        {
            return Ok(endpoints[own].clone());
        }
        let mut list = match lists {
            [] => return Err(NoEndpoints),
            [only] => only,
            several => {
                let percentile = affinity.key.map_or_else(|| rng.below(100), |key| (key % 100) as u32);
                &several[priority::choose(several.iter().map(|list| list.percent), percentile)]
            }
        };
        if !list.members.iter().any(|at| untried(*at)) {
            // All of this priority were tried: use another one with an endpoint that was not.
            list = lists.iter().find(|other| other.members.iter().any(|at| untried(*at))).unwrap_or(list);
        }
        let count = list.members.len();
        if count == 0 {
            return Err(NoEndpoints);
        }
        let at = |position: usize| &endpoints[list.members[position]];
        let untried = |position: &usize| untried(list.members[*position]);
        let build: Option<fn(&[SocketAddr]) -> Table> = match cluster.balancer {
            Balancer::RingHash => Some(Table::ring),
            Balancer::Maglev => Some(Table::maglev),
            Balancer::PeakEwma | Balancer::LeastRequest | Balancer::RoundRobin | Balancer::Random => None,
        };
        if let Some(build) = build {
            let addresses = || list.members.iter().map(|at| endpoints[*at].address).collect::<Vec<_>>();
            let table = list.table.get_or_init(|| build(&addresses()));
            let key = affinity.key.unwrap_or_else(|| rng.next_u64());
            return table.find(key, |position| untried(&position)).map(|found| at(found).clone()).ok_or(NoEndpoints);
        }
        let mut first = self.choose(cluster.balancer, count, at, rng, now);
        if let Some(slow_start) = &cluster.slow_start {
            let weight = |position: usize| {
                let joined = &at(position).joined;
                let weight = joined.get().and_then(|joined| slow_start.weight(now.saturating_sub(joined)));
                weight.unwrap_or_else(|| {
                    joined.set(None);
                    1.0
                })
            };
            first = SlowStart::offer(first, count, weight, rng);
        }
        // An endpoint that this request has tried is used only if all were. Searching from the pick on spreads the
        // load evenly.
        let found = (0..count).map(|step| (first + step) % count).find(untried);
        Ok(at(found.unwrap_or(first)).clone())
    }

    /// How many endpoints a request may go to.
    pub(crate) fn candidate_count(&self, subset: Option<&str>) -> usize {
        self.candidates.borrow().of(subset).iter().map(|list| list.members.len()).sum()
    }

    /// Records a request's outcome and ejects the endpoint if a detector trips.
    pub(crate) fn record(&self, endpoint: &Endpoint, outcome: Outcome, now: Duration) {
        if self.fallback.is_active() && outcome != Outcome::Local && !self.is_service_address(endpoint) {
            self.fallback.deactivate();
        }
        let mut stats = endpoint.outlier_stats.get();
        let tripped = stats.record(outcome, &self.cluster.borrow().outliers);
        endpoint.outlier_stats.set(stats);
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
            let rated: Vec<(&Rc<Endpoint>, f64)> = (endpoints.iter())
                .map(|endpoint| (endpoint, endpoint.outlier_stats.get()))
                .filter(|(_, stats)| settings.has_success_rate(stats))
                .map(|(endpoint, stats)| (endpoint, stats.success_rate()))
                .collect();
            let rates: Vec<f64> = rated.iter().map(|(_, rate)| *rate).collect();
            if let Some(threshold) = settings.success_rate_threshold(&rates) {
                for (endpoint, _) in rated.iter().filter(|(_, rate)| *rate < threshold) {
                    changed |= self.eject(endpoint, Detector::SuccessRate, now);
                }
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
        let (cluster, mut stats) = (self.cluster.borrow(), endpoint.outlier_stats.get());
        if stats.is_ejected() || !cluster.outliers.may_eject(self.ejected.get(), cluster.usable) {
            return false;
        }
        let time = stats.eject(&cluster.outliers, now);
        endpoint.outlier_stats.set(stats);
        self.ejected.set(self.ejected.get() + 1);
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
        let list = |members: Vec<usize>, percent: u32| PriorityList {
            percent,
            table: OnceCell::new(),
            sessions: match cluster.sticky.is_some() || cluster.client_ip.is_some() {
                true => members.iter().map(|at| (hash::session(endpoints[*at].address), *at)).collect(),
                false => HashMap::new(),
            },
            members,
        };
        let lists = |members: Vec<usize>| -> Vec<PriorityList> {
            let mut priorities: [Vec<usize>; 3] = Default::default();
            for at in members {
                priorities[usize::from(cluster.priorities.get(at).copied().unwrap_or(2)).min(2)].push(at);
            }
            let priorities: Vec<Vec<usize>> = priorities.into_iter().filter(|members| !members.is_empty()).collect();
            let healthy = |members: &[usize]| members.iter().filter(|at| is_healthy(**at)).count();
            let counts: Vec<Priority> = (priorities.iter())
                .map(|members| Priority { healthy: healthy(members), total: members.len() })
                .collect();
            let shares = priority::divide(&counts, cluster.panic_percent);
            (priorities.into_iter().zip(shares))
                .map(|(mut members, share)| {
                    members.retain(|at| share.panic || is_healthy(*at));
                    list(members, share.percent)
                })
                .collect()
        };
        *self.candidates.borrow_mut() = Candidates {
            all: lists((0..cluster.usable).collect()),
            subsets: cluster.subsets.iter().map(|(name, members)| (name.clone(), lists(members.clone()))).collect(),
        };
    }

    /// Picks a position below `count` by a balancer that does not hash.
    fn choose<'a>(
        &self,
        balancer: Balancer,
        count: usize,
        at: impl Fn(usize) -> &'a Rc<Endpoint>,
        rng: &mut Rng,
        now: Duration,
    ) -> usize {
        if count == 1 {
            return 0;
        }
        let cheaper = |rng: &mut Rng, cost: &dyn Fn(&Endpoint) -> f64| {
            let (first, second) = pick_two(rng, count);
            if cost(at(second)) < cost(at(first)) { second } else { first }
        };
        match balancer {
            Balancer::PeakEwma => cheaper(rng, &|endpoint| endpoint.cost(now)),
            Balancer::LeastRequest => cheaper(rng, &|endpoint| f64::from(endpoint.in_flight())),
            Balancer::RoundRobin => {
                self.round_robin.set(self.round_robin.get().wrapping_add(1));
                self.round_robin.get() % count
            }
            // The hashing balancers use a table instead of this function.
            Balancer::Random | Balancer::RingHash | Balancer::Maglev => {
                rng.below(u32::try_from(count).unwrap_or(u32::MAX)) as usize
            }
        }
    }

    /// Leases a connection to an endpoint for one request. Waits for one if the limit of connections is reached.
    /// `fresh`: no connection from the pool.
    pub(crate) async fn lease(&self, endpoint: &Rc<Endpoint>, http2: bool, fresh: bool) -> Result<Lease, LeaseError> {
        let cluster = self.cluster();
        let limit = cluster.limits.max_connections;
        let leased = |lease: Lease| if limit.is_some() { lease.with_waiters(self.shared.clone()) } else { lease };
        loop {
            // After the limit was lowered: without this, requests would keep the surplus connections in use for ever.
            while self.shared.surplus(Kind::Connection, limit) > 0
                && (endpoint.close_one_idle() || self.close_one_idle(endpoint))
            {}
            if !fresh && let Some(lease) = endpoint.idle(http2) {
                return Ok(leased(lease));
            }
            if http2 && let Some(opening) = Box::pin(endpoint.opening()).await {
                return opening.map(leased);
            }
            if let Some(permit) = self.shared.admit(Kind::Connection, limit) {
                // Boxed, so that the future of a request that finds a connection is smaller.
                let lease = Box::pin(endpoint.connect(http2, cluster.connect_timeout, Some(permit))).await?;
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

// === impl Candidates ===

impl Candidates {
    /// The candidates of a subset, by priority. Empty if the subset has no members or is not declared.
    fn of(&self, subset: Option<&str>) -> &[PriorityList] {
        match subset {
            None => &self.all,
            Some(name) => self.subsets.get(name).map(Vec::as_slice).unwrap_or_default(),
        }
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

    fn cluster(balancer: &str, endpoints: &[(&str, &[&str])]) -> Arc<Cluster> {
        with_settings(serde_json::json!({"balancer": balancer, "subsets": ["a", "b"]}), endpoints)
    }

    fn with_settings(settings: serde_json::Value, endpoints: &[(&str, &[&str])]) -> Arc<Cluster> {
        let endpoints: Vec<_> = (endpoints.iter())
            .map(|(address, subsets)| serde_json::json!({"address": address, "subsets": subsets}))
            .collect();
        let export = serde_json::from_value(serde_json::json!({"services": [{
            "name": "s", "settings": settings, "ports": [{"port": 80, "endpoints": endpoints}]
        }]}))
        .expect("a document");
        Namespace::compile(&Pod::default(), "n", export).expect("compiles").only_cluster()
    }

    fn state(cluster: &Arc<Cluster>) -> ClusterState {
        ClusterState::new(cluster, &SharedClusters::default(), &Metrics::new(&mut Registry::default()), Duration::ZERO)
    }

    /// The state of a cluster with `count` endpoints.
    fn with_count(settings: serde_json::Value, count: usize) -> ClusterState {
        let addresses: Vec<String> = (1..=count).map(|number| format!("198.18.128.{number}:80")).collect();
        let endpoints: Vec<(&str, &[&str])> = addresses.iter().map(|address| (address.as_str(), &[][..])).collect();
        state(&with_settings(settings, &endpoints))
    }

    fn record(state: &ClusterState, at: usize, outcome: Outcome, times: u32, now: Duration) {
        let endpoint = state.endpoints.borrow()[at].clone();
        for _ in 0..times {
            state.record(&endpoint, outcome, now);
        }
    }

    /// Positions of the endpoints that requests go to.
    fn picked(state: &ClusterState, subset: Option<&str>) -> Vec<usize> {
        let mut rng = Rng::new(1);
        let endpoints = state.endpoints.borrow();
        let mut seen: Vec<usize> = (0..400)
            .filter_map(|_| state.pick(subset, &[], Affinity::default(), &mut rng, Duration::ZERO).ok())
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

    #[test]
    fn requests_to_a_subset_go_to_its_members_only() {
        let cluster = cluster("random", &[(ONE, &["a"]), (TWO, &["a"]), (THREE, &[])]);
        let state = state(&cluster);
        let mut rng = Rng::new(1);
        let mut pick = |subset, tried: &[SocketAddr]| {
            state.pick(subset, tried, Affinity::default(), &mut rng, Duration::ZERO).map(|endpoint| endpoint.address)
        };
        for _ in 0..100 {
            assert_ne!(pick(Some("a"), &[]), Ok(at(THREE)));
            assert_eq!(pick(Some("a"), &[at(ONE)]), Ok(at(TWO)), "the one that was not tried");
        }
        assert!(pick(Some("a"), &[at(ONE), at(TWO)]).is_ok(), "all were tried: any of them");
        assert_eq!(pick(Some("b"), &[]), Err(NoEndpoints), "the subset has no members");
        assert_eq!(pick(Some("c"), &[]), Err(NoEndpoints), "the subset is not declared");
    }

    #[test]
    fn round_robin_picks_all_endpoints_equally() {
        let cluster = cluster("roundRobin", &[(ONE, &[]), (TWO, &[]), (THREE, &[])]);
        let state = state(&cluster);
        let mut rng = Rng::new(1);
        let mut seen: HashMap<SocketAddr, u32> = HashMap::new();
        for _ in 0..30 {
            let endpoint = state.pick(None, &[], Affinity::default(), &mut rng, Duration::ZERO).expect("an endpoint");
            *seen.entry(endpoint.address).or_default() += 1;
        }
        assert!(seen.values().all(|count| *count == 10), "{seen:?}");
    }

    #[test]
    fn peak_ewma_avoids_a_slow_endpoint() {
        let cluster = cluster("peakEwma", &[(ONE, &[]), (TWO, &[]), (THREE, &[])]);
        let state = state(&cluster);
        let mut rng = Rng::new(1);
        let now = Duration::from_secs(1);
        for endpoint in state.endpoints.borrow().iter() {
            let slow = endpoint.address == at(ONE);
            endpoint.observe(Duration::from_millis(if slow { 500 } else { 5 }), now);
        }
        let picks = (0..300).filter(|_| {
            state.pick(None, &[], Affinity::default(), &mut rng, now).expect("an endpoint").address == at(ONE)
        });
        assert_eq!(picks.count(), 0, "of two endpoints the slow one is never picked");
    }

    #[test]
    fn endpoints_that_stay_keep_their_state_on_refresh() {
        let state = state(&cluster("peakEwma", &[(ONE, &[]), (TWO, &[])]));
        let before = state.endpoints.borrow()[1].clone();
        state.refresh(&cluster("peakEwma", &[(TWO, &[]), (THREE, &[])]), Duration::ZERO);
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
        assert_eq!(picked(&state, None), [0, 1, 2, 3], "no five in a row");
        record(&state, 2, Outcome::Gateway, 1, seconds(1));
        assert_eq!(picked(&state, None), [0, 1, 3]);
        record(&state, 1, Outcome::Local, 5, seconds(1));
        assert_eq!(picked(&state, None), [0, 1, 3], "one of four is more than 10 %");
        state.tick(seconds(30));
        assert_eq!(picked(&state, None), [0, 1, 3], "29 seconds later");
        state.tick(seconds(31));
        assert_eq!(picked(&state, None), [0, 1, 2, 3], "30 seconds later");
        record(&state, 2, Outcome::Local, 5, seconds(31));
        state.tick(seconds(90));
        assert_eq!(picked(&state, None), [0, 1, 3], "the second time in a row takes 60 seconds");
        state.tick(seconds(91));
        assert_eq!(picked(&state, None), [0, 1, 2, 3]);
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
        assert_eq!(picked(&state, None), [2, 3], "half of them");
        record(&state, 2, Outcome::Local, 5, at);
        assert_eq!(picked(&state, None), [0, 1, 2, 3], "a quarter of them");
        record(&state, 3, Outcome::Local, 5, at);
        assert_eq!(state.ejected.get(), 3, "the last one stays");
        let never = with_count(settings(0), 4);
        (0..4).for_each(|endpoint| record(&never, endpoint, Outcome::Local, 5, at));
        assert_eq!(picked(&never, None), [3], "the threshold is off");
    }

    #[test]
    fn panic_threshold_applies_to_each_subset() {
        let members: &[(&str, &[&str])] = &[(ONE, &["a"]), (TWO, &[]), (THREE, &[])];
        let at = Duration::from_secs(1);
        let cluster = cluster("random", members);
        let alone = state(&cluster);
        record(&alone, 0, Outcome::Error, 5, at);
        assert_eq!(picked(&alone, None), [1, 2]);
        assert_eq!(picked(&alone, Some("a")), [0], "the only member, although ejected");
        let strict = state(&with_settings(serde_json::json!({"subsets": ["a"], "panicPercent": 0}), members));
        record(&strict, 0, Outcome::Error, 5, at);
        assert!(picked(&strict, Some("a")).is_empty(), "no healthy member, and the threshold is off");
    }

    #[test]
    fn refresh_keeps_ejections_of_endpoints_that_stay() {
        let state = state(&cluster("random", &[(ONE, &[]), (TWO, &[])]));
        record(&state, 1, Outcome::Local, 5, Duration::ZERO);
        assert_eq!((picked(&state, None), state.ejected.get()), (vec![0], 1));
        state.refresh(&cluster("random", &[(ONE, &[]), (TWO, &[]), (THREE, &[])]), Duration::ZERO);
        assert_eq!((picked(&state, None), state.ejected.get()), (vec![0, 2], 1));
        let off = with_settings(
            serde_json::json!({"balancer": "random", "outliers": {"maxEjectionPercent": 0}}),
            &[(ONE, &[]), (TWO, &[])],
        );
        state.refresh(&off, Duration::ZERO);
        assert_eq!((picked(&state, None), state.ejected.get()), (vec![0, 1], 0), "switched off");
        state.refresh(&cluster("random", &[(ONE, &[]), (TWO, &[]), (THREE, &[])]), Duration::ZERO);
        record(&state, 1, Outcome::Local, 5, Duration::ZERO);
        assert_eq!(state.ejected.get(), 1);
        state.refresh(&cluster("random", &[(ONE, &[]), (THREE, &[])]), Duration::ZERO);
        assert_eq!((picked(&state, None), state.ejected.get()), (vec![0, 1], 0));
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
        assert_eq!(picked(&state, None).len(), 6, "during the interval");
        state.tick(Duration::from_secs(10));
        assert_eq!(picked(&state, None), [0, 1, 2, 3, 5], "a rate of 60 % while the others have 99 %");
        state.tick(Duration::from_secs(40));
        assert_eq!(picked(&state, None).len(), 6);
    }

    /// The endpoint that a request with this affinity goes to.
    fn pick_address(state: &ClusterState, affinity: Affinity, tried: &[SocketAddr]) -> SocketAddr {
        let mut rng = Rng::new(7);
        state.pick(None, tried, affinity, &mut rng, Duration::ZERO).expect("an endpoint").address
    }

    #[test]
    fn hash_keys_leave_an_ejected_endpoint_and_return() {
        for balancer in ["ringHash", "maglev"] {
            let state = with_count(serde_json::json!({"balancer": balancer, "hashOn": {"header": "x-user"}}), 5);
            let keys: Vec<Affinity> = (0..200u64)
                .map(|user| Affinity { key: Some(hash::hash(&user.to_le_bytes())), session: None, client: None })
                .collect();
            let before: Vec<SocketAddr> = keys.iter().map(|key| pick_address(&state, *key, &[])).collect();
            let again: Vec<SocketAddr> = keys.iter().map(|key| pick_address(&state, *key, &[])).collect();
            assert_eq!(before, again, "{balancer}");
            record(&state, 2, Outcome::Local, 5, Duration::ZERO);
            let ejected = state.endpoints.borrow()[2].address;
            let mut moved = 0;
            for (key, before) in keys.iter().zip(&before) {
                let now = pick_address(&state, *key, &[]);
                assert_ne!(now, ejected, "{balancer}");
                moved += u32::from(*before != ejected && now != *before);
                let next = pick_address(&state, *key, &[now]);
                assert_ne!(next, now, "{balancer}: a retry goes to another endpoint");
            }
            assert!(moved <= if balancer == "ringHash" { 0 } else { 40 }, "{balancer}: {moved} of 200 moved");
            state.tick(Duration::from_secs(30));
            let after: Vec<SocketAddr> = keys.iter().map(|key| pick_address(&state, *key, &[])).collect();
            assert_eq!(before, after, "{balancer}: unejected, and its keys return");
            assert_eq!(picked(&state, None).len(), 5, "{balancer}: without a key any endpoint");
        }
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
    fn slow_start_grows_the_share_of_a_new_endpoint() {
        let slow = serde_json::json!({
            "balancer": "roundRobin", "slowStart": {"windowMs": 10_000, "minPercent": 10, "aggressionPermille": 1_000}
        });
        let state = state(&with_settings(slow.clone(), &[(ONE, &[]), (TWO, &[])]));
        state.refresh(&with_settings(slow, &[(ONE, &[]), (TWO, &[]), (THREE, &[])]), Duration::ZERO);
        let mut rng = Rng::new(1);
        for (second, expected) in [(0, 100), (5, 500), (8, 800), (10, 1_000), (11, 1_000)] {
            let now = Duration::from_secs(second);
            let joined = (0..3_000).filter(|_| {
                state.pick(None, &[], Affinity::default(), &mut rng, now).expect("an endpoint").address == at(THREE)
            });
            let count = joined.count();
            assert!(count.abs_diff(expected) <= 60, "{count} of 3000 after {second} s, expected {expected}");
        }
    }

    #[test]
    fn requests_stay_in_the_local_zone_until_too_few_are_healthy() {
        let endpoints: Vec<_> = (1..=20)
            .map(|number| {
                serde_json::json!({
                    "address": format!("198.18.128.{number}:80"), "zone": if number <= 10 { "a" } else { "b" }
                })
            })
            .collect();
        let export = serde_json::json!({"services": [{
            "name": "s", "ports": [{"port": 80, "endpoints": endpoints}],
            "settings": {"balancer": "random", "preferSameZone": true, "outliers": {"maxEjectionPercent": 100}}
        }]});
        let pod = Pod { zone: Some("a".to_owned()), ..Pod::default() };
        let export = serde_json::from_value(export).expect("a document");
        let cluster = Namespace::compile(&pod, "n", export).expect("compiles").only_cluster();
        let state = state(&cluster);
        let mut rng = Rng::new(3);
        let mut local_percent = |tried: &[SocketAddr]| {
            let picks = (0..2_000).map(|_| {
                state.pick(None, tried, Affinity::default(), &mut rng, Duration::ZERO).expect("an endpoint").address
            });
            picks.filter(|address| cluster.endpoints[..10].contains(address)).count() / 20
        };
        assert_eq!(local_percent(&[]), 100);
        (0..2).for_each(|at| record(&state, at, Outcome::Local, 5, Duration::ZERO));
        assert_eq!(local_percent(&[]), 100, "8 of 10 healthy take all requests");
        (2..5).for_each(|at| record(&state, at, Outcome::Local, 5, Duration::ZERO));
        assert!((66..=74).contains(&local_percent(&[])), "5 of 10 healthy take 70 %: {}", local_percent(&[]));
        assert_eq!(local_percent(&cluster.endpoints[5..10]), 0, "all healthy local endpoints were tried");
        (5..10).for_each(|at| record(&state, at, Outcome::Local, 5, Duration::ZERO));
        assert_eq!(local_percent(&[]), 0, "no local endpoint is healthy");
    }

    #[test]
    fn refresh_applies_health_check_results() {
        let state = with_count(serde_json::json!({"balancer": "random"}), 3);
        let cluster = state.cluster();
        let second = cluster.endpoints[1];
        state.shared.set_unhealthy(second, true);
        state.refresh(&cluster, Duration::ZERO);
        assert_eq!(picked(&state, None), [0, 2]);
        state.shared.retain_unhealthy(&cluster.endpoints);
        state.refresh(&cluster, Duration::ZERO);
        assert_eq!(picked(&state, None), [0, 2], "it stays, and is unhealthy");
        state.shared.set_unhealthy(second, false);
        state.refresh(&cluster, Duration::ZERO);
        assert_eq!(picked(&state, None), [0, 1, 2]);
        state.shared.set_unhealthy(second, true);
        state.shared.retain_unhealthy(&[]);
        state.refresh(&cluster, Duration::ZERO);
        assert_eq!(picked(&state, None), [0, 1, 2], "health checks were switched off");
    }
}
