//! The trimmed objects that the World stores, and their conversion from the objects of the API server.
//!
//! The `Raw…` types have only the fields that are used: serde skips the rest, so a Pod of 15 KiB becomes a few
//! hundred bytes and managed fields are never stored.

mod access;
mod account;
mod caller;
mod document;
mod gateway_route;
mod grant;
mod key;
mod mesh_object;
mod metadata;
mod namespace;
mod node;
mod pod;
mod port;
mod service;
mod slice;

pub use access::{Access, AccessKind};
pub use account::Account;
pub use caller::{Answer, Answers, Asked, Caller};
pub use document::{Document, DocumentKind, documents_namespace};
pub use gateway_route::{GatewayRoute, GatewaySpec, OwnStatus, ParentStatus};
pub use grant::Grant;
pub use key::{Key, Kind, ObjectId};
pub use mesh_object::{Cluster, Mesh, MeshObject, Meta, Policy, RawMeshObject, Route};
pub use namespace::{NamespaceMeta, RawNamespace};
pub use node::Node;
pub use pod::{ContainerPort, Owner, Pod, RawPod, Readiness, WithoutProxy};
pub use service::{Distribution, Protocol, RawService, Service, ServicePort, TargetPort};
pub use slice::{RawSlice, Slice, SliceEndpoint, SlicePort};
