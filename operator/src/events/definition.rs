//! Events about CustomResourceDefinitions of the Gateway API that serve no version that Weft reads.

use weft_gateway_api::GROUP;

use super::event::{Event, Object, Severity};
use crate::world::{Definition, Key};

/// The Event on the definition.
pub fn event(definition: &Definition) -> Event {
    let Definition { kind, uid, versions: _ } = definition;
    Event {
        regarding: Object {
            api_version: "apiextensions.k8s.io/v1".to_owned(),
            kind: "CustomResourceDefinition".to_owned(),
            key: Key::new("", format!("{}s.{GROUP}", kind.to_ascii_lowercase())),
            uid: uid.clone(),
        },
        related: None,
        severity: Severity::Warning,
        reason: "UnsupportedVersion".to_owned(),
        action: "Watch",
        note: definition.message(),
        repeats: false,
    }
}
