//! Why a stream or a connection ended early.

use std::{fmt, io};

#[cfg(doc)]
use super::limits::Limits;
#[cfg(doc)]
use crate::limits::HEADERS_MAX;

/// An error code (RFC 9113 7).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Reason(pub(super) u32);

/// Why a stream ended early.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
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
    /// A graceful shutdown, or the rest of a request that is not needed.
    pub const NO_ERROR: Self = Self(0);
    pub(super) const PROTOCOL_ERROR: Self = Self(1);
    /// This side failed.
    pub const INTERNAL_ERROR: Self = Self(2);
    pub(super) const FLOW_CONTROL_ERROR: Self = Self(3);
    pub(super) const STREAM_CLOSED: Self = Self(5);
    pub(super) const FRAME_SIZE_ERROR: Self = Self(6);
    /// The request was not processed.
    pub const REFUSED_STREAM: Self = Self(7);
    /// The stream is not needed any more.
    pub const CANCEL: Self = Self(8);
    pub(super) const COMPRESSION_ERROR: Self = Self(9);
    /// The connection that a CONNECT made was reset or closed abnormally.
    pub const CONNECT_ERROR: Self = Self(10);
    pub(super) const ENHANCE_YOUR_CALM: Self = Self(11);
    /// The peer may not have this stream. gRPC clients see PERMISSION_DENIED.
    pub const INADEQUATE_SECURITY: Self = Self(12);
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
    /// The error code that a proxy passes on to its other side. None where this side rejected what the peer sent, or
    /// no code was sent.
    pub fn reason(&self) -> Option<Reason> {
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
