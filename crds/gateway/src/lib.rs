//! Specs of the Gateway API's routes: HTTPRoute, GRPCRoute, TLSRoute and TCPRoute, version `v1`.
//!
//! `generate.py` generates the types (`make gen-gateway`). A field that they do not have is ignored, and a value that
//! they do not know is kept as text: who reads them decides what it means.

mod types;

pub use types::*;

/// API group of the Gateway API.
pub const GROUP: &str = "gateway.networking.k8s.io";
/// The version of the types.
pub const VERSION: &str = "v1";

// === impl ParentReference ===

impl ParentReference {
    /// Whether it names a core Service. Without a group and a kind it names a Gateway.
    pub fn is_service(&self) -> bool {
        self.group.as_deref() == Some("") && self.kind.as_deref() == Some("Service")
    }

    /// Whether it was meant to name a core Service, and names a Service of a group that has none: the Gateway API's own,
    /// which is the default, or `core`, which examples of Linkerd have.
    pub fn lacks_core_group(&self) -> bool {
        matches!(self.group.as_deref(), None | Some(GROUP | "core")) && self.kind.as_deref() == Some("Service")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_of_a_newer_api_is_kept_as_text() {
        let route = json!({
            "parentRefs": [{"group": "", "kind": "Service", "name": "web", "port": 80}],
            "rules": [{
                "matches": [{"method": "QUERY", "path": {"type": "Template", "value": "/{id}"}}],
                "filters": [
                    {"type": "RequestRedirect", "requestRedirect": {"scheme": "h3", "statusCode": 300}},
                    {"type": "Frobnicate", "frobnicate": {"much": true}},
                ],
            }],
        });
        let spec: HttpRouteSpec = serde_json::from_value(route).expect("readable");
        assert!(spec.parent_refs[0].is_service());
        let [rule] = &spec.rules[..] else { panic!("one rule") };
        assert_eq!(rule.matches[0].method.as_deref(), Some("QUERY"));
        assert_eq!(rule.filters[0].request_redirect.as_ref().and_then(|redirect| redirect.status_code), Some(300));
        assert_eq!(rule.filters[1].r#type, "Frobnicate");
    }

    #[test]
    fn a_parent_without_group_is_no_service() {
        let is_service = |value| {
            let parent: ParentReference = serde_json::from_value(value).expect("a reference");
            (parent.is_service(), parent.lacks_core_group())
        };
        assert_eq!(is_service(json!({"group": "", "kind": "Service", "name": "web"})), (true, false));
        assert_eq!(is_service(json!({"kind": "Service", "name": "web"})), (false, true), "the default group");
        assert_eq!(is_service(json!({"group": GROUP, "kind": "Service", "name": "web"})), (false, true), "as stored");
        assert_eq!(is_service(json!({"group": "core", "kind": "Service", "name": "web"})), (false, true), "of Linkerd");
        assert_eq!(is_service(json!({"group": "example.com", "kind": "Service", "name": "web"})), (false, false));
        assert_eq!(is_service(json!({"name": "web"})), (false, false), "a Gateway");
    }
}
