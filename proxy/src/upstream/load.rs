//! What is open towards a Service port, counted over all workers, and the limits on it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::HashMap;
use tokio::sync::Notify;

/// The counters of every cluster, by name. They outlive tables, so that a change of routes forgets nothing.
#[derive(Debug, Default)]
pub(crate) struct Loads {
    by_cluster: Mutex<HashMap<Arc<str>, Arc<Load>>>,
}

/// What is open towards one cluster.
#[derive(Debug, Default)]
pub(crate) struct Load {
    requests: AtomicU32,
    connections: AtomicU32,
    pending: AtomicU32,
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
}
