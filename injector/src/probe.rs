//! The pod's probes and lifecycle hooks, handed to the proxy. The kubelet's connections would be redirected like any other: a
//! TCP probe would reach the proxy and never the application, and a policy that denies strangers would deny the kubelet. So each
//! becomes a GET on the proxy's health port, and the proxy asks the application over loopback.
//!
//! Not rewritten are commands (`exec` runs inside the container), waits (`sleep` is the kubelet's own), probes and hooks of another
//! host, which were never this pod's, and hooks of `tcpSocket`, which the kubelet refuses to run.

use k8s_openapi::api::core::v1::{Container, GRPCAction, HTTPGetAction, Pod, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use weft_config::bootstrap::{HEALTH_PORT, Hook, Hooks, Probe, ProbeKind, Probes, hook_path, probe_path};
use weft_crds::names::PROXY_CONTAINER;

use crate::decide::Refusal;

/// Seconds that Kubernetes gives a probe that does not say.
const TIMEOUT_DEFAULT: i32 = 1;

/// What is rewritten, and what the proxy is told.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rewritten {
    /// For the proxy.
    pub probes: Probes,
    /// For the proxy.
    pub hooks: Hooks,
    /// Where in the pod each of them is.
    pub places: Vec<Place>,
}

/// A probe or hook in a pod's JSON.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// `containers` or `initContainers`.
    pub list: &'static str,
    /// Which container of the list.
    pub index: usize,
    /// The fields that lead to it: `livenessProbe`, or `lifecycle` and `preStop`.
    pub fields: &'static [&'static str],
    /// Where the proxy makes it on its health port.
    pub path: String,
}

/// Finds the probes and hooks of application containers and of the user's own native sidecars. `secret` is for the paths of
/// hooks.
pub fn rewrite(pod: &Pod, secret: &str) -> Result<Rewritten, Refusal> {
    let mut rewritten = Rewritten::default();
    let Some(spec) = &pod.spec else { return Ok(rewritten) };
    let init = spec.init_containers.iter().flatten().enumerate().map(|(index, it)| ("initContainers", index, it));
    let app = spec.containers.iter().enumerate().map(|(index, it)| ("containers", index, it));
    let theirs = init.chain(app).filter(|(_, _, container)| container.name != PROXY_CONTAINER);
    for (list, index, container) in theirs {
        for (name, fields, probe) in [
            ("liveness", &["livenessProbe"], &container.liveness_probe),
            ("readiness", &["readinessProbe"], &container.readiness_probe),
            ("startup", &["startupProbe"], &container.startup_probe),
        ] {
            let Some(probe) = probe else { continue };
            let key = format!("{}/{name}", container.name);
            let path = probe_path(&key);
            let redirected = |get: &HTTPGetAction| is_redirected(get, |asked| asked == path);
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
            rewritten.places.push(Place { list, index, fields, path });
        }
        let lifecycle = container.lifecycle.as_ref();
        let hooks: [(_, &[_], _, _); 2] = [
            ("postStart", &["lifecycle", "postStart"], false, lifecycle.and_then(|it| it.post_start.as_ref())),
            ("preStop", &["lifecycle", "preStop"], true, lifecycle.and_then(|it| it.pre_stop.as_ref())),
        ];
        for (name, fields, pre_stop, handler) in hooks {
            let Some(get) = handler.and_then(|handler| handler.http_get.as_ref()) else { continue };
            let key = format!("{}/{name}", container.name);
            let ours = |path: &str| path.starts_with(&hook_path("")) && path.ends_with(&format!("/{key}"));
            if is_redirected(get, ours) {
                continue;
            }
            let Some(Get { path, https, headers }) = http(get) else { continue };
            let port = resolve(container, &format!("{name} hook"), &get.port)?;
            let key = format!("{secret}/{key}");
            rewritten.places.push(Place { list, index, fields, path: hook_path(&key) });
            rewritten.hooks.0.insert(key, Hook { port, path, https, headers, pre_stop });
        }
    }
    Ok(rewritten)
}

impl Rewritten {
    /// What a person should know of a pod that gets a classic proxy: that starts after native sidecars, and they are not started
    /// before their startup probe and postStart hook, which the proxy makes, succeed.
    pub fn before_a_classic_proxy(&self) -> Option<String> {
        let waits = |place: &&Place| {
            place.list == "initContainers" && matches!(place.fields, ["startupProbe"] | ["lifecycle", "postStart"])
        };
        let place = self.places.iter().find(waits)?;
        let field = place.fields.join(".");
        Some(format!(
            "initContainers[{}].{field} needs the proxy, and a classic proxy starts after it: the pod will not start; remove the \
             annotation config.weft.dev/native-sidecar, or use exec",
            place.index
        ))
    }
}

/// Whether a probe or hook is what this module made of another.
fn is_redirected(get: &HTTPGetAction, ours: impl Fn(&str) -> bool) -> bool {
    get.port == IntOrString::Int(HEALTH_PORT.into()) && get.path.as_deref().is_some_and(ours)
}

/// A GET of the pod's own, as the proxy is told of it.
struct Get {
    path: String,
    https: bool,
    headers: Vec<(String, String)>,
}

fn http(get: &HTTPGetAction) -> Option<Get> {
    let HTTPGetAction { host, http_headers, path, port: _, scheme } = get;
    let here = host.as_deref().unwrap_or_default().is_empty();
    let path = path.as_deref().unwrap_or_default();
    here.then(|| Get {
        // As the kubelet does, which joins the path to an address.
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
