//! Values of custom resources that the schema refuses.

use super::manifest::{apply, cluster, deny, route, weft};
use super::{Group, Mistake, Scene};
use crate::namespace::Mesh;

const TO_WEB: &str = "backendRefs: [{name: web, port: 80}]";
const A_DURATION: &str = "must be whole numbers with a unit (h, m, s or ms): 500ms, 5s, 1m, 1m30s";

pub(super) fn group() -> Group {
    let mut mistakes = of_routes();
    mistakes.extend(of_filters());
    mistakes.extend(of_backend_filters());
    mistakes.extend(of_clusters());
    mistakes.extend(of_policies());
    mistakes.extend(of_meshes());
    mistakes.extend(of_mutual_tls());
    Group { name: "values", title: "Values that are refused", mesh: Mesh::Outside, scene: Scene::default(), mistakes }
}

/// A route with one HTTP rule.
fn ruled(name: &str, rule: &str) -> Mistake {
    Mistake::new(name, apply(route("refused", "web", &format!("http: [{{{rule}}}]"))))
}

/// A route with one HTTP rule that sends to Service `web`.
fn forwarding(name: &str, fields: &str) -> Mistake {
    ruled(name, &format!("{TO_WEB}, {fields}"))
}

fn of_routes() -> Vec<Mistake> {
    vec![
        forwarding("a timeout without a unit: `request: \"5\"`", "timeouts: {request: \"5\"}")
            .refused(&["spec.http[0].timeouts.request", A_DURATION]),
        forwarding("a timeout of `0.5s`", "timeouts: {request: 0.5s}")
            .refused(&["spec.http[0].timeouts.request", A_DURATION]),
        forwarding("a timeout of `2 seconds`", "timeouts: {request: 2 seconds}")
            .refused(&["spec.http[0].timeouts.request", A_DURATION]),
        forwarding("a timeout as a number: `request: 5`", "timeouts: {request: 5}")
            .refused(&["spec.http[0].timeouts.request", "must be of type string"]),
        forwarding("a timeout of 25h", "timeouts: {request: 25h}")
            .refused(&["spec.http[0].timeouts.request", "must be at most 24h"]),
        forwarding("an attempt that may take longer than the request", "timeouts: {request: 1s, backendRequest: 2s}")
            .refused(&["spec.http[0].timeouts", "backendRequest must not be longer than request"]),
        forwarding("a backoff of 2m", "retry: {backoff: 2m}")
            .refused(&["spec.http[0].retry.backoff", "must be between 1ms and 1m"]),
        forwarding("20 attempts", "retry: {attempts: 20}")
            .refused(&["spec.http[0].retry.attempts", "should be less than or equal to 10"]),
        forwarding("a hedge after the timeout", "hedge: {after: 1s}, timeouts: {request: 1s}").refused(&[
            "spec.http[0]",
            "hedge.after must be shorter than timeouts.request and timeouts.backendRequest",
        ]),
        forwarding("a field that does not exist", "timeout: 2s").refused(&["unknown field \"spec.http[0].timeout\""]),
        forwarding("a path without a slash", "matches: [{path: {value: v2}}]")
            .refused(&["spec.http[0].matches[0].path", "a path starts with /"]),
        forwarding("path type `Prefix`, as in Ingress", "matches: [{path: {type: Prefix, value: /}}]").refused(&[
            "spec.http[0].matches[0].path.type: Unsupported value: \"Prefix\"",
            "supported values:",
            "\"PathPrefix\"",
        ]),
        forwarding(
            "a regular expression that does not compile",
            "matches: [{path: {type: RegularExpression, value: \"/a(\"}}]",
        )
        .refused(&["spec.http[0].matches[0].path", "the regular expression does not compile"]),
        forwarding("a method in lower case", "matches: [{method: get}]").refused(&[
            "spec.http[0].matches[0].method: Unsupported value: \"get\"",
            "supported values:",
            "\"GET\"",
        ]),
        forwarding("a header name with a space", "matches: [{headers: [{name: \"x user\", value: a}]}]").refused(&[
            "spec.http[0].matches[0].headers[0].name",
            "must be a header name, without spaces and colons: x-user",
        ]),
        forwarding("a rule name with capitals", "name: Checkout").refused(&[
            "spec.http[0].name",
            "must be lower case letters, digits and dashes, with a letter or digit at both ends: checkout-v2",
        ]),
        ruled("weights that sum to zero", "backendRefs: [{name: web, port: 80, weight: 0}]")
            .refused(&["spec.http[0]", "the weights of backendRefs sum to zero: give at least one a weight above 0"]),
        ruled("a rule without backends", "name: idle")
            .refused(&["spec.http[0]", "a rule needs backendRefs, or a RequestRedirect or DirectResponse filter"]),
        ruled("a port above 65535", "backendRefs: [{name: web, port: 90800}]")
            .refused(&["spec.http[0].backendRefs[0].port", "should be less than or equal to 65535"]),
        ruled("a backend without a port", "backendRefs: [{name: web}]")
            .refused(&["spec.http[0].backendRefs[0].port: Required value"]),
        ruled("a backend that is no Service", "backendRefs: [{kind: Deployment, name: web, port: 80}]").refused(&[
            "spec.http[0].backendRefs[0].kind: Unsupported value: \"Deployment\"",
            "supported values: \"Service\"",
        ]),
        Mistake::new(
            "two rules with one name",
            apply(route("refused", "web", &format!("http: [{{name: a, {TO_WEB}}}, {{name: a, {TO_WEB}}}]"))),
        )
        .refused(&["spec.http", "rule names must be unique"]),
        Mistake::new(
            "two rules without a name",
            apply(route("refused", "web", &format!("http: [{{{TO_WEB}}}, {{{TO_WEB}}}]"))),
        )
        .refused(&[
            "spec.http[1]: Duplicate value: {\"name\":\"default\"}",
            "a rule without a name is called default: give each rule a name of its own",
        ]),
        Mistake::new("a route without rules", apply(weft("MeshRoute", "refused", "parentRefs: [{name: web}]")))
            .refused(&["spec", "a route needs http, tls or tcp rules"]),
    ]
}

fn of_filters() -> Vec<Mistake> {
    vec![
        forwarding(
            "a redirect beside backends",
            "filters: [{type: RequestRedirect, requestRedirect: {port: 8443}}]",
        )
        .refused(&["spec.http[0]", "has no backend: remove its backendRefs"]),
        forwarding(
            "a filter without the field of its type",
            "filters: [{type: URLRewrite, requestRedirect: {port: 8443}}]",
        )
        .refused(&["spec.http[0].filters[0]", "a filter has exactly the field that its type names"]),
        forwarding(
            "a filter that sets the Host header",
            "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: Host, value: shop.example}]}}]",
        )
        .refused(&[
            "spec.http[0].filters[0].requestHeaderModifier.set[0].name",
            "cannot be changed; to change the host use URLRewrite",
        ]),
        forwarding("an origin without a scheme", "filters: [{type: CORS, cors: {allowOrigins: [shop.example]}}]").refused(&[
            "spec.http[0].filters[0].cors.allowOrigins[0]",
            "must be * or an origin with scheme and host, without a path: https://shop.example",
        ]),
        forwarding("a fault that does nothing", "filters: [{type: Fault, fault: {}}]")
            .refused(&["spec.http[0].filters[0].fault", "a fault needs a delay or an abort"]),
        forwarding(
            "a rate limit by header without the header's name",
            "filters: [{type: RateLimit, rateLimit: {requests: 1, key: {type: Header}}}]",
        )
        .refused(&[
            "spec.http[0].filters[0].rateLimit.key",
            "types Header, QueryParam and Cookie require a name; remove name for SourceAddress",
        ]),
    ]
}

/// A route with one HTTP rule, whose only backend has these filters.
fn backend_filters(name: &str, fields: &str, filters: &str) -> Mistake {
    ruled(name, &format!("{fields}backendRefs: [{{name: web, port: 80, filters: [{filters}]}}]"))
}

fn of_backend_filters() -> Vec<Mistake> {
    const REDIRECT: &str = "{type: RequestRedirect, requestRedirect: {hostname: shop.example}}";
    const REWRITE: &str = "{type: URLRewrite, urlRewrite: {hostname: shop.example}}";
    const PREFIX: &str = "{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /v2}}}";
    vec![
        backend_filters("a rate limit for one backend", "", "{type: RateLimit, rateLimit: {requests: 1}}")
            .refused(&["unknown field \"spec.http[0].backendRefs[0].filters[0].rateLimit\""]),
        backend_filters("two filters of one type for a backend", "", &format!("{REWRITE}, {REWRITE}"))
            .refused(&["spec.http[0].backendRefs[0].filters", "a filter type may appear once in a backendRef"]),
        backend_filters("a rewrite of requests that a backend redirects", "", &format!("{REWRITE}, {REDIRECT}"))
            .refused(&[
                "spec.http[0].backendRefs[0].filters",
                "RequestHeaderModifier, URLRewrite and RequestMirror have no effect with RequestRedirect",
            ]),
        backend_filters("a backend's filter without the field of its type", "", "{type: RequestMirror}")
            .refused(&["spec.http[0].backendRefs[0].filters[0]", "a filter has exactly the field that its type names"]),
        backend_filters(
            "a backend that replaces a prefix that no match has",
            "matches: [{path: {type: Exact, value: /v1}}], ",
            PREFIX,
        )
        .refused(&[
            "spec.http[0]",
            "ReplacePrefixMatch in a filter of a backendRef needs a PathPrefix in every match of the rule",
        ]),
        backend_filters("a backend that rewrites a tunnel", "matches: [{method: CONNECT}], ", REWRITE).refused(&[
            "spec.http[0]",
            "in a rule that matches CONNECT, backendRefs may only have filters of type ResponseHeaderModifier",
        ]),
        Mistake::new(
            "a filter for a backend of TCP connections",
            apply(route(
                "refused",
                "web",
                &format!("tcp: [{{backendRefs: [{{name: web, port: 80, filters: [{REWRITE}]}}]}}]"),
            )),
        )
        .refused(&["unknown field \"spec.tcp[0].backendRefs[0].filters\""]),
    ]
}

fn of_clusters() -> Vec<Mistake> {
    let with = |name: &str, fields: &str| Mistake::new(name, apply(cluster("refused", "web", fields)));
    vec![
        with("load balancer `LEAST_REQUEST`, as in Istio", "loadBalancer: {policy: LEAST_REQUEST}").refused(&[
            "spec.loadBalancer.policy: Unsupported value: \"LEAST_REQUEST\"",
            "supported values:",
            "\"LeastRequest\"",
        ]),
        with("consistent hashing without a key", "loadBalancer: {policy: Maglev}").refused(&[
            "spec.loadBalancer",
            "policies RingHash and Maglev require hashOn; remove hashOn for other policies",
        ]),
        with("slow start with consistent hashing", {
            "loadBalancer: {policy: RingHash, hashOn: {type: SourceAddress}, slowStart: {window: 10s}}"
        })
        .refused(&["spec.loadBalancer", "slowStart has no effect with policies RingHash and Maglev: remove it"]),
        with("a health check by HTTP without a path", "healthCheck: {type: HTTP}")
            .refused(&["spec.healthCheck", "type HTTP requires path"]),
        with("a maximum ejection time below the first one", "outlierDetection: {maxEjectionTime: 10s}")
            .refused(&["spec.outlierDetection", "maxEjectionTime must not be shorter than baseEjectionTime"]),
        with("a panic threshold above 100 %", "loadBalancer: {panicThreshold: 200}")
            .refused(&["spec.loadBalancer.panicThreshold", "should be less than or equal to 100"]),
        with(
            "two subsets with one name",
            "subsets: [{name: v1, labels: {version: v1}}, {name: v1, labels: {version: v2}}]",
        )
        .refused(&["spec.subsets[1]: Duplicate value: {\"name\":\"v1\"}"]),
        with("a subset without labels", "subsets: [{name: v1, labels: {}}]")
            .refused(&["spec.subsets[0].labels", "should have at least 1 properties"]),
    ]
}

fn of_policies() -> Vec<Mistake> {
    let policy = |name: &str, spec: &str| Mistake::new(name, apply(weft("MeshPolicy", "refused", spec)));
    let rules = "authorization: {rules: [{action: Deny}]}";
    let caller = |name: &str, account: &str| {
        let from = format!("from: [{{serviceAccounts: [\"{account}\"]}}]");
        Mistake::new(name, apply(deny("refused", "kind: Namespace", &from))).refused(&[
            "spec.authorization.rules[0].from[0].serviceAccounts[0]",
            "must be a service account, as namespace/name, or as name in the policy's own namespace: shop/web, web",
        ])
    };
    vec![
        policy(
            "a Namespace as the target, with a name",
            &format!("targetRef: {{kind: Namespace, name: shop}}, {rules}"),
        )
        .refused(&["spec.targetRef", "remove name for kind Namespace: the policy's own namespace is the target"]),
        policy("a Service as the target, without a name", &format!("targetRef: {{kind: Service}}, {rules}"))
            .refused(&["spec.targetRef", "kinds Service and ServiceAccount require a name"]),
        policy("a Deployment as the target", &format!("targetRef: {{kind: Deployment, name: web}}, {rules}")).refused(
            &[
                "spec.targetRef.kind: Unsupported value: \"Deployment\"",
                "supported values: \"Service\", \"ServiceAccount\", \"Namespace\"",
            ],
        ),
        policy("action `DENY`, as in Istio", "targetRef: {kind: Namespace}, authorization: {rules: [{action: DENY}]}")
            .refused(&[
                "spec.authorization.rules[0].action: Unsupported value: \"DENY\"",
                "supported values: \"Allow\", \"Deny\"",
            ]),
        policy("no rules", "targetRef: {kind: Namespace}, authorization: {rules: []}")
            .refused(&["spec.authorization", "give at least one rule, or default: Deny, which refuses everything"]),
        Mistake::new(
            "a caller's identity, as in Istio",
            apply(deny("refused", "kind: Namespace", "from: [{source: {principals: [shop]}}]")),
        )
        .refused(&["unknown field \"spec.authorization.rules[0].from[0].source\""]),
        caller("a caller as SPIFFE id", "spiffe://cluster.local/ns/shop/sa/web"),
        caller("a caller as the user name of Kubernetes", "system:serviceaccount:shop:web"),
        caller("a caller with an asterisk", "shop/*"),
        Mistake::new("`from` without callers", apply(deny("refused", "kind: Namespace", "from: []")))
            .refused(&["spec.authorization.rules[0].from", "should have at least 1 items"]),
        Mistake::new("an entry of `from` without callers", apply(deny("refused", "kind: Namespace", "from: [{}]")))
            .refused(&["spec.authorization.rules[0].from[0]", "To match everybody, leave out from"]),
        Mistake::new("a port's name instead of its number", apply(deny("refused", "kind: Namespace", "ports: [http]")))
            .refused(&["spec.authorization.rules[0].ports[0]", "must be of type integer"]),
    ]
}

fn of_meshes() -> Vec<Mistake> {
    let mesh = |name: &str, object: &str, spec: &str| Mistake::new(name, apply(weft("Mesh", object, spec)));
    let domain = "must be lower case letters, digits, dashes and underscores in parts separated by single dots, without scheme and slash";
    vec![
        mesh("a second Mesh", "other", "mtls: {mode: Strict}")
            .refused(&["Invalid value", "there is one Mesh, named weft: set metadata.name: weft"]),
        mesh("a trust domain with capitals", "weft", "trustDomain: Shop.Example")
            .refused(&["spec.trustDomain", domain]),
        mesh("a trust domain with a slash", "weft", "trustDomain: \"spiffe://shop.example\"")
            .refused(&["spec.trustDomain", domain]),
        mesh("mode `strict` in lower case", "weft", "mtls: {mode: strict}").refused(&[
            "spec.mtls.mode: Unsupported value: \"strict\"",
            "supported values: \"Permissive\", \"Strict\"",
        ]),
    ]
}

fn of_mutual_tls() -> Vec<Mistake> {
    let policy = |name: &str, fields: &str| {
        Mistake::new(name, apply(weft("MeshPolicy", "refused", &format!("targetRef: {{kind: Namespace}}{fields}"))))
    };
    vec![
        policy("a policy that says nothing", "").refused(&["spec", "give mtls, authorization, or both"]),
        policy("mtls without a mode", ", mtls: {}").refused(&["spec.mtls", "give mode, ports, or both"]),
        policy(
            "addresses that may use plaintext on a Strict port",
            ", mtls: {ports: [{port: 9080, mode: Strict, ipBlocks: [198.18.0.0/15]}]}",
        )
        .refused(&["spec.mtls.ports[0]", "ipBlocks say who may use plaintext: remove them, or set mode: Permissive"]),
    ]
}
