//! Why no certificate is issued: status, metric and text.

use weft_identity::request;

/// Seconds after which a proxy may try again.
pub const RETRY_AFTER_SECONDS: u64 = 1;

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no bearer token.
    #[error("the request has no token: send Authorization: Bearer TOKEN, with a service account token of the pod")]
    NoToken,
    /// The API server does not accept the token.
    #[error("the token is not accepted: {0}")]
    Token(String),
    /// The token is for another audience.
    #[error("the token is not for the audience {0}: project one for it into the pod")]
    Audience(&'static str),
    /// The token is that of a user or a node.
    #[error("the token is that of {0}, which is no service account")]
    NotAnAccount(String),
    /// The token could be of anyone who may request tokens of the account.
    #[error("the token is not bound to a pod: project it into the pod")]
    NotAPod,
    /// The body is no acceptable request.
    #[error("{0}")]
    Request(request::Error),
    /// The service account asks too often.
    #[error("the service account requests too many certificates")]
    TooMany,
    /// Too much is to be done.
    #[error("the authority is busy")]
    Busy,
    /// The API server cannot be asked.
    #[error("the API server cannot review the token: {0}")]
    Review(String),
    /// There is no issuer, or it cannot sign.
    #[error("there is no issuer: {0}")]
    NoIssuer(String),
}

// === impl Refusal ===

impl Refusal {
    /// The status of the response.
    pub fn status(&self) -> u16 {
        match self {
            Self::Request(request::Error::TooLarge) => 413,
            Self::Request(_) => 400,
            Self::NoToken | Self::Token(_) | Self::Audience(_) => 401,
            Self::NotAnAccount(_) | Self::NotAPod => 403,
            Self::TooMany => 429,
            Self::Busy | Self::Review(_) | Self::NoIssuer(_) => 503,
        }
    }

    /// Value of the metric label `reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoToken => "no-token",
            Self::Token(_) => "token",
            Self::Audience(_) => "audience",
            Self::NotAnAccount(_) => "not-an-account",
            Self::NotAPod => "not-a-pod",
            Self::Request(request::Error::TooLarge) => "too-large",
            Self::Request(_) => "request",
            Self::TooMany => "rate-limit",
            Self::Busy => "busy",
            Self::Review(_) => "review",
            Self::NoIssuer(_) => "no-issuer",
        }
    }

    /// Whether the same request may succeed a little later.
    pub fn is_temporary(&self) -> bool {
        matches!(self.status(), 429 | 503)
    }
}
