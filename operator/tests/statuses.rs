//! The loop writes statuses of the Gateway API's routes: after a conflict with what others wrote meanwhile, and not
//! again when the leader changes.

mod support;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use support::reconcile::{Running, leader, nothing, run, until};
use support::{applied, namespace};

const PATH: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/r/status";

/// A route whose only parent lacks the group of Services.
fn route(version: &str, parents: Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"namespace": "shop", "name": "r", "uid": "u", "generation": 1, "resourceVersion": version},
        "spec": {"parentRefs": [{"kind": "Service", "name": "web"}], "rules": [{}]},
        "status": {"parents": parents},
    })
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
    let Running { events, lease, stop } = run(&client);
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
