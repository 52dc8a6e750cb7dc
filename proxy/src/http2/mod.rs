//! HTTP/2 (RFC 9113), for both sides of a connection.
//!
//! - [`connection`]: reads and writes frames.
//! - [`state`]: the state of a connection: what each frame does, and the streams.
//! - [`half`]: the handles of a stream and of a client connection, for the tasks that use them.
//! - [`stream`]: the state of one stream.
//! - [`head`]: header blocks to message heads, and back.
//! - [`frame`]: the layout of frames.
//! - [`flow`]: flow control windows.
//! - [`output`]: the write buffer.
//!
//! One task reads and writes a connection. Request handlers hold the handles of streams on the same thread: what they
//! send is encoded at once into the write buffer, and the connection's task writes it, with what others have sent,
//! when it next runs.

pub(crate) mod connection;
mod flow;
mod frame;
pub(crate) mod half;
mod head;
mod output;
mod state;
mod stream;

pub(crate) use connection::Connection;
pub(crate) use half::{RecvStream, Requests, SendStream};

use std::fmt;
use std::io;

#[cfg(doc)]
use crate::http1::framing::HEADERS_MAX;

/// Limits on what the peer may send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Concurrent streams that the peer may open (SETTINGS_MAX_CONCURRENT_STREAMS).
    pub(crate) streams: u32,
    /// Initial receive window of a stream, in bytes. At least 65,535: a peer may send that much before it has our
    /// SETTINGS.
    pub(crate) stream_window: u32,
    /// Receive window of the connection, in bytes.
    pub(crate) connection_window: u32,
    /// Decoded size of a head, as RFC 9113 6.5.2 counts it (SETTINGS_MAX_HEADER_LIST_SIZE).
    pub(crate) head_bytes: u32,
}

/// The head of a request exceeds [`Limits::head_bytes`]. Its stream is open, so that a response can be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TooLarge;

/// An error code (RFC 9113 7).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Reason(pub(crate) u32);

/// Why a stream ended early.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Either side reset the stream.
    #[error("stream reset: {0}")]
    Reset(Reason),
    /// This side reset the stream because the peer violated the protocol in it (a stream error, RFC 9113 5.4.2).
    #[error("HTTP/2 stream error: {0}")]
    Malformed(Reason),
    /// This side reset the stream because its headers or trailers exceed [`Limits::head_bytes`] or [`HEADERS_MAX`].
    #[error("headers or trailers larger than 64 KiB or more than 100 fields")]
    TooLarge,
    /// Nothing of the request was sent.
    #[error("{0}")]
    Unsent(&'static str),
    /// The peer sent a GOAWAY that excludes this stream: it was not processed.
    #[error("peer sent GOAWAY: {0}")]
    GoAway(Reason),
    /// The connection was closed because the peer violated the protocol (a connection error, RFC 9113 5.4.1).
    #[error("HTTP/2 connection error: {0}")]
    Protocol(Reason),
    /// The connection was closed.
    #[error("connection closed: {0}")]
    Closed(io::ErrorKind),
}

// === impl Reason ===

impl Reason {
    pub(crate) const NO_ERROR: Self = Self(0);
    pub(crate) const PROTOCOL_ERROR: Self = Self(1);
    pub(crate) const INTERNAL_ERROR: Self = Self(2);
    pub(crate) const FLOW_CONTROL_ERROR: Self = Self(3);
    pub(crate) const STREAM_CLOSED: Self = Self(5);
    pub(crate) const FRAME_SIZE_ERROR: Self = Self(6);
    pub(crate) const REFUSED_STREAM: Self = Self(7);
    pub(crate) const CANCEL: Self = Self(8);
    pub(crate) const COMPRESSION_ERROR: Self = Self(9);
    pub(crate) const CONNECT_ERROR: Self = Self(10);
    pub(crate) const ENHANCE_YOUR_CALM: Self = Self(11);
}

impl fmt::Display for Reason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        match names.get(self.0 as usize) {
            Some(name) => out.write_str(name),
            None => write!(out, "error code {}", self.0),
        }
    }
}

// === impl Error ===

impl Error {
    /// The error code to pass on to the other side of the proxy. None where this side rejected what the peer sent, or
    /// no code was sent.
    pub(crate) fn reason(&self) -> Option<Reason> {
        match self {
            Self::Reset(reason) | Self::GoAway(reason) | Self::Protocol(reason) => Some(*reason),
            Self::Malformed(_) | Self::TooLarge | Self::Unsent(_) | Self::Closed(_) => None,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Closed(kind) => kind.into(),
            error => Self::other(error),
        }
    }
}
