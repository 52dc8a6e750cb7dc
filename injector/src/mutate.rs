//! Adds the proxy to a pod. Works on JSON, so that fields unknown to this build are kept; what it adds is written as
//! in a manifest.
//!
//! ```text
//!   initContainers:  weft-init, weft-proxy (native), then the pod's own, which are therefore in the mesh too
//!   containers:      weft-proxy (classic), then the pod's own
//!   volumes:         weft-token (for the API server), weft-pod (its labels, for the zone), weft-cache (configuration),
//!                    weft-identity (a token for the certificate authority, if pods have an identity)
//! ```
//!
//! A native proxy is a native sidecar (an init container with `restartPolicy: Always`): its startup probe delays the
//! application until the proxy is ready, and it ends after the application. A classic proxy is an ordinary container,
//! for API servers without native sidecars: it starts beside the application, which it cannot delay by a postStart hook
//! because its image has no shell, and at the end it waits for the pod's preStop hooks only.
//!
//! weft-init runs as root, because Kubernetes gives added capabilities only to root, and has only the two capabilities
//! that iptables needs. The proxy itself meets Pod Security "restricted".

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod};
use serde::Serialize;
use serde_json::{Map, Value, json};
use weft_config::bootstrap::{
    CACHE_DIR, ENV_ACCESS_LOG, ENV_CLASSIC, ENV_DRAIN_SECONDS, ENV_HOOKS, ENV_IDENTITY_AUTHORITY, ENV_IDENTITY_URL,
    ENV_LOG, ENV_NAMESPACE, ENV_NODE, ENV_OPAQUE_PORTS, ENV_POD, ENV_POD_IPS, ENV_POD_LABELS, ENV_POD_UID,
    ENV_PORT_NAMES, ENV_PROBES, ENV_PURGE_DELAY, ENV_ROOTS, ENV_SERVICE_ACCOUNT, ENV_TRUST_DOMAIN, ENV_WORKERS,
    HEALTH_PORT, Hooks, IDENTITY_AUDIENCE, IDENTITY_TOKEN_FILE, LABELS_FILE, METRICS_PORT, PROXY_UID, PURGE_DELAY_MS,
    Probes, TOKEN_DIR,
};
use weft_crds::names::{
    CACHE_VOLUME, IDENTITY_VOLUME, INIT_CONTAINER, POD_VOLUME, PROXY_CONTAINER, PROXY_VERSION_LABEL, STATUS_ANNOTATION,
    TOKEN_VOLUME,
};

use crate::pod::is_tcp;
use crate::probe::{ProbeLocation, Rewritten};
use crate::settings::{Identity, Resources, Settings, Trust};

/// Names of the proxy's ports. Prefixed, because a Service with targetPort "metrics" means the application's port.
const METRICS_PORT_NAME: &str = "weft-metrics";
const HEALTH_PORT_NAME: &str = "weft-health";

/// Lifetime of the tokens. The kubelet renews them after 80 %.
const TOKEN_SECONDS: u32 = 3600;
/// Size limit of the configuration cache: room for a few dozen documents.
const CACHE_SIZE: &str = "16Mi";
/// Seconds that the application waits for the proxy to be ready. After that the startup probe fails.
const STARTUP_SECONDS: u32 = 120;
/// Annotation with the container that kubectl uses when a command names none.
const DEFAULT_CONTAINER_ANNOTATION: &str = "kubectl.kubernetes.io/default-container";

/// Value of the status annotation: the additions of the injector.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status<'a> {
    version: &'a str,
    native: bool,
    init_containers: Vec<&'a str>,
    containers: Vec<&'a str>,
    volumes: Vec<&'a str>,
}

/// Returns the pod with the proxy. `pod` is `raw`, deserialized.
pub fn mutate(raw: Value, pod: &Pod, settings: &Settings, rewritten: &Rewritten) -> Value {
    let mut mutated = raw;
    let Rewritten { probes, hooks, locations } = rewritten;
    // Before containers are inserted: locations are by index.
    for location in locations {
        redirect(&mut mutated, location);
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
    volumes.extend(self::volumes(settings));
    spec.insert("volumes".to_owned(), volumes.into());

    let labels = object(&mut mutated, &["metadata", "labels"]);
    labels.insert(PROXY_VERSION_LABEL.to_owned(), settings.proxy_version.clone().into());
    let annotations = object(&mut mutated, &["metadata", "annotations"]);
    annotations.insert(STATUS_ANNOTATION.to_owned(), to_json(&status(settings)).into());
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
        // Those of the proxy: weft-init ends before the proxy starts, so the pod's total does not grow, and its QoS
        // class can still be Guaranteed.
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
        "volumeMounts": mounts(settings),
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

fn mounts(settings: &Settings) -> Vec<Value> {
    let mut mounts = vec![
        json!({ "name": TOKEN_VOLUME, "mountPath": TOKEN_DIR, "readOnly": true }),
        json!({ "name": POD_VOLUME, "mountPath": directory(LABELS_FILE), "readOnly": true }),
        json!({ "name": CACHE_VOLUME, "mountPath": CACHE_DIR }),
    ];
    if settings.identity.is_some() {
        mounts.push(json!({ "name": IDENTITY_VOLUME, "mountPath": directory(IDENTITY_TOKEN_FILE), "readOnly": true }));
    }
    mounts
}

fn environment(pod: &Pod, settings: &Settings, probes: &Probes, hooks: &Hooks) -> Vec<Value> {
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": path } } });
    let text = |name: &str, value: &str| json!({ "name": name, "value": escape_dollars(value) });
    let mut environment = vec![
        field(ENV_NAMESPACE, "metadata.namespace"),
        field(ENV_POD, "metadata.name"),
        field(ENV_POD_UID, "metadata.uid"),
        text(ENV_POD_LABELS, &to_json(&labels(pod, &settings.proxy_version))),
        field(ENV_NODE, "spec.nodeName"),
        field(ENV_POD_IPS, "status.podIPs"),
        field(ENV_SERVICE_ACCOUNT, "spec.serviceAccountName"),
        text(ENV_PORT_NAMES, &to_json(&port_names(pod))),
        text(ENV_PROBES, &to_json(probes)),
        text(ENV_HOOKS, &to_json(hooks)),
        text(ENV_WORKERS, &settings.workers.to_string()),
        text(ENV_DRAIN_SECONDS, &settings.drain_seconds.to_string()),
        text(ENV_PURGE_DELAY, PURGE_DELAY_MS),
    ];
    environment.extend((!settings.native).then(|| text(ENV_CLASSIC, "true")));
    if let Some(Identity { url, trust: Some(Trust { domain, authority, roots }) }) = &settings.identity {
        environment.extend([
            text(ENV_IDENTITY_URL, url),
            text(ENV_IDENTITY_AUTHORITY, &authority.to_string()),
            text(ENV_TRUST_DOMAIN, domain.as_str()),
            text(ENV_ROOTS, &roots.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")),
        ]);
    }
    // Unset where no annotation sets it: the proxy's default may differ by version.
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

/// The pod's named TCP ports. Of two ports with the same name the first is used, as for a Service: containers first,
/// then native sidecars.
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

fn volumes(settings: &Settings) -> Vec<Value> {
    let mut volumes = vec![
        json!({ "name": TOKEN_VOLUME, "projected": { "sources": [
            { "serviceAccountToken": { "path": "token", "expirationSeconds": TOKEN_SECONDS } },
            { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
        ] } }),
        json!({ "name": POD_VOLUME, "downwardAPI": { "items": [
            { "path": file_name(LABELS_FILE), "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.labels" } },
        ] } }),
        json!({ "name": CACHE_VOLUME, "emptyDir": { "sizeLimit": CACHE_SIZE } }),
    ];
    if settings.identity.is_some() {
        let token = json!({ "serviceAccountToken": {
            "path": file_name(IDENTITY_TOKEN_FILE), "audience": IDENTITY_AUDIENCE, "expirationSeconds": TOKEN_SECONDS,
        } });
        volumes.push(json!({ "name": IDENTITY_VOLUME, "projected": { "sources": [token] } }));
    }
    volumes
}

fn status(settings: &Settings) -> Status<'_> {
    let (mut init_containers, mut containers) = (vec![INIT_CONTAINER], Vec::new());
    if settings.native {
        init_containers.push(PROXY_CONTAINER)
    } else {
        containers.push(PROXY_CONTAINER)
    }
    let mut volumes = vec![TOKEN_VOLUME, POD_VOLUME, CACHE_VOLUME];
    volumes.extend(settings.identity.is_some().then_some(IDENTITY_VOLUME));
    Status { version: &settings.proxy_version, native: settings.native, init_containers, containers, volumes }
}

/// Points a probe or hook at the proxy. Timing, thresholds and unknown fields are kept.
pub(crate) fn redirect(pod: &mut Value, location: &ProbeLocation) {
    let ProbeLocation { list, index, fields, path } = location;
    let handler = object(&mut pod["spec"][*list][*index], fields);
    for kind in ["httpGet", "tcpSocket", "grpc"] {
        handler.remove(kind);
    }
    let get = json!({ "path": path, "port": HEALTH_PORT, "scheme": "HTTP" });
    handler.insert("httpGet".to_owned(), get);
}

/// The object at a path, created where absent. The pod was deserialized before, so a value that is no object is null.
fn object<'a>(value: &'a mut Value, path: &[&str]) -> &'a mut Map<String, Value> {
    let target = path.iter().fold(value, |value, name| {
        if !value.is_object() {
            *value = json!({});
        }
        &mut value[*name]
    });
    if !target.is_object() {
        *target = json!({});
    }
    target.as_object_mut().expect("it was just made one")
}

/// Removes an array from a map; empty where absent.
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

/// Escapes the value of an environment variable, in which the kubelet expands `$(NAME)` and replaces `$$` by `$`.
pub(crate) fn escape_dollars(value: &str) -> String {
    value.replace('$', "$$")
}

pub(crate) fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("strings, numbers, and maps with string keys can be written as JSON")
}

fn join(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn directory(path: &str) -> String {
    Path::new(path).parent().map(|directory| directory.to_string_lossy().into_owned()).unwrap_or_default()
}

fn file_name(path: &str) -> String {
    Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dollars_are_escaped_for_the_kubelet() {
        assert_eq!(escape_dollars("/$(WEFT_POD)?a=$b$$"), "/$$(WEFT_POD)?a=$$b$$$$");
    }

    #[test]
    fn labels_file_is_split_into_directory_and_name() {
        assert_eq!((directory(LABELS_FILE).as_str(), file_name(LABELS_FILE).as_str()), ("/var/run/weft/pod", "labels"));
    }
}
