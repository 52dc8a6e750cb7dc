//! HTTP/1.1 messages on both sides of the proxy (RFC 9112).
//!
//! - [`parse`]: the head of a request or a response, and the framing of its body.
//! - [`framing`]: what headers say about the body's end and the connection's.
//! - [`decode`]: finds the end of a body.
//! - [`encode`]: writes a head and its body.
//! - [`wire`]: a connection that messages are read from and written to.
//!
//! All of it runs in the task that handles the message. An idle connection holds no buffer: reads go through a buffer
//! that all connections of a worker share.

pub(crate) mod decode;
pub(crate) mod encode;
pub(crate) mod framing;
pub(crate) mod parse;
pub(crate) mod wire;

/// Maximum bytes of a head, as sent in HTTP/1.1 and as decoded in HTTP/2.
pub(crate) const HEAD_BYTES_MAX: usize = 64 * 1024;
