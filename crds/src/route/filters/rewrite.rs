//! URLRewrite, and how it and RequestRedirect replace a path.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// CEL: exactly the field that the type names.
const MODIFIER_HAS_FIELD_OF_TYPE: &str = "\
    has(self.replaceFullPath) == (self.type == 'ReplaceFullPath') && \
    has(self.replacePrefixMatch) == (self.type == 'ReplacePrefixMatch')";

/// Changes to host and path of the request that is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.hostname) || has(self.path)")
        .message("URLRewrite needs a hostname or a path")
)]
pub struct UrlRewrite {
    /// The new host. Default: unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub hostname: Option<String>,
    /// The new path; the query is kept. Default: unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathModifier>,
}

/// How a path is replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(MODIFIER_HAS_FIELD_OF_TYPE)
        .message("a path modifier has exactly the field that its type names")
)]
pub struct PathModifier {
    /// ReplaceFullPath replaces the whole path, ReplacePrefixMatch the prefix that the rule matched.
    #[serde(rename = "type")]
    pub kind: PathModifierType,
    /// For type ReplaceFullPath: the new path. Example: `/v2/items`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), regex(pattern = "^/[^?#\\s]*$"))]
    pub replace_full_path: Option<String>,
    /// For type ReplacePrefixMatch: the new prefix. Example: `/v2`; empty removes the prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), regex(pattern = "^(/[^?#\\s]*)?$"))]
    pub replace_prefix_match: Option<String>,
}

/// Types of path modifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PathModifierType {
    /// The whole path.
    ReplaceFullPath,
    /// The prefix that matched.
    ReplacePrefixMatch,
}
