//! Decides whether a pod gets a proxy, by the inject label of the pod, else of the namespace. The reasons to skip a
//! pod are a closed list, each with a code (metrics, log) and a sentence (messages). A pod that must not run is a
//! [`Refusal`].

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use weft_config::bootstrap::{ADMIN_PORT, HEALTH_PORT, INBOUND_PORT, METRICS_PORT, OUTBOUND_PORT, PROXY_UID};
use weft_crds::names::{INIT_CONTAINER, INJECT_ENABLED, INJECT_LABEL, PROXY_CONTAINER, STATUS_ANNOTATION, VOLUMES};

use crate::namespace::{INJECT_DISABLED, Namespace, POD_SECURITY_LABEL};
use crate::pod::{containers, is_tcp};
use crate::refusal::Refusal;

/// The kubelet's annotation on a mirror pod: the API object that reports a static pod.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// The decision on a pod that may run.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// Add a proxy.
    Inject,
    /// Admit the pod unchanged.
    Skip {
        /// The reason.
        reason: Skip,
        /// An explanation with a remedy for the user, where a proxy was probably expected.
        why: Option<String>,
    },
}

/// Why a pod is admitted unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// The request does not create a pod.
    NotACreation,
    /// The namespace is not in the mesh.
    NamespaceNotEnabled,
    /// The pod's label opts out.
    PodOptedOut,
    /// The pod uses the node's network.
    HostNetwork,
    /// The pod has a proxy already.
    AlreadyInjected,
    /// The namespace belongs to the cluster or to Weft.
    SystemNamespace,
    /// A mirror pod of a static pod.
    MirrorPod,
    /// The pod's `os` is not Linux.
    NotLinux,
}

/// Whether the pod gets a proxy.
pub fn decide(namespace: &Namespace, pod: &Pod) -> Result<Decision, Refusal> {
    let spec = pod.spec.as_ref();
    let labels = pod.metadata.labels.as_ref();
    let annotation = |key: &str| pod.metadata.annotations.as_ref().is_some_and(|map| map.contains_key(key));
    let skip = |reason| Ok(Decision::Skip { reason, why: None });
    let skip_and_say = |reason, why: String| Ok(Decision::Skip { reason, why: Some(why) });

    let opted_in = match labels.and_then(|labels| labels.get(INJECT_LABEL)).map(String::as_str) {
        Some("false") => return skip(Skip::PodOptedOut),
        Some("true") => true,
        Some(other) => return Err(Refusal::InjectLabel(other.to_owned())),
        None => false,
    };
    if namespace.is_system() {
        let why = opted_in.then(|| Skip::SystemNamespace.sentence().to_owned());
        return Ok(Decision::Skip { reason: Skip::SystemNamespace, why });
    }
    if !opted_in {
        match namespace.labels.get(INJECT_LABEL).map(String::as_str) {
            Some(INJECT_ENABLED) => {}
            None | Some(INJECT_DISABLED) => return skip(Skip::NamespaceNotEnabled),
            Some(other) => {
                let name = &namespace.name;
                let why = format!(
                    "label {INJECT_LABEL} on namespace {name} is {other:?}, which is unknown; use {INJECT_ENABLED:?}"
                );
                return skip_and_say(Skip::NamespaceNotEnabled, why);
            }
        }
    }
    if annotation(MIRROR_ANNOTATION) {
        return skip(Skip::MirrorPod);
    }
    if spec.and_then(|spec| spec.os.as_ref()).is_some_and(|os| os.name != "linux") {
        let why = format!("{}; label it {INJECT_LABEL}=false", Skip::NotLinux.sentence());
        return skip_and_say(Skip::NotLinux, why);
    }
    if spec.and_then(|spec| spec.host_network) == Some(true) {
        let why = format!("{}; do without it, or label the pod {INJECT_LABEL}=false", Skip::HostNetwork.sentence());
        return skip_and_say(Skip::HostNetwork, why);
    }
    if spec.is_some_and(|spec| containers(spec).any(|container| container.name == PROXY_CONTAINER)) {
        // Without the status annotation the container is the user's own, and has the proxy's name by accident.
        let why = format!("the pod has a container called {PROXY_CONTAINER}; rename it");
        return Ok(Decision::Skip {
            reason: Skip::AlreadyInjected,
            why: (!annotation(STATUS_ANNOTATION)).then_some(why),
        });
    }
    Ok(Decision::Inject)
}

/// Refuses a pod that cannot run with a proxy: Pod Security level, reserved names, user and ports.
pub fn check_injectable(namespace: &Namespace, pod: &Pod) -> Result<(), Refusal> {
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
    check_user_and_ports(pod)
}

/// Refuses a pod whose containers use the proxy's user or ports.
pub fn check_user_and_ports(pod: &Pod) -> Result<(), Refusal> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    check_pod_user(spec)?;
    for container in containers(spec).filter(|container| container.name != PROXY_CONTAINER) {
        check_container_user(container)?;
        let reserved = [OUTBOUND_PORT, INBOUND_PORT, ADMIN_PORT, METRICS_PORT, HEALTH_PORT].map(i32::from);
        let tcp = container.ports.iter().flatten().filter(|port| is_tcp(port));
        let taken = tcp.map(|port| port.container_port).find(|port| reserved.contains(port));
        if let Some(port) = taken {
            return Err(Refusal::PortTaken { container: container.name.clone(), port });
        }
    }
    Ok(())
}

/// The warning for a pod of a Job with a classic proxy, which keeps the pod running after the application has ended.
pub fn classic_job_warning(pod: &Pod) -> Option<String> {
    let restart = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always");
    let warning = "the pod will not complete: its proxy is an ordinary container and keeps running; ";
    let remedy = format!("use a native sidecar (API server 1.29 or later), or label the pod {INJECT_LABEL}=false");
    (restart != "Always").then(|| format!("{warning}{remedy}"))
}

fn check_pod_user(spec: &PodSpec) -> Result<(), Refusal> {
    let Some(context) = &spec.security_context else { return Ok(()) };
    let groups = context.supplemental_groups.iter().flatten();
    for (field, found) in [
        ("runAsUser", context.run_as_user == Some(PROXY_UID)),
        ("runAsGroup", context.run_as_group == Some(PROXY_UID)),
        ("fsGroup", context.fs_group == Some(PROXY_UID)),
        ("supplementalGroups", groups.copied().any(|group| group == PROXY_UID)),
    ] {
        if found {
            return Err(Refusal::ProxyUser { object: "the pod's securityContext".to_owned(), field });
        }
    }
    Ok(())
}

fn check_container_user(container: &Container) -> Result<(), Refusal> {
    let Some(context) = &container.security_context else { return Ok(()) };
    for (field, id) in [("runAsUser", context.run_as_user), ("runAsGroup", context.run_as_group)] {
        if id == Some(PROXY_UID) {
            return Err(Refusal::ProxyUser { object: format!("container {:?}", container.name), field });
        }
    }
    Ok(())
}

// === impl Skip ===

impl Skip {
    /// The code in metrics and logs.
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

    /// The sentence in messages.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::NotACreation => "a proxy is added only when a pod is created",
            Self::NamespaceNotEnabled => "the namespace is not labelled weft.dev/inject=enabled",
            Self::PodOptedOut => "the pod is labelled weft.dev/inject=false",
            Self::HostNetwork => "the pod uses the node's network (hostNetwork), which Weft does not redirect",
            Self::AlreadyInjected => "the pod has a proxy already",
            Self::SystemNamespace => "the namespace belongs to the cluster or to Weft",
            Self::MirrorPod => "the pod is a static pod, which only its node's kubelet can change",
            Self::NotLinux => "the pod is not for Linux",
        }
    }
}
