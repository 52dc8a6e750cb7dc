//! What all workers share about one Service port: the counts that limits apply to, the retry budget, which endpoints
//! fail their health checks, and which endpoint each client address went to.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hashbrown::{HashMap, HashSet};
use tokio::sync::Notify;
use weft_balance::Budget;

/// Client addresses whose last endpoint one cluster remembers. A pod has one address, or one of each family.
const CLIENTS_MAX: usize = 1024;

/// The shared state of every cluster, by name. It outlives tables, so that a configuration change resets nothing.
#[derive(Debug, Default)]
pub(crate) struct SharedClusters {
    by_name: Mutex<HashMap<Arc<str>, Arc<SharedCluster>>>,
}

/// What workers share about one cluster.
#[derive(Debug, Default)]
pub(crate) struct SharedCluster {
    requests: AtomicU32,
    connections: AtomicU32,
    pending: AtomicU32,
    /// How many requests may be retried.
    pub(crate) budget: Budget,
    /// Endpoints that fail their health checks.
    unhealthy: Mutex<HashSet<SocketAddr>>,
    /// Incremented when `unhealthy` changes.
    health_version: AtomicU32,
    /// The endpoint that a client address went to last, and when; by client and hash of the subset's name.
    clients: Mutex<HashMap<(IpAddr, u64), (SocketAddr, Duration)>>,
    /// Notified when a connection closes or becomes idle.
    pub(crate) freed: Notify,
}

/// Counts one request, connection or waiting request against its limit until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    cluster: Arc<SharedCluster>,
    kind: Kind,
}

/// What a limit applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Request,
    Connection,
    /// A request that waits for a connection.
    Pending,
}

impl SharedClusters {
    /// The state of a cluster, created on first use.
    pub(crate) fn get_or_create(&self, cluster: &Arc<str>) -> Arc<SharedCluster> {
        // No critical section leaves the map half changed: it is usable after a panic.
        let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        by_name.entry_ref(cluster).or_default().clone()
    }

    /// The clusters that at least one worker holds.
    pub(crate) fn in_use(&self) -> Vec<(Arc<str>, Arc<SharedCluster>)> {
        let by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        let held = by_name.iter().filter(|(_, cluster)| Arc::strong_count(cluster) > 1);
        held.map(|(name, cluster)| (name.clone(), cluster.clone())).collect()
    }
}

impl SharedCluster {
    /// A permit for one more, unless the limit is reached.
    pub(crate) fn admit(self: &Arc<Self>, kind: Kind, limit: Option<u32>) -> Option<Permit> {
        let limit = limit.unwrap_or(u32::MAX);
        self.counter(kind)
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| (count < limit).then(|| count + 1))
            .is_ok()
            .then(|| Permit { cluster: self.clone(), kind })
    }

    /// How many exceed the limit, after it was lowered.
    pub(crate) fn surplus(&self, kind: Kind, limit: Option<u32>) -> u32 {
        limit.map_or(0, |limit| self.counter(kind).load(Ordering::Acquire).saturating_sub(limit))
    }

    /// The endpoint that a client address went to last, if that was less than `timeout` ago.
    pub(crate) fn client_endpoint(
        &self,
        client: IpAddr,
        subset: u64,
        timeout: Duration,
        now: Duration,
    ) -> Option<SocketAddr> {
        let clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let (endpoint, at) = clients.get(&(client, subset))?;
        (now.saturating_sub(*at) < timeout).then_some(*endpoint)
    }

    /// Records the endpoint that a client address goes to. Above `CLIENTS_MAX` the oldest record is dropped.
    pub(crate) fn set_client_endpoint(&self, client: IpAddr, subset: u64, endpoint: SocketAddr, now: Duration) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= CLIENTS_MAX
            && !clients.contains_key(&(client, subset))
            && let Some(oldest) = clients.iter().min_by_key(|(_, (_, at))| *at).map(|(key, _)| *key)
        {
            clients.remove(&oldest);
        }
        clients.insert((client, subset), (endpoint, now));
    }

    /// How often the set of unhealthy endpoints has changed.
    pub(crate) fn health_version(&self) -> u32 {
        self.health_version.load(Ordering::Acquire)
    }

    /// The endpoints that fail their health checks.
    pub(crate) fn unhealthy(&self) -> HashSet<SocketAddr> {
        self.lock_unhealthy().clone()
    }

    /// Records the result of an endpoint's health checks.
    pub(crate) fn set_unhealthy(&self, endpoint: SocketAddr, is_unhealthy: bool) {
        let mut unhealthy = self.lock_unhealthy();
        let changed = if is_unhealthy { unhealthy.insert(endpoint) } else { unhealthy.remove(&endpoint) };
        drop(unhealthy);
        self.health_changed(changed);
    }

    /// Removes all endpoints but these from the unhealthy ones.
    pub(crate) fn retain_unhealthy(&self, endpoints: &[SocketAddr]) {
        let mut unhealthy = self.lock_unhealthy();
        let before = unhealthy.len();
        if before > 0 {
            unhealthy.retain(|endpoint| endpoints.contains(endpoint));
        }
        let changed = unhealthy.len() != before;
        drop(unhealthy);
        self.health_changed(changed);
    }

    fn health_changed(&self, changed: bool) {
        if changed {
            self.health_version.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn lock_unhealthy(&self) -> MutexGuard<'_, HashSet<SocketAddr>> {
        // No critical section leaves the set half changed: it is usable after a panic.
        self.unhealthy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counter(&self, kind: Kind) -> &AtomicU32 {
        match kind {
            Kind::Request => &self.requests,
            Kind::Connection => &self.connections,
            Kind::Pending => &self.pending,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.cluster.counter(self.kind).fetch_sub(1, Ordering::AcqRel);
        if self.kind == Kind::Connection {
            self.cluster.freed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_admit_again_when_a_permit_is_dropped() {
        let cluster = Arc::new(SharedCluster::default());
        let first = cluster.admit(Kind::Request, Some(2)).expect("below the limit");
        let _second = cluster.admit(Kind::Request, Some(2)).expect("below the limit");
        assert!(cluster.admit(Kind::Request, Some(2)).is_none(), "at the limit");
        assert!(cluster.admit(Kind::Connection, Some(1)).is_some(), "each kind has its own count");
        drop(first);
        assert!(cluster.admit(Kind::Request, Some(2)).is_some(), "a permit was dropped");
        assert!(cluster.admit(Kind::Pending, Some(0)).is_none(), "a limit of 0");
        assert!(cluster.admit(Kind::Request, None).is_some(), "no limit");
    }

    #[test]
    fn client_endpoints_expire_and_the_oldest_is_evicted() {
        let (cluster, at) = (SharedCluster::default(), Duration::from_secs);
        let client = |number: u32| IpAddr::from((0xC612_0000 + number).to_be_bytes());
        let endpoint = |port: u16| SocketAddr::from(([198, 18, 128, 1], port));
        cluster.set_client_endpoint(client(0), 0, endpoint(1), at(1));
        cluster.set_client_endpoint(client(0), 7, endpoint(2), at(2));
        assert_eq!(cluster.client_endpoint(client(0), 0, at(10), at(10)), Some(endpoint(1)));
        assert_eq!(cluster.client_endpoint(client(0), 7, at(10), at(10)), Some(endpoint(2)), "each subset has its own");
        assert_eq!(cluster.client_endpoint(client(0), 0, at(10), at(11)), None, "after the timeout");
        for number in 1..=CLIENTS_MAX as u32 {
            cluster.set_client_endpoint(client(number), 0, endpoint(3), at(20));
        }
        assert_eq!(cluster.clients.lock().expect("whole").len(), CLIENTS_MAX);
        assert_eq!(cluster.client_endpoint(client(0), 0, at(100), at(20)), None, "the oldest is evicted");
        assert_eq!(cluster.client_endpoint(client(1), 0, at(100), at(20)), Some(endpoint(3)));
    }
}
