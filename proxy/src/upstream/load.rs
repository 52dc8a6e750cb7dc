//! What all workers share about a Service port: what is open towards it, how much of it may be repeated, and which
//! endpoints were found unwell.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hashbrown::{HashMap, HashSet};
use tokio::sync::Notify;

use crate::balance::budget::Budget;

/// Clients that one cluster remembers the endpoints of. In a pod there is one, or one of each family.
const CLIENTS_MAX: usize = 1024;

/// The counters of every cluster, by name. They outlive tables, so that a change of routes forgets nothing.
#[derive(Debug, Default)]
pub(crate) struct Loads {
    by_cluster: Mutex<HashMap<Arc<str>, Arc<Load>>>,
}

/// What workers share about one cluster.
#[derive(Debug, Default)]
pub(crate) struct Load {
    requests: AtomicU32,
    connections: AtomicU32,
    pending: AtomicU32,
    /// How many requests may be repeated.
    pub(crate) budget: Budget,
    /// Endpoints that health checks found unwell.
    unwell: Mutex<HashSet<SocketAddr>>,
    /// Grows when that set changes.
    findings: AtomicU32,
    /// Where clients went last, and when, for each hash of a subset's name.
    clients: Mutex<HashMap<(IpAddr, u64), (SocketAddr, Duration)>>,
    /// Told each time a connection is closed or falls idle.
    pub(crate) freed: Notify,
}

/// Something that counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    load: Arc<Load>,
    kind: Kind,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Request,
    Connection,
    Pending,
}

impl Loads {
    pub(crate) fn of(&self, cluster: &Arc<str>) -> Arc<Load> {
        // The map is whole between any two statements of a critical section.
        let mut by_cluster = self.by_cluster.lock().unwrap_or_else(PoisonError::into_inner);
        by_cluster.entry_ref(cluster).or_default().clone()
    }

    /// Those that a worker holds.
    pub(crate) fn in_use(&self) -> Vec<(Arc<str>, Arc<Load>)> {
        let by_cluster = self.by_cluster.lock().unwrap_or_else(PoisonError::into_inner);
        let held = by_cluster.iter().filter(|(_, load)| Arc::strong_count(load) > 1);
        held.map(|(name, load)| (name.clone(), load.clone())).collect()
    }
}

impl Load {
    /// Counts one more, unless the limit is reached.
    pub(crate) fn admit(self: &Arc<Self>, kind: Kind, limit: Option<u32>) -> Option<Permit> {
        let limit = limit.unwrap_or(u32::MAX);
        self.counter(kind)
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| (count < limit).then(|| count + 1))
            .is_ok()
            .then(|| Permit { load: self.clone(), kind })
    }

    /// How many there are beyond the limit, as may be when it was lowered.
    pub(crate) fn surplus(&self, kind: Kind, limit: Option<u32>) -> u32 {
        limit.map_or(0, |limit| self.counter(kind).load(Ordering::Acquire).saturating_sub(limit))
    }

    /// The endpoint that a client went to, if that is not longer ago than the timeout.
    pub(crate) fn endpoint_of(
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

    /// Notes where a client goes.
    pub(crate) fn client_went(&self, client: IpAddr, subset: u64, endpoint: SocketAddr, now: Duration) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= CLIENTS_MAX
            && !clients.contains_key(&(client, subset))
            && let Some(oldest) = clients.iter().min_by_key(|(_, (_, at))| *at).map(|(key, _)| *key)
        {
            clients.remove(&oldest);
        }
        clients.insert((client, subset), (endpoint, now));
    }

    /// How often the set of unwell endpoints changed.
    pub(crate) fn findings(&self) -> u32 {
        self.findings.load(Ordering::Acquire)
    }

    /// The endpoints that health checks found unwell.
    pub(crate) fn unwell(&self) -> HashSet<SocketAddr> {
        self.locked().clone()
    }

    /// Notes what a health check found.
    pub(crate) fn set_unwell(&self, endpoint: SocketAddr, is_unwell: bool) {
        let mut unwell = self.locked();
        let changed = if is_unwell { unwell.insert(endpoint) } else { unwell.remove(&endpoint) };
        drop(unwell);
        self.found(changed);
    }

    /// Forgets the findings about all other endpoints.
    pub(crate) fn keep_unwell(&self, endpoints: &[SocketAddr]) {
        let mut unwell = self.locked();
        let before = unwell.len();
        if before > 0 {
            unwell.retain(|endpoint| endpoints.contains(endpoint));
        }
        let changed = unwell.len() != before;
        drop(unwell);
        self.found(changed);
    }

    fn found(&self, changed: bool) {
        if changed {
            self.findings.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn locked(&self) -> MutexGuard<'_, HashSet<SocketAddr>> {
        // The set is whole between any two statements of a critical section.
        self.unwell.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.load.counter(self.kind).fetch_sub(1, Ordering::AcqRel);
        if self.kind == Kind::Connection {
            self.load.freed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_holds_until_something_is_given_back() {
        let load = Arc::new(Load::default());
        let first = load.admit(Kind::Request, Some(2)).expect("below the limit");
        let _second = load.admit(Kind::Request, Some(2)).expect("below the limit");
        assert!(load.admit(Kind::Request, Some(2)).is_none(), "at the limit");
        assert!(load.admit(Kind::Connection, Some(1)).is_some(), "counted apart");
        drop(first);
        assert!(load.admit(Kind::Request, Some(2)).is_some(), "given back");
        assert!(load.admit(Kind::Pending, Some(0)).is_none(), "none at all");
        assert!(load.admit(Kind::Request, None).is_some(), "no limit");
    }

    #[test]
    fn a_client_s_endpoint_is_remembered_until_the_timeout_and_of_so_many_clients() {
        let (load, at) = (Load::default(), Duration::from_secs);
        let client = |number: u32| IpAddr::from((0xC612_0000 + number).to_be_bytes());
        let endpoint = |port: u16| SocketAddr::from(([198, 18, 128, 1], port));
        load.client_went(client(0), 0, endpoint(1), at(1));
        load.client_went(client(0), 7, endpoint(2), at(2));
        assert_eq!(load.endpoint_of(client(0), 0, at(10), at(10)), Some(endpoint(1)));
        assert_eq!(load.endpoint_of(client(0), 7, at(10), at(10)), Some(endpoint(2)), "each subset by itself");
        assert_eq!(load.endpoint_of(client(0), 0, at(10), at(11)), None, "too long ago");
        for number in 1..=CLIENTS_MAX as u32 {
            load.client_went(client(number), 0, endpoint(3), at(20));
        }
        assert_eq!(load.clients.lock().expect("whole").len(), CLIENTS_MAX);
        assert_eq!(load.endpoint_of(client(0), 0, at(100), at(20)), None, "the oldest is forgotten");
        assert_eq!(load.endpoint_of(client(1), 0, at(100), at(20)), Some(endpoint(3)));
    }
}
