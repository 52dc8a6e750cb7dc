//! What identifies an object: namespace, name, and for custom resources the kind.

use kube::api::ApiResource;
use weft_crds::names;

/// Namespace and name of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// Kinds of custom resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// MeshCluster.
    Cluster,
    /// Mesh, which has no namespace.
    Mesh,
    /// MeshPolicy.
    Policy,
    /// MeshRoute.
    Route,
    /// HTTPRoute of the Gateway API.
    HttpRoute,
    /// GRPCRoute of the Gateway API.
    GrpcRoute,
    /// TLSRoute of the Gateway API.
    TlsRoute,
    /// TCPRoute of the Gateway API.
    TcpRoute,
}

/// Identifies a custom resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace and name.
    pub key: Key,
}

// === impl Key ===

impl Key {
    /// A key of a namespaced object.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

// === impl Kind ===

impl Kind {
    /// The kinds of the Gateway API.
    pub const GATEWAY: [Self; 4] = [Self::HttpRoute, Self::GrpcRoute, Self::TlsRoute, Self::TcpRoute];

    /// The `kind` in manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "MeshCluster",
            Self::Mesh => "Mesh",
            Self::Policy => "MeshPolicy",
            Self::Route => "MeshRoute",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
        }
    }

    /// API group of the kind.
    pub fn group(self) -> &'static str {
        if self.is_gateway() { weft_gateway_api::GROUP } else { names::GROUP }
    }

    /// Whether it is a kind of the Gateway API.
    pub fn is_gateway(self) -> bool {
        Self::GATEWAY.contains(&self)
    }

    /// The resource in the API, in the version that Weft reads.
    pub fn resource(self) -> ApiResource {
        self.resource_in(if self.is_gateway() { weft_gateway_api::VERSION } else { names::VERSION })
    }

    /// The resource in another version.
    pub fn resource_in(self, version: &str) -> ApiResource {
        let group = self.group();
        ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: format!("{group}/{version}"),
            kind: self.as_str().to_owned(),
            plural: self.plural(),
        }
    }

    /// The name of the resource in the API: in lower case and plural.
    pub fn plural(self) -> String {
        let kind = self.as_str().to_ascii_lowercase();
        match kind.strip_suffix('y') {
            Some(stem) => format!("{stem}ies"),
            None if kind.ends_with("sh") => format!("{kind}es"),
            None => format!("{kind}s"),
        }
    }
}

// === impl ObjectId ===

impl std::fmt::Display for ObjectId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.key)
    }
}
