//! The names, labels and annotations that Weft uses on Kubernetes objects. All of them are defined here.

/// API group of the custom resources.
pub const GROUP: &str = "weft.dev";
/// API version of the custom resources.
pub const VERSION: &str = "v1alpha1";
/// Category of the custom resources: `kubectl get weft` lists all of them.
pub const CATEGORY: &str = "weft";

/// Namespace of the operator and the injector.
pub const SYSTEM_NAMESPACE: &str = "weft-system";

/// Label that decides on injection. On a namespace: [`INJECT_ENABLED`]. On a pod: `"true"` or `"false"`, which
/// overrides the namespace.
pub const INJECT_LABEL: &str = "weft.dev/inject";
/// Value of [`INJECT_LABEL`] on a namespace in the mesh.
pub const INJECT_ENABLED: &str = "enabled";
/// Label on every injected pod; its value is the proxy's version.
pub const PROXY_VERSION_LABEL: &str = "weft.dev/proxy-version";
/// Annotation on every injected pod: what was added, as JSON.
pub const STATUS_ANNOTATION: &str = "weft.dev/status";
/// Prefix of the annotations that configure a pod's proxy. An annotation of the namespace applies to pods without it.
pub const CONFIG_PREFIX: &str = "config.weft.dev/";

/// Label on every object that Weft creates.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY_LABEL`].
pub const MANAGED_BY: &str = "weft";

/// `controllerName` of the operator in the statuses of the Gateway API's routes.
pub const CONTROLLER: &str = "weft.dev/mesh-controller";
/// Field manager of the operator's writes.
pub const OPERATOR_MANAGER: &str = "weft-operator";
/// Lease for the leader election of operators, in the system namespace.
pub const LEASE: &str = "weft-operator";
/// Secret with the webhook's certificate (`ca.crt`, `tls.crt`, `tls.key`), in the system namespace.
pub const WEBHOOK_SECRET: &str = "weft-injector-tls";
/// Service of the webhooks, in the system namespace, and name of their two configurations.
pub const WEBHOOK: &str = "weft-injector";

/// Name of the proxy container.
pub const PROXY_CONTAINER: &str = "weft-proxy";
/// Name of the init container that redirects traffic.
pub const INIT_CONTAINER: &str = "weft-init";

/// Names of the volumes of an injected pod.
pub const VOLUMES: [&str; 3] = [TOKEN_VOLUME, POD_VOLUME, CACHE_VOLUME];
/// Name of the volume with the proxy's token for the API server.
pub const TOKEN_VOLUME: &str = "weft-token";
/// Name of the volume with the pod's labels.
pub const POD_VOLUME: &str = "weft-pod";
/// Name of the volume with the proxy's cached configuration.
pub const CACHE_VOLUME: &str = "weft-cache";
