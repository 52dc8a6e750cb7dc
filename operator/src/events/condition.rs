//! Events about conditions: a Warning when one turns False, Normal when it is True again.
//!
//! Each is on the object itself and on the targets in its namespace: the Service or ServiceAccount that it applies to.
//! A target in another namespace gets none, so that nobody can write into the Events of others. The state before is
//! the status that the API server has, so a restart of the operator repeats nothing.

use std::collections::BTreeMap;

use weft_crds::refs::PolicyTargetKind;
use weft_crds::status::ConditionType;
use weft_crds::{Condition, Status};
use weft_gateway_api::ParentReference;

use super::event::{Event, Object, Severity};
use crate::world::{GatewayRoute, Kind, Namespace, ObjectId, OwnStatus, ParentStatus, World};

/// Events about the change of an object's status.
pub fn events(world: &World, id: &ObjectId, before: &Status, after: &Status) -> Vec<Event> {
    let changes = changes(before, after);
    let (Some((uid, ..)), false) = (world.status(id), changes.is_empty()) else { return Vec::new() };
    let targets = world.namespace(&id.key.namespace).map(|namespace| targets(namespace, id));
    about(id, uid, &targets.unwrap_or_default(), &changes)
}

/// Events about the change of `status.parents` of a route of the Gateway API.
pub fn events_of_route(world: &World, route: &GatewayRoute, after: &[ParentStatus]) -> Vec<Event> {
    let Some(namespace) = world.namespace(&route.meta.key.namespace) else { return Vec::new() };
    let id = route.id();
    let mut events: Vec<Event> = Vec::new();
    for entry in after {
        let ParentStatus::Own(after) = entry else { continue };
        let before = route.own_status(&after.parent_ref).map(OwnStatus::status).unwrap_or_default();
        let ParentReference { namespace: parent, name, .. } = &after.parent_ref;
        let is_own = parent.as_ref().is_none_or(|parent| *parent == id.key.namespace);
        let targets: Vec<Object> = service(namespace, name).filter(|_| is_own).into_iter().collect();
        let after = after.status();
        for event in about(&id, &route.meta.uid, &targets, &changes(&before, &after)) {
            // Several parents may fail for the same reason.
            let is_same = |other: &Event| (&other.regarding, &other.note) == (&event.regarding, &event.note);
            if !events.iter().any(is_same) {
                events.push(event);
            }
        }
    }
    events
}

/// Events about conditions of an object, on the object and on its targets.
fn about(id: &ObjectId, uid: &str, targets: &[Object], changes: &[(Severity, &Condition)]) -> Vec<Event> {
    let object = Object {
        api_version: id.kind.resource().api_version,
        kind: id.kind.as_str().to_owned(),
        key: id.key.clone(),
        uid: uid.to_owned(),
    };
    let mut events = Vec::new();
    for (severity, condition) in changes {
        let event = |regarding: &Object, related: Option<&Object>, note: String| Event {
            regarding: regarding.clone(),
            related: related.cloned(),
            severity: *severity,
            reason: condition.reason.clone(),
            action: "WriteStatus",
            note,
            repeats: true,
        };
        events.push(event(&object, targets.first(), condition.message.clone()));
        let Condition { type_, status, message, .. } = condition;
        let note = format!("{id}: {type_} is {status}: {message}");
        events.extend(targets.iter().map(|target| event(target, Some(&object), note.clone())));
    }
    events
}

/// The conditions that turned False, or are False for another reason or spec than before, and those that are True
/// again.
fn changes<'a>(before: &'a Status, after: &'a Status) -> Vec<(Severity, &'a Condition)> {
    let [failed, fails] = [before, after].map(failures);
    let applied_again = before.observed_generation != after.observed_generation;
    let is_same = |now: &Condition| {
        let then = failed.get(now.type_.as_str());
        then.is_some_and(|then| then.reason == now.reason && (then.message == now.message || !applied_again))
    };
    let warnings = fails.values().filter(|condition| !is_same(condition)).map(|c| (Severity::Warning, *c));
    let recovered =
        |condition: &&Condition| condition.status == "True" && failed.contains_key(condition.type_.as_str());
    let normal = after.conditions.iter().filter(recovered).map(|condition| (Severity::Normal, condition));
    warnings.chain(normal).collect()
}

/// The conditions that are False by themselves, by type: Ready only repeats the others, and the others of an object
/// that is not accepted follow from that.
fn failures(status: &Status) -> BTreeMap<&str, &Condition> {
    // Clients that call in plaintext are no fault of the object.
    let strict = ConditionType::StrictReady.to_string();
    let mut failures: BTreeMap<&str, &Condition> = status
        .conditions
        .iter()
        .filter(|condition| condition.status == "False" && condition.type_ != strict)
        .map(|condition| (condition.type_.as_str(), condition))
        .collect();
    let [accepted, ready] = [ConditionType::Accepted, ConditionType::Ready].map(|kind| kind.to_string());
    if failures.contains_key(accepted.as_str()) {
        failures.retain(|kind, _| *kind == accepted);
    }
    if failures.len() > 1 {
        failures.remove(ready.as_str());
    }
    failures
}

/// The Services and ServiceAccounts in the object's namespace that it applies to, as far as they exist.
fn targets(namespace: &Namespace, id: &ObjectId) -> Vec<Object> {
    let name = id.key.name.as_str();
    match id.kind {
        Kind::Route => {
            let spec = namespace.routes.get(name).and_then(|route| route.spec.as_ref().ok());
            let parents = spec.into_iter().flat_map(|spec| &spec.parent_refs);
            let own = parents.filter(|parent| parent.namespace.as_ref().is_none_or(|other| *other == id.key.namespace));
            let mut services: Vec<Object> = own.filter_map(|parent| service(namespace, &parent.name)).collect();
            services.sort();
            // A route may name several ports of one Service.
            services.dedup();
            services
        }
        Kind::Cluster => {
            let spec = namespace.clusters.get(name).and_then(|cluster| cluster.spec.as_ref().ok());
            spec.and_then(|spec| service(namespace, &spec.target_ref.name)).into_iter().collect()
        }
        Kind::Policy => {
            let spec = namespace.policies.get(name).and_then(|policy| policy.spec.as_ref().ok());
            let target = spec.and_then(|spec| {
                let target = spec.target_ref.name.as_deref()?;
                match spec.target_ref.kind {
                    PolicyTargetKind::Service => service(namespace, target),
                    PolicyTargetKind::ServiceAccount => account(namespace, target),
                    // Its Events would be in another namespace.
                    PolicyTargetKind::Namespace => None,
                }
            });
            target.into_iter().collect()
        }
        // A Mesh has no target, and routes of the Gateway API have a status for each.
        Kind::Mesh | Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => Vec::new(),
    }
}

fn service(namespace: &Namespace, name: &str) -> Option<Object> {
    let service = namespace.services.get(name)?;
    Some(Object {
        api_version: "v1".to_owned(),
        kind: "Service".to_owned(),
        key: service.key.clone(),
        uid: service.uid.clone(),
    })
}

fn account(namespace: &Namespace, name: &str) -> Option<Object> {
    let account = namespace.accounts.get(name)?;
    Some(Object {
        api_version: "v1".to_owned(),
        kind: "ServiceAccount".to_owned(),
        key: account.key.clone(),
        uid: account.uid.clone(),
    })
}
