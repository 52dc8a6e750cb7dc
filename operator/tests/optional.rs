//! The watches of the Gateway API's kinds, whose CustomResourceDefinitions may be there, in one of several versions, or
//! not; and the status of its routes.

mod support;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::Client;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use support::api::Api;
use tokio::sync::mpsc::Receiver;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use weft_operator::apply;
use weft_operator::metrics::Metrics;
use weft_operator::watch;
use weft_operator::world::{
    Availability, Change, Event, GatewayRoute, Kind, OwnStatus, ParentStatus, WatchedKind, World,
};

const GROUP: &str = "gateway.networking.k8s.io";

/// Watches of an API server that has nothing but these objects.
struct Watches {
    api: Arc<Mutex<Api>>,
    events: Receiver<Event>,
    _stop: DropGuard,
}

impl Watches {
    async fn start(objects: HashMap<String, Value>) -> Self {
        let (api, client) = support::api::start(objects).await;
        let (metrics, stop) = (Metrics::register(&mut Registry::default()), CancellationToken::new());
        let events = watch::start(&client, &metrics, &stop, &TaskTracker::new());
        Self { api, events, _stop: stop.drop_guard() }
    }

    /// The next event of a kind.
    async fn next(&mut self, kind: WatchedKind) -> Event {
        let next = async {
            loop {
                let event = self.events.recv().await.expect("the watches run");
                if event.kind().0 == kind {
                    return event;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), next).await.expect("an event in time")
    }

    async fn next_routes(&mut self, kind: Kind) -> Vec<GatewayRoute> {
        match self.next(kind.watched()).await {
            Event::GatewayRoute(of, Change::Reset(routes)) if of == kind => routes,
            event => panic!("not a list of {kind:?}: {event:?}"),
        }
    }

    async fn next_availability(&mut self, kind: WatchedKind) -> Availability {
        match self.next(kind).await {
            Event::Availability(_, availability) => availability,
            event => panic!("not an availability: {event:?}"),
        }
    }

    /// Installs a definition that serves these versions, each with these objects; none removes it.
    fn install(&self, kind: &str, versions: &[&str], items: &[Value]) {
        let mut api = self.api.lock().expect("not poisoned");
        let plural = format!("{}s", kind.to_lowercase());
        api.objects.retain(|path, _| !path.contains(&plural));
        api.objects.extend(definition(kind, versions, items));
    }
}

/// A definition and the lists of its versions, by path.
fn definition(kind: &str, versions: &[&str], items: &[Value]) -> HashMap<String, Value> {
    let plural = format!("{}s", kind.to_lowercase());
    let mut objects = HashMap::new();
    if versions.is_empty() {
        return objects;
    }
    let served: Vec<Value> = versions.iter().map(|version| json!({"name": version, "served": true})).collect();
    let name = format!("{plural}.{GROUP}");
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": name, "uid": "uid-of-the-definition"},
        "spec": {
            "names": {"kind": kind},
            "versions": served.into_iter().chain([json!({"name": "v0", "served": false})]).collect::<Vec<_>>(),
        },
        "status": {"conditions": [{"type": "Established", "status": "True"}]},
    });
    objects.insert(format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"), definition);
    for version in versions {
        let list = json!({
            "apiVersion": format!("{GROUP}/{version}"), "kind": format!("{kind}List"),
            "metadata": {"resourceVersion": "1"}, "items": items,
        });
        objects.insert(format!("/apis/{GROUP}/{version}/{plural}"), list);
    }
    objects
}

fn route(kind: &str, version: &str, name: &str, parent: Value) -> Value {
    json!({
        "apiVersion": format!("{GROUP}/{version}"), "kind": kind,
        "metadata": {"namespace": "shop", "name": name, "resourceVersion": "7", "generation": 2},
        "spec": {"parentRefs": [parent], "rules": [{"backendRefs": [{"name": "web", "port": 80}]}]},
    })
}

fn service() -> Value {
    json!({"group": "", "kind": "Service", "name": "web"})
}

#[tokio::test]
async fn kinds_that_are_not_installed_count_as_listed() {
    let mut watches = Watches::start(HashMap::new()).await;
    for kind in Kind::GATEWAY.map(Kind::watched).into_iter().chain([WatchedKind::ReferenceGrants]) {
        let event = watches.next(kind).await;
        assert!(matches!(event, Event::Availability(_, Availability::Missing)), "{event:?}");
        assert_eq!(event.kind(), (kind, true));
    }
}

#[tokio::test]
async fn grants_are_read_in_the_version_that_the_cluster_has() {
    for versions in [&["v1", "v1beta1"][..], &["v1beta1"]] {
        let grant = json!({
            "apiVersion": format!("{GROUP}/{}", versions[0]), "kind": "ReferenceGrant",
            "metadata": {"namespace": "bank", "name": "g"},
            "spec": {
                "from": [{"group": "weft.dev", "kind": "MeshRoute", "namespace": "shop"}],
                "to": [{"group": "", "kind": "Service"}],
            },
        });
        let mut watches = Watches::start(definition("ReferenceGrant", versions, &[grant])).await;
        assert_eq!(watches.next_availability(WatchedKind::ReferenceGrants).await, Availability::Served);
        let Event::Grant(Change::Reset(grants)) = watches.next(WatchedKind::ReferenceGrants).await else {
            panic!("not a list of grants in {versions:?}");
        };
        assert!(grants.len() == 1 && grants[0].permits(Kind::Route, "shop", "pay"), "{versions:?}: {grants:?}");
        let requests = watches.api.lock().expect("not poisoned").requests.clone();
        let list = format!("GET /apis/{GROUP}/{}/referencegrants", versions[0]);
        assert!(requests.contains(&list), "{requests:?}");
    }
}

#[tokio::test]
async fn routes_come_and_go_with_their_definition() {
    let kind = Kind::HttpRoute;
    let mut watches = Watches::start(HashMap::new()).await;
    let mut world = World::default();
    assert_eq!(watches.next_availability(kind.watched()).await, Availability::Missing);

    let of_gateway = route("HTTPRoute", "v1", "edge", json!({"name": "gateway"}));
    watches.install("HTTPRoute", &["v1", "v1beta1"], &[route("HTTPRoute", "v1", "web", service()), of_gateway]);
    assert_eq!(watches.next_availability(kind.watched()).await, Availability::Served);
    let routes = watches.next_routes(kind).await;
    let names: Vec<&str> = routes.iter().map(|route| route.meta.key.name.as_str()).collect();
    assert_eq!(names, ["web"], "one for a Gateway is not kept");
    assert!(routes[0].spec.is_ok() && routes[0].version == "v1", "{routes:?}");
    world.observe(Event::GatewayRoute(kind, Change::Reset(routes)));
    assert!(world.namespace("shop").is_some());

    // An API server that does not serve it (yet).
    let list = format!("/apis/{GROUP}/v1/httproutes");
    let served = watches.api.lock().expect("not poisoned").objects.remove(&list).expect("a list");
    tokio::time::sleep(Duration::from_secs(3)).await;
    watches.api.lock().expect("not poisoned").objects.insert(list, served);
    assert_eq!(watches.next_routes(kind).await.len(), 1, "without a word of their absence");

    watches.install("HTTPRoute", &[], &[]);
    let gone = watches.next(kind.watched()).await;
    assert!(matches!(gone, Event::Availability(_, Availability::Missing)), "{gone:?}");
    let touched = world.observe(gone);
    assert_eq!(touched.scopes, ["shop".to_owned()].into(), "traffic follows");
    assert!(world.namespace("shop").is_none());
}

#[tokio::test]
async fn version_that_is_not_read_is_told_on_the_definition_and_its_routes() {
    let kind = Kind::TcpRoute;
    let old = route("TCPRoute", "v1alpha2", "db", service());
    let mut watches = Watches::start(definition("TCPRoute", &["v1alpha2"], std::slice::from_ref(&old))).await;
    let event = watches.next(kind.watched()).await;
    assert_eq!(event.kind(), (kind.watched(), true), "the operator does not wait for it");
    let Event::Availability(_, Availability::Unsupported(unsupported)) = event else { panic!("{event:?}") };
    assert_eq!((unsupported.kind.as_str(), unsupported.uid.as_str()), ("TCPRoute", "uid-of-the-definition"));
    assert_eq!(unsupported.versions, ["v1alpha2"], "only what is served");
    let message = unsupported.message();
    assert!(message.contains("TCPRoute as v1alpha2 only") && message.contains("Gateway API v1.7"), "{message}");
    let [db] = &watches.next_routes(kind).await[..] else { panic!("one route") };
    assert_eq!(db.spec, Err(message));
    assert_eq!((db.services.len(), db.version.as_str()), (1, "v1alpha2"), "its status is written in that version");

    watches.install("TCPRoute", &["v1", "v1alpha2"], &[route("TCPRoute", "v1", "db", service())]);
    assert_eq!(watches.next_availability(kind.watched()).await, Availability::Served);
    let [db] = &watches.next_routes(kind).await[..] else { panic!("one route") };
    assert!(db.spec.is_ok(), "{db:?}");
}

#[tokio::test]
async fn status_is_written_only_to_the_route_that_was_read() {
    let path = format!("/apis/{GROUP}/v1/namespaces/shop/httproutes/web/status");
    let object = route("HTTPRoute", "v1", "web", service());
    let (api, client): (_, Client) = support::api::start(HashMap::from([(path.clone(), object.clone())])).await;
    let read = |object: Value| {
        let object = serde_json::from_value(object).expect("an object");
        GatewayRoute::read(Kind::HttpRoute, object).expect("has a Service")
    };
    let mut route = read(object);
    let other = json!({"parentRef": {"name": "gateway"}, "controllerName": "example.com/gateway", "future": [1]});
    let own = OwnStatus { parent_ref: route.services[0].clone(), conditions: Vec::new() };
    let parents = [ParentStatus::Other(other.clone()), ParentStatus::Own(own)];
    let version = apply::parents(&client, &route, &parents).await.expect("written");
    assert_eq!(version.as_deref(), Some("8"));
    let stored = api.lock().expect("not poisoned").objects[&path].clone();
    assert_eq!(stored["status"]["parents"][0], other);
    assert_eq!(stored["status"]["parents"][1]["controllerName"], "weft.dev/mesh-controller");
    assert_eq!(
        stored["spec"],
        json!({"parentRefs": [service()], "rules": [{"backendRefs": [{"name": "web", "port": 80}]}]})
    );

    let late = apply::parents(&client, &route, &parents[1..]).await;
    assert!(matches!(late, Err(apply::Error::Conflict)), "it was read before the last write: {late:?}");
    assert_eq!(api.lock().expect("not poisoned").objects[&path]["status"]["parents"][0], other);
    route = read(stored);
    assert_eq!(route.parents, parents, "written as read");
    assert!(apply::parents(&client, &route, &parents).await.is_ok());
}
