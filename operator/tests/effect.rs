//! The condition InEffect of each kind, against the pods that there are, and what follows from it for Ready.

mod support;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use weft_crds::Status;
use weft_operator::compile;
use weft_operator::status::{self, Delivery};
use weft_operator::world::World;

use support::{applied, deleted, namespace, service, slice};

/// A ready pod with a proxy, or without; its container listens on 9080 with the name `http`.
fn pod(name: &str, app: &str, has_proxy: bool) -> Value {
    let mut pod = support::pod("shop", name, json!({"app": app}));
    pod["spec"] = json!({"containers": [{"name": "app", "ports": [{"name": "http", "containerPort": 9080}]}]});
    if has_proxy {
        pod["metadata"]["labels"]["weft.dev/proxy-version"] = json!("1");
    }
    pod
}

fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    object.pointer_mut(parent).expect("the parent")[key] = value;
    object
}

/// `reviews`, with port 80 and targetPort 9080.
fn reviews() -> Value {
    with(service("shop", "reviews", "10.0.0.1"), "/spec/ports/0/targetPort", json!(9080))
}

fn policy(target: Value, rules: Value) -> Value {
    json!({
        "kind": "MeshPolicy", "metadata": {"namespace": "shop", "name": "p", "generation": 1},
        "spec": {"targetRef": target, "authorization": {"rules": rules}},
    })
}

fn deny_reviews(ports: &[u16]) -> Value {
    policy(json!({"kind": "Service", "name": "reviews"}), json!([{"action": "Deny", "ports": ports}]))
}

fn route(parent: Value, backend: &str) -> Value {
    json!({
        "kind": "MeshRoute", "metadata": {"namespace": "shop", "name": "r", "generation": 1},
        "spec": {"parentRefs": [parent], "http": [{"backendRefs": [{"name": backend, "port": 80}]}]},
    })
}

fn cluster(spec: Value) -> Value {
    let mut object = json!({
        "kind": "MeshCluster", "metadata": {"namespace": "shop", "name": "c", "generation": 1}, "spec": spec,
    });
    object["spec"]["targetRef"] = json!({"name": "reviews"});
    object
}

/// Status of the only custom resource of namespace shop.
fn status_of(world: &World) -> Status {
    let compiled = compile::compile(world, "shop");
    let [(_, outcome)] = compiled.objects.iter().collect::<Vec<_>>()[..] else { panic!("one object is expected") };
    let delivery = Delivery::Written("in a document".into());
    status::next(&Status::default(), 1, &outcome.diagnostics, &delivery, Timestamp::UNIX_EPOCH).expect("a status")
}

/// Status, reason and message of a condition.
fn condition(status: &Status, kind: &str) -> String {
    let found = status.conditions.iter().find(|condition| condition.type_ == kind).expect("the condition");
    format!("{} {}: {}", found.status, found.reason, found.message)
}

/// Each case: the objects, and InEffect of the only custom resource. The status of Ready is the same.
fn check(cases: &[(&str, Vec<Value>, &str)]) {
    for (desc, objects, expected) in cases {
        let status = status_of(&support::world(objects));
        assert_eq!(condition(&status, "InEffect"), *expected, "{desc}");
        let ready = condition(&status, "Ready");
        assert_eq!(ready.split(' ').next(), expected.split(' ').next(), "{desc}: {ready}");
    }
}

const APPLIED: &str = "True InEffect: the pods that it concerns apply it";

#[test]
fn policy_is_in_effect_if_every_selected_pod_enforces_it() {
    let shop = || namespace("shop");
    let not_enabled = || json!({"kind": "Namespace", "metadata": {"name": "shop"}});
    let web = |name: &str, has_proxy| pod(name, "reviews", has_proxy);
    let many = |count: usize| (0..count).map(|n| web(&format!("web-{n}"), false)).collect::<Vec<_>>();
    let whole = || policy(json!({"kind": "Namespace"}), json!([{"action": "Deny"}]));
    let account = |name: &str| policy(json!({"kind": "ServiceAccount", "name": name}), json!([{"action": "Deny"}]));
    let robot = || json!({"kind": "ServiceAccount", "metadata": {"namespace": "shop", "name": "robot"}});
    let starting = with(web("web-2", false), "/status/conditions/0/status", json!("False"));
    let leaving = with(web("web-2", false), "/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z"));
    let lost = with(
        web("web-2", false),
        "/status/conditions",
        json!([{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]),
    );
    check(&[
        ("all pods have a proxy", vec![shop(), reviews(), web("web-1", true), deny_reviews(&[])], APPLIED),
        (
            "one of three pods has none",
            vec![
                shop(),
                reviews(),
                web("web-1", true),
                web("web-2", true),
                web("web-7d9", false),
                pod("other", "other", false),
                deny_reviews(&[]),
            ],
            "False NoProxy: 1 of 3 pods that it selects has no proxy: shop/web-7d9: restart it (kubectl rollout restart), \
             new pods get one",
        ),
        (
            "the only pod has none",
            vec![shop(), reviews(), web("web-1", false), deny_reviews(&[])],
            "False NoProxy: the only pod that it selects has no proxy: shop/web-1: restart it (kubectl rollout restart), new \
             pods get one",
        ),
        (
            "more pods than a message names",
            [vec![shop(), reviews(), deny_reviews(&[])], many(7)].concat(),
            "False NoProxy: none of the 7 pods that it selects has a proxy: shop/web-0, shop/web-1, shop/web-2, shop/web-3, \
             shop/web-4 and 2 more: restart them (kubectl rollout restart), new pods get one",
        ),
        (
            "the namespace is outside of the mesh",
            vec![not_enabled(), reviews(), web("web-1", false), web("web-2", false), deny_reviews(&[])],
            "False NoProxy: none of the 2 pods that it selects has a proxy: shop/web-1, shop/web-2: label namespace shop with \
             weft.dev/inject=enabled, then restart them (kubectl rollout restart)",
        ),
        (
            "pods without a proxy for different reasons",
            vec![
                shop(),
                reviews(),
                with(web("web-1", false), "/metadata/labels", json!({"app": "reviews", "weft.dev/inject": "false"})),
                with(web("web-2", false), "/spec/hostNetwork", json!(true)),
                web("web-3", true),
                deny_reviews(&[]),
            ],
            "False NoProxy: 2 of 3 pods that it selects have no proxy: shop/web-1: the pod label weft.dev/inject=false keeps it \
             out, remove the label; shop/web-2: pods with hostNetwork get none, do without it",
        ),
        (
            "a pod that asks for a proxy by its own label",
            vec![
                not_enabled(),
                reviews(),
                with(web("web-1", false), "/metadata/labels", json!({"app": "reviews", "weft.dev/inject": "true"})),
                deny_reviews(&[]),
            ],
            "False NoProxy: the only pod that it selects has no proxy: shop/web-1: restart it (kubectl rollout restart), new \
             pods get one",
        ),
        (
            "a pod that starts does not count",
            vec![shop(), reviews(), web("web-1", true), starting, deny_reviews(&[])],
            APPLIED,
        ),
        (
            "a pod that ends does not count",
            vec![shop(), reviews(), web("web-1", true), leaving, deny_reviews(&[])],
            APPLIED,
        ),
        (
            "a pod of a silent node counts",
            vec![shop(), reviews(), web("web-1", true), lost, deny_reviews(&[])],
            "False NoProxy: 1 of 2 pods that it selects has no proxy: shop/web-2: restart it (kubectl rollout restart), new \
             pods get one",
        ),
        (
            "the Service selects no pod",
            vec![shop(), reviews(), deny_reviews(&[])],
            "True NoPods: no ready pod has the labels app=reviews that Service reviews selects: the policy applies to such \
             pods with a proxy as soon as they start",
        ),
        (
            "no pod, and the namespace is outside of the mesh",
            vec![not_enabled(), whole()],
            "True NoPods: the namespace has no ready pod: the policy applies to such pods with a proxy as soon as they start; \
             label namespace shop with weft.dev/inject=enabled, so that they get one",
        ),
        (
            "a whole namespace",
            vec![shop(), web("web-1", true), pod("other", "other", false), whole()],
            "False NoProxy: 1 of 2 pods that it selects has no proxy: shop/other: restart it (kubectl rollout restart), new \
             pods get one",
        ),
        (
            "no pod under the service account",
            vec![shop(), robot(), web("web-1", false), account("robot")],
            "True NoPods: no ready pod runs under ServiceAccount robot: the policy applies to such pods with a proxy as soon as \
             they start",
        ),
        (
            "a pod under the service account",
            vec![
                shop(),
                robot(),
                with(web("web-1", false), "/spec/serviceAccountName", json!("robot")),
                web("web-2", true),
                account("robot"),
            ],
            "False NoProxy: the only pod that it selects has no proxy: shop/web-1: restart it (kubectl rollout restart), new \
             pods get one",
        ),
    ]);
}

#[test]
fn policy_is_in_effect_if_pods_have_its_ports() {
    let shop = || namespace("shop");
    let web = || pod("web-1", "reviews", true);
    let whole = |ports: &[u16]| policy(json!({"kind": "Namespace"}), json!([{"action": "Deny", "ports": ports}]));
    let named = |port: &str| with(reviews(), "/spec/ports/0/targetPort", json!(port));
    let argument = |pod: Value, ports: &str| {
        let argument = format!("--exclude-inbound-ports={ports}");
        with(pod, "/spec/initContainers", json!([{"name": "weft-init", "args": [argument]}]))
    };
    let both = json!([{"containerPort": 9080}, {"containerPort": 9090}]);
    let two_ports = with(web(), "/spec/containers/0/ports", both);
    check(&[
        ("the target port", vec![shop(), reviews(), web(), deny_reviews(&[9080])], APPLIED),
        (
            "the port of the Service",
            vec![shop(), reviews(), web(), deny_reviews(&[80])],
            "False PortNotFound: rule 0: no pod listens on 80: policies name ports of pods; did you mean 9080?",
        ),
        (
            "the port of the Service, before there are pods",
            vec![shop(), reviews(), deny_reviews(&[80])],
            "False PortNotFound: rule 0: no pod listens on 80: policies name ports of pods; did you mean 9080?",
        ),
        (
            "a port that no pod has",
            vec![shop(), reviews(), web(), deny_reviews(&[9080, 7777])],
            "False PortNotFound: rule 0: no pod listens on 7777: policies name ports of pods; did you mean 9080?",
        ),
        (
            "a port of the pods that is no target port",
            vec![shop(), reviews(), two_ports.clone(), deny_reviews(&[9090])],
            "False PortNotFound: rule 0: port 9090 is no targetPort of Service reviews (9080), to which a policy for a Service \
             is limited: target the ServiceAccount or the Namespace",
        ),
        ("a named target port", vec![shop(), named("http"), web(), deny_reviews(&[9080])], APPLIED),
        (
            "a named target port that no pod has",
            vec![shop(), named("htpp"), web(), deny_reviews(&[])],
            "False PortNotFound: no pod that it selects has a container port with the name htpp, the targetPort of Service \
             reviews; did you mean http?",
        ),
        (
            "a Service port, in a policy for the namespace",
            vec![shop(), reviews(), web(), whole(&[80])],
            "False PortNotFound: rule 0: no pod listens on 80: policies name ports of pods; did you mean 9080?",
        ),
        (
            "an undeclared port, in a policy for the namespace",
            vec![shop(), reviews(), two_ports, whole(&[7777])],
            "True PortNotFound: rule 0: no pod that it selects declares port 7777, only 9080, 9090",
        ),
        (
            "a port that bypasses the proxy",
            vec![shop(), reviews(), argument(web(), "9000-9100"), deny_reviews(&[])],
            "False PortExcluded: connections to port 9080 do not go through the proxy of shop/web-1: remove the port from the \
             annotation config.weft.dev/exclude-inbound-ports",
        ),
        (
            "another port that bypasses the proxy",
            vec![shop(), reviews(), argument(web(), "9090"), deny_reviews(&[])],
            APPLIED,
        ),
        (
            "a port that bypasses the proxy, in a policy for the namespace",
            vec![shop(), argument(web(), "9090"), whole(&[])],
            "True PortExcluded: it does not apply to ports that pods exclude from their proxy \
             (config.weft.dev/exclude-inbound-ports): shop/web-1",
        ),
    ]);
}

#[test]
fn routes_and_clusters_are_in_effect_if_clients_apply_them() {
    let shop = || namespace("shop");
    let not_enabled = || json!({"kind": "Namespace", "metadata": {"name": "shop"}});
    let elsewhere = || {
        let mut pod = pod("client", "client", true);
        pod["metadata"]["namespace"] = json!("front");
        vec![namespace("front"), pod]
    };
    let endpoints = || slice("shop", "reviews", &[("web-1", "10.1.0.1")]);
    let web = |has_proxy| pod("web-1", "reviews", has_proxy);
    let own = || route(json!({"name": "reviews"}), "reviews");
    let settings = || cluster(json!({"loadBalancer": {"policy": "RoundRobin"}}));
    let consumer = || {
        let mut object = route(json!({"name": "api", "namespace": "front"}), "reviews");
        object["spec"]["parentRefs"][0]["port"] = json!(80);
        object
    };
    let api = || vec![namespace("front"), service("front", "api", "10.0.1.1")];
    let base = |object: Value, has_proxy: bool| vec![shop(), reviews(), endpoints(), web(has_proxy), object];
    let outside = |object: Value| vec![not_enabled(), reviews(), endpoints(), web(false), object];
    check(&[
        ("a route, and a pod with a proxy", base(own(), true), APPLIED),
        ("a cluster, and a pod with a proxy", base(settings(), true), APPLIED),
        (
            "no pod has a proxy",
            outside(own()),
            "False NoProxy: no client applies it, in no namespace: the only pod in namespace shop has no proxy: shop/web-1: label \
             namespace shop with weft.dev/inject=enabled, then restart it (kubectl rollout restart)",
        ),
        (
            "the pods were not restarted since the namespace was labelled",
            base(settings(), false),
            "False NoProxy: no client applies it, in no namespace: the only pod in namespace shop has no proxy: shop/web-1: \
             restart it (kubectl rollout restart), new pods get one",
        ),
        (
            "only pods elsewhere have a proxy",
            [outside(own()), elsewhere()].concat(),
            "True NoProxy: it applies only to clients in other namespaces: the only pod in namespace shop has no proxy: \
             shop/web-1: label namespace shop with weft.dev/inject=enabled, then restart it (kubectl rollout restart)",
        ),
        (
            "some pods were not restarted",
            [base(own(), true), vec![pod("old", "old", false)]].concat(),
            "True NoProxy: 1 of 2 pods in namespace shop has no proxy, and it does not apply to what they send: shop/old: \
             restart it (kubectl rollout restart), new pods get one",
        ),
        (
            "pods that opted out",
            [base(own(), true), vec![with(pod("old", "old", false), "/spec/hostNetwork", json!(true))]].concat(),
            APPLIED,
        ),
        (
            "no pods at all",
            vec![not_enabled(), reviews(), settings()],
            "True NoPods: no ready pod can send requests by it: it applies to pods with a proxy; label namespace shop with \
             weft.dev/inject=enabled, so that they get one",
        ),
        (
            "a consumer route whose own pods have no proxy",
            [api(), elsewhere(), outside(consumer())].concat(),
            "False NoProxy: no client applies it, and it is for clients in its own namespace only: the only pod in namespace \
             shop has no proxy: shop/web-1: label namespace shop with weft.dev/inject=enabled, then restart it (kubectl rollout \
             restart)",
        ),
        ("a consumer route whose own pods have one", [api(), base(consumer(), true)].concat(), APPLIED),
        (
            "a backend without endpoints",
            vec![shop(), reviews(), web(true), own()],
            "True NoEndpoints: rule default: Service shop/reviews has no ready pod at port 80: requests to it are answered 503",
        ),
        (
            "subsets of a Service without endpoints",
            vec![shop(), reviews(), web(true), cluster(json!({"subsets": [{"name": "v1", "labels": {"v": "1"}}]}))],
            "True NoEndpoints: Service reviews has no ready pod: requests to its subsets are answered 503",
        ),
        (
            "a port of health checks that no pod declares",
            base(cluster(json!({"healthCheck": {"type": "TCP", "port": 7777}})), true),
            "True PortNotFound: healthCheck.port: no pod of Service reviews declares port 7777, only 9080: if none listens on \
             it, all pods become unhealthy",
        ),
    ]);
}

#[test]
fn each_parent_of_a_gateway_route_is_told_of_its_own_clients() {
    let parent =
        |name: &str, namespace: &str| json!({"group": "", "kind": "Service", "name": name, "namespace": namespace});
    let route = json!({
        "kind": "HTTPRoute", "metadata": {"namespace": "shop", "name": "r"},
        "spec": {
            "parentRefs": [parent("reviews", "shop"), parent("api", "front"), parent("gone", "shop")],
            "rules": [{"backendRefs": [{"name": "reviews", "port": 80}]}],
        },
    });
    let mut client = pod("client", "client", true);
    client["metadata"]["namespace"] = json!("front");
    let world = support::world(&[
        json!({"kind": "Namespace", "metadata": {"name": "shop"}}),
        reviews(),
        slice("shop", "reviews", &[("web-1", "10.1.0.1")]),
        pod("web-1", "reviews", false),
        namespace("front"),
        service("front", "api", "10.0.1.1"),
        client,
        route,
    ]);
    let compiled = compile::compile(&world, "shop");
    let outcome = compiled.objects.values().next().expect("the route");
    let delivery = Delivery::Written("in a document".into());
    let in_effect: Vec<String> = outcome
        .parents
        .iter()
        .map(|parent| status::next(&Status::default(), 1, &parent.diagnostics, &delivery, Timestamp::UNIX_EPOCH))
        .map(|status| condition(&status.expect("a status"), "InEffect"))
        .collect();
    for (found, expected) in in_effect.iter().zip([
        "True NoProxy: it applies only to clients in other namespaces",
        "False NoProxy: no client applies it, and it is for clients in its own namespace only",
        "False Invalid: the object is not accepted",
    ]) {
        assert!(found.starts_with(expected), "{found}");
    }
    assert_eq!(in_effect.len(), 3);
}

#[test]
fn missing_names_are_answered_with_similar_ones() {
    let shop = || namespace("shop");
    let robot = json!({"kind": "ServiceAccount", "metadata": {"namespace": "shop", "name": "robot"}});
    let subsets = || json!({"subsets": [{"name": "stable", "labels": {"version": "v1"}}]});
    let with_subset = |subset: &str| {
        let mut route = route(json!({"name": "reviews"}), "reviews");
        route["spec"]["http"][0]["backendRefs"][0]["subset"] = json!(subset);
        route
    };
    let parent = |parent: Value| route(parent, "reviews");
    let labelled = |labels: Value| cluster(json!({"subsets": [{"name": "v3", "labels": labels}]}));
    let pods = || {
        let mut pod = pod("web-1", "reviews", true);
        pod["metadata"]["labels"]["version"] = json!("v1");
        vec![pod, slice("shop", "reviews", &[("web-1", "10.1.0.1")])]
    };
    let account = policy(json!({"kind": "ServiceAccount", "name": "robto"}), json!([{"action": "Deny"}]));
    for (desc, objects, kind, expected) in [
        (
            "target of a policy",
            vec![policy(json!({"kind": "Service", "name": "reviws"}), json!([{"action": "Deny"}]))],
            "Accepted",
            "Service reviws does not exist; did you mean reviews?",
        ),
        (
            "service account of a policy",
            vec![robot, account],
            "Accepted",
            "ServiceAccount robto does not exist; did you mean robot?",
        ),
        (
            "target of a cluster",
            vec![with(cluster(json!({})), "/spec/targetRef/name", json!("review"))],
            "Accepted",
            "Service review does not exist; did you mean reviews?",
        ),
        (
            "parent of a route",
            vec![parent(json!({"name": "Reviews"}))],
            "Accepted",
            "Service shop/Reviews does not exist; did you mean reviews?",
        ),
        (
            "namespace of a parent",
            vec![parent(json!({"name": "reviews", "namespace": "shpo"}))],
            "Accepted",
            "Service shpo/reviews does not exist: there is no namespace shpo",
        ),
        (
            "targetPort in place of the port",
            vec![parent(json!({"name": "reviews", "port": 9080}))],
            "Accepted",
            "Service shop/reviews has no TCP port 9080; did you mean 80, whose targetPort is 9080?",
        ),
        (
            "another port",
            vec![parent(json!({"name": "reviews", "port": 81}))],
            "Accepted",
            "Service shop/reviews has no TCP port 81; did you mean 80?",
        ),
        (
            "backend",
            vec![route(json!({"name": "reviews"}), "reveiws")],
            "ResolvedRefs",
            "rule default: Service shop/reveiws does not exist; did you mean reviews?: requests to it are answered 500",
        ),
        (
            "subset without a cluster",
            vec![with_subset("stable")],
            "ResolvedRefs",
            "rule default: subset stable: Service shop/reviews has no accepted MeshCluster, which would declare it: requests to it \
             are answered 500",
        ),
        (
            "labels of a subset",
            [pods(), vec![labelled(json!({"version": "v3"}))]].concat(),
            "ResolvedRefs",
            "subset v3 selects no ready pod of Service reviews (its pods have version=v1): requests to it are answered 503",
        ),
        (
            "label key of a subset",
            [pods(), vec![labelled(json!({"versoin": "v1"}))]].concat(),
            "ResolvedRefs",
            "subset v3 selects no ready pod of Service reviews (no pod has a label versoin; did you mean version?): requests to \
             it are answered 503",
        ),
    ] {
        let status = status_of(&support::world(&[vec![shop(), reviews()], objects].concat()));
        let found = condition(&status, kind);
        let (_, message) = found.split_once(": ").expect("a message");
        assert_eq!(message.trim_end_matches(". The policy is not applied"), expected, "{desc}: {found}");
    }

    let world = support::world(&[shop(), reviews(), cluster(subsets()), with_subset("stabel")]);
    let compiled = compile::compile(&world, "shop");
    let messages: Vec<String> =
        compiled.objects.values().flat_map(|outcome| &outcome.diagnostics).map(|found| found.message.clone()).collect();
    let expected = "rule default: the MeshCluster of Service shop/reviews declares no subset stabel; did you mean stable?: requests \
                    to it are answered 500";
    assert!(messages.iter().any(|message| message == expected), "{messages:?}");
}

#[test]
fn policies_with_http_conditions_are_told_of_opaque_ports() {
    let mut opaque = pod("web-1", "reviews", true);
    opaque["spec"]["initContainers"] =
        json!([{"name": "weft-proxy", "env": [{"name": "WEFT_OPAQUE_PORTS", "value": "9080"}]}]);
    let default = with(pod("web-1", "reviews", true), "/spec/containers/0/ports", json!([{"containerPort": 6379}]));
    let mut none = default.clone();
    none["spec"]["initContainers"] =
        json!([{"name": "weft-proxy", "env": [{"name": "WEFT_OPAQUE_PORTS", "value": ""}]}]);
    let target = || json!({"kind": "Namespace"});
    let database = with(service("shop", "db", "10.0.0.9"), "/spec/ports/0/name", json!("mysql"));
    for (desc, object, rule, expected) in [
        (
            "by annotation",
            opaque,
            json!({"action": "Deny", "methods": ["POST"]}),
            "port 9080 of shop/web-1 carries opaque TCP",
        ),
        (
            "by the default of the annotation",
            default,
            json!({"action": "Deny", "methods": ["POST"]}),
            "port 6379 of shop/web-1 carries opaque TCP",
        ),
        ("by an empty annotation", none, json!({"action": "Deny", "methods": ["POST"]}), "the object is valid"),
        (
            "by a Service",
            database.clone(),
            json!({"action": "Deny", "methods": ["POST"]}),
            "Services have ports that carry opaque TCP: db: Deny rules",
        ),
        ("without conditions on HTTP", database, json!({"action": "Deny"}), "the object is valid"),
    ] {
        let status = status_of(&support::world(&[namespace("shop"), object, policy(target(), json!([rule]))]));
        let found = condition(&status, "Accepted");
        assert!(found.contains(expected), "{desc}: {found}");
    }
}

#[test]
fn fields_of_a_cluster_without_effect_are_reported() {
    let tcp = with(reviews(), "/spec/ports/0/name", json!("mysql"));
    for (desc, service, spec, expected) in [
        (
            "fields about requests, on opaque TCP",
            tcp.clone(),
            json!({"loadBalancer": {"stickySession": {}}, "outlierDetection": {"consecutive5xx": 3}}),
            "accepted, except: no effect on opaque TCP, as which every port of Service reviews is declared (by appProtocol or \
             port name): loadBalancer.stickySession, outlierDetection.consecutive5xx",
        ),
        ("the same on HTTP", reviews(), json!({"loadBalancer": {"stickySession": {}}}), "the object is valid"),
        ("fields about connections, on opaque TCP", tcp, json!({"connect": {"timeout": "1s"}}), "the object is valid"),
        (
            "fields of outlier detection that is off",
            reviews(),
            json!({"outlierDetection": {"enabled": false, "interval": "5s"}}),
            "accepted, except: outlierDetection.enabled is false: the other fields of outlierDetection have no effect; remove them",
        ),
        (
            "outlier detection that is off",
            reviews(),
            json!({"outlierDetection": {"enabled": false}}),
            "the object is valid",
        ),
    ] {
        let status = status_of(&support::world(&[namespace("shop"), service, cluster(spec)]));
        let found = condition(&status, "Accepted");
        assert_eq!(found.split_once(": ").expect("a message").1, expected, "{desc}");
    }
    let zones = cluster(json!({"loadBalancer": {"trafficDistribution": "PreferSameZone"}}));
    let endpoints = slice("shop", "reviews", &[("web-1", "10.1.0.1")]);
    let status =
        status_of(&support::world(&[namespace("shop"), reviews(), pod("web-1", "reviews", true), endpoints, zones]));
    assert!(
        condition(&status, "Accepted").contains("no pod of Service reviews is on a node with a zone"),
        "{status:?}"
    );
}

#[test]
fn conditions_follow_pods_services_and_namespaces() {
    let mut world = support::world(&[namespace("shop"), reviews(), pod("web-1", "reviews", true), deny_reviews(&[])]);
    let in_effect = |world: &World| {
        let found = condition(&status_of(world), "InEffect");
        found.split_once(':').expect("a message").0.to_owned()
    };
    let mut observe = |event| {
        let touched = world.observe(event);
        assert!(touched.scopes.contains("shop"), "the namespace is compiled again");
        in_effect(&world)
    };
    assert_eq!(observe(applied(&pod("web-2", "reviews", false))), "False NoProxy", "a pod without a proxy came");
    assert_eq!(observe(deleted(&pod("web-2", "reviews", false))), "True InEffect", "it is gone");
    assert_eq!(observe(applied(&with(reviews(), "/spec/ports/0/targetPort", json!("htpp")))), "False PortNotFound");
    assert_eq!(observe(applied(&reviews())), "True InEffect");
    assert_eq!(observe(deleted(&pod("web-1", "reviews", true))), "True NoPods");

    let not_enabled = json!({"kind": "Namespace", "metadata": {"name": "shop"}});
    assert_eq!(observe(applied(&not_enabled)), "True NoPods", "its message has the remedy now");
}

/// A ready pod with a proxy that has an identity, for `reviews`.
fn pod_with_identity(name: &str) -> Value {
    let mut pod = pod(name, "reviews", true);
    pod["spec"]["initContainers"] =
        json!([{"name": "weft-proxy", "env": [{"name": "WEFT_IDENTITY_URL", "value": "u"}]}]);
    pod
}

fn mtls(target: Value, mtls: Value) -> Value {
    json!({
        "kind": "MeshPolicy", "metadata": {"namespace": "shop", "name": "p", "generation": 1},
        "spec": {"targetRef": target, "mtls": mtls},
    })
}

#[test]
fn policy_about_mutual_tls_tells_which_pods_cannot_and_which_ports_need_not() {
    let shop = || namespace("shop");
    let strict_mesh = || json!({"kind": "Mesh", "metadata": {"name": "weft"}, "spec": {"mtls": {"mode": "Strict"}}});
    let of_reviews = |value| mtls(json!({"kind": "Service", "name": "reviews"}), value);
    let whole = |value| mtls(json!({"kind": "Namespace"}), value);
    let declared = |ports: &[u16]| {
        let entry = |port| json!({"port": port, "mode": "Permissive", "ipBlocks": ["10.0.0.0/8"]});
        ports.iter().map(entry).collect::<Vec<_>>()
    };
    let set = |policy: Value| vec![shop(), reviews(), pod_with_identity("web-1"), policy];
    check(&[
        ("Strict", set(of_reviews(json!({"mode": "Strict"}))), APPLIED),
        (
            "Strict for a pod without identity",
            vec![
                shop(),
                reviews(),
                pod_with_identity("web-1"),
                pod("web-2", "reviews", true),
                whole(json!({"mode": "Strict"})),
            ],
            "False NoIdentity: mtls: shop/web-2 was created without identity, and nobody can connect to ports where Strict \
             holds: restart it (kubectl rollout restart)",
        ),
        (
            "Permissive for one without",
            vec![shop(), reviews(), pod("web-2", "reviews", true), whole(json!({"mode": "Permissive"}))],
            APPLIED,
        ),
        (
            "a port that nobody has",
            set(of_reviews(json!({"ports": [{"port": 80, "mode": "Strict"}]}))),
            "False PortNotFound: mtls: no pod listens on 80: policies name ports of pods; did you mean 9080?",
        ),
        (
            "a declared port",
            set(of_reviews(json!({"mode": "Strict", "ports": declared(&[9080])}))),
            "True PlaintextDeclared: 1 port accepts plaintext by declaration",
        ),
        (
            "Strict by the Mesh",
            [set(of_reviews(json!({"ports": declared(&[9080])}))), vec![strict_mesh()]].concat(),
            "True PlaintextDeclared: 1 port accepts plaintext by declaration",
        ),
        ("nothing is Strict", set(of_reviews(json!({"ports": declared(&[9080])}))), APPLIED),
        (
            "declared before there are pods",
            vec![shop(), whole(json!({"mode": "Strict", "ports": declared(&[9080, 9090])}))],
            "True NoPods: the namespace has no ready pod: the policy applies to such pods with a proxy as soon as they start; \
             2 ports accept plaintext by declaration",
        ),
    ]);
}
