//! What `compile` has to say about an object. Each becomes a condition on the object that caused it.

use weft_crds::names;
use weft_crds::status::Reason;

use crate::world::Key;

/// Kinds of users' objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// MeshCluster.
    Cluster,
    /// MeshPolicy.
    Policy,
    /// MeshRoute.
    Route,
}

/// Names an object of a user's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace and name.
    pub key: Key,
}

/// What is the matter with an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Diagnostic {
    /// How much of it is affected.
    pub severity: Severity,
    /// In a word.
    pub reason: Reason,
    /// In a sentence, for the user.
    pub message: String,
}

/// How much of an object is affected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// All: it is not in force. Accepted is False.
    Refused,
    /// Some: the rest is in force. Accepted is True and says what is not.
    Partial,
    /// It is in force, and names something that is not there. ResolvedRefs is False.
    Unresolved,
    /// None: something worth knowing. Accepted is True and says it.
    Note,
}

// === impl Kind ===

impl Kind {
    /// As users write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Cluster => "MeshCluster",
            Self::Policy => "MeshPolicy",
            Self::Route => "MeshRoute",
        }
    }

    /// `apiVersion` of the kind.
    pub fn api_version() -> String {
        format!("{}/{}", names::GROUP, names::VERSION)
    }
}

// === impl ObjectId ===

impl std::fmt::Display for ObjectId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind.word(), self.key)
    }
}

// === impl Diagnostic ===

impl Diagnostic {
    /// The object is not in force.
    pub fn refused(reason: Reason, message: impl Into<String>) -> Self {
        Self { severity: Severity::Refused, reason, message: message.into() }
    }

    /// Part of the object is not in force.
    pub fn partial(message: impl Into<String>) -> Self {
        Self { severity: Severity::Partial, reason: Reason::PartiallyInvalid, message: message.into() }
    }

    /// The object names something that is not there.
    pub fn unresolved(reason: Reason, message: impl Into<String>) -> Self {
        Self { severity: Severity::Unresolved, reason, message: message.into() }
    }

    /// Something worth knowing.
    pub fn note(message: impl Into<String>) -> Self {
        Self { severity: Severity::Note, reason: Reason::Accepted, message: message.into() }
    }
}
