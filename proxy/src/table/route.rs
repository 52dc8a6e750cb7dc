//! Compiled routes: regular expressions compiled, header edits parsed, weights summed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashMap;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use weft_config as wire;

use super::index::Index;
use crate::filter::Filters;
use crate::http::head::{Names, ProtectedHeaders, is_same_name};
use crate::matcher::Match;
use crate::value::{CompileError, RuleName, Target, parse_method, parse_name, parse_status, parse_value};

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

/// A weighted backend of a rule.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) weight: u32,
    pub(crate) target: Result<Target, String>,
}

/// Header edits.
#[derive(Debug, Default)]
pub(crate) struct Edit {
    remove: Box<[HeaderName]>,
    set: Box<[(HeaderName, HeaderValue)]>,
    add: Box<[(HeaderName, HeaderValue)]>,
}

/// Rewrite of authority and path.
#[derive(Debug, Default)]
pub(crate) struct Rewrite {
    pub(crate) hostname: Option<HeaderValue>,
    pub(crate) path: Option<wire::PathRewrite>,
}

/// A redirect.
#[derive(Debug)]
pub(crate) struct Redirect {
    pub(crate) scheme: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) path: Option<wire::PathRewrite>,
    pub(crate) status: StatusCode,
}

/// When a request is retried.
#[derive(Debug)]
pub(crate) struct Retry {
    pub(crate) attempts: u32,
    pub(crate) codes: Box<[StatusCode]>,
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
        let backends = backends.into_iter().map(Backend::compile).collect();
        Ok(Self { name: Arc::new(rule_name), backends, total })
    }
}

/// The headers that the matches, filters and edits of a port use.
fn protected_headers(matches: &[Match], rules: &[Rule]) -> Option<ProtectedHeaders> {
    let conditions = matches.iter().flat_map(|condition| condition.headers.iter().map(|(name, _)| name));
    let filters = rules.iter().filter_map(|rule| rule.filters.as_ref()).flat_map(|filters| filters.header_names());
    let request = conditions.chain(filters).chain(rules.iter().flat_map(|rule| rule.request_edit.names()));
    let (request, response) = (Names::of(request), Names::of(rules.iter().flat_map(|rule| rule.response_edit.names())));
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
}

impl Action {
    fn compile(action: wire::Action, rule_name: &RuleName) -> Result<Self, CompileError> {
        Ok(match action {
            wire::Action::Forward { backends, rewrite } => {
                let total = total(&backends, rule_name)?;
                Self::Forward {
                    backends: backends.into_iter().map(Backend::compile).collect(),
                    total,
                    rewrite: Rewrite::compile(rewrite)?,
                }
            }
            wire::Action::Redirect(wire::Redirect { scheme, hostname, port, path, status }) => {
                Self::Redirect(Redirect { scheme, hostname, port, path, status: parse_status(status)? })
            }
            wire::Action::Respond(wire::Respond { status, body }) => {
                Self::Respond { status: parse_status(status)?, body: body.into() }
            }
        })
    }
}

impl Backend {
    fn compile(backend: wire::Backend) -> Self {
        let wire::Backend { weight, target } = backend;
        let target = match target {
            wire::BackendTarget::Cluster(cluster) => Ok(Target::compile(cluster)),
            wire::BackendTarget::Invalid(reason) => Err(reason),
        };
        Self { weight, target }
    }
}

impl Rewrite {
    fn compile(rewrite: wire::Rewrite) -> Result<Self, CompileError> {
        let wire::Rewrite { hostname, path } = rewrite;
        Ok(Self { hostname: hostname.map(|name| parse_value(&name)).transpose()?, path })
    }
}

impl Retry {
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

// === impl Edit ===

impl Edit {
    fn compile(edit: wire::HeaderEdit) -> Result<Self, CompileError> {
        let wire::HeaderEdit { remove, set, add } = edit;
        let pairs = |headers: Vec<wire::HeaderValue>| {
            headers
                .into_iter()
                .map(|wire::HeaderValue { name, value }| Ok((parse_name(&name)?, parse_value(&value)?)))
                .collect::<Result<Box<[_]>, CompileError>>()
        };
        Ok(Self {
            remove: remove.iter().map(|name| parse_name(name)).collect::<Result<_, _>>()?,
            set: pairs(set)?,
            add: pairs(add)?,
        })
    }

    /// The headers that the edits change.
    fn names(&self) -> impl Iterator<Item = &HeaderName> {
        self.remove.iter().chain(self.set.iter().chain(&self.add).map(|(name, _)| name))
    }

    /// Applies the edits to a request. Other spellings of a removed or replaced name (`-` and `_`) are removed too.
    pub(crate) fn apply_to_request(&self, headers: &mut HeaderMap) {
        let removes = !self.remove.is_empty() || !self.set.is_empty();
        if removes && headers.keys().any(|name| name.as_str().contains('_')) {
            let gone = || self.remove.iter().chain(self.set.iter().map(|(name, _)| name));
            let respelled = |other: &&HeaderName| gone().any(|name| name != *other && is_same_name(name, other));
            while let Some(name) = headers.keys().find(respelled).cloned() {
                headers.remove(name);
            }
        }
        self.apply(headers);
    }

    /// Applies the edits: removes, then sets, then adds.
    pub(crate) fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name.clone(), value.clone());
        }
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

    #[test]
    fn edits_remove_then_set_then_add() {
        let value = |name: &str, value: &str| wire::HeaderValue { name: name.into(), value: value.into() };
        let edit = Edit::compile(wire::HeaderEdit {
            remove: vec!["x-old".into(), "x-both".into()],
            set: vec![value("x-set", " new\t")],
            add: vec![value("x-both", "again"), value("x-add", "2")],
        })
        .expect("compiles");
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-old", "1"), ("x-both", "1"), ("x-set", "a"), ("x-set", "b"), ("x-add", "1")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        edit.apply(&mut headers);
        let of = |name: &str| headers.get_all(name).iter().map(|v| v.to_str().expect("text")).collect::<Vec<_>>();
        assert_eq!(of("x-old"), Vec::<&str>::new());
        assert_eq!(of("x-both"), ["again"]);
        assert_eq!(of("x-set"), ["new"]);
        assert_eq!(of("x-add"), ["1", "2"]);
    }
}
