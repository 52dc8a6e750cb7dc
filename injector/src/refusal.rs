//! Why a pod is refused, for every step that can refuse one: a closed list, each with a code (metrics, log) and a
//! message that names the object, the field and the remedy.

use weft_config::bootstrap::{EXPORT_NAMESPACE, PROXY_UID, TRUST_NAME};
use weft_crds::names::{INIT_CONTAINER, INJECT_LABEL};

use crate::annotations::AnnotationErrors;
use crate::namespace::POD_SECURITY_LABEL;

/// Why a pod is refused. Each message names the object, the field and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The object cannot be deserialized as a pod.
    #[error("the pod cannot be read: {0}")]
    Unreadable(String),
    /// The label on the pod has an unknown value.
    #[error(
        "label {INJECT_LABEL} on the pod is {0:?}; use \"true\" to add the proxy, \"false\" to leave it out, or remove \
         the label to follow the namespace's label"
    )]
    InjectLabel(String),
    /// Annotations that configure the proxy are invalid.
    #[error("{0}")]
    Annotations(#[from] AnnotationErrors),
    /// The pod or a container uses the proxy's user or group.
    #[error(
        "{object} has {field} {PROXY_UID}, which is reserved for Weft's proxy, whose traffic is not redirected; use \
         another number, or label the pod {INJECT_LABEL}=false"
    )]
    ProxyUser {
        /// The container, or the pod's securityContext.
        object: String,
        /// The field.
        field: &'static str,
    },
    /// The namespace forbids the init container.
    #[error(
        "namespace {namespace} enforces Pod Security {level:?}, which forbids NET_ADMIN of {INIT_CONTAINER}; label it \
         {POD_SECURITY_LABEL}=privileged (warn and audit can stay), or the pod {INJECT_LABEL}=false"
    )]
    PodSecurity {
        /// The namespace.
        namespace: String,
        /// The level it enforces.
        level: String,
    },
    /// A container or volume has a name that the injector uses.
    #[error("the pod has a {kind} called {name:?}, a name that is reserved for Weft; rename it")]
    NameTaken {
        /// `container` or `volume`.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A container declares a port that the proxy listens on.
    #[error("container {container:?} has containerPort {port}, on which Weft's proxy listens; use another port")]
    PortTaken {
        /// The container.
        container: String,
        /// The port.
        port: i32,
    },
    /// A probe or hook has an invalid port, or names one that its container does not declare.
    #[error(
        "the {what} of container {container:?} uses port {port}, which is neither a number from 1 to 65535 \
         nor the name of a port of that container; name the port under the container's ports, or use a number"
    )]
    ProbePort {
        /// The container.
        container: String,
        /// The probe or hook.
        what: String,
        /// The port.
        port: String,
    },
    /// There is no root for the pod's identity to begin with.
    #[error(
        "the roots of the pod's identity are not known yet, and a pod does not start without: the operator writes them \
         into ConfigMap {EXPORT_NAMESPACE}/{TRUST_NAME}; try again, and see the injector's /readyz"
    )]
    NoRoots,
    /// The operating system gave no random numbers.
    #[error("no random numbers are available for the paths of the pod's lifecycle hooks; try again")]
    Random,
    /// The namespace could not be read.
    #[error("the labels of namespace {namespace:?} could not be read ({why}); try again")]
    NamespaceUnknown {
        /// The namespace.
        namespace: String,
        /// The error.
        why: String,
    },
}

// === impl Refusal ===

impl Refusal {
    /// The message, one for each invalid annotation.
    pub fn messages(&self) -> Vec<String> {
        match self {
            Self::Annotations(AnnotationErrors(errors)) => errors.iter().map(ToString::to_string).collect(),
            other => vec![other.to_string()],
        }
    }

    /// The code in metrics and logs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "unreadable",
            Self::InjectLabel(_) => "inject-label",
            Self::Annotations(_) => "annotations",
            Self::ProxyUser { .. } => "proxy-user",
            Self::PodSecurity { .. } => "pod-security",
            Self::NameTaken { .. } => "name-taken",
            Self::PortTaken { .. } => "port-taken",
            Self::ProbePort { .. } => "probe-port",
            Self::NoRoots => "no-roots",
            Self::Random => "random",
            Self::NamespaceUnknown { .. } => "namespace-unknown",
        }
    }
}
