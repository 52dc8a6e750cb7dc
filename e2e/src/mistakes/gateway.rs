//! Routes of the Gateway API. The API server says what its schema refuses; the rest stands in `status.parents`.

use super::manifest::{apply, gateway_route, route, server, service, service_with, to};
use super::{Group, Mistake, Scene};
use crate::namespace::Mesh;

/// Rules that send everything to the Service `web`.
const TO_WEB: &str = "rules: [{backendRefs: [{name: web, port: 80}]}]";

pub(super) fn group() -> Group {
    let mut mistakes = parents();
    mistakes.extend(backends());
    mistakes.extend(rules());
    mistakes.extend(other_routes());
    Group {
        name: "gateway",
        title: "Routes of the Gateway API",
        mesh: Mesh::Inside,
        scene: Scene {
            own: service("web", "web") + &server("web"),
            other: service("stock", "stock"),
            deployments: (vec!["web-v1"], Vec::new()),
        },
        mistakes,
    }
}

/// An HTTPRoute whose parent is the Service of the same name.
fn http(name: &str, fields: &str) -> String {
    of("HTTPRoute", name, fields)
}

/// A route whose parent is the Service of the same name.
fn of(kind: &str, name: &str, fields: &str) -> String {
    gateway_route(kind, name, &format!("{{group: \"\", kind: Service, name: {name}}}"), fields)
}

/// An HTTPRoute with a parentRef.
fn with_parent(name: &str, parent: &str) -> String {
    gateway_route("HTTPRoute", name, &format!("{{{parent}}}"), TO_WEB)
}

fn parents() -> Vec<Mistake> {
    let named = service_with("named", "selector: {app: web}, ports: [{name: http, port: 80, targetPort: 9080}]");
    vec![
        Mistake::new("a parent with a typo", apply(with_parent("typo", "group: \"\", kind: Service, name: wbe")))
            .refused_by_parent(
                "httproute/typo",
                "NoMatchingParent",
                &["Service {ns}/wbe does not exist", "did you mean web?"],
            ),
        Mistake::new("a parent without `group: \"\"`", apply(with_parent("groupless", "kind: Service, name: web")))
            .refused_by_parent(
                "httproute/groupless",
                "NoMatchingParent",
                &["parentRef web: group gateway.networking.k8s.io has no Service web", "set group: \"\""],
            ),
        Mistake::new(
            "`group: core`, as in Linkerd's examples",
            apply(with_parent("core", "group: core, kind: Service, name: web")),
        )
        .refused_by_parent(
            "httproute/core",
            "NoMatchingParent",
            &["parentRef web: group core has no Service web", "set group: \"\""],
        ),
        Mistake::new(
            "the targetPort of a parent",
            apply(with_parent("target", "group: \"\", kind: Service, name: web, port: 9080")),
        )
        .refused_by_parent(
            "httproute/target",
            "NoMatchingParent",
            &["Service {ns}/web has no TCP port 9080", "did you mean 80, whose targetPort is 9080?"],
        ),
        Mistake::new(
            "a `sectionName` with a typo",
            apply(with_parent("section", "group: \"\", kind: Service, name: named, sectionName: htpp")),
        )
        .given(named)
        .refused_by_parent(
            "httproute/section",
            "NoMatchingParent",
            &["Service {ns}/named has no TCP port with the name htpp", "did you mean http?"],
        ),
        Mistake::new(
            "a parent in a namespace that does not exist",
            apply(with_parent("nowhere", "group: \"\", kind: Service, name: web, namespace: nowhere")),
        )
        .refused_by_parent(
            "httproute/nowhere",
            "NoMatchingParent",
            &["Service nowhere/web does not exist", "there is no namespace nowhere"],
        ),
        Mistake::new("a headless Service as parent", apply(http("headless", TO_WEB)))
            .given(service_with("headless", "clusterIP: None, selector: {app: web}, ports: [{port: 80}]"))
            .refused_by_parent(
                "httproute/headless",
                "NoMatchingParent",
                &["Service {ns}/headless is headless and has no ClusterIP", "name a Service with a ClusterIP"],
            ),
        Mistake::new(
            "two ports of one parent by number",
            apply(gateway_route(
                "HTTPRoute",
                "numbers",
                "{group: \"\", kind: Service, name: web, port: 80}, {group: \"\", kind: Service, name: web, port: 81}",
                TO_WEB,
            )),
        )
        .refused(&["sectionName must be unique when parentRefs includes 2 or more references to the same parent"]),
    ]
}

fn backends() -> Vec<Mistake> {
    let to_backend = |backend: &str| format!("rules: [{{backendRefs: [{{{backend}}}]}}]");
    vec![
        Mistake::new("a backend with a typo", apply(http("reviews", &to_backend("name: reviws, port: 80"))))
            .given(service("reviews", "web"))
            .unresolved(
                "httproute/reviews",
                "BackendNotFound",
                &["rule 0: Service {ns}/reviws does not exist", "did you mean reviews?"],
            )
            .event(
                "httproute/reviews",
                "BackendNotFound",
                &["rule 0: Service {ns}/reviws does not exist", "did you mean reviews?"],
            )
            .mended(apply(http("reviews", TO_WEB))),
        Mistake::new("the targetPort of a backend", apply(http("ratings", &to_backend("name: ratings, port: 9080"))))
            .given(service("ratings", "web"))
            .unresolved(
                "httproute/ratings",
                "BackendNotFound",
                &["rule 0: Service {ns}/ratings has no TCP port 9080", "did you mean 80, whose targetPort is 9080?"],
            ),
        Mistake::new("a backend without a port", apply(http("portless", &to_backend("name: web"))))
            .given(service("portless", "web"))
            .refused(&["Must have port for Service reference"]),
        Mistake::new(
            "a backend of another kind",
            apply(http("kinds", &to_backend("kind: Deployment, name: web, port: 80"))),
        )
        .given(service("kinds", "web"))
        .unresolved(
            "httproute/kinds",
            "InvalidKind",
            &["rule 0: backend web is of kind Deployment, which is not supported: name a Service"],
        ),
        Mistake::new(
            "a backend in another namespace, without a ReferenceGrant",
            apply(http("abroad", &to_backend("name: stock, namespace: {other}, port: 80"))),
        )
        .given(service("abroad", "web"))
        .unresolved(
            "httproute/abroad",
            "RefNotPermitted",
            &[
                "rule 0: Service {other}/stock is in another namespace",
                "no ReferenceGrant there allows HTTPRoutes of namespace {ns}",
                "create one",
            ],
        ),
        Mistake::new(
            "a GRPCRoute's backend with a typo",
            apply(of("GRPCRoute", "books", &to_backend("name: boks, port: 80"))),
        )
        .given(service("books", "web"))
        .unresolved(
            "grpcroute/books",
            "BackendNotFound",
            &["rule 0: Service {ns}/boks does not exist", "did you mean books?"],
        ),
        Mistake::new(
            "a mirror with a typo",
            apply(http(
                "shadow",
                "rules: [{backendRefs: [{name: web, port: 80}], filters: [{type: RequestMirror, requestMirror: \
                 {backendRef: {name: shadwo, port: 80}}}]}]",
            )),
        )
        .given(service("shadow", "web"))
        .unresolved(
            "httproute/shadow",
            "BackendNotFound",
            &["Service {ns}/shadwo does not exist", "did you mean shadow?"],
        ),
    ]
}

fn rules() -> Vec<Mistake> {
    let with = |fields: &str| format!("rules: [{{backendRefs: [{{name: web, port: 80}}], {fields}}}]");
    vec![
        Mistake::new("`hostnames`", apply(http("hosts", &format!("hostnames: [shop.example], {TO_WEB}"))))
            .given(service("hosts", "web"))
            .noted_by_parent("httproute/hosts", "Accepted", &["hostnames has no effect on a Service", "match the header host"]),
        Mistake::new(
            "an ExtensionRef",
            apply(http(
                "wand",
                &with("filters: [{type: ExtensionRef, extensionRef: {group: shop.example, kind: Magic, name: wand}}]"),
            )),
        )
        .given(service("wand", "web"))
        .refused_by_parent("httproute/wand", "UnsupportedValue", &["rule 0:", "ExtensionRef"]),
        Mistake::new(
            "weights that sum to zero",
            apply(http("zero", "rules: [{backendRefs: [{name: web, port: 80, weight: 0}]}, {matches: [{method: GET}], backendRefs: [{name: web, port: 80}]}]")),
        )
        .given(service("zero", "web"))
        .in_part("httproute/zero", "UnsupportedValue", &["Dropped Rule", "rule 0: it has no backend with a weight above 0", "its requests are answered 500"]),
        Mistake::new("a regular expression that does not compile", apply(http("regex", &with("matches: [{path: {type: RegularExpression, value: \"/a(\"}}]"))))
            .given(service("regex", "web"))
            .refused_by_parent("httproute/regex", "UnsupportedValue", &["rule 0:", "/a("]),
        Mistake::new("an attempt that may take longer than the request", apply(http("late", &with("timeouts: {request: 1s, backendRequest: 2s}"))))
            .given(service("late", "web"))
            .refused(&["backendRequest timeout cannot be longer than request timeout"]),
        Mistake::new("a field of the experimental channel", apply(http("sticky", &with("sessionPersistence: {type: Cookie}"))))
            .given(service("sticky", "web"))
            .refused(&["unknown field \"spec.rules[0].sessionPersistence\""]),
        Mistake::new("a filter of a MeshRoute", apply(http("fault", &with("filters: [{type: Fault, fault: {abort: {status: 503}}}]"))))
            .given(service("fault", "web"))
            .refused(&["unknown field \"spec.rules[0].filters[0].fault\""]),
    ]
}

fn other_routes() -> Vec<Mistake> {
    vec![
        Mistake::new("an HTTPRoute for a port that has a MeshRoute", apply(http("both", TO_WEB)))
            .given(service("both", "web") + &route("both", "both", &to("name: web")))
            .refused_by_parent(
                "httproute/both",
                "Conflicted",
                &[
                    "it does not apply to Service {ns}/both port 80: MeshRoute {ns}/both takes precedence",
                    "delete one of them",
                ],
            )
            .mended(super::Step::Run("delete meshroute both")),
        Mistake::new("an HTTPRoute for a port that has a GRPCRoute", apply(http("calls", TO_WEB)))
            .given(service("calls", "web") + &of("GRPCRoute", "calls", TO_WEB))
            .refused_by_parent("httproute/calls", "Conflicted", &["GRPCRoute {ns}/calls takes precedence"]),
        Mistake::new(
            "a second HTTPRoute with the same matches",
            apply(gateway_route("HTTPRoute", "twice-b", "{group: \"\", kind: Service, name: twice}", TO_WEB)),
        )
        .given(
            service("twice", "web")
                + &gateway_route("HTTPRoute", "twice-a", "{group: \"\", kind: Service, name: twice}", TO_WEB),
        )
        .refused_by_parent(
            "httproute/twice-b",
            "Conflicted",
            &[
                "rule 0 at Service {ns}/twice port 80: path prefix /",
                "HTTPRoute {ns}/twice-a (rule 0) takes precedence",
            ],
        ),
        Mistake::new("a TCPRoute for a port of HTTP", apply(of("TCPRoute", "declared", TO_WEB)))
            .given(service_with(
                "declared",
                "selector: {app: web}, ports: [{port: 80, targetPort: 9080, appProtocol: http}]",
            ))
            .refused_by_parent(
                "tcproute/declared",
                "NoMatchingParent",
                &[
                    "every port of Service {ns}/declared is declared as HTTP",
                    "only HTTPRoutes and GRPCRoutes apply to it",
                ],
            ),
        Mistake::new("an HTTPRoute for a port of opaque TCP", apply(http("opaque", TO_WEB)))
            .given(service_with(
                "opaque",
                "selector: {app: web}, ports: [{port: 80, targetPort: 9080, appProtocol: tcp}]",
            ))
            .refused_by_parent(
                "httproute/opaque",
                "NoMatchingParent",
                &[
                    "every port of Service {ns}/opaque is declared as opaque TCP",
                    "only TLSRoutes and TCPRoutes apply to it",
                ],
            ),
    ]
}
