//! HTTP: client connections, their requests, and forwarding of each request to an endpoint.
//!
//! - [`serve`]: the server side of a connection, HTTP/1.1 or HTTP/2, with draining.
//! - [`watch`]: timeouts of that connection: idle, request head, stalled client, lingering close.
//! - [`head`]: validation of heads: one authority, one framing, no hop-by-hop headers forwarded.
//! - [`forward`]: the way of a request to a response: its attempts, and what the client gets of the last one.
//! - [`attempt`]: one attempt.
//! - [`retry`]: which attempts are retried, and which requests are hedged.
//! - [`guard`]: what a request holds until it ends, and its record.
//! - [`hedge`]: concurrent attempts, for rules with `hedge`.
//! - [`requests`]: the requests of an HTTP/1.1 connection, one after the other.
//! - [`streams`]: the requests of an HTTP/2 connection, concurrently.
//! - [`from_client`]: the body of an HTTP/1.1 request.
//! - [`incoming`] and [`pipe`]: bodies as received, and as sent on an HTTP/2 stream.
//! - [`upload`]: the rest of a request body when the response arrives first.
//! - [`interim`]: interim responses (1xx).
//! - [`respond`]: the end of each request's way: the only place where the proxy generates responses.
//! - [`request_body`]: request bodies that can be replayed.
//! - [`response_body`]: response bodies that record their end.
//! - [`drain`]: the rest of a response that no client gets.
//! - [`kept`]: the replay buffer of a request body.
//! - [`mirror`]: copies of requests, for rules with mirrors.
//! - [`pace`]: the minimum rate of a request body.
//! - [`upgrade`]: upgraded connections (101), relayed as TCP.
//! - [`tunnel`]: CONNECT tunnels, relayed as TCP.

pub(crate) mod attempt;
mod date;
mod drain;
pub(crate) mod forward;
mod from_client;
pub(crate) mod guard;
pub(crate) mod head;
pub(crate) mod hedge;
pub(crate) mod incoming;
pub(crate) mod interim;
mod kept;
pub(crate) mod mirror;
mod pace;
pub(crate) mod pipe;
pub(crate) mod request_body;
pub(crate) mod requests;
pub(crate) mod respond;
pub(crate) mod response_body;
mod retry;
pub(crate) mod serve;
mod streams;
pub(crate) mod tunnel;
pub(crate) mod upgrade;
pub(crate) mod upload;
pub(crate) mod watch;

use weft_codec::http2::Limits;
use weft_codec::{HEAD_BYTES_MAX, HEADERS_MAX};

/// HTTP/2 flow-control windows on both sides, in bytes: the maximum buffered for one stream and for one connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// The window of a connection that multiplexes HTTP/1.1: that of all streams which a client's proxy opens on one. They
/// are of several clients, and one that stops reading must not block the others.
const MULTIPLEXED_WINDOW: u32 = 100 * STREAM_WINDOW;

/// What HTTP/2 adds to the size of a header. A head of HTTP/1.1 may have its maximum size without it.
const HEADER_OVERHEAD: usize = 32;

/// The limits of an HTTP/2 connection. `streams`: how many the peer may open.
pub(crate) fn limits(streams: u32, multiplexes_http1: bool) -> Limits {
    let (connection_window, head_bytes) = if multiplexes_http1 {
        (MULTIPLEXED_WINDOW, HEAD_BYTES_MAX + HEADERS_MAX * HEADER_OVERHEAD)
    } else {
        (CONNECTION_WINDOW, HEAD_BYTES_MAX)
    };
    Limits { streams, stream_window: STREAM_WINDOW, connection_window, head_bytes: head_bytes as u32 }
}
