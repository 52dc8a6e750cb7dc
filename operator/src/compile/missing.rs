//! Messages about references that do not resolve, with the name that was probably meant.

use weft_crds::MeshClusterSpec;
use weft_crds::suggest::did_you_mean;

use crate::world::{Key, Namespace, Service, World};

/// Of a Service of any namespace. Names of Services are no secret: every proxy can read the exports.
pub(super) fn service(world: &World, key: &Key) -> String {
    match existing(world, &key.namespace) {
        Some(namespace) => format!("Service {key} does not exist{}", similar(&key.name, namespace.services.keys())),
        None => format!("Service {key} does not exist: there is no namespace {}", key.namespace),
    }
}

/// Of a Service in the object's own namespace.
pub(super) fn own_service(namespace: &Namespace, name: &str) -> String {
    format!("Service {name} does not exist{}", similar(name, namespace.services.keys()))
}

/// Of a ServiceAccount.
pub(super) fn account(namespace: &Namespace, name: &str) -> String {
    format!("ServiceAccount {name} does not exist{}", similar(name, namespace.accounts.keys()))
}

/// Of a ServiceAccount of any namespace, if it does not exist.
pub(super) fn caller(world: &World, key: &Key) -> Option<String> {
    let message = match existing(world, &key.namespace) {
        Some(namespace) if namespace.accounts.contains_key(&key.name) => return None,
        Some(namespace) => similar(&key.name, namespace.accounts.keys()),
        None => format!(": there is no namespace {}{}", key.namespace, similar_namespace(world, &key.namespace)),
    };
    Some(format!("ServiceAccount {key} does not exist{message}"))
}

/// Of a namespace, if it does not exist.
pub(super) fn namespace(world: &World, name: &str) -> Option<String> {
    match existing(world, name) {
        Some(_) => None,
        None => Some(format!("namespace {name} does not exist{}", similar_namespace(world, name))),
    }
}

/// Of a port of a Service.
pub(super) fn port(service: &Service, port: u16) -> String {
    let numbers: Vec<String> = service.ports.iter().map(|port| port.port.to_string()).collect();
    let hint = match (service.port_with_target(port), &numbers[..]) {
        (Some(meant), _) => format!("; did you mean {}, whose targetPort is {port}?", meant.port),
        (None, []) => ": it has no TCP port".to_owned(),
        (None, [only]) => format!("; did you mean {only}?"),
        (None, several) => format!(", only {}", several.join(", ")),
    };
    format!("Service {} has no TCP port {port}{hint}", service.key)
}

/// Of a port of a Service, by its name.
pub(super) fn port_name(service: &Service, name: &str) -> String {
    let names: Vec<&str> =
        service.ports.iter().map(|port| port.name.as_str()).filter(|name| !name.is_empty()).collect();
    let hint = match (did_you_mean(name, names.iter().copied()), &names[..]) {
        (_, []) => ": none of its ports has a name".to_owned(),
        (hint, names) if hint.is_empty() => format!(", only {}", names.join(", ")),
        (hint, _) => hint,
    };
    format!("Service {} has no TCP port with the name {name}{hint}", service.key)
}

/// Of a subset. `spec`: the Service's MeshCluster.
pub(super) fn subset(key: &Key, subset: &str, spec: Option<&MeshClusterSpec>) -> String {
    let Some(spec) = spec else {
        return format!("subset {subset}: Service {key} has no accepted MeshCluster, which would declare it");
    };
    let names: Vec<&str> = spec.subsets.iter().map(|subset| subset.name.as_str()).collect();
    let hint = match (did_you_mean(subset, names.iter().copied()), &names[..]) {
        (hint, []) => hint,
        (hint, names) if hint.is_empty() => format!(", only {}", names.join(", ")),
        (hint, _) => hint,
    };
    format!("the MeshCluster of Service {key} declares no subset {subset}{hint}")
}

fn existing<'a>(world: &'a World, name: &str) -> Option<&'a Namespace> {
    world.namespace(name).filter(|namespace| namespace.meta.is_some())
}

fn similar_namespace(world: &World, name: &str) -> String {
    similar(name, world.namespaces().filter(|(_, namespace)| namespace.meta.is_some()).map(|(name, _)| name))
}

fn similar<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> String {
    did_you_mean(name, known.map(String::as_str))
}
