//! The real proxy process between clients and servers of other projects, in both directions, in the network namespaces of
//! `proxy/tests/corpus`.
//!
//! | module | is about |
//! |---|---|
//! | `matrix` | clients and servers of Node, Go, Java, nginx and curl, each with each: early answers, large bodies, trailers, interim responses, half-closed connections, aborts at every point of a message |
//! | `grpc` | grpc-go's interoperability tests, and a stream on which nothing is said |
//! | `oracles` | h11 and hyper-h2 judge every message that the proxy sends on |
//! | `programs` | starts these programs, and tells them what to do |
//!
//! The programs are built by `setup.sh` in this folder, from sources beside it; what they need is installed by
//! `e2e/packages.sh`, and a test fails where it is missing. Other HPACK codecs have their test in `proxy/src/hpack/stories.rs`.

mod grpc;
mod matrix;
mod oracles;

#[path = "../corpus/place.rs"]
#[allow(dead_code, reason = "the corpus uses the rest")]
mod place;
mod programs;
