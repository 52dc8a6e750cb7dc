//! The wire formats that the proxy reads and writes: bytes in, messages out, and back.
//!
//! - [`detect`]: HTTP/1.1, HTTP/2 or neither, from the first bytes of a connection.
//! - [`sni`]: the server name that a TLS client asks for, from its ClientHello.
//! - [`http1`]: HTTP/1.1 messages and connections (RFC 9112).
//! - [`http2`]: HTTP/2 connections (RFC 9113), with [`hpack`] for their header blocks (RFC 7541).
//! - [`read_buffer`]: the buffer that all connections of a thread read to.
//!
//! The crate rejects what is malformed, and bounds what a peer can make it hold. It opens no sockets, spawns no tasks,
//! and knows no table, worker, metric or rule. Which connection is accepted, where a request goes, what of a message is
//! forwarded and how long a peer may take is up to the caller, whose task polls the connection.

#![warn(missing_docs)]

mod body;
pub mod detect;
pub mod hpack;
pub mod http1;
pub mod http2;
mod limits;
pub mod read_buffer;
pub mod sni;
mod tick;
mod token;

pub use body::BodyError;
pub use limits::{HEAD_BYTES_MAX, HEADERS_MAX, INTERIM_MAX};
pub use tick::Tick;
pub use token::is_token;
