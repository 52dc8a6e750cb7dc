//! The pod's probes, handed to the proxy. The kubelet's connections would be redirected like any other: a TCP probe would
//! reach the proxy and never the application, and a policy that denies strangers would deny the kubelet. So each becomes
//! a GET on the proxy's health port, and the proxy asks the application over loopback.
//!
//! Left alone are commands (`exec` runs inside the container) and probes of another host, which were never this pod's.

use k8s_openapi::api::core::v1::{Container, GRPCAction, HTTPGetAction, Pod, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use weft_config::bootstrap::{HEALTH_PORT, Probe, ProbeKind, Probes, probe_path};
use weft_crds::names::PROXY_CONTAINER;

use crate::decide::Refusal;

/// Seconds that Kubernetes gives a probe that does not say.
const TIMEOUT_DEFAULT: i32 = 1;

/// What is rewritten, and what the proxy is told.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rewritten {
    /// For the proxy.
    pub probes: Probes,
    /// Where in the pod each probe is.
    pub places: Vec<Place>,
}

/// A probe in a pod's JSON.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// `containers` or `initContainers`.
    pub list: &'static str,
    /// Which container of the list.
    pub index: usize,
    /// `livenessProbe`, `readinessProbe` or `startupProbe`.
    pub field: &'static str,
    /// Key in [`Rewritten::probes`].
    pub key: String,
}

/// Finds the probes of application containers and of the user's own native sidecars.
pub fn rewrite(pod: &Pod) -> Result<Rewritten, Refusal> {
    let mut rewritten = Rewritten::default();
    let Some(spec) = &pod.spec else { return Ok(rewritten) };
    let init = spec.init_containers.iter().flatten().enumerate().map(|(index, it)| ("initContainers", index, it));
    let app = spec.containers.iter().enumerate().map(|(index, it)| ("containers", index, it));
    let theirs = init.chain(app).filter(|(_, _, container)| container.name != PROXY_CONTAINER);
    for (list, index, container) in theirs {
        for (name, field, probe) in [
            ("liveness", "livenessProbe", &container.liveness_probe),
            ("readiness", "readinessProbe", &container.readiness_probe),
            ("startup", "startupProbe", &container.startup_probe),
        ] {
            let Some(probe) = probe else { continue };
            let key = format!("{}/{name}", container.name);
            if probe.http_get.as_ref().is_some_and(|get| is_redirected(get, &key)) {
                continue;
            }
            let found = if let Some(get) = &probe.http_get {
                http(get).map(|kind| (kind, get.port.clone()))
            } else if let Some(socket) = &probe.tcp_socket {
                tcp(socket).map(|kind| (kind, socket.port.clone()))
            } else if let Some(GRPCAction { port, service }) = &probe.grpc {
                Some((ProbeKind::Grpc { service: service.clone().unwrap_or_default() }, IntOrString::Int(*port)))
            } else {
                None
            };
            let Some((kind, port)) = found else { continue };
            let port = resolve(container, name, &port)?;
            let timeout_seconds = probe.timeout_seconds.unwrap_or(TIMEOUT_DEFAULT).max(TIMEOUT_DEFAULT).unsigned_abs();
            rewritten.probes.0.insert(key.clone(), Probe { port, kind, timeout_seconds });
            rewritten.places.push(Place { list, index, field, key });
        }
    }
    Ok(rewritten)
}

/// Whether a probe is what this module made of another.
fn is_redirected(get: &HTTPGetAction, key: &str) -> bool {
    get.port == IntOrString::Int(HEALTH_PORT.into()) && get.path.as_deref() == Some(&probe_path(key))
}

fn http(get: &HTTPGetAction) -> Option<ProbeKind> {
    let HTTPGetAction { host, http_headers, path, port: _, scheme } = get;
    let here = host.as_deref().unwrap_or_default().is_empty();
    let path = path.as_deref().unwrap_or_default();
    here.then(|| ProbeKind::Http {
        // As the kubelet does, which joins the path to an address.
        path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
        https: scheme.as_deref() == Some("HTTPS"),
        headers: http_headers.iter().flatten().map(|header| (header.name.clone(), header.value.clone())).collect(),
    })
}

fn tcp(socket: &TCPSocketAction) -> Option<ProbeKind> {
    socket.host.as_deref().unwrap_or_default().is_empty().then_some(ProbeKind::Tcp)
}

fn resolve(container: &Container, probe: &'static str, port: &IntOrString) -> Result<u16, Refusal> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            ports.find(|port| port.name.as_ref() == Some(name)).map(|port| port.container_port)
        }
    };
    let port_text = match port {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(name) => format!("{name:?}"),
    };
    number
        .and_then(|number| u16::try_from(number).ok())
        .filter(|number| *number != 0)
        .ok_or_else(|| Refusal::ProbePort { container: container.name.clone(), probe, port: port_text })
}
