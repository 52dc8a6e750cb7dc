//! Filters of HTTP rules: changes to requests and responses, limits, or a response without a backend. A filter has a file
//! of its own, unless it is one number.

mod cors;
mod direct_response;
mod fault;
mod fraction;
mod headers;
mod mirror;
mod rate_limit;
mod redirect;
mod rewrite;

pub use cors::Cors;
pub use direct_response::DirectResponse;
pub use fault::{Fault, FaultAbort, FaultDelay};
pub use fraction::Fraction;
pub use headers::{Header, HeaderModifier};
use kube::KubeSchema;
pub use mirror::{MirrorRef, RequestMirror};
pub use rate_limit::{RateLimit, RateLimitKey, RateLimitKeyType};
pub use redirect::{RequestRedirect, Scheme};
pub use rewrite::{PathModifier, PathModifierType, UrlRewrite};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Maximum number of filters in a rule: each type once, RequestMirror four times.
pub(super) const FILTERS_MAX: u32 = 12;

/// CEL: a filter of a rule answers requests without a backend.
pub(super) const ANSWERS_BY_ITSELF: &str =
    "self.filters.exists(f, f.type == 'RequestRedirect' || f.type == 'DirectResponse')";

/// CEL: types of filters that a rule has at most once.
pub(super) const TYPES_ALLOWED_ONCE: &str = "\
    ['RequestHeaderModifier', 'ResponseHeaderModifier', 'RequestRedirect', 'URLRewrite', 'DirectResponse', 'CORS', \
    'RateLimit', 'Fault', 'ResponseBodyLimit']";

/// CEL: types of filters that need a backend, and why they are refused without one. The same types as in
/// [`FilterType::needs_backend`].
pub(super) const TYPES_FOR_BACKENDS: &str = "['URLRewrite', 'RequestMirror', 'ResponseBodyLimit']";
pub(super) const TYPES_FOR_BACKENDS_MESSAGE: &str = "\
    URLRewrite, RequestMirror and ResponseBodyLimit have no effect with RequestRedirect or DirectResponse: no backend \
    gets the request";

/// CEL: types of filters that apply to CONNECT.
pub(super) const TYPES_FOR_CONNECT: &str = "['ResponseHeaderModifier', 'RateLimit', 'Fault']";

/// CEL: exactly the field that the type names.
const FILTER_HAS_FIELD_OF_TYPE: &str = "\
    has(self.requestHeaderModifier) == (self.type == 'RequestHeaderModifier') && \
    has(self.responseHeaderModifier) == (self.type == 'ResponseHeaderModifier') && \
    has(self.requestRedirect) == (self.type == 'RequestRedirect') && \
    has(self.urlRewrite) == (self.type == 'URLRewrite') && \
    has(self.directResponse) == (self.type == 'DirectResponse') && \
    has(self.cors) == (self.type == 'CORS') && \
    has(self.fault) == (self.type == 'Fault') && \
    has(self.requestMirror) == (self.type == 'RequestMirror') && \
    has(self.rateLimit) == (self.type == 'RateLimit') && \
    has(self.responseBodyLimit) == (self.type == 'ResponseBodyLimit')";

/// A change to requests or responses, or a response without a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(FILTER_HAS_FIELD_OF_TYPE)
        .message("a filter has exactly the field that its type names")
)]
pub struct HttpFilter {
    /// Type of the filter; the field of the same name configures it. RequestHeaderModifier and ResponseHeaderModifier
    /// change headers. URLRewrite changes host and path of the request that is sent. RequestRedirect and
    /// DirectResponse answer without a backend. CORS answers preflight requests and says which origins may call.
    /// RateLimit answers 429 above a request rate. Fault delays or aborts requests (fault injection). RequestMirror
    /// sends a copy of requests to another backend. ResponseBodyLimit ends responses of backends that are too large.
    #[serde(rename = "type")]
    pub kind: FilterType,
    /// For type RequestHeaderModifier: changes to the headers of requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_header_modifier: Option<HeaderModifier>,
    /// For type ResponseHeaderModifier: changes to the headers of responses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_header_modifier: Option<HeaderModifier>,
    /// For type RequestRedirect: the redirect that is returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_redirect: Option<RequestRedirect>,
    /// For type URLRewrite: the new host and path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_rewrite: Option<UrlRewrite>,
    /// For type DirectResponse: the response that is returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct_response: Option<DirectResponse>,
    /// For type CORS: the origins that may call, and how.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
    /// For type Fault: delays and aborts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// For type RequestMirror: the backend that gets copies of requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_mirror: Option<RequestMirror>,
    /// For type RateLimit: the maximum request rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// For type ResponseBodyLimit: the maximum size of response bodies. Default: no limit. A larger response is answered
    /// 502 if its `content-length` says so, else cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_body_limit: Option<ResponseBodyLimit>,
}

/// Maximum size of the response bodies that a backend sends. A response whose `content-length` is larger is answered
/// 502 with `weft-reason: response-too-large` in its place. A response without `content-length` is cut once it exceeds
/// the limit: an HTTP/1.1 connection is closed without the last chunk, an HTTP/2 stream is reset, so that no client
/// takes it for complete. Without this filter there is no limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResponseBodyLimit {
    /// Maximum size of the body in bytes, as sent. For a compressed body this is the compressed size. Example: 1048576 (1 MiB).
    #[schemars(range(min = 1, max = 1_099_511_627_776_u64))]
    pub max_bytes: u64,
}

/// Types of filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FilterType {
    /// Changes the request's headers.
    RequestHeaderModifier,
    /// Changes the response's headers.
    ResponseHeaderModifier,
    /// Answers with a redirect.
    RequestRedirect,
    /// Changes host and path of the request that is sent.
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
    /// Answers with a fixed response.
    DirectResponse,
    /// Answers preflight requests and adds CORS headers.
    #[serde(rename = "CORS")]
    Cors,
    /// Delays or aborts requests.
    Fault,
    /// Sends copies of requests to another backend.
    RequestMirror,
    /// Answers 429 above a request rate.
    RateLimit,
    /// Ends responses of backends that are too large.
    ResponseBodyLimit,
}

impl FilterType {
    /// Whether the filter has an effect only if a backend gets the request.
    pub fn needs_backend(self) -> bool {
        matches!(self, Self::UrlRewrite | Self::RequestMirror | Self::ResponseBodyLimit)
    }

    /// Whether a single backend of a rule may have the filter, as in the Gateway API.
    pub fn fits_backend(self) -> bool {
        !matches!(self, Self::DirectResponse | Self::Fault | Self::RateLimit | Self::ResponseBodyLimit)
    }
}
