//! An Event, and the object of the API that it becomes.

use std::hash::{DefaultHasher, Hash, Hasher};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use weft_crds::names;

use crate::world::Key;

/// Maximum length of a note in bytes. Source: the validation of events.k8s.io/v1.
const NOTE_BYTES_MAX: usize = 1024;
/// Maximum length of an object's name.
const NAME_BYTES_MAX: usize = 253;

/// An Event to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The object whose description shows it.
    pub regarding: Object,
    /// Another object that it is about.
    pub related: Option<Object>,
    /// Whether something is wrong.
    pub severity: Severity,
    /// Why, in CamelCase.
    pub reason: String,
    /// What the operator did when it found this, in CamelCase.
    pub action: &'static str,
    /// The sentence for users.
    pub note: String,
    /// Whether an equal Event that exists already is counted up, or left alone.
    pub repeats: bool,
}

/// An object of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Object {
    /// As in manifests: `apps/v1`, or `v1` for the core group.
    pub api_version: String,
    /// As in manifests.
    pub kind: String,
    /// Namespace and name.
    pub key: Key,
    /// UID: `kubectl describe` shows only Events with the object's UID.
    pub uid: String,
}

/// The `type` of an Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// Nothing is wrong (any more).
    Normal,
    /// Something is wrong.
    Warning,
}

// === impl Event ===

impl Event {
    /// Its name. Equal Events have equal names, so that one that exists is found without a memory of what was written.
    pub(super) fn name(&self) -> String {
        let Self { regarding, related: _, severity, reason, action: _, note, repeats: _ } = self;
        let mut hasher = DefaultHasher::new();
        (regarding, severity, reason, note).hash(&mut hasher);
        let suffix = format!(".{:016x}", hasher.finish());
        let object = &regarding.key.name;
        // Names of objects are ASCII.
        let prefix = object.get(..NAME_BYTES_MAX - suffix.len()).unwrap_or(object);
        format!("{}{suffix}", prefix.trim_end_matches(['-', '.']))
    }

    /// The namespace of the Event: the object's, or `default` if it has none (the API requires that one).
    pub(super) fn namespace(&self) -> &str {
        match self.regarding.key.namespace.as_str() {
            "" => "default",
            namespace => namespace,
        }
    }

    /// The object of the API. `instance` is the name of this operator.
    pub(super) fn render(&self, instance: &str, now: Timestamp) -> v1::Event {
        v1::Event {
            metadata: ObjectMeta {
                name: Some(self.name()),
                namespace: Some(self.namespace().to_owned()),
                ..ObjectMeta::default()
            },
            regarding: Some(self.regarding.reference()),
            related: self.related.as_ref().map(Object::reference),
            type_: Some(self.severity.as_str().to_owned()),
            reason: Some(self.reason.clone()),
            action: Some(self.action.to_owned()),
            note: Some(truncated(&self.note).to_owned()),
            event_time: Some(MicroTime(now)),
            reporting_controller: Some(format!("{}/operator", names::GROUP)),
            reporting_instance: Some(instance.to_owned()),
            ..v1::Event::default()
        }
    }
}

fn truncated(note: &str) -> &str {
    let mut end = note.len().min(NOTE_BYTES_MAX);
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    &note[..end]
}

// === impl Object ===

impl Object {
    fn reference(&self) -> ObjectReference {
        let Self { api_version, kind, key, uid } = self;
        ObjectReference {
            api_version: Some(api_version.clone()),
            kind: Some(kind.clone()),
            namespace: Some(key.namespace.clone()).filter(|namespace| !namespace.is_empty()),
            name: Some(key.name.clone()),
            uid: Some(uid.clone()),
            ..ObjectReference::default()
        }
    }
}

// === impl Severity ===

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, note: &str) -> Event {
        Event {
            regarding: Object {
                api_version: "v1".into(),
                kind: "Pod".into(),
                key: Key::new("shop", name),
                uid: "u".into(),
            },
            related: None,
            severity: Severity::Warning,
            reason: "NoProxy".into(),
            action: "Inject",
            note: note.into(),
            repeats: false,
        }
    }

    /// CP-04: names that are cut end with a hash.
    #[test]
    fn equal_events_have_equal_names_within_the_limit() {
        assert_eq!(event("web", "a").name(), event("web", "a").name());
        assert_ne!(event("web", "a").name(), event("web", "b").name());
        assert!(event("web", "a").name().starts_with("web."));
        let long = format!("{}-{}", "a".repeat(235), "b".repeat(17));
        let name = event(&long, "a").name();
        assert!(name.len() <= NAME_BYTES_MAX && !name.contains("-."), "{name}");
    }

    #[test]
    fn events_about_objects_without_a_namespace_are_in_the_default_one() {
        let mut event = event("httproutes.gateway.networking.k8s.io", "a");
        event.regarding.key.namespace.clear();
        let rendered = event.render("weft-operator-1", Timestamp::UNIX_EPOCH);
        assert_eq!(rendered.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(rendered.regarding.and_then(|object| object.namespace), None);
    }

    #[test]
    fn long_notes_are_cut_at_a_character() {
        let rendered = event("web", &"ä".repeat(600)).render("weft-operator-1", Timestamp::UNIX_EPOCH);
        assert_eq!(rendered.note.map(|note| note.len()), Some(1024));
        let rendered = event("web", &format!("a{}", "ä".repeat(600))).render("weft-operator-1", Timestamp::UNIX_EPOCH);
        assert_eq!(rendered.note.map(|note| note.len()), Some(1023));
    }
}
