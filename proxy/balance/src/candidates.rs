//! The candidates of a cluster: the endpoints that requests may go to, by subset and priority. They are rebuilt when
//! the cluster, an endpoint's health or an ejection changes, so that a [pick](Candidates::pick) checks none of these.

use std::cell::{Cell, OnceCell};
use std::net::SocketAddr;

use hashbrown::HashMap;
use weft_config::Balancer;

use crate::hash::{self, Table};
use crate::priority::{self, Priority};
use crate::slow_start::SlowStart;

/// How the requests of a cluster are divided among its endpoints.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// The load balancing algorithm.
    pub balancer: Balancer,
    /// How the share of new endpoints grows. `None`: they get their whole share at once.
    pub slow_start: Option<SlowStart>,
    /// Panic threshold: below this percentage of healthy candidates, health is ignored. 0: never.
    pub panic_percent: u32,
    /// Whether requests may have a session.
    pub has_sessions: bool,
}

/// The endpoints of a cluster by subset and priority, as positions in its list of endpoints.
#[derive(Clone, Debug, Default)]
pub struct Members {
    /// Length of the prefix of the endpoints for requests without a subset.
    pub usable: usize,
    /// Positions of each subset's members.
    pub subsets: HashMap<String, Vec<usize>>,
    /// Priority of each endpoint for this proxy: 0 own node, 1 own zone, 2 elsewhere. Empty: not configured, or node
    /// and zone are unknown.
    pub priorities: Box<[u8]>,
}

/// Endpoints that requests may go to, by subset and priority.
#[derive(Default)]
pub struct Candidates {
    pub(crate) settings: Settings,
    /// For requests without a subset.
    all: Vec<PriorityList>,
    subsets: HashMap<String, Vec<PriorityList>>,
    /// Position of the last round-robin pick.
    pub(crate) round_robin: Cell<usize>,
}

/// The candidates of one priority: on the proxy's node, in its zone, or elsewhere.
pub(crate) struct PriorityList {
    /// Share of the requests that go to this priority.
    pub(crate) percent: u32,
    /// Positions in the cluster's list of endpoints.
    pub(crate) members: Vec<usize>,
    /// Maps keys to positions in `members`, for balancers that hash. Built by the first request, because a pod sends
    /// nothing to most subsets of most Services.
    pub(crate) table: OnceCell<Table>,
    /// Maps session ids to positions in the cluster's list of endpoints.
    pub(crate) sessions: HashMap<u64, usize>,
}

// === impl Members ===

impl Members {
    /// Whether the subset, or the cluster, has endpoints.
    #[inline]
    pub fn has_any(&self, subset: Option<&str>) -> bool {
        match subset {
            None => self.usable > 0,
            Some(name) => self.subsets.get(name).is_some_and(|members| !members.is_empty()),
        }
    }

    /// Positions by priority, without priorities that have none.
    fn by_priority(&self, positions: impl Iterator<Item = usize>) -> Vec<Vec<usize>> {
        let mut priorities: [Vec<usize>; 3] = Default::default();
        for at in positions {
            priorities[usize::from(self.priorities.get(at).copied().unwrap_or(2)).min(2)].push(at);
        }
        priorities.into_iter().filter(|members| !members.is_empty()).collect()
    }
}

// === impl Candidates ===

impl Candidates {
    /// Rebuilds the candidates. `address` and `is_healthy` describe the endpoint at a position.
    pub fn rebuild(
        &mut self,
        settings: Settings,
        members: &Members,
        address: impl Fn(usize) -> SocketAddr,
        is_healthy: impl Fn(usize) -> bool,
    ) {
        let list = |mut positions: Vec<usize>, share: priority::Share| {
            positions.retain(|at| share.panic || is_healthy(*at));
            let session = |at: &usize| (hash::session(address(*at)), *at);
            PriorityList {
                percent: share.percent,
                table: OnceCell::new(),
                sessions: if settings.has_sessions { positions.iter().map(session).collect() } else { HashMap::new() },
                members: positions,
            }
        };
        let lists = |priorities: Vec<Vec<usize>>| -> Vec<PriorityList> {
            let healthy = |positions: &[usize]| positions.iter().filter(|at| is_healthy(**at)).count();
            let count = |positions: &Vec<usize>| Priority { healthy: healthy(positions), total: positions.len() };
            let counts: Vec<Priority> = priorities.iter().map(count).collect();
            let shares = priority::divide(&counts, settings.panic_percent);
            priorities.into_iter().zip(shares).map(|(positions, share)| list(positions, share)).collect()
        };
        self.settings = settings;
        self.all = lists(members.by_priority(0..members.usable));
        self.subsets = (members.subsets.iter())
            .map(|(name, positions)| (name.clone(), lists(members.by_priority(positions.iter().copied()))))
            .collect();
    }

    /// How many endpoints a request may go to.
    pub fn count(&self, subset: Option<&str>) -> usize {
        self.of(subset).iter().map(|list| list.members.len()).sum()
    }

    /// The candidates of a subset, by priority. Empty if the subset has no members or is not declared.
    #[inline]
    pub(crate) fn of(&self, subset: Option<&str>) -> &[PriorityList] {
        match subset {
            None => &self.all,
            Some(name) => self.subsets.get(name).map(Vec::as_slice).unwrap_or_default(),
        }
    }
}
