//! Authorization: which calls policies allow to this pod. Pure: policies and a call in, verdict out.
//!
//! A matching Deny beats every Allow. If an Allow targets the port, or a policy's default is Deny, only calls that an
//! Allow matches pass; otherwise every call passes. A rule with HTTP conditions never allows a TCP connection, because
//! nothing checks the conditions there.
//!
//! Rules name callers by the service account of their certificate, and by nothing else. What is not known of a caller is
//! read against it: without an account it matches only a Deny that names who is exempt from it.
//!
//! Applications interpret some paths and headers in several ways ("readings"). A Deny matches a request if it matches
//! any reading, an Allow only if it matches all of them. The readings of a path are in [`path`], those of headers and
//! methods are here; `docs/policy.md` lists them all.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::Method;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use weft_config as wire;
use weft_identity::Account;

use crate::bootstrap::Pod;
use crate::http::head::{Names, ProtectedHeaders, is_same_name};
use crate::matcher::{PathMatch, RequestHead, ValueTest, normalize_value};
use crate::path::{self, Readings, TooManyReadings};
use crate::value::{CompileError, RuleName, parse_method, parse_name};

/// Items of a header value that a Deny checks; each may cost a regular expression. A value with more items counts as
/// matching.
const ITEMS_MAX: usize = 1000;

/// The policies that target this pod. The default stands for policies that are not known, and allows nothing.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    /// What they were compiled from. None: the document with the policies was not read yet.
    source: Option<Vec<wire::Policy>>,
    rules: Vec<Rule>,
    defaults: Vec<DefaultDeny>,
    /// The headers in their conditions.
    pub(crate) protected: Option<Arc<ProtectedHeaders>>,
}

#[derive(Debug)]
struct Rule {
    name: Arc<RuleName>,
    action: wire::PolicyAction,
    /// Ports of the policy's target. None: all.
    target_ports: Option<Vec<u16>>,
    ports: Vec<u16>,
    /// Empty: everybody.
    from: Box<[Source]>,
    methods: Vec<Method>,
    paths: Vec<PathMatch>,
    headers: Box<[(HeaderName, ValueTest)]>,
}

/// Callers. An empty list always matches.
#[derive(Debug)]
struct Source {
    accounts: Box<[Account]>,
    not_accounts: Box<[Account]>,
    namespaces: Box<[Box<str>]>,
    not_namespaces: Box<[Box<str>]>,
}

/// A policy that refuses what no Allow matches.
#[derive(Debug)]
struct DefaultDeny {
    name: Arc<RuleName>,
    /// Ports of the policy's target. None: all.
    target_ports: Option<Vec<u16>>,
}

/// Where a call goes, and who calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a> {
    /// Port of the pod.
    pub(crate) port: u16,
    /// The account that the caller has proven to be, in the trust domain of this pod.
    pub(crate) caller: Option<&'a Account>,
}

/// The verdict of the policies on a call.
#[derive(Clone, Debug)]
pub(crate) enum Verdict<'a> {
    /// The call passes.
    Allowed,
    /// This Deny rule matches.
    Denied(&'a Arc<RuleName>),
    /// Only what an Allow rule matches is allowed, and none matches. Names the first Allow rule, or the policy whose
    /// default it is.
    NotAllowed(&'a Arc<RuleName>),
    /// It is not known which policies there are.
    Unknown,
}

/// The verdict of the policies on an HTTP request.
#[derive(Clone, Debug)]
pub(crate) struct RequestVerdict<'a> {
    pub(crate) verdict: Verdict<'a>,
    /// The reading of the path that decided, if it is not the path as it came.
    pub(crate) reading: Option<String>,
}

impl Policies {
    /// Compiles the policies that target the pod while it has these labels.
    pub(crate) fn compile(
        pod: &Pod,
        labels: &BTreeMap<String, String>,
        policies: Vec<wire::Policy>,
    ) -> Result<Self, CompileError> {
        let (mut rules, mut defaults, mut source) = (Vec::new(), Vec::new(), Vec::new());
        for policy in policies {
            let Some(target_ports) = target_ports_of(pod, labels, &policy.target) else { continue };
            source.push(policy.clone());
            let wire::Policy { name, target: _, default_deny, rules: wire_rules } = policy;
            let rule_name = |rule: &str| Arc::new(RuleName::new("MeshPolicy", &pod.namespace, &name, rule));
            if default_deny {
                defaults.push(DefaultDeny { name: rule_name("default"), target_ports: target_ports.clone() });
            }
            for (at, rule) in wire_rules.into_iter().enumerate() {
                let wire::AuthorizationRule { action, from, methods, paths, headers, ports } = rule;
                rules.push(Rule {
                    name: rule_name(&at.to_string()),
                    action,
                    target_ports: target_ports.clone(),
                    ports,
                    from: from.into_iter().map(Source::compile).collect::<Result<_, _>>()?,
                    methods: methods.iter().map(|method| parse_method(method)).collect::<Result<_, _>>()?,
                    paths: paths.into_iter().map(compile_path).collect::<Result<_, _>>()?,
                    headers: headers.into_iter().map(compile_header).collect::<Result<_, _>>()?,
                });
            }
        }
        let names = Names::of(rules.iter().flat_map(|rule| rule.headers.iter().map(|(name, _)| name)));
        let protected = names.map(|names| Arc::new(ProtectedHeaders { request: Some(names), response: None }));
        Ok(Self { source: Some(source), rules, defaults, protected })
    }

    /// Whether every call gets the same verdict as from `other`, because both were compiled from the same policies.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.source == other.source
    }

    /// The names of all rules, and those of the defaults.
    pub(crate) fn rule_names(&self) -> impl Iterator<Item = &str> {
        let of_rules = self.rules.iter().map(|rule| &rule.name);
        of_rules.chain(self.defaults.iter().map(|default| &default.name)).map(|name| name.text.as_str())
    }

    /// Checks an HTTP request.
    pub(crate) fn check_request(
        &self,
        call: Call<'_>,
        head: &RequestHead<'_>,
    ) -> Result<RequestVerdict<'_>, TooManyReadings> {
        let of = |head: &RequestHead<'_>| self.verdict(call, |rule| rule.denies(head), |rule| rule.allows(head));
        let readings = match self.for_port(call.port).any(|rule| !rule.paths.is_empty()) {
            true => path::readings(head.path)?,
            false => Readings::One(head.path),
        };
        let readings = match readings {
            Readings::One(_) => return Ok(RequestVerdict { verdict: of(head), reading: None }),
            Readings::Several(readings) => readings,
        };
        // The path as it came first: a regular expression may be written for it.
        let denies = |rule: &&Rule| !rule.is_allow() && rule.names(call.caller) && rule.denies(head);
        if let Some(rule) = self.for_port(call.port).find(denies) {
            return Ok(RequestVerdict { verdict: Verdict::Denied(&rule.name), reading: None });
        }
        for reading in readings {
            let verdict = of(&RequestHead { path: &reading, ..*head });
            if !matches!(verdict, Verdict::Allowed) {
                return Ok(RequestVerdict { verdict, reading: Some(reading) });
            }
        }
        Ok(RequestVerdict { verdict: Verdict::Allowed, reading: None })
    }

    /// Whether a rule for the port has conditions that only requests can meet.
    pub(crate) fn has_http_conditions(&self, port: u16) -> bool {
        self.for_port(port).any(Rule::has_http_conditions)
    }

    /// Checks a TCP connection. A Deny with HTTP conditions counts as matching, an Allow with HTTP conditions does not.
    pub(crate) fn check_tcp(&self, call: Call<'_>) -> Verdict<'_> {
        self.verdict(call, |_| true, |rule| !rule.has_http_conditions())
    }

    /// `denies` and `allows`: whether a rule that names the caller matches the rest of the call.
    fn verdict(&self, call: Call<'_>, denies: impl Fn(&Rule) -> bool, allows: impl Fn(&Rule) -> bool) -> Verdict<'_> {
        if self.source.is_none() {
            return Verdict::Unknown;
        }
        let Call { port, caller } = call;
        let (mut first_allow, mut allowed) = (None, false);
        for rule in self.for_port(port) {
            match rule.action {
                wire::PolicyAction::Deny if rule.names(caller) && denies(rule) => return Verdict::Denied(&rule.name),
                wire::PolicyAction::Deny => {}
                wire::PolicyAction::Allow => {
                    first_allow = first_allow.or(Some(&rule.name));
                    allowed = allowed || rule.names(caller) && allows(rule);
                }
            }
        }
        if allowed {
            return Verdict::Allowed;
        }
        let default = || self.defaults.iter().find(|default| has_port(&default.target_ports, port));
        // An Allow for other ports of the pod closes this port too, unless its target does not have this port.
        let elsewhere = || self.targeting(port).find(|rule| rule.is_allow()).map(|rule| &rule.name);
        match first_allow.or_else(|| default().map(|default| &default.name)).or_else(elsewhere) {
            Some(rule) => Verdict::NotAllowed(rule),
            None => Verdict::Allowed,
        }
    }

    /// Rules whose target has the port.
    fn targeting(&self, port: u16) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(move |rule| has_port(&rule.target_ports, port))
    }

    /// Rules that may match a call to the port.
    fn for_port(&self, port: u16) -> impl Iterator<Item = &Rule> {
        self.targeting(port).filter(move |rule| rule.ports.is_empty() || rule.ports.contains(&port))
    }
}

impl Rule {
    fn is_allow(&self) -> bool {
        self.action == wire::PolicyAction::Allow
    }

    fn has_http_conditions(&self) -> bool {
        !(self.methods.is_empty() && self.paths.is_empty() && self.headers.is_empty())
    }

    /// Whether the rule is about the caller.
    fn names(&self, caller: Option<&Account>) -> bool {
        self.from.is_empty()
            || self.from.iter().any(|source| match caller {
                Some(account) => source.includes(account),
                None => !self.is_allow() && source.is_exemption(),
            })
    }

    /// Whether a Deny matches a request: it matches any of its readings.
    fn denies(&self, head: &RequestHead<'_>) -> bool {
        // Some frameworks convert the method to upper case before they compare it.
        let is_method = |method: &Method| method.as_str().eq_ignore_ascii_case(head.method.as_str());
        // Most frameworks serve `/a/` as `/a`.
        let without_slash = head.path.strip_suffix('/').filter(|path| !path.is_empty());
        (self.methods.is_empty() || self.methods.iter().any(is_method))
            && (self.paths.is_empty()
                || self
                    .paths
                    .iter()
                    .any(|path| path.matches(head.path) || without_slash.is_some_and(|it| path.matches(it))))
            && self.headers.iter().all(|(name, test)| any_reading_matches(head.headers, name, test))
    }

    /// Whether an Allow matches a request: it matches all of its readings.
    fn allows(&self, head: &RequestHead<'_>) -> bool {
        (self.methods.is_empty() || self.methods.contains(head.method))
            && (self.paths.is_empty() || self.paths.iter().any(|path| path.matches(head.path)))
            && self.headers.iter().all(|(name, test)| all_readings_match(head.headers, name, test))
    }
}

impl Source {
    fn compile(source: wire::Source) -> Result<Self, CompileError> {
        let wire::Source { service_accounts, not_service_accounts, namespaces, not_namespaces } = source;
        let account = |account: wire::ObjectRef| Account::new(&account.namespace, &account.name);
        let accounts = |accounts: Vec<wire::ObjectRef>| -> Result<_, CompileError> {
            accounts.into_iter().map(account).collect::<Result<_, _>>().map_err(CompileError::Account)
        };
        let names = |names: Vec<String>| names.into_iter().map(String::into_boxed_str).collect();
        Ok(Self {
            accounts: accounts(service_accounts)?,
            not_accounts: accounts(not_service_accounts)?,
            namespaces: names(namespaces),
            not_namespaces: names(not_namespaces),
        })
    }

    fn includes(&self, account: &Account) -> bool {
        let is_in = |names: &[Box<str>]| names.iter().any(|name| **name == *account.namespace());
        (self.accounts.is_empty() || self.accounts.contains(account))
            && (self.namespaces.is_empty() || is_in(&self.namespaces))
            && !self.not_accounts.contains(account)
            && !is_in(&self.not_namespaces)
    }

    /// Whether it names only who is exempt.
    fn is_exemption(&self) -> bool {
        self.accounts.is_empty() && self.namespaces.is_empty()
    }
}

/// Whether a target has the port. None: it has all ports.
fn has_port(ports: &Option<Vec<u16>>, port: u16) -> bool {
    ports.as_ref().is_none_or(|ports| ports.contains(&port))
}

/// Whether a header condition matches any reading of the header: a value, an item of one, all values joined, or the
/// value of another spelling of the name.
fn any_reading_matches(headers: &HeaderMap, name: &HeaderName, test: &ValueTest) -> bool {
    match test {
        ValueTest::Absent => !headers.contains_key(name),
        ValueTest::Present => values(headers, name).next().is_some(),
        ValueTest::Exact(_) | ValueTest::Regex(_) => {
            let separator = if *name == header::COOKIE { b';' } else { b',' };
            let (mut first, mut joined) = (None, Vec::new());
            for value in values(headers, name) {
                let value = value.as_bytes();
                let mut items = value.split(|byte| *byte == separator).enumerate();
                if value_matches(name, test, value)
                    || items.any(|(at, item)| at == ITEMS_MAX || value_matches(name, test, item.trim_ascii()))
                {
                    return true;
                }
                match first {
                    None => first = Some(value),
                    Some(first) => {
                        if joined.is_empty() {
                            joined.extend_from_slice(first);
                        }
                        joined.extend_from_slice(&[separator, b' ']);
                        joined.extend_from_slice(value);
                    }
                }
            }
            !joined.is_empty() && value_matches(name, test, &joined)
        }
    }
}

/// Whether a header condition matches every value of the header, including those under other spellings of its name:
/// otherwise a second value could be smuggled in beside an allowed one.
fn all_readings_match(headers: &HeaderMap, name: &HeaderName, test: &ValueTest) -> bool {
    match test {
        ValueTest::Absent => values(headers, name).next().is_none(),
        ValueTest::Present => headers.contains_key(name),
        ValueTest::Exact(_) | ValueTest::Regex(_) => {
            headers.contains_key(name)
                && values(headers, name).all(|value| test.matches(&normalize_value(name, value.as_bytes())))
        }
    }
}

/// Whether a condition matches a value as octets or as ISO 8859-1, which many applications decode headers as.
fn value_matches(name: &HeaderName, test: &ValueTest, text: &[u8]) -> bool {
    let latin1 = || text.iter().map(|byte| char::from(*byte)).collect::<String>();
    test.matches(&normalize_value(name, text))
        || test.matches(text)
        || (!text.is_ascii() && test.matches(latin1().as_bytes()))
}

/// The values of a header, including those under names that some applications cannot tell from it.
fn values<'a>(headers: &'a HeaderMap, name: &'a HeaderName) -> impl Iterator<Item = &'a HeaderValue> {
    let has_other_spelling = move |other: &HeaderName| other != name && is_same_name(other, name);
    let other_spellings = headers.iter().filter(move |(other, _)| has_other_spelling(other)).map(|(_, value)| value);
    headers.get_all(name).iter().chain(other_spellings)
}

/// Compiles a path condition in the canonical form that readings have.
fn compile_path(path: wire::PathMatch) -> Result<PathMatch, CompileError> {
    PathMatch::compile(match path {
        wire::PathMatch::Exact(path) => wire::PathMatch::Exact(path::canonical(&path)),
        wire::PathMatch::Prefix(path) => wire::PathMatch::Prefix(path::canonical(&path)),
        regex @ wire::PathMatch::Regex(_) => regex,
    })
}

/// Compiles a header condition. Several conditions on one name all count: leaving one out would widen the rule.
fn compile_header(condition: wire::ValueMatch) -> Result<(HeaderName, ValueTest), CompileError> {
    let wire::ValueMatch { name, test } = condition;
    let name = parse_name(&name)?;
    let test = ValueTest::of_header(&name, test)?;
    Ok((name, test))
}

/// The ports of this pod that a target has. Outer None: the target does not select the pod. Inner None: all ports.
pub(crate) fn target_ports_of(
    pod: &Pod,
    labels: &BTreeMap<String, String>,
    target: &wire::Target,
) -> Option<Option<Vec<u16>>> {
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
    use proptest::prelude::*;

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
        let judged = policies.check_request(call(port), &head).expect("few readings");
        assert_eq!(describe(&judged.verdict), expected, "{method} {path} {headers:?} on {port}");
    }

    /// A call without identity.
    fn call(port: u16) -> Call<'static> {
        Call { port, caller: None }
    }

    fn describe(verdict: &Verdict<'_>) -> String {
        match verdict {
            Verdict::Allowed => "allowed".into(),
            Verdict::Denied(by) => format!("denied by {}", by.text),
            Verdict::NotAllowed(by) => format!("not allowed by {}", by.text),
            Verdict::Unknown => "unknown".into(),
        }
    }

    #[test]
    fn deny_beats_allow_and_allow_denies_the_rest() {
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
    fn tcp_is_denied_where_rules_have_http_conditions() {
        let deny = policies(serde_json::json!([{"name": "p", "target": "namespace", "rules": [
            {"action": "deny", "methods": ["POST"]}]}]));
        assert_eq!(describe(&deny.check_tcp(call(80))), "denied by MeshPolicy/shop/p/0");
        let allow = policies(serde_json::json!([{"name": "p", "target": "namespace", "rules": [
            {"action": "allow", "methods": ["GET"], "ports": [80]}, {"action": "allow", "ports": [3306]}]}]));
        assert_eq!(describe(&allow.check_tcp(call(80))), "not allowed by MeshPolicy/shop/p/0");
        assert_eq!(describe(&allow.check_tcp(call(3306))), "allowed");
        assert_eq!(
            describe(&allow.check_tcp(call(22))),
            "not allowed by MeshPolicy/shop/p/0",
            "a port that no Allow names"
        );
        assert_eq!(describe(&policies(serde_json::json!([])).check_tcp(call(80))), "allowed");
    }

    #[test]
    fn unknown_policies_allow_nothing() {
        assert_eq!(describe(&Policies::default().check_tcp(call(80))), "unknown");
        assert_eq!(describe(&policies(serde_json::json!([])).check_tcp(call(80))), "allowed", "known to be none");
    }

    #[test]
    fn service_target_covers_its_target_ports() {
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
            assert_eq!(describe(&policies.check_tcp(call(port))), expected, "port {port}");
        }
    }

    #[test]
    fn default_of_deny_refuses_what_no_allow_matches_on_the_ports_of_its_target() {
        let allow = serde_json::json!({"action": "allow", "methods": ["GET"], "ports": [80]});
        let policies = policies(serde_json::json!([
            {"name": "closed", "target": {"service": {"selector": {"app": "reviews"}, "ports": [80, 81]}},
             "defaultDeny": true, "rules": []},
            {"name": "readers", "target": {"service": {"selector": {"app": "reviews"}, "ports": [80]}}, "rules": [allow]}
        ]));
        check(&policies, 80, "GET", "/", &[], "allowed");
        check(&policies, 80, "POST", "/", &[], "not allowed by MeshPolicy/shop/readers/0");
        check(&policies, 81, "GET", "/", &[], "not allowed by MeshPolicy/shop/closed/default");
        check(&policies, 82, "GET", "/", &[], "allowed");
        assert_eq!(describe(&policies.check_tcp(call(81))), "not allowed by MeshPolicy/shop/closed/default");
        let names: Vec<&str> = policies.rule_names().collect();
        assert_eq!(names, ["MeshPolicy/shop/readers/0", "MeshPolicy/shop/closed/default"]);
    }

    #[test]
    fn caller_without_identity_matches_only_a_deny_with_exemptions() {
        let web = || serde_json::json!([{"namespace": "shop", "name": "web"}]);
        for (from, denied, allowed) in [
            (serde_json::json!({"serviceAccounts": web()}), false, false),
            (serde_json::json!({"namespaces": ["shop"]}), false, false),
            (serde_json::json!({"notServiceAccounts": web()}), true, false),
            (serde_json::json!({"notNamespaces": ["shop"]}), true, false),
            (serde_json::json!({"notNamespaces": ["shop"], "notServiceAccounts": web()}), true, false),
            (serde_json::json!({"namespaces": ["shop"], "notServiceAccounts": web()}), false, false),
        ] {
            let is_allowed = |action: &str| {
                let policies = policies(serde_json::json!([{"name": "p", "target": "namespace", "rules": [
                    {"action": action, "from": [from]}]}]));
                matches!(policies.check_tcp(call(80)), Verdict::Allowed)
            };
            assert_eq!((!is_allowed("deny"), is_allowed("allow")), (denied, allowed), "{from}");
        }
    }

    /// Namespaces and service accounts whose names contain, begin or end each other, and would be confused if they were
    /// joined to one text with any of the characters that names can have.
    const ACCOUNTS: [(&str, &str); 9] = [
        ("a", "b-c"),
        ("a-b", "c"),
        ("a", "b.c"),
        ("a-b", "c.d"),
        ("a-b-c", "d"),
        ("a", "b"),
        ("a", "b-c.d"),
        ("b", "a"),
        ("ab", "c"),
    ];

    fn some_accounts() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
        prop::collection::vec(prop::sample::select(&ACCOUNTS[..]), 0..3)
    }

    proptest! {
        /// Callers are compared by namespace and name, each as a whole, for requests and connections alike.
        #[test]
        fn rules_match_the_callers_that_they_name(
            caller in prop::option::of(prop::sample::select(&ACCOUNTS[..])),
            rules in prop::collection::vec(
                (any::<bool>(), prop::collection::vec(prop::array::uniform4(some_accounts()), 0..3)), 0..4),
            default_deny in any::<bool>(),
        ) {
            let object = |(namespace, name): &(&str, &str)| serde_json::json!({"namespace": namespace, "name": name});
            let objects = |accounts: &[(&str, &str)]| accounts.iter().map(object).collect::<Vec<_>>();
            let namespaces = |accounts: &[(&'static str, &str)]| accounts.iter().map(|(name, _)| *name).collect::<Vec<_>>();
            // An entry names somebody, as the operator makes sure.
            let entries = |from: &[[Vec<(&'static str, &'static str)>; 4]]| -> Vec<_> {
                from.iter().filter(|lists| lists.iter().any(|list| !list.is_empty())).cloned().collect()
            };
            let source = |[is, is_not, of, not_of]: &[Vec<(&'static str, &'static str)>; 4]| serde_json::json!({
                "serviceAccounts": objects(is), "notServiceAccounts": objects(is_not),
                "namespaces": namespaces(of), "notNamespaces": namespaces(not_of),
            });
            let compiled = policies(serde_json::json!([{
                "name": "p", "target": "namespace", "defaultDeny": default_deny,
                "rules": rules.iter().map(|(deny, from)| serde_json::json!({
                    "action": if *deny { "deny" } else { "allow" },
                    "from": entries(from).iter().map(source).collect::<Vec<_>>(),
                })).collect::<Vec<_>>(),
            }]));
            let names = |deny: bool, from: &[[Vec<(&'static str, &'static str)>; 4]]| {
                let entries = entries(from);
                entries.is_empty() || entries.iter().any(|[is, is_not, of, not_of]| match caller {
                    None => deny && is.is_empty() && of.is_empty(),
                    Some(caller) => {
                        (is.is_empty() || is.contains(&caller))
                            && !is_not.contains(&caller)
                            && (of.is_empty() || namespaces(of).contains(&caller.0))
                            && !namespaces(not_of).contains(&caller.0)
                    }
                })
            };
            let denied = rules.iter().any(|(deny, from)| *deny && names(true, from));
            let allowed = rules.iter().any(|(deny, from)| !*deny && names(false, from));
            let is_open = !default_deny && rules.iter().all(|(deny, _)| *deny);
            let expected = !denied && (allowed || is_open);
            let account = caller.map(|(namespace, name)| Account::new(namespace, name).expect("an account"));
            let call = Call { port: 80, caller: account.as_ref() };
            prop_assert_eq!(matches!(compiled.check_tcp(call), Verdict::Allowed), expected);
            let headers = HeaderMap::new();
            let head = RequestHead { method: &Method::GET, path: "/", query: None, headers: &headers };
            let judged = compiled.check_request(call, &head).expect("few readings");
            prop_assert_eq!(matches!(judged.verdict, Verdict::Allowed), expected);
        }
    }

    #[test]
    fn policies_are_the_same_if_they_select_the_pod_with_the_same_rules() {
        let one = |rules: serde_json::Value| {
            policies(serde_json::json!([
                {"name": "p", "target": "namespace", "rules": rules},
                {"name": "other", "target": {"serviceAccount": "ratings"}, "rules": rules}
            ]))
        };
        let deny = || serde_json::json!([{"action": "deny", "ports": [80]}]);
        assert!(one(deny()).is_same(&one(deny())));
        let own = policies(serde_json::json!([{"name": "p", "target": "namespace", "rules": deny()}]));
        assert!(one(deny()).is_same(&own), "policies for other pods do not count");
        assert!(!one(deny()).is_same(&one(serde_json::json!([{"action": "deny"}]))));
        assert!(!policies(serde_json::json!([])).is_same(&Policies::default()), "known, and not known");
    }

    fn decoded(path: &str) -> String {
        let (bytes, mut octets, mut at) = (path.as_bytes(), Vec::new(), 0);
        while at < bytes.len() {
            let hex = path.get(at + 1..at + 3).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
            match hex.filter(|_| bytes[at] == b'%').and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                Some(octet) => {
                    octets.push(octet);
                    at += 3;
                }
                None => {
                    octets.push(bytes[at]);
                    at += 1;
                }
            }
        }
        String::from_utf8_lossy(&octets).into_owned()
    }

    fn merged(path: &str) -> String {
        let mut merged = path.to_owned();
        while merged.contains("//") {
            merged = merged.replace("//", "/");
        }
        merged
    }

    fn resolved(path: &str) -> String {
        let mut kept: Vec<&str> = Vec::new();
        for segment in path.split('/').skip(1) {
            match segment {
                "." => {}
                ".." => {
                    kept.pop();
                }
                name => kept.push(name),
            }
        }
        format!("/{}", kept.join("/"))
    }

    fn stripped(path: &str) -> String {
        path.split('/').map(|segment| segment.split(';').next().unwrap_or_default()).collect::<Vec<_>>().join("/")
    }

    fn decoded_by_segment(path: &str) -> String {
        path.split('/').map(|segment| decoded(segment).replace('/', "%2F")).collect::<Vec<_>>().join("/")
    }

    /// How an application interprets a path.
    type Interpret = fn(&str) -> String;

    /// Interpretations of a path, each written independently of the code above.
    const APPLICATIONS: [(&str, Interpret); 14] = [
        ("no interpretation", |path| path.to_owned()),
        ("WSGI, PHP", decoded),
        ("nginx", |path| resolved(&merged(&decoded(path)))),
        ("nginx that merges no slashes", |path| resolved(&decoded(path))),
        ("nginx before WSGI", |path| decoded(&resolved(&merged(&decoded(path))))),
        ("nginx before nginx", |path| resolved(&merged(&decoded(&resolved(&merged(&decoded(path))))))),
        ("Tomcat", |path| resolved(&merged(&decoded_by_segment(&stripped(path))))),
        ("Tomcat that decodes slashes", |path| resolved(&merged(&decoded(&stripped(path))))),
        ("Spring", |path| merged(&decoded(&stripped(path)))),
        ("decodes before it strips", |path| resolved(&merged(&stripped(&decoded(path))))),
        ("a proxy that resolves before Tomcat", |path| {
            resolved(&merged(&decoded_by_segment(&stripped(&resolved(path)))))
        }),
        ("IIS", |path| resolved(&merged(&decoded(path).replace('\\', "/")))),
        ("Rails, GitLab", decoded_by_segment),
        ("C strings", |path| resolved(&merged(decoded(path).split('\0').next().unwrap_or_default()))),
    ];

    fn is_under(path: &str, prefix: &str) -> bool {
        prefix == "/" || path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    proptest! {
        /// An allowed request matches no Deny and, if there are Allows, at least one, in the interpretation of every
        /// application. A path without special octets is decided as it is.
        #[test]
        fn verdicts_hold_for_the_path_readings_of_every_application(
            path in "(/|/|private|public|a|\\.|\\.\\.|;|;x|%2[fF]|%5[cC]|\\\\|%2[eE]|%3[bB]|%00|%25|%252[efEF]|%70|%|2f|2e){1,12}",
            rules in prop::collection::vec(
                (any::<bool>(), prop::sample::select(vec!["/", "/private", "/public", "/public/a", "/a/private"])), 1..4),
        ) {
            let path = format!("/{path}");
            let compiled = policies(serde_json::json!([{"name": "p", "target": "namespace", "rules": rules.iter().map(|(deny, prefix)| {
                serde_json::json!({"action": if *deny { "deny" } else { "allow" }, "paths": [{"prefix": prefix}]})
            }).collect::<Vec<_>>()}]));
            let passes = |path: &str| {
                let headers = HeaderMap::new();
                let head = RequestHead { method: &Method::GET, path, query: None, headers: &headers };
                compiled.check_request(call(80), &head).is_ok_and(|judged| matches!(judged.verdict, Verdict::Allowed))
            };
            let has = |deny: bool| rules.iter().any(|(other, _)| *other == deny);
            let under = |path: &str, deny: bool| rules.iter().any(|(other, prefix)| *other == deny && is_under(path, prefix));
            let expected = |path: &str| !under(path, true) && (!has(false) || under(path, false));
            if passes(&path) {
                for (application, read) in APPLICATIONS {
                    let reading = read(&path);
                    prop_assert!(expected(&reading), "{} passes, and {} reads {}", path, application, reading);
                }
            }
            let plain = path.replace(['%', ';', '\\', '.'], "x").replace("//", "/x/").replace("//", "/x/");
            prop_assert_eq!(passes(&plain), expected(&plain), "{}", plain);
        }
    }

    #[test]
    fn denial_names_the_reading_that_decided() {
        let policies = policies(serde_json::json!([{"name": "p", "target": "namespace", "rules": [
            {"action": "deny", "paths": [{"prefix": "/private"}]}]}]));
        let headers = HeaderMap::new();
        for (path, expected) in
            [("/private", None), ("/private;x", Some("/private")), ("/x/..;/private", Some("/private")), ("/a;x", None)]
        {
            let head = RequestHead { method: &Method::GET, path, query: None, headers: &headers };
            let judged = policies.check_request(call(80), &head).expect("few readings");
            assert_eq!(judged.reading.as_deref(), expected, "{path}");
        }
    }
}
