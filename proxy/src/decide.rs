//! Route matching: picks the rule for a request from its head and the routes of its port. Pure.

use crate::matcher::{Match, RequestHead, matches};
use crate::table::backend::Backend;
use crate::table::route::{Routes, Rule};

/// The rule for a request, and the match that led to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decision<'a> {
    pub(crate) rule: &'a Rule,
    pub(crate) by: &'a Match,
}

/// The first match, in order of precedence, for the request. None: no rule matches.
pub(crate) fn decide<'a>(routes: &'a Routes, head: &RequestHead<'_>) -> Option<Decision<'a>> {
    let by = routes.first(head.path, head.headers, |candidate| matches(candidate, head))?;
    Some(Decision { rule: &routes.rules[by.rule], by })
}

/// Picks a backend by weight. `roll` is a random number below the sum of the weights.
pub(crate) fn pick(backends: &[Backend], mut roll: u32) -> &Backend {
    for backend in backends {
        match roll.checked_sub(backend.weight) {
            None => return backend,
            Some(rest) => roll = rest,
        }
    }
    // Unreachable while the roll is below the sum of the weights.
    &backends[backends.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::backend::BackendTarget;
    use http::{HeaderMap, Method};
    use proptest::prelude::*;
    use weft_config as wire;

    fn routes(matches: serde_json::Value) -> Routes {
        let count = matches.as_array().expect("a list").len();
        let rules = (0..count)
            .map(|rule| {
                serde_json::json!({
                    "route": {"namespace": "n", "name": "r"}, "name": rule.to_string(),
                    "action": {"respond": {"status": 200}}
                })
            })
            .collect::<Vec<_>>();
        let table: wire::RouteTable =
            serde_json::from_value(serde_json::json!({"matches": matches, "rules": rules})).expect("a table");
        Routes::compile(table).expect("compiles")
    }

    fn check(routes: &Routes, method: &str, target: &str, headers: &[(&str, &str)], expected: Option<&str>) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(
                http::HeaderName::from_bytes(name.as_bytes()).expect("name"),
                http::HeaderValue::from_str(value).expect("value"),
            );
        }
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let method = Method::from_bytes(method.as_bytes()).expect("method");
        let head = RequestHead { method: &method, path, query, headers: &map };
        let by = decide(routes, &head).map(|decision| decision.rule.name.text.rsplit('/').next().expect("a rule"));
        assert_eq!(by, expected, "{method} {target} {headers:?}");
    }

    #[test]
    fn first_match_wins() {
        let routes = routes(serde_json::json!([
            {"rule": 0, "path": {"exact": "/a"}},
            {"rule": 1, "path": {"prefix": "/a"}, "method": "POST"},
            {"rule": 2, "headers": [{"name": "x-user", "test": {"exact": "beta"}}]},
            {"rule": 3, "query": [{"name": "q", "test": {"regex": "[0-9]+"}}]},
            {"rule": 4, "headers": [{"name": "x-a", "test": "absent"}, {"name": "x-b", "test": "present"}]}
        ]));
        check(&routes, "POST", "/a", &[], Some("0"));
        check(&routes, "POST", "/a/b", &[], Some("1"));
        check(&routes, "GET", "/a/b", &[], None);
        check(&routes, "GET", "/", &[("x-user", "beta")], Some("2"));
        check(&routes, "GET", "/", &[("x-user", "other"), ("x-user", "beta")], Some("2"));
        check(&routes, "GET", "/", &[("x-user", "beta, other")], None);
        check(&routes, "GET", "/?q=12", &[], Some("3"));
        check(&routes, "GET", "/?p=1&%71=1%32", &[], Some("3"));
        check(&routes, "GET", "/?q=x&q=1", &[], None);
        check(&routes, "GET", "/", &[("x-b", "")], Some("4"));
        check(&routes, "GET", "/", &[("x-b", ""), ("x-a", "1")], None);
    }

    #[test]
    fn connect_needs_a_match_that_names_it() {
        let mut matches = vec![
            serde_json::json!({"rule": 0, "path": {"prefix": "/"}}),
            serde_json::json!({"rule": 1, "method": "CONNECT", "headers": [{"name": "x-team", "test": "present"}]}),
            serde_json::json!({"rule": 2}),
        ];
        for more in [0, 20] {
            // The second round is long enough for an index.
            matches.extend((0..more).map(|rule| serde_json::json!({"rule": rule + 3})));
            let routes = routes(matches.clone().into());
            check(&routes, "CONNECT", "", &[("x-team", "a")], Some("1"));
            check(&routes, "CONNECT", "", &[("x-other", "a")], None);
            check(&routes, "GET", "/", &[("x-team", "a")], Some("0"));
        }
    }

    fn value() -> impl Strategy<Value = String> {
        prop::sample::select(vec!["a", "b", "c"]).prop_map(str::to_owned)
    }

    fn path() -> impl Strategy<Value = String> {
        prop::collection::vec(prop::sample::select(vec!["a", "b", ""]), 0..4)
            .prop_map(|parts| format!("/{}", parts.join("/")))
    }

    /// Conditions of all kinds over few words, so that many match the same requests.
    fn condition() -> impl Strategy<Value = serde_json::Value> {
        let paths = prop_oneof![
            Just(serde_json::json!(null)),
            path().prop_map(|path| serde_json::json!({"exact": path})),
            path().prop_map(|path| serde_json::json!({"prefix": path})),
            value().prop_map(|value| serde_json::json!({"regex": format!("/{value}.*")})),
        ];
        let test = prop_oneof![
            value().prop_map(|value| serde_json::json!({"exact": value})),
            value().prop_map(|value| serde_json::json!({"regex": value})),
            Just(serde_json::json!("present")),
            Just(serde_json::json!("absent")),
        ];
        let name = prop::sample::select(vec!["x-a", "x-b"]);
        let headers = prop::collection::vec((name, test), 0..3).prop_map(|headers| {
            headers.into_iter().map(|(name, test)| serde_json::json!({"name": name, "test": test})).collect::<Vec<_>>()
        });
        (paths, headers).prop_map(|(path, headers)| match path {
            serde_json::Value::Null => serde_json::json!({"headers": headers}),
            path => serde_json::json!({"path": path, "headers": headers}),
        })
    }

    proptest! {
        /// The index finds the same match as a linear scan.
        #[test]
        fn index_finds_the_same_match_as_a_scan(
            conditions in prop::collection::vec(condition(), 17..60),
            requests in prop::collection::vec(
                (path(), prop::collection::vec((prop::sample::select(vec!["x-a", "x-b"]), value()), 0..4)), 1..20)
        ) {
            let list: Vec<_> = conditions.into_iter().enumerate().map(|(rule, mut condition)| {
                condition["rule"] = rule.into();
                condition
            }).collect();
            let routes = routes(list.into());
            for (path, values) in requests {
                let mut headers = HeaderMap::new();
                for (name, value) in values {
                    headers.append(name, value.parse().expect("a value"));
                }
                let head = RequestHead { method: &Method::GET, path: &path, query: None, headers: &headers };
                let scanned = routes.matches.iter().find(|candidate| matches(candidate, &head));
                prop_assert_eq!(
                    decide(&routes, &head).map(|decision| decision.by.rule),
                    scanned.map(|candidate| candidate.rule)
                );
            }
        }
    }

    #[test]
    fn backends_are_picked_by_weight() {
        let backend = |weight| Backend { weight, target: BackendTarget::Invalid(weight.to_string()), filters: None };
        let backends = [backend(1), backend(0), backend(3)];
        let picked: Vec<u32> = (0..4).map(|roll| pick(&backends, roll).weight).collect();
        assert_eq!(picked, [1, 3, 3, 3]);
    }
}
