//! References to objects of the cluster.

use serde::{Deserialize, Serialize};

use crate::is_default;

/// A reference to an object of the user.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ObjectRef {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// The user's route that a rule is part of.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RouteRef {
    /// Kind. Absent: MeshRoute.
    #[serde(default, skip_serializing_if = "is_default")]
    pub kind: RouteKind,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// Kinds of routes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "named as the kinds are")]
pub enum RouteKind {
    #[default]
    MeshRoute,
    #[serde(rename = "GRPCRoute")]
    GrpcRoute,
    #[serde(rename = "HTTPRoute")]
    HttpRoute,
    #[serde(rename = "TLSRoute")]
    TlsRoute,
    #[serde(rename = "TCPRoute")]
    TcpRoute,
}

/// A reference to a port of a Service and, if any, a subset of its pods.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ClusterRef {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub service: String,
    /// Port of the Service.
    pub port: u16,
    /// The subset. Absent: all pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subset: Option<String>,
}

impl RouteKind {
    /// The `kind` in manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MeshRoute => "MeshRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::HttpRoute => "HTTPRoute",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn route_kinds_are_written_as_in_manifests_and_mesh_route_is_left_out() {
        for (kind, text) in [
            (RouteKind::MeshRoute, r#"{"namespace":"shop","name":"web"}"#),
            (RouteKind::GrpcRoute, r#"{"kind":"GRPCRoute","namespace":"shop","name":"web"}"#),
            (RouteKind::HttpRoute, r#"{"kind":"HTTPRoute","namespace":"shop","name":"web"}"#),
            (RouteKind::TlsRoute, r#"{"kind":"TLSRoute","namespace":"shop","name":"web"}"#),
            (RouteKind::TcpRoute, r#"{"kind":"TCPRoute","namespace":"shop","name":"web"}"#),
        ] {
            let route = RouteRef { kind, namespace: "shop".into(), name: "web".into() };
            assert_eq!(serde_json::to_string(&route).expect("JSON"), text);
            assert_eq!(serde_json::from_str::<RouteRef>(text).expect("a reference"), route);
            assert!(kind == RouteKind::MeshRoute || text.contains(kind.as_str()), "{kind:?}");
        }
    }
}
