//! An index of the matches of a port, so that the cost of a decision depends on the request and not on the number of
//! routes.
//!
//! Each match is in one bucket: that of its exact path, that of its prefix, or the one for matches without a path or
//! with a regular expression. Within a bucket it is listed under the first header that it compares with an exact
//! value, or with the rest. A lookup visits only the buckets and lists that the request's own path and headers lead
//! to; regular expressions are tried one by one.

use hashbrown::HashMap;
use http::HeaderMap;
use http::header::HeaderName;

use crate::matcher::{Match, PathMatch, ValueTest, normalize_value};

/// Up to this number of matches, a linear scan is faster than the index.
const LINEAR_SCAN_MAX: usize = 16;

/// An index of matches by path and header.
#[derive(Debug, Default)]
pub(crate) struct Index {
    exact: HashMap<String, Bucket>,
    /// Without a trailing slash. The empty prefix is in `without_path`.
    prefixes: HashMap<String, Bucket>,
    without_path: Bucket,
}

/// Positions of matches, in order of precedence.
#[derive(Debug, Default)]
struct Bucket {
    by_header: Vec<(HeaderName, HashMap<String, Vec<usize>>)>,
    without_header: Vec<usize>,
}

impl Index {
    /// None: there are so few matches that a scan is faster.
    pub(crate) fn build(matches: &[Match]) -> Option<Self> {
        if matches.len() <= LINEAR_SCAN_MAX {
            return None;
        }
        let mut index = Self::default();
        for (at, condition) in matches.iter().enumerate() {
            let bucket = match &condition.path {
                Some(PathMatch::Exact(path)) => index.exact.entry_ref(path.as_str()).or_default(),
                Some(PathMatch::Prefix(prefix)) if !prefix.is_empty() => {
                    index.prefixes.entry_ref(prefix.as_str()).or_default()
                }
                Some(PathMatch::Prefix(_) | PathMatch::Regex(_)) | None => &mut index.without_path,
            };
            bucket.insert(at, condition);
        }
        Some(index)
    }

    /// The first of all matches for which `matches` is true.
    pub(crate) fn first(&self, path: &str, headers: &HeaderMap, matches: impl Fn(usize) -> bool) -> Option<usize> {
        let mut earliest = Earliest { position: usize::MAX, matches };
        if let Some(bucket) = self.exact.get(path) {
            bucket.search(headers, &mut earliest);
        }
        if !self.prefixes.is_empty() {
            let slashes = path.bytes().enumerate().filter(|(at, byte)| *byte == b'/' && *at > 0).map(|(at, _)| at);
            for end in slashes.chain([path.len()]) {
                if let Some(bucket) = self.prefixes.get(&path[..end]) {
                    bucket.search(headers, &mut earliest);
                }
            }
        }
        self.without_path.search(headers, &mut earliest);
        (earliest.position != usize::MAX).then_some(earliest.position)
    }
}

impl Bucket {
    fn insert(&mut self, at: usize, condition: &Match) {
        let wanted = condition.headers.iter().find_map(|(name, test)| match test {
            ValueTest::Exact(value) => Some((name, value)),
            ValueTest::Regex(_) | ValueTest::Present | ValueTest::Absent => None,
        });
        let Some((name, value)) = wanted else { return self.without_header.push(at) };
        let values = match self.by_header.iter().position(|(known, _)| known == name) {
            Some(known) => &mut self.by_header[known].1,
            None => {
                self.by_header.push((name.clone(), HashMap::new()));
                let last = self.by_header.len() - 1;
                &mut self.by_header[last].1
            }
        };
        values.entry_ref(value.as_str()).or_default().push(at);
    }

    fn search(&self, headers: &HeaderMap, earliest: &mut Earliest<impl Fn(usize) -> bool>) {
        for (name, values) in &self.by_header {
            // The values of a repeated header are looked up one by one.
            for value in headers.get_all(name) {
                let value = normalize_value(name, value.as_bytes());
                if let Some(list) = std::str::from_utf8(&value).ok().and_then(|value| values.get(value)) {
                    earliest.search(list);
                }
            }
        }
        earliest.search(&self.without_header);
    }
}

/// The first match that was found so far.
struct Earliest<T> {
    position: usize,
    matches: T,
}

impl<T: Fn(usize) -> bool> Earliest<T> {
    fn search(&mut self, list: &[usize]) {
        let earlier = list.iter().take_while(|at| **at < self.position);
        if let Some(first) = earlier.copied().find(|at| (self.matches)(*at)) {
            self.position = first;
        }
    }
}
