//! Computes an object's conditions from its diagnostics and the delivery of its documents. Pure; the time is a
//! parameter.
//!
//! A condition keeps its `lastTransitionTime` while its status is unchanged. If no condition changes, nothing is
//! written.

pub mod parents;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use weft_crds::status::{ConditionType, Reason};
use weft_crds::{Condition, Status};

use crate::compile::{Diagnostic, Severity};

/// Maximum length of a condition's message, in bytes; further messages are only counted. Kubernetes allows 32768.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Whether the documents that contain an object have been written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Written, with where.
    Written(String),
    /// Not yet written, with the reason.
    Pending(String),
    /// Larger than allowed, with the sizes.
    TooLarge(String),
}

struct Desired {
    kind: ConditionType,
    status: &'static str,
    reason: Reason,
    message: String,
}

// === impl Desired ===

impl Desired {
    /// Whether it is True without anything to add.
    fn is_usual(&self) -> bool {
        matches!(self.reason, Reason::Accepted | Reason::ResolvedRefs | Reason::Programmed | Reason::InEffect)
    }
}

/// The status to write, or `None` if the present one is up to date.
pub fn next(
    previous: &Status,
    generation: i64,
    diagnostics: &[Diagnostic],
    delivery: &Delivery,
    now: Timestamp,
) -> Option<Status> {
    let accepted = accepted(diagnostics);
    let resolved = resolved(diagnostics);
    let programmed = programmed(&accepted, delivery);
    let in_effect = in_effect(&accepted, diagnostics);
    complete(previous, generation, vec![accepted, resolved, programmed, in_effect], diagnostics, now)
}

/// The status of a Mesh, which refers to no object and concerns all pods.
pub fn next_of_mesh(
    previous: &Status,
    generation: i64,
    diagnostics: &[Diagnostic],
    delivery: &Delivery,
    now: Timestamp,
) -> Option<Status> {
    let accepted = accepted(diagnostics);
    let programmed = programmed(&accepted, delivery);
    complete(previous, generation, vec![accepted, programmed], diagnostics, now)
}

/// With the condition Ready, and StrictReady if there is anything to say about that.
fn complete(
    previous: &Status,
    generation: i64,
    mut desired: Vec<Desired>,
    diagnostics: &[Diagnostic],
    now: Timestamp,
) -> Option<Status> {
    desired.push(ready(&desired));
    desired.extend(strict_ready(diagnostics));
    let conditions = desired
        .into_iter()
        .map(|desired| condition(desired.kind.to_string(), desired, &previous.conditions, generation, now));
    let conditions: Vec<Condition> = conditions.collect();
    // Ignores conditions of other controllers, and the order in which the API server returns them.
    let is_current = |desired: &Condition| previous.conditions.contains(desired);
    let same = previous.observed_generation == Some(generation) && conditions.iter().all(is_current);
    (!same).then_some(Status { observed_generation: Some(generation), conditions })
}

/// Whether a status tells more than other words for the same: the spec, or the status or reason of a condition changed. The
/// messages of conditions may change with every pod, and are written less often.
pub fn is_prompt(previous: &Status, next: &Status) -> bool {
    let is_known = |condition: &Condition| is_known(&previous.conditions, condition);
    previous.observed_generation != next.observed_generation || !next.conditions.iter().all(is_known)
}

/// Whether there was a condition with the same status and reason.
fn is_known(previous: &[Condition], condition: &Condition) -> bool {
    let before = previous.iter().find(|before| before.type_ == condition.type_);
    before.is_some_and(|before| (&before.status, &before.reason) == (&condition.status, &condition.reason))
}

/// Whether a generation of an object is in the configuration that proxies read, as its status says.
pub fn is_programmed(status: &Status, generation: i64) -> bool {
    let kind = ConditionType::Programmed.to_string();
    let is_true = |condition: &Condition| condition.type_ == kind && condition.status == "True";
    status.observed_generation == Some(generation) && status.conditions.iter().any(is_true)
}

/// The reason why an object is not ready; `Pending` while it has no such condition.
pub fn not_ready(status: &Status) -> Option<&str> {
    let ready = ConditionType::Ready.to_string();
    match status.conditions.iter().find(|condition| condition.type_ == ready) {
        Some(condition) if condition.status == "True" => None,
        Some(condition) => Some(&condition.reason),
        None => Some("Pending"),
    }
}

fn accepted(diagnostics: &[Diagnostic]) -> Desired {
    let kind = ConditionType::Accepted;
    if let Some((reason, message)) = summarize(diagnostics, Severity::Refused) {
        return Desired { kind, status: "False", reason, message };
    }
    if let Some((reason, message)) = summarize(diagnostics, Severity::Partial) {
        return Desired { kind, status: "True", reason, message: format!("accepted, except: {message}") };
    }
    let message = summarize(diagnostics, Severity::Note).map(|(_, message)| message);
    Desired {
        kind,
        status: "True",
        reason: Reason::Accepted,
        message: message.unwrap_or_else(|| "the object is valid".into()),
    }
}

fn resolved(diagnostics: &[Diagnostic]) -> Desired {
    let kind = ConditionType::ResolvedRefs;
    if diagnostics.iter().any(|diagnostic| diagnostic.reason == Reason::Invalid) {
        return Desired {
            kind,
            status: "Unknown",
            reason: Reason::Invalid,
            message: "the object cannot be parsed".into(),
        };
    }
    match summarize(diagnostics, Severity::Unresolved) {
        Some((reason, message)) => Desired { kind, status: "False", reason, message },
        None => Desired {
            kind,
            status: "True",
            reason: Reason::ResolvedRefs,
            message: "all references are resolved".into(),
        },
    }
}

fn programmed(accepted: &Desired, delivery: &Delivery) -> Desired {
    let kind = ConditionType::Programmed;
    if accepted.status != "True" {
        let message = "the object is not accepted".into();
        return Desired { kind, status: "False", reason: Reason::Invalid, message };
    }
    let (status, reason, message) = match delivery {
        Delivery::Written(message) => ("True", Reason::Programmed, message),
        Delivery::Pending(message) => ("False", Reason::Pending, message),
        Delivery::TooLarge(message) => ("False", Reason::TooLarge, message),
    };
    Desired { kind, status, reason, message: message.clone() }
}

fn in_effect(accepted: &Desired, diagnostics: &[Diagnostic]) -> Desired {
    let kind = ConditionType::InEffect;
    if accepted.status != "True" {
        let message = "the object is not accepted".into();
        return Desired { kind, status: "False", reason: Reason::Invalid, message };
    }
    if let Some((reason, message)) = summarize(diagnostics, Severity::Ineffective) {
        return Desired { kind, status: "False", reason, message };
    }
    let limited = summarize(diagnostics, Severity::Limited);
    let (reason, message) =
        limited.unwrap_or_else(|| (Reason::InEffect, "the pods that it concerns apply it".to_owned()));
    Desired { kind, status: "True", reason, message }
}

fn strict_ready(diagnostics: &[Diagnostic]) -> Option<Desired> {
    let (reason, message) = summarize(diagnostics, Severity::StrictReady)?;
    let status = match reason {
        Reason::NoPlaintextCallers => "True",
        Reason::PlaintextCallers => "False",
        _ => "Unknown",
    };
    Some(Desired { kind: ConditionType::StrictReady, status, reason, message })
}

/// Has the reason of the first condition that says something, so that one column shows it.
fn ready(conditions: &[Desired]) -> Desired {
    let kind = ConditionType::Ready;
    if let Some(first) = conditions.iter().find(|desired| desired.status != "True") {
        let message = format!("{} is {}: {}", first.kind, first.status, first.message);
        return Desired { kind, status: "False", reason: first.reason, message };
    }
    let telling = conditions.iter().filter(|desired| !desired.is_usual());
    let (mut reason, mut messages) = (Reason::Ready, Vec::new());
    for desired in telling {
        if messages.is_empty() {
            reason = desired.reason;
        }
        messages.push(desired.message.as_str());
    }
    Desired { kind, status: "True", reason, message: messages.join("; ") }
}

/// `name`: what the condition's type is called on the object.
fn condition(name: String, desired: Desired, previous: &[Condition], generation: i64, now: Timestamp) -> Condition {
    let Desired { kind: _, status, reason, message } = desired;
    let since = previous
        .iter()
        .find(|condition| condition.type_ == name && condition.status == status)
        // Kubernetes stores whole seconds.
        .map_or_else(
            || Time(Timestamp::from_second(now.as_second()).unwrap_or(now)),
            |condition| condition.last_transition_time.clone(),
        );
    Condition {
        last_transition_time: since,
        message,
        observed_generation: Some(generation),
        reason: reason.to_string(),
        status: status.to_owned(),
        type_: name,
    }
}

/// The first reason of a severity, and all messages joined.
fn summarize(diagnostics: &[Diagnostic], severity: Severity) -> Option<(Reason, String)> {
    let mut all = diagnostics.iter().filter(|diagnostic| diagnostic.severity == severity);
    let Diagnostic { reason, message, .. } = all.next()?;
    let mut text = truncated(message);
    let mut omitted = 0;
    for Diagnostic { message, .. } in all {
        if text.len() + message.len() < MESSAGE_BYTES_MAX {
            text.push_str("; ");
            text.push_str(message);
        } else {
            omitted += 1;
        }
    }
    if omitted > 0 {
        text.push_str(&format!("; and {omitted} more"));
    }
    Some((*reason, text))
}

fn truncated(message: &str) -> String {
    if message.len() <= MESSAGE_BYTES_MAX {
        return message.to_owned();
    }
    let mut text: String = message.chars().take(MESSAGE_BYTES_MAX / 4).collect();
    text.push('…');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const EARLIER: i64 = 1_700_000_000;
    const LATER: i64 = 1_700_000_100;

    fn at(second: i64) -> Timestamp {
        Timestamp::new(second, 5_000).unwrap()
    }

    fn written() -> Delivery {
        Delivery::Written("in x.shop at 1".into())
    }

    fn find<'a>(status: &'a Status, kind: &str) -> &'a Condition {
        status.conditions.iter().find(|condition| condition.type_ == kind).unwrap()
    }

    #[test]
    fn transition_time_changes_only_with_the_status() {
        let first =
            next(&Status::default(), 1, &[], &Delivery::Pending("not written yet".into()), at(EARLIER)).unwrap();
        assert_eq!(find(&first, "Programmed").status, "False");
        assert_eq!(find(&first, "Ready").status, "False");
        assert_eq!(next(&first, 1, &[], &Delivery::Pending("not written yet".into()), at(LATER)), None, "no change");

        let second = next(&first, 1, &[], &written(), at(LATER)).unwrap();
        assert_eq!(find(&second, "Accepted").last_transition_time.0.as_second(), EARLIER);
        assert_eq!(find(&second, "Programmed").last_transition_time.0.as_second(), LATER);
        assert_eq!(find(&second, "Ready").status, "True");

        let third = next(&second, 2, &[], &written(), at(LATER + 100)).unwrap();
        assert_eq!(third.observed_generation, Some(2));
        assert!(third.conditions.iter().all(|condition| condition.observed_generation == Some(2)));
        assert_eq!(find(&third, "Ready").last_transition_time.0.as_second(), LATER);
    }

    #[test]
    fn rejected_object_is_not_programmed() {
        let refused = [Diagnostic::refused(Reason::TargetNotFound, "Service a/b does not exist")];
        let status = next(&Status::default(), 1, &refused, &written(), at(EARLIER)).unwrap();
        assert_eq!(
            (find(&status, "Accepted").status.as_str(), find(&status, "Accepted").reason.as_str()),
            ("False", "TargetNotFound")
        );
        assert_eq!(find(&status, "Programmed").status, "False");
        assert_eq!(find(&status, "InEffect").status, "False");
        assert_eq!(find(&status, "Ready").reason, "TargetNotFound");
        assert_eq!(find(&status, "Ready").message, "Accepted is False: Service a/b does not exist");
    }

    #[test]
    fn ready_has_the_reason_of_the_first_condition_that_says_something() {
        let partial = || Diagnostic::partial("rule 1 is not applied");
        let unresolved = || Diagnostic::unresolved(Reason::BackendNotFound, "Service a/b does not exist");
        let ineffective = || Diagnostic::ineffective(Reason::NoProxy, "a/b-1 has no proxy");
        let limited = || Diagnostic::limited(Reason::NoPods, "it selects no pod");
        for (diagnostics, in_effect, ready) in [
            (vec![], ("True", "InEffect"), ("True", "Ready", "")),
            (vec![Diagnostic::note("a note")], ("True", "InEffect"), ("True", "Ready", "")),
            (
                vec![partial()],
                ("True", "InEffect"),
                ("True", "PartiallyInvalid", "accepted, except: rule 1 is not applied"),
            ),
            (vec![limited()], ("True", "NoPods"), ("True", "NoPods", "it selects no pod")),
            (
                vec![limited(), ineffective()],
                ("False", "NoProxy"),
                ("False", "NoProxy", "InEffect is False: a/b-1 has no proxy"),
            ),
            (
                vec![partial(), limited()],
                ("True", "NoPods"),
                ("True", "PartiallyInvalid", "accepted, except: rule 1 is not applied; it selects no pod"),
            ),
            (
                vec![ineffective(), unresolved()],
                ("False", "NoProxy"),
                ("False", "BackendNotFound", "ResolvedRefs is False: Service a/b does not exist"),
            ),
        ] {
            let status = next(&Status::default(), 1, &diagnostics, &written(), at(EARLIER)).unwrap();
            let found = find(&status, "InEffect");
            assert_eq!((found.status.as_str(), found.reason.as_str()), in_effect, "{diagnostics:?}");
            let found = find(&status, "Ready");
            assert_eq!(
                (found.status.as_str(), found.reason.as_str(), found.message.as_str()),
                ready,
                "{diagnostics:?}"
            );
        }
    }

    #[test]
    fn mesh_has_no_conditions_about_references_and_pods() {
        let status = next_of_mesh(&Status::default(), 1, &[], &written(), at(EARLIER)).unwrap();
        let kinds: Vec<&str> = status.conditions.iter().map(|condition| condition.type_.as_str()).collect();
        assert_eq!(kinds, ["Accepted", "Programmed", "Ready"]);
        assert_eq!(find(&status, "Ready").status, "True");
        assert!(is_programmed(&status, 1) && !is_programmed(&status, 2));
        let pending = Delivery::Pending("2 namespaces do not have the mode yet".into());
        let status = next_of_mesh(&status, 2, &[], &pending, at(LATER)).unwrap();
        assert_eq!(
            (find(&status, "Ready").status.as_str(), find(&status, "Ready").reason.as_str()),
            ("False", "Pending")
        );
        assert!(!is_programmed(&status, 2));
    }

    #[test]
    fn prompt_is_what_changes_a_status_or_follows_the_spec() {
        let status = |generation, diagnostics: &[Diagnostic]| {
            next(&Status::default(), generation, diagnostics, &written(), at(EARLIER)).unwrap()
        };
        let without = |pod: &str| [Diagnostic::ineffective(Reason::NoProxy, format!("{pod} has no proxy"))];
        let one = status(1, &without("a/b-1"));
        assert!(is_prompt(&Status::default(), &one), "the first status");
        assert!(!is_prompt(&one, &status(1, &without("a/b-2"))), "another pod");
        assert!(is_prompt(&one, &status(1, &[])), "it is in effect now");
        let none = [Diagnostic::limited(Reason::NoPods, "it selects no pod")];
        assert!(is_prompt(&status(1, &none), &status(1, &[])), "another reason, which a column shows");
        assert!(is_prompt(&one, &status(2, &without("a/b-1"))), "the spec changed");
    }

    #[test]
    fn an_unresolved_reference_leaves_the_object_accepted_and_programmed() {
        let unresolved = [Diagnostic::unresolved(Reason::BackendNotFound, "Service a/b does not exist")];
        let status = next(&Status::default(), 1, &unresolved, &written(), at(EARLIER)).unwrap();
        assert_eq!(find(&status, "Accepted").status, "True");
        assert_eq!(find(&status, "ResolvedRefs").reason, "BackendNotFound");
        assert_eq!(find(&status, "Programmed").status, "True");
        assert_eq!(find(&status, "Ready").status, "False");
    }

    #[test]
    fn messages_beyond_the_limit_are_counted() {
        let many: Vec<Diagnostic> =
            (0..100).map(|n| Diagnostic::partial(format!("{n}: {}", "x".repeat(100)))).collect();
        let status = next(&Status::default(), 1, &many, &written(), at(EARLIER)).unwrap();
        let message = &find(&status, "Accepted").message;
        assert!(message.len() < 1200 && message.ends_with("more"), "{message}");
    }
}
