//! The loop writes documents of pods: only those that changed, before the index lists them, and deletes them after.

mod support;

use std::collections::HashMap;
use std::time::Duration;

use support::reconcile::{Running, leader, nothing, run, until};
use support::{applied, deleted, identified, namespace};
use weft_operator::world::{Change, Document, DocumentKind, Event, Key};

const FOLDER: &str = "/api/v1/namespaces/weft-config/configmaps";

#[tokio::test]
async fn documents_exist_for_as_long_as_the_index_lists_them() {
    let (api, client) = support::api::start(HashMap::new()).await;
    let Running { events, lease, stop } = run(&client);
    let path = |name: &str| format!("{FOLDER}/{name}");
    let document = |name: &str| -> Option<Document> {
        let object = api.lock().expect("not poisoned").objects.get(&path(name))?.clone();
        Some(serde_json::from_value::<k8s_openapi::api::core::v1::ConfigMap>(object).expect("a ConfigMap").into())
    };
    let pods = |name: &str| -> Vec<String> {
        let body = document(name).map(|document| document.pods().expect("reads").1).unwrap_or_default();
        body.pods
            .into_iter()
            .map(|(address, pod)| format!("{address} {}/{}", pod.namespace, pod.service_account))
            .collect()
    };
    let prefixes = || -> Vec<String> {
        let body = document("index").map(|document| document.index().expect("reads").1).unwrap_or_default();
        body.prefixes.into_iter().map(|prefix| prefix.to_string()).collect()
    };
    // The writes since the last call, in their order.
    let writes = || -> Vec<String> {
        let requests = std::mem::take(&mut api.lock().expect("not poisoned").requests);
        let is_write = |request: &String| !request.starts_with("GET") && request.contains(FOLDER);
        let writes = requests.into_iter().filter(is_write);
        writes.map(|request| request.replace(&format!(" {FOLDER}"), " ").replace(" /", " ")).collect()
    };
    for event in nothing().into_iter().chain([applied(&namespace("shop")), applied(&namespace("bank"))]) {
        events.send(event).await.expect("the loop runs");
    }
    until("the empty index is written", || document("index").is_some()).await;
    writes();

    let (one, two) = (identified("shop", "db-0", "db", "10.1.2.3"), identified("bank", "pay", "pay", "10.1.2.4"));
    events.send(applied(&one)).await.expect("the loop runs");
    until("the prefix is listed", || prefixes() == ["10.1.2.0/24"]).await;
    assert_eq!(pods("p.10.1.2.0"), ["10.1.2.3 shop/db"]);
    assert_eq!(
        document("p.10.1.2.0").and_then(|document| document.header()).expect("a header").namespace,
        "p.10.1.2.0"
    );
    assert_eq!(writes(), ["POST ", "PUT index"], "the document first");

    events.send(applied(&two)).await.expect("the loop runs");
    events.send(applied(&identified("shop", "db-1", "db", "10.1.3.3"))).await.expect("the loop runs");
    until("the prefix is listed", || prefixes() == ["10.1.2.0/24", "10.1.3.0/24"]).await;
    assert_eq!(pods("p.10.1.2.0"), ["10.1.2.3 shop/db", "10.1.2.4 bank/pay"]);
    writes();

    events.send(applied(&identified("shop", "db-2", "db", "10.1.3.4"))).await.expect("the loop runs");
    until("the pod is there", || pods("p.10.1.3.0") == ["10.1.3.3 shop/db", "10.1.3.4 shop/db"]).await;
    assert_eq!(writes(), ["PUT p.10.1.3.0"], "neither the index nor the other prefix");

    // The next leader changes nothing.
    lease.send_replace(leader(2));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(writes(), [""; 0]);

    // As long as the index cannot be written, the document stays.
    api.lock().expect("not poisoned").broken = Some(path("index"));
    events.send(deleted(&one)).await.expect("the loop runs");
    events.send(deleted(&two)).await.expect("the loop runs");
    let attempts = || api.lock().expect("not poisoned").requests.iter().filter(|at| at.starts_with("PUT")).count();
    until("the index is tried again", || attempts() > 2).await;
    assert!(document("p.10.1.2.0").is_some() && prefixes().len() == 2);
    assert!(writes().iter().all(|write| !write.starts_with("DELETE")));
    api.lock().expect("not poisoned").broken = None;
    until("the document is deleted", || document("p.10.1.2.0").is_none()).await;
    assert_eq!(prefixes(), ["10.1.3.0/24"]);
    let writes = writes();
    assert_eq!(writes.last().map(String::as_str), Some("DELETE p.10.1.2.0"), "{writes:?}");

    // A document that somebody deletes is written again.
    api.lock().expect("not poisoned").objects.remove(&path("p.10.1.3.0"));
    let gone = Change::Delete(Key::new("weft-config", "p.10.1.3.0"));
    events.send(Event::Document(DocumentKind::Export, gone)).await.expect("the loop runs");
    until("it is written again", || pods("p.10.1.3.0").len() == 2).await;
    assert_eq!(prefixes(), ["10.1.3.0/24"]);
    stop.cancel();
}
