//! The data plane of Weft: carries the traffic of one pod.
//!
//! Life of a connection:
//!
//! ```text
//! listener   accepts connections, up to a limit
//! downstream the client's address and, by `orig_dst`, the original destination
//! tls        the handshake, with other proxies of the mesh or by a certificate; the result is a `stream` like any other
//! sniff      HTTP/1.1, HTTP/2 or TCP, from the client's first bytes; a silent client waits for its server
//! outbound   dst -> Service port -> decide -> filter -> backend -> balance -> endpoint    inbound   policy -> the application
//! http       one request: forward, retry, time out, respond         tcp   relays bytes both ways
//! telemetry  one access log event
//! ```
//!
//! Configuration: `table::source` (a watch, or a directory) delivers documents, `table` compiles them, and
//! `table::updater` swaps the snapshot for the next request. Each worker is one thread with its own runtime, listener
//! sockets and connection pools; workers share only the snapshot and the counters of limits.
//!
//! Bytes become messages, and messages bytes, in the crate `weft_codec`.
//!
//! The proxy does not know MeshRoutes: it knows the documents of `weft_config` and quotes the names in them.

mod affinity;
pub mod app;
pub mod bootstrap;
mod callers;
mod changes;
mod clock;
mod cookie;
mod decide;
mod direction;
mod downstream;
mod file;
mod filter;
mod http;
pub mod identity;
mod inbound;
mod judge;
mod listener;
mod matcher;
mod memory;
mod mode;
mod multiplexed;
mod orig_dst;
mod outbound;
mod path;
mod policy;
mod probe;
mod query;
mod reason;
mod security;
mod sniff;
mod stream;
mod table;
mod tcp;
mod telemetry;
pub mod tls;
mod upstream;
mod value;
mod worker;
