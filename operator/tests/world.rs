//! Effects of events on the World.

mod support;

use serde_json::json;
use weft_config::{Envelope, Written};
use weft_crds::mesh::Mode;
use weft_identity::{TrustBundle, UnixTime};
use weft_operator::world::objects::{RawPod, RawService};
use weft_operator::world::{
    Availability, Change, Document, DocumentKind, Event, Key, Kind, Node, Pod, Service, Touched, WatchedKind, World,
};

use support::{applied, deleted, identified, namespace, pod, service, slice};

fn scopes(touched: &Touched) -> Vec<&str> {
    touched.scopes.iter().map(String::as_str).collect()
}

/// ReferenceGrants are not installed.
fn missing() -> Event {
    Event::Availability(WatchedKind::ReferenceGrants, Availability::Missing)
}

fn document(name: &str, revision: u64) -> Document {
    Document { name: name.into(), version: revision.to_string(), revision, labelled: true, ..Document::default() }
}

#[test]
fn only_relevant_changes_mark_a_scope() {
    let mut world = World::default();
    let web = pod("shop", "web-1", json!({"app": "web"}));
    assert_eq!(scopes(&world.observe(applied(&web))), ["shop"]);
    let mut heartbeat = web.clone();
    heartbeat["status"]["message"] = json!("an unused field");
    assert_eq!(scopes(&world.observe(applied(&heartbeat))), [""; 0]);
    assert_eq!(scopes(&world.observe(deleted(&web))), ["shop"]);
    assert_eq!(scopes(&world.observe(deleted(&web))), [""; 0], "already deleted");
}

#[test]
fn endpoints_that_stop_serving_are_urgent() {
    let mut world = World::default();
    let web = pod("shop", "web-1", json!({}));
    assert!(!world.observe(applied(&web)).urgent);
    let mut leaving = web.clone();
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert!(world.observe(applied(&leaving)).urgent);
    assert!(!world.observe(deleted(&web)).urgent, "it had stopped serving");
    let api = pod("shop", "api-1", json!({"app": "api"}));
    assert!(!world.observe(applied(&api)).urgent);
    let relabelled = pod("shop", "api-1", json!({"app": "api", "role": "private"}));
    assert!(world.observe(applied(&relabelled)).urgent, "a policy may select it now");

    world.observe(applied(&slice("shop", "web", &[("web-1", "10.1.0.1"), ("web-2", "10.1.0.2")])));
    assert!(world.observe(applied(&slice("shop", "web", &[("web-1", "10.1.0.1")]))).urgent);
}

/// Of all documents of pods, only those whose pods changed are compiled again.
#[test]
fn only_changes_of_who_is_where_mark_documents_of_pods() {
    let mut world = World::default();
    let mut db = identified("shop", "db-0", "db", "10.1.2.3");
    assert_eq!(scopes(&world.observe(applied(&db))), ["p.10.1.2.0", "shop"]);
    assert_eq!(scopes(&world.observe(applied(&identified("bank", "db-0", "db", "10.1.9.3")))), ["bank", "p.10.1.9.0"]);
    db["status"]["phase"] = json!("Running");
    assert_eq!(scopes(&world.observe(applied(&db))), [""; 0]);
    db["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
    assert_eq!(scopes(&world.observe(applied(&db))), ["shop"], "ready or not is the same");
    db["status"]["podIPs"] = json!([{"ip": "10.1.3.3"}, {"ip": "fd00::3"}]);
    let moved = ["p.10.1.2.0", "p.10.1.3.0", "p.fd00-0-0-0-0-0-0-0", "shop"];
    assert_eq!(scopes(&world.observe(applied(&db))), moved, "the node was started again");
    db["status"]["phase"] = json!("Failed");
    let ended = ["p.10.1.3.0", "p.fd00-0-0-0-0-0-0-0", "shop"];
    assert_eq!(scopes(&world.observe(applied(&db))), ended, "its addresses are free for others");
    assert_eq!(scopes(&world.observe(deleted(&db))), ["shop"]);
    let prefixes: Vec<String> = world.prefixes().into_iter().map(|prefix| prefix.to_string()).collect();
    assert_eq!(prefixes, ["10.1.9.0/24"]);
    let mut excluding = identified("bank", "db-0", "db", "10.1.9.3");
    let ports: Vec<String> = (1..=101).map(|port| (2 * port).to_string()).collect();
    excluding["spec"]["containers"] =
        json!([{"name": "weft-init", "args": [format!("--exclude-inbound-ports={}", ports.join(","))]}]);
    world.observe(applied(&excluding));
    assert!(world.prefixes().is_empty(), "more ranges of excluded ports than the injector accepts");
}

#[test]
fn list_replaces_all_objects_of_its_kind() {
    let mut world = World::default();
    for object in
        [namespace("a"), service("a", "x", "10.0.0.1"), service("a", "y", "10.0.0.2"), pod("a", "p", json!({}))]
    {
        world.observe(applied(&object));
    }
    let read = |value| Service::from(serde_json::from_value::<RawService>(value).unwrap());
    let touched = world.observe(Event::Service(Change::Reset(vec![read(service("a", "x", "10.0.0.1"))])));
    assert_eq!(scopes(&touched), ["a"], "y is gone");
    let stored = world.namespace("a").unwrap();
    assert_eq!((stored.services.len(), stored.pods.len()), (1, 1), "other kinds are unchanged");
    let touched = world.observe(Event::Service(Change::Reset(vec![read(service("a", "x", "10.0.0.1"))])));
    assert_eq!(touched, Touched::default(), "nothing changed");

    let pod = |value| Pod::from(serde_json::from_value::<RawPod>(value).unwrap());
    world.observe(Event::Pod(Change::Reset(vec![pod(support::pod("b", "p", json!({})))])));
    assert!(world.namespace("a").unwrap().pods.is_empty());
    assert_eq!(world.namespace("b").unwrap().pods.len(), 1);
}

#[test]
fn appearance_of_reference_grants_marks_routes_that_need_one() {
    let mut world = support::world(&[namespace("bank"), namespace("shop"), namespace("web")]);
    let route = |namespace: &str, backend: serde_json::Value| {
        json!({
            "kind": "MeshRoute", "metadata": {"namespace": namespace, "name": "r"},
            "spec": {"parentRefs": [{"name": "web"}], "http": [{"backendRefs": [backend]}]},
        })
    };
    world.observe(applied(&route("shop", json!({"name": "pay", "namespace": "bank", "port": 80}))));
    world.observe(applied(&route("web", json!({"name": "web", "port": 80}))));
    let pay = Key::new("bank", "pay");
    assert_eq!(scopes(&world.observe(missing())), [""; 0], "as before");
    assert_eq!(scopes(&world.observe(Event::Grant(Change::Reset(Vec::new())))), ["shop"], "the CRD is installed");
    let grant = json!({
        "kind": "ReferenceGrant", "metadata": {"namespace": "bank", "name": "g"},
        "spec": {
            "from": [{"group": "weft.dev", "kind": "MeshRoute", "namespace": "shop"}],
            "to": [{"group": "", "kind": "Service"}],
        },
    });
    assert_eq!(scopes(&world.observe(applied(&grant))), ["bank"], "its exports change, which marks shop");
    assert!(world.grants(Kind::Route, "shop", &pay) && !world.grants(Kind::Route, "web", &pay));
    assert_eq!(scopes(&world.observe(missing())), ["bank", "shop"], "the CRD is removed");
    assert!(!world.grants(Kind::Route, "shop", &pay));
}

#[test]
fn zone_of_a_node_marks_namespaces_whose_proxies_need_it() {
    let mut world = World::default();
    let on = |namespace: &str, labels: serde_json::Value| {
        let mut pod = pod(namespace, "p", labels);
        pod["spec"] = json!({"nodeName": "node-1"});
        pod
    };
    let zone = "topology.kubernetes.io/zone";
    world.observe(applied(&on("proxied", json!({"weft.dev/proxy-version": "1"}))));
    world.observe(applied(&on("plain", json!({}))));
    world.observe(applied(&on("labelled", json!({"weft.dev/proxy-version": "1", zone: "a"}))));
    let node = |zones: serde_json::Value| json!({"kind": "Node", "metadata": {"name": "node-1", "labels": zones}});
    assert_eq!(scopes(&world.observe(applied(&node(json!({}))))), [""; 0], "it is in no zone");
    assert_eq!(scopes(&world.observe(applied(&node(json!({zone: "a"}))))), ["proxied"]);
    assert_eq!(scopes(&world.observe(applied(&node(json!({zone: "a", "other": "label"}))))), [""; 0]);
    assert_eq!(world.zone("node-1"), Some("a"));
    let moved = Node { key: Key::new("", "node-1"), zone: Some("b".into()) };
    assert_eq!(scopes(&world.observe(Event::Node(Change::Reset(vec![moved])))), ["proxied"]);
    assert_eq!(world.zone("node-1"), Some("b"));
    assert_eq!(scopes(&world.observe(Event::Node(Change::Reset(vec![])))), ["proxied"], "it is gone");
    assert_eq!(world.zone("node-1"), None);
}

#[test]
fn first_namespace_with_a_proxy_marks_those_with_routes() {
    let mut world = World::default();
    for object in [namespace("a"), namespace("b"), namespace("c"), service("a", "web", "10.0.0.1")] {
        world.observe(applied(&object));
    }
    world.observe(applied(&json!({
        "kind": "MeshCluster", "metadata": {"namespace": "a", "name": "web"}, "spec": {"targetRef": {"name": "web"}},
    })));
    let proxied = |namespace: &str, name: &str| pod(namespace, name, json!({"weft.dev/proxy-version": "1"}));
    assert!(!world.is_meshed_outside("a"));
    assert_eq!(scopes(&world.observe(applied(&proxied("b", "p1")))), ["a", "b"], "the first in the mesh");
    assert!(world.is_meshed_outside("a") && !world.is_meshed_outside("b"));
    assert_eq!(scopes(&world.observe(applied(&proxied("b", "p2")))), ["b"]);
    assert_eq!(scopes(&world.observe(applied(&proxied("c", "p1")))), ["a", "c"], "now there is one outside of b");
    let mut leaving = proxied("c", "p1");
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(scopes(&world.observe(applied(&leaving))), ["a", "c"], "it has no traffic any more");
    assert_eq!(scopes(&world.observe(deleted(&leaving))), ["c"]);
    assert_eq!(scopes(&world.observe(deleted(&proxied("b", "p1")))), ["b"]);
    assert_eq!(scopes(&world.observe(deleted(&proxied("b", "p2")))), ["a", "b"], "the last");
    assert!(!world.is_meshed_outside("a"));
}

#[test]
fn account_marks_the_namespaces_whose_policies_name_it() {
    let policy = |namespace: &str, from: serde_json::Value| {
        let rules = json!([{"action": "Deny", "from": from}]);
        applied(&json!({
            "kind": "MeshPolicy", "metadata": {"namespace": namespace, "name": "p"},
            "spec": {"targetRef": {"kind": "Namespace"}, "authorization": {"rules": rules}}
        }))
    };
    let account = json!({"kind": "ServiceAccount", "metadata": {"namespace": "bank", "name": "teller"}});
    let mut world = World::default();
    for name in ["shop", "lab", "bank", "farm"] {
        world.observe(applied(&namespace(name)));
    }
    world.observe(policy("shop", json!([{"serviceAccounts": ["bank/teller"]}])));
    world.observe(policy("lab", json!([{"notNamespaces": ["bank"]}])));
    world.observe(policy("farm", json!([{"serviceAccounts": ["teller"]}, {"namespaces": ["shop"]}])));
    assert_eq!(scopes(&world.observe(applied(&account))), ["bank", "lab", "shop"]);
    assert_eq!(scopes(&world.observe(applied(&account))), [""; 0], "nothing changed");
    assert_eq!(scopes(&world.observe(deleted(&account))), ["bank", "lab", "shop"]);
    assert_eq!(scopes(&world.observe(applied(&namespace("x")))), ["x"], "no policy names it");
    world.observe(policy("farm", json!([{"namespaces": ["baank"]}])));
    assert_eq!(scopes(&world.observe(applied(&namespace("y")))), ["farm", "y"], "it may be the one that was meant");
}

#[test]
fn deleted_namespace_leaves_nothing_behind() {
    let mut world = World::default();
    let objects = [namespace("a"), service("a", "x", "10.0.0.1"), pod("a", "p", json!({}))];
    for object in &objects {
        world.observe(applied(object));
    }
    assert!(world.in_mesh("a"));
    world.observe(deleted(&objects[0]));
    assert!(!world.in_mesh("a"), "a namespace that does not exist has no documents");
    for object in &objects {
        world.observe(deleted(object));
    }
    assert!(world.namespace("a").is_none());
}

#[test]
fn stale_watch_event_of_a_document_is_ignored() {
    let mut world = World::default();
    let apply = |revision| Event::Document(DocumentKind::Export, Change::Apply(document("x.shop", revision)));
    assert_eq!(scopes(&world.observe(apply(7))), ["shop"]);
    assert_eq!(scopes(&world.observe(apply(5))), [""; 0], "older than our own write");
    assert_eq!(world.document(DocumentKind::Export, "shop").unwrap().revision, 7);
    let gone = Event::Document(DocumentKind::Export, Change::Delete(Key::new("weft-config", "x.shop")));
    assert_eq!(scopes(&world.observe(gone)), ["shop"]);
}

#[test]
fn documents_are_identified_by_name() {
    let mut world = World::default();
    let exports = vec![document("x.shop", 1), document("index", 2), document("kube-root-ca.crt", 3)];
    let touched = world.observe(Event::Document(DocumentKind::Export, Change::Reset(exports)));
    assert_eq!(scopes(&touched), ["", "shop"]);
    assert!(world.document(DocumentKind::Index, "").is_some());
    let inbound = vec![document("i.shop", 4), document("x.shop", 5)];
    world.observe(Event::Document(DocumentKind::Inbound, Change::Reset(inbound)));
    assert!(world.document(DocumentKind::Inbound, "shop").is_some());
    assert_eq!(world.documents().count(), 3, "other names are ignored");
    world.observe(Event::Document(DocumentKind::Export, Change::Reset(vec![document("x.shop", 1)])));
    assert!(world.document(DocumentKind::Index, "").is_none(), "the export watch includes the index");
    assert!(world.document(DocumentKind::Inbound, "shop").is_some(), "inbound documents have a watch of their own");
}

fn http_route(namespace: &str, name: &str, parent: serde_json::Value) -> serde_json::Value {
    json!({
        "kind": "HTTPRoute", "metadata": {"namespace": namespace, "name": name, "resourceVersion": "5"},
        "spec": {"parentRefs": [parent], "rules": [{"backendRefs": [{"name": "pay", "namespace": "bank", "port": 80}]}]},
    })
}

#[test]
fn routes_of_the_gateway_api_count_if_a_service_is_their_parent() {
    let mut world = support::world(&[namespace("bank"), namespace("shop")]);
    let mut edge = http_route("edge", "r", json!({"name": "gateway"}));
    assert_eq!(world.observe(applied(&edge)), Touched::default(), "a route for a Gateway");
    assert!(world.namespace("edge").is_none());

    let parent = json!({"group": "", "kind": "Service", "name": "web", "namespace": "shop"});
    edge["spec"]["parentRefs"] = json!([{"name": "gateway"}, parent]);
    assert_eq!(scopes(&world.observe(applied(&edge))), ["edge"]);
    assert_eq!(world.references("edge"), ["bank", "shop"].map(str::to_owned).into());
    assert!(!world.in_mesh("edge"), "the Namespace is not known");
    world.observe(applied(&json!({"kind": "Namespace", "metadata": {"name": "edge"}})));
    assert!(world.in_mesh("edge"), "a route enrolls its namespace");
    assert_eq!(world.counts().into_iter().find(|(kind, _)| *kind == "httproutes"), Some(("httproutes", 1)));
    let proxied = pod("shop", "p", json!({"weft.dev/proxy-version": "1"}));
    assert_eq!(scopes(&world.observe(applied(&proxied))), ["edge", "shop"], "its clients may be elsewhere");

    let mut newer = edge.clone();
    newer["metadata"]["resourceVersion"] = json!("9");
    newer["metadata"]["labels"] = json!({"a": "b"});
    assert_eq!(world.observe(applied(&newer)), Touched::default(), "compiles to the same");
    let mut stale = edge.clone();
    stale["metadata"]["resourceVersion"] = json!("7");
    stale["spec"]["rules"] = json!([]);
    assert_eq!(world.observe(applied(&stale)), Touched::default(), "older than what is known");
    newer["metadata"]["resourceVersion"] = json!("10");
    newer["status"] = json!({"parents": [{"controllerName": "example.com/gateway", "parentRef": {"name": "gateway"}}]});
    assert_eq!(scopes(&world.observe(applied(&newer))), ["edge"], "what is written must have the entry");

    newer["metadata"]["resourceVersion"] = json!("11");
    newer["spec"]["parentRefs"] = json!([{"name": "gateway"}]);
    assert_eq!(scopes(&world.observe(applied(&newer))), ["edge"]);
    assert!(!world.in_mesh("edge"), "no Service is left");
}

#[test]
fn list_of_one_kind_of_the_gateway_api_leaves_the_others() {
    let parent = || json!({"group": "", "kind": "Service", "name": "web"});
    let (http, mut grpc) = (http_route("shop", "r", parent()), http_route("shop", "r", parent()));
    grpc["kind"] = json!("GRPCRoute");
    let mut world = support::world(&[namespace("shop"), http, grpc]);
    let kinds = |world: &World| -> Vec<Kind> {
        world.namespace("shop").into_iter().flat_map(|all| all.gateway_routes()).map(|route| route.kind).collect()
    };
    assert_eq!(kinds(&world), [Kind::HttpRoute, Kind::GrpcRoute]);
    let missing = Event::Availability(WatchedKind::HttpRoutes, Availability::Missing);
    assert_eq!(scopes(&world.observe(missing)), ["shop"], "the definition is gone");
    assert_eq!(kinds(&world), [Kind::GrpcRoute]);
    assert_eq!(scopes(&world.observe(Event::GatewayRoute(Kind::GrpcRoute, Change::Reset(vec![])))), ["shop"]);
    assert_eq!(kinds(&world), []);
}

#[test]
fn mode_of_the_mesh_touches_every_namespace_and_one_that_does_not_parse_changes_nothing() {
    let mesh = |name: &str, spec: serde_json::Value| json!({"kind": "Mesh", "metadata": {"name": name}, "spec": spec});
    let strict = json!({"mtls": {"mode": "Strict"}});
    let mut world = support::world(&[namespace("shop"), namespace("web")]);
    for (desc, event, touched, mode) in [
        ("no mode", applied(&mesh("weft", json!({}))), vec![""], Mode::Permissive),
        ("Strict", applied(&mesh("weft", strict.clone())), vec!["", "shop", "web"], Mode::Strict),
        (
            "another field",
            applied(&mesh("weft", json!({"mtls": {"mode": "Strict"}, "trustDomain": "a"}))),
            vec![""],
            Mode::Strict,
        ),
        ("nonsense", applied(&mesh("weft", json!({"mtls": 7}))), vec![""], Mode::Strict),
        (
            "a Mesh with another name",
            applied(&mesh("shop", json!({"mtls": {"mode": "Permissive"}}))),
            vec![""],
            Mode::Strict,
        ),
        ("deleted", deleted(&mesh("weft", strict)), vec!["", "shop", "web"], Mode::Permissive),
    ] {
        assert_eq!(scopes(&world.observe(event)), touched, "{desc}");
        assert_eq!(world.mode(), mode, "{desc}");
    }
}

#[test]
fn trust_document_is_taken_if_it_is_intact() {
    let root = weft_identity::authority::Authority::root(&"cluster.local".parse().expect("a domain"), UnixTime::now());
    let root = root.expect("a root").certificate;
    let bundle = TrustBundle::new("cluster.local".parse().expect("a domain"), [root]).expect("a bundle");
    let intact = Document { envelope: Envelope::write(Written::default(), &bundle), ..document("trust", 2) };
    let mut world = World::default();
    let event = |document: &Document| Event::Document(DocumentKind::Export, Change::Apply(document.clone()));
    assert_eq!(scopes(&world.observe(event(&document("trust", 1)))), [""; 0], "damaged");
    assert_eq!(scopes(&world.observe(event(&intact))), [""]);
    assert_eq!(scopes(&world.observe(event(&intact))), [""; 0], "the same");
    world.observe(event(&document("trust", 3)));
    world.observe(Event::Document(DocumentKind::Export, Change::Delete(Key::new("", "trust"))));
    assert_eq!(world.trust(), Some(&bundle), "damaged, then deleted: the last good one stays");
}
