//! Which Kubernetes Events there are: about conditions that turn False, and about pods without a proxy.

mod support;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use weft_crds::{Condition, Status};
use weft_operator::events::{self, Event};
use weft_operator::world::{
    Change, Definition, Event as WorldEvent, GatewayRoute, Key, Kind, ObjectId, OwnStatus, ParentStatus,
};

use support::{namespace, pod, service};

fn shown(events: &[Event]) -> Vec<String> {
    let shown = events.iter().map(|event| {
        let Event { regarding, severity, reason, note, .. } = event;
        format!("{} {}: {severity:?} {reason}: {note}", regarding.kind, regarding.key)
    });
    shown.collect()
}

fn with_uid(mut object: Value) -> Value {
    object["metadata"]["uid"] = json!(format!("uid-{}", object["metadata"]["name"].as_str().unwrap_or_default()));
    object
}

fn mesh_object(kind: &str, name: &str, spec: Value) -> Value {
    with_uid(json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": kind,
        "metadata": {"namespace": "shop", "name": name, "generation": 1}, "spec": spec,
    }))
}

fn id(kind: Kind, name: &str) -> ObjectId {
    ObjectId { kind, key: Key::new("shop", name) }
}

/// A status with these conditions: type, status, reason and message.
fn status(generation: i64, conditions: &[(&str, &str, &str, &str)]) -> Status {
    let conditions = conditions.iter().map(|(kind, status, reason, message)| {
        serde_json::from_value(json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }))
    });
    let conditions: Result<Vec<Condition>, _> = conditions.collect();
    Status { observed_generation: Some(generation), conditions: conditions.expect("conditions") }
}

#[test]
fn condition_that_turns_false_is_told_on_the_object_and_its_service_and_again_when_it_is_true() {
    let parents = json!([{"name": "web", "port": 80}, {"name": "web"}, {"name": "other", "namespace": "bank"}]);
    let world = support::world(&[
        namespace("shop"),
        namespace("bank"),
        with_uid(service("shop", "web", "10.0.0.1")),
        with_uid(service("bank", "other", "10.0.0.2")),
        mesh_object("MeshRoute", "web", json!({"parentRefs": parents})),
    ]);
    let (id, none) = (id(Kind::Route, "web"), Status::default());
    let told = |before: &Status, after: &Status| shown(&events::condition::events(&world, &id, before, after));
    let accepted = ("Accepted", "True", "Accepted", "the object is valid");
    let bad = status(
        1,
        &[
            accepted,
            ("ResolvedRefs", "False", "BackendNotFound", "Service shop/webb does not exist"),
            ("Ready", "False", "BackendNotFound", "ResolvedRefs is False: BackendNotFound: ..."),
        ],
    );
    let good =
        status(2, &[accepted, ("ResolvedRefs", "True", "ResolvedRefs", "all resolve"), ("Ready", "True", "Ready", "")]);
    assert_eq!(
        told(&none, &bad),
        [
            "MeshRoute shop/web: Warning BackendNotFound: Service shop/webb does not exist",
            "Service shop/web: Warning BackendNotFound: MeshRoute shop/web: ResolvedRefs is False: Service shop/webb \
             does not exist",
        ],
        "once for each object, not for Ready, and nothing in the namespace bank"
    );
    assert_eq!(told(&bad, &bad), [""; 0], "nothing changed");
    assert_eq!(
        told(&bad, &good),
        [
            "MeshRoute shop/web: Normal ResolvedRefs: all resolve",
            "Service shop/web: Normal ResolvedRefs: MeshRoute shop/web: ResolvedRefs is True: all resolve",
        ]
    );
    assert_eq!(told(&none, &good), [""; 0], "it was never False");
}

#[test]
fn conditions_that_follow_from_another_are_not_told() {
    let world = support::world(&[namespace("shop"), mesh_object("MeshRoute", "web", json!({"parentRefs": []}))]);
    let id = id(Kind::Route, "web");
    let told = |before: &Status, after: &Status| shown(&events::condition::events(&world, &id, before, after));
    let all = |status: &str| {
        let [accepted, programmed, ready] =
            ["Accepted", "Programmed", "Ready"].map(|kind| (kind, status, "Why", "text"));
        self::status(1, &[accepted, programmed, ready])
    };
    assert_eq!(told(&Status::default(), &all("False")), ["MeshRoute shop/web: Warning Why: text"], "Accepted only");
    assert_eq!(told(&all("False"), &all("True")), ["MeshRoute shop/web: Normal Why: text"]);
    let only_ready = status(1, &[("Ready", "False", "Why", "a reason of its own")]);
    assert_eq!(told(&all("True"), &only_ready), ["MeshRoute shop/web: Warning Why: a reason of its own"]);
}

#[test]
fn message_that_changes_is_told_again_only_for_a_new_spec() {
    let world = support::world(&[namespace("shop"), mesh_object("MeshRoute", "web", json!({"parentRefs": []}))]);
    let id = id(Kind::Route, "web");
    let bad = |generation, reason, message| status(generation, &[("ResolvedRefs", "False", reason, message)]);
    let events = |before, after| events::condition::events(&world, &id, &before, &after).len();
    assert_eq!(events(bad(1, "A", "a"), bad(1, "A", "b")), 0, "the message has changed by itself");
    assert_eq!(events(bad(1, "A", "a"), bad(2, "A", "a")), 0, "an edit that changed nothing");
    assert_eq!(events(bad(1, "A", "a"), bad(2, "A", "b")), 1, "an edit with another mistake");
    assert_eq!(events(bad(1, "A", "a"), bad(1, "B", "b")), 1, "another reason");
}

#[test]
fn policy_is_told_on_the_service_account_that_it_selects() {
    let spec = json!({
        "targetRef": {"kind": "ServiceAccount", "name": "web"},
        "authorization": {"rules": [{"action": "Deny"}]},
    });
    let account = json!({"kind": "ServiceAccount", "metadata": {"namespace": "shop", "name": "web"}});
    let world = support::world(&[namespace("shop"), account, mesh_object("MeshPolicy", "p", spec)]);
    let id = id(Kind::Policy, "p");
    let bad = status(1, &[("Accepted", "False", "UnsupportedValue", "(")]);
    let events = events::condition::events(&world, &id, &Status::default(), &bad);
    let kinds: Vec<&str> = events.iter().map(|event| event.regarding.kind.as_str()).collect();
    assert_eq!(kinds, ["MeshPolicy", "ServiceAccount"]);
    assert!(events[1].related.as_ref().is_some_and(|related| related.kind == "MeshPolicy"));
}

/// A pod of a controller.
fn owned(name: &str, labels: Value, kind: &str, owner: &str) -> Value {
    let mut pod = pod("shop", name, labels);
    let api_version = if kind == "Job" { "batch/v1" } else { "apps/v1" };
    pod["metadata"]["ownerReferences"] = json!([
        {"apiVersion": api_version, "kind": kind, "name": owner, "uid": format!("uid-{owner}"), "controller": true}
    ]);
    pod
}

fn notes_of(pods: &[Value]) -> Vec<String> {
    let mut objects = vec![namespace("shop")];
    objects.extend_from_slice(pods);
    shown(&events::pod::events(support::world(&objects).namespace("shop"), &mut BTreeSet::new()))
}

const WHY: &str = "runs without a proxy: created before the namespace had the label weft.dev/inject=enabled, or while \
                   no injector answered: ";

#[test]
fn pod_without_a_proxy_is_told_once_with_the_command_that_restarts_it() {
    let web = |name: &str| owned(name, json!({"pod-template-hash": "7d9f"}), "ReplicaSet", "web-7d9f");
    let mut told = BTreeSet::new();
    let world = support::world(&[namespace("shop"), web("web-7d9f-a"), web("web-7d9f-b")]);
    let restart = format!("{WHY}restart it: kubectl -n shop rollout restart deployment/web");
    assert_eq!(
        shown(&events::pod::events(world.namespace("shop"), &mut told)),
        [
            format!("ReplicaSet shop/web-7d9f: Warning NoProxy: {restart}"),
            format!("Pod shop/web-7d9f-a: Warning NoProxy: {restart}"),
            format!("Pod shop/web-7d9f-b: Warning NoProxy: {restart}"),
        ],
        "the workload first, and once"
    );
    assert_eq!(events::pod::events(world.namespace("shop"), &mut told), [], "each is told once");
    let world = support::world(&[namespace("shop"), web("web-7d9f-b"), web("web-7d9f-c")]);
    assert_eq!(
        shown(&events::pod::events(world.namespace("shop"), &mut told)),
        [format!("Pod shop/web-7d9f-c: Warning NoProxy: {restart}")]
    );
    assert_eq!(events::pod::events(None, &mut told), []);
    assert!(told.is_empty(), "a namespace that is gone is forgotten");
}

#[test]
fn remedy_depends_on_what_created_the_pod() {
    for (pod, remedy) in [
        (owned("db-0", json!({}), "StatefulSet", "db"), "restart it: kubectl -n shop rollout restart statefulset/db"),
        (owned("log-x", json!({}), "DaemonSet", "log"), "restart it: kubectl -n shop rollout restart daemonset/log"),
        (
            owned("job-x", json!({}), "Job", "job"),
            "delete Job job and create it again; the next Job of a CronJob has a proxy",
        ),
        (
            owned("set-x", json!({}), "ReplicaSet", "set"),
            "delete the pod, ReplicaSet set creates another one: kubectl -n shop delete pod set-x",
        ),
        (pod("shop", "bare", json!({})), "delete it and create it again"),
    ] {
        let notes = notes_of(std::slice::from_ref(&pod));
        let note = notes.last().expect("an Event on the pod");
        assert!(note.ends_with(&format!("NoProxy: {WHY}{remedy}")), "{note}");
    }
    let mut host = owned("node-x", json!({}), "DaemonSet", "node");
    host["spec"]["hostNetwork"] = json!(true);
    let notes = notes_of(&[host]);
    assert!(notes[0].starts_with("DaemonSet shop/node: Warning HostNetwork: hostNetwork: pods with hostNetwork get"));
    assert_eq!(notes.len(), 2);
}

#[test]
fn pods_that_need_no_proxy_are_not_told() {
    let changed = |change: fn(&mut Value)| {
        let mut pod = pod("shop", "p", json!({}));
        change(&mut pod);
        pod
    };
    for pod in [
        pod("shop", "opted-out", json!({"weft.dev/inject": "false"})),
        pod("shop", "injected", json!({"weft.dev/proxy-version": "1"})),
        changed(|pod| pod["status"]["phase"] = json!("Succeeded")),
        changed(|pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")),
        changed(|pod| pod["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"})),
        changed(|pod| pod["spec"]["os"] = json!({"name": "windows"})),
    ] {
        assert_eq!(notes_of(std::slice::from_ref(&pod)), [""; 0], "{pod}");
    }
    let outside = json!({"kind": "Namespace", "metadata": {"name": "shop"}});
    let world = support::world(&[outside, pod("shop", "p", json!({}))]);
    assert_eq!(events::pod::events(world.namespace("shop"), &mut BTreeSet::new()), [], "not in the mesh");
    let world = support::world(&[namespace("kube-system"), pod("kube-system", "p", json!({}))]);
    assert_eq!(events::pod::events(world.namespace("kube-system"), &mut BTreeSet::new()), [], "never injected");
}

#[test]
fn failure_of_a_route_of_the_gateway_api_is_told_on_it_and_the_service_of_that_parent() {
    let parents = json!([
        {"group": "", "kind": "Service", "name": "web"},
        {"group": "", "kind": "Service", "name": "api"},
        {"group": "", "kind": "Service", "name": "other", "namespace": "bank"},
    ]);
    let object = with_uid(json!({"metadata": {"namespace": "shop", "name": "r"}, "spec": {"parentRefs": parents}}));
    let object = serde_json::from_value(object).expect("an object");
    let mut route = GatewayRoute::read(Kind::HttpRoute, object).expect("has Services");
    let mut world = support::world(&[
        namespace("shop"),
        namespace("bank"),
        with_uid(service("shop", "web", "10.0.0.1")),
        with_uid(service("shop", "api", "10.0.0.2")),
        with_uid(service("bank", "other", "10.0.0.3")),
    ]);
    world.observe(WorldEvent::GatewayRoute(Kind::HttpRoute, Change::Apply(route.clone())));
    let entry = |at: usize, conditions: &[(&str, &str, &str, &str)]| {
        let conditions = status(1, conditions).conditions;
        ParentStatus::Own(OwnStatus { parent_ref: route.services[at].clone(), conditions })
    };
    let unresolved = ("ResolvedRefs", "False", "BackendNotFound", "Service shop/x does not exist");
    let fine = ("ResolvedRefs", "True", "ResolvedRefs", "all references are resolved");
    let after = vec![entry(0, &[unresolved]), entry(1, &[fine]), entry(2, &[unresolved])];
    let told = events::condition::events_of_route(&world, &route, &after);
    assert_eq!(told[0].regarding.api_version, "gateway.networking.k8s.io/v1");
    assert_eq!(
        shown(&told),
        [
            "HTTPRoute shop/r: Warning BackendNotFound: Service shop/x does not exist",
            "Service shop/web: Warning BackendNotFound: HTTPRoute shop/r: ResolvedRefs is False: Service shop/x does not exist",
        ]
    );

    let again = vec![entry(0, &[fine]), entry(1, &[fine]), entry(2, &[unresolved])];
    route.parents = after;
    let told = events::condition::events_of_route(&world, &route, &again);
    assert_eq!(
        shown(&told),
        [
            "HTTPRoute shop/r: Normal ResolvedRefs: all references are resolved",
            "Service shop/web: Normal ResolvedRefs: HTTPRoute shop/r: ResolvedRefs is True: all references are resolved",
        ]
    );
}

#[test]
fn definition_without_a_known_version_is_told_on_it() {
    let versions = vec!["v1alpha2".to_owned(), "v1alpha3".to_owned()];
    let event = events::definition::event(&Definition { kind: "TLSRoute".into(), uid: "u".into(), versions });
    assert_eq!(event.regarding.key, Key::new("", "tlsroutes.gateway.networking.k8s.io"));
    assert!(event.note.contains("TLSRoute as v1alpha2, v1alpha3 only"), "{}", event.note);
}
