//! The far side: endpoints and the connections to them, the choice between them, and the limits on all of it.
//!
//! ```text
//! ClusterState ── pick ──> Endpoint ── lease ──> Lease { a connection, for one request }
//!      └── Load (shared by all workers): requests, connections, waiting
//! ```

pub(crate) mod cluster;
pub(crate) mod endpoint;
pub(crate) mod fallback;
pub(crate) mod health;
pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod load;

use std::time::Duration;

/// How long a server may take for a head from its first byte. Source: what clients get (`bootstrap`).
const HEAD: Duration = Duration::from_secs(10);
