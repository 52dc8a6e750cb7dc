//! Picks the endpoint of a request: by its session, else by priority, and then by hash key or balancer.

use std::net::SocketAddr;
use std::time::Duration;

use weft_config::Balancer;

use crate::candidates::{Candidates, PriorityList};
use crate::endpoint::EndpointView;
use crate::hash::Table;
use crate::priority;
use crate::rng::{Rng, pick_two};
use crate::slow_start::SlowStart;

/// What a request asks of a pick.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// Only members of this subset may be picked.
    pub subset: Option<&'a str>,
    /// Endpoints that the request has tried. One of these is picked only if there is no other.
    pub tried: &'a [SocketAddr],
    /// The hash of its key, for balancers that hash. Without one they pick any endpoint.
    pub key: Option<u64>,
    /// The id of its session, see [`hash::session`](crate::hash::session).
    pub session: Option<u64>,
}

impl Candidates {
    /// Returns the position of the endpoint for a request. `endpoint` returns the one at a position. `None`: the subset
    /// or the cluster has no candidates.
    pub fn pick<'e>(
        &self,
        request: &Request<'_>,
        endpoint: impl Fn(usize) -> EndpointView<'e>,
        rng: &mut Rng,
        now: Duration,
    ) -> Option<usize> {
        let lists = self.of(request.subset);
        let untried = |at: usize| !request.tried.contains(&endpoint(at).address);
        if let Some(session) = request.session
            && let Some(own) = lists.iter().find_map(|list| list.sessions.get(&session).copied())
            && untried(own)
        {
            return Some(own);
        }
        let list = choose_list(lists, request.key, untried, rng)?;
        if let Some(build) = hash_table(self.settings.balancer) {
            let addresses = || list.members.iter().map(|at| endpoint(*at).address).collect::<Vec<_>>();
            let table = list.table.get_or_init(|| build(&addresses()));
            let key = request.key.unwrap_or_else(|| rng.next_u64());
            return table.find(key, |position| untried(list.members[position])).map(|found| list.members[found]);
        }
        let count = list.members.len();
        let view = |position: usize| endpoint(list.members[position]);
        let mut first = self.choose(count, view, rng, now);
        if let Some(slow_start) = &self.settings.slow_start {
            first = SlowStart::offer(first, count, |position| view(position).weight(slow_start, now), rng);
        }
        // An endpoint that this request has tried is used only if all were. Searching from the pick on spreads the
        // load evenly.
        let found = (0..count).map(|step| (first + step) % count).find(|position| untried(list.members[*position]));
        Some(list.members[found.unwrap_or(first)])
    }

    /// Picks a position below `count` by a balancer that does not hash. `view`: the endpoint at a position.
    #[inline]
    fn choose<'e>(
        &self,
        count: usize,
        view: impl Fn(usize) -> EndpointView<'e>,
        rng: &mut Rng,
        now: Duration,
    ) -> usize {
        if count == 1 {
            return 0;
        }
        match self.settings.balancer {
            Balancer::PeakEwma => cheaper(count, |position| view(position).cost(now), rng),
            Balancer::LeastRequest => cheaper(count, |position| f64::from(view(position).in_flight), rng),
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
}

/// The list of the priority that a request goes to, or of another one if it has tried all of that. `None`: there is no
/// candidate.
#[inline]
fn choose_list<'a>(
    lists: &'a [PriorityList],
    key: Option<u64>,
    untried: impl Fn(usize) -> bool,
    rng: &mut Rng,
) -> Option<&'a PriorityList> {
    let chosen = match lists {
        [] => return None,
        [only] => only,
        several => {
            let percentile = key.map_or_else(|| rng.below(100), |key| (key % 100) as u32);
            &several[priority::choose(several.iter().map(|list| list.percent), percentile)]
        }
    };
    let has_untried = |list: &PriorityList| list.members.iter().any(|at| untried(*at));
    let list = if has_untried(chosen) { chosen } else { lists.iter().find(|list| has_untried(list)).unwrap_or(chosen) };
    (!list.members.is_empty()).then_some(list)
}

/// How a balancer that hashes makes its table. `None`: the balancer does not hash.
#[inline]
fn hash_table(balancer: Balancer) -> Option<fn(&[SocketAddr]) -> Table> {
    match balancer {
        Balancer::RingHash => Some(Table::ring),
        Balancer::Maglev => Some(Table::maglev),
        Balancer::PeakEwma | Balancer::LeastRequest | Balancer::RoundRobin | Balancer::Random => None,
    }
}

/// The cheaper of two random positions below `count`, which is at least 2.
#[inline]
fn cheaper(count: usize, cost: impl Fn(usize) -> f64, rng: &mut Rng) -> usize {
    let (first, second) = pick_two(rng, count);
    if cost(second) < cost(first) { second } else { first }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::candidates::{Members, Settings};
    use crate::ewma::PeakEwma;
    use crate::hash;

    /// A cluster whose endpoints have the addresses 198.18.128.1:80 and so on.
    struct Cluster {
        settings: Settings,
        members: Members,
        endpoints: Vec<Endpoint>,
        candidates: Candidates,
        rng: Rng,
    }

    struct Endpoint {
        address: SocketAddr,
        in_flight: Cell<u32>,
        ewma: Cell<PeakEwma>,
        joined: Cell<Option<Duration>>,
        healthy: Cell<bool>,
    }

    impl Cluster {
        fn new(settings: Settings, subsets: &[(&str, &[usize])], count: usize) -> Self {
            let endpoint = |number: usize| Endpoint {
                address: SocketAddr::from(([198, 18, 128, number as u8], 80)),
                in_flight: Cell::new(0),
                ewma: Cell::new(PeakEwma::new(Duration::ZERO)),
                joined: Cell::new(None),
                healthy: Cell::new(true),
            };
            let subsets = subsets.iter().map(|(name, members)| ((*name).to_owned(), members.to_vec())).collect();
            let members = Members { usable: count, subsets, priorities: Box::default() };
            let (endpoints, candidates) = ((1..=count).map(endpoint).collect(), Candidates::default());
            let mut cluster = Self { settings, members, endpoints, candidates, rng: Rng::new(1) };
            cluster.rebuild();
            cluster
        }

        fn with_balancer(balancer: Balancer, count: usize) -> Self {
            Self::new(Settings { balancer, panic_percent: 50, ..Settings::default() }, &[], count)
        }

        fn rebuild(&mut self) {
            let Self { settings, members, endpoints, candidates, .. } = self;
            candidates.rebuild(*settings, members, |at| endpoints[at].address, |at| endpoints[at].healthy.get());
        }

        fn set_healthy(&mut self, positions: impl IntoIterator<Item = usize>, healthy: bool) {
            positions.into_iter().for_each(|at| self.endpoints[at].healthy.set(healthy));
            self.rebuild();
        }

        fn pick(&mut self, request: Request<'_>, now: Duration) -> Option<usize> {
            let Self { endpoints, candidates, rng, .. } = self;
            let view = |at: usize| {
                let Endpoint { address, in_flight, ewma, joined, .. } = &endpoints[at];
                EndpointView { address: *address, in_flight: in_flight.get(), ewma, joined }
            };
            candidates.pick(&request, view, rng, now)
        }

        fn addresses(&self, positions: &[usize]) -> Vec<SocketAddr> {
            positions.iter().map(|at| self.endpoints[*at].address).collect()
        }

        /// Positions of the endpoints that requests go to.
        fn picked(&mut self, subset: Option<&str>) -> Vec<usize> {
            let request = Request { subset, ..Request::default() };
            let mut seen: Vec<usize> = (0..400).filter_map(|_| self.pick(request, Duration::ZERO)).collect();
            seen.sort_unstable();
            seen.dedup();
            seen
        }
    }

    #[test]
    fn requests_to_a_subset_go_to_its_members_only() {
        let settings = Settings { balancer: Balancer::Random, panic_percent: 50, ..Settings::default() };
        let mut cluster = Cluster::new(settings, &[("a", &[0, 1]), ("b", &[])], 3);
        let mut pick = |subset, tried: &[usize]| {
            let tried = cluster.addresses(tried);
            cluster.pick(Request { subset: Some(subset), tried: &tried, ..Request::default() }, Duration::ZERO)
        };
        for _ in 0..100 {
            assert_ne!(pick("a", &[]), Some(2));
            assert_eq!(pick("a", &[0]), Some(1), "the one that was not tried");
        }
        assert!(pick("a", &[0, 1]).is_some(), "all were tried: any of them");
        assert_eq!(pick("b", &[]), None, "the subset has no members");
        assert_eq!(pick("c", &[]), None, "the subset is not declared");
    }

    #[test]
    fn round_robin_picks_all_endpoints_equally() {
        let mut cluster = Cluster::with_balancer(Balancer::RoundRobin, 3);
        let mut seen = [0; 3];
        for _ in 0..30 {
            seen[cluster.pick(Request::default(), Duration::ZERO).expect("an endpoint")] += 1;
        }
        assert_eq!(seen, [10; 3]);
    }

    #[test]
    fn peak_ewma_avoids_a_slow_endpoint() {
        let mut cluster = Cluster::with_balancer(Balancer::PeakEwma, 3);
        let now = Duration::from_secs(1);
        for (at, endpoint) in cluster.endpoints.iter().enumerate() {
            let mut ewma = endpoint.ewma.get();
            ewma.observe(Duration::from_millis(if at == 0 { 500 } else { 5 }), now);
            endpoint.ewma.set(ewma);
        }
        let picks = (0..300).filter(|_| cluster.pick(Request::default(), now) == Some(0));
        assert_eq!(picks.count(), 0, "of two endpoints the slow one is never picked");
    }

    #[test]
    fn least_request_avoids_a_busy_endpoint() {
        let mut cluster = Cluster::with_balancer(Balancer::LeastRequest, 3);
        cluster.endpoints[1].in_flight.set(2);
        assert_eq!(cluster.picked(None), [0, 2], "of two endpoints the busy one is never picked");
    }

    #[test]
    fn panic_threshold_applies_to_each_subset() {
        let settings = Settings { balancer: Balancer::Random, panic_percent: 50, ..Settings::default() };
        let mut alone = Cluster::new(settings, &[("a", &[0])], 3);
        alone.set_healthy([0], false);
        assert_eq!(alone.picked(None), [1, 2]);
        assert_eq!(alone.picked(Some("a")), [0], "the only member, although unhealthy");
        assert_eq!([None, Some("a"), Some("b")].map(|subset| alone.candidates.count(subset)), [2, 1, 0]);
        let mut strict = Cluster::new(Settings { panic_percent: 0, ..settings }, &[("a", &[0])], 3);
        strict.set_healthy([0], false);
        assert!(strict.picked(Some("a")).is_empty(), "no healthy member, and the threshold is off");
    }

    #[test]
    fn hash_keys_leave_an_unhealthy_endpoint_and_return() {
        for balancer in [Balancer::RingHash, Balancer::Maglev] {
            let mut cluster = Cluster::with_balancer(balancer, 5);
            let keys: Vec<u64> = (0..200u64).map(|user| hash::hash(&user.to_le_bytes())).collect();
            let pick = |cluster: &mut Cluster, key: u64, tried: &[usize]| {
                let tried = cluster.addresses(tried);
                let request = Request { key: Some(key), tried: &tried, ..Request::default() };
                cluster.pick(request, Duration::ZERO).expect("an endpoint")
            };
            let all =
                |cluster: &mut Cluster| -> Vec<usize> { keys.iter().map(|key| pick(cluster, *key, &[])).collect() };
            let before = all(&mut cluster);
            assert_eq!(before, all(&mut cluster), "{balancer:?}");
            cluster.set_healthy([2], false);
            let mut moved = 0;
            for (key, before) in keys.iter().zip(&before) {
                let now = pick(&mut cluster, *key, &[]);
                assert_ne!(now, 2, "{balancer:?}");
                moved += u32::from(*before != 2 && now != *before);
                let next = pick(&mut cluster, *key, &[now]);
                assert_ne!(next, now, "{balancer:?}: a retry goes to another endpoint");
            }
            assert!(moved <= if balancer == Balancer::RingHash { 0 } else { 40 }, "{balancer:?}: {moved} of 200 moved");
            cluster.set_healthy([2], true);
            assert_eq!(before, all(&mut cluster), "{balancer:?}: healthy again, and its keys return");
            assert_eq!(cluster.picked(None).len(), 5, "{balancer:?}: without a key any endpoint");
        }
    }

    #[test]
    fn sessions_keep_their_endpoint_until_it_is_unhealthy() {
        let settings = Settings { has_sessions: true, panic_percent: 50, ..Settings::default() };
        let mut cluster = Cluster::new(settings, &[], 4);
        let tried = cluster.addresses(&[3]);
        let session = Request { session: Some(hash::session(tried[0])), ..Request::default() };
        assert!((0..100).all(|_| cluster.pick(session, Duration::ZERO) == Some(3)));
        let again = cluster.pick(Request { tried: &tried, ..session }, Duration::ZERO);
        assert_ne!(again, Some(3), "a retry goes to another endpoint");
        cluster.set_healthy([3], false);
        assert_ne!(cluster.pick(session, Duration::ZERO), Some(3));
    }

    #[test]
    fn slow_start_grows_the_share_of_a_new_endpoint() {
        let slow = weft_config::SlowStart { window_ms: 10_000, min_percent: 10, aggression_permille: 1_000 };
        let slow_start = Some(SlowStart::compile(&slow));
        let settings = Settings { balancer: Balancer::RoundRobin, slow_start, ..Settings::default() };
        let mut cluster = Cluster::new(settings, &[], 3);
        cluster.endpoints[2].joined.set(Some(Duration::ZERO));
        for (second, expected) in [(0, 100), (5, 500), (8, 800), (10, 1_000), (11, 1_000)] {
            let now = Duration::from_secs(second);
            let count = (0..3_000).filter(|_| cluster.pick(Request::default(), now) == Some(2)).count();
            assert!(count.abs_diff(expected) <= 60, "{count} of 3000 after {second} s, expected {expected}");
        }
        assert_eq!(cluster.endpoints[2].joined.get(), None, "it is over");
    }

    #[test]
    fn requests_stay_in_the_local_zone_until_too_few_are_healthy() {
        let settings = Settings { balancer: Balancer::Random, panic_percent: 50, ..Settings::default() };
        let mut cluster = Cluster::new(settings, &[], 20);
        cluster.members.priorities = (0..20).map(|at| if at < 10 { 1 } else { 2 }).collect();
        cluster.rebuild();
        cluster.rng = Rng::new(3);
        let local_percent = |cluster: &mut Cluster, tried: &[SocketAddr]| {
            let request = Request { tried, ..Request::default() };
            (0..2_000).filter(|_| cluster.pick(request, Duration::ZERO).expect("an endpoint") < 10).count() / 20
        };
        assert_eq!(local_percent(&mut cluster, &[]), 100);
        cluster.set_healthy(0..2, false);
        assert_eq!(local_percent(&mut cluster, &[]), 100, "8 of 10 healthy take all requests");
        cluster.set_healthy(2..5, false);
        let percent = local_percent(&mut cluster, &[]);
        assert!((66..=74).contains(&percent), "5 of 10 healthy take 70 %: {percent}");
        let tried = cluster.addresses(&[5, 6, 7, 8, 9]);
        assert_eq!(local_percent(&mut cluster, &tried), 0, "all healthy local endpoints were tried");
        cluster.set_healthy(5..10, false);
        assert_eq!(local_percent(&mut cluster, &[]), 0, "no local endpoint is healthy");
    }
}
