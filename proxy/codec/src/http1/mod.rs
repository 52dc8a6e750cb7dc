//! HTTP/1.1 messages on both sides of a connection (RFC 9112).
//!
//! - [`parse`]: the head of a request or a response, and the framing of its body.
//! - [`framing`]: what headers say about the body's end and the connection's.
//! - [`decode`]: finds the end of a body.
//! - [`encode`]: writes a head and its body.
//! - [`wire`]: a connection that messages are read from and written to.
//!
//! All of it runs in the task that handles the message. An idle connection holds no buffer: reads go through a buffer
//! that all connections of a thread share.

pub mod decode;
pub mod encode;
pub mod framing;
pub mod parse;
pub mod wire;
