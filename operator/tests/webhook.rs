//! The maintenance of the webhook's certificate, with an API server.

mod support;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_operator::lease::State;
use weft_operator::metrics::Metrics;
use weft_operator::webhook;

const SECRETS: &str = "/api/v1/namespaces/weft-system/secrets";

/// The lease changes with each renewal, which must not postpone the next attempt.
#[tokio::test]
async fn certificate_is_written_after_a_failed_attempt() {
    let leader = || State::Leader { epoch: 1, until: tokio::time::Instant::now() + Duration::from_secs(3600) };
    let (authority, certificate) = (format!("{SECRETS}/weft-webhook-ca"), format!("{SECRETS}/weft-injector-tls"));
    // The lists are there and do not change, so that no watch asks for an attempt.
    let list = |group: &str, plural: &str| {
        (format!("{group}/{plural}"), json!({"kind": "List", "metadata": {"resourceVersion": "1"}, "items": []}))
    };
    let registration = "/apis/admissionregistration.k8s.io/v1";
    let unreadable = json!({"kind": "Secret", "apiVersion": "v1", "data": "nonsense"});
    let objects = HashMap::from([
        list("/api/v1/namespaces/weft-system", "secrets"),
        list(registration, "mutatingwebhookconfigurations"),
        list(registration, "validatingwebhookconfigurations"),
        (authority.clone(), unreadable),
    ]);
    let (api, client) = support::api::start(objects).await;
    let (lease, leads) = watch::channel(leader());
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let metrics = Metrics::register(&mut Registry::default());
    tasks.spawn(webhook::run(client, "weft-system".into(), leads, metrics, stop.clone(), tasks.clone()));
    let start = Instant::now();
    loop {
        {
            let mut api = api.lock().expect("not poisoned");
            if api.objects.contains_key(&certificate) {
                break;
            }
            // By then the watches have told that they listed, which asks for attempts.
            if start.elapsed() > Duration::from_secs(2) && api.requests.contains(&format!("GET {authority}")) {
                api.objects.remove(&authority);
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{:?}", api.requests);
        }
        lease.send_replace(leader());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.cancel();
    tasks.close();
    tasks.wait().await;
}
