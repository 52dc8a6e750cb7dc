//! CORS.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// CEL: a list with `*` has no other values.
const WILDCARD_IS_ALONE: &str = "!('*' in self && self.size() > 1)";

/// CEL: with credentials, the exposed headers are listed.
const EXPOSES_NO_WILDCARD: &str = "\
    !(has(self.allowCredentials) && self.allowCredentials && has(self.exposeHeaders) && '*' in self.exposeHeaders)";

/// Which origins may call from a browser (CORS). The proxy answers preflight requests itself: 204, or 403 for an
/// origin that is not allowed. It adds the CORS headers to all other responses of the rule and removes those that the
/// backend sent. A preflight request is handled by the rule that matches the request it announces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(EXPOSES_NO_WILDCARD)
        .message("with allowCredentials, browsers do not treat exposeHeaders '*' as a wildcard: list the headers")
)]
pub struct Cors {
    /// Allowed origins: `*`, or a scheme, a host and optionally a port. Example: `https://shop.example`. Default
    /// port: that of the scheme, 80 or 443. `https://*.example` allows every host below, `a.example` and
    /// `a.b.example`; `https://*` every host.
    #[schemars(
        length(min = 1, max = 64),
        inner(length(max = 253), regex(pattern = "^(\\*|https?://(\\*|(\\*\\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?)(:[0-9]{1,5})?)$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    #[x_kube(validation = Rule::new(WILDCARD_IS_ALONE).message("'*' allows every origin: remove the others"))]
    pub allow_origins: Vec<String>,
    /// Whether browsers may send credentials (cookies, HTTP authentication, client certificates). Default: false.
    #[serde(default)]
    pub allow_credentials: bool,
    /// Allowed methods besides GET, HEAD and POST, which are always allowed. `*`: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 9),
        inner(length(max = 7), regex(pattern = "^(\\*|GET|HEAD|POST|PUT|DELETE|CONNECT|OPTIONS|TRACE|PATCH)$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    #[x_kube(validation = Rule::new(WILDCARD_IS_ALONE).message("'*' allows every method: remove the others"))]
    pub allow_methods: Vec<String>,
    /// Allowed request headers, besides those that browsers always allow. `*`: all (without credentials all but
    /// Authorization, which browsers require to be named).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+\\-.^_\\x60|~]+$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    #[x_kube(validation = Rule::new(WILDCARD_IS_ALONE).message("'*' allows every header: remove the others"))]
    pub allow_headers: Vec<String>,
    /// Response headers that pages may read, besides those that browsers always allow. `*`: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+\\-.^_\\x60|~]+$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    #[x_kube(validation = Rule::new(WILDCARD_IS_ALONE).message("'*' allows every header: remove the others"))]
    pub expose_headers: Vec<String>,
    /// How long browsers may cache the answer to a preflight request, in seconds. Default: 5.
    #[serde(default = "Cors::default_max_age")]
    #[schemars(range(min = 1, max = 86_400))]
    pub max_age: u32,
}

impl Cors {
    fn default_max_age() -> u32 {
        5
    }
}
