//! Upstreams: clusters, their endpoints, the connections to those, and the limits on all of them.
//!
//! ```text
//! ClusterState ── pick ──> Endpoint ── lease ──> Lease { a connection, for one request }
//!      └── SharedCluster (one for all workers): limits, retry budget, health
//! ```

pub(crate) mod cluster;
pub(crate) mod connect;
pub(crate) mod endpoint;
pub(crate) mod error;
pub(crate) mod fallback;
mod fallback_state;
pub(crate) mod health;
pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod pod;
pub(crate) mod shared_cluster;

use std::time::Duration;

/// How long a server may take to send a response's head, from its first byte. Source: the timeout for clients
/// (`bootstrap`).
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
