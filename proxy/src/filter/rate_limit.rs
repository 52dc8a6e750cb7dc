//! Rate limiting with a token bucket for all requests of a rule, or one for each key. Pure: the time since the
//! process started is passed in.
//!
//! The algorithm is GCRA (generic cell rate algorithm): a bucket is one number, the time at which it will be full
//! again. Taking a token moves that time by the interval of one token. So a full bucket need not be stored, and
//! workers share a bucket without a lock.

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

use crate::cookie::cookie;
use crate::query::query_value;
use crate::value::{CompileError, parse_name};

/// Distinct keys tracked per rule, 16 bytes and some each (about 300 KB). At the limit, full buckets are evicted,
/// which changes nothing for their keys. If none is full, new keys share one bucket, so that inventing keys does not
/// evade the limit.
const KEYS_MAX: usize = 10_000;

/// How often full buckets are evicted at the limit.
const SWEEP: Duration = Duration::from_secs(1);

/// Rules whose buckets are kept over configuration changes. Beyond, buckets of rules in no table are removed.
const LIMITERS_MAX: usize = 1024;

/// The headers of draft-ietf-httpapi-ratelimit-headers-06. Later drafts merge them into one, which few clients read.
const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// The rate limit of one rule.
#[derive(Debug)]
pub(crate) struct RateLimit {
    rate: Rate,
    key: Option<Key>,
    /// The rule's name and settings. Rules that are equal in these share their buckets, whatever their ports and
    /// tables.
    name: String,
    limiter: OnceLock<Arc<Limiter>>,
}

/// The result of taking a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RateLimitStatus {
    pub(crate) admitted: bool,
    limit: u32,
    remaining: u32,
    /// Time until the bucket is full.
    reset: Duration,
    /// Time until there is a token, if there was none.
    wait: Duration,
}

/// The buckets of all rules. They outlive tables, so that a configuration change refills no bucket.
#[derive(Debug, Default)]
pub(crate) struct Limiters {
    by_name: Mutex<HashMap<String, Arc<Limiter>>>,
}

/// The buckets of one rule.
#[derive(Debug, Default)]
struct Limiter {
    /// For all requests if the rule has no key, and for keys beyond [`KEYS_MAX`].
    shared: AtomicU64,
    keyed: Mutex<KeyedBuckets>,
    /// Randomly seeded, so that a client cannot choose keys that collide.
    hasher: RandomState,
}

/// The time at which each bucket is full, in nanoseconds, by the hash of its key. Keys may be long.
#[derive(Debug, Default)]
struct KeyedBuckets {
    full_at: HashMap<u64, u64>,
    swept_at: u64,
}

/// What identifies a bucket.
#[derive(Debug)]
enum Key {
    Header(HeaderName),
    Query(String),
    Cookie(String),
    SourceAddress,
}

/// Capacity of a bucket, and the interval of one token.
#[derive(Clone, Copy, Debug)]
struct Rate {
    burst: u32,
    token_ns: u64,
}

// === impl RateLimit ===

impl RateLimit {
    pub(crate) fn compile(rule_name: &str, limit: wire::RateLimit) -> Result<Self, CompileError> {
        let name = format!("{rule_name} {limit:?}");
        let wire::RateLimit { requests, per_ms, burst, key } = limit;
        let token_ns = per_ms.saturating_mul(1_000_000).checked_div(requests.into()).unwrap_or(0);
        if token_ns == 0 || burst == 0 {
            return Err(CompileError::Filter(format!(
                "a rate limit of {requests} requests in {per_ms} ms with a burst of {burst}: each must be above 0, and \
                 the rate at most one request in a nanosecond"
            )));
        }
        let key = key.map(|key| {
            Ok::<_, CompileError>(match key {
                wire::RateLimitKey::Header(name) => Key::Header(parse_name(&name)?),
                wire::RateLimitKey::Query(name) => Key::Query(name),
                wire::RateLimitKey::Cookie(name) => Key::Cookie(name),
                wire::RateLimitKey::SourceAddress => Key::SourceAddress,
            })
        });
        Ok(Self { rate: Rate { burst, token_ns }, key: key.transpose()?, name, limiter: OnceLock::new() })
    }

    /// The header with the key, if the key is a header.
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
    ) -> RateLimitStatus {
        let now = nanos(now);
        let limiter = self.limiter.get_or_init(|| limiters.of(&self.name, now));
        let Some(key) = &self.key else { return limiter.take(self.rate, now) };
        // Requests without the key share one bucket, which no key has.
        let hash = match key {
            Key::Header(name) => limiter.hasher.hash_one(headers.get(name).map(HeaderValue::as_bytes)),
            Key::Query(name) => limiter.hasher.hash_one(query.and_then(|query| query_value(query, name))),
            Key::Cookie(name) => limiter.hasher.hash_one(cookie(headers, name)),
            Key::SourceAddress => limiter.hasher.hash_one(peer.to_canonical()),
        };
        limiter.take_keyed(self.rate, hash, now)
    }
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
    fn take(&self, rate: Rate, now: u64) -> RateLimitStatus {
        let mut full_at = self.shared.load(Ordering::Relaxed);
        loop {
            let (next, status) = rate.take(full_at, now);
            match self.shared.compare_exchange_weak(full_at, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return status,
                Err(moved) => full_at = moved,
            }
        }
    }

    fn take_keyed(&self, rate: Rate, key_hash: u64, now: u64) -> RateLimitStatus {
        let mut keyed = self.keyed.lock().unwrap_or_else(PoisonError::into_inner);
        if !keyed.has_room_for(key_hash, now) {
            drop(keyed);
            return self.take(rate, now);
        }
        let full_at = keyed.full_at.entry(key_hash).or_default();
        let (next, status) = rate.take(*full_at, now);
        *full_at = next;
        status
    }

    fn is_full(&self, now: u64) -> bool {
        let keyed = self.keyed.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.load(Ordering::Relaxed) <= now && keyed.full_at.values().all(|full_at| *full_at <= now)
    }
}

impl KeyedBuckets {
    fn has_room_for(&mut self, key_hash: u64, now: u64) -> bool {
        if self.full_at.len() < KEYS_MAX || self.full_at.contains_key(&key_hash) {
            return true;
        }
        if now.saturating_sub(self.swept_at) >= nanos(SWEEP) {
            self.swept_at = now;
            self.full_at.retain(|_, full_at| *full_at > now);
        }
        self.full_at.len() < KEYS_MAX
    }
}

// === impl Rate ===

impl Rate {
    /// Takes a token, if there is one, from a bucket that is full at `full_at`. Returns when it is full afterwards.
    fn take(self, full_at: u64, now: u64) -> (u64, RateLimitStatus) {
        let capacity_ns = self.token_ns.saturating_mul(self.burst.into());
        let missing_ns = full_at.saturating_sub(now);
        let after_ns = missing_ns.saturating_add(self.token_ns);
        let admitted = after_ns <= capacity_ns;
        let missing_ns = if admitted { after_ns } else { missing_ns };
        let remaining = capacity_ns.saturating_sub(missing_ns) / self.token_ns;
        let status = RateLimitStatus {
            admitted,
            limit: self.burst,
            remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
            reset: Duration::from_nanos(missing_ns),
            wait: Duration::from_nanos(after_ns.saturating_sub(capacity_ns)),
        };
        (now.saturating_add(missing_ns), status)
    }
}

// === impl RateLimitStatus ===

impl RateLimitStatus {
    /// Adds the rate limit headers to a response. Those of a backend take precedence.
    pub(crate) fn add_headers(self, headers: &mut HeaderMap) {
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

    /// Takes a token at each of these milliseconds; returns whether each was admitted, and the tokens that remained.
    fn take_at(limit: &RateLimit, limiters: &Limiters, times: &[u64]) -> Vec<(bool, u32)> {
        let take = |ms: &u64| {
            let status =
                limit.take(limiters, &HeaderMap::new(), None, IpAddr::from([10, 0, 0, 1]), Duration::from_millis(*ms));
            (status.admitted, status.remaining)
        };
        times.iter().map(take).collect()
    }

    #[test]
    fn tokens_are_refilled_at_the_rate() {
        let limit = limit(serde_json::json!({"requests": 2, "perMs": 1000, "burst": 3}));
        let limiters = Limiters::default();
        let statuses = take_at(&limit, &limiters, &[1000, 1000, 1000, 1000, 1499, 1500, 1501, 2000, 10_000]);
        let expected = [
            (true, 2),
            (true, 1),
            (true, 0),
            (false, 0),
            (false, 0),
            (true, 0),
            (false, 0),
            (true, 0),
            (true, 2), // full again, and not more than that
        ];
        assert_eq!(statuses, expected);
    }

    #[test]
    fn long_term_rate_is_exact() {
        let limit = limit(serde_json::json!({"requests": 7, "perMs": 1000, "burst": 5}));
        let times: Vec<u64> = (0..60_000).step_by(3).collect();
        let admitted = take_at(&limit, &Limiters::default(), &times).iter().filter(|(admitted, _)| *admitted).count();
        assert!((5 + 7 * 60 - 1..=5 + 7 * 60).contains(&admitted), "{admitted} passed in a minute");
    }

    #[test]
    fn responses_have_ratelimit_headers() {
        let limit = limit(serde_json::json!({"requests": 1, "perMs": 10_000, "burst": 2}));
        let limiters = Limiters::default();
        let mut sent = Vec::new();
        for ms in [0, 0, 2_500] {
            let status =
                limit.take(&limiters, &HeaderMap::new(), None, IpAddr::from([10, 0, 0, 1]), Duration::from_millis(ms));
            let mut headers = HeaderMap::new();
            status.add_headers(&mut headers);
            let field = |name: &str| headers.get(name).map_or("", |value| value.to_str().expect("text")).to_owned();
            sent.push(["ratelimit-limit", "ratelimit-remaining", "ratelimit-reset", "retry-after"].map(field));
        }
        assert_eq!(sent[0], ["2", "1", "10", ""]);
        assert_eq!(sent[1], ["2", "0", "20", ""]);
        assert_eq!(sent[2], ["2", "0", "18", "8"], "rounded up, so that a client that waits so long is not early");
        let mut own = HeaderMap::from_iter([(REMAINING, HeaderValue::from_static("77"))]);
        limit
            .take(&limiters, &HeaderMap::new(), None, IpAddr::from([10, 0, 0, 1]), Duration::from_secs(60))
            .add_headers(&mut own);
        assert_eq!(
            (&own["ratelimit-remaining"], own.len()),
            (&HeaderValue::from_static("77"), 1),
            "the header of the backend stays"
        );
    }

    #[test]
    fn keys_have_buckets_of_their_own() {
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
                let status = limit.take(&limiters, &headers, query, peer, Duration::from_secs(1));
                assert_eq!(status.admitted, expected, "{key}: request {number}");
            }
        }
    }

    #[test]
    fn inventing_keys_does_not_evade_the_limit() {
        let rate = Rate { burst: 1, token_ns: nanos(Duration::from_secs(60)) };
        let limiter = Limiter::default();
        let now = nanos(Duration::from_secs(10));
        let admitted = |key_hashes: std::ops::Range<u64>, now: u64| {
            key_hashes.filter(|key_hash| limiter.take_keyed(rate, *key_hash, now).admitted).count()
        };
        assert_eq!(admitted(0..KEYS_MAX as u64, now), KEYS_MAX);
        assert_eq!(admitted(1_000_000..1_001_000, now), 1, "further keys share one bucket");
        assert_eq!(admitted(0..100, now), 0, "the first keys are still tracked");
        assert_eq!(limiter.keyed.lock().expect("whole").full_at.len(), KEYS_MAX);
        let later = now + nanos(Duration::from_secs(61));
        assert_eq!(admitted(2_000_000..2_000_100, later), 100, "full buckets are evicted");
        assert!(limiter.keyed.lock().expect("whole").full_at.len() <= 100);
    }

    #[test]
    fn new_table_refills_no_bucket() {
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
        assert_eq!(take_at(&limit(json()), &limiters, &[3]), [(false, 0)], "a bucket in use is not evicted");
    }

    #[test]
    fn workers_share_a_bucket() {
        let rate = Rate { burst: 1000, token_ns: nanos(Duration::from_secs(1)) };
        let limiter = Limiter::default();
        let admitted: usize = std::thread::scope(|scope| {
            let workers: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..1000).filter(|_| limiter.take(rate, 5).admitted).count())).collect();
            workers.into_iter().map(|worker| worker.join().expect("ends")).sum()
        });
        assert_eq!(admitted, 1000);
    }

    #[test]
    fn invalid_rates_are_refused() {
        for (requests, per_ms, burst) in [(0, 1000, 1), (1, 0, 1), (1, 1000, 0), (u32::MAX, 1, 1)] {
            let wire = wire::RateLimit { requests, per_ms, burst, key: None };
            assert!(matches!(RateLimit::compile("o", wire), Err(CompileError::Filter(_))));
        }
    }
}
