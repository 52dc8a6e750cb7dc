//! Whether accepted objects are in effect: holds each against the pods that there are.
//!
//! ```text
//! Pods ──selection──> policy    every selected pod enforces it
//!   │                 mtls      policies that disagree about a pod; ports that take plaintext
//!   └───────────────> clients   the pods that send requests apply a route or cluster
//! ```
//!
//! What the pods lack is no fault of the object's own, and it stays in the documents: each finding becomes the condition
//! InEffect. Only pods that may have traffic count, so that a rollout changes little.

mod clients;
mod mtls;
mod pods;
mod policy;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use clients::Clients;
use pods::Pods;
use policy::{Checked, Selection};
use weft_config::{Inbound, Target};
use weft_crds::refs::ParentRef;

use super::compiled::Compiled;
use super::diagnostic::{Diagnostic, Severity};
use super::mtls::wire_mode;
use super::policy::{selector_keys, targets};
use crate::world::{Key, Kind, Namespace, ObjectId, World};

/// Adds what keeps the accepted objects of a compiled namespace from taking effect to their diagnostics.
pub(super) fn check(world: &World, name: &str, namespace: &Namespace, compiled: &mut Compiled) {
    let Compiled { inbound, objects, .. } = compiled;
    if objects.is_empty() {
        return;
    }
    let keys: BTreeSet<&str> = targets(inbound).flat_map(selector_keys).collect();
    let pods = Pods::new(namespace, &keys);

    let mut selections: HashMap<&Target, Selection<'_>> = HashMap::new();
    for target in targets(inbound) {
        selections.entry(target).or_insert_with(|| Selection::new(&pods, target));
    }
    let mut add = |policy: &str, found: Vec<Diagnostic>| {
        let id = ObjectId { kind: Kind::Policy, key: Key::new(name, policy) };
        objects.entry(id).or_default().diagnostics.extend(found);
    };
    for policy in accepted(inbound) {
        let Some(selection) = selections.get(policy.target) else { continue };
        let spec = namespace.policies.get(policy.name).and_then(|object| object.spec.as_ref().ok());
        let service = spec.and_then(|spec| namespace.services.get(spec.target_ref.name.as_deref()?));
        add(policy.name, policy::check(namespace, &pods, &policy, service, selection));
    }
    for (policy, found) in mtls::check(&inbound.mtls.policies, wire_mode(world.mode()), &selections) {
        add(policy, found);
    }

    let elsewhere = world.is_meshed_outside(name);
    let [of_own, of_any] = [Clients::Own, Clients::Any].map(|clients| clients::check(name, &pods, clients, elsewhere));
    for (id, outcome) in objects {
        let found = match id.kind {
            Kind::Mesh | Kind::Policy => continue,
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => {
                for parent in outcome.parents.iter_mut().filter(|parent| is_accepted(&parent.diagnostics)) {
                    let is_own = parent.parent.namespace.as_ref().is_none_or(|namespace| namespace == name);
                    parent.diagnostics.extend(if is_own { of_any.clone() } else { of_own.clone() });
                }
                continue;
            }
            Kind::Route if is_consumer(namespace, id) => &of_own,
            Kind::Route | Kind::Cluster => &of_any,
        };
        if is_accepted(&outcome.diagnostics) {
            outcome.diagnostics.extend(found.clone());
        }
    }
}

/// The accepted policies, by name.
fn accepted(inbound: &Inbound) -> impl Iterator<Item = Checked<'_>> {
    let mut all: BTreeMap<&str, Checked<'_>> = BTreeMap::new();
    for policy in &inbound.policies {
        let checked = Checked { name: &policy.name, target: &policy.target, authorization: Some(policy), mtls: None };
        all.insert(&policy.name, checked);
    }
    for policy in &inbound.mtls.policies {
        let none = || Checked { name: &policy.name, target: &policy.target, authorization: None, mtls: None };
        all.entry(&policy.name).or_insert_with(none).mtls = Some(policy);
    }
    all.into_values()
}

fn is_accepted(diagnostics: &[Diagnostic]) -> bool {
    !diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Refused)
}

/// Whether all Services that a route is attached to are in other namespaces.
fn is_consumer(namespace: &Namespace, id: &ObjectId) -> bool {
    let spec = namespace.routes.get(&id.key.name).and_then(|route| route.spec.as_ref().ok());
    let own = |parent: &ParentRef| parent.namespace.as_ref().is_none_or(|other| *other == id.key.namespace);
    spec.is_some_and(|spec| !spec.parent_refs.iter().any(own))
}
