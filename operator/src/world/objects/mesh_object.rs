//! Custom resources: MeshRoutes, MeshClusters, MeshPolicies and the Mesh.

use kube::api::ObjectMeta;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use weft_crds::{MeshClusterSpec, MeshPolicySpec, MeshRouteSpec, MeshSpec, Status};

use super::key::Key;
use super::metadata::{key, resource, revision};

/// A MeshRoute.
pub type Route = MeshObject<MeshRouteSpec>;
/// A MeshCluster.
pub type Cluster = MeshObject<MeshClusterSpec>;
/// A MeshPolicy.
pub type Policy = MeshObject<MeshPolicySpec>;

/// A Mesh, which has no namespace.
pub type Mesh = MeshObject<MeshSpec>;

/// Metadata of a custom resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Namespace and name.
    pub key: Key,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.creationTimestamp`, in seconds since 1970.
    pub created: i64,
    /// `metadata.resourceVersion` as a number. (Kubernetes guarantees since 1.35 that resourceVersions can be
    /// compared; in practice they always could.)
    pub revision: u64,
}

/// A custom resource. A spec that does not parse is stored as the error, so that one invalid object gets a condition
/// and does not stop the watch.
#[derive(Clone, Debug, PartialEq)]
pub struct MeshObject<S> {
    /// Metadata.
    pub meta: Meta,
    /// The spec, or why it does not parse.
    pub spec: Result<S, String>,
    /// The last status.
    pub status: Status,
}

/// A custom resource as the API server sends it. `K` is the kind.
#[derive(Clone, Debug, Deserialize)]
#[serde(bound = "")]
pub struct RawMeshObject<K> {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Value,
    #[serde(default)]
    status: Value,
    #[serde(skip)]
    kind: std::marker::PhantomData<fn() -> K>,
}

resource!(RawMeshObject<K>, K, <K as kube::Resource>::Scope, K);

// === impl Meta ===

impl Meta {
    /// Whether all but the revision is equal.
    pub fn same(&self, other: &Self) -> bool {
        let Self { key, uid, generation, created, revision: _ } = self;
        (key, uid, generation, created) == (&other.key, &other.uid, &other.generation, &other.created)
    }
}

impl From<ObjectMeta> for Meta {
    fn from(metadata: ObjectMeta) -> Self {
        Self {
            key: key(&metadata),
            uid: metadata.uid.unwrap_or_default(),
            generation: metadata.generation.unwrap_or_default(),
            created: metadata.creation_timestamp.map_or(0, |time| time.0.as_second()),
            revision: revision(metadata.resource_version.as_deref()),
        }
    }
}

// === impl RawMeshObject ===

impl<K> RawMeshObject<K> {
    /// Parses the spec and the status.
    pub fn read<S: DeserializeOwned>(self) -> MeshObject<S> {
        let Self { metadata, spec, status, kind: _ } = self;
        MeshObject {
            meta: Meta::from(metadata),
            spec: serde_json::from_value(spec).map_err(|error| error.to_string()),
            // A status that does not parse was not written by this operator.
            status: serde_json::from_value(status).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_spec_keeps_its_metadata_and_status() {
        let raw: RawMeshObject<weft_crds::MeshRoute> = serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "shop", "name": "bad", "generation": 3, "resourceVersion": "12"},
            "spec": {"parentRefs": "nonsense"},
            "status": {"observedGeneration": 2, "conditions": []},
        }))
        .expect("metadata is enough");
        let object = raw.read::<weft_crds::MeshRouteSpec>();
        assert_eq!((object.meta.generation, object.meta.revision), (3, 12));
        assert_eq!(object.status.observed_generation, Some(2));
        let error = object.spec.expect_err("does not parse");
        assert!(error.contains("nonsense"), "{error}");
    }
}
