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
        let parent = |value| serde_json::from_value::<ParentReference>(value).expect("a reference").is_service();
        assert!(parent(json!({"group": "", "kind": "Service", "name": "web"})));
        assert!(!parent(json!({"kind": "Service", "name": "web"})), "the group is the Gateway API's by default");
        assert!(!parent(json!({"name": "web"})), "a Gateway");
    }
}
