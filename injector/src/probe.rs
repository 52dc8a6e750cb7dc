//! Rewrites the pod's probes and lifecycle hooks to the proxy. The kubelet's connections would be redirected like any
//! other: a TCP probe would test the proxy instead of the application, and a policy that denies unknown clients would
//! deny the kubelet. So each becomes a GET on the proxy's health port, and the proxy calls the application over
//! loopback.
//!
//! Not rewritten: `exec` (runs inside the container), `sleep` (the kubelet waits itself), probes and hooks with a
//! `host` (they go to another host), and `tcpSocket` hooks, which the kubelet refuses to run.

use k8s_openapi::api::core::v1::{Container, GRPCAction, HTTPGetAction, Pod, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use weft_config::bootstrap::{HEALTH_PORT, Hook, Hooks, Probe, ProbeKind, Probes, hook_path, probe_path};
use weft_crds::names::PROXY_CONTAINER;

use crate::refusal::Refusal;

/// Kubernetes' default of a probe's `timeoutSeconds`.
const TIMEOUT_DEFAULT: i32 = 1;

/// The rewritten probes and hooks of a pod.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rewritten {
    /// The original probes, for the proxy to run.
    pub probes: Probes,
    /// The original hooks, for the proxy to run.
    pub hooks: Hooks,
    /// Location of each of them in the pod.
    pub locations: Vec<ProbeLocation>,
}

/// Location of a probe or hook in a pod's JSON, and its new path.
#[derive(Debug, PartialEq, Eq)]
pub struct ProbeLocation {
    /// `containers` or `initContainers`.
    pub list: &'static str,
    /// Index of the container in the list.
    pub index: usize,
    /// Fields of the container that lead to it: `livenessProbe`, or `lifecycle` and `preStop`.
    pub fields: &'static [&'static str],
    /// Path on the proxy's health port that runs it.
    pub path: String,
}

/// Finds the probes and hooks of all containers but the proxy's. `secret` is a segment of the hooks' paths, so that
/// clients cannot call them.
pub fn rewrite(pod: &Pod, secret: &str) -> Result<Rewritten, Refusal> {
    let mut rewritten = Rewritten::default();
    let Some(spec) = &pod.spec else { return Ok(rewritten) };
    let init = spec.init_containers.iter().flatten().enumerate().map(|(index, it)| ("initContainers", index, it));
    let app = spec.containers.iter().enumerate().map(|(index, it)| ("containers", index, it));
    let containers = init.chain(app).filter(|(_, _, container)| container.name != PROXY_CONTAINER);
    for (list, index, container) in containers {
        for (name, fields, probe) in [
            ("liveness", &["livenessProbe"], &container.liveness_probe),
            ("readiness", &["readinessProbe"], &container.readiness_probe),
            ("startup", &["startupProbe"], &container.startup_probe),
        ] {
            let Some(probe) = probe else { continue };
            let key = format!("{}/{name}", container.name);
            let path = probe_path(&key);
            let redirected = |get: &HTTPGetAction| is_redirected(get, |found| found == path);
            if probe.http_get.as_ref().is_some_and(redirected) {
                continue;
            }
            let found = if let Some(get) = &probe.http_get {
                http(get)
                    .map(|Get { path, https, headers }| (ProbeKind::Http { path, https, headers }, get.port.clone()))
            } else if let Some(socket) = &probe.tcp_socket {
                tcp(socket).map(|kind| (kind, socket.port.clone()))
            } else if let Some(GRPCAction { port, service }) = &probe.grpc {
                Some((ProbeKind::Grpc { service: service.clone().unwrap_or_default() }, IntOrString::Int(*port)))
            } else {
                None
            };
            let Some((kind, port)) = found else { continue };
            let port = resolve(container, &format!("{name} probe"), &port)?;
            let timeout_seconds = probe.timeout_seconds.unwrap_or(TIMEOUT_DEFAULT).max(TIMEOUT_DEFAULT).unsigned_abs();
            rewritten.probes.0.insert(key, Probe { port, kind, timeout_seconds });
            rewritten.locations.push(ProbeLocation { list, index, fields, path });
        }
        let lifecycle = container.lifecycle.as_ref();
        let hooks: [(_, &[_], _, _); 2] = [
            ("postStart", &["lifecycle", "postStart"], false, lifecycle.and_then(|it| it.post_start.as_ref())),
            ("preStop", &["lifecycle", "preStop"], true, lifecycle.and_then(|it| it.pre_stop.as_ref())),
        ];
        for (name, fields, pre_stop, handler) in hooks {
            let Some(get) = handler.and_then(|handler| handler.http_get.as_ref()) else { continue };
            let key = format!("{}/{name}", container.name);
            let is_hook_path = |path: &str| path.starts_with(&hook_path("")) && path.ends_with(&format!("/{key}"));
            if is_redirected(get, is_hook_path) {
                continue;
            }
            let Some(Get { path, https, headers }) = http(get) else { continue };
            let port = resolve(container, &format!("{name} hook"), &get.port)?;
            let key = format!("{secret}/{key}");
            rewritten.locations.push(ProbeLocation { list, index, fields, path: hook_path(&key) });
            rewritten.hooks.0.insert(key, Hook { port, path, https, headers, pre_stop });
        }
    }
    Ok(rewritten)
}

impl Rewritten {
    /// The warning for a pod with a classic proxy and a native sidecar of its own that blocks the pod's start: the
    /// sidecar's startup probe or postStart hook is run by the proxy, which starts only after the sidecar.
    pub fn classic_deadlock_warning(&self) -> Option<String> {
        let blocks_start = |location: &&ProbeLocation| {
            location.list == "initContainers"
                && matches!(location.fields, ["startupProbe"] | ["lifecycle", "postStart"])
        };
        let location = self.locations.iter().find(blocks_start)?;
        let field = location.fields.join(".");
        Some(format!(
            "initContainers[{}].{field} is run by the proxy, which is an ordinary container and starts after it: the \
             pod will not start; remove the annotation config.weft.dev/native-sidecar, or use exec",
            location.index
        ))
    }
}

/// Whether a probe or hook was rewritten before.
fn is_redirected(get: &HTTPGetAction, is_proxy_path: impl Fn(&str) -> bool) -> bool {
    get.port == IntOrString::Int(HEALTH_PORT.into()) && get.path.as_deref().is_some_and(is_proxy_path)
}

/// The original `httpGet`, without its port.
struct Get {
    path: String,
    https: bool,
    headers: Vec<(String, String)>,
}

fn http(get: &HTTPGetAction) -> Option<Get> {
    let HTTPGetAction { host, http_headers, path, port: _, scheme } = get;
    let to_this_pod = host.as_deref().unwrap_or_default().is_empty();
    let path = path.as_deref().unwrap_or_default();
    to_this_pod.then(|| Get {
        // As the kubelet does, which appends the path to the address.
        path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
        https: scheme.as_deref() == Some("HTTPS"),
        headers: http_headers.iter().flatten().map(|header| (header.name.clone(), header.value.clone())).collect(),
    })
}

fn tcp(socket: &TCPSocketAction) -> Option<ProbeKind> {
    socket.host.as_deref().unwrap_or_default().is_empty().then_some(ProbeKind::Tcp)
}

fn resolve(container: &Container, what: &str, port: &IntOrString) -> Result<u16, Refusal> {
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
        .ok_or_else(|| Refusal::ProbePort { container: container.name.clone(), what: what.to_owned(), port: port_text })
}
