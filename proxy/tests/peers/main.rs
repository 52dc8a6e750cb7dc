//! Interoperability: the real proxy process between clients and servers of other projects, inbound and outbound, in
//! the network namespaces of `proxy/tests/corpus`.
//!
//! | module | tests |
//! |---|---|
//! | `matrix` | every client with every server of Node, Go, Java, nginx and curl: early responses, large bodies, trailers, interim responses, half-closed connections, aborts at every point of a message |
//! | `grpc` | grpc-go's interoperability tests, and a silent stream |
//! | `oracles` | h11 and hyper-h2 parse every message that the proxy forwards |
//! | `programs` | starts these programs and sends them commands |
//!
//! `setup.sh` in this folder builds the programs from the sources beside it, `e2e/packages.sh` installs what they
//! need, and a test fails where that is missing. `proxy/codec/src/hpack/stories.rs` tests against other HPACK codecs.

mod grpc;
mod matrix;
mod oracles;

#[path = "../corpus/place.rs"]
#[allow(dead_code, reason = "the corpus uses the rest")]
mod place;
mod programs;
