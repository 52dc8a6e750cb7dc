//! Backends of HTTP rules, with filters of their own.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::filters::{HeaderModifier, RequestMirror, RequestRedirect, UrlRewrite};
use super::{BackendRef, MATCHES_CONNECT};

/// Maximum number of filters of a backendRef: each type once, without RequestRedirect.
const FILTERS_MAX: u32 = 4;

/// CEL: exactly the field that the type names.
const FILTER_HAS_FIELD_OF_TYPE: &str = "\
    has(self.requestHeaderModifier) == (self.type == 'RequestHeaderModifier') && \
    has(self.responseHeaderModifier) == (self.type == 'ResponseHeaderModifier') && \
    has(self.requestRedirect) == (self.type == 'RequestRedirect') && \
    has(self.urlRewrite) == (self.type == 'URLRewrite') && \
    has(self.requestMirror) == (self.type == 'RequestMirror')";

/// CEL: of filters beside a redirect, all have an effect.
const REDIRECT_IS_ALONE: &str = "\
    !self.exists(f, f.type == 'RequestRedirect') || \
    self.all(f, f.type == 'RequestRedirect' || f.type == 'ResponseHeaderModifier')";

/// CEL: where a filter of a backend replaces the matched prefix, every match of the rule has one.
pub(super) const PREFIX_OF_BACKENDS_IS_MATCHED: &str = "\
    !has(self.backendRefs) || !self.backendRefs.exists(b, has(b.filters) && b.filters.exists(f, \
    (has(f.urlRewrite) && has(f.urlRewrite.path) && f.urlRewrite.path.type == 'ReplacePrefixMatch') || \
    (has(f.requestRedirect) && has(f.requestRedirect.path) && \
    f.requestRedirect.path.type == 'ReplacePrefixMatch'))) || \
    (has(self.matches) && size(self.matches) > 0 && \
    self.matches.all(m, has(m.path) && (!has(m.path.type) || m.path.type == 'PathPrefix')))";

/// CEL: filters of backends apply to CONNECT.
pub(super) fn backends_fit_connect() -> String {
    format!(
        "!has(self.matches) || !{MATCHES_CONNECT} || !has(self.backendRefs) || \
         self.backendRefs.all(b, !has(b.filters) || b.filters.all(f, f.type == 'ResponseHeaderModifier'))"
    )
}

/// A Service, or a subset of its pods, that gets a share of a rule's requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpBackendRef {
    /// The Service, the subset and the weight.
    #[serde(flatten)]
    pub backend: BackendRef,
    /// Changes to the requests that this backend gets and to its responses, or a redirect of its share. They are
    /// applied after the backend was picked: to requests after the filters of the rule, to responses before them. A
    /// URLRewrite replaces what that of the rule says. Retries and hedges keep the backend, and with it its filters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = FILTERS_MAX))]
    #[x_kube(
        validation = Rule::new("self.all(f, self.exists_one(g, g.type == f.type))")
            .message("a filter type may appear once in a backendRef"),
        validation = Rule::new(REDIRECT_IS_ALONE)
            .message("RequestHeaderModifier, URLRewrite and RequestMirror have no effect with RequestRedirect: the \
                      backend gets no request")
    )]
    pub filters: Vec<BackendFilter>,
}

/// A change to the requests or responses of one backend, or a redirect of its share of the requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(FILTER_HAS_FIELD_OF_TYPE)
        .message("a filter has exactly the field that its type names")
)]
pub struct BackendFilter {
    /// Type of the filter; the field of the same name configures it. RequestHeaderModifier and ResponseHeaderModifier
    /// change headers. URLRewrite changes host and path of the request that is sent. RequestRedirect answers the
    /// backend's share of the requests with a redirect. RequestMirror sends a copy of them to another backend. Other
    /// types of filters apply to a whole rule: write them in its `filters`.
    #[serde(rename = "type")]
    pub kind: BackendFilterType,
    /// For type RequestHeaderModifier: changes to the headers of requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_header_modifier: Option<HeaderModifier>,
    /// For type ResponseHeaderModifier: changes to the headers of responses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_header_modifier: Option<HeaderModifier>,
    /// For type RequestRedirect: the redirect that is returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_redirect: Option<RequestRedirect>,
    /// For type URLRewrite: the new host and path. What it leaves out is as the filters of the rule say.
    /// ReplacePrefixMatch replaces the prefix that the rule matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_rewrite: Option<UrlRewrite>,
    /// For type RequestMirror: the other backend that gets copies of requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_mirror: Option<RequestMirror>,
}

/// Types of filters of a backendRef.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BackendFilterType {
    /// Changes the request's headers.
    RequestHeaderModifier,
    /// Changes the response's headers.
    ResponseHeaderModifier,
    /// Answers with a redirect.
    RequestRedirect,
    /// Changes host and path of the request that is sent.
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
    /// Sends copies of requests to another backend.
    RequestMirror,
}
