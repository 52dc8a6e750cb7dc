//! From what `compile` said and what was written to the conditions of an object. Pure; the time is a parameter.
//!
//! A condition keeps its `lastTransitionTime` as long as its status does, and an object whose conditions would not change
//! is not written at all.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use weft_crds::status::{ConditionType, Reason};
use weft_crds::{Condition, Status};

use crate::compile::{Diagnostic, Severity};

/// Longest message of a condition, in bytes; what is beyond is counted instead. Kubernetes allows 32768, people less.
const MESSAGE_BYTES_MAX: usize = 1024;

/// How far the documents that an object went into have come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// They are written.
    Written(String),
    /// They are not, and why.
    Pending(String),
    /// They do not fit, and by how much.
    TooLarge(String),
}

struct Wanted {
    kind: ConditionType,
    status: &'static str,
    reason: Reason,
    message: String,
}

/// The status that an object should have, or `None` if it has it.
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
    let conditions =
        [accepted, resolved, programmed, ready].map(|wanted| condition(wanted, &previous.conditions, generation, now));
    // Conditions of others, and the order that the API server keeps them in, are not ours to judge.
    let held = |wanted: &Condition| previous.conditions.contains(wanted);
    let same = previous.observed_generation == Some(generation) && conditions.iter().all(held);
    (!same).then(|| Status { observed_generation: Some(generation), conditions: conditions.into() })
}

fn accepted(diagnostics: &[Diagnostic]) -> Wanted {
    let kind = ConditionType::Accepted;
    if let Some((reason, message)) = said(diagnostics, Severity::Refused) {
        return Wanted { kind, status: "False", reason, message };
    }
    if let Some((reason, message)) = said(diagnostics, Severity::Partial) {
        return Wanted { kind, status: "True", reason, message: format!("in force but for this: {message}") };
    }
    let message = said(diagnostics, Severity::Note).map(|(_, message)| message);
    Wanted {
        kind,
        status: "True",
        reason: Reason::Accepted,
        message: message.unwrap_or_else(|| "the object is valid".into()),
    }
}

fn resolved(diagnostics: &[Diagnostic]) -> Wanted {
    let kind = ConditionType::ResolvedRefs;
    if diagnostics.iter().any(|diagnostic| diagnostic.reason == Reason::Invalid) {
        return Wanted {
            kind,
            status: "Unknown",
            reason: Reason::Invalid,
            message: "the object cannot be read".into(),
        };
    }
    match said(diagnostics, Severity::Unresolved) {
        Some((reason, message)) => Wanted { kind, status: "False", reason, message },
        None => Wanted {
            kind,
            status: "True",
            reason: Reason::ResolvedRefs,
            message: "all that the object names exists".into(),
        },
    }
}

fn programmed(accepted: &Wanted, delivery: &Delivery) -> Wanted {
    let kind = ConditionType::Programmed;
    if accepted.status != "True" {
        let message = "the object is not accepted".into();
        return Wanted { kind, status: "False", reason: Reason::Invalid, message };
    }
    let (status, reason, message) = match delivery {
        Delivery::Written(message) => ("True", Reason::Programmed, message),
        Delivery::Pending(message) => ("False", Reason::Pending, message),
        Delivery::TooLarge(message) => ("False", Reason::TooLarge, message),
    };
    Wanted { kind, status, reason, message: message.clone() }
}

fn ready(conditions: [&Wanted; 3]) -> Wanted {
    let kind = ConditionType::Ready;
    match conditions.into_iter().find(|wanted| wanted.status != "True") {
        Some(first) => Wanted {
            kind,
            status: "False",
            reason: Reason::NotReady,
            message: format!("{} is {}: {}: {}", first.kind, first.status, first.reason, first.message),
        },
        None => {
            let [accepted, ..] = conditions;
            let message =
                if accepted.reason == Reason::PartiallyInvalid { accepted.message.clone() } else { String::new() };
            Wanted { kind, status: "True", reason: Reason::Ready, message }
        }
    }
}

fn condition(wanted: Wanted, previous: &[Condition], generation: i64, now: Timestamp) -> Condition {
    let Wanted { kind, status, reason, message } = wanted;
    let kind = kind.to_string();
    let since = previous
        .iter()
        .find(|condition| condition.type_ == kind && condition.status == status)
        // Kubernetes keeps whole seconds.
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

/// The first reason of a severity, and all messages.
fn said(diagnostics: &[Diagnostic], severity: Severity) -> Option<(Reason, String)> {
    let mut all = diagnostics.iter().filter(|diagnostic| diagnostic.severity == severity);
    let Diagnostic { reason, message, .. } = all.next()?;
    let mut text = shortened(message);
    let mut unsaid = 0;
    for Diagnostic { message, .. } in all {
        if text.len() + message.len() < MESSAGE_BYTES_MAX {
            text.push_str("; ");
            text.push_str(message);
        } else {
            unsaid += 1;
        }
    }
    if unsaid > 0 {
        text.push_str(&format!("; and {unsaid} more"));
    }
    Some((*reason, text))
}

fn shortened(message: &str) -> String {
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
    fn times_move_only_with_the_status() {
        let first = next(&Status::default(), 1, &[], &Delivery::Pending("on its way".into()), at(EARLIER)).unwrap();
        assert_eq!(find(&first, "Programmed").status, "False");
        assert_eq!(find(&first, "Ready").status, "False");
        assert_eq!(next(&first, 1, &[], &Delivery::Pending("on its way".into()), at(LATER)), None, "nothing to say");

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
    fn what_is_not_accepted_is_not_programmed() {
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
    fn long_messages_are_counted_not_kept() {
        let many: Vec<Diagnostic> =
            (0..100).map(|n| Diagnostic::partial(format!("{n}: {}", "x".repeat(100)))).collect();
        let status = next(&Status::default(), 1, &many, &written(), at(EARLIER)).unwrap();
        let message = &find(&status, "Accepted").message;
        assert!(message.len() < 1200 && message.ends_with("more"), "{message}");
    }
}
