//! The endpoints of a cluster as one worker sees them, and the choice of one for a request.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use weft_config::Balancer;

use super::endpoint::{Endpoint, Lease, LeaseError};
use super::load::{Kind, Load, Loads};
use crate::balance::{Chance, two};
use crate::table::Cluster;

/// One worker's view of a cluster.
pub(crate) struct ClusterState {
    cluster: RefCell<Arc<Cluster>>,
    /// In the cluster's order.
    endpoints: RefCell<Vec<Rc<Endpoint>>>,
    next: Cell<usize>,
    pub(crate) load: Arc<Load>,
}

/// Why there is no endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoEndpoints;

impl ClusterState {
    pub(crate) fn new(cluster: &Arc<Cluster>, loads: &Loads, now: Duration) -> Self {
        Self {
            endpoints: RefCell::new(cluster.endpoints.iter().map(|at| Rc::new(Endpoint::new(*at, now))).collect()),
            cluster: RefCell::new(cluster.clone()),
            next: Cell::new(0),
            load: loads.of(&cluster.name),
        }
    }

    /// Takes a newer version of the cluster. Endpoints that stay keep what is known of them and their connections.
    pub(crate) fn refresh(&self, cluster: &Arc<Cluster>, now: Duration) {
        if Arc::ptr_eq(&self.cluster.borrow(), cluster) {
            return;
        }
        let mut endpoints = self.endpoints.borrow_mut();
        if self.cluster.borrow().endpoints != cluster.endpoints {
            let mut known: HashMap<SocketAddr, Rc<Endpoint>> =
                endpoints.drain(..).map(|endpoint| (endpoint.address, endpoint)).collect();
            let kept = |at: &SocketAddr| known.remove(at).unwrap_or_else(|| Rc::new(Endpoint::new(*at, now)));
            *endpoints = cluster.endpoints.iter().map(kept).collect();
        }
        *self.cluster.borrow_mut() = cluster.clone();
    }

    pub(crate) fn cluster(&self) -> Arc<Cluster> {
        self.cluster.borrow().clone()
    }

    /// An endpoint for a request, if possible one that has not been tried.
    pub(crate) fn pick(
        &self,
        subset: Option<&str>,
        tried: &[SocketAddr],
        chance: &mut Chance,
        now: Duration,
    ) -> Result<Rc<Endpoint>, NoEndpoints> {
        let (cluster, endpoints) = (self.cluster.borrow(), self.endpoints.borrow());
        let members = match subset {
            None => None,
            Some(name) => Some(cluster.subsets.get(name).ok_or(NoEndpoints)?.as_slice()),
        };
        let count = members.map_or(cluster.usable, <[usize]>::len);
        if count == 0 {
            return Err(NoEndpoints);
        }
        let at = |position: usize| &endpoints[members.map_or(position, |members| members[position])];
        let first = self.choose(cluster.balancer, count, at, chance, now);
        // Those that failed this very request come last; looking on from the choice keeps the search even.
        let untried =
            (0..count).map(|step| at((first + step) % count)).find(|endpoint| !tried.contains(&endpoint.address));
        Ok(untried.unwrap_or_else(|| at(first)).clone())
    }

    fn choose<'a>(
        &self,
        balancer: Balancer,
        count: usize,
        at: impl Fn(usize) -> &'a Rc<Endpoint>,
        chance: &mut Chance,
        now: Duration,
    ) -> usize {
        if count == 1 {
            return 0;
        }
        let cheaper = |chance: &mut Chance, cost: &dyn Fn(&Endpoint) -> f64| {
            let (first, second) = two(chance, count);
            if cost(at(second)) < cost(at(first)) { second } else { first }
        };
        match balancer {
            Balancer::PeakEwma => cheaper(chance, &|endpoint| endpoint.cost(now)),
            Balancer::LeastRequest => cheaper(chance, &|endpoint| f64::from(endpoint.in_flight())),
            Balancer::RoundRobin => {
                self.next.set(self.next.get().wrapping_add(1));
                self.next.get() % count
            }
            Balancer::Random => chance.below(u32::try_from(count).unwrap_or(u32::MAX)) as usize,
        }
    }

    /// A connection to an endpoint for one request, waiting for its turn where connections are limited.
    pub(crate) async fn lease(&self, endpoint: &Rc<Endpoint>, http2: bool) -> Result<Lease, LeaseError> {
        let cluster = self.cluster();
        loop {
            if let Some(lease) = endpoint.idle(http2) {
                return Ok(lease.counted(self.load.clone()));
            }
            if let Some(permit) = self.load.admit(Kind::Connection, cluster.limits.max_connections) {
                let lease = endpoint.connect(http2, cluster.connect_timeout, Some(permit)).await?;
                return Ok(lease.counted(self.load.clone()));
            }
            // A connection that idles elsewhere holds the place that this request needs.
            self.close_one_idle(endpoint);
            let Some(_waiting) = self.load.admit(Kind::Pending, cluster.limits.max_pending) else {
                return Err(LeaseError::Overflow);
            };
            self.load.freed.notified().await;
        }
    }

    pub(crate) fn close_idle(&self) {
        self.endpoints.borrow().iter().for_each(|endpoint| endpoint.close_idle());
    }

    fn close_one_idle(&self, except: &Rc<Endpoint>) {
        let endpoints = self.endpoints.borrow();
        let _ = endpoints.iter().any(|endpoint| !Rc::ptr_eq(endpoint, except) && endpoint.close_one_idle());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Namespace;

    fn cluster(balancer: &str, endpoints: &[(&str, &[&str])]) -> Arc<Cluster> {
        let endpoints: Vec<_> = (endpoints.iter())
            .map(|(address, subsets)| serde_json::json!({"address": address, "subsets": subsets}))
            .collect();
        let export = serde_json::from_value(serde_json::json!({"services": [{
            "name": "s", "settings": {"balancer": balancer, "subsets": ["a", "b"]},
            "ports": [{"port": 80, "endpoints": endpoints}]
        }]}))
        .expect("a document");
        Namespace::compile("n", export).expect("compiles").only_cluster()
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
        let state = ClusterState::new(&cluster, &Loads::default(), Duration::ZERO);
        let mut chance = Chance::new(1);
        let mut pick = |subset, tried: &[SocketAddr]| {
            state.pick(subset, tried, &mut chance, Duration::ZERO).map(|endpoint| endpoint.address)
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
        let state = ClusterState::new(&cluster, &Loads::default(), Duration::ZERO);
        let mut chance = Chance::new(1);
        let mut seen: HashMap<SocketAddr, u32> = HashMap::new();
        for _ in 0..30 {
            let endpoint = state.pick(None, &[], &mut chance, Duration::ZERO).expect("an endpoint");
            *seen.entry(endpoint.address).or_default() += 1;
        }
        assert!(seen.values().all(|count| *count == 10), "{seen:?}");
    }

    #[test]
    fn a_slow_endpoint_gets_less() {
        let cluster = cluster("peakEwma", &[(ONE, &[]), (TWO, &[]), (THREE, &[])]);
        let state = ClusterState::new(&cluster, &Loads::default(), Duration::ZERO);
        let mut chance = Chance::new(1);
        let now = Duration::from_secs(1);
        for endpoint in state.endpoints.borrow().iter() {
            let slow = endpoint.address == at(ONE);
            endpoint.observe(Duration::from_millis(if slow { 500 } else { 5 }), now);
        }
        let picks =
            (0..300).filter(|_| state.pick(None, &[], &mut chance, now).expect("an endpoint").address == at(ONE));
        assert_eq!(picks.count(), 0, "of two the slow one always loses");
    }

    #[test]
    fn endpoints_that_stay_are_the_same() {
        let state =
            ClusterState::new(&cluster("peakEwma", &[(ONE, &[]), (TWO, &[])]), &Loads::default(), Duration::ZERO);
        let before = state.endpoints.borrow()[1].clone();
        state.refresh(&cluster("peakEwma", &[(TWO, &[]), (THREE, &[])]), Duration::ZERO);
        let endpoints = state.endpoints.borrow();
        assert!(Rc::ptr_eq(&before, &endpoints[0]), "kept");
        assert_eq!(endpoints[1].address, at(THREE));
        assert_eq!(endpoints.len(), 2);
    }
}
