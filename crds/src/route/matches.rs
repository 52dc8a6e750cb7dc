//! Conditions of rules on requests and TLS connections.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// CEL: a match on CONNECT has no condition on path or query.
const CONNECT_HAS_NO_PATH: &str = "\
    !(has(self.method) && self.method == 'CONNECT') || !(has(self.path) || (has(self.queryParams) && \
    size(self.queryParams) > 0))";

/// CEL: some request can have the path.
const PATH_CAN_MATCH: &str = "\
    (has(self.type) && self.type == 'RegularExpression') || !(self.value.contains('//') || self.value.contains('/./') || \
    self.value.contains('/../') || self.value.endsWith('/.') || self.value.endsWith('/..') || \
    self.value.contains('#') || self.value.contains('?') || self.value.lowerAscii().contains('%2f'))";

/// CEL: a value is given if and only if the type compares with one.
const VALUE_AS_TYPE_SAYS: &str =
    "has(self.type) && (self.type == 'Present' || self.type == 'Absent') ? !has(self.value) : has(self.value)";

/// CEL: a regular expression compiles; evaluation fails if not.
const EXPRESSION_COMPILES: &str = "\
    !has(self.type) || self.type != 'RegularExpression' || !has(self.value) || (''.matches(self.value) ? true : true)";

/// CEL: the same for a path, which always has a value.
const PATH_EXPRESSION_COMPILES: &str =
    "!has(self.type) || self.type != 'RegularExpression' || (''.matches(self.value) ? true : true)";

/// Conditions on a request. A request must meet all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(CONNECT_HAS_NO_PATH)
        .message("CONNECT requests have no path and no query: match them by headers")
)]
pub struct HttpMatch {
    /// Condition on the path, without the query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// Conditions on headers; all must hold. Of several conditions on one header name only the first counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers: Vec<HeaderMatch>,
    /// Conditions on query parameters; all must hold. Of a repeated parameter the first value counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub query_params: Vec<QueryParamMatch>,
    /// The method. CONNECT requests match only rules that name CONNECT; without such a rule they are answered 405.
    /// The tunnel goes to a pod of the rule's backend, whatever host the client named, and its content is not
    /// inspected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
}

/// A condition on the path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.type) && self.type == 'RegularExpression') || self.value.startsWith('/')")
        .message("a path starts with /"),
    validation = Rule::new(PATH_CAN_MATCH)
        .message("a path cannot contain //, /./, /../, #, ? or %2F: no request would match it"),
    validation = Rule::new(PATH_EXPRESSION_COMPILES)
        .message("the regular expression does not compile")
)]
pub struct PathMatch {
    /// How the path is compared. Default: PathPrefix. Exact: the whole path, case-sensitive. PathPrefix: whole
    /// segments from the start: /abc matches /abc, /abc/ and /abc/d but not /abcd. RegularExpression: the whole path,
    /// in RE2 syntax without look-around.
    #[serde(rename = "type", default)]
    pub kind: PathMatchType,
    /// The path, prefix or regular expression. Example: `/api`.
    #[schemars(length(min = 1, max = 1024))]
    pub value: String,
}

/// How the path is compared with the value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PathMatchType {
    /// See [`PathMatch::kind`].
    Exact,
    /// See [`PathMatch::kind`].
    #[default]
    PathPrefix,
    /// See [`PathMatch::kind`].
    RegularExpression,
}

/// A condition on a header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(VALUE_AS_TYPE_SAYS)
        .message("types Exact and RegularExpression require a value; remove value for Present and Absent"),
    validation = Rule::new(EXPRESSION_COMPILES)
        .message("the regular expression does not compile")
)]
pub struct HeaderMatch {
    /// How the header is compared. Default: Exact. Exact: the value, case-sensitive. RegularExpression: the whole
    /// value, in RE2 syntax. Present: the header exists. Absent: it does not exist.
    #[serde(rename = "type", default)]
    pub kind: ValueMatchType,
    /// Name of the header, case-insensitive.
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+\\-.^_\\x60|~]+$"))]
    pub name: String,
    /// The value or regular expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub value: Option<String>,
}

/// A condition on a query parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(VALUE_AS_TYPE_SAYS)
        .message("types Exact and RegularExpression require a value; remove value for Present and Absent"),
    validation = Rule::new(EXPRESSION_COMPILES)
        .message("the regular expression does not compile")
)]
pub struct QueryParamMatch {
    /// How the parameter is compared. Default: Exact. Exact: the value, case-sensitive. RegularExpression: the whole
    /// value, in RE2 syntax. Present: the parameter exists. Absent: it does not exist.
    #[serde(rename = "type", default)]
    pub kind: ValueMatchType,
    /// Name of the parameter, case-sensitive.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// The value or regular expression, percent-decoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub value: Option<String>,
}

/// How a value is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ValueMatchType {
    /// See [`HeaderMatch::kind`].
    #[default]
    Exact,
    /// See [`HeaderMatch::kind`].
    RegularExpression,
    /// See [`HeaderMatch::kind`].
    Present,
    /// See [`HeaderMatch::kind`].
    Absent,
}

/// An HTTP method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the methods of RFC 9110 and RFC 5789")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Connect,
    Options,
    Trace,
    Patch,
}

/// A condition on a TLS connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TlsMatch {
    /// Server names; any of them matches. Examples: `shop.example`, or `*.shop.example` for all names below it at any
    /// depth.
    #[schemars(
        length(min = 1, max = 16),
        inner(length(min = 1, max = 253), regex(pattern = "^(\\*\\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub sni: Vec<String>,
}
