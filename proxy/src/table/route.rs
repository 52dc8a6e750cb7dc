//! Compiled routes: regular expressions compiled, header edits parsed, weights summed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashMap;
use http::{HeaderMap, Method, StatusCode};
use weft_config as wire;

use super::backend::{Backend, BackendFilters, BackendTarget, Redirect, Rewrite};
use super::edit::Edit;
use super::index::Index;
use crate::filter::Filters;
use crate::http::head::{Names, ProtectedHeaders};
use crate::matcher::Match;
use crate::value::{CompileError, RuleName, parse_method, parse_status};

/// The routes of one port.
#[derive(Debug)]
pub(crate) struct Routes {
    /// In order of precedence.
    pub(crate) matches: Box<[Match]>,
    pub(crate) rules: Box<[Rule]>,
    index: Option<Index>,
    /// TCP and TLS rules. None: there are only HTTP rules.
    pub(crate) streams: Option<Streams>,
}

/// Rules for TCP and TLS connections.
#[derive(Debug)]
pub(crate) struct Streams {
    /// By exact server name.
    exact: HashMap<String, usize>,
    /// By wildcard: the part behind the `*`, with its dot (`.example`).
    below: HashMap<String, usize>,
    tcp: Option<usize>,
    rules: Box<[StreamRule]>,
}

/// Where a TCP or TLS rule sends connections.
#[derive(Debug)]
pub(crate) struct StreamRule {
    pub(crate) name: Arc<RuleName>,
    pub(crate) backends: Box<[Backend]>,
    /// Sum of the weights, above 0.
    pub(crate) total: u32,
}

/// A rule for requests.
#[derive(Debug)]
pub(crate) struct Rule {
    /// `Kind/namespace/name/rule`.
    pub(crate) name: Arc<RuleName>,
    pub(crate) request_edit: Edit,
    pub(crate) response_edit: Edit,
    /// The headers that the port's routes match on and change.
    pub(crate) protected: Option<Arc<ProtectedHeaders>>,
    pub(crate) filters: Option<Box<Filters>>,
    pub(crate) action: Action,
    pub(crate) request_timeout: Option<Duration>,
    pub(crate) attempt_timeout: Option<Duration>,
    pub(crate) retry: Option<Retry>,
    pub(crate) hedge: Option<Hedge>,
}

/// The action of a rule.
#[derive(Debug)]
pub(crate) enum Action {
    Forward {
        backends: Box<[Backend]>,
        /// Sum of the weights, above 0.
        total: u32,
        rewrite: Rewrite,
    },
    Redirect(Redirect),
    Respond {
        status: StatusCode,
        body: Bytes,
    },
}

/// When a request is retried.
#[derive(Debug)]
pub(crate) struct Retry {
    /// 0: the request is sent to one endpoint.
    pub(crate) attempts: u32,
    pub(crate) codes: Box<[StatusCode]>,
    /// Empty: those that [`covers`](Retry::covers) says.
    pub(crate) methods: Box<[Method]>,
    pub(crate) backoff: Duration,
}

/// When a request is hedged: sent to another endpoint as well.
#[derive(Debug)]
pub(crate) struct Hedge {
    pub(crate) after: Duration,
    pub(crate) attempts: u32,
}

// === impl Routes ===

impl Routes {
    pub(crate) fn compile(table: wire::RouteTable) -> Result<Self, CompileError> {
        let wire::RouteTable { matches, rules, tls, tcp, streams } = table;
        if let Some(stray) = matches.iter().find(|candidate| candidate.rule >= rules.len()) {
            return Err(CompileError::Rule(stray.rule));
        }
        let matches: Box<[_]> = matches.into_iter().map(Match::compile).collect::<Result<_, _>>()?;
        let mut rules: Box<[_]> = rules.into_iter().map(Rule::compile).collect::<Result<_, _>>()?;
        let protected = protected_headers(&matches, &rules).map(Arc::new);
        rules.iter_mut().for_each(|rule| rule.protected = protected.clone());
        Ok(Self { index: Index::build(&matches), matches, rules, streams: Streams::compile(tls, tcp, streams)? })
    }

    /// The names of all rules.
    pub(crate) fn rule_names(&self) -> impl Iterator<Item = &str> {
        let streams = self.streams.iter().flat_map(|streams| streams.rules.iter().map(|rule| &rule.name));
        self.rules.iter().map(|rule| &rule.name).chain(streams).map(|name| name.text.as_str())
    }

    /// The first match for a request with this path and these headers for which `matches` is true.
    pub(crate) fn first(&self, path: &str, headers: &HeaderMap, matches: impl Fn(&Match) -> bool) -> Option<&Match> {
        match &self.index {
            None => self.matches.iter().find(|condition| matches(condition)),
            Some(index) => index.first(path, headers, |at| matches(&self.matches[at])).map(|at| &self.matches[at]),
        }
    }
}

impl Streams {
    fn compile(
        tls: Vec<wire::ServerName>,
        tcp: Option<usize>,
        rules: Vec<wire::StreamRule>,
    ) -> Result<Option<Self>, CompileError> {
        if let Some(stray) = tls.iter().map(|server| server.rule).chain(tcp).find(|rule| *rule >= rules.len()) {
            return Err(CompileError::Rule(stray));
        }
        let (mut exact, mut below) = (HashMap::new(), HashMap::new());
        for wire::ServerName { rule, name } in tls {
            match name.strip_prefix('*') {
                None => exact.entry(name).or_insert(rule),
                Some(suffix) => below.entry_ref(suffix).or_insert(rule),
            };
        }
        let rules: Box<[_]> = rules.into_iter().map(StreamRule::compile).collect::<Result<_, _>>()?;
        Ok((tcp.is_some() || !exact.is_empty() || !below.is_empty()).then_some(Self { exact, below, tcp, rules }))
    }

    /// Whether there are rules by server name (SNI).
    pub(crate) fn has_sni_rules(&self) -> bool {
        !(self.exact.is_empty() && self.below.is_empty())
    }

    /// The rule for a server name in lower case: exact names before wildcards, longer wildcards before shorter ones.
    pub(crate) fn sni_rule(&self, name: &str) -> Option<&StreamRule> {
        let wildcard = || {
            let mut suffixes = name.char_indices().filter(|(at, letter)| *letter == '.' && *at > 0);
            suffixes.find_map(|(at, _)| self.below.get(&name[at..]))
        };
        self.exact.get(name).or_else(wildcard).map(|rule| &self.rules[*rule])
    }

    /// The rule for all other connections.
    pub(crate) fn default_rule(&self) -> Option<&StreamRule> {
        self.tcp.map(|rule| &self.rules[rule])
    }
}

impl StreamRule {
    fn compile(rule: wire::StreamRule) -> Result<Self, CompileError> {
        let wire::StreamRule { route, name, backends } = rule;
        let rule_name = RuleName::new(route.kind.as_str(), &route.namespace, &route.name, &name);
        let total = total(&backends, &rule_name)?;
        let backends: Box<[_]> = backends.into_iter().map(Backend::compile).collect::<Result<_, _>>()?;
        let is_for_requests =
            |backend: &Backend| backend.filters.is_some() || matches!(backend.target, BackendTarget::Redirect(_));
        if backends.iter().any(is_for_requests) {
            return Err(CompileError::Filter(format!("rule {} is for connections, which have none", rule_name.text)));
        }
        Ok(Self { name: Arc::new(rule_name), backends, total })
    }
}

/// The headers that the matches, filters and edits of a port use.
fn protected_headers(matches: &[Match], rules: &[Rule]) -> Option<ProtectedHeaders> {
    let conditions = matches.iter().flat_map(|condition| condition.headers.iter().map(|(name, _)| name));
    let filters = rules.iter().filter_map(|rule| rule.filters.as_ref()).flat_map(|filters| filters.header_names());
    let of_backends = || rules.iter().flat_map(Rule::backend_filters);
    let request_edits = rules.iter().map(|rule| &rule.request_edit).chain(of_backends().map(|own| &own.request_edit));
    let response_edits =
        rules.iter().map(|rule| &rule.response_edit).chain(of_backends().map(|own| &own.response_edit));
    let request = Names::of(conditions.chain(filters).chain(request_edits.flat_map(Edit::names)));
    let response = Names::of(response_edits.flat_map(Edit::names));
    (request.is_some() || response.is_some()).then_some(ProtectedHeaders { request, response })
}

/// Sum of the weights.
fn total(backends: &[wire::Backend], rule_name: &RuleName) -> Result<u32, CompileError> {
    match backends.iter().map(|backend| backend.weight).fold(0, u32::saturating_add) {
        0 => Err(CompileError::Weights(rule_name.text.clone())),
        total => Ok(total),
    }
}

impl Rule {
    fn compile(rule: wire::Rule) -> Result<Self, CompileError> {
        let wire::Rule {
            route,
            name,
            request_headers,
            response_headers,
            filters,
            action,
            request_timeout_ms,
            attempt_timeout_ms,
            retry,
            hedge,
        } = rule;
        let rule_name = RuleName::new(route.kind.as_str(), &route.namespace, &route.name, &name);
        Ok(Self {
            request_edit: Edit::compile(request_headers)?,
            response_edit: Edit::compile(response_headers)?,
            protected: None,
            filters: Filters::compile(&rule_name.text, filters)?,
            action: Action::compile(action, &rule_name)?,
            request_timeout: request_timeout_ms.map(Duration::from_millis),
            attempt_timeout: attempt_timeout_ms.map(Duration::from_millis),
            retry: retry.map(Retry::compile).transpose()?,
            hedge: hedge
                .map(|wire::Hedge { after_ms, attempts }| Hedge { after: Duration::from_millis(after_ms), attempts }),
            name: Arc::new(rule_name),
        })
    }

    /// Edits the headers of a request: as the rule says, then as its backend says (Linkerd's order; in Envoy the route
    /// comes last, unless `most_specific_header_mutations_wins`).
    pub(crate) fn edit_request(&self, backend: Option<&BackendFilters>, headers: &mut HeaderMap) {
        self.request_edit.apply_to_request(headers);
        if let Some(backend) = backend {
            backend.request_edit.apply_to_request(headers);
        }
    }

    /// Edits the headers of a response, which passes the filters in the reverse order: as the backend says, then as the
    /// rule says.
    pub(crate) fn edit_response(&self, backend: Option<&BackendFilters>, headers: &mut HeaderMap) {
        if let Some(backend) = backend {
            backend.response_edit.apply(headers);
        }
        self.response_edit.apply(headers);
    }

    /// Whether it may answer CORS preflights: the rule itself, or one of its backends.
    pub(crate) fn has_cors(&self) -> bool {
        self.filters.as_ref().is_some_and(|filters| filters.cors.is_some())
            || self.backend_filters().any(|filters| filters.cors.is_some())
    }

    fn backend_filters(&self) -> impl Iterator<Item = &BackendFilters> {
        let backends: &[Backend] = match &self.action {
            Action::Forward { backends, .. } => backends,
            Action::Redirect(_) | Action::Respond { .. } => &[],
        };
        backends.iter().filter_map(|backend| backend.filters.as_deref())
    }
}

impl Action {
    fn compile(action: wire::Action, rule_name: &RuleName) -> Result<Self, CompileError> {
        Ok(match action {
            wire::Action::Forward { backends, rewrite } => {
                let total = total(&backends, rule_name)?;
                Self::Forward {
                    backends: backends.into_iter().map(Backend::compile).collect::<Result<_, _>>()?,
                    total,
                    rewrite: Rewrite::compile(rewrite)?,
                }
            }
            wire::Action::Redirect(redirect) => Self::Redirect(Redirect::compile(redirect)?),
            wire::Action::Respond(wire::Respond { status, body }) => {
                Self::Respond { status: parse_status(status)?, body: body.into() }
            }
        })
    }
}

impl Retry {
    /// Whether requests of this method are retried. `is_rejected`: the backend did not process the request.
    pub(crate) fn covers(&self, method: &Method, is_rejected: bool) -> bool {
        match &*self.methods {
            [] => is_rejected || method.is_idempotent(),
            methods => methods.contains(method),
        }
    }

    fn compile(retry: wire::Retry) -> Result<Self, CompileError> {
        let wire::Retry { attempts, codes, methods, backoff_ms } = retry;
        Ok(Self {
            attempts,
            codes: codes.into_iter().map(parse_status).collect::<Result<_, _>>()?,
            methods: methods.iter().map(|name| parse_method(name)).collect::<Result<_, _>>()?,
            backoff: Duration::from_millis(backoff_ms),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_without_their_rule_are_refused() {
        let table = wire::RouteTable { matches: vec![wire::Match::default()], ..wire::RouteTable::default() };
        assert!(matches!(Routes::compile(table), Err(CompileError::Rule(0))));
    }

    fn compile(rules: Vec<wire::Rule>) -> Routes {
        Routes::compile(wire::RouteTable { rules, ..wire::RouteTable::default() }).expect("compiles")
    }

    /// A rule with these fields and two backends, the first one with these filters.
    fn rule(more: serde_json::Value, filters: serde_json::Value) -> wire::Rule {
        let mut rule = serde_json::json!({
            "route": {"namespace": "n", "name": "r"}, "name": "0", "action": {"forward": {"backends": [
                {"weight": 1, "target": {"invalid": "nowhere"}, "filters": filters},
                {"weight": 1, "target": {"invalid": "nowhere"}}
            ]}}
        });
        rule.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        serde_json::from_value(rule).expect("a rule")
    }

    #[test]
    fn requests_pass_the_rule_then_the_backend_and_responses_the_reverse() {
        let edits = |by: &str| {
            let edit =
                serde_json::json!({"set": [{"name": "x-set", "value": by}], "add": [{"name": "x-add", "value": by}]});
            serde_json::json!({"requestHeaders": edit, "responseHeaders": edit})
        };
        let routes = compile(vec![rule(edits("rule"), edits("backend"))]);
        let rule = &routes.rules[0];
        let Action::Forward { backends, .. } = &rule.action else { panic!("{rule:?}") };
        let values = |edit: &dyn Fn(&mut HeaderMap)| {
            let mut headers = HeaderMap::new();
            edit(&mut headers);
            ["x-set", "x-add"].map(|name| {
                headers.get_all(name).iter().map(|v| v.to_str().expect("text").to_owned()).collect::<Vec<_>>()
            })
        };
        let (own, none) = (backends[0].filters.as_deref(), backends[1].filters.as_deref());
        assert_eq!(values(&|headers| rule.edit_request(own, headers)), [vec!["backend"], vec!["rule", "backend"]]);
        assert_eq!(values(&|headers| rule.edit_response(own, headers)), [vec!["rule"], vec!["backend", "rule"]]);
        assert_eq!(values(&|headers| rule.edit_request(none, headers)), [vec!["rule"], vec!["rule"]]);
        assert_eq!(values(&|headers| rule.edit_response(none, headers)), [vec!["rule"], vec!["rule"]]);
    }

    #[test]
    fn headers_that_backends_edit_are_protected() {
        let filters = serde_json::json!({
            "requestHeaders": {"remove": ["x-request"]}, "responseHeaders": {"set": [{"name": "x-response", "value": "1"}]}
        });
        let routes = compile(vec![rule(serde_json::json!({}), filters)]);
        let protected = routes.rules[0].protected.as_deref().expect("protected headers");
        let has = |names: &Option<Names>, name: &str| {
            names.as_ref().is_some_and(|names| names.contains(&name.parse().expect("a name")))
        };
        assert!(has(&protected.request, "x-request") && !has(&protected.request, "x-response"), "{protected:?}");
        assert!(has(&protected.response, "x-response") && !has(&protected.response, "x-request"), "{protected:?}");
    }

    #[test]
    fn rules_for_connections_have_no_filters_of_backends() {
        let invalid = serde_json::json!({"invalid": "nowhere"});
        for (backend, is_valid) in [
            (serde_json::json!({"weight": 1, "target": invalid}), true),
            (serde_json::json!({"weight": 1, "target": invalid, "filters": {"rewrite": {"hostname": "h"}}}), false),
            (serde_json::json!({"weight": 1, "target": {"redirect": {"status": 301}}}), false),
        ] {
            let rule =
                serde_json::json!({"route": {"namespace": "n", "name": "r"}, "name": "0", "backends": [backend]});
            let table = serde_json::from_value(serde_json::json!({"tcp": 0, "streams": [rule]})).expect("a table");
            assert_eq!(Routes::compile(table).is_ok(), is_valid, "{backend}");
        }
    }

    #[test]
    fn server_names_match_exactly_or_by_longest_wildcard() {
        let rule = |name: &str| {
            let backend = serde_json::json!({"weight": 1, "target": {"invalid": "nowhere"}});
            serde_json::json!({"route": {"namespace": "n", "name": "r"}, "name": name, "backends": [backend]})
        };
        let table = serde_json::json!({
            "tls": [
                {"rule": 0, "name": "shop.example"},
                {"rule": 1, "name": "*.shop.example"},
                {"rule": 2, "name": "*.example"},
                {"rule": 2, "name": "shop.example"}
            ],
            "tcp": 3,
            "streams": [rule("0"), rule("1"), rule("2"), rule("3")]
        });
        let routes = Routes::compile(serde_json::from_value(table).expect("a table")).expect("compiles");
        let streams = routes.streams.expect("rules for connections");
        let by = |name: &str| streams.sni_rule(name).map(|rule| rule.name.text.clone());
        for (name, expected) in [
            ("shop.example", Some("0")),
            ("a.shop.example", Some("1")),
            ("a.b.shop.example", Some("1")),
            ("bank.example", Some("2")),
            ("example", None),
            (".example", None),
            ("shop.example.evil", None),
            ("", None),
        ] {
            assert_eq!(by(name), expected.map(|rule| format!("MeshRoute/n/r/{rule}")), "{name}");
        }
        assert_eq!(streams.default_rule().map(|rule| rule.name.text.as_str()), Some("MeshRoute/n/r/3"));
        let stray = wire::RouteTable { tcp: Some(0), ..wire::RouteTable::default() };
        assert!(matches!(Routes::compile(stray), Err(CompileError::Rule(0))));
    }
}
