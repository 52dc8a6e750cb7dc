//! The watch of ReferenceGrants, whose CRD may be there, in one of two versions, or not.

mod support;

use std::collections::HashMap;
use std::time::Duration;

use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_operator::metrics::Metrics;
use weft_operator::watch;
use weft_operator::world::{Change, Event, Kind, WatchedKind};

/// The first event from an API server that has nothing but these lists.
async fn first_event(lists: HashMap<String, Value>) -> Event {
    let (_, client) = support::api::start(lists).await;
    let (metrics, stop) = (Metrics::register(&mut Registry::default()), CancellationToken::new());
    let mut events = watch::start(&client, &metrics, &stop, &TaskTracker::new());
    let event = tokio::time::timeout(Duration::from_secs(10), events.recv()).await;
    stop.cancel();
    event.expect("an event in time").expect("the watches run")
}

#[tokio::test]
async fn cluster_without_reference_grants_counts_as_listed() {
    let event = first_event(HashMap::new()).await;
    assert!(matches!(event, Event::GrantsMissing), "{event:?}");
    assert_eq!(event.kind(), (WatchedKind::ReferenceGrants, true));
}

#[tokio::test]
async fn grants_are_read_in_the_version_that_the_cluster_has() {
    for version in ["v1", "v1beta1"] {
        let grant = json!({
            "apiVersion": format!("gateway.networking.k8s.io/{version}"), "kind": "ReferenceGrant",
            "metadata": {"namespace": "bank", "name": "g"},
            "spec": {
                "from": [{"group": "weft.dev", "kind": "MeshRoute", "namespace": "shop"}],
                "to": [{"group": "", "kind": "Service"}],
            },
        });
        let list = json!({"kind": "ReferenceGrantList", "metadata": {"resourceVersion": "1"}, "items": [grant]});
        let path = format!("/apis/gateway.networking.k8s.io/{version}/referencegrants");
        let Event::Grant(Change::Reset(grants)) = first_event(HashMap::from([(path, list)])).await else {
            panic!("not a list of grants in {version}");
        };
        assert!(grants.len() == 1 && grants[0].permits(Kind::Route, "shop", "pay"), "{version}: {grants:?}");
    }
}
