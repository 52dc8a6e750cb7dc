//! The names that Weft uses on Kubernetes objects. Every such string stands here and nowhere else.

/// API group of our kinds.
pub const GROUP: &str = "weft.dev";
/// Version of our kinds.
pub const VERSION: &str = "v1alpha1";
/// Category of our kinds: `kubectl get weft`.
pub const CATEGORY: &str = "weft";

/// Namespace of the operator and the injector.
pub const SYSTEM_NAMESPACE: &str = "weft-system";

/// Label that decides on injection. On a namespace: [`INJECT_ENABLED`]. On a pod: `"true"` or `"false"`, which wins.
pub const INJECT_LABEL: &str = "weft.dev/inject";
/// Value of [`INJECT_LABEL`] on a namespace in the mesh.
pub const INJECT_ENABLED: &str = "enabled";
/// Label on every pod that carries a proxy; its value is the proxy's version.
pub const PROXY_VERSION_LABEL: &str = "weft.dev/proxy-version";
/// Annotation on every pod that carries a proxy: what was added, as JSON.
pub const STATUS_ANNOTATION: &str = "weft.dev/status";
/// Prefix of the annotations that configure a pod's proxy. The same key is taken from the namespace where the pod has none.
pub const CONFIG_PREFIX: &str = "config.weft.dev/";

/// Label on every object that Weft makes.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY_LABEL`].
pub const MANAGED_BY: &str = "weft";

/// Field manager of the operator's writes.
pub const OPERATOR_MANAGER: &str = "weft-operator";
/// The writers' lease, in the system namespace.
pub const LEASE: &str = "weft-operator";
/// Secret with the webhook's certificate (`ca.crt`, `tls.crt`, `tls.key`), in the system namespace.
pub const WEBHOOK_SECRET: &str = "weft-injector-tls";
/// Service of the webhook, in the system namespace, and name of the MutatingWebhookConfiguration.
pub const WEBHOOK: &str = "weft-injector";

/// Name of the container with the proxy.
pub const PROXY_CONTAINER: &str = "weft-proxy";
/// Name of the init container that redirects traffic.
pub const INIT_CONTAINER: &str = "weft-init";
