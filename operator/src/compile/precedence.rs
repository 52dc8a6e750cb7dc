//! Precedence: the order in which matches are tried, and the order in which objects of one kind are applied.
//!
//! Of two matches that match the same request, the first of these that differs decides: exact path before regular
//! expression before prefix; the longer path; with a method; more headers; more query parameters; the older route;
//! namespace/name; the earlier rule; the earlier match. These are the Gateway API's rules for HTTPRoute. It leaves
//! the rank of regular expressions open: here they come before prefixes, since a route for `/` would otherwise hide
//! every regular expression.

use std::cmp::Reverse;

use weft_config::{Match, PathMatch, ValueMatch, ValueTest};

use crate::world::{Key, Meta};

/// Creation time, then namespace and name: the smaller one (the older object) wins.
pub(super) type Age<'a> = (i64, &'a Key);

/// Rank of a match; smaller is tried first.
pub(super) type Rank = (u8, Reverse<usize>, bool, Reverse<usize>, Reverse<usize>);

/// Sort key of an object by age.
pub(super) fn age(meta: &Meta) -> Age<'_> {
    (meta.created, &meta.key)
}

/// Rank of a match: the more specific it is, the smaller.
pub(super) fn rank(condition: &Match) -> Rank {
    let (kind, length) = match &condition.path {
        Some(PathMatch::Exact(path)) => (0, path.len()),
        Some(PathMatch::Regex(regex)) => (1, regex.len()),
        Some(PathMatch::Prefix(prefix)) => (2, prefix.len()),
        // Equivalent to the prefix "/".
        None => (2, 1),
    };
    (
        kind,
        Reverse(length),
        condition.method.is_none(),
        Reverse(condition.headers.len()),
        Reverse(condition.query.len()),
    )
}

/// Rank of a server name; smaller is tried first.
pub(super) fn server_rank(name: &str) -> (bool, Reverse<usize>, String) {
    (name.starts_with("*."), Reverse(name.len()), name.to_owned())
}

/// A canonical text: two matches have equal text if and only if they match the same requests.
pub(super) fn canonical(condition: &Match) -> String {
    use std::fmt::Write;

    let Match { rule: _, path, method, headers, query } = condition;
    let path = match path {
        None => PathMatch::Prefix("/".into()),
        Some(path) => path.clone(),
    };
    let mut text = format!("{path:?} {method:?}");
    for (kind, values) in [("header", headers), ("query", query)] {
        let mut values: Vec<&ValueMatch> = values.iter().collect();
        values.sort_by(|a, b| a.name.cmp(&b.name));
        for ValueMatch { name, test } in values {
            let _ = write!(text, " {kind} {name:?} {test:?}");
        }
    }
    text
}

/// A match as text for messages.
pub(super) fn describe(condition: &Match) -> String {
    let Match { rule: _, path, method, headers, query } = condition;
    let mut words = vec![match path {
        None => "path prefix /".to_owned(),
        Some(PathMatch::Exact(path)) => format!("path {path}"),
        Some(PathMatch::Prefix(prefix)) => format!("path prefix {prefix}"),
        Some(PathMatch::Regex(regex)) => format!("path regular expression {regex}"),
    }];
    words.extend(method.clone());
    for (kind, values) in [("header", headers), ("query parameter", query)] {
        words.extend(values.iter().map(|ValueMatch { name, test }| match test {
            ValueTest::Exact(value) => format!("{kind} {name}={value}"),
            ValueTest::Regex(value) => format!("{kind} {name}~{value}"),
            ValueTest::Present => format!("{kind} {name}"),
            ValueTest::Absent => format!("no {kind} {name}"),
        }));
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values(count: usize) -> Vec<ValueMatch> {
        (0..count).map(|n| ValueMatch { name: format!("n{n}"), test: ValueTest::Present }).collect()
    }

    #[test]
    fn more_specific_match_comes_first() {
        let exact = |path: &str| Match { path: Some(PathMatch::Exact(path.into())), ..Match::default() };
        let regex = |path: &str| Match { path: Some(PathMatch::Regex(path.into())), ..Match::default() };
        let prefix = |path: &str| Match { path: Some(PathMatch::Prefix(path.into())), ..Match::default() };
        let method = Match { method: Some("GET".into()), ..prefix("/a") };
        let ordered = [
            exact("/abc"),
            exact("/a"),
            regex("/.*longer"),
            regex("/.*"),
            prefix("/abc"),
            Match { headers: values(1), ..method.clone() },
            Match { query: values(2), ..method.clone() },
            method,
            Match { headers: values(2), ..prefix("/a") },
            Match { headers: values(1), query: values(2), ..prefix("/a") },
            Match { headers: values(1), query: values(1), ..prefix("/a") },
            Match { headers: values(1), ..prefix("/a") },
            Match { query: values(1), ..prefix("/a") },
            prefix("/a"),
            Match { method: Some("GET".into()), ..Match::default() },
            Match::default(),
        ];
        for pair in ordered.windows(2) {
            assert!(rank(&pair[0]) < rank(&pair[1]), "{} before {}", describe(&pair[0]), describe(&pair[1]));
        }
        assert_eq!(rank(&Match::default()), rank(&prefix("/")), "no path means every path");
    }

    #[test]
    fn exact_server_names_come_before_wildcards() {
        let ordered = ["long.shop.example", "a.example", "*.shop.example", "*.example"];
        assert!(ordered.is_sorted_by_key(|name| server_rank(name)));
    }

    #[test]
    fn equal_matches_have_equal_canonical_text() {
        let mut values = values(3);
        let one = Match { rule: 1, headers: values.clone(), ..Match::default() };
        values.reverse();
        let two =
            Match { rule: 2, path: Some(PathMatch::Prefix("/".into())), headers: values.clone(), ..Match::default() };
        assert_eq!(canonical(&one), canonical(&two), "order of headers and index of the rule are ignored");
        let three = Match { query: values, ..Match::default() };
        assert_ne!(canonical(&one), canonical(&three), "a header is not a parameter");
    }

    fn any_match() -> impl Strategy<Value = Match> {
        let path = prop_oneof![
            Just(None),
            "/[ab]{0,2}".prop_map(|path| Some(PathMatch::Exact(path))),
            "/[ab]{0,2}".prop_map(|path| Some(PathMatch::Prefix(path))),
            "/[ab]{0,2}".prop_map(|path| Some(PathMatch::Regex(path))),
        ];
        let test = prop_oneof![
            Just(ValueTest::Present),
            Just(ValueTest::Absent),
            "[ab]".prop_map(ValueTest::Exact),
            "[ab]".prop_map(ValueTest::Regex),
        ];
        // Names are unique within one match: the compiler drops duplicates.
        let values = prop::collection::btree_map("[ab]", test, 0..3)
            .prop_map(|values| values.into_iter().map(|(name, test)| ValueMatch { name, test }).collect::<Vec<_>>());
        let method = prop::option::of(prop::sample::select(vec!["GET".to_owned(), "POST".to_owned()]));
        (path, method, values.clone(), values, 0..3usize).prop_map(|(path, method, headers, query, rule)| Match {
            rule,
            path,
            method,
            headers,
            query,
        })
    }

    /// The conditions of a match, in a comparable form.
    fn conditions(condition: &Match) -> impl PartialEq + std::fmt::Debug {
        let sorted = |values: &[ValueMatch]| {
            let mut values: Vec<_> = values.iter().map(|value| (value.name.clone(), value.test.clone())).collect();
            values.sort_by(|a, b| a.0.cmp(&b.0));
            values
        };
        let path = condition.path.clone().unwrap_or(PathMatch::Prefix("/".into()));
        (path, condition.method.clone(), sorted(&condition.headers), sorted(&condition.query))
    }

    proptest! {
        /// The order is total and consistent with equality: of two matches exactly one of less, greater and equal
        /// holds, in either direction; equal matches have equal rank; the order is transitive.
        #[test]
        fn the_order_is_total_and_agrees_with_equality(
            matches in prop::collection::vec((any_match(), 0..2i64, "[ab]"), 3)
        ) {
            let keys: Vec<Key> = matches.iter().map(|(_, _, name)| Key { namespace: "n".into(), name: name.clone() }).collect();
            let order = |at: usize| {
                let (condition, created, _) = &matches[at];
                (rank(condition), (*created, &keys[at]) as Age<'_>, condition.rule)
            };
            for (first, second) in [(0, 1), (1, 2), (0, 2)] {
                prop_assert_eq!(order(first).cmp(&order(second)), order(second).cmp(&order(first)).reverse());
                let (one, two) = (&matches[first].0, &matches[second].0);
                prop_assert_eq!(canonical(one) == canonical(two), conditions(one) == conditions(two));
                if canonical(one) == canonical(two) {
                    prop_assert_eq!(rank(one), rank(two));
                }
                let same = order(first) == order(second);
                prop_assert_eq!(order(first).cmp(&order(second)).is_eq(), same);
            }
            if order(0) <= order(1) && order(1) <= order(2) {
                prop_assert!(order(0) <= order(2));
            }
        }
    }
}
