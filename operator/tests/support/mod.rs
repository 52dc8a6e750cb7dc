//! Manifests as the API server sends them, and a World of them.

#![allow(dead_code, reason = "each test uses its own part")]

pub(crate) mod api;
pub(crate) mod reconcile;

use kube::api::DynamicObject;
use serde_json::{Value, json};
use weft_crds::{Mesh, MeshCluster, MeshPolicy, MeshRoute};
use weft_operator::world::objects::{RawMeshObject, RawNamespace, RawPod, RawService, RawSlice};
use weft_operator::world::{Account, Change, Event, GatewayRoute, Grant, Key, Kind, Node, World};

/// The objects of a file.
pub(crate) fn manifests(text: &str) -> Vec<Value> {
    text.split("\n---\n")
        .map(|part| serde_saphyr::from_str(part).unwrap_or_else(|error| panic!("{error}: {part}")))
        .collect()
}

/// A World of these objects.
pub(crate) fn world(manifests: &[Value]) -> World {
    let mut world = World::default();
    for manifest in manifests {
        world.observe(applied(manifest));
    }
    world
}

/// The event of an added or modified object.
pub(crate) fn applied(manifest: &Value) -> Event {
    fn read<T: serde::de::DeserializeOwned>(manifest: &Value) -> T {
        serde_json::from_value(manifest.clone()).unwrap_or_else(|error| panic!("{error}: {manifest}"))
    }
    match manifest["kind"].as_str().unwrap_or_default() {
        "Namespace" => Event::Namespace(Change::Apply(read::<RawNamespace>(manifest).into())),
        "Service" => Event::Service(Change::Apply(read::<RawService>(manifest).into())),
        "Pod" => Event::Pod(Change::Apply(read::<RawPod>(manifest).into())),
        "EndpointSlice" => Event::Slice(Change::Apply(read::<RawSlice>(manifest).into())),
        "ServiceAccount" => Event::Account(Change::Apply(Account { key: key(manifest), uid: String::new() })),
        "Node" => {
            let zone = manifest["metadata"]["labels"]["topology.kubernetes.io/zone"].as_str().map(str::to_owned);
            Event::Node(Change::Apply(Node { key: key(manifest), zone }))
        }
        "Mesh" => Event::Mesh(Change::Apply(read::<RawMeshObject<Mesh>>(manifest).read())),
        "MeshRoute" => Event::Route(Change::Apply(read::<RawMeshObject<MeshRoute>>(manifest).read())),
        "MeshCluster" => Event::Cluster(Change::Apply(read::<RawMeshObject<MeshCluster>>(manifest).read())),
        kind @ ("HTTPRoute" | "GRPCRoute" | "TLSRoute" | "TCPRoute") => {
            let kind = gateway_kind(kind);
            let change = match GatewayRoute::read(kind, read::<DynamicObject>(manifest)) {
                Some(route) => Change::Apply(route),
                None => Change::Delete(key(manifest)),
            };
            Event::GatewayRoute(kind, change)
        }
        "ReferenceGrant" => Event::Grant(Change::Apply(Grant::from(read::<DynamicObject>(manifest)))),
        "MeshPolicy" => Event::Policy(Change::Apply(read::<RawMeshObject<MeshPolicy>>(manifest).read())),
        other => panic!("kind {other:?} is not watched"),
    }
}

/// The event of a deleted object.
pub(crate) fn deleted(manifest: &Value) -> Event {
    let key = key(manifest);
    match manifest["kind"].as_str().unwrap_or_default() {
        "Namespace" => Event::Namespace(Change::Delete(key)),
        "Service" => Event::Service(Change::Delete(key)),
        "Pod" => Event::Pod(Change::Delete(key)),
        "EndpointSlice" => Event::Slice(Change::Delete(key)),
        "ServiceAccount" => Event::Account(Change::Delete(key)),
        "Node" => Event::Node(Change::Delete(key)),
        "Mesh" => Event::Mesh(Change::Delete(key)),
        "MeshRoute" => Event::Route(Change::Delete(key)),
        "MeshCluster" => Event::Cluster(Change::Delete(key)),
        "MeshPolicy" => Event::Policy(Change::Delete(key)),
        "ReferenceGrant" => Event::Grant(Change::Delete(key)),
        kind @ ("HTTPRoute" | "GRPCRoute" | "TLSRoute" | "TCPRoute") => {
            Event::GatewayRoute(gateway_kind(kind), Change::Delete(key))
        }
        other => panic!("kind {other:?} is not watched"),
    }
}

/// A kind of the Gateway API by its name in manifests.
pub(crate) fn gateway_kind(name: &str) -> Kind {
    Kind::GATEWAY.into_iter().find(|kind| kind.as_str() == name).expect("a kind of the Gateway API")
}

/// Namespace and name of a manifest.
pub(crate) fn key(manifest: &Value) -> Key {
    let field = |name: &str| manifest["metadata"][name].as_str().unwrap_or_default().to_owned();
    Key::new(field("namespace"), field("name"))
}

/// A namespace with the injection label.
pub(crate) fn namespace(name: &str) -> Value {
    json!({"kind": "Namespace", "metadata": {"name": name, "labels": {"weft.dev/inject": "enabled"}}})
}

/// A Service with one port 80.
pub(crate) fn service(namespace: &str, name: &str, address: &str) -> Value {
    json!({
        "kind": "Service", "metadata": {"namespace": namespace, "name": name},
        "spec": {"clusterIP": address, "selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}
    })
}

/// A ready pod.
pub(crate) fn pod(namespace: &str, name: &str, labels: Value) -> Value {
    json!({
        "kind": "Pod", "metadata": {"namespace": namespace, "name": name, "uid": format!("uid-{name}"), "labels": labels},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    })
}

/// A pod that is starting, whose proxy has an identity.
pub(crate) fn identified(namespace: &str, name: &str, account: &str, address: &str) -> Value {
    let url =
        json!({"name": "WEFT_IDENTITY_URL", "value": "https://weft-identity.weft-system.svc:15012/v1/certificates"});
    json!({
        "kind": "Pod", "metadata": {"namespace": namespace, "name": name, "uid": format!("uid-{name}")},
        "spec": {"serviceAccountName": account, "initContainers": [{"name": "weft-proxy", "env": [url]}]},
        "status": {"phase": "Pending", "podIPs": [{"ip": address}]}
    })
}

/// A slice of one Service's pods: name and address.
pub(crate) fn slice(namespace: &str, service: &str, pods: &[(&str, &str)]) -> Value {
    let endpoints: Vec<Value> = pods
        .iter()
        .map(|(pod, address)| {
            json!({"addresses": [address], "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": pod, "uid": format!("uid-{pod}")}})
        })
        .collect();
    json!({
        "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": namespace, "name": format!("{service}-1"), "labels": {"kubernetes.io/service-name": service}},
        "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints
    })
}
