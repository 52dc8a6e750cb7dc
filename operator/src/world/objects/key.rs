//! What identifies an object: namespace, name, and for custom resources the kind.

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
    /// MeshPolicy.
    Policy,
    /// MeshRoute.
    Route,
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
    /// The `kind` in manifests.
    pub fn as_str(self) -> &'static str {
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
        write!(f, "{} {}", self.kind.as_str(), self.key)
    }
}
