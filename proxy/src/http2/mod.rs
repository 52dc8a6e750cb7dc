//! HTTP/2 (RFC 9113), for both sides of a connection.
//!
//! - [`connection`]: reading and writing.
//! - [`state`]: all that both ends of a connection have said, what each frame means, and what becomes of streams.
//! - [`half`]: the two directions of one stream, as whoever answers or asks holds them.
//! - [`stream`]: what is known of one stream.
//! - [`head`]: fields of a header block into the head of a message, and back.
//! - [`frame`]: what a frame looks like.
//! - [`flow`]: how much may be sent.
//! - [`output`]: what is to be written.
//!
//! A connection is one task, which reads and writes. Those that answer or ask hold halves of streams, on the same thread: what
//! they send is put into bytes at once and written when the connection's task runs next, with all that others sent meanwhile.

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
use crate::http::head::HEADERS_MAX;

/// What a connection of ours allows its peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Streams at once that the peer opens.
    pub(crate) streams: u32,
    /// Bytes that come in one stream before they are taken. Not less than 65,535: so much comes before the peer has heard of it.
    pub(crate) stream_window: u32,
    /// The same for all streams together.
    pub(crate) connection_window: u32,
    /// Bytes of a head, decoded, as RFC 9113 6.5.2 counts them.
    pub(crate) head_bytes: u32,
}

/// The head of a request is larger than [`Limits::head_bytes`]. The stream is there to say so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TooLarge;

/// Why a stream or a connection was ended (RFC 9113 7).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Reason(pub(crate) u32);

/// Why a stream is over before its end.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Error {
    /// One side reset it.
    #[error("the stream was reset: {0}")]
    Reset(Reason),
    /// It was reset from here, because what the peer sent in it breaks the rules.
    #[error("what came in the stream is not HTTP/2: {0}")]
    Malformed(Reason),
    /// It was reset from here, because its head or its trailers are larger than [`Limits::head_bytes`], or have more fields
    /// than [`HEADERS_MAX`].
    #[error("its head or its trailers are larger than 64 KiB, or have more than 100 fields")]
    TooLarge,
    /// Nothing of the request was sent.
    #[error("{0}")]
    Unsent(&'static str),
    /// The peer leaves, and says that it did not look at this stream.
    #[error("the peer has left: {0}")]
    Left(Reason),
    /// The connection was ended for what the peer did.
    #[error("the connection broke the rules: {0}")]
    Broken(Reason),
    /// The connection is gone.
    #[error("the connection was closed: {0}")]
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
    /// The reason that a peer gave. What was refused here is nothing that the other side of the proxy has to answer for.
    pub(crate) fn reason(&self) -> Option<Reason> {
        match self {
            Self::Reset(reason) | Self::Left(reason) | Self::Broken(reason) => Some(*reason),
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
