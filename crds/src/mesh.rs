//! Mesh: what holds for the whole cluster.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::status::Status;

/// The name of the only Mesh.
pub const NAME: &str = "weft";
/// The trust domain without a Mesh.
pub const TRUST_DOMAIN: &str = "cluster.local";
/// Trust domains: parts of lower case letters, digits, dashes and underscores. Source: the SPIFFE ID specification.
pub const TRUST_DOMAIN_PATTERN: &str = "^[a-z0-9_-]+(\\.[a-z0-9_-]+)*$";

/// What holds for the whole cluster: trust domain, default mode of mutual TLS, further roots. There is one, named `weft`.
/// Without it: trust domain `cluster.local`, mode Permissive.
///
/// ```yaml
/// apiVersion: weft.dev/v1alpha1
/// kind: Mesh
/// metadata: {name: weft}
/// spec:
///   mtls: {mode: Strict}
/// ```
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "Mesh",
    plural = "meshes",
    category = "weft",
    status = "Status",
    derive = "PartialEq",
    validation = Rule::new("self.metadata.name == 'weft'").message("there is one Mesh, named weft: set metadata.name: weft"),
    printcolumn(name = "TrustDomain", type_ = "string", json_path = ".spec.trustDomain"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mtls.mode"),
    printcolumn(
        name = "Strict-Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"StrictReady\")].status"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status",
        priority = 1
    ),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].status",
        priority = 1
    ),
    printcolumn(name = "Generation", type_ = "integer", json_path = ".metadata.generation", priority = 1),
    printcolumn(name = "Observed", type_ = "integer", json_path = ".status.observedGeneration", priority = 1),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    ),
    printcolumn(
        name = "Strict-Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"StrictReady\")].message",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
pub struct MeshSpec {
    /// Trust domain of the identities of all workloads: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
    /// Decided when Weft is installed: a later change is refused with a condition, because no pod would trust another.
    /// Default: that in force, which is cluster.local if there was none at installation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), regex(pattern = TRUST_DOMAIN_PATTERN))]
    pub trust_domain: Option<String>,
    /// Mutual TLS of all namespaces, where no MeshPolicy says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<DefaultMtls>,
    /// Whom proxies trust.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<Trust>,
}

/// Mutual TLS of all namespaces, where no MeshPolicy says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DefaultMtls {
    /// Permissive: mutual TLS between pods that have an identity, plaintext with all others. Strict: mutual TLS, or no
    /// connection. Default: Permissive.
    #[serde(default)]
    pub mode: Mode,
}

/// Whom proxies trust.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Trust {
    /// Roots of the trust domain that proxies trust besides those of the issuer (`ca.crt` of the Secret weft-issuer), each
    /// a certificate in PEM. Certificates are public.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 16384)))]
    pub roots: Vec<String>,
}

/// Permissive: mutual TLS with every peer that has an identity, plaintext with all others. Strict: mutual TLS, or no
/// connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// Mutual TLS with every peer that has an identity; plaintext with all others.
    #[default]
    Permissive,
    /// Mutual TLS, or no connection.
    Strict,
}

// === impl MeshSpec ===

impl MeshSpec {
    /// The default mode of mutual TLS.
    pub fn mode(&self) -> Mode {
        self.mtls.as_ref().map(|mtls| mtls.mode).unwrap_or_default()
    }

    /// The further roots, in PEM.
    pub fn roots(&self) -> &[String] {
        self.trust.as_ref().map(|trust| &trust.roots[..]).unwrap_or_default()
    }
}
