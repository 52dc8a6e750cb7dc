//! Computes `status.parents` of a route of the Gateway API from what compiling it results in. The list is one value for
//! the API server, so entries of other controllers are part of what is written, as they are.

use k8s_openapi::jiff::Timestamp;
use weft_crds::Condition;
use weft_crds::status::{ConditionType, Reason};

use super::{Delivery, Desired, accepted, condition, in_effect, is_known, programmed, resolved, summarize};
use crate::compile::{Diagnostic, ParentOutcome, Severity};
use crate::world::{GatewayRoute, OwnStatus, ParentStatus};

/// What Weft calls its conditions on objects of others.
const PREFIX: &str = "weft.dev/";

/// The `status.parents` to write, or `None` if the present one is up to date. `outcomes`: of the parents that are
/// Services, with the delivery of their documents. Keeps the order of entries, and removes those of parents that the
/// spec does not have any more.
pub fn next(
    route: &GatewayRoute,
    outcomes: &[(&ParentOutcome, Delivery)],
    now: Timestamp,
) -> Option<Vec<ParentStatus>> {
    let generation = route.meta.generation;
    let mut missing: Vec<&(&ParentOutcome, Delivery)> = outcomes.iter().collect();
    let mut next = Vec::new();
    for entry in &route.parents {
        let ParentStatus::Own(own) = entry else {
            next.push(entry.clone());
            continue;
        };
        if let Some(at) = missing.iter().position(|(outcome, _)| outcome.parent == own.parent_ref) {
            let (outcome, delivery) = missing.remove(at);
            next.push(ParentStatus::Own(updated(own, outcome, delivery, generation, now)));
        }
    }
    for (outcome, delivery) in missing {
        let own = OwnStatus { parent_ref: outcome.parent.clone(), conditions: Vec::new() };
        next.push(ParentStatus::Own(updated(&own, outcome, delivery, generation, now)));
    }
    (next != route.parents).then_some(next)
}

/// As [`is_prompt`](super::is_prompt): whether an entry comes or goes, the spec changed, or the status or reason of a
/// condition.
pub fn is_prompt(route: &GatewayRoute, next: &[ParentStatus]) -> bool {
    let is_known = |entry: &ParentStatus| match entry {
        ParentStatus::Other(_) => true,
        ParentStatus::Own(own) => route.own_status(&own.parent_ref).is_some_and(|before| {
            let is_known = |condition: &Condition| is_known(&before.conditions, condition);
            before.observed_generation() == own.observed_generation() && own.conditions.iter().all(is_known)
        }),
    };
    route.parents.len() != next.len() || !next.iter().all(is_known)
}

/// The reason why a route is not ready at one of its Services; `Pending` while it has no status there.
pub fn not_ready(route: &GatewayRoute) -> Option<&str> {
    route.services.iter().find_map(|parent| match route.own_status(parent) {
        Some(own) => {
            let failing = own.conditions.iter().find(|condition| condition.status != "True");
            failing.map(|condition| condition.reason.as_str())
        }
        None => Some("Pending"),
    })
}

/// An entry with the conditions of an outcome, in their present order. Conditions that others added stay.
fn updated(
    own: &OwnStatus,
    outcome: &ParentOutcome,
    delivery: &Delivery,
    generation: i64,
    now: Timestamp,
) -> OwnStatus {
    let previous = &own.conditions;
    let mut desired: Vec<Condition> = conditions(&outcome.diagnostics, delivery)
        .into_iter()
        .map(|(name, desired)| condition(name, desired, previous, generation, now))
        .collect();
    let mut conditions = Vec::new();
    for before in previous {
        match desired.iter().position(|condition| condition.type_ == before.type_) {
            Some(at) => conditions.push(desired.remove(at)),
            // It is only there while it is true.
            None if before.type_ == ConditionType::PartiallyInvalid.to_string() => {}
            None => conditions.push(before.clone()),
        }
    }
    conditions.extend(desired);
    OwnStatus { parent_ref: own.parent_ref.clone(), conditions }
}

/// Conditions by their type: those of the Gateway API as it defines them, and two that it does not have.
fn conditions(diagnostics: &[Diagnostic], delivery: &Delivery) -> Vec<(String, Desired)> {
    let mut accepted = accepted(diagnostics);
    let resolved = resolved(diagnostics);
    let programmed = programmed(&accepted, delivery);
    let in_effect = in_effect(&accepted, diagnostics);
    let partial = summarize(diagnostics, Severity::Partial).filter(|_| accepted.status == "True");
    accepted.reason = match (accepted.status, accepted.reason) {
        ("True", _) => Reason::Accepted,
        (_, Reason::TargetNotFound | Reason::UnsupportedTarget) => Reason::NoMatchingParent,
        (_, Reason::Invalid) => Reason::UnsupportedValue,
        (_, reason) => reason,
    };
    let mut conditions = vec![
        (accepted.kind.to_string(), accepted),
        (resolved.kind.to_string(), resolved),
        (format!("{PREFIX}{}", programmed.kind), programmed),
        (format!("{PREFIX}{}", in_effect.kind), in_effect),
    ];
    if let Some((reason, message)) = partial {
        let kind = ConditionType::PartiallyInvalid;
        let reason = if reason == Reason::PartiallyInvalid { Reason::UnsupportedValue } else { reason };
        // The Gateway API prescribes how the message begins.
        let message = format!("Dropped Rule, or a part of it: {message}");
        conditions.push((kind.to_string(), Desired { kind, status: "True", reason, message }));
    }
    conditions
}
