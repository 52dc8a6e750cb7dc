//! The endpoints of a cluster as one worker sees them, and the choice of one for a request.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use http::HeaderValue;
use http::request::Parts;
use weft_config::Balancer;

use super::endpoint::{Endpoint, Lease, LeaseError};
use super::fallback::Standing;
use super::load::{Kind, Load, Loads};
use crate::balance::affinity::Affinity;
use crate::balance::hash::{self, Table};
use crate::balance::level::{self, Priority};
use crate::balance::outlier::{Detector, Outcome, OutlierStats};
use crate::balance::slow_start::SlowStart;
use crate::balance::{Rng, pick_two};
use crate::table::Cluster;
use crate::telemetry::metrics::{EndpointHandles, Metrics};

/// One worker's view of a cluster.
pub(crate) struct ClusterState {
    cluster: RefCell<Arc<Cluster>>,
    /// In the cluster's order.
    endpoints: RefCell<Vec<Rc<Endpoint>>>,
    /// Whom a request may go to. Made anew when an endpoint is ejected or taken back, so that a request need not look.
    candidates: RefCell<Candidates>,
    ejected: Cell<usize>,
    /// How many findings of health checks are in the candidates.
    findings: Cell<u32>,
    /// When success rates are compared next.
    interval_ends: Cell<Duration>,
    next: Cell<usize>,
    /// How it stands with requests that find no endpoint.
    pub(crate) standing: Standing,
    pub(crate) load: Arc<Load>,
    handles: EndpointHandles,
}

/// Whom a request may go to.
#[derive(Default)]
struct Candidates {
    /// Where it names no subset.
    all: Vec<List>,
    subsets: HashMap<String, Vec<List>>,
}

/// Endpoints to choose from, of one level: on the proxy's own node, in its zone, or elsewhere.
#[derive(Default)]
struct List {
    /// Of requests, those that go to this level.
    percent: u32,
    /// Positions of the endpoints.
    members: Vec<usize>,
    /// From keys to positions in `members`, where the balancer hashes. Built for the first request, because most subsets of
    /// most Services are never sent to from one pod.
    table: OnceCell<Table>,
    /// From what cookies call an endpoint to its position, where sessions are sticky.
    sessions: HashMap<u64, usize>,
}

/// Why there is no endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoEndpoints;

impl ClusterState {
    pub(crate) fn new(cluster: &Arc<Cluster>, loads: &Loads, metrics: &Metrics, now: Duration) -> Self {
        let state = Self {
            endpoints: RefCell::new(cluster.endpoints.iter().map(|at| Rc::new(Endpoint::new(*at, now))).collect()),
            cluster: RefCell::new(cluster.clone()),
            candidates: RefCell::default(),
            ejected: Cell::new(0),
            findings: Cell::new(0),
            interval_ends: Cell::new(now + cluster.outliers.interval),
            next: Cell::new(0),
            standing: Standing::default(),
            load: loads.of(&cluster.name),
            handles: metrics.endpoints(&cluster.name),
        };
        state.note_proxies();
        state.sort_out();
        state
    }

    /// Takes a newer version of the cluster. Endpoints that stay keep what is known of them and their connections.
    pub(crate) fn refresh(&self, cluster: &Arc<Cluster>, now: Duration) {
        if Arc::ptr_eq(&self.cluster.borrow(), cluster) {
            if self.load.findings() != self.findings.get() {
                self.sort_out();
            }
            return;
        }
        if self.cluster.borrow().endpoints != cluster.endpoints {
            let mut endpoints = self.endpoints.borrow_mut();
            let mut known: HashMap<SocketAddr, Rc<Endpoint>> =
                endpoints.drain(..).map(|endpoint| (endpoint.address, endpoint)).collect();
            let joining = |at: &SocketAddr| {
                let endpoint = Rc::new(Endpoint::new(*at, now));
                endpoint.joined.set(Some(now));
                endpoint
            };
            let kept = |at: &SocketAddr| known.remove(at).unwrap_or_else(|| joining(at));
            *endpoints = cluster.endpoints.iter().map(kept).collect();
            self.standing.endpoints_changed(cluster);
        }
        if !cluster.outliers.is_on() {
            self.endpoints.borrow().iter().for_each(|endpoint| with_tally(endpoint, OutlierStats::uneject));
        }
        *self.cluster.borrow_mut() = cluster.clone();
        self.note_proxies();
        self.sort_out();
        // Those of HTTP/1.1 are closed as requests come to them.
        let mut surplus = self.load.surplus(Kind::Connection, cluster.limits.max_connections) as usize;
        if surplus > 0 {
            for endpoint in self.endpoints.borrow().iter().chain(&self.standing.address()) {
                surplus -= endpoint.retire_http2(surplus);
            }
        }
    }

    fn note_proxies(&self) {
        let cluster = self.cluster.borrow();
        for (endpoint, has_proxy) in self.endpoints.borrow().iter().zip(&cluster.with_proxy) {
            endpoint.has_proxy.set(*has_proxy);
        }
        self.standing.note_proxies(&cluster);
    }

    pub(crate) fn cluster(&self) -> Arc<Cluster> {
        self.cluster.borrow().clone()
    }

    /// What ties a request to an endpoint, if anything does.
    pub(crate) fn affinity(&self, request: &Parts, peer: IpAddr) -> Affinity {
        let cluster = self.cluster.borrow();
        let Parts { uri, headers, .. } = request;
        Affinity {
            key: cluster.hash_on.as_ref().and_then(|on| on.of_request(uri, headers, peer)),
            session: cluster.sticky.as_ref().and_then(|sticky| sticky.session(headers)),
            client: cluster.client_ip.map(|_| peer),
        }
    }

    /// The same for a connection of bytes.
    pub(crate) fn affinity_of_bytes(&self, peer: IpAddr) -> Affinity {
        let cluster = self.cluster.borrow();
        let key = cluster.hash_on.as_ref().and_then(|on| on.of_connection(peer));
        Affinity { key, session: None, client: cluster.client_ip.map(|_| peer) }
    }

    /// The cookie that ties a client to the endpoint that answered it, unless it has that one.
    pub(crate) fn cookie(&self, affinity: Affinity, endpoint: SocketAddr) -> Option<HeaderValue> {
        let cluster = self.cluster.borrow();
        let sticky = cluster.sticky.as_ref()?;
        if affinity.session == Some(hash::session(endpoint)) { None } else { sticky.set_cookie(endpoint) }
    }

    /// An endpoint for a request, if possible one that has not been tried.
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
        let session = self.load.endpoint_of(client, key, timeout, now).map(hash::session);
        let endpoint = self.pick_by(subset, tried, Affinity { session, ..affinity }, rng, now)?;
        self.load.client_went(client, key, endpoint.address, now);
        Ok(endpoint)
    }

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
                let roll = affinity.key.map_or_else(|| rng.below(100), |key| (key % 100) as u32);
                &several[level::choose(several.iter().map(|list| list.percent), roll)]
            }
        };
        if !list.members.iter().any(|at| untried(*at)) {
            // Another level may have one, for a request that failed in this one.
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
            let part = |position: usize| {
                let joined = &at(position).joined;
                let part = joined.get().and_then(|joined| slow_start.weight(now.saturating_sub(joined)));
                part.unwrap_or_else(|| {
                    joined.set(None);
                    1.0
                })
            };
            first = SlowStart::offer(first, count, part, rng);
        }
        // Those that failed this very request come last; looking on from the choice keeps the search even.
        let found = (0..count).map(|step| (first + step) % count).find(untried);
        Ok(at(found.unwrap_or(first)).clone())
    }

    /// How many endpoints there are to choose from.
    pub(crate) fn choices(&self, subset: Option<&str>) -> usize {
        self.candidates.borrow().of(subset).iter().map(|list| list.members.len()).sum()
    }

    /// Takes in what came of a request to an endpoint, and leaves the endpoint alone if that gives it away.
    pub(crate) fn record(&self, endpoint: &Endpoint, outcome: Outcome, now: Duration) {
        if self.standing.is_by_address() && outcome != Outcome::Local && !self.is_own_address(endpoint) {
            self.standing.end();
        }
        let mut tally = endpoint.tally.get();
        let given_away = tally.record(outcome, &self.cluster.borrow().outliers);
        endpoint.tally.set(tally);
        if let Some(detector) = given_away
            && self.eject(endpoint, detector, now)
        {
            self.sort_out();
        }
    }

    /// Counts a request that is sent for the first time.
    pub(crate) fn first_attempt(&self) {
        self.load.budget.deposit(&self.cluster.borrow().retry_budget);
    }

    /// Whether the budget allows a request to be repeated; if so the repetition is counted.
    pub(crate) fn may_repeat(&self, now: Duration) -> bool {
        self.load.budget.try_spend(&self.cluster.borrow().retry_budget, now)
    }

    /// Takes endpoints back whose time is over, and compares success rates when it is time for that.
    pub(crate) fn tick(&self, now: Duration) {
        let settings = self.cluster.borrow().outliers;
        let mut changed = false;
        if self.ejected.get() > 0 {
            for endpoint in self.endpoints.borrow().iter() {
                if with_tally(endpoint, |tally| tally.uneject_if_due(now)) {
                    endpoint.joined.set(Some(now));
                    changed = true;
                }
            }
        }
        if now >= self.interval_ends.get() {
            self.interval_ends.set(now + settings.interval);
            let endpoints = self.endpoints.borrow();
            let rated: Vec<(&Rc<Endpoint>, f64)> = (endpoints.iter())
                .map(|endpoint| (endpoint, endpoint.tally.get()))
                .filter(|(_, tally)| settings.has_success_rate(tally))
                .map(|(endpoint, tally)| (endpoint, tally.success_rate()))
                .collect();
            let rates: Vec<f64> = rated.iter().map(|(_, rate)| *rate).collect();
            if let Some(lowest) = settings.success_rate_threshold(&rates) {
                for (endpoint, _) in rated.iter().filter(|(_, rate)| *rate < lowest) {
                    changed |= self.eject(endpoint, Detector::SuccessRate, now);
                }
            }
            for endpoint in endpoints.iter() {
                with_tally(endpoint, OutlierStats::next_interval);
            }
        }
        if changed {
            self.sort_out();
        }
    }

    /// Whether this is the Service's own address, and not one of its endpoints.
    pub(super) fn is_own_address(&self, endpoint: &Endpoint) -> bool {
        self.cluster.borrow().address == Some(endpoint.address)
    }

    /// Leaves an endpoint alone, if that is allowed and news.
    fn eject(&self, endpoint: &Endpoint, detector: Detector, now: Duration) -> bool {
        if self.is_own_address(endpoint) {
            return false;
        }
        let (cluster, mut tally) = (self.cluster.borrow(), endpoint.tally.get());
        if tally.is_ejected() || !cluster.outliers.may_eject(self.ejected.get(), cluster.usable) {
            return false;
        }
        let time = tally.eject(&cluster.outliers, now);
        endpoint.tally.set(tally);
        self.ejected.set(self.ejected.get() + 1);
        self.handles.ejected(detector.as_str());
        tracing::warn!(
            dst.service = %cluster.name, dst.endpoint = %endpoint.address, reason = detector.as_str(), ?time,
            "endpoint ejected"
        );
        true
    }

    /// Finds out anew whom requests may go to.
    fn sort_out(&self) {
        let (cluster, endpoints) = (self.cluster.borrow(), self.endpoints.borrow());
        self.findings.set(self.load.findings());
        let unwell = self.load.unwell();
        let is_ejected = |at: usize| endpoints[at].tally.get().is_ejected();
        let is_well = |at: usize| !is_ejected(at) && !unwell.contains(&endpoints[at].address);
        let ejected = (0..endpoints.len()).filter(|at| is_ejected(*at)).count();
        self.ejected.set(ejected);
        self.handles.set_ejected(ejected);
        let list = |members: Vec<usize>, percent: u32| List {
            percent,
            table: OnceCell::new(),
            sessions: match cluster.sticky.is_some() || cluster.client_ip.is_some() {
                true => members.iter().map(|at| (hash::session(endpoints[*at].address), *at)).collect(),
                false => HashMap::new(),
            },
            members,
        };
        let lists = |members: Vec<usize>| -> Vec<List> {
            let mut levels: [Vec<usize>; 3] = Default::default();
            for at in members {
                levels[usize::from(cluster.levels.get(at).copied().unwrap_or(2)).min(2)].push(at);
            }
            let levels: Vec<Vec<usize>> = levels.into_iter().filter(|level| !level.is_empty()).collect();
            let well = |level: &Vec<usize>| level.iter().filter(|at| is_well(**at)).count();
            let counts: Vec<Priority> =
                levels.iter().map(|level| Priority { healthy: well(level), total: level.len() }).collect();
            let shares = level::divide(&counts, cluster.panic_percent);
            (levels.into_iter().zip(shares))
                .map(|(mut members, share)| {
                    members.retain(|at| share.panic || is_well(*at));
                    list(members, share.percent)
                })
                .collect()
        };
        *self.candidates.borrow_mut() = Candidates {
            all: lists((0..cluster.usable).collect()),
            subsets: cluster.subsets.iter().map(|(name, members)| (name.clone(), lists(members.clone()))).collect(),
        };
    }

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
                self.next.set(self.next.get().wrapping_add(1));
                self.next.get() % count
            }
            // Those that hash have a table.
            Balancer::Random | Balancer::RingHash | Balancer::Maglev => {
                rng.below(u32::try_from(count).unwrap_or(u32::MAX)) as usize
            }
        }
    }

    /// A connection to an endpoint for one request, waiting for its turn where connections are limited; `fresh`: none that
    /// idled.
    pub(crate) async fn lease(&self, endpoint: &Rc<Endpoint>, http2: bool, fresh: bool) -> Result<Lease, LeaseError> {
        let cluster = self.cluster();
        let limit = cluster.limits.max_connections;
        let awaited = |lease: Lease| if limit.is_some() { lease.awaited(self.load.clone()) } else { lease };
        loop {
            // Connections from before the limit was lowered would be used for ever, as long as requests come.
            while self.load.surplus(Kind::Connection, limit) > 0
                && (endpoint.close_one_idle() || self.close_one_idle(endpoint))
            {}
            if !fresh && let Some(lease) = endpoint.idle(http2) {
                return Ok(awaited(lease));
            }
            if http2 && let Some(opening) = Box::pin(endpoint.opening()).await {
                return opening.map(awaited);
            }
            if let Some(permit) = self.load.admit(Kind::Connection, limit) {
                // In a box, so that requests that find a connection do not carry the room for making one.
                let lease = Box::pin(endpoint.connect(http2, cluster.connect_timeout, Some(permit))).await?;
                return Ok(awaited(lease));
            }
            // A connection that idles elsewhere, or may not be used, holds the place that this request needs.
            if !(fresh && endpoint.close_one_idle()) {
                self.close_one_idle(endpoint);
            }
            let Some(_waiting) = self.load.admit(Kind::Pending, cluster.limits.max_pending) else {
                return Err(LeaseError::Overflow);
            };
            self.load.freed.notified().await;
        }
    }

    pub(crate) fn close_idle(&self) {
        self.endpoints.borrow().iter().for_each(|endpoint| endpoint.close_idle());
        self.standing.close_idle();
    }

    /// Closes a connection that idles, unless it is to this endpoint.
    fn close_one_idle(&self, except: &Rc<Endpoint>) -> bool {
        let endpoints = self.endpoints.borrow();
        endpoints.iter().any(|endpoint| !Rc::ptr_eq(endpoint, except) && endpoint.close_one_idle())
            || self.standing.close_one_idle(except)
    }
}

// === impl Candidates ===

impl Candidates {
    /// Those of a subset. Empty: nobody is in it, or nobody declared it.
    fn of(&self, subset: Option<&str>) -> &[List] {
        match subset {
            None => &self.all,
            Some(name) => self.subsets.get(name).map(Vec::as_slice).unwrap_or_default(),
        }
    }
}

fn with_tally<T>(endpoint: &Endpoint, change: impl FnOnce(&mut OutlierStats) -> T) -> T {
    let mut tally = endpoint.tally.get();
    let result = change(&mut tally);
    endpoint.tally.set(tally);
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
        ClusterState::new(cluster, &Loads::default(), &Metrics::new(&mut Registry::default()), Duration::ZERO)
    }

    /// So many endpoints of one cluster.
    fn many(settings: serde_json::Value, count: usize) -> ClusterState {
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
    fn chosen(state: &ClusterState, subset: Option<&str>) -> Vec<usize> {
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
    fn a_subset_is_all_there_is() {
        let cluster = cluster("random", &[(ONE, &["a"]), (TWO, &["a"]), (THREE, &[])]);
        let state = state(&cluster);
        let mut rng = Rng::new(1);
        let mut pick = |subset, tried: &[SocketAddr]| {
            state.pick(subset, tried, Affinity::default(), &mut rng, Duration::ZERO).map(|endpoint| endpoint.address)
        };
        for _ in 0..100 {
            assert_ne!(pick(Some("a"), &[]), Ok(at(THREE)));
            assert_eq!(pick(Some("a"), &[at(ONE)]), Ok(at(TWO)), "the one not tried");
        }
        assert!(pick(Some("a"), &[at(ONE), at(TWO)]).is_ok(), "all were tried: any of them");
        assert_eq!(pick(Some("b"), &[]), Err(NoEndpoints), "nobody is in it");
        assert_eq!(pick(Some("c"), &[]), Err(NoEndpoints), "nobody declared it");
    }

    #[test]
    fn round_robin_takes_turns() {
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
    fn a_slow_endpoint_gets_less() {
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
        assert_eq!(picks.count(), 0, "of two the slow one always loses");
    }

    #[test]
    fn endpoints_that_stay_are_the_same() {
        let state = state(&cluster("peakEwma", &[(ONE, &[]), (TWO, &[])]));
        let before = state.endpoints.borrow()[1].clone();
        state.refresh(&cluster("peakEwma", &[(TWO, &[]), (THREE, &[])]), Duration::ZERO);
        let endpoints = state.endpoints.borrow();
        assert!(Rc::ptr_eq(&before, &endpoints[0]), "kept");
        assert_eq!(endpoints[1].address, at(THREE));
        assert_eq!(endpoints.len(), 2);
    }

    #[test]
    fn an_endpoint_that_fails_is_left_alone_for_a_while() {
        let state = many(serde_json::json!({"balancer": "random"}), 4);
        let seconds = Duration::from_secs;
        record(&state, 2, Outcome::Gateway, 4, seconds(1));
        record(&state, 2, Outcome::Ok, 1, seconds(1));
        record(&state, 2, Outcome::Gateway, 4, seconds(1));
        assert_eq!(chosen(&state, None), [0, 1, 2, 3], "no five in a row");
        record(&state, 2, Outcome::Gateway, 1, seconds(1));
        assert_eq!(chosen(&state, None), [0, 1, 3]);
        record(&state, 1, Outcome::Local, 5, seconds(1));
        assert_eq!(chosen(&state, None), [0, 1, 3], "one of four is more than 10 %");
        state.tick(seconds(30));
        assert_eq!(chosen(&state, None), [0, 1, 3], "29 seconds later");
        state.tick(seconds(31));
        assert_eq!(chosen(&state, None), [0, 1, 2, 3], "30 seconds later");
        record(&state, 2, Outcome::Local, 5, seconds(31));
        state.tick(seconds(90));
        assert_eq!(chosen(&state, None), [0, 1, 3], "the second time in a row takes 60 seconds");
        state.tick(seconds(91));
        assert_eq!(chosen(&state, None), [0, 1, 2, 3]);
    }

    #[test]
    fn where_too_few_are_well_all_are_used() {
        let settings = |panic: u32| {
            serde_json::json!({
                "balancer": "random", "panicPercent": panic, "outliers": {"maxEjectionPercent": 100}
            })
        };
        let at = Duration::from_secs(1);
        let state = many(settings(50), 4);
        record(&state, 0, Outcome::Local, 5, at);
        record(&state, 1, Outcome::Local, 5, at);
        assert_eq!(chosen(&state, None), [2, 3], "half of them");
        record(&state, 2, Outcome::Local, 5, at);
        assert_eq!(chosen(&state, None), [0, 1, 2, 3], "a quarter of them");
        record(&state, 3, Outcome::Local, 5, at);
        assert_eq!(state.ejected.get(), 3, "the last one stays");
        let never = many(settings(0), 4);
        (0..4).for_each(|endpoint| record(&never, endpoint, Outcome::Local, 5, at));
        assert_eq!(chosen(&never, None), [3], "the threshold is off");
    }

    #[test]
    fn a_subset_of_the_ejected_is_used_as_it_is() {
        let members: &[(&str, &[&str])] = &[(ONE, &["a"]), (TWO, &[]), (THREE, &[])];
        let at = Duration::from_secs(1);
        let cluster = cluster("random", members);
        let alone = state(&cluster);
        record(&alone, 0, Outcome::Error, 5, at);
        assert_eq!(chosen(&alone, None), [1, 2]);
        assert_eq!(chosen(&alone, Some("a")), [0], "it is all there is");
        let strict = state(&with_settings(serde_json::json!({"subsets": ["a"], "panicPercent": 0}), members));
        record(&strict, 0, Outcome::Error, 5, at);
        assert!(chosen(&strict, Some("a")).is_empty(), "none that is well, and the threshold is off");
    }

    #[test]
    fn an_endpoint_that_stays_stays_ejected_and_one_that_goes_is_not_counted() {
        let state = state(&cluster("random", &[(ONE, &[]), (TWO, &[])]));
        record(&state, 1, Outcome::Local, 5, Duration::ZERO);
        assert_eq!((chosen(&state, None), state.ejected.get()), (vec![0], 1));
        state.refresh(&cluster("random", &[(ONE, &[]), (TWO, &[]), (THREE, &[])]), Duration::ZERO);
        assert_eq!((chosen(&state, None), state.ejected.get()), (vec![0, 2], 1));
        let off = with_settings(
            serde_json::json!({"balancer": "random", "outliers": {"maxEjectionPercent": 0}}),
            &[(ONE, &[]), (TWO, &[])],
        );
        state.refresh(&off, Duration::ZERO);
        assert_eq!((chosen(&state, None), state.ejected.get()), (vec![0, 1], 0), "switched off");
        state.refresh(&cluster("random", &[(ONE, &[]), (TWO, &[]), (THREE, &[])]), Duration::ZERO);
        record(&state, 1, Outcome::Local, 5, Duration::ZERO);
        assert_eq!(state.ejected.get(), 1);
        state.refresh(&cluster("random", &[(ONE, &[]), (THREE, &[])]), Duration::ZERO);
        assert_eq!((chosen(&state, None), state.ejected.get()), (vec![0, 1], 0));
    }

    #[test]
    fn success_rates_are_compared_at_each_interval() {
        let settings = serde_json::json!({"balancer": "random", "outliers": {"consecutive5xx": 0}});
        let state = many(settings, 6);
        let at = Duration::from_secs(9);
        for endpoint in 0..6 {
            record(&state, endpoint, Outcome::Ok, if endpoint == 4 { 60 } else { 99 }, at);
            record(&state, endpoint, Outcome::Error, if endpoint == 4 { 40 } else { 1 }, at);
        }
        state.tick(at);
        assert_eq!(chosen(&state, None).len(), 6, "the interval is not over");
        state.tick(Duration::from_secs(10));
        assert_eq!(chosen(&state, None), [0, 1, 2, 3, 5], "60 % where the others have 99 %");
        state.tick(Duration::from_secs(40));
        assert_eq!(chosen(&state, None).len(), 6);
    }

    /// Where a request with this affinity goes.
    fn tied(state: &ClusterState, affinity: Affinity, tried: &[SocketAddr]) -> SocketAddr {
        let mut rng = Rng::new(7);
        state.pick(None, tried, affinity, &mut rng, Duration::ZERO).expect("an endpoint").address
    }

    #[test]
    fn a_key_stays_with_its_endpoint_while_that_is_well() {
        for balancer in ["ringHash", "maglev"] {
            let state = many(serde_json::json!({"balancer": balancer, "hashOn": {"header": "x-user"}}), 5);
            let keys: Vec<Affinity> = (0..200u64)
                .map(|user| Affinity { key: Some(hash::hash(&user.to_le_bytes())), session: None, client: None })
                .collect();
            let before: Vec<SocketAddr> = keys.iter().map(|key| tied(&state, *key, &[])).collect();
            let again: Vec<SocketAddr> = keys.iter().map(|key| tied(&state, *key, &[])).collect();
            assert_eq!(before, again, "{balancer}");
            record(&state, 2, Outcome::Local, 5, Duration::ZERO);
            let ejected = state.endpoints.borrow()[2].address;
            let mut moved = 0;
            for (key, before) in keys.iter().zip(&before) {
                let now = tied(&state, *key, &[]);
                assert_ne!(now, ejected, "{balancer}");
                moved += u32::from(*before != ejected && now != *before);
                let next = tied(&state, *key, &[now]);
                assert_ne!(next, now, "{balancer}: a repetition goes to another one");
            }
            assert!(moved <= if balancer == "ringHash" { 0 } else { 40 }, "{balancer}: {moved} of 200 moved");
            state.tick(Duration::from_secs(30));
            let after: Vec<SocketAddr> = keys.iter().map(|key| tied(&state, *key, &[])).collect();
            assert_eq!(before, after, "{balancer}: it is back, and so are its keys");
            assert_eq!(chosen(&state, None).len(), 5, "{balancer}: without a key any one");
        }
    }

    #[test]
    fn a_session_stays_with_its_endpoint_whatever_the_balancer() {
        let state = many(serde_json::json!({"sticky": {"cookie": "s", "path": "/"}}), 4);
        let endpoint = state.endpoints.borrow()[3].address;
        let session = Affinity { key: None, session: Some(hash::session(endpoint)), client: None };
        assert!((0..100).all(|_| tied(&state, session, &[]) == endpoint));
        assert!(state.cookie(session, endpoint).is_none(), "it has that cookie");
        assert_ne!(tied(&state, session, &[endpoint]), endpoint, "a repetition goes to another one");
        record(&state, 3, Outcome::Local, 5, Duration::ZERO);
        let other = tied(&state, session, &[]);
        assert_ne!(other, endpoint);
        assert!(state.cookie(session, other).is_some(), "and from now on it stays there");
        assert!(state.cookie(Affinity::default(), other).is_some());
    }

    #[test]
    fn an_endpoint_that_joins_gets_a_share_that_grows() {
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
    fn the_own_zone_comes_first_and_others_take_what_it_cannot() {
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
        let mut share_of_own = |tried: &[SocketAddr]| {
            let picks = (0..2_000).map(|_| {
                state.pick(None, tried, Affinity::default(), &mut rng, Duration::ZERO).expect("an endpoint").address
            });
            picks.filter(|address| cluster.endpoints[..10].contains(address)).count() / 20
        };
        assert_eq!(share_of_own(&[]), 100);
        (0..2).for_each(|at| record(&state, at, Outcome::Local, 5, Duration::ZERO));
        assert_eq!(share_of_own(&[]), 100, "8 of 10 bear it all");
        (2..5).for_each(|at| record(&state, at, Outcome::Local, 5, Duration::ZERO));
        assert!((66..=74).contains(&share_of_own(&[])), "5 of 10 bear 70 %: {}", share_of_own(&[]));
        assert_eq!(share_of_own(&cluster.endpoints[5..10]), 0, "all of the own were tried");
        (5..10).for_each(|at| record(&state, at, Outcome::Local, 5, Duration::ZERO));
        assert_eq!(share_of_own(&[]), 0, "none is left there");
    }

    #[test]
    fn what_a_health_check_found_is_heeded_by_the_next_request() {
        let state = many(serde_json::json!({"balancer": "random"}), 3);
        let cluster = state.cluster();
        let second = cluster.endpoints[1];
        state.load.set_unwell(second, true);
        state.refresh(&cluster, Duration::ZERO);
        assert_eq!(chosen(&state, None), [0, 2]);
        state.load.keep_unwell(&cluster.endpoints);
        state.refresh(&cluster, Duration::ZERO);
        assert_eq!(chosen(&state, None), [0, 2], "it is still there, and unwell");
        state.load.set_unwell(second, false);
        state.refresh(&cluster, Duration::ZERO);
        assert_eq!(chosen(&state, None), [0, 1, 2]);
        state.load.set_unwell(second, true);
        state.load.keep_unwell(&[]);
        state.refresh(&cluster, Duration::ZERO);
        assert_eq!(chosen(&state, None), [0, 1, 2], "nobody asks any more");
    }
}
