//! Who may call this pod. Pure: policies and a call in, verdict out.
//!
//! Any Deny beats every Allow; where an Allow governs the port, only what one allows passes; otherwise a call passes.
//! Nothing widens: a rule that looks into HTTP never lets through bytes that nobody can look into.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderName, Method};
use weft_config as wire;

use crate::bootstrap::Pod;
use crate::decide::{RequestHead, header_holds};
use crate::http::head::{Deciding, Names};
use crate::table::CompileError;
use crate::table::route::{Origin, PathMatch, ValueTest, compile_headers, parse_method};

/// The policies that govern this pod.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    rules: Vec<Rule>,
    /// What their conditions look at.
    pub(crate) deciding: Option<Arc<Deciding>>,
}

#[derive(Debug)]
struct Rule {
    origin: Arc<Origin>,
    action: wire::PolicyAction,
    /// Ports that the policy's target governs. None: all.
    governs: Option<Vec<u16>>,
    ports: Vec<u16>,
    methods: Vec<Method>,
    paths: Vec<PathMatch>,
    headers: Box<[(HeaderName, ValueTest)]>,
}

/// What policy says of a call.
#[derive(Clone, Debug)]
pub(crate) enum Verdict<'a> {
    /// It passes.
    Allowed,
    /// It does not, because of this rule.
    Denied(&'a Arc<Origin>),
    /// It does not, because there are Allow rules and none takes it. The first of them is named.
    NotAllowed(&'a Arc<Origin>),
}

impl Policies {
    /// Keeps what governs the pod while it has these labels.
    pub(crate) fn compile(
        pod: &Pod,
        labels: &BTreeMap<String, String>,
        policies: Vec<wire::Policy>,
    ) -> Result<Self, CompileError> {
        let mut rules = Vec::new();
        for wire::Policy { name, target, rules: wire_rules } in policies {
            let Some(governs) = governed_ports(pod, labels, &target) else { continue };
            for (at, rule) in wire_rules.into_iter().enumerate() {
                let wire::AuthorizationRule { action, methods, paths, headers, ports } = rule;
                rules.push(Rule {
                    origin: Arc::new(Origin::new("MeshPolicy", &pod.namespace, &name, &at.to_string())),
                    action,
                    governs: governs.clone(),
                    ports,
                    methods: methods.iter().map(|method| parse_method(method)).collect::<Result<_, _>>()?,
                    paths: paths.into_iter().map(PathMatch::compile).collect::<Result<_, _>>()?,
                    headers: compile_headers(headers)?,
                });
            }
        }
        let names = Names::of(rules.iter().flat_map(|rule| rule.headers.iter().map(|(name, _)| name)));
        let deciding = names.map(|names| Arc::new(Deciding { request: Some(names), response: None }));
        Ok(Self { rules, deciding })
    }

    /// Whether the path of requests to a port matters to anybody, so that it must have one meaning.
    pub(crate) fn look_at_paths(&self, port: u16) -> bool {
        self.on(port).any(|rule| !rule.paths.is_empty())
    }

    /// What is said of an HTTP request to a port.
    pub(crate) fn of_request(&self, port: u16, head: &RequestHead<'_>) -> Verdict<'_> {
        self.verdict(port, |rule| rule.takes_request(head), |rule| rule.takes_request(head))
    }

    /// What is said of a connection to a port whose bytes nobody looks into. A Deny that would need to look counts as
    /// taking it, an Allow that would need to look does not.
    pub(crate) fn of_bytes(&self, port: u16) -> Verdict<'_> {
        self.verdict(port, |_| true, |rule| !rule.looks_into_http())
    }

    fn verdict(&self, port: u16, denies: impl Fn(&Rule) -> bool, allows: impl Fn(&Rule) -> bool) -> Verdict<'_> {
        let (mut first_allow, mut allowed) = (None, false);
        for rule in self.on(port) {
            match rule.action {
                wire::PolicyAction::Deny if denies(rule) => return Verdict::Denied(&rule.origin),
                wire::PolicyAction::Deny => {}
                wire::PolicyAction::Allow => {
                    first_allow = first_allow.or(Some(&rule.origin));
                    allowed = allowed || allows(rule);
                }
            }
        }
        // An Allow for other ports of the pod makes this one no less closed, unless its target is those ports alone.
        first_allow =
            first_allow.or_else(|| self.governing(port).find(|rule| rule.is_allow()).map(|rule| &rule.origin));
        match first_allow {
            Some(origin) if !allowed => Verdict::NotAllowed(origin),
            _ => Verdict::Allowed,
        }
    }

    /// Rules whose target has the port.
    fn governing(&self, port: u16) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(move |rule| rule.governs.as_ref().is_none_or(|ports| ports.contains(&port)))
    }

    /// Rules that could take a call to the port.
    fn on(&self, port: u16) -> impl Iterator<Item = &Rule> {
        self.governing(port).filter(move |rule| rule.ports.is_empty() || rule.ports.contains(&port))
    }
}

impl Rule {
    fn is_allow(&self) -> bool {
        self.action == wire::PolicyAction::Allow
    }

    fn looks_into_http(&self) -> bool {
        !(self.methods.is_empty() && self.paths.is_empty() && self.headers.is_empty())
    }

    fn takes_request(&self, head: &RequestHead<'_>) -> bool {
        (self.methods.is_empty() || self.methods.contains(head.method))
            && (self.paths.is_empty() || self.paths.iter().any(|path| path.takes(head.path)))
            && self.headers.iter().all(|(name, test)| match self.action {
                wire::PolicyAction::Deny => header_holds(head.headers, name, test),
                wire::PolicyAction::Allow => every_value_holds(head, name, test),
            })
    }
}

/// An Allow takes a header only if every value of it is fine: a second one must not ride along.
fn every_value_holds(head: &RequestHead<'_>, name: &HeaderName, test: &ValueTest) -> bool {
    header_holds(head.headers, name, test)
        && head.headers.get_all(name).iter().all(|value| test.holds(value.as_bytes()))
}

/// The ports that a target governs on this pod: all of them, some, or (None at the outside) the pod is not meant.
fn governed_ports(pod: &Pod, labels: &BTreeMap<String, String>, target: &wire::Target) -> Option<Option<Vec<u16>>> {
    match target {
        wire::Target::Namespace => Some(None),
        wire::Target::ServiceAccount(name) => (*name == pod.service_account).then_some(None),
        wire::Target::Service { selector, ports } => {
            let selected = selector.iter().all(|(key, value)| labels.get(key) == Some(value));
            let number = |port: &wire::PortRef| match port {
                wire::PortRef::Number(number) => Some(*number),
                wire::PortRef::Name(name) => pod.port_names.get(name).copied(),
            };
            selected.then(|| Some(ports.iter().filter_map(number).collect()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderValue};

    fn pod() -> Pod {
        Pod {
            namespace: "shop".into(),
            service_account: "reviews".into(),
            labels: [("app".to_owned(), "reviews".to_owned())].into(),
            port_names: [("web".to_owned(), 8080)].into(),
            ..Pod::default()
        }
    }

    fn policies(value: serde_json::Value) -> Policies {
        Policies::compile(&pod(), &pod().labels, serde_json::from_value(value).expect("policies")).expect("compiles")
    }

    fn check(
        policies: &Policies,
        port: u16,
        method: &str,
        path: &str,
        headers: &[(&'static str, &'static str)],
        expected: &str,
    ) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        let method = Method::from_bytes(method.as_bytes()).expect("method");
        let head = RequestHead { method: &method, path, query: None, headers: &map };
        assert_eq!(word(&policies.of_request(port, &head)), expected, "{method} {path} {headers:?} on {port}");
    }

    fn word(verdict: &Verdict<'_>) -> String {
        match verdict {
            Verdict::Allowed => "allowed".into(),
            Verdict::Denied(by) => format!("denied by {}", by.text),
            Verdict::NotAllowed(by) => format!("not allowed by {}", by.text),
        }
    }

    #[test]
    fn deny_beats_allow_and_allow_closes_the_rest() {
        let policies = policies(serde_json::json!([
            {"name": "read-only", "target": "namespace", "rules": [
                {"action": "deny", "methods": ["POST", "DELETE"], "paths": [{"prefix": "/admin"}]}]},
            {"name": "callers", "target": {"serviceAccount": "reviews"}, "rules": [
                {"action": "allow", "paths": [{"prefix": "/"}], "headers": [{"name": "x-team", "test": {"exact": "a"}}]}]}
        ]));
        check(&policies, 80, "POST", "/admin/x", &[("x-team", "a")], "denied by MeshPolicy/shop/read-only/0");
        check(&policies, 80, "GET", "/admin/x", &[("x-team", "a")], "allowed");
        check(&policies, 80, "GET", "/", &[("x-team", "b")], "not allowed by MeshPolicy/shop/callers/0");
        check(
            &policies,
            80,
            "GET",
            "/",
            &[("x-team", "a"), ("x-team", "b")],
            "not allowed by MeshPolicy/shop/callers/0",
        );
        check(&policies, 80, "GET", "/", &[], "not allowed by MeshPolicy/shop/callers/0");
    }

    #[test]
    fn bytes_never_pass_where_a_rule_would_have_to_look() {
        let deny = policies(serde_json::json!([{"name": "p", "target": "namespace", "rules": [
            {"action": "deny", "methods": ["POST"]}]}]));
        assert_eq!(word(&deny.of_bytes(80)), "denied by MeshPolicy/shop/p/0");
        let allow = policies(serde_json::json!([{"name": "p", "target": "namespace", "rules": [
            {"action": "allow", "methods": ["GET"], "ports": [80]}, {"action": "allow", "ports": [3306]}]}]));
        assert_eq!(word(&allow.of_bytes(80)), "not allowed by MeshPolicy/shop/p/0");
        assert_eq!(word(&allow.of_bytes(3306)), "allowed");
        assert_eq!(word(&allow.of_bytes(22)), "not allowed by MeshPolicy/shop/p/0", "a port that no Allow names");
        assert_eq!(word(&policies(serde_json::json!([])).of_bytes(80)), "allowed");
    }

    #[test]
    fn a_service_governs_the_ports_that_it_sends_to() {
        let policies = policies(serde_json::json!([
            {"name": "mine", "target": {"service": {"selector": {"app": "reviews"}, "ports": ["web", 9090]}},
             "rules": [{"action": "deny"}]},
            {"name": "other", "target": {"service": {"selector": {"app": "ratings"}, "ports": [7070]}},
             "rules": [{"action": "deny"}]},
            {"name": "account", "target": {"serviceAccount": "ratings"}, "rules": [{"action": "deny"}]}
        ]));
        for (port, expected) in
            [(8080, "denied by MeshPolicy/shop/mine/0"), (9090, "denied by MeshPolicy/shop/mine/0"), (7070, "allowed")]
        {
            assert_eq!(word(&policies.of_bytes(port)), expected, "port {port}");
        }
    }
}
