//! Why a request gets no connection, or no response on it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Why a request gets no connection. Cloned for all requests that waited for the same one.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum LeaseError {
    /// Connecting failed.
    #[error("{0}")]
    Connect(#[source] Arc<io::Error>),
    /// The connect timeout passed.
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    /// The limit of pending requests is reached.
    #[error("too many requests wait for a connection")]
    Overflow,
}

/// Why a request gets no response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// No part of the request was sent.
    #[error("{0}")]
    Unsent(String),
    /// A GOAWAY without an error says that the server did not process the request.
    #[error("the server closed the connection before it accepted the request")]
    GoAway,
    /// A REFUSED_STREAM, or a GOAWAY with an error, says that the server did not process the request.
    #[error("the server refused the stream")]
    Refused,
    /// The response is malformed.
    #[error("{0}")]
    Protocol(String),
    /// The head of the response is too large.
    #[error("{0}")]
    TooLarge(String),
    /// The connection or stream ended after a part of the request may have been sent.
    #[error("{0}")]
    Reset(String),
}

impl From<io::Error> for LeaseError {
    fn from(error: io::Error) -> Self {
        Self::Connect(Arc::new(error))
    }
}
