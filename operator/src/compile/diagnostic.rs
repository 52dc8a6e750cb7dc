//! Errors and notes about an object. Each becomes part of a condition of the object that caused it.

use weft_crds::status::Reason;

/// An error or note about an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Diagnostic {
    /// How much of it is affected.
    pub severity: Severity,
    /// Reason of the condition.
    pub reason: Reason,
    /// Message of the condition, for users.
    pub message: String,
}

/// How much of an object is affected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The whole object is rejected. Accepted is False.
    Refused,
    /// Parts of it are rejected, the rest is applied. Accepted is True with the reason PartiallyInvalid.
    Partial,
    /// It is applied, but a reference does not resolve. ResolvedRefs is False.
    Unresolved,
    /// It is applied, but not by all pods that it concerns. InEffect is False.
    Ineffective,
    /// It is applied as far as the pods that there are at present allow. InEffect is True, with the diagnostic's reason:
    /// a Service that is scaled to zero is no fault.
    Limited,
    /// Information only. Accepted is True and its message has it.
    Note,
    /// Whether Strict would refuse anybody: the condition StrictReady, whose status follows from the reason. It says nothing
    /// about the object itself.
    StrictReady,
}

// === impl Diagnostic ===

impl Diagnostic {
    /// The whole object is rejected.
    pub fn refused(reason: Reason, message: impl Into<String>) -> Self {
        Self { severity: Severity::Refused, reason, message: message.into() }
    }

    /// Part of the object is rejected.
    pub fn partial(message: impl Into<String>) -> Self {
        Self { severity: Severity::Partial, reason: Reason::PartiallyInvalid, message: message.into() }
    }

    /// A reference of the object does not resolve.
    pub fn unresolved(reason: Reason, message: impl Into<String>) -> Self {
        Self { severity: Severity::Unresolved, reason, message: message.into() }
    }

    /// Pods that the object concerns do not apply it.
    pub fn ineffective(reason: Reason, message: impl Into<String>) -> Self {
        Self { severity: Severity::Ineffective, reason, message: message.into() }
    }

    /// The object is applied as far as there are pods.
    pub fn limited(reason: Reason, message: impl Into<String>) -> Self {
        Self { severity: Severity::Limited, reason, message: message.into() }
    }

    /// Information only.
    pub fn note(message: impl Into<String>) -> Self {
        Self { severity: Severity::Note, reason: Reason::Accepted, message: message.into() }
    }
}
