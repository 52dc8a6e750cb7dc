//! The input language of the Weft proxy.
//!
//! The proxy owns this vocabulary; the operator writes it and tools read it. It knows nothing of MeshRoutes, of clusters
//! (the Kubernetes kind) or of sockets: everything here is plain data.
//!
//! ```text
//! ConfigMap weft-config/x.<ns>     Header + Export    services of <ns>: addresses, routes, endpoints
//! ConfigMap weft-inbound/i.<ns>    Header + Inbound   who may call the pods of <ns>; routes of <ns> for services elsewhere
//! ConfigMap weft-config/index      Header + Index     ClusterIP -> namespace, for services not opened yet
//! ```
//!
//! Each document travels in an [`Envelope`]: a readable header beside the body. The body's hash stands in the header, so
//! a document edited by hand or cut short is told apart from one that was written on purpose. Bodies reject unknown
//! fields, because a match condition that is ignored is a wider match.

use serde::Deserialize as _;

pub mod bootstrap;
mod envelope;
mod export;
mod inbound;
mod index;
mod route;

pub use envelope::{
    BODY_BYTES_MAX, DecodeError, Encoding, Envelope, FORMAT_VERSION, Header, OBJECT_BYTES_MAX, Written,
};
pub use export::{
    Balancer, ClusterSettings, Endpoint, Export, HashOn, HealthCheck, HealthCheckKind, Limits, Locality, Outliers,
    Protocol, RetryBudget, Service, ServicePort, SlowStart, Sticky, SuccessRate,
};
pub use inbound::{Action as PolicyAction, AuthorizationRule, ConsumerRoutes, Inbound, Policy, PortRef, Target};
pub use index::Index;
pub use route::{
    Action, Backend, BackendTarget, ClusterRef, Cors, Fault, FaultAbort, FaultDelay, Fraction, HeaderEdit, HeaderValue,
    Hedge, Match, Mirror, ObjectRef, Origin, PathMatch, PathRewrite, RateLimit, RateLimitKey, Redirect, Respond, Retry,
    Rewrite, RouteTable, Rule, ServerName, StreamRule, ValueMatch, ValueTest,
};

/// Skips a field that holds its default, so that a field appears on the wire only when somebody uses it. That keeps
/// an older proxy reading a newer operator's documents as long as the new feature is not in use.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Reads a list into no more memory than it takes. Most lists have one item, and a vector that grows begins with room for
/// four: of ten thousand Services that were 30 MB.
pub(crate) fn tight<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: serde::Deserialize<'de>,
{
    let mut list = Vec::deserialize(deserializer)?;
    list.shrink_to_fit();
    Ok(list)
}
