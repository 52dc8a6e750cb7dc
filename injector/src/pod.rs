//! What several steps read of a pod.

use k8s_openapi::api::core::v1::{Container, ContainerPort, PodSpec};

/// All containers of the pod, init containers first.
pub fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

/// Whether a port is TCP, which is what Weft redirects.
pub fn is_tcp(port: &ContainerPort) -> bool {
    port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP")
}
