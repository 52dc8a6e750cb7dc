//! The configuration language of the Weft proxy: the documents that the operator writes and the proxy reads.
//!
//! The proxy owns this vocabulary. It has no MeshRoutes, Kubernetes clusters or sockets: everything here is plain
//! data.
//!
//! ```text
//! ConfigMap weft-config/x.<ns>     Header + Export    services of <ns>: addresses, routes, endpoints
//! ConfigMap weft-inbound/i.<ns>    Header + Inbound   policies for the pods of <ns>; routes of <ns> for other namespaces
//! ConfigMap weft-config/p.<prefix> Header + Pods      identities of the pods whose addresses have a prefix
//! ConfigMap weft-config/index      Header + Index     ClusterIP -> namespace, and prefixes, for what is not opened yet
//! ```
//!
//! Each document is stored in an [`Envelope`]: a readable header and the body. The body's hash is in the header, so
//! that a document that was edited by hand or truncated is detected. Bodies reject unknown fields, because ignoring a
//! match condition would widen the match.

use serde::Deserialize as _;

pub mod bootstrap;
mod callers;
mod envelope;
mod export;
mod filters;
mod inbound;
mod index;
mod pods;
mod refs;
mod route;

pub use callers::{PlaintextCaller, PlaintextCallers};
pub use envelope::{
    BODY_BYTES_MAX, DecodeError, Encoding, Envelope, FORMAT_VERSION, Header, OBJECT_BYTES_MAX, Written,
};
pub use export::{
    Balancer, ClusterSettings, Endpoint, Export, HashOn, HealthCheck, HealthCheckKind, Limits, Locality, Outliers,
    Protocol, RetryBudget, Service, ServicePort, SlowStart, Sticky, SuccessRate,
};
pub use filters::*;
pub use inbound::{
    Action as PolicyAction, AuthorizationRule, ConsumerRoutes, Inbound, Mtls, MtlsMode, MtlsPolicy, MtlsPort, Policy,
    PortRef, Source, Target,
};
pub use index::Index;
pub use pods::{PodIdentity, Pods, Prefix, PrefixError};
pub use refs::{ClusterRef, ObjectRef, RouteKind, RouteRef};
pub use route::{
    Action, Backend, BackendFilters, BackendTarget, HeaderEdit, HeaderValue, Hedge, Match, PathMatch, PathRewrite,
    Redirect, Respond, Retry, Rewrite, RouteTable, Rule, ServerName, StreamRule, ValueMatch, ValueTest,
};

/// Skips a field with the default value, so that a field is written only when it is used. An older proxy can then
/// read a newer operator's documents as long as new features are not used.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Deserializes a list without spare capacity. Most lists have one item, and a growing vector starts with capacity
/// for four: for ten thousand Services that wasted 30 MB.
pub(crate) fn compact_vec<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: serde::Deserialize<'de>,
{
    let mut list = Vec::deserialize(deserializer)?;
    list.shrink_to_fit();
    Ok(list)
}
