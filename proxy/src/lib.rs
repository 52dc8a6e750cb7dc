//! The data plane of Weft: carries the traffic of one pod.
//!
//! Life of a connection:
//!
//! ```text
//! listener   accept, with a limit
//! downstream who it is and, by `orig_dst`, where the client meant to go
//! tls        the handshake, where there is a certificate; what comes out of it is a `stream` like any other
//! detect     HTTP/1.1, HTTP/2 or bytes, from what the client says first (nobody waits: see `sniff`)
//! outbound   dst -> Service port -> decide -> filter -> backend -> balance -> endpoint    inbound   policy -> the application
//! http       one request: forward, retry, time out, answer          tcp   bytes both ways
//! telemetry  one access event
//! ```
//!
//! Configuration arrives on the side: `table::source` (a watch, or a directory) gives documents, `table` compiles them,
//! `table::store` swaps the snapshot that the next request sees. Each worker is one thread with its own runtime, its own
//! listener sockets and its own connection pools; workers share the snapshot, the limits' counters and nothing else.
//!
//! The proxy has never heard of a MeshRoute: it knows the documents of `weft_config` and quotes the names in them.

pub mod app;
mod balance;
pub mod bootstrap;
mod clock;
mod decide;
mod detect;
mod downstream;
mod filter;
mod hpack;
mod http;
mod http1;
mod http2;
mod inbound;
mod listener;
mod memory;
mod multiplexed;
mod orig_dst;
mod outbound;
mod path;
mod policy;
mod probe;
mod sni;
mod sniff;
mod read_buffer;
mod stream;
mod table;
mod tcp;
mod telemetry;
pub mod tls;
mod upstream;
mod worker;
