//! Whether a pod gets a proxy. Labels decide: the pod's, else the namespace's. The reasons for leaving a pod alone are a
//! closed list, each with a code (metrics, log) and a sentence (people). What must not run at all is a [`Refusal`].

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ContainerPort, Pod, PodSpec};
use weft_config::bootstrap::{ADMIN_PORT, HEALTH_PORT, INBOUND_PORT, METRICS_PORT, OUTBOUND_PORT, PROXY_UID};
use weft_config::bootstrap::{EXPORT_NAMESPACE, INBOUND_NAMESPACE};
use weft_crds::names::{
    INIT_CONTAINER, INJECT_ENABLED, INJECT_LABEL, PROXY_CONTAINER, STATUS_ANNOTATION, SYSTEM_NAMESPACE,
};

use crate::mutate::VOLUMES;
use crate::settings::Mistakes;

/// Value of [`INJECT_LABEL`] on a namespace that is named as outside the mesh.
const INJECT_DISABLED: &str = "disabled";
/// Label by which a namespace asks the API server to enforce a Pod Security level.
pub const POD_SECURITY_LABEL: &str = "pod-security.kubernetes.io/enforce";
/// Annotation of the kubelet on the API object of a static pod, which is a report and not a request.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// Namespaces without which the cluster, or Weft itself, would not run.
const SYSTEM_NAMESPACES: [&str; 6] =
    ["kube-system", "kube-public", "kube-node-lease", SYSTEM_NAMESPACE, EXPORT_NAMESPACE, INBOUND_NAMESPACE];

/// What is known of a pod's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

/// What becomes of a pod that may run.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// It gets a proxy.
    Inject,
    /// It is left as it is.
    Skip {
        /// Why.
        reason: Skip,
        /// What a person should know, where leaving it may surprise.
        warning: Option<String>,
    },
}

/// Why a pod is left as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// Something other than the creation of a pod.
    NotACreation,
    /// The namespace is not in the mesh.
    NamespaceNotEnabled,
    /// The pod asks to be left out.
    PodOptedOut,
    /// The pod has the node's network.
    HostNetwork,
    /// The pod has a proxy.
    AlreadyInjected,
    /// The namespace is one that the cluster or Weft needs.
    SystemNamespace,
    /// A report on a static pod.
    MirrorPod,
    /// The pod is not for Linux.
    NotLinux,
}

/// Why a pod must not run as it is. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Not a pod.
    #[error("the pod cannot be read: {0}")]
    Unreadable(String),
    /// The label on the pod has an unknown value.
    #[error(
        "label {INJECT_LABEL} on the pod is {0:?}; use \"true\" to add the proxy, \"false\" to leave it out, or remove \
         the label to do as the namespace says"
    )]
    InjectLabel(String),
    /// Annotations that configure the proxy are wrong.
    #[error("{0}")]
    Annotations(#[from] Mistakes),
    /// Something runs as the proxy's user.
    #[error(
        "{who} has {field} {PROXY_UID}, which is reserved for Weft's proxy, whose traffic is not redirected; use another \
         number, or label the pod {INJECT_LABEL}=false"
    )]
    ProxyUser {
        /// The container, or the pod.
        who: String,
        /// The field.
        field: &'static str,
    },
    /// The namespace forbids the init container.
    #[error(
        "namespace {namespace} enforces Pod Security {level:?} ({POD_SECURITY_LABEL}), which forbids the capability \
         NET_ADMIN that {INIT_CONTAINER} needs to redirect traffic; set the label to \"privileged\" (warn and audit can \
         stay), or label the pod {INJECT_LABEL}=false"
    )]
    PodSecurity {
        /// The namespace.
        namespace: String,
        /// The level it enforces.
        level: String,
    },
    /// A name that the injector gives is taken.
    #[error("the pod has a {kind} called {name:?}, a name that Weft gives; call it something else")]
    NameTaken {
        /// Container or volume.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A port that the proxy listens on is taken.
    #[error("container {container:?} has containerPort {port}, on which Weft's proxy listens; use another port")]
    PortTaken {
        /// The container.
        container: String,
        /// The port.
        port: i32,
    },
    /// A probe or hook names a port that its container does not have.
    #[error(
        "the {what} of container {container:?} asks for port {port}, which is neither a number from 1 to 65535 \
         nor the name of a port of that container; name the port under the container's ports, or use a number"
    )]
    ProbePort {
        /// The container.
        container: String,
        /// Which probe or hook.
        what: String,
        /// The port.
        port: String,
    },
    /// There are no random numbers.
    #[error("there are no random numbers for the paths of the pod's hooks; try again")]
    Random,
    /// The namespace is unknown.
    #[error("the labels of namespace {namespace:?} could not be read ({why}); try again")]
    NamespaceUnknown {
        /// The namespace.
        namespace: String,
        /// Why.
        why: String,
    },
}

/// Whether the pod gets a proxy.
pub fn decide(namespace: &Namespace, pod: &Pod) -> Result<Decision, Refusal> {
    let spec = pod.spec.as_ref();
    let labels = pod.metadata.labels.as_ref();
    let annotation = |key: &str| pod.metadata.annotations.as_ref().is_some_and(|map| map.contains_key(key));
    let skip = |reason| Ok(Decision::Skip { reason, warning: None });
    let skip_and_warn = |reason, warning: String| Ok(Decision::Skip { reason, warning: Some(warning) });

    let asked = match labels.and_then(|labels| labels.get(INJECT_LABEL)).map(String::as_str) {
        Some("false") => return skip(Skip::PodOptedOut),
        Some("true") => true,
        Some(other) => return Err(Refusal::InjectLabel(other.to_owned())),
        None => false,
    };
    if SYSTEM_NAMESPACES.contains(&namespace.name.as_str()) {
        let warning = format!("no proxy was added: {}", Skip::SystemNamespace.sentence());
        return Ok(Decision::Skip { reason: Skip::SystemNamespace, warning: asked.then_some(warning) });
    }
    if !asked {
        match namespace.labels.get(INJECT_LABEL).map(String::as_str) {
            Some(INJECT_ENABLED) => {}
            None | Some(INJECT_DISABLED) => return skip(Skip::NamespaceNotEnabled),
            Some(other) => {
                let warning = format!(
                    "label {INJECT_LABEL} on namespace {} is {other:?}, which means nothing; use {INJECT_ENABLED:?}",
                    namespace.name
                );
                return skip_and_warn(Skip::NamespaceNotEnabled, warning);
            }
        }
    }
    if annotation(MIRROR_ANNOTATION) {
        return skip(Skip::MirrorPod);
    }
    if spec.and_then(|spec| spec.os.as_ref()).is_some_and(|os| os.name != "linux") {
        return skip_and_warn(Skip::NotLinux, format!("no proxy was added: {}", Skip::NotLinux.sentence()));
    }
    if spec.and_then(|spec| spec.host_network) == Some(true) {
        return skip_and_warn(Skip::HostNetwork, format!("no proxy was added: {}", Skip::HostNetwork.sentence()));
    }
    if spec.is_some_and(|spec| containers(spec).any(|container| container.name == PROXY_CONTAINER)) {
        // One that did not come from us is no proxy, and whoever made it may not know that the name means something.
        let warning = format!("no proxy was added: the pod has a container called {PROXY_CONTAINER}");
        let warning = (!annotation(STATUS_ANNOTATION)).then_some(warning);
        return Ok(Decision::Skip { reason: Skip::AlreadyInjected, warning });
    }
    Ok(Decision::Inject)
}

/// Whether a pod that gets a proxy may run with it.
pub fn admissible(namespace: &Namespace, pod: &Pod) -> Result<(), Refusal> {
    if let Some(level) = namespace.labels.get(POD_SECURITY_LABEL).filter(|level| *level != "privileged") {
        return Err(Refusal::PodSecurity { namespace: namespace.name.clone(), level: level.clone() });
    }
    let Some(spec) = &pod.spec else { return Ok(()) };
    if containers(spec).any(|container| container.name == INIT_CONTAINER) {
        return Err(Refusal::NameTaken { kind: "container", name: INIT_CONTAINER.to_owned() });
    }
    if let Some(volume) = spec.volumes.iter().flatten().find(|volume| VOLUMES.contains(&volume.name.as_str())) {
        return Err(Refusal::NameTaken { kind: "volume", name: volume.name.clone() });
    }
    compatible(pod)
}

/// Whether what runs beside the proxy leaves it its user and its ports.
pub fn compatible(pod: &Pod) -> Result<(), Refusal> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    pod_user(spec)?;
    for container in containers(spec).filter(|container| container.name != PROXY_CONTAINER) {
        container_user(container)?;
        let reserved = [OUTBOUND_PORT, INBOUND_PORT, ADMIN_PORT, METRICS_PORT, HEALTH_PORT].map(i32::from);
        let tcp = container.ports.iter().flatten().filter(|port| is_tcp(port));
        let taken = tcp.map(|port| port.container_port).find(|port| reserved.contains(port));
        if let Some(port) = taken {
            return Err(Refusal::PortTaken { container: container.name.clone(), port });
        }
    }
    Ok(())
}

/// What a person should know of a pod that gets a classic proxy: a Job is not over while one of its containers runs.
pub fn never_ends(pod: &Pod) -> Option<String> {
    let restart = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always");
    let warning = "the pod is meant to end, but a classic proxy runs on; ";
    let remedy = format!("use a native sidecar (API server 1.29 or later), or label the pod {INJECT_LABEL}=false");
    (restart != "Always").then(|| format!("{warning}{remedy}"))
}

/// Every container of the pod, those that run before it first.
pub fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

/// Whether a port carries what Weft redirects.
pub fn is_tcp(port: &ContainerPort) -> bool {
    port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP")
}

fn pod_user(spec: &PodSpec) -> Result<(), Refusal> {
    let Some(context) = &spec.security_context else { return Ok(()) };
    let groups = context.supplemental_groups.iter().flatten();
    for (field, found) in [
        ("runAsUser", context.run_as_user == Some(PROXY_UID)),
        ("runAsGroup", context.run_as_group == Some(PROXY_UID)),
        ("fsGroup", context.fs_group == Some(PROXY_UID)),
        ("supplementalGroups", groups.copied().any(|group| group == PROXY_UID)),
    ] {
        if found {
            return Err(Refusal::ProxyUser { who: "the pod's securityContext".to_owned(), field });
        }
    }
    Ok(())
}

fn container_user(container: &Container) -> Result<(), Refusal> {
    let Some(context) = &container.security_context else { return Ok(()) };
    for (field, id) in [("runAsUser", context.run_as_user), ("runAsGroup", context.run_as_group)] {
        if id == Some(PROXY_UID) {
            return Err(Refusal::ProxyUser { who: format!("container {:?}", container.name), field });
        }
    }
    Ok(())
}

// === impl Skip ===

impl Skip {
    /// For metrics and logs.
    pub fn code(self) -> &'static str {
        match self {
            Self::NotACreation => "not-a-creation",
            Self::NamespaceNotEnabled => "namespace-not-enabled",
            Self::PodOptedOut => "pod-opted-out",
            Self::HostNetwork => "host-network",
            Self::AlreadyInjected => "already-injected",
            Self::SystemNamespace => "system-namespace",
            Self::MirrorPod => "mirror-pod",
            Self::NotLinux => "not-linux",
        }
    }

    /// For people.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::NotACreation => "a proxy is added only where a pod is created",
            Self::NamespaceNotEnabled => "the namespace is not labelled weft.dev/inject=enabled",
            Self::PodOptedOut => "the pod is labelled weft.dev/inject=false",
            Self::HostNetwork => "the pod uses the node's network (hostNetwork), where nothing may be redirected",
            Self::AlreadyInjected => "the pod has a proxy",
            Self::SystemNamespace => "the namespace belongs to the cluster or to Weft",
            Self::MirrorPod => "the pod is a static pod of a node, which only that node can change",
            Self::NotLinux => "the pod is not for Linux",
        }
    }
}

// === impl Refusal ===

impl Refusal {
    /// For metrics and logs.
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
            Self::Random => "random",
            Self::NamespaceUnknown { .. } => "namespace-unknown",
        }
    }
}
