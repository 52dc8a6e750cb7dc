//! Computes `status.parents` of a route of the Gateway API from what compiling it results in. The list is one value for
//! the API server, so entries of other controllers are part of what is written, as they are.

use k8s_openapi::jiff::Timestamp;
use weft_crds::Condition;
use weft_crds::status::{ConditionType, Reason};
use weft_gateway_api::{GROUP, ParentReference};

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
    let mistaken: Vec<ParentOutcome> = route.mistaken.iter().map(mistaken).collect();
    let nowhere = Delivery::Pending(String::new());
    let mut missing: Vec<(&ParentOutcome, &Delivery)> = outcomes
        .iter()
        .map(|(outcome, delivery)| (*outcome, delivery))
        .chain(mistaken.iter().map(|outcome| (outcome, &nowhere)))
        .collect();
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
    route.services.iter().chain(&route.mistaken).find_map(|parent| match route.own_status(parent) {
        Some(own) => {
            let failing = own.conditions.iter().find(|condition| condition.status != "True");
            failing.map(|condition| condition.reason.as_str())
        }
        None => Some("Pending"),
    })
}

/// The outcome at a parent that was meant to be a Service.
fn mistaken(parent: &ParentReference) -> ParentOutcome {
    let group = parent.group.as_deref().unwrap_or(GROUP);
    let message = format!(
        "parentRef {0}: group {group} has no Service {0}; set group: \"\" to name a Service of Kubernetes",
        parent.name
    );
    let diagnostics = vec![Diagnostic::refused(Reason::NoMatchingParent, message)];
    ParentOutcome { parent: parent.clone(), documents: [].into(), diagnostics }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Kind;
    use serde_json::{Value, json};

    const EARLIER: i64 = 1_700_000_000;
    const LATER: i64 = 1_700_000_100;

    fn at(second: i64) -> Timestamp {
        Timestamp::new(second, 5_000).unwrap()
    }

    fn parent(name: &str) -> ParentReference {
        serde_json::from_value(json!({"group": "", "kind": "Service", "name": name, "port": 80})).unwrap()
    }

    fn route(generation: i64, services: &[&str], parents: Vec<ParentStatus>) -> GatewayRoute {
        let services: Vec<ParentReference> = services.iter().map(|name| parent(name)).collect();
        let parents: Vec<Value> = parents.iter().map(ParentStatus::to_json).collect();
        let object = json!({
            "metadata": {"namespace": "shop", "name": "r", "generation": generation},
            "spec": {"parentRefs": services, "rules": [{}]}, "status": {"parents": parents},
        });
        GatewayRoute::read(Kind::HttpRoute, serde_json::from_value(object).unwrap()).expect("has a Service")
    }

    fn outcome(name: &str, diagnostics: Vec<Diagnostic>) -> ParentOutcome {
        ParentOutcome { parent: parent(name), documents: [].into(), diagnostics }
    }

    fn next_of(route: &GatewayRoute, outcomes: &[ParentOutcome], second: i64) -> Option<Vec<ParentStatus>> {
        let delivered: Vec<_> =
            outcomes.iter().map(|outcome| (outcome, Delivery::Written("in x.shop at 1".into()))).collect();
        next(route, &delivered, at(second))
    }

    fn other(name: &str) -> ParentStatus {
        ParentStatus::from(json!({"parentRef": {"name": name}, "controllerName": "example.com/gateway", "x": 1}))
    }

    /// Type, status and reason of the conditions at a parent.
    fn shown(parents: &[ParentStatus], name: &str) -> Vec<String> {
        let own = parents.iter().find_map(|entry| match entry {
            ParentStatus::Own(own) if own.parent_ref == parent(name) => Some(own),
            _ => None,
        });
        let conditions = own.map_or(&[][..], |own| &own.conditions).iter();
        conditions.map(|condition| format!("{} {} {}", condition.type_, condition.status, condition.reason)).collect()
    }

    const USUAL: [&str; 4] = [
        "Accepted True Accepted",
        "ResolvedRefs True ResolvedRefs",
        "weft.dev/Programmed True Programmed",
        "weft.dev/InEffect True InEffect",
    ];

    #[test]
    fn each_service_has_an_entry_and_those_of_others_stay_in_their_place() {
        let outcomes = [outcome("a", vec![]), outcome("b", vec![])];
        let first = next_of(&route(1, &["a", "b"], vec![other("x"), other("y")]), &outcomes, EARLIER).unwrap();
        assert_eq!(first[..2], [other("x"), other("y")]);
        assert_eq!(
            (shown(&first, "a"), shown(&first, "b")),
            (USUAL.map(str::to_owned).into(), USUAL.map(str::to_owned).into())
        );
        let written = route(1, &["a", "b"], first.clone());
        assert_eq!(next_of(&written, &outcomes, LATER), None, "nothing changed: a new leader writes nothing");

        // Another controller has added an entry at the front, and b is no parent any more.
        let mut present = vec![other("z")];
        present.extend(first);
        let second = next_of(&route(2, &["a"], present), &outcomes[..1], LATER).unwrap();
        assert_eq!(second[..3], [other("z"), other("x"), other("y")]);
        assert_eq!((second.len(), shown(&second, "a")), (4, USUAL.map(str::to_owned).into()));
        let ParentStatus::Own(own) = &second[3] else { panic!("{second:?}") };
        assert_eq!(own.observed_generation(), Some(2));
        assert!(
            own.conditions.iter().all(|one| one.last_transition_time.0.as_second() == EARLIER),
            "no status changed"
        );
    }

    #[test]
    fn entries_are_removed_when_no_service_is_left() {
        let own = OwnStatus { parent_ref: parent("a"), conditions: Vec::new() };
        let left = route(3, &[], vec![ParentStatus::Own(own), other("x")]);
        assert_eq!(next_of(&left, &[], EARLIER), Some(vec![other("x")]));
        assert!(is_prompt(&left, &[other("x")]));
    }

    #[test]
    fn parent_without_the_group_of_services_is_told_the_remedy() {
        let object = json!({
            "metadata": {"namespace": "shop", "name": "r"},
            "spec": {"parentRefs": [{"group": GROUP, "kind": "Service", "name": "a"}], "rules": [{}]},
        });
        let mut route = GatewayRoute::read(Kind::HttpRoute, serde_json::from_value(object).unwrap()).unwrap();
        let parents = next_of(&route, &[], EARLIER).unwrap();
        let [ParentStatus::Own(own)] = &parents[..] else { panic!("{parents:?}") };
        assert_eq!(
            (own.conditions[0].status.as_str(), own.conditions[0].reason.as_str()),
            ("False", "NoMatchingParent")
        );
        assert!(own.conditions[0].message.contains("set group: \"\""), "{}", own.conditions[0].message);
        route.parents = parents;
        assert_eq!((next_of(&route, &[], LATER), not_ready(&route)), (None, Some("NoMatchingParent")));
    }

    #[test]
    fn entry_that_cannot_be_read_is_written_again() {
        let broken = ParentStatus::from(json!({"controllerName": "weft.dev/mesh-controller", "parentRef": "a"}));
        let next = next_of(&route(1, &["a"], vec![broken]), &[outcome("a", vec![])], EARLIER).unwrap();
        assert_eq!((next.len(), shown(&next, "a")), (1, USUAL.map(str::to_owned).into()));
    }

    #[test]
    fn conditions_have_the_words_of_the_gateway_api() {
        let refused = |reason| vec![Diagnostic::refused(reason, "no")];
        for (diagnostics, expected) in [
            (vec![Diagnostic::note("a note")], USUAL),
            (
                refused(Reason::TargetNotFound),
                [
                    "Accepted False NoMatchingParent",
                    "ResolvedRefs True ResolvedRefs",
                    "weft.dev/Programmed False Invalid",
                    "weft.dev/InEffect False Invalid",
                ],
            ),
            (
                refused(Reason::Invalid),
                [
                    "Accepted False UnsupportedValue",
                    "ResolvedRefs Unknown Invalid",
                    "weft.dev/Programmed False Invalid",
                    "weft.dev/InEffect False Invalid",
                ],
            ),
            (
                vec![
                    Diagnostic::unresolved(Reason::BackendNotFound, "no"),
                    Diagnostic::limited(Reason::NoPods, "none"),
                ],
                [
                    "Accepted True Accepted",
                    "ResolvedRefs False BackendNotFound",
                    "weft.dev/Programmed True Programmed",
                    "weft.dev/InEffect True NoPods",
                ],
            ),
        ] {
            let next = next_of(&route(1, &["a"], vec![]), &[outcome("a", diagnostics)], EARLIER).unwrap();
            assert_eq!(shown(&next, "a"), expected);
        }
    }

    #[test]
    fn partially_invalid_is_a_condition_only_while_it_is_true() {
        let partial = || vec![Diagnostic::partial("rule 1 is not applied")];
        let first = next_of(&route(1, &["a"], vec![]), &[outcome("a", partial())], EARLIER).unwrap();
        let expected: Vec<&str> = USUAL.into_iter().chain(["PartiallyInvalid True UnsupportedValue"]).collect();
        assert_eq!(shown(&first, "a"), expected);
        let ParentStatus::Own(own) = &first[0] else { panic!("{first:?}") };
        assert!(own.conditions[4].message.starts_with("Dropped Rule"), "as the API prescribes");
        let written = route(1, &["a"], first);
        assert_eq!(not_ready(&written), None);
        let second = next_of(&written, &[outcome("a", vec![])], LATER).unwrap();
        assert_eq!(shown(&second, "a"), USUAL);
        let mut refused = partial();
        refused.push(Diagnostic::refused(Reason::Conflicted, "an older route has precedence"));
        let third = next_of(&written, &[outcome("a", refused)], LATER).unwrap();
        assert_eq!(shown(&third, "a").len(), 4, "not of a route that is not accepted");
    }

    #[test]
    fn conditions_that_others_added_to_an_entry_stay() {
        let mut first = next_of(&route(1, &["a"], vec![]), &[outcome("a", vec![])], EARLIER).unwrap();
        let ParentStatus::Own(own) = &mut first[0] else { panic!("an own entry") };
        let foreign = Condition { type_: "example.com/Audited".into(), ..own.conditions[0].clone() };
        own.conditions.insert(0, foreign.clone());
        let written = route(1, &["a"], first);
        assert_eq!(next_of(&written, &[outcome("a", vec![])], LATER), None);
        let unresolved = vec![Diagnostic::unresolved(Reason::InvalidKind, "no")];
        let second = next_of(&written, &[outcome("a", unresolved)], LATER).unwrap();
        let ParentStatus::Own(own) = &second[0] else { panic!("an own entry") };
        assert_eq!((own.conditions.len(), &own.conditions[0]), (5, &foreign));
    }

    #[test]
    fn prompt_is_what_changes_an_entry_or_follows_the_spec() {
        let limited = |pod: &str| vec![Diagnostic::limited(Reason::NoProxy, format!("{pod} has no proxy"))];
        let write = |route: &GatewayRoute, diagnostics| next_of(route, &[outcome("a", diagnostics)], EARLIER).unwrap();
        let empty = route(1, &["a"], vec![]);
        let first = write(&empty, limited("b-1"));
        assert!(is_prompt(&empty, &first), "the first status");
        assert_eq!(not_ready(&empty), Some("Pending"));
        let written = route(1, &["a"], first.clone());
        assert!(!is_prompt(&written, &write(&written, limited("b-2"))), "another pod");
        assert!(is_prompt(&written, &write(&written, vec![])), "another reason");
        let edited = route(2, &["a"], first);
        assert!(is_prompt(&edited, &write(&edited, limited("b-1"))), "the spec changed");
        let unresolved = write(&edited, vec![Diagnostic::unresolved(Reason::BackendNotFound, "no")]);
        assert_eq!(not_ready(&route(2, &["a"], unresolved)), Some("BackendNotFound"));
    }
}
