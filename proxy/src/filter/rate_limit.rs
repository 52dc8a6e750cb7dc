//! A pace that requests of a rule must keep: a token bucket for all of them, or one for each caller. Pure; the time since
//! the process began is passed in.
//!
//! A bucket is kept as one number, the moment at which it will be full again (the "generic cell rate algorithm"): taking a
//! token moves that moment on by what one token takes to come back. So a bucket that is full is as good as one that was never
//! there, and workers share one without a lock.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use hashbrown::HashMap;
use http::HeaderMap;
use http::header::{self, HeaderName, HeaderValue};
use weft_config as wire;

use crate::decide::query_value;
use crate::table::CompileError;
use crate::table::route::parse_name;

/// Callers of one rule that are told apart at once. A caller is kept in 16 bytes and some, so a rule takes some 300 KB at
/// most. Beyond, those whose bucket is full are forgotten, which changes nothing for them; while there is none,
/// newcomers share one bucket, so that inventing callers is no way around the pace.
const CALLERS_MAX: usize = 10_000;

/// How often callers whose bucket is full are looked for while there are too many.
const SWEEP: Duration = Duration::from_secs(1);

/// Rules whose buckets are remembered over changes of configuration before those that no table has any more are forgotten.
const LIMITERS_MAX: usize = 1024;

/// The fields of draft-ietf-httpapi-ratelimit-headers-06; later drafts put them into one that few clients read.
const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// The pace of one rule.
#[derive(Debug)]
pub(crate) struct RateLimit {
    pace: Pace,
    key: Option<Key>,
    /// The rule and its numbers: rules that are the same in this share their buckets, at whatever ports and in whatever
    /// table they are.
    name: String,
    limiter: OnceLock<Arc<Limiter>>,
}

/// What came of taking a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) admitted: bool,
    limit: u32,
    remaining: u32,
    /// Until the bucket is full.
    reset: Duration,
    /// Until there is a token, where there was none.
    wait: Duration,
}

/// The buckets of all rules. They outlive tables, so that a change of routes or endpoints fills none.
#[derive(Debug, Default)]
pub(crate) struct Limiters {
    by_name: Mutex<HashMap<String, Arc<Limiter>>>,
}

/// The buckets of one rule.
#[derive(Debug, Default)]
struct Limiter {
    /// Of those who are not told apart.
    shared: AtomicU64,
    callers: Mutex<Callers>,
    /// Seeded, so that nobody can choose whom to share a bucket with.
    hasher: RandomState,
}

/// When the bucket of each caller is full, in nanoseconds, by the hash of what tells it apart: what that is may be long.
#[derive(Debug, Default)]
struct Callers {
    full_at: HashMap<u64, u64>,
    swept_at: u64,
}

/// What tells callers apart.
#[derive(Debug)]
enum Key {
    Header(HeaderName),
    Query(String),
    Cookie(String),
    SourceAddress,
}

/// How much a bucket holds, and how long one token takes to come back.
#[derive(Clone, Copy, Debug)]
struct Pace {
    burst: u32,
    token_ns: u64,
}

// === impl RateLimit ===

impl RateLimit {
    pub(crate) fn compile(origin: &str, limit: wire::RateLimit) -> Result<Self, CompileError> {
        let name = format!("{origin} {limit:?}");
        let wire::RateLimit { requests, per_ms, burst, key } = limit;
        let token_ns = per_ms.saturating_mul(1_000_000).checked_div(requests.into()).unwrap_or(0);
        if token_ns == 0 || burst == 0 {
            return Err(CompileError::RateLimit { requests, per_ms, burst });
        }
        let key = key.map(|key| {
            Ok::<_, CompileError>(match key {
                wire::RateLimitKey::Header(name) => Key::Header(parse_name(&name)?),
                wire::RateLimitKey::Query(name) => Key::Query(name),
                wire::RateLimitKey::Cookie(name) => Key::Cookie(name),
                wire::RateLimitKey::SourceAddress => Key::SourceAddress,
            })
        });
        Ok(Self { pace: Pace { burst, token_ns }, key: key.transpose()?, name, limiter: OnceLock::new() })
    }

    /// The header that tells callers apart, if one does.
    pub(crate) fn key_header(&self) -> Option<&HeaderName> {
        match &self.key {
            Some(Key::Header(name)) => Some(name),
            Some(Key::Query(_) | Key::Cookie(_) | Key::SourceAddress) | None => None,
        }
    }

    /// Takes a token for a request.
    pub(crate) fn take(
        &self,
        limiters: &Limiters,
        headers: &HeaderMap,
        query: Option<&str>,
        peer: IpAddr,
        now: Duration,
    ) -> Taken {
        let now = nanos(now);
        let limiter = self.limiter.get_or_init(|| limiters.of(&self.name, now));
        let Some(key) = &self.key else { return limiter.take(self.pace, now) };
        // Those without the key are one caller, told apart from all who have it.
        let hash = match key {
            Key::Header(name) => limiter.hasher.hash_one(headers.get(name).map(HeaderValue::as_bytes)),
            Key::Query(name) => limiter.hasher.hash_one(query.and_then(|query| query_value(query, name))),
            Key::Cookie(name) => limiter.hasher.hash_one(cookie(headers, name)),
            Key::SourceAddress => limiter.hasher.hash_one(peer.to_canonical()),
        };
        limiter.take_for(self.pace, hash, now)
    }
}

/// The value of a cookie.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let pairs = headers.get_all(header::COOKIE).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
    pairs.map(<[u8]>::trim_ascii).find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

// === impl Limiters ===

impl Limiters {
    fn of(&self, name: &str, now: u64) -> Arc<Limiter> {
        let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        if by_name.len() >= LIMITERS_MAX {
            by_name.retain(|_, limiter| Arc::strong_count(limiter) > 1 || !limiter.is_full(now));
        }
        if by_name.len() >= LIMITERS_MAX {
            by_name.retain(|_, limiter| Arc::strong_count(limiter) > 1);
        }
        by_name.entry_ref(name).or_default().clone()
    }
}

// === impl Limiter ===

impl Limiter {
    fn take(&self, pace: Pace, now: u64) -> Taken {
        let mut full_at = self.shared.load(Ordering::Relaxed);
        loop {
            let (next, taken) = pace.take(full_at, now);
            match self.shared.compare_exchange_weak(full_at, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return taken,
                Err(moved) => full_at = moved,
            }
        }
    }

    fn take_for(&self, pace: Pace, caller: u64, now: u64) -> Taken {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if !callers.has_room_for(caller, now) {
            drop(callers);
            return self.take(pace, now);
        }
        let full_at = callers.full_at.entry(caller).or_default();
        let (next, taken) = pace.take(*full_at, now);
        *full_at = next;
        taken
    }

    fn is_full(&self, now: u64) -> bool {
        let callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.load(Ordering::Relaxed) <= now && callers.full_at.values().all(|full_at| *full_at <= now)
    }
}

impl Callers {
    fn has_room_for(&mut self, caller: u64, now: u64) -> bool {
        if self.full_at.len() < CALLERS_MAX || self.full_at.contains_key(&caller) {
            return true;
        }
        if now.saturating_sub(self.swept_at) >= nanos(SWEEP) {
            self.swept_at = now;
            self.full_at.retain(|_, full_at| *full_at > now);
        }
        self.full_at.len() < CALLERS_MAX
    }
}

// === impl Pace ===

impl Pace {
    /// Takes a token out of a bucket that is full at `full_at`, if there is one, and says when it is full then.
    fn take(self, full_at: u64, now: u64) -> (u64, Taken) {
        let capacity_ns = self.token_ns.saturating_mul(self.burst.into());
        let missing_ns = full_at.saturating_sub(now);
        let after_ns = missing_ns.saturating_add(self.token_ns);
        let admitted = after_ns <= capacity_ns;
        let missing_ns = if admitted { after_ns } else { missing_ns };
        let remaining = capacity_ns.saturating_sub(missing_ns) / self.token_ns;
        let taken = Taken {
            admitted,
            limit: self.burst,
            remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
            reset: Duration::from_nanos(missing_ns),
            wait: Duration::from_nanos(after_ns.saturating_sub(capacity_ns)),
        };
        (now.saturating_add(missing_ns), taken)
    }
}

// === impl Taken ===

impl Taken {
    /// Tells the client how it stands. What a backend says about a pace of its own is left as it is.
    pub(crate) fn mark(self, headers: &mut HeaderMap) {
        let seconds = |duration: Duration| HeaderValue::from(duration.as_millis().div_ceil(1000) as u64);
        let fields = [(LIMIT, self.limit.into()), (REMAINING, self.remaining.into()), (RESET, seconds(self.reset))];
        if !fields.iter().any(|(name, _)| headers.contains_key(name)) {
            headers.extend(fields);
        }
        if !self.admitted {
            headers.insert(header::RETRY_AFTER, seconds(self.wait.max(Duration::from_millis(1))));
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(limit: serde_json::Value) -> RateLimit {
        RateLimit::compile("MeshRoute/n/r/0", serde_json::from_value(limit).expect("a limit")).expect("compiles")
    }

    /// Takes at these milliseconds and gives back whether each was admitted, and how many remained.
    fn take_at(limit: &RateLimit, limiters: &Limiters, times: &[u64]) -> Vec<(bool, u32)> {
        let take = |ms: &u64| {
            let taken =
                limit.take(limiters, &HeaderMap::new(), None, IpAddr::from([10, 0, 0, 1]), Duration::from_millis(*ms));
            (taken.admitted, taken.remaining)
        };
        times.iter().map(take).collect()
    }

    #[test]
    fn tokens_come_back_at_the_pace() {
        let limit = limit(serde_json::json!({"requests": 2, "perMs": 1000, "burst": 3}));
        let limiters = Limiters::default();
        let taken = take_at(&limit, &limiters, &[1000, 1000, 1000, 1000, 1499, 1500, 1501, 2000, 10_000]);
        let expected = [
            (true, 2),
            (true, 1),
            (true, 0),
            (false, 0),
            (false, 0),
            (true, 0),
            (false, 0),
            (true, 0),
            (true, 2), // as full as ever, and no fuller
        ];
        assert_eq!(taken, expected);
    }

    #[test]
    fn over_a_long_time_exactly_the_pace_passes() {
        let limit = limit(serde_json::json!({"requests": 7, "perMs": 1000, "burst": 5}));
        let times: Vec<u64> = (0..60_000).step_by(3).collect();
        let admitted = take_at(&limit, &Limiters::default(), &times).iter().filter(|(admitted, _)| *admitted).count();
        assert!((5 + 7 * 60 - 1..=5 + 7 * 60).contains(&admitted), "{admitted} passed in a minute");
    }

    #[test]
    fn a_client_is_told_how_it_stands() {
        let limit = limit(serde_json::json!({"requests": 1, "perMs": 10_000, "burst": 2}));
        let limiters = Limiters::default();
        let mut told = Vec::new();
        for ms in [0, 0, 2_500] {
            let taken =
                limit.take(&limiters, &HeaderMap::new(), None, IpAddr::from([10, 0, 0, 1]), Duration::from_millis(ms));
            let mut headers = HeaderMap::new();
            taken.mark(&mut headers);
            let field = |name: &str| headers.get(name).map_or("", |value| value.to_str().expect("text")).to_owned();
            told.push(["ratelimit-limit", "ratelimit-remaining", "ratelimit-reset", "retry-after"].map(field));
        }
        assert_eq!(told[0], ["2", "1", "10", ""]);
        assert_eq!(told[1], ["2", "0", "20", ""]);
        assert_eq!(told[2], ["2", "0", "18", "8"], "rounded up, so that whoever waits so long is not early");
        let mut own = HeaderMap::from_iter([(REMAINING, HeaderValue::from_static("77"))]);
        limit
            .take(&limiters, &HeaderMap::new(), None, IpAddr::from([10, 0, 0, 1]), Duration::from_secs(60))
            .mark(&mut own);
        assert_eq!(
            (&own["ratelimit-remaining"], own.len()),
            (&HeaderValue::from_static("77"), 1),
            "a backend's own word"
        );
    }

    #[test]
    fn callers_are_told_apart() {
        let headers = |name: &'static str, value: &str| {
            HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"))])
        };
        let none = HeaderMap::new;
        let address = |last| IpAddr::from([10, 0, 0, last]);
        type Case = (serde_json::Value, Vec<(HeaderMap, Option<&'static str>, IpAddr, bool)>);
        let cases: [Case; 4] = [
            (
                serde_json::json!({"header": "x-key"}),
                vec![
                    (headers("x-key", "a"), None, address(1), true),
                    (headers("x-key", "b"), None, address(1), true),
                    (headers("x-key", "a"), Some("q"), address(2), false),
                    (none(), None, address(1), true),
                    (none(), None, address(2), false),
                    (headers("x-key", ""), None, address(2), true),
                ],
            ),
            (
                serde_json::json!({"query": "k"}),
                vec![
                    (none(), Some("k=a"), address(1), true),
                    (none(), Some("x=1&k=%61"), address(1), false),
                    (none(), Some("k=b&k=a"), address(1), true),
                    (none(), None, address(1), true),
                    (none(), Some("x=1"), address(1), false),
                ],
            ),
            (
                serde_json::json!({"cookie": "id"}),
                vec![
                    (headers("cookie", "x=1; id=a"), None, address(1), true),
                    (headers("cookie", "id=a; x=2"), None, address(1), false),
                    (headers("cookie", "id=b"), None, address(1), true),
                    (headers("cookie", "idx=a"), None, address(1), true),
                    (none(), None, address(1), false),
                ],
            ),
            (
                serde_json::json!("sourceAddress"),
                vec![
                    (none(), None, address(1), true),
                    (none(), None, address(2), true),
                    (none(), None, address(1), false),
                    (none(), None, "::ffff:10.0.0.2".parse().expect("an address"), false),
                ],
            ),
        ];
        for (key, requests) in cases {
            let limit = limit(serde_json::json!({"requests": 1, "perMs": 60_000, "burst": 1, "key": key}));
            let limiters = Limiters::default();
            for (number, (headers, query, peer, expected)) in requests.into_iter().enumerate() {
                let taken = limit.take(&limiters, &headers, query, peer, Duration::from_secs(1));
                assert_eq!(taken.admitted, expected, "{key}: request {number}");
            }
        }
    }

    #[test]
    fn inventing_callers_is_no_way_around() {
        let pace = Pace { burst: 1, token_ns: nanos(Duration::from_secs(60)) };
        let limiter = Limiter::default();
        let now = nanos(Duration::from_secs(10));
        let admitted = |callers: std::ops::Range<u64>, now: u64| {
            callers.filter(|caller| limiter.take_for(pace, *caller, now).admitted).count()
        };
        assert_eq!(admitted(0..CALLERS_MAX as u64, now), CALLERS_MAX);
        assert_eq!(admitted(1_000_000..1_001_000, now), 1, "those beyond share one bucket");
        assert_eq!(admitted(0..100, now), 0, "those who were first are still known");
        assert_eq!(limiter.callers.lock().expect("whole").full_at.len(), CALLERS_MAX);
        let later = now + nanos(Duration::from_secs(61));
        assert_eq!(admitted(2_000_000..2_000_100, later), 100, "the others' buckets are full, so they are forgotten");
        assert!(limiter.callers.lock().expect("whole").full_at.len() <= 100);
    }

    #[test]
    fn a_new_table_fills_no_bucket() {
        let limiters = Limiters::default();
        let json = || serde_json::json!({"requests": 1, "perMs": 60_000, "burst": 1});
        assert_eq!(take_at(&limit(json()), &limiters, &[0]), [(true, 0)]);
        assert_eq!(take_at(&limit(json()), &limiters, &[1]), [(false, 0)], "the same rule in a newer table");
        let other = RateLimit::compile("MeshRoute/n/r/1", serde_json::from_value(json()).expect("a limit"));
        assert_eq!(take_at(&other.expect("compiles"), &limiters, &[2]), [(true, 0)], "another rule");
        for n in 0..2 * LIMITERS_MAX {
            limiters.of(&n.to_string(), 0);
        }
        assert!(limiters.by_name.lock().expect("whole").len() <= LIMITERS_MAX);
        assert_eq!(take_at(&limit(json()), &limiters, &[3]), [(false, 0)], "what still counts is not forgotten");
    }

    #[test]
    fn workers_share_a_bucket() {
        let pace = Pace { burst: 1000, token_ns: nanos(Duration::from_secs(1)) };
        let limiter = Limiter::default();
        let admitted: usize = std::thread::scope(|scope| {
            let workers: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..1000).filter(|_| limiter.take(pace, 5).admitted).count())).collect();
            workers.into_iter().map(|worker| worker.join().expect("ends")).sum()
        });
        assert_eq!(admitted, 1000);
    }

    #[test]
    fn what_is_no_pace_is_refused() {
        for (requests, per_ms, burst) in [(0, 1000, 1), (1, 0, 1), (1, 1000, 0), (u32::MAX, 1, 1)] {
            let wire = wire::RateLimit { requests, per_ms, burst, key: None };
            assert!(matches!(RateLimit::compile("o", wire), Err(CompileError::RateLimit { .. })));
        }
    }
}
