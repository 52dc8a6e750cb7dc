//! HTTP/2 with prior knowledge, and unary gRPC over it.

pub(crate) mod backend;
pub(crate) mod load;

use tokio::runtime::{Builder, Runtime};

/// Flow-control window of a stream.
const STREAM_WINDOW: u32 = 1 << 20;
/// Flow-control window of a connection.
const CONNECTION_WINDOW: u32 = 1 << 24;
/// Concurrent streams on a connection.
const STREAMS: u32 = 1000;

/// An uncompressed gRPC message of 64 bytes, with its prefix.
static GRPC_MESSAGE: [u8; 69] = {
    let mut message = [1; 69];
    [message[0], message[1], message[2], message[3], message[4]] = [0, 0, 0, 0, 64];
    message
};

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}
