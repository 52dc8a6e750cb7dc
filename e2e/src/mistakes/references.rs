//! References of custom resources that do not resolve, and objects that exclude one another.

use super::manifest::{apply, cluster, deny, route, server, service, service_with, to, weft};
use super::{Group, Mistake, Scene};
use crate::namespace::Mesh;

const DECLARED_TCP: &str = "selector: {app: web}, ports: [{port: 80, targetPort: 9080, appProtocol: tcp}]";

const UDP: &str = "selector: {app: web}, ports: [{port: 53, protocol: UDP}]";

pub(super) fn group() -> Group {
    let mut mistakes = parents();
    mistakes.extend(backends());
    mistakes.extend(other_routes());
    mistakes.extend(clusters());
    mistakes.extend(policies());
    Group {
        name: "references",
        title: "References, and objects that exclude one another",
        mesh: Mesh::Inside,
        scene: Scene {
            own: service("web", "web") + &server("web"),
            other: service("stock", "stock"),
            deployments: (vec!["web-v1"], Vec::new()),
        },
        mistakes,
    }
}

fn parents() -> Vec<Mistake> {
    vec![
        Mistake::new("a route for a Service with a typo", apply(route("typo", "wbe", &to("name: web")))).not_ready(
            "meshroute/typo",
            "TargetNotFound",
            &["Accepted is False: Service {ns}/wbe does not exist", "did you mean web?"],
        ),
        Mistake::new(
            "a route for the targetPort of a Service",
            apply(weft(
                "MeshRoute",
                "target-port",
                &format!("parentRefs: [{{name: web, port: 9080}}], {}", to("name: web")),
            )),
        )
        .not_ready(
            "meshroute/target-port",
            "TargetNotFound",
            &["Service {ns}/web has no TCP port 9080", "did you mean 80, whose targetPort is 9080?"],
        ),
        Mistake::new(
            "a route for a Service in a namespace that does not exist",
            apply(weft(
                "MeshRoute",
                "nowhere",
                &format!("parentRefs: [{{name: web, namespace: nowhere}}], {}", to("name: web")),
            )),
        )
        .not_ready(
            "meshroute/nowhere",
            "TargetNotFound",
            &["Service nowhere/web does not exist", "there is no namespace nowhere"],
        ),
        Mistake::new("a route for a headless Service", apply(route("headless", "headless", &to("name: web"))))
            .given(service_with("headless", "clusterIP: None, selector: {app: web}, ports: [{port: 80}]"))
            .not_ready(
                "meshroute/headless",
                "UnsupportedTarget",
                &["Service {ns}/headless is headless and has no ClusterIP", "name a Service with a ClusterIP"],
            ),
        Mistake::new(
            "a route for a Service of type ExternalName",
            apply(route("external", "external", &to("name: web"))),
        )
        .given(service_with("external", "type: ExternalName, externalName: shop.example"))
        .not_ready(
            "meshroute/external",
            "UnsupportedTarget",
            &["Service {ns}/external is of type ExternalName", "name a Service with a ClusterIP"],
        ),
        Mistake::new(
            "a route for a Service with a port of UDP",
            apply(route("datagrams", "datagrams", &to("name: web"))),
        )
        .given(service_with("datagrams", UDP))
        .not_ready(
            "meshroute/datagrams",
            "UnsupportedTarget",
            &["Service {ns}/datagrams has no TCP port", "name a Service that has one"],
        ),
        Mistake::new("`http` rules for a port of opaque TCP", apply(route("opaque", "opaque", &to("name: web"))))
            .given(service_with("opaque", DECLARED_TCP))
            .not_ready(
                "meshroute/opaque",
                "UnsupportedTarget",
                &[
                    "every port of Service {ns}/opaque is declared as opaque TCP (by appProtocol or port name)",
                    "only tls and tcp rules apply to it",
                ],
            ),
        Mistake::new(
            "`tcp` rules for a port of HTTP",
            apply(route("declared", "declared", "tcp: [{backendRefs: [{name: web, port: 80}]}]")),
        )
        .given(service_with("declared", &DECLARED_TCP.replace("appProtocol: tcp", "appProtocol: http")))
        .not_ready(
            "meshroute/declared",
            "UnsupportedTarget",
            &[
                "every port of Service {ns}/declared is declared as HTTP (by appProtocol or port name)",
                "only http rules apply to it",
            ],
        ),
        Mistake::new(
            "one of two parents with a typo",
            apply(weft(
                "MeshRoute",
                "second",
                &format!("parentRefs: [{{name: second}}, {{name: seconds}}], {}", to("name: web")),
            )),
        )
        .given(service("second", "web"))
        .limited(
            "meshroute/second",
            "PartiallyInvalid",
            &["accepted, except: Service {ns}/seconds does not exist", "did you mean second?"],
        ),
    ]
}

fn backends() -> Vec<Mistake> {
    vec![
        Mistake::new("a backend with a typo", apply(route("reviews", "reviews", &to("name: reviws"))))
            .given(service("reviews", "web"))
            .not_ready(
                "meshroute/reviews",
                "BackendNotFound",
                &["ResolvedRefs is False: rule default: Service {ns}/reviws does not exist", "did you mean reviews?"],
            )
            .event(
                "meshroute/reviews",
                "BackendNotFound",
                &["rule default: Service {ns}/reviws does not exist", "did you mean reviews?"],
            )
            .event(
                "service/reviews",
                "BackendNotFound",
                &["MeshRoute {ns}/reviews: ResolvedRefs is False: rule default: Service {ns}/reviws does not exist"],
            ),
        Mistake::new(
            "the targetPort of a backend",
            apply(route("ratings", "ratings", "http: [{backendRefs: [{name: ratings, port: 9080}]}]")),
        )
        .given(service("ratings", "web"))
        .not_ready(
            "meshroute/ratings",
            "BackendNotFound",
            &["rule default: Service {ns}/ratings has no TCP port 9080", "did you mean 80, whose targetPort is 9080?"],
        ),
        Mistake::new(
            "a backend in a namespace that does not exist",
            apply(route("details", "details", &to("name: details, namespace: nowhere"))),
        )
        .given(service("details", "web"))
        .not_ready(
            "meshroute/details",
            "BackendNotFound",
            &["rule default: Service nowhere/details does not exist", "there is no namespace nowhere"],
        ),
        Mistake::new(
            "a backend in another namespace, without a ReferenceGrant",
            apply(route("abroad", "abroad", &to("name: stock, namespace: {other}"))),
        )
        .given(service("abroad", "web"))
        .not_ready(
            "meshroute/abroad",
            "RefNotPermitted",
            &[
                "rule default: Service {other}/stock is in another namespace",
                "ReferenceGrant there",
                "move the route there",
            ],
        ),
        Mistake::new("a subset with a typo", apply(route("cart", "cart", &to("name: cart, subset: canray"))))
            .given(
                service("cart", "web") + &cluster("cart", "cart", "subsets: [{name: canary, labels: {version: v1}}]"),
            )
            .not_ready(
                "meshroute/cart",
                "SubsetNotFound",
                &["the MeshCluster of Service {ns}/cart declares no subset canray", "did you mean canary?"],
            ),
        Mistake::new(
            "a subset of a Service without a MeshCluster",
            apply(route("prices", "prices", &to("name: prices, subset: v1"))),
        )
        .given(service("prices", "web"))
        .not_ready(
            "meshroute/prices",
            "SubsetNotFound",
            &["subset v1: Service {ns}/prices has no accepted MeshCluster, which would declare it"],
        ),
        Mistake::new(
            "a mirror with a typo",
            apply(route(
                "shadow",
                "shadow",
                "http: [{backendRefs: [{name: shadow, port: 80}], filters: [{type: RequestMirror, requestMirror: \
                 {backendRef: {name: shadwo, port: 80}}}]}]",
            )),
        )
        .given(service("shadow", "web"))
        .not_ready(
            "meshroute/shadow",
            "BackendNotFound",
            &["Service {ns}/shadwo does not exist", "did you mean shadow?"],
        ),
    ]
}

fn other_routes() -> Vec<Mistake> {
    vec![
        Mistake::new("a second route with the same matches", apply(route("twice-b", "twice", &to("name: web"))))
            .given(service("twice", "web") + &route("twice-a", "twice", &to("name: web")))
            .not_ready(
                "meshroute/twice-b",
                "Conflicted",
                &["rule default at Service {ns}/twice port 80: path prefix /", "MeshRoute {ns}/twice-a (rule default) takes precedence; change one of these matches"],
            ),
        Mistake::new(
            "two rules with the same matches",
            apply(route("same", "same", "http: [{name: to-web, backendRefs: [{name: web, port: 80}]}, {name: to-same, backendRefs: [{name: same, port: 80}]}]")),
        )
        .given(service("same", "web"))
        .limited(
            "meshroute/same",
            "PartiallyInvalid",
            &["rule to-same at Service {ns}/same port 80: path prefix /", "rule to-web of the same route matches first; change one of these matches"],
        ),
        Mistake::new(
            "two conditions on one header",
            apply(route(
                "header",
                "header",
                "http: [{matches: [{headers: [{name: x-user, value: a}, {name: X-User, value: b}]}], backendRefs: [{name: \
                 web, port: 80}]}]",
            )),
        )
        .given(service("header", "web"))
        .limited(
            "meshroute/header",
            "PartiallyInvalid",
            &["of several conditions on header x-user in one match only the first counts", "remove the others"],
        ),
        Mistake::new(
            "a regular expression with `\\Q` and `\\E`, which proxies do not know",
            apply(route(
                "quoted",
                "quoted",
                "http: [{matches: [{headers: [{type: RegularExpression, name: x-user, value: '\\Qa.b\\E'}]}], backendRefs: \
                 [{name: web, port: 80}]}]",
            )),
        )
        .given(service("quoted", "web"))
        .not_ready(
            "meshroute/quoted",
            "UnsupportedValue",
            &["rule default: the regular expression", "does not compile: unrecognized escape sequence"],
        ),
    ]
}

fn clusters() -> Vec<Mistake> {
    let balancer = "loadBalancer: {policy: RoundRobin}";
    let subset = |labels: &str| format!("subsets: [{{name: canary, labels: {{{labels}}}}}]");
    vec![
        Mistake::new("a MeshCluster for a Service with a typo", apply(cluster("typo", "wbe", balancer))).not_ready(
            "meshcluster/typo",
            "TargetNotFound",
            &["Accepted is False: Service wbe does not exist", "did you mean web?"],
        ),
        Mistake::new("a MeshCluster for a headless Service", apply(cluster("headless", "headless-2", balancer)))
            .given(service_with("headless-2", "clusterIP: None, selector: {app: web}, ports: [{port: 80}]"))
            .not_ready(
                "meshcluster/headless",
                "UnsupportedTarget",
                &["Service {ns}/headless-2 is headless and has no ClusterIP", "name a Service with a ClusterIP"],
            ),
        Mistake::new("a MeshCluster for a Service with a port of UDP", apply(cluster("udp", "udp", balancer)))
            .given(service_with("udp", UDP))
            .not_ready(
                "meshcluster/udp",
                "UnsupportedTarget",
                &["Service {ns}/udp has no TCP port", "name a Service that has one"],
            ),
        Mistake::new("a second MeshCluster for a Service", apply(cluster("twice-b", "twice-2", balancer)))
            .given(service("twice-2", "web") + &cluster("twice-a", "twice-2", balancer))
            .not_ready(
                "meshcluster/twice-b",
                "Conflicted",
                &["Service twice-2 already has MeshCluster twice-a, which is older and takes precedence", "merge them"],
            ),
        Mistake::new("a subset with a value that no pod has", apply(cluster("value", "value", &subset("version: v9"))))
            .given(service("value", "web"))
            .not_ready(
                "meshcluster/value",
                "SubsetNotFound",
                &["subset canary selects no ready pod of Service value", "its pods have version=v1"],
            ),
        Mistake::new("a subset with a label that no pod has", apply(cluster("key", "key", &subset("verison: v1"))))
            .given(service("key", "web"))
            .not_ready(
                "meshcluster/key",
                "SubsetNotFound",
                &["subset canary selects no ready pod of Service key", "no pod has a label verison; did you mean version?"],
            ),
        Mistake::new(
            "health checks on a port that no pod declares",
            apply(cluster("checked", "checked", "healthCheck: {type: TCP, port: 80}")),
        )
        .given(service("checked", "web"))
        .limited(
            "meshcluster/checked",
            "PortNotFound",
            &["healthCheck.port: no pod of Service checked declares port 80", "only 9080"],
        ),
        Mistake::new(
            "fields of outlier detection that is off",
            apply(cluster("ejected", "ejected", "outlierDetection: {enabled: false, consecutive5xx: 3}")),
        )
        .given(service("ejected", "web"))
        .limited(
            "meshcluster/ejected",
            "PartiallyInvalid",
            &["outlierDetection.enabled is false", "the other fields of outlierDetection have no effect; remove them"],
        ),
        Mistake::new("`maxPending` without `maxConnections`", apply(cluster("pending", "pending", "limits: {maxPending: 1}")))
            .given(service("pending", "web"))
            .limited(
                "meshcluster/pending",
                "PartiallyInvalid",
                &["limits.maxPending has no effect without limits.maxConnections"],
            ),
        Mistake::new(
            "zones preferred for a Service whose `internalTrafficPolicy` is `Local`",
            apply(cluster("local", "local", "loadBalancer: {trafficDistribution: PreferSameZone}")),
        )
        .given(service_with(
            "local",
            "internalTrafficPolicy: Local, selector: {app: web}, ports: [{port: 80, targetPort: 9080}]",
        ))
        .limited(
            "meshcluster/local",
            "PartiallyInvalid",
            &[
                "loadBalancer.trafficDistribution has no effect: internalTrafficPolicy of Service local is Local",
                "remove one of the two",
            ],
        ),
        Mistake::new(
            "a session cookie on opaque TCP",
            apply(cluster("sticky", "sticky", "loadBalancer: {stickySession: {}}")),
        )
        .given(service_with("sticky", DECLARED_TCP))
        .limited(
            "meshcluster/sticky",
            "PartiallyInvalid",
            &[
                "no effect on opaque TCP, as which every port of Service sticky is declared (by appProtocol or port name)",
                "loadBalancer.stickySession",
            ],
        ),
    ]
}

fn policies() -> Vec<Mistake> {
    vec![
        Mistake::new("a policy for a Service with a typo", apply(deny("typo", "kind: Service, name: wbe", "")))
            .not_ready(
                "meshpolicy/typo",
                "TargetNotFound",
                &["Accepted is False: Service wbe does not exist; did you mean web?", "The policy is not applied"],
            ),
        Mistake::new(
            "a policy for a ServiceAccount with a typo",
            apply(deny("account", "kind: ServiceAccount, name: defualt", "")),
        )
        .not_ready(
            "meshpolicy/account",
            "TargetNotFound",
            &["ServiceAccount defualt does not exist; did you mean default?", "The policy is not applied"],
        ),
        Mistake::new(
            "a rule that names a caller with a typo",
            apply(deny("caller", "kind: Namespace", "from: [{serviceAccounts: [defualt]}]")),
        )
        .not_ready(
            "meshpolicy/caller",
            "CallerNotFound",
            &["rule 0: from: ServiceAccount {ns}/defualt does not exist", "did you mean default?"],
        ),
        Mistake::new(
            "a rule that names a namespace that does not exist",
            apply(deny("elsewhere", "kind: Namespace", "from: [{namespaces: [nowhere]}]")),
        )
        .not_ready(
            "meshpolicy/elsewhere",
            "CallerNotFound",
            &["rule 0: from: namespace nowhere does not exist"],
        ),
        Mistake::new(
            "a policy for a Service with a port of UDP",
            apply(deny("guarded", "kind: Service, name: guarded", "")),
        )
        .given(service_with("guarded", UDP))
        .not_ready(
            "meshpolicy/guarded",
            "UnsupportedTarget",
            &["Service guarded has no TCP port", "name a Service that has one"],
        ),
        Mistake::new(
            "a policy for a Service without a selector",
            apply(deny("no-selector", "kind: Service, name: no-selector", "")),
        )
        .given(service_with("no-selector", "ports: [{port: 80}]"))
        .not_ready(
            "meshpolicy/no-selector",
            "UnsupportedTarget",
            &["Service no-selector has no selector", "target a ServiceAccount or the Namespace"],
        ),
        Mistake::new(
            "methods in a policy for opaque TCP",
            apply(deny("methods", "kind: Service, name: methods", "methods: [POST]")),
        )
        .given(service_with("methods", DECLARED_TCP))
        .not_ready(
            "meshpolicy/methods",
            "UnsupportedTarget",
            &[
                "every port of Service methods is declared as opaque TCP (by appProtocol or port name)",
                "a rule has methods, paths or headers: remove these, or the declaration",
            ],
        ),
    ]
}
