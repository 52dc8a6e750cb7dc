//! RequestMirror: traffic shadowing.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::fraction::{Fraction, PERCENT_OR_FRACTION};
use crate::refs::ServiceKind;

/// Sends copies of requests to another backend (traffic shadowing). Responses to copies are discarded; copies never
/// delay or fail the request itself. A copy is the request as it is sent to the rule's own backend, and is sent once
/// its body is complete. Requests with a body of more than 64 KiB, with trailers, or that upgrade the connection
/// (WebSocket) are not copied. Each worker thread of a proxy has at most 100 copies in flight; above that, requests
/// are not copied. The metric `weft_mirrored_requests_total` counts copies by outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(PERCENT_OR_FRACTION).message("give percent or fraction, not both"))]
pub struct RequestMirror {
    /// The Service that gets the copies. If it does not exist, no copies are sent and the condition ResolvedRefs is
    /// False.
    pub backend_ref: MirrorRef,
    /// Percent of requests that are copied. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<u32>,
    /// As `percent`, with a denominator of your choice. Set only one of the two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<Fraction>,
    /// Suffix added to the host of copies, before the port, so that the backend can tell them from requests. Example:
    /// `-shadow`. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[-a-z0-9.]*[a-z0-9]$"))]
    pub host_suffix: Option<String>,
}

/// The backend that gets copies of requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MirrorRef {
    /// Kind of the backend. Default: Service.
    #[serde(default)]
    pub kind: ServiceKind,
    /// Namespace of the Service. Default: the route's namespace. Another namespace must allow it with a
    /// ReferenceGrant of the Gateway API, from kind MeshRoute of group weft.dev to kind Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// Name of the Service.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Port of the Service.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Name of a subset in the Service's MeshCluster. Default: all pods of the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub subset: Option<String>,
}
