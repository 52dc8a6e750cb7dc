//! What the recorder of Events sends to the API server.

mod support;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_operator::events::{Event, Object, Recorder, Severity};
use weft_operator::lease::State;
use weft_operator::metrics::{Metrics, OutcomeLabel};
use weft_operator::world::Key;

use support::api::Api;

struct Fixture {
    api: Arc<Mutex<Api>>,
    metrics: Metrics,
    lease: watch::Sender<State>,
    recorder: Recorder,
}

async fn fixture(objects: HashMap<String, Value>) -> Fixture {
    let (api, client) = support::api::start(objects).await;
    let metrics = Metrics::register(&mut Registry::default());
    let leader = State::Leader { epoch: 1, until: Instant::now() + Duration::from_secs(600) };
    let (lease, leads) = watch::channel(leader);
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let recorder = Recorder::start(client, "weft-operator-1".into(), leads, metrics.clone(), stop, &tasks);
    Fixture { api, metrics, lease, recorder }
}

impl Fixture {
    /// Waits until so many Events had an outcome.
    async fn count(&self, outcome: &'static str, count: u64) {
        let counter = self.metrics.events.get_or_create(&OutcomeLabel { outcome }).clone();
        let reached = async {
            while counter.get() < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let reached = tokio::time::timeout(Duration::from_secs(10), reached).await;
        assert!(reached.is_ok(), "{outcome}: {} of {count}", counter.get());
    }
}

fn event(kind: &str, name: &str, repeats: bool) -> Event {
    Event {
        regarding: Object {
            api_version: "apps/v1".into(),
            kind: kind.into(),
            key: Key::new("shop", name),
            uid: format!("uid-{name}"),
        },
        related: None,
        severity: Severity::Warning,
        reason: "NoProxy".into(),
        action: "Inject",
        note: "runs without a proxy".into(),
        repeats,
    }
}

const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/shop/events";

#[tokio::test]
async fn equal_events_are_one_object_that_is_counted_up() {
    let fixture = fixture(HashMap::new()).await;
    fixture.recorder.record(vec![event("StatefulSet", "db", true)]);
    fixture.count("written", 1).await;
    fixture.recorder.record(vec![event("StatefulSet", "db", true), event("StatefulSet", "db", true)]);
    fixture.count("repeated", 2).await;
    fixture.recorder.record(vec![event("StatefulSet", "db", false)]);
    fixture.count("known", 1).await;

    let api = fixture.api.lock().expect("not poisoned");
    let [written] = &api.objects.values().collect::<Vec<_>>()[..] else { panic!("{} objects", api.objects.len()) };
    assert_eq!(written["series"]["count"], 3);
    assert!(written["series"]["lastObservedTime"].is_string());
    // All of these are required by the validation of events.k8s.io/v1.
    let expected = [
        ("/type", "Warning"),
        ("/reason", "NoProxy"),
        ("/action", "Inject"),
        ("/note", "runs without a proxy"),
        ("/reportingController", "weft.dev/operator"),
        ("/reportingInstance", "weft-operator-1"),
        ("/regarding/kind", "StatefulSet"),
        ("/regarding/uid", "uid-db"),
        ("/regarding/namespace", "shop"),
        ("/metadata/namespace", "shop"),
    ];
    for (field, value) in expected {
        assert_eq!(written.pointer(field).and_then(Value::as_str), Some(value), "{field}");
    }
    assert!(written["eventTime"].is_string());
}

#[tokio::test]
async fn event_about_a_replica_set_is_on_its_deployment() {
    let set = "/apis/apps/v1/namespaces/shop/replicasets/web-7d9f";
    let owner =
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "uid-web", "controller": true});
    let metadata = json!({"name": "web-7d9f", "namespace": "shop", "ownerReferences": [owner]});
    let fixture = fixture(HashMap::from([(set.to_owned(), json!({"metadata": metadata}))])).await;
    fixture.recorder.record(vec![event("ReplicaSet", "web-7d9f", false), event("ReplicaSet", "bare", false)]);
    fixture.count("written", 2).await;
    let api = fixture.api.lock().expect("not poisoned");
    let sets = "GET /apis/apps/v1/namespaces/shop/replicasets";
    let post = format!("POST {EVENTS}");
    assert_eq!(api.requests, [format!("{sets}/web-7d9f"), post.clone(), format!("{sets}/bare"), post]);
    let mut about: Vec<&str> = api.objects.values().filter_map(|object| object["regarding"]["name"].as_str()).collect();
    about.sort_unstable();
    assert_eq!(about, ["bare", "web"], "one that has no Deployment, or cannot be read, keeps the Event itself");
}

#[tokio::test]
async fn events_are_bounded_and_only_the_leader_writes() {
    let fixture = fixture(HashMap::new()).await;
    fixture.recorder.record((0..12).map(|_| event("StatefulSet", "db", true)).collect());
    fixture.count("limited", 2).await;
    // More than the queue holds: the rest is dropped at once. They wait behind Events about conditions.
    fixture.recorder.record_pods((0..3000).map(|n| event("StatefulSet", &format!("s{n}"), false)).collect());
    fixture.count("dropped", 1900).await;
    fixture.recorder.record(vec![event("StatefulSet", "first", true)]);
    let about_first = |object: &Value| object["regarding"]["name"] == "first";
    while !fixture.api.lock().expect("not poisoned").objects.values().any(about_first) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let written = fixture.api.lock().expect("not poisoned").objects.len();
    assert!(written < 500, "it has overtaken the others, not waited for {written}");
    fixture.lease.send_replace(State::Standby);
    fixture.count("standby", 900).await;
}
