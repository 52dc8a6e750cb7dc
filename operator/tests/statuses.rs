//! The loop writes statuses of the Gateway API's routes: after a conflict with what others wrote meanwhile, and not
//! again when the leader changes.

mod support;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::Api;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use support::{applied, namespace};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_operator::events::Recorder;
use weft_operator::lease::State;
use weft_operator::metrics::Metrics;
use weft_operator::reconcile::Reconciler;
use weft_operator::world::{AccessKind, Availability, Change, DocumentKind, Event, Kind, WatchedKind};
use weft_runtime::readiness::Readiness;

const PATH: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/r/status";

/// The events of a cluster that has nothing.
fn nothing() -> Vec<Event> {
    let missing = |kind: WatchedKind| Event::Availability(kind, Availability::Missing);
    let mut events = vec![
        Event::Namespace(Change::Reset(vec![])),
        Event::Service(Change::Reset(vec![])),
        Event::Pod(Change::Reset(vec![])),
        Event::Slice(Change::Reset(vec![])),
        Event::Account(Change::Reset(vec![])),
        Event::Node(Change::Reset(vec![])),
        Event::Route(Change::Reset(vec![])),
        Event::Cluster(Change::Reset(vec![])),
        Event::Policy(Change::Reset(vec![])),
        Event::Document(DocumentKind::Export, Change::Reset(vec![])),
        Event::Document(DocumentKind::Inbound, Change::Reset(vec![])),
        Event::Access(AccessKind::Role, Change::Reset(vec![])),
        Event::Access(AccessKind::Binding, Change::Reset(vec![])),
        missing(WatchedKind::ReferenceGrants),
    ];
    events.extend(Kind::GATEWAY.map(|kind| missing(kind.watched())));
    events
}

/// A route whose only parent lacks the group of Services.
fn route(version: &str, parents: Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"namespace": "shop", "name": "r", "uid": "u", "generation": 1, "resourceVersion": version},
        "spec": {"parentRefs": [{"kind": "Service", "name": "web"}], "rules": [{}]},
        "status": {"parents": parents},
    })
}

async fn until(what: &str, reached: impl Fn() -> bool) {
    let reached = async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), reached).await.is_ok(), "{what}");
}

fn patches(api: &Arc<Mutex<support::api::Api>>) -> usize {
    let api = api.lock().expect("not poisoned");
    api.requests.iter().filter(|request| **request == format!("PATCH {PATH}")).count()
}

#[tokio::test]
async fn entries_that_others_wrote_meanwhile_are_kept_and_a_new_leader_writes_nothing() {
    let other = json!({"parentRef": {"name": "edge"}, "controllerName": "example.com/gateway", "conditions": []});
    let newer = route("9", json!([other]));
    let (api, client) = support::api::start(HashMap::from([(PATH.to_owned(), newer.clone())])).await;
    let metrics = Metrics::register(&mut Registry::default());
    let leader = |epoch| State::Leader { epoch, until: Instant::now() + Duration::from_secs(600) };
    let (lease, leads) = watch::channel(leader(1));
    let (stop, tasks, readiness) = (CancellationToken::new(), TaskTracker::new(), Readiness::default());
    let recorder = Recorder::start(client.clone(), "o".into(), leads.clone(), metrics.clone(), stop.clone(), &tasks);
    let reconciler = Reconciler {
        leases: Api::namespaced(client.clone(), "weft-system"),
        client,
        identity: "o".into(),
        lease: leads,
        metrics,
        recorder,
        excluded_namespaces: BTreeSet::new(),
        world_part: readiness.part("world"),
        writer_part: readiness.part("writer"),
        stop: stop.clone(),
    };
    let (events, received) = mpsc::channel(64);
    tokio::spawn(reconciler.run(received));
    for event in nothing().into_iter().chain([applied(&namespace("shop")), applied(&route("7", json!([])))]) {
        events.send(event).await.expect("the loop runs");
    }
    let status = || api.lock().expect("not poisoned").objects[PATH]["status"]["parents"].clone();
    until("it tries to write", || patches(&api) > 0).await;
    assert_eq!(status(), json!([other]), "the other controller wrote after the version that was read");

    events.send(applied(&newer)).await.expect("the loop runs");
    until("both entries are there", || status().as_array().is_some_and(|parents| parents.len() == 2)).await;
    assert_eq!(status()[0], other);
    assert_eq!(status()[1]["conditions"][0]["reason"], "NoMatchingParent");

    let written = api.lock().expect("not poisoned").objects[PATH].clone();
    events.send(applied(&written)).await.expect("the loop runs");
    let count = patches(&api);
    lease.send_replace(leader(2));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(patches(&api), count, "the status is as the next leader would write it");
    stop.cancel();
}
