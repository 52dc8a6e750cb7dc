//! Computes an object's conditions from its diagnostics and the delivery of its documents. Pure; the time is a
//! parameter.
//!
//! A condition keeps its `lastTransitionTime` while its status is unchanged. If no condition changes, nothing is
//! written.

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
    let ready = ready([&accepted, &resolved, &programmed]);
    let conditions = [accepted, resolved, programmed, ready]
        .map(|desired| condition(desired, &previous.conditions, generation, now));
    // Ignores conditions of other controllers, and the order in which the API server returns them.
    let is_current = |desired: &Condition| previous.conditions.contains(desired);
    let same = previous.observed_generation == Some(generation) && conditions.iter().all(is_current);
    (!same).then(|| Status { observed_generation: Some(generation), conditions: conditions.into() })
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

fn ready(conditions: [&Desired; 3]) -> Desired {
    let kind = ConditionType::Ready;
    match conditions.into_iter().find(|desired| desired.status != "True") {
        Some(first) => Desired {
            kind,
            status: "False",
            reason: Reason::NotReady,
            message: format!("{} is {}: {}: {}", first.kind, first.status, first.reason, first.message),
        },
        None => {
            let [accepted, ..] = conditions;
            let message =
                if accepted.reason == Reason::PartiallyInvalid { accepted.message.clone() } else { String::new() };
            Desired { kind, status: "True", reason: Reason::Ready, message }
        }
    }
}

fn condition(desired: Desired, previous: &[Condition], generation: i64, now: Timestamp) -> Condition {
    let Desired { kind, status, reason, message } = desired;
    let kind = kind.to_string();
    let since = previous
        .iter()
        .find(|condition| condition.type_ == kind && condition.status == status)
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
        type_: kind,
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
        assert_eq!(find(&status, "Ready").message, "Accepted is False: TargetNotFound: Service a/b does not exist");
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
