//! The pod with the proxy in it. Works on JSON, so that fields unknown to this build stay; what it adds is written out as
//! one would write it in a manifest.
//!
//! ```text
//!   initContainers:  weft-init, weft-proxy (native), then the pod's own, which are thereby in the mesh too
//!   containers:      weft-proxy (classic: on servers without native sidecars), then the pod's own
//!   volumes:         weft-token (for the API server), weft-pod (its zone), weft-cache (documents last used)
//! ```
//!
//! A native proxy holds the application back until it is ready, by its startup probe, and outlives it. A classic one can
//! do neither, but waits for the pod's preStop hooks: its image has no shell for a postStart hook. That is what native sidecars
//! were invented for.
//!
//! weft-init runs as root, because Kubernetes gives capabilities to no other user, and with nothing but the two
//! capabilities that iptables needs. The proxy itself meets Pod Security "restricted".

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod};
use serde::Serialize;
use serde_json::{Map, Value, json};
use weft_config::bootstrap::{
    CACHE_DIR, ENV_ACCESS_LOG, ENV_CLASSIC, ENV_DRAIN_SECONDS, ENV_HOOKS, ENV_LOG, ENV_NAMESPACE, ENV_NODE,
    ENV_OPAQUE_PORTS, ENV_POD, ENV_POD_IPS, ENV_POD_LABELS, ENV_POD_UID, ENV_PORT_NAMES, ENV_PROBES, ENV_PURGE_DELAY,
    ENV_SERVICE_ACCOUNT, ENV_WORKERS, HEALTH_PORT, Hooks, LABELS_FILE, METRICS_PORT, PROXY_UID, PURGE_DELAY_MS, Probes,
    TOKEN_DIR,
};
use weft_crds::names::{INIT_CONTAINER, PROXY_CONTAINER, PROXY_VERSION_LABEL, STATUS_ANNOTATION};

use crate::decide::is_tcp;
use crate::probe::{Place, Rewritten};
use crate::settings::{Resources, Settings};

/// Names of the volumes that are added.
pub const VOLUMES: [&str; 3] = [TOKEN_VOLUME, POD_VOLUME, CACHE_VOLUME];

const TOKEN_VOLUME: &str = "weft-token";
const POD_VOLUME: &str = "weft-pod";
const CACHE_VOLUME: &str = "weft-cache";

/// Names of the proxy's ports. Not just "metrics": a Service whose targetPort has that name means the application's.
const METRICS_PORT_NAME: &str = "weft-metrics";
const HEALTH_PORT_NAME: &str = "weft-health";

/// The kubelet renews the token well before.
const TOKEN_SECONDS: u32 = 3600;
/// Copies of a few dozen documents.
const CACHE_SIZE: &str = "16Mi";
/// The application waits so long for the proxy; then the pod has failed, and says so.
const STARTUP_SECONDS: u32 = 120;
/// Which container kubectl means when a command names none.
const DEFAULT_CONTAINER_ANNOTATION: &str = "kubectl.kubernetes.io/default-container";

/// The status annotation: what was added.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status<'a> {
    version: &'a str,
    native: bool,
    init_containers: Vec<&'a str>,
    containers: Vec<&'a str>,
    volumes: [&'a str; 3],
}

/// The pod with the proxy in it. `pod` is the same pod as `raw`, read.
pub fn mutate(raw: Value, pod: &Pod, settings: &Settings, rewritten: &Rewritten) -> Value {
    let mut mutated = raw;
    let Rewritten { probes, hooks, places } = rewritten;
    // Before containers are inserted, since places are by index.
    for place in places {
        redirect(&mut mutated, place);
    }

    let spec = object(&mut mutated, &["spec"]);
    let proxy = proxy(pod, settings, probes, hooks);
    let (mut before, mut beside) = (vec![init(settings)], Vec::new());
    if settings.native {
        before.push(proxy)
    } else {
        beside.push(proxy)
    }
    prepend(spec, "initContainers", before);
    prepend(spec, "containers", beside);
    let mut volumes = array(spec, "volumes");
    volumes.extend(self::volumes());
    spec.insert("volumes".to_owned(), volumes.into());

    let labels = object(&mut mutated, &["metadata", "labels"]);
    labels.insert(PROXY_VERSION_LABEL.to_owned(), settings.proxy_version.clone().into());
    let annotations = object(&mut mutated, &["metadata", "annotations"]);
    annotations.insert(STATUS_ANNOTATION.to_owned(), json_text(&status(settings)).into());
    let first = pod.spec.as_ref().and_then(|spec| spec.containers.first());
    if let (false, Some(first)) = (settings.native, first) {
        annotations.entry(DEFAULT_CONTAINER_ANNOTATION).or_insert_with(|| first.name.clone().into());
    }
    mutated
}

fn init(settings: &Settings) -> Value {
    let mut arguments = Vec::new();
    for (flag, value) in [
        ("exclude-inbound-ports", join(&settings.exclude_inbound_ports)),
        ("exclude-outbound-ports", join(&settings.exclude_outbound_ports)),
        ("exclude-outbound-ips", join(&settings.exclude_outbound_ips)),
    ] {
        if !value.is_empty() {
            arguments.push(format!("--{flag}={value}"));
        }
    }
    json!({
        "name": INIT_CONTAINER,
        "image": settings.init_image,
        "imagePullPolicy": settings.image_pull_policy,
        "args": arguments,
        // The proxy's own: it has ended before the proxy begins, so a pod costs no more for it, and can be Guaranteed still.
        "resources": resources(&settings.resources),
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    })
}

fn proxy(pod: &Pod, settings: &Settings, probes: &Probes, hooks: &Hooks) -> Value {
    let ready = json!({ "path": "/readyz", "port": HEALTH_PORT, "scheme": "HTTP" });
    let mut proxy = json!({
        "name": PROXY_CONTAINER,
        "image": settings.proxy_image,
        "imagePullPolicy": settings.image_pull_policy,
        "env": environment(pod, settings, probes, hooks),
        "ports": [
            { "name": METRICS_PORT_NAME, "containerPort": METRICS_PORT, "protocol": "TCP" },
            { "name": HEALTH_PORT_NAME, "containerPort": HEALTH_PORT, "protocol": "TCP" },
        ],
        "readinessProbe": { "httpGet": ready, "periodSeconds": 5, "failureThreshold": 3, "timeoutSeconds": 1 },
        "resources": resources(&settings.resources),
        "securityContext": {
            "runAsUser": PROXY_UID,
            "runAsGroup": PROXY_UID,
            "runAsNonRoot": true,
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            { "name": TOKEN_VOLUME, "mountPath": TOKEN_DIR, "readOnly": true },
            { "name": POD_VOLUME, "mountPath": folder(LABELS_FILE), "readOnly": true },
            { "name": CACHE_VOLUME, "mountPath": CACHE_DIR },
        ],
    });
    if settings.native {
        let native = object(&mut proxy, &[]);
        native.insert("restartPolicy".to_owned(), "Always".into());
        let startup =
            json!({ "httpGet": ready, "periodSeconds": 1, "failureThreshold": STARTUP_SECONDS, "timeoutSeconds": 1 });
        native.insert("startupProbe".to_owned(), startup);
    }
    proxy
}

fn environment(pod: &Pod, settings: &Settings, probes: &Probes, hooks: &Hooks) -> Vec<Value> {
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": path } } });
    let text = |name: &str, value: &str| json!({ "name": name, "value": literal(value) });
    let mut environment = vec![
        field(ENV_NAMESPACE, "metadata.namespace"),
        field(ENV_POD, "metadata.name"),
        field(ENV_POD_UID, "metadata.uid"),
        text(ENV_POD_LABELS, &json_text(&labels(pod, &settings.proxy_version))),
        field(ENV_NODE, "spec.nodeName"),
        field(ENV_POD_IPS, "status.podIPs"),
        field(ENV_SERVICE_ACCOUNT, "spec.serviceAccountName"),
        text(ENV_PORT_NAMES, &json_text(&port_names(pod))),
        text(ENV_PROBES, &json_text(probes)),
        text(ENV_HOOKS, &json_text(hooks)),
        text(ENV_WORKERS, &settings.workers.to_string()),
        text(ENV_DRAIN_SECONDS, &settings.drain_seconds.to_string()),
        text(ENV_PURGE_DELAY, PURGE_DELAY_MS),
    ];
    environment.extend((!settings.native).then(|| text(ENV_CLASSIC, "true")));
    // Where nothing was said the proxy's own default is meant, which may be another in another version.
    environment.extend(settings.log.as_ref().map(|log| text(ENV_LOG, log)));
    environment.extend(settings.access_log.map(|log| text(ENV_ACCESS_LOG, log.as_str())));
    environment.extend(settings.opaque_ports.as_ref().map(|ports| text(ENV_OPAQUE_PORTS, &join(ports))));
    environment
}

/// The labels that the pod is created with.
pub(crate) fn labels<'a>(pod: &'a Pod, proxy_version: &'a str) -> BTreeMap<&'a str, &'a str> {
    let own = pod.metadata.labels.iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()));
    own.chain([(PROXY_VERSION_LABEL, proxy_version)]).collect()
}

/// The pod's named TCP ports. Where two containers have the same name the first counts, as it does for a Service:
/// containers first, then native sidecars.
pub(crate) fn port_names(pod: &Pod) -> BTreeMap<&str, i32> {
    let sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let mut names = BTreeMap::new();
    let Some(spec) = &pod.spec else { return names };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten().filter(sidecar));
    for container in containers.filter(|container| container.name != PROXY_CONTAINER) {
        for port in container.ports.iter().flatten().filter(|port| is_tcp(port)) {
            if let Some(name) = &port.name {
                names.entry(name.as_str()).or_insert(port.container_port);
            }
        }
    }
    names
}

fn resources(resources: &Resources) -> Value {
    let Resources { cpu_request, cpu_limit, memory_request, memory_limit } = resources;
    let pair = |cpu: &Option<String>, memory: &Option<String>| -> Map<String, Value> {
        let named = [("cpu", cpu), ("memory", memory)].into_iter();
        named.filter_map(|(name, quantity)| Some((name.to_owned(), quantity.clone()?.into()))).collect()
    };
    let named = [("requests", pair(cpu_request, memory_request)), ("limits", pair(cpu_limit, memory_limit))];
    named.into_iter().filter(|(_, it)| !it.is_empty()).map(|(name, it)| (name.to_owned(), Value::from(it))).collect()
}

fn volumes() -> [Value; 3] {
    [
        json!({ "name": TOKEN_VOLUME, "projected": { "sources": [
            { "serviceAccountToken": { "path": "token", "expirationSeconds": TOKEN_SECONDS } },
            { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
        ] } }),
        json!({ "name": POD_VOLUME, "downwardAPI": { "items": [
            { "path": file(LABELS_FILE), "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.labels" } },
        ] } }),
        json!({ "name": CACHE_VOLUME, "emptyDir": { "sizeLimit": CACHE_SIZE } }),
    ]
}

fn status(settings: &Settings) -> Status<'_> {
    let (mut init_containers, mut containers) = (vec![INIT_CONTAINER], Vec::new());
    if settings.native {
        init_containers.push(PROXY_CONTAINER)
    } else {
        containers.push(PROXY_CONTAINER)
    }
    Status { version: &settings.proxy_version, native: settings.native, init_containers, containers, volumes: VOLUMES }
}

/// Sends a probe or hook to the proxy. Timing and thresholds stay, and so does what is unknown.
pub(crate) fn redirect(pod: &mut Value, place: &Place) {
    let Place { list, index, fields, path } = place;
    let handler = object(&mut pod["spec"][*list][*index], fields);
    for kind in ["httpGet", "tcpSocket", "grpc"] {
        handler.remove(kind);
    }
    let get = json!({ "path": path, "port": HEALTH_PORT, "scheme": "HTTP" });
    handler.insert("httpGet".to_owned(), get);
}

/// The object at a path, made where there is none. The pod was read as a typed one, so anything else there is null.
fn object<'a>(value: &'a mut Value, path: &[&str]) -> &'a mut Map<String, Value> {
    let place = path.iter().fold(value, |value, name| {
        if !value.is_object() {
            *value = json!({});
        }
        &mut value[*name]
    });
    if !place.is_object() {
        *place = json!({});
    }
    place.as_object_mut().expect("it was just made one")
}

/// Takes the array of a name, empty where there is none.
fn array(map: &mut Map<String, Value>, name: &str) -> Vec<Value> {
    match map.remove(name) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

fn prepend(map: &mut Map<String, Value>, name: &str, mut items: Vec<Value>) {
    if items.is_empty() {
        return;
    }
    items.extend(array(map, name));
    map.insert(name.to_owned(), items.into());
}

/// A value of an environment variable that the kubelet leaves as it is: it replaces `$(NAME)`, and `$$` by `$`.
pub(crate) fn literal(value: &str) -> String {
    value.replace('$', "$$")
}

pub(crate) fn json_text(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("strings, numbers, and maps with string keys can be written as JSON")
}

fn join(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn folder(path: &str) -> String {
    Path::new(path).parent().map(|folder| folder.to_string_lossy().into_owned()).unwrap_or_default()
}

fn file(path: &str) -> String {
    Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelet_expands_nothing() {
        assert_eq!(literal("/$(WEFT_POD)?a=$b$$"), "/$$(WEFT_POD)?a=$$b$$$$");
    }

    #[test]
    fn paths_of_the_contract() {
        assert_eq!((folder(LABELS_FILE).as_str(), file(LABELS_FILE).as_str()), ("/var/run/weft/pod", "labels"));
    }
}
