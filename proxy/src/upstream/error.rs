//! Why a request gets no connection, or no response on it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use weft_identity::{UnixTime, rfc3339};

use crate::reason::Reason;

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
    /// The TLS handshake with the endpoint's proxy failed.
    #[error("mutual TLS: {0}")]
    Handshake(#[source] Arc<io::Error>),
    /// The endpoint proved to be somebody else.
    #[error("mutual TLS: {0}")]
    WrongIdentity(#[source] Arc<io::Error>),
    /// This pod's mode is Strict, and the endpoint has no identity.
    #[error("the endpoint has no identity, and plaintext is not sent in mode Strict")]
    Plaintext,
    /// The endpoint has an identity, and this proxy has no certificate that it would accept: None yet, or it expired at
    /// this time.
    #[error("{}", no_certificate(*_0))]
    NoCertificate(Option<UnixTime>),
}

/// Why a request gets no response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// No part of the request was sent.
    #[error("{0}")]
    Unsent(String),
    /// The endpoint's proxy refused this proxy's certificate, before it read any of the request.
    #[error("{0}")]
    Refusal(String),
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

impl LeaseError {
    /// The reason of the response or of the end of the connection.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Connect(_) | Self::Timeout(_) => Reason::ConnectFailed,
            Self::Overflow => Reason::Overflow,
            Self::Handshake(_) => Reason::MtlsHandshake,
            Self::WrongIdentity(_) => Reason::WrongIdentity,
            Self::Plaintext => Reason::PlaintextRefused,
            Self::NoCertificate(_) => Reason::NoCertificate,
        }
    }
}

fn no_certificate(expired: Option<UnixTime>) -> String {
    match expired {
        None => "this proxy has no certificate yet".to_owned(),
        Some(at) => format!("the certificate of this proxy expired at {}, and there is no newer one", rfc3339(at)),
    }
}

impl From<io::Error> for LeaseError {
    fn from(error: io::Error) -> Self {
        Self::Connect(Arc::new(error))
    }
}
