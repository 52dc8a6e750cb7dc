//! Who may call this pod. Pure: policies and a call in, verdict out.
//!
//! Any Deny beats every Allow; where an Allow governs the port, only what one allows passes; otherwise a call passes.
//! Nothing widens: a rule that looks into HTTP never lets through bytes that nobody can look into.
//!
//! What applications read in several ways is held against every reading: a Deny takes a request that has one which it names, and an
//! Allow only one that has no other. The readings of a path are those of [`path`]; those of headers and methods are here, and
//! `docs/policy.md` lists them all.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::Method;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use weft_config as wire;

use crate::bootstrap::Pod;
use crate::decide::{RequestHead, looked_at};
use crate::http::head::{Names, ProtectedHeaders, is_same_name};
use crate::path::{self, Readings, TooManyReadings};
use crate::table::CompileError;
use crate::table::route::{Origin, PathMatch, ValueTest, parse_method, parse_name};

/// Items of a header's value that a Deny looks at, each at the price of an expression. One with more is taken.
const ITEMS_MAX: usize = 1000;

/// The policies that govern this pod.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    rules: Vec<Rule>,
    /// What their conditions look at.
    pub(crate) protected: Option<Arc<ProtectedHeaders>>,
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

/// What policy says of an HTTP request.
#[derive(Clone, Debug)]
pub(crate) struct Judged<'a> {
    pub(crate) verdict: Verdict<'a>,
    /// What the path is read as where that is said of, if it is another path than came.
    pub(crate) reading: Option<String>,
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
                    paths: paths.into_iter().map(compile_path).collect::<Result<_, _>>()?,
                    headers: headers.into_iter().map(compile_header).collect::<Result<_, _>>()?,
                });
            }
        }
        let names = Names::of(rules.iter().flat_map(|rule| rule.headers.iter().map(|(name, _)| name)));
        let protected = names.map(|names| Arc::new(ProtectedHeaders { request: Some(names), response: None }));
        Ok(Self { rules, protected })
    }

    /// What is said of an HTTP request to a port.
    pub(crate) fn of_request(&self, port: u16, head: &RequestHead<'_>) -> Result<Judged<'_>, TooManyReadings> {
        let of = |head: &RequestHead<'_>| self.verdict(port, |rule| rule.denies(head), |rule| rule.allows(head));
        let readings = match self.on(port).any(|rule| !rule.paths.is_empty()) {
            true => path::readings(head.path)?,
            false => Readings::One(head.path),
        };
        let readings = match readings {
            Readings::One(_) => return Ok(Judged { verdict: of(head), reading: None }),
            Readings::Several(readings) => readings,
        };
        // An expression may be written for the path as it comes.
        if let Some(rule) = self.on(port).find(|rule| !rule.is_allow() && rule.denies(head)) {
            return Ok(Judged { verdict: Verdict::Denied(&rule.origin), reading: None });
        }
        for reading in readings {
            let verdict = of(&RequestHead { path: &reading, ..*head });
            if !matches!(verdict, Verdict::Allowed) {
                return Ok(Judged { verdict, reading: Some(reading) });
            }
        }
        Ok(Judged { verdict: Verdict::Allowed, reading: None })
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

    /// Whether a Deny takes a request: one that has a reading which it names.
    fn denies(&self, head: &RequestHead<'_>) -> bool {
        // Some frameworks write a method in capital letters before they look at it.
        let is_method = |method: &Method| method.as_str().eq_ignore_ascii_case(head.method.as_str());
        // Most of them serve `/a/` as `/a`.
        let without_slash = head.path.strip_suffix('/').filter(|path| !path.is_empty());
        (self.methods.is_empty() || self.methods.iter().any(is_method))
            && (self.paths.is_empty()
                || self
                    .paths
                    .iter()
                    .any(|path| path.takes(head.path) || without_slash.is_some_and(|it| path.takes(it))))
            && self.headers.iter().all(|(name, test)| some_reading_holds(head.headers, name, test))
    }

    /// Whether an Allow takes a request: one that has no reading which it does not name.
    fn allows(&self, head: &RequestHead<'_>) -> bool {
        (self.methods.is_empty() || self.methods.contains(head.method))
            && (self.paths.is_empty() || self.paths.iter().any(|path| path.takes(head.path)))
            && self.headers.iter().all(|(name, test)| every_reading_holds(head.headers, name, test))
    }
}

/// Whether a condition on a header holds in some reading: for a value, one of its items, all lines of it joined, or what stands
/// under another spelling of its name.
fn some_reading_holds(headers: &HeaderMap, name: &HeaderName, test: &ValueTest) -> bool {
    match test {
        ValueTest::Absent => !headers.contains_key(name),
        ValueTest::Present => values(headers, name).next().is_some(),
        ValueTest::Exact(_) | ValueTest::Regex(_) => {
            let separator = if *name == header::COOKIE { b';' } else { b',' };
            let (mut first, mut joined) = (None, Vec::new());
            for value in values(headers, name) {
                let value = value.as_bytes();
                let mut items = value.split(|byte| *byte == separator).enumerate();
                if holds(name, test, value)
                    || items.any(|(at, item)| at == ITEMS_MAX || holds(name, test, item.trim_ascii()))
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
            !joined.is_empty() && holds(name, test, &joined)
        }
    }
}

/// Whether a condition on a header holds in every reading: for each value, also for those under other spellings of its name. A
/// second one must not ride along.
fn every_reading_holds(headers: &HeaderMap, name: &HeaderName, test: &ValueTest) -> bool {
    match test {
        ValueTest::Absent => values(headers, name).next().is_none(),
        ValueTest::Present => headers.contains_key(name),
        ValueTest::Exact(_) | ValueTest::Regex(_) => {
            headers.contains_key(name)
                && values(headers, name).all(|value| test.holds(&looked_at(name, value.as_bytes())))
        }
    }
}

/// Whether a condition holds for a text, octet by octet or as ISO 8859-1, in which many applications read headers.
fn holds(name: &HeaderName, test: &ValueTest, text: &[u8]) -> bool {
    let latin1 = || text.iter().map(|byte| char::from(*byte)).collect::<String>();
    test.holds(&looked_at(name, text)) || test.holds(text) || (!text.is_ascii() && test.holds(latin1().as_bytes()))
}

/// The values of a header, also under names that are the same to some applications.
fn values<'a>(headers: &'a HeaderMap, name: &'a HeaderName) -> impl Iterator<Item = &'a HeaderValue> {
    let is_respelled = move |other: &HeaderName| other != name && is_same_name(other, name);
    let respelled = headers.iter().filter(move |(other, _)| is_respelled(other)).map(|(_, value)| value);
    headers.get_all(name).iter().chain(respelled)
}

/// A condition on paths, in the form that readings have.
fn compile_path(path: wire::PathMatch) -> Result<PathMatch, CompileError> {
    PathMatch::compile(match path {
        wire::PathMatch::Exact(path) => wire::PathMatch::Exact(path::canonical(&path)),
        wire::PathMatch::Prefix(path) => wire::PathMatch::Prefix(path::canonical(&path)),
        regex @ wire::PathMatch::Regex(_) => regex,
    })
}

/// A condition on a header. All of a rule count, also those on one name: to drop one would widen the rule.
fn compile_header(condition: wire::ValueMatch) -> Result<(HeaderName, ValueTest), CompileError> {
    let wire::ValueMatch { name, test } = condition;
    let name = parse_name(&name)?;
    let test = ValueTest::of_header(&name, test)?;
    Ok((name, test))
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
        let judged = policies.of_request(port, &head).expect("few readings");
        assert_eq!(word(&judged.verdict), expected, "{method} {path} {headers:?} on {port}");
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

    /// What an application takes a path for.
    type Reads = fn(&str) -> String;

    /// What applications make of a path, each written for itself.
    const APPLICATIONS: [(&str, Reads); 14] = [
        ("takes it as it comes", |path| path.to_owned()),
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
        ("C", |path| resolved(&merged(decoded(path).split('\0').next().unwrap_or_default()))),
    ];

    fn is_under(path: &str, prefix: &str) -> bool {
        prefix == "/" || path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    proptest! {
        /// What passes is, for whatever an application takes it, under no Deny, and under an Allow if there is one. What has no
        /// octet that is read in several ways is decided as it stands.
        #[test]
        fn verdicts_hold_for_every_application(
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
                compiled.of_request(80, &head).is_ok_and(|judged| matches!(judged.verdict, Verdict::Allowed))
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
    fn a_refusal_names_the_reading() {
        let policies = policies(serde_json::json!([{"name": "p", "target": "namespace", "rules": [
            {"action": "deny", "paths": [{"prefix": "/private"}]}]}]));
        let headers = HeaderMap::new();
        for (path, expected) in
            [("/private", None), ("/private;x", Some("/private")), ("/x/..;/private", Some("/private")), ("/a;x", None)]
        {
            let head = RequestHead { method: &Method::GET, path, query: None, headers: &headers };
            let judged = policies.of_request(80, &head).expect("few readings");
            assert_eq!(judged.reading.as_deref(), expected, "{path}");
        }
    }
}
