//! RequestHeaderModifier and ResponseHeaderModifier.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// CEL: headers that frame or route the message.
const FRAMING_HEADERS: &str = "\
    ['host', 'content-length', 'transfer-encoding', 'connection', 'keep-alive', 'proxy-connection', 'te', 'trailer', \
    'upgrade']";

/// Changes to headers. `remove` is applied first, then `set`, then `add`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(format!("!has(self.remove) || self.remove.all(n, !(n.lowerAscii() in {FRAMING_HEADERS}))"))
        .message("headers that frame or route the message cannot be removed")
)]
pub struct HeaderModifier {
    /// Headers to set: replaces all values of the header, or adds it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub set: Vec<Header>,
    /// Headers to add: the header keeps the values that it has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub add: Vec<Header>,
    /// Names of headers to remove.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(length(min = 1, max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+\\-.^_\\x60|~]+$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub remove: Vec<String>,
}

/// A header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// Name of the header, case-insensitive. Headers that frame or route a message (Host, Content-Length,
    /// Transfer-Encoding, Connection, ...) cannot be changed; to change the host use URLRewrite.
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+\\-.^_\\x60|~]+$"))]
    #[x_kube(validation = Rule::new(format!("!(self.lowerAscii() in {FRAMING_HEADERS})"))
        .message("this header frames or routes the message and cannot be changed; to change the host use URLRewrite"))]
    pub name: String,
    /// Value of the header.
    #[schemars(length(min = 1, max = 4096), regex(pattern = "^[\\x20-\\x7e\\t]+$"))]
    pub value: String,
}
