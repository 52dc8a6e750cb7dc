//! HTTP/1.1 on the wire, for both sides of the proxy (RFC 9112): heads and bodies, read and written.
//!
//! - [`parse`]: the head of a request or a response out of bytes, and which framing its body has.
//! - [`decode`]: where a body ends.
//! - [`encode`]: heads into bytes, and a body behind them.
//! - [`wire`]: a connection that messages are read from and written to.
//!
//! All of it happens in the task that has the message. A connection on which nothing is under way holds no buffer: what is
//! read goes through one that its worker has for all of them.

pub(crate) mod decode;
pub(crate) mod encode;
pub(crate) mod parse;
pub(crate) mod wire;

/// Bytes of a head.
pub(crate) const HEAD_BYTES_MAX: usize = 64 * 1024;
