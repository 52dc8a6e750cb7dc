//! Which Kubernetes Events there are: about conditions that turn False, and about pods without a proxy.

mod support;

use std::collections::BTreeSet;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use weft_crds::Status;
use weft_operator::compile::{self, Diagnostic};
use weft_operator::events::{self, Event};
use weft_operator::status::{self, Delivery};
use weft_operator::world::{Key, Kind, ObjectId, World};

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

/// The status of an object with the diagnostics that the World gives it.
fn status_of(world: &World, id: &ObjectId, before: &Status, generation: i64) -> Status {
    let compiled = compile::compile(world, &id.key.namespace);
    let delivery = Delivery::Written("in x.shop".into());
    status::next(before, generation, &compiled.objects[id].diagnostics, &delivery, Timestamp::UNIX_EPOCH)
        .unwrap_or_else(|| before.clone())
}

#[test]
fn condition_that_turns_false_is_told_on_the_object_and_its_service_and_again_when_it_is_true() {
    let route = |backend: &str| {
        let rule = json!({"backendRefs": [{"name": backend, "port": 80}]});
        let parents = json!([{"name": "web", "port": 80}, {"name": "web"}, {"name": "other", "namespace": "bank"}]);
        mesh_object("MeshRoute", "web", json!({"parentRefs": parents, "http": [rule]}))
    };
    let id = id(Kind::Route, "web");
    let objects = |backend: &str| {
        [
            namespace("shop"),
            namespace("bank"),
            with_uid(service("shop", "web", "10.0.0.1")),
            with_uid(service("bank", "other", "10.0.0.2")),
            route(backend),
        ]
    };
    let (wrong, right) = (support::world(&objects("webb")), support::world(&objects("web")));
    let none = Status::default();
    let bad = status_of(&wrong, &id, &none, 1);
    let missing = "rule 0: Service shop/webb does not exist: requests to it are answered 500";
    assert_eq!(
        shown(&events::condition::events(&wrong, &id, &none, &bad)),
        [
            format!("MeshRoute shop/web: Warning BackendNotFound: {missing}"),
            format!("Service shop/web: Warning BackendNotFound: MeshRoute shop/web: ResolvedRefs is False: {missing}"),
        ],
        "once for each object, and nothing in the namespace bank"
    );
    assert_eq!(shown(&events::condition::events(&wrong, &id, &bad, &bad)), [""; 0], "nothing changed");

    let good = status_of(&right, &id, &bad, 2);
    assert_eq!(
        shown(&events::condition::events(&right, &id, &bad, &good)),
        [
            "MeshRoute shop/web: Normal ResolvedRefs: all references are resolved",
            "Service shop/web: Normal ResolvedRefs: MeshRoute shop/web: ResolvedRefs is True: all references are \
             resolved",
        ]
    );
    assert_eq!(shown(&events::condition::events(&right, &id, &none, &good)), [""; 0], "it was never False");
}

#[test]
fn message_that_changes_is_told_again_only_for_a_new_spec() {
    let id = id(Kind::Route, "web");
    let world = support::world(&[namespace("shop"), mesh_object("MeshRoute", "web", json!({"parentRefs": []}))]);
    let status = |generation: i64, message: &str| {
        let diagnostics = [Diagnostic::refused(weft_crds::status::Reason::Conflicted, message)];
        let delivery = Delivery::Written(String::new());
        status::next(&Status::default(), generation, &diagnostics, &delivery, Timestamp::UNIX_EPOCH).unwrap_or_default()
    };
    let events = |before, after| events::condition::events(&world, &id, &before, &after).len();
    assert_eq!(events(Status::default(), status(1, "a")), 1, "Programmed and Ready follow from Accepted");
    assert_eq!(events(status(1, "a"), status(1, "b")), 0, "the message has changed by itself");
    assert_eq!(events(status(1, "a"), status(2, "a")), 0, "an edit that changed nothing");
    assert_eq!(events(status(1, "a"), status(2, "b")), 1, "an edit with another mistake");
}

#[test]
fn policy_is_told_on_the_service_account_that_it_selects() {
    let spec = json!({
        "targetRef": {"kind": "ServiceAccount", "name": "web"},
        "authorization": {"rules": [{"action": "Deny", "paths": [{"type": "RegularExpression", "value": "("}]}]},
    });
    let account = json!({"kind": "ServiceAccount", "metadata": {"namespace": "shop", "name": "web"}});
    let world = support::world(&[namespace("shop"), account, mesh_object("MeshPolicy", "p", spec)]);
    let id = id(Kind::Policy, "p");
    let status = status_of(&world, &id, &Status::default(), 1);
    let events = events::condition::events(&world, &id, &Status::default(), &status);
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
