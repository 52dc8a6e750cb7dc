//! Where to look for the match that takes a request, so that a decision costs what the request is made of and not what the
//! port has of routes.
//!
//! A match is filed once: under the path that it wants whole, under the prefix that it wants, or with those that look at no
//! path or at it through an expression. There it is filed under the first header that it wants to have one value, or with
//! the rest. A request is held against what lies where its own path and headers lead; expressions are tried one by one.

use hashbrown::HashMap;
use http::HeaderMap;
use http::header::HeaderName;

use crate::decide::looked_at;

use super::route::{Match, PathMatch, ValueTest};

/// As many matches are looked through faster than an index leads to one.
const SCANNED_MAX: usize = 16;

/// An index of matches by what they want.
#[derive(Debug, Default)]
pub(crate) struct Index {
    exact: HashMap<String, Shelf>,
    /// Without a slash at their ends; the empty one is among the others.
    prefixes: HashMap<String, Shelf>,
    others: Shelf,
}

/// Positions of matches, in order.
#[derive(Debug, Default)]
struct Shelf {
    by_header: Vec<(HeaderName, HashMap<String, Vec<usize>>)>,
    rest: Vec<usize>,
}

impl Index {
    /// None: there are so few that they are looked through.
    pub(crate) fn of(matches: &[Match]) -> Option<Self> {
        if matches.len() <= SCANNED_MAX {
            return None;
        }
        let mut index = Self::default();
        for (at, condition) in matches.iter().enumerate() {
            let shelf = match &condition.path {
                Some(PathMatch::Exact(path)) => index.exact.entry_ref(path.as_str()).or_default(),
                Some(PathMatch::Prefix(prefix)) if !prefix.is_empty() => {
                    index.prefixes.entry_ref(prefix.as_str()).or_default()
                }
                Some(PathMatch::Prefix(_) | PathMatch::Regex(_)) | None => &mut index.others,
            };
            shelf.file(at, condition);
        }
        Some(index)
    }

    /// The first match that `takes` the request, of all.
    pub(crate) fn first(&self, path: &str, headers: &HeaderMap, takes: impl Fn(usize) -> bool) -> Option<usize> {
        let mut found = Found { best: usize::MAX, takes };
        if let Some(shelf) = self.exact.get(path) {
            shelf.look(headers, &mut found);
        }
        if !self.prefixes.is_empty() {
            let slashes = path.bytes().enumerate().filter(|(at, byte)| *byte == b'/' && *at > 0).map(|(at, _)| at);
            for end in slashes.chain([path.len()]) {
                if let Some(shelf) = self.prefixes.get(&path[..end]) {
                    shelf.look(headers, &mut found);
                }
            }
        }
        self.others.look(headers, &mut found);
        (found.best != usize::MAX).then_some(found.best)
    }
}

impl Shelf {
    fn file(&mut self, at: usize, condition: &Match) {
        let wanted = condition.headers.iter().find_map(|(name, test)| match test {
            ValueTest::Exact(value) => Some((name, value)),
            ValueTest::Regex(_) | ValueTest::Present | ValueTest::Absent => None,
        });
        let Some((name, value)) = wanted else { return self.rest.push(at) };
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

    fn look(&self, headers: &HeaderMap, found: &mut Found<impl Fn(usize) -> bool>) {
        for (name, values) in &self.by_header {
            // Of a header with several values each is looked at by itself.
            for value in headers.get_all(name) {
                let value = looked_at(name, value.as_bytes());
                if let Some(list) = std::str::from_utf8(&value).ok().and_then(|value| values.get(value)) {
                    found.look(list);
                }
            }
        }
        found.look(&self.rest);
    }
}

/// The first match that was found so far.
struct Found<T> {
    best: usize,
    takes: T,
}

impl<T: Fn(usize) -> bool> Found<T> {
    fn look(&mut self, list: &[usize]) {
        let earlier = list.iter().take_while(|at| **at < self.best);
        if let Some(first) = earlier.copied().find(|at| (self.takes)(*at)) {
            self.best = first;
        }
    }
}
