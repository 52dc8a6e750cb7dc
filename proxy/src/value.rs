//! Single values of documents in the form that requests use, and why a document cannot be compiled. Same job as the
//! module of this name in the operator: one value in, one value or error out.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};
use weft_config::{self as wire, Prefix};

/// Why a document that parses cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CompileError {
    /// A regular expression is invalid.
    #[error("invalid regular expression {pattern:?}: {source}")]
    Regex {
        pattern: String,
        #[source]
        source: Box<regex::Error>,
    },
    /// A header name or value is invalid.
    #[error("invalid header name or value {0:?}")]
    Header(String),
    /// A method is invalid.
    #[error("invalid method {0:?}")]
    Method(String),
    /// A status is invalid.
    #[error("invalid status {0}")]
    Status(u16),
    /// A filter has an invalid value.
    #[error("invalid filter: {0}")]
    Filter(String),
    /// A match refers to a rule that does not exist.
    #[error("a match refers to rule {0}, which does not exist")]
    Rule(usize),
    /// An address in a document of pods is that of another prefix.
    #[error("{address} is not in {prefix}")]
    Address { address: IpAddr, prefix: Prefix },
    /// The service account of an endpoint, a pod or a caller is not a name of one.
    #[error("invalid service account: {0}")]
    Account(#[source] weft_identity::id::Error),
    /// A block of addresses is invalid.
    #[error("invalid block of addresses {0:?}")]
    IpBlock(String),
    /// The weights of a rule's backends sum to 0.
    #[error("rule {0} has no backend with a weight above 0")]
    Weights(String),
}

/// The object and the rule in it that decided, as in `weft-source`: `Kind/namespace/name/rule`.
#[derive(Debug)]
pub(crate) struct RuleName {
    pub(crate) text: String,
    pub(crate) header: HeaderValue,
}

/// A port of a Service and, if any, a subset of its pods.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) namespace: Arc<str>,
    pub(crate) service: (Arc<str>, u16),
    pub(crate) subset: Option<String>,
}

// === impl RuleName ===

impl RuleName {
    pub(crate) fn new(kind: &str, namespace: &str, name: &str, rule: &str) -> Self {
        let text = format!("{kind}/{namespace}/{name}/{rule}");
        // Kubernetes object names are DNS names, which are valid in a header.
        let header = HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("unknown"));
        Self { text, header }
    }
}

// === impl Target ===

impl Target {
    pub(crate) fn compile(cluster: wire::ClusterRef) -> Self {
        let wire::ClusterRef { namespace, service, port, subset } = cluster;
        Self { namespace: namespace.into(), service: (service.into(), port), subset }
    }
}

impl fmt::Display for Target {
    /// `namespace/service:port`, the name of the cluster.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (service, port) = &self.service;
        write!(f, "{}/{service}:{port}", self.namespace)
    }
}

pub(crate) fn parse_name(name: &str) -> Result<HeaderName, CompileError> {
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| CompileError::Header(name.to_owned()))
}

/// Trims spaces and tabs: HTTP/1.1 ignores them around a value, and HTTP/2 refuses a message with them.
pub(crate) fn parse_value(value: &str) -> Result<HeaderValue, CompileError> {
    HeaderValue::from_str(value.trim_matches([' ', '\t'])).map_err(|_| CompileError::Header(value.to_owned()))
}

pub(crate) fn parse_method(name: &str) -> Result<Method, CompileError> {
    Method::from_bytes(name.as_bytes()).map_err(|_| CompileError::Method(name.to_owned()))
}

pub(crate) fn parse_status(status: u16) -> Result<StatusCode, CompileError> {
    StatusCode::from_u16(status).map_err(|_| CompileError::Status(status))
}
