//! ReferenceGrants of the Gateway API: which routes of other namespaces may refer to the Services of their namespace.

use std::collections::BTreeSet;

use kube::api::{ApiResource, DynamicObject};
use serde::Deserialize;
use weft_gateway_api::GROUP;

use super::key::{Key, Kind};
use super::metadata::key;

/// Kinds whose references a grant may allow.
const ROUTES: [Kind; 5] = [Kind::Route, Kind::HttpRoute, Kind::GrpcRoute, Kind::TlsRoute, Kind::TcpRoute];

/// A ReferenceGrant, reduced to references of routes to Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Namespace and name.
    pub key: Key,
    /// Kinds of routes, and their namespaces, that may refer to the Services.
    pub from: BTreeSet<(Kind, String)>,
    /// Names of the Services; `None`: every Service of the grant's namespace.
    pub to: Option<BTreeSet<String>>,
}

#[derive(Deserialize)]
struct RawSpec {
    #[serde(default)]
    from: Vec<RawFrom>,
    #[serde(default)]
    to: Vec<RawTo>,
}

#[derive(Deserialize)]
struct RawFrom {
    group: String,
    kind: String,
    namespace: String,
}

#[derive(Deserialize)]
struct RawTo {
    group: String,
    kind: String,
    name: Option<String>,
}

// === impl Grant ===

impl Grant {
    /// The resource in a version of the Gateway API: `v1` or `v1beta1`.
    pub fn resource(version: &str) -> ApiResource {
        ApiResource {
            group: GROUP.to_owned(),
            version: version.to_owned(),
            api_version: format!("{GROUP}/{version}"),
            kind: "ReferenceGrant".to_owned(),
            plural: "referencegrants".to_owned(),
        }
    }

    /// Whether routes of a kind and a namespace may refer to a Service of the grant's namespace.
    pub fn permits(&self, kind: Kind, from: &str, service: &str) -> bool {
        self.from.contains(&(kind, from.to_owned())) && self.to.as_ref().is_none_or(|to| to.contains(service))
    }
}

impl From<DynamicObject> for Grant {
    /// A grant that does not parse permits nothing.
    fn from(object: DynamicObject) -> Self {
        let spec = serde_json::from_value(object.data["spec"].clone());
        let RawSpec { from, to } = spec.unwrap_or(RawSpec { from: Vec::new(), to: Vec::new() });
        let routes = from.into_iter().filter_map(|RawFrom { group, kind, namespace }| {
            let kind = ROUTES.into_iter().find(|route| (route.group(), route.as_str()) == (&group, &kind))?;
            Some((kind, namespace))
        });
        // The core API group.
        let services = to.into_iter().filter(|to| to.group.is_empty() && to.kind == "Service");
        let services: Vec<Option<String>> = services.map(|to| to.name).collect();
        Self {
            key: key(&object.metadata),
            from: routes.collect(),
            to: if services.contains(&None) { None } else { Some(services.into_iter().flatten().collect()) },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn grant(from: Value, to: Value) -> Grant {
        let object = json!({"metadata": {"namespace": "bank", "name": "g"}, "spec": {"from": from, "to": to}});
        Grant::from(serde_json::from_value::<DynamicObject>(object).expect("an object"))
    }

    #[test]
    fn grant_permits_the_named_kinds_namespaces_and_services() {
        let shop = json!([{"group": "weft.dev", "kind": "MeshRoute", "namespace": "shop"}]);
        let pay = json!([{"group": "", "kind": "Service", "name": "pay"}]);
        assert!(grant(shop.clone(), pay.clone()).permits(Kind::Route, "shop", "pay"));
        assert!(!grant(shop.clone(), pay.clone()).permits(Kind::Route, "shop", "audit"), "another Service");
        assert!(!grant(shop.clone(), pay.clone()).permits(Kind::Route, "web", "pay"), "another namespace");
        assert!(
            grant(shop.clone(), json!([{"group": "", "kind": "Service"}])).permits(Kind::Route, "shop", "audit"),
            "every Service"
        );
        let all = json!([{"group": "", "kind": "Service", "name": "pay"}, {"group": "", "kind": "Service"}]);
        assert!(grant(shop.clone(), all).permits(Kind::Route, "shop", "audit"), "entries are combined with or");
        assert!(
            !grant(shop.clone(), json!([{"group": "", "kind": "Secret"}])).permits(Kind::Route, "shop", "pay"),
            "no Service"
        );
        let http_route = json!([{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "shop"}]);
        assert!(!grant(http_route.clone(), pay.clone()).permits(Kind::Route, "shop", "pay"), "another kind");
        assert!(grant(http_route, pay.clone()).permits(Kind::HttpRoute, "shop", "pay"));
        assert!(!grant(json!("nonsense"), pay).permits(Kind::Route, "shop", "pay"));
    }
}
